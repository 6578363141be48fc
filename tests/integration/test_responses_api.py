"""The Responses API with OpenAI's client: replies, streams, tools, stored conversations, and what is refused."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
import sqlalchemy as sa
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList

from tests.conftest import task
from tests.integration.test_conversations import rows
from tests.integration.test_server_load import running
from tests.integration.test_store import postgres, where  # noqa: F401 - fixtures
from tests.integration.test_tools import steps_of
from tests.scripted_endpoint import DONE, USAGE, chunk, failed, scripted_endpoint
from tests.serving import KEY, Served, data_uri, served, until, user
from vlroute import Endpoint, Router
from vlroute.conversations import RESPONSES
from vlroute.files import shipped
from vlroute.pocket.screens import TOOLS, App, draw_screen_task, opening
from vlroute.serving.settings import ServerSettings
from vlroute.store import Store
from vlroute.types import MODES, Mode, ToolCall

pytestmark = pytest.mark.float32
OTHER_KEY = "another-key-for-tests"
KEYS = ServerSettings(api_keys=(KEY, OTHER_KEY))
SOME = task("hop")
GREEDY: dict[str, Any] = {"temperature": 0}
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
#: The flat form of this API.
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a store and two keys."""
    with served(KEYS, store=tmp_path_factory.mktemp("store") / "answers.db") as one:
        yield one


@pytest.fixture(scope="module")
def bare() -> Iterator[Served]:
    """A server without a store and keys, whose reasoning never ends unless a request limits it."""
    endless = {"thinking": {"eos_token_id": -1, "max_new_tokens": 6000}}
    with served(ServerSettings(max_num_seqs=2), generation=endless) as one:
        yield one


@pytest.fixture
def client(server: Served) -> openai.OpenAI:
    return server.openai()


@contextmanager
def scripted(file: Path) -> Iterator[tuple[Served, Store]]:
    """A server with a store whose answers are scripted, so that no model is loaded."""
    with scripted_endpoint() as script, Store(file) as store:
        script.play([chunk("2"), chunk(end="stop"), USAGE, DONE])
        with (
            Router.from_endpoints((script.url, "m"), (script.url, "m"), store=store) as router,
            served(router=router) as one,
        ):
            yield one, store


def asked(prompt: str = SOME.prompt) -> list[Any]:
    """A question with pictures as input items."""
    pictures = [{"type": "input_image", "image_url": data_uri(frame), "detail": "auto"} for frame in SOME.frames]
    return [{"role": "user", "content": [*pictures, {"type": "input_text", "text": prompt}]}]


def outline(response: Any) -> list[Any]:
    """The output without ids."""
    shown: list[Any] = []
    for item in response.output:
        match item.type:
            case "function_call":
                shown.append((item.type, item.name, item.arguments, item.status))
            case "message":
                shown.append((item.type, [part.text for part in item.content], item.status))
            case "reasoning":
                parts = [*(item.content or []), *item.summary]
                shown.append((item.type, [part.text for part in parts], item.status))
    return shown


def refused(call: Any, status: int, code: str, param: str | None) -> str:
    with pytest.raises(openai.APIStatusError) as caught:
        call()
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param), error.message
    return error.message


def until_error(client: openai.OpenAI) -> tuple[list[Any], str]:
    """The events of a stream that fails, and the message of the error."""
    events: list[Any] = []
    try:
        for event in client.responses.create(model="instruct", input="Hi", stream=True):
            events.append(event)
    except openai.APIError as error:
        return events, error.message
    raise AssertionError("no error")


# replies


@pytest.mark.parametrize("mode", ["instruct", "thinking", "auto"])
def test_a_reply_is_that_of_chat_completions(server: Served, client: openai.OpenAI, mode: str) -> None:
    chat = client.chat.completions.create(model=mode, messages=[user(SOME)], **GREEDY)
    said: Any = chat.choices[0].message
    raw = client.responses.with_raw_response.create(model=mode, input=asked(), metadata={"a": "b"}, **GREEDY)
    response: Any = Response.model_validate_json(raw.text, strict=True)
    assert response.output_text == said.content == SOME.answer or mode == "instruct"
    expected = [("message", [said.content], "completed")]
    if getattr(said, "reasoning_content", None):
        expected.insert(0, ("reasoning", [said.reasoning_content], "completed"))
    assert outline(response) == expected
    assert (response.status, response.model, response.error, response.metadata) == (
        "completed", chat.model, None, {"a": "b"},
    )  # fmt: skip
    assert raw.headers["x-vlroute-mode"] == response.vlroute["decision"]["mode"] == chat.model
    assert response.id == f"resp_{raw.headers['x-vlroute-id']}"
    assert response.vlroute["timing"]["total"] > 0
    usage, used = response.usage, chat.usage
    assert used is not None
    assert used.completion_tokens_details is not None
    assert (usage.input_tokens, usage.output_tokens) == (used.prompt_tokens, used.completion_tokens)
    assert usage.output_tokens_details.reasoning_tokens == used.completion_tokens_details.reasoning_tokens
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        assert http.post("/v1/feedback", json={"id": response.id, "correct": True}).json()["stored"]


def test_a_plain_question(client: openai.OpenAI) -> None:
    short = client.responses.create(model="thinking", input="Add 2 and 3.", **GREEDY)
    long = client.responses.create(
        model="thinking", instructions="Be brief.", input=[{"role": "user", "content": "Add 2 and 3."}], **GREEDY
    )
    assert short.output_text == long.output_text == "5"
    assert long.usage is not None
    assert short.usage is not None
    assert long.usage.input_tokens > short.usage.input_tokens
    assert long.instructions == "Be brief."


def test_an_answer_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    response: Any = client.responses.create(
        model="thinking", input="Add 2 and 3.", max_output_tokens=4, extra_body={"vlroute": {"answer_reserve": 0}}
    )
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert [item.type for item in response.output] == ["reasoning"]
    assert response.output[-1].status == "incomplete"
    assert response.output_text == ""
    events = list(
        client.responses.create(
            model="thinking", input="Add 2 and 3.", max_output_tokens=4, stream=True,
            extra_body={"vlroute": {"answer_reserve": 0}},
        )
    )  # fmt: skip
    assert events[-1].type == "response.incomplete"
    again = client.responses.create(model="instruct", input="Add 2 and 3.", previous_response_id=response.id, **GREEDY)
    assert again.status == "completed"


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({"reasoning": {"effort": "none"}}, "instruct"), ({"reasoning": {"effort": "low"}}, "thinking"),
        ({"model": "pocket-Thinking"}, "thinking"), ({"model": "pocket-instruct"}, "instruct"),
        ({"model": "thinking", "reasoning": {"effort": "max"}}, "thinking"),
    ],
)  # fmt: skip
def test_forced_modes(client: openai.OpenAI, options: Any, mode: Mode) -> None:
    response: Any = client.responses.create(**{"model": "auto", "input": "Add 2 and 3.", **options})
    assert (response.model, response.vlroute["decision"]["forced"]) == (mode, True)


def test_a_contradiction_is_refused(client: openai.OpenAI) -> None:
    create = client.responses.create
    message = refused(
        lambda: create(model="instruct", input="Hi", reasoning={"effort": "high"}),
        400, "contradiction", "reasoning.effort",
    )  # fmt: skip
    assert "model and reasoning.effort contradict" in message


def test_reasoning_items_are_accepted_as_input(client: openai.OpenAI) -> None:
    """In a loop of tools the model reads its own reasoning; after the next question it does not."""
    one = draw_screen_task(random.Random(3), steps=2)
    items = opened(one)
    options: Any = {"model": "thinking", "tools": FLAT, **GREEDY}
    first = client.responses.create(input=items, **options)
    reasoning, call = first.output
    assert reasoning.type == "reasoning"
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "2"}
    longer = client.responses.create(input=[*items, *first.output, result], **options)
    dumped = [item.model_dump() for item in first.output]
    assert outline(client.responses.create(input=[*items, *dumped, result], **options)) == outline(longer)
    without = client.responses.create(input=[*items, call, result], **options)
    assert longer.usage is not None
    assert without.usage is not None
    assert longer.usage.input_tokens > without.usage.input_tokens
    assert longer.usage.input_tokens_details.cached_tokens > 0


def test_reasoning_as_a_summary(client: openai.OpenAI) -> None:
    options: Any = {"model": "thinking", "input": "Add 2 and 3.", **GREEDY}
    plain: Any = client.responses.create(**options).output[0]
    assert (plain.summary, plain.content[0].type) == ([], "reasoning_text")
    summary: Any = client.responses.create(reasoning={"summary": "auto"}, **options).output[0]
    assert summary.summary[0].text == plain.content[0].text
    assert summary.content is None
    events = list(client.responses.create(reasoning={"summary": "detailed"}, stream=True, **options))
    check_events(events)
    deltas = [event.delta for event in events if event.type == "response.reasoning_summary_text.delta"]
    assert "".join(deltas) == plain.content[0].text


# streams


def check_events(events: list[Any]) -> Any:
    """Check the order of the events, and that they add up to the last one, which holds the whole response."""
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    items: dict[int, Any] = {}
    texts: dict[int, str] = {}
    for event in events:
        EVENT.validate_python(event.to_dict(), strict=True)
        match event.type:
            case "response.output_item.added":
                assert event.output_index == len(items)
                items[event.output_index], texts[event.output_index] = None, ""
            case kind if kind.endswith(".delta"):
                assert items[event.output_index] is None
                texts[event.output_index] += event.delta
            case kind if kind.endswith("text.done"):
                assert event.text == texts[event.output_index]
            case "response.function_call_arguments.done":
                assert event.arguments == texts[event.output_index]
            case "response.output_item.done":
                assert items[event.output_index] is None
                items[event.output_index] = event.item
    response = events[-1].response
    assert [items[index] for index in range(len(items))] == response.output
    return response


@pytest.mark.parametrize("mode", ["instruct", "thinking", "auto"])
def test_a_stream_adds_up_to_the_reply(client: openai.OpenAI, mode: str) -> None:
    options: Any = {"model": mode, "input": asked(), **GREEDY}
    response = check_events(list(client.responses.create(stream=True, **options)))
    whole = client.responses.create(**options)
    assert outline(response) == outline(whole)
    assert response.status == "completed"
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()


def test_the_stream_helper(client: openai.OpenAI) -> None:
    with client.responses.stream(model="thinking", input=asked(), **GREEDY) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        response = stream.get_final_response()
    assert text == response.output_text == SOME.answer


def test_an_answer_of_instruct_for_thinking_in_a_stream() -> None:
    """The second decision is a further `response.in_progress`."""
    end = chunk(end="stop"), USAGE, DONE
    with scripted_endpoint() as script, script.router() as router, served(router=router) as one:
        script.play([chunk(None, "so"), *end], [chunk("rescued"), *end])
        client = one.openai()
        events = list(client.responses.create(model="thinking", input="Hi", stream=True))
        response = check_events(events)
        decisions = [event.response for event in events if event.type == "response.in_progress"]
        assert [one.model for one in decisions] == ["thinking", "instruct"]
        assert decisions[1].vlroute["decision"]["rescued"]
        assert outline(response) == [("reasoning", ["so"], "completed"), ("message", ["rescued"], "completed")]
        script.play([chunk(None, "so"), *end], [chunk("rescued"), *end])
        with client.responses.stream(model="thinking", input="Hi") as stream:
            assert stream.get_final_response().output_text == "rescued"


def test_an_error_within_a_stream(server: Served) -> None:
    """OpenAI's client raises it. Before that, it gets the failed response."""
    with scripted_endpoint() as script, script.router() as router, served(router=router) as one:
        script.play([chunk("begun"), failed("server_error"), DONE])
        events, _ = until_error(one.openai())
        assert events[-1].type == "response.failed"
        assert EVENT.validate_python(events[-1].to_dict(), strict=True).response.error.code == "server_error"
        assert [event.sequence_number for event in events] == list(range(len(events)))


# tools and formats


def opened(one: Any) -> list[Any]:
    """The first message of a task on screens as input items."""
    items = []
    for message in opening(one):
        parts = [
            {"type": "input_image", "image_url": data_uri(part["image"])} if part["type"] == "image"
            else {"type": "input_text", "text": part["text"]}
            for part in message["content"]
        ]  # fmt: skip
        items.append({"role": message["role"], "content": parts})
    return items


@pytest.mark.parametrize(
    ("how", "mode"),
    [("items", "thinking"), ("stream", "thinking"), ("previous", "thinking"), ("previous", "auto"), ("stream", "auto")],
)
def test_the_steps_with_tools_are_those_of_the_router(
    router: Router, client: openai.OpenAI, how: str, mode: Any
) -> None:
    options: Any = {"model": mode, "tools": FLAT, **GREEDY}
    for seed in range(2):
        one = draw_screen_task(random.Random(seed), steps=2 + seed)
        app, items, steps, last = App(one), opened(one), list[Any](), None
        for _ in range(8):
            before = {"previous_response_id": last} if how == "previous" and last else {}
            if how == "stream":
                with client.responses.stream(input=items, **options) as stream:
                    events = list(stream)
                    response: Any = stream.get_final_response()
                assert events[-1].type == "response.completed"
            else:
                response = client.responses.create(input=items, **before, **options)
            calls = [item for item in response.output if item.type == "function_call"]
            parsed = [ToolCall(call.call_id, call.name, json.loads(call.arguments), call.arguments) for call in calls]
            steps.append((response.output_text, thought(response), [(call.name, call.arguments) for call in parsed]))
            if not calls:
                break
            results = [
                {"type": "function_call_output", "call_id": call.id, "output": app.call(call.name, call.arguments)}
                for call in parsed
            ]
            last, items = response.id, results if how == "previous" else [*items, *response.output, *results]
        expected = steps_of(one, lambda messages: router.ask(messages, tools=TOOLS, mode=mode, **GREEDY))
        if mode == "thinking":
            assert steps == expected
        assert steps[-1][0] == one.answer


def thought(response: Any) -> str:
    return "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content)


def test_a_picture_in_the_output_of_a_function(client: openai.OpenAI) -> None:
    picture = {"type": "input_image", "image_url": data_uri(SOME.frames[0]), "detail": "low"}
    call = {"type": "function_call", "call_id": "1", "name": "tap", "arguments": '{"button": "B"}'}
    items: Any = [*asked("Tap B."), call, {"type": "function_call_output", "call_id": "1", "output": [picture]}]
    first = client.responses.create(model="instruct", input=items, tools=FLAT, **GREEDY)
    assert first.usage is not None
    assert first.usage.input_tokens_details.image_tokens > 16  # type: ignore[attr-defined]
    page = client.responses.input_items.list(first.id, order="asc")
    ResponseItemList.model_validate_json(page.to_json(), strict=True)
    again: Any = [item.to_dict() for item in page.data]
    assert [item["type"] for item in again] == ["message", "function_call", "function_call_output"]
    assert again[2]["output"] == [picture]
    second = client.responses.create(model="instruct", input=again, tools=FLAT, **GREEDY)
    assert outline(second) == outline(first)


class Sum(pydantic.BaseModel):
    sum: Literal["4", "5", "6"]


def test_structured_output(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model="thinking", input="Add 2 and 3.", text_format=Sum, **GREEDY)
    assert parsed.output_parsed == Sum(sum="5")
    assert thought(parsed)
    with client.responses.stream(model="thinking", input="Add 2 and 3.", text_format=Sum, **GREEDY) as stream:
        assert stream.get_final_response().output_parsed == Sum(sum="5")
    again = client.responses.parse(
        model="instruct", input=[{"role": "user", "content": "Add 2 and 3."}, *parsed.output,  # type: ignore[list-item]
                                 {"role": "user", "content": "Add 2 and 2."}], text_format=Sum, **GREEDY,
    )  # fmt: skip
    assert again.output_parsed is not None
    create: Any = client.responses.create
    for form, param, said in (
        (
            {"type": "json_schema", "name": "a", "schema": {"type": "objekt"}},
            "text.format.schema",
            "text.format.schema",
        ),
        ({"type": "json_schema", "schema": {}}, "text.format.name", "text.format.name"),
        ({"type": "json_schema", "name": "a"}, "text.format.schema", "text.format.schema"),
        ({"type": "grammar"}, "text.format.type", "json_schema"),
    ):
        assert said in refused(lambda form=form: create(model="auto", input="Hi", text={"format": form}), 400,
                               "invalid_format", param)  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "shown"),
    [
        ("required", "required"), ("read", {"type": "function", "name": "read"}),
        ({"type": "function", "name": "read"}, {"type": "function", "name": "read"}),
        ({"type": "function", "function": {"name": "read"}}, {"type": "function", "name": "read"}),
        *[
            (one, {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "read"}]})
            for allowed in [{"mode": "required", "tools": [{"type": "function", "name": "read"}]}]
            for one in ({"type": "allowed_tools", **allowed}, {"type": "allowed_tools", "allowed_tools": allowed})
        ],
    ],
)  # fmt: skip
def test_a_chosen_tool_is_called(client: openai.OpenAI, choice: Any, shown: Any) -> None:
    raw = client.responses.with_raw_response.create(
        model="instruct", input="Hi", tools=[{**tool, "strict": True} for tool in FLAT], tool_choice=choice,
        extra_body={"temperature": 0},
    )  # fmt: skip
    response = Response.model_validate_json(raw.text, strict=True)
    assert response.to_dict()["tool_choice"] == shown
    assert [tool.strict for tool in response.tools] == [True, True]  # type: ignore[union-attr]
    assert {item.type for item in response.output} == {"function_call"}
    if choice != "required":
        assert {item.name for item in response.output} == {"read"}  # type: ignore[union-attr]


# stored conversations


def conversation(client: openai.OpenAI, stream: bool = False) -> list[Any]:
    """Three turns, of which the first has a picture; each continues the response before."""
    turns: list[Any] = []
    for items in (asked(), "Add 2 and 3.", "Add 2 and 4."):
        previous = {"previous_response_id": turns[-1].id} if turns else {}
        options: Any = {"model": "thinking", "input": items, **previous, **GREEDY}
        if stream:
            with client.responses.stream(**options) as events:
                turns.append(events.get_final_response())
        else:
            turns.append(client.responses.create(**options))
    return turns


@pytest.mark.parametrize("stream", [False, True])
def test_a_continued_conversation_is_that_of_chat_completions(client: openai.OpenAI, stream: bool) -> None:
    turns = conversation(client, stream)
    messages: list[Any] = [user(SOME)]
    for turn, question in zip(turns, ("Add 2 and 3.", "Add 2 and 4.", ""), strict=True):
        whole: Any = client.chat.completions.create(model="thinking", messages=messages, **GREEDY)
        assert (turn.output_text, thought(turn)) == (
            whole.choices[0].message.content, whole.choices[0].message.reasoning_content,
        )  # fmt: skip
        assert turn.usage.input_tokens == whole.usage.prompt_tokens
        messages += [whole.choices[0].message.model_dump(exclude_none=True), {"role": "user", "content": question}]
    for before, turn in itertools.pairwise(turns):
        assert turn.usage.input_tokens_details.cached_tokens >= before.usage.input_tokens // 16 * 16
        assert turn.vlroute["encoded"] == 0
        assert turn.previous_response_id == before.id


def test_instructions_are_not_carried_over(client: openai.OpenAI) -> None:
    first = client.responses.create(model="instruct", instructions="Speak " * 50, input="Add 2 and 3.")
    second: Any = client.responses.create(model="instruct", input="Add 2 and 4.", previous_response_id=first.id)
    assert second.usage.input_tokens < first.usage.input_tokens  # type: ignore[union-attr]
    assert second.instructions is None


def test_a_conversation_goes_on_after_a_restart_and_on_another_server(
    server: Served,
    where: str,  # noqa: F811
) -> None:
    """The other server asks the models of the first one, so that they are loaded once."""
    options: Any = {"model": "instruct", "input": SOME.prompt, **GREEDY}
    ends = [Endpoint(f"{server.url}/v1", mode, api_key=OTHER_KEY) for mode in MODES]
    with Router.from_endpoints(*ends, store=where) as far, served(KEYS, router=far) as one:
        first = one.openai().responses.create(model="instruct", input=asked(), **GREEDY)
    with (
        Router.from_endpoints(*ends, store=where) as far, served(KEYS, router=far) as one,
        served(KEYS, store=where) as other,
    ):  # fmt: skip
        second: Any = one.openai().responses.create(previous_response_id=first.id, **options)
        third: Any = other.openai().responses.create(previous_response_id=second.id, **options)
        assert one.openai().responses.retrieve(third.id).to_dict() == third.to_dict()
        messages: list[Any] = [user(SOME)]
        for turn in (first, second):
            messages += [{"role": "assistant", "content": turn.output_text}, {"role": "user", "content": SOME.prompt}]
        whole: Any = other.openai().chat.completions.create(model="instruct", messages=messages, **GREEDY)
        assert third.output_text == whole.choices[0].message.content
        assert third.usage.input_tokens == whole.usage.prompt_tokens > second.usage.input_tokens
        assert other.router.store is not None
        assert rows(other.router.store)["conversation_media"] == len(SOME.frames)


def test_another_key_sees_nothing(server: Served, client: openai.OpenAI) -> None:
    mine = client.responses.create(model="instruct", input="Add 2 and 3.")
    other, absent = server.openai(OTHER_KEY), "resp_" + "0" * 32
    said = {
        refused(call, 404, "response_not_found", None)
        for id in (mine.id, absent, "resp_x", "x" * 150)
        for call in (
            lambda id=id: other.responses.retrieve(id),
            lambda id=id: other.responses.delete(id),
            lambda id=id: other.responses.input_items.list(id),
        )
    }
    assert len(said) == 1
    for id in (mine.id, absent, "resp_\x00", "'"):
        refused(
            lambda id=id: other.responses.create(model="instruct", input="Hi", previous_response_id=id),
            404, "response_not_found", "previous_response_id",
        )  # fmt: skip
    assert client.responses.retrieve(mine.id).id == mine.id


def test_delete_in_the_middle(client: openai.OpenAI) -> None:
    turns = conversation(client)
    client.responses.delete(turns[1].id)
    refused(lambda: client.responses.retrieve(turns[1].id), 404, "response_not_found", None)
    refused(lambda: client.responses.delete(turns[1].id), 404, "response_not_found", None)
    for turn in (turns[0], turns[2]):
        more: Any = client.responses.create(
            model="instruct", input="Add 2 and 3.", previous_response_id=turn.id, **GREEDY
        )
        assert more.usage.input_tokens > turn.usage.input_tokens


def test_responses_that_are_not_stored(server: Served, client: openai.OpenAI) -> None:
    response: Any = client.responses.create(model="instruct", input="Add 2 and 3.", store=False)
    assert response.store is False
    refused(lambda: client.responses.retrieve(response.id), 404, "response_not_found", None)
    # it may still continue a stored one
    stored = client.responses.create(model="instruct", input="Add 2 and 3.")
    client.responses.create(model="instruct", input="Add 2 and 4.", store=False, previous_response_id=stored.id)


def test_expired_responses_are_removed(tmp_path: Path) -> None:
    with scripted(tmp_path / "answers.db") as (one, store):
        client = one.openai()
        response = client.responses.create(model="instruct", input=asked())
        assert client.responses.retrieve(response.id).id == response.id
        with store.transaction("written") as connection:
            connection.execute(sa.update(RESPONSES).values(created=time.time() - 31 * 86_400))
        store.add_tokens("ann", "2025-12-31", 5)
        refused(lambda: client.responses.retrieve(response.id), 404, "response_not_found", None)
        assert sum(rows(store).values()) > 0
    with scripted(tmp_path / "answers.db") as (_, store):
        until(lambda: sum(rows(store).values()) == 0)
        until(lambda: store.tokens_of("ann", "2025-12-31") == 0)


def test_many_continue_one_response(client: openai.OpenAI) -> None:
    first = client.responses.create(model="thinking", input=asked(), **GREEDY)

    def go_on(number: int) -> Any:
        return client.responses.create(
            model="thinking", input=f"Add 2 and {number % 4}.", previous_response_id=first.id, **GREEDY
        )

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(go_on, range(12)))
    assert len({answer.id for answer in answers}) == 12
    assert [outline(one) for one in answers[:4]] == [outline(one) for one in answers[4:8]]
    client.responses.delete(first.id)
    client.responses.create(model="instruct", input="Add 2 and 3.", previous_response_id=answers[-1].id)


def test_the_stored_responses_of_a_key_are_limited(tmp_path: Path) -> None:
    settings = ServerSettings(api_keys=(KEY, OTHER_KEY), max_stored=1000)
    question: Any = {"model": "instruct", "input": "Add 2 and 3.", **GREEDY}
    with served(settings, store=tmp_path / "answers.db") as server:
        client, other = server.openai().responses, server.openai(OTHER_KEY).responses
        first = client.create(**question)
        for stored in ({}, {"store": True}, {"stream": True}):
            call = partial(client.create, **question, **stored)
            assert "1000 are allowed" in refused(call, 429, "stored_bytes_exceeded", "store")
        assert client.create(**question, store=False).output_text == first.output_text
        assert other.create(**question).output_text == first.output_text
        client.delete(first.id)
        assert client.create(**question).output_text == first.output_text


@pytest.mark.parametrize("damaged", ["garbage", "{}", "[]", '{"id": "resp_ID", "output": 5}', '{"id": "resp_ID", }'])
def test_a_damaged_response_is_an_error_of_the_store(server: Served, damaged: str) -> None:
    store = server.router.store
    assert store is not None
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        id = http.post("/v1/responses", json={"model": "instruct", "input": "Add 2 and 3."}).json()["id"]
        with store.transaction("written") as connection:
            body = damaged.replace("resp_ID", id)
            connection.execute(
                sa.text("UPDATE responses SET body = :body WHERE id = :id"), {"body": body, "id": id[5:]}
            )
        reference = {"type": "item_reference", "id": f"msg_{id[5:]}"}
        items = [reference, {"role": "user", "content": "Again."}]
        found = [http.post("/v1/responses", json={"model": "instruct", "input": items})]
        if "output" not in damaged:
            found.append(http.get(f"/v1/responses/{id}"))
        assert [(one.status_code, one.json()["error"]["code"]) for one in found] == [(503, "store_failed")] * len(found)
        assert http.delete(f"/v1/responses/{id}").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_cannot_be_stored_is_an_error(tmp_path: Path, stream: bool) -> None:
    with scripted(tmp_path / "answers.db") as (one, store):
        with store.transaction("written") as connection:
            connection.execute(sa.text("DROP TABLE responses"))
        if not stream:
            create = one.openai().responses.create
            refused(lambda: create(model="instruct", input="Hi"), 503, "store_failed", None)
            return
        events, error = until_error(one.openai())
        assert "store" in error
        assert events[-1].type == "response.failed"


def test_without_a_store(bare: Served) -> None:
    client = bare.openai()
    response: Any = client.responses.create(model="instruct", input="Add 2 and 3.")
    assert response.store is False
    message = refused(
        lambda: client.responses.create(model="instruct", input="Hi", store=True), 400, "no_store", "store"
    )
    assert "--store" in message
    refused(
        lambda: client.responses.create(model="instruct", input="Hi", previous_response_id=response.id),
        400, "no_store", "previous_response_id",
    )  # fmt: skip
    for call in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        assert "--store" in refused(lambda call=call: call(response.id), 400, "no_store", None)


@pytest.mark.parametrize(("fields", "ignored"), [
    ({"stream_options": {"include_obfuscation": True}}, ["stream_options"]),
    ({"parallel_tool_calls": True, "tool_choice": "auto"}, ["parallel_tool_calls", "tool_choice"]),
    ({"reasoning": {"summary": "auto"}, "max_tool_calls": 3}, ["max_tool_calls", "reasoning.summary"]),
    ({"include": ["reasoning.encrypted_content"]}, ["include"]),
    ({"include": ["message.output_text.logprobs"]}, []),
])  # fmt: skip
def test_fields_without_effect_are_listed(client: openai.OpenAI, fields: dict[str, Any], ignored: list[str]) -> None:
    said: Any = client.responses.create(model="instruct", input="Add 2 and 3.", max_output_tokens=5, **fields)
    assert said.vlroute["ignored"] == ignored


# what is refused


def test_query_parameters_are_obeyed_or_refused(server: Served, client: openai.OpenAI) -> None:
    id = client.responses.create(model="instruct", input="Add 2 and 3.", max_output_tokens=5).id
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for query in (
            "", "?include[]=reasoning.encrypted_content", "?include_obfuscation=true", "?stream=false",
            "/input_items?include[]=message.input_image.image_url&order=asc&limit=5",
            "/input_items?api-version=preview",
        ):  # fmt: skip
            assert http.get(f"/v1/responses/{id}{query}").status_code == 200, query
        for query, param in (
            ("?include[]=message.output_text.logprobs", "include[]"), ("?include=x", "include"), ("?foo=1", "foo"),
            ("/input_items?before=abc", "before"), ("/input_items?foo=1", "foo"),
            ("/input_items?limit=1&limit=2", "limit"), ("/input_items?include=message.output_text.logprobs", "include"),
        ):  # fmt: skip
            refusal = http.get(f"/v1/responses/{id}{query}")
            assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, param), refusal.text
        assert http.delete(f"/v1/responses/{id}?force=1").json()["error"]["param"] == "force"
        assert http.delete(f"/v1/responses/{id}").status_code == 200


def test_items_of_stored_answers_can_be_referred_to(client: openai.OpenAI) -> None:
    """As the AI SDK does for answers that are stored."""
    question = {"role": "user", "content": "Add 2 and 3."}
    first: Any = client.responses.create(model="thinking", input=[question], temperature=0)
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    later = {"role": "user", "content": "Add 2 and 4."}
    by_reference: Any = client.responses.create(model="instruct", input=[question, *references, later], temperature=0)
    in_full: Any = client.responses.create(
        model="instruct", input=[question, *[item.model_dump() for item in first.output], later], temperature=0
    )
    assert len(references) == 2
    assert by_reference.output_text == in_full.output_text
    assert by_reference.usage.input_tokens == in_full.usage.input_tokens
    with pytest.raises(openai.BadRequestError, match=r"input\.3 refers to an item that input contains already"):
        client.responses.create(model="instruct", input=[question, *references, references[0], later])
    client.responses.delete(first.id)
    for id in (first.output[0].id, "msg_" + "0" * 32, "1"):
        with pytest.raises(openai.NotFoundError, match="no item of an answer with this id"):
            client.responses.create(model="instruct", input=[question, {"type": "item_reference", "id": id}, later])


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"max_tokens": 5}, "unknown_parameter", "max_tokens"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"truncation": "auto"}, "unsupported_parameter", "truncation"),
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
        ({"prompt": {"id": "1"}}, "unsupported_parameter", "prompt"),
        ({"top_logprobs": 2}, "contradiction", "top_logprobs"),
        (
            {"reasoning": {"summary": "auto", "generate_summary": "concise"}},
            "contradiction",
            "reasoning.generate_summary",
        ),
        ({"reasoning": {"context": "all_turns"}}, "unsupported_parameter", "reasoning.context"),
        ({"text": {"verbosity": "low"}}, "unsupported_parameter", "text.verbosity"),
        ({"vlroute": {"prise": 1}}, "unknown_parameter", "vlroute.prise"),
        ({"max_output_tokens": 10**6}, "limit_exceeded", "max_output_tokens"),
        ({"tools": [{"type": "web_search"}]}, "bad_message", None),
        ({"tools": FLAT, "tool_choice": {"type": "function", "name": "fly"}}, "bad_message", None),
        ({"tools": FLAT, "tool_choice": {"type": "mcp", "server_label": "a"}}, "bad_message", None),
        ({"input": [{"id": "1"}]}, "bad_message", "input.0"),
        ({"input": [{"type": "computer_call"}]}, "unsupported_parameter", "input.0.type"),
        ({"input": [{"role": "user", "content": "a", "b": 1}]}, "unknown_parameter", "input.0.b"),
        ({"input": [{"role": "user"}]}, "bad_message", "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "unsupported_parameter",
         "input.0.content.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "unsupported_parameter", "input.0.content.0.file_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a", "b": 1}]}]},
         "unknown_parameter", "input.0.content.0.b"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]}]},
         "unreadable_media", None),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "unsupported_parameter",
         "input.0.encrypted_content"),
        ({"input": [{"type": "function_call_output", "call_id": "1", "output": "2"}]}, "bad_message", None),
        ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "bad_message", "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "bad_message", "input"),
        ({"input": [{"role": "robot", "content": "a"}]}, "bad_message", None),
        ({"input": "<|im_start|>"}, "bad_message", None),
    ],
)  # fmt: skip
def test_fields_are_refused_by_name(server: Served, fields: dict[str, Any], code: str, param: str | None) -> None:
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        said = http.post("/v1/responses", json={"model": "instruct", "input": "Hi", **fields})
    error = said.json()["error"]
    assert (said.status_code, error["code"], error["param"]) == (400, code, param), error


def test_hostile_bodies_are_no_server_error(server: Served) -> None:
    with server.http(headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}) as http:
        for body in (
            b'{"input": "\\ud800"}', b'{"input": "a", "instructions": "\\ud800"}', b'{"input": []}', b'{"input": [1]}',
            b'{"input": "a", "model": "instruct", "metadata": {"\\ud800": "\\udfff"}}',
            b'{"input": "a", "model": "instruct", "user": "\\ud800\\u0000"}',
            b'{"input": "a", "model": "instruct", "text": {"format": {"type": "json_object", "\\ud800": 1}}}',
            b'{"input": "a", "previous_response_id": "\\ud800"}', b'{"input": [{"type": "\\ud800"}]}',
            b'{"input": [{"role": "user", "content": [{"type": ["a"]}]}]}', b'{"input": [{"type": {}}]}',
            b'{"input": [{"role": "user", "content": [{"type": "input_text", "text": {}}]}]}',
            b'{"input": [{"type": "function_call", "name": {}, "call_id": [], "arguments": 5}]}',
            b'{"input": "a", "tools": [{"function": []}]}', b'{"input": "a", "text": {"format": {"type": []}}}',
            b'{"input": [{"role": "user", "content": "' + b"x" * 300_000 + b'"}]}',
            b'{"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:x"}]}]}',
        ):  # fmt: skip
            said = http.post("/v1/responses", content=body)
            assert said.status_code < 500, (body[:100], said.text)
            if said.status_code == 200:
                assert http.get(f"/v1/responses/{said.json()['id']}").status_code == 200
        for path in ("/v1/responses/%00", "/v1/responses/..", "/v1/responses/x?stream=true", "/v1/responses/x?limit=a"):
            assert http.get(path).status_code in (400, 404)
        said = http.get("/v1/responses/x/input_items?limit=0")
        assert (said.status_code, said.json()["error"]["param"]) == (422, "limit")


def test_a_client_that_leaves_cancels_the_answer(bare: Served) -> None:
    body = {"input": "Add 2 and 3.", "model": "thinking", "vlroute": {"close_loops": False}}
    with bare.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/responses", json=body, timeout=0.5)
    until(lambda: running(bare) == 0, 5)
    with bare.http() as http, http.stream("POST", "/v1/responses", json={**body, "stream": True}) as stream:
        lines = stream.iter_lines()
        while "reasoning_text.delta" not in next(lines):
            pass
        assert running(bare) == 1
    until(lambda: running(bare) == 0, 5)


def test_completions_are_refused(bare: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions") as caught:
        bare.openai().completions.create(model="auto", prompt="Hi")
    assert caught.value.code == "unsupported_endpoint"


# names of models


def test_models_are_listed_and_accepted(server: Served, client: openai.OpenAI) -> None:
    names = [one.id for one in client.models.list()]
    assert names == ["auto", "instruct", "thinking", "pocket-instruct", "pocket-thinking"]
    for name in names:
        assert client.models.retrieve(name).id == name
        client.responses.create(model=name, input="Add 2 and 3.")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError, match="pocket-thinking"):
        client.responses.create(model="gpt-4o", input="Hi")
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        said = http.post("/api/predict", json={"data": [None, "Add 2 and 3.", "pocket-Thinking"]}).json()
        assert said["vlroute"]["decision"]["mode"] == "thinking"


def test_names_of_a_hybrid_and_of_endpoints() -> None:
    with Router.from_pretrained(shipped("pocket-hybrid")) as hybrid, served(router=hybrid) as one:
        client = one.openai()
        assert [model.id for model in client.models.list()][3:] == ["pocket-hybrid"]
        response: Any = client.responses.create(model="Pocket-Hybrid", input="Add 2 and 3.")
        assert not response.vlroute["decision"]["forced"]
        with (
            Router.from_endpoints((f"{one.url}/v1", "thinking"), (f"{one.url}/v1", "x/Y-Thinking")) as far,
            served(router=far) as outer,
        ):
            assert [model.id for model in outer.openai().models.list()][3:] == ["x/Y-Thinking"]
            assert outer.openai().models.retrieve("x/Y-Thinking").id == "x/Y-Thinking"
