"""Anthropic's Messages API with its own client: answers, streams, tools, token counts and errors."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal

import anthropic
import pytest
from pydantic import BaseModel

from tests.conftest import task
from tests.integration.test_server_load import LONG, running
from tests.integration.test_tools import steps_of, tasks
from tests.scripted_endpoint import DONE, USAGE, chunk, scripted_endpoint
from tests.serving import KEY, Served, data_uri, png, served, until, user
from vlroute import Router, ToolCall
from vlroute.inputs.media import Limits
from vlroute.pocket import Task, draw_task
from vlroute.pocket.screens import TOOLS, App
from vlroute.serving.settings import ServerSettings
from vlroute.types import MODES, Mode

pytestmark = pytest.mark.float32
SOME = task("math")
TASKS = [draw_task(random.Random(seed), kind, "hard", "zh") for seed, kind in enumerate(("ocr", "count", "gui", "hop"))]
GREEDY = {"temperature": 0}
CUSTOM = [
    {
        "name": tool["function"]["name"],
        "description": tool["function"]["description"],
        "input_schema": tool["function"]["parameters"],
    }
    for tool in TOOLS
]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    limits = Limits(local_files=False, max_images=4, max_bytes=200_000)
    with served(ServerSettings(api_keys=(KEY,), max_tokens=400, max_body=500_000, limits=limits)) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> anthropic.Anthropic:
    return server.anthropic()


def picture(image: Any) -> dict[str, Any]:
    data = base64.b64encode(png(image)).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def asked(one: Task) -> dict[str, Any]:
    """The question of a task as a message."""
    return {"role": "user", "content": [*map(picture, one.frames), {"type": "text", "text": one.prompt}]}


def fields_of(messages: Any = None, model: str = "auto", **fields: Any) -> dict[str, Any]:
    """Arguments of `messages.create`; fields that its signature lacks go into `extra_body`."""
    extra = {name: fields.pop(name) for name in ("temperature", "top_p", "top_k", "vlroute") if name in fields}
    extra |= fields.pop("extra_body", {})
    return {"model": model, "max_tokens": 400, "messages": messages or [asked(SOME)], "extra_body": extra, **fields}


def ask(client: anthropic.Anthropic, messages: Any = None, model: str = "auto", **fields: Any) -> Any:
    return client.messages.create(**fields_of(messages, model, **fields))


def streamed(client: anthropic.Anthropic, messages: Any = None, model: str = "auto", **fields: Any) -> Any:
    """The final message of the client's helper; all text events joined are its text."""
    with client.messages.stream(**fields_of(messages, model, **fields)) as stream:
        events = list(stream)
        final = stream.get_final_message()
    for kind, name in (("text", "text"), ("thinking", "thinking")):
        joined = "".join(getattr(event, name) for event in events if event.type == kind)
        assert joined == said(final, kind)
    return final


def said(message: Any, kind: str = "text") -> str:
    return "".join(getattr(block, kind) for block in message.content if block.type == kind)


def prompt_tokens(message: Any) -> int:
    return int(message.usage.input_tokens + message.usage.cache_read_input_tokens)


def count(client: anthropic.Anthropic, messages: Any, model: str = "auto", **fields: Any) -> Any:
    return client.messages.count_tokens(model=model, messages=messages, **fields)


def refused(kind: type[anthropic.APIStatusError], call: Any) -> Any:
    """The error, whose body must be in Anthropic's shape."""
    with pytest.raises(kind) as caught:
        call()
    body: Any = caught.value.body
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message", "details"}
    assert body["request_id"] == caught.value.request_id
    return caught.value


# answers


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_those_of_chat_completions(server: Served, client: anthropic.Anthropic, mode: Mode) -> None:
    for one in TASKS:
        chat = server.openai().chat.completions.create(
            model=mode, messages=[user(one)], max_tokens=400, extra_body=GREEDY
        )
        answer = ask(client, [asked(one)], mode, **GREEDY)
        assert said(answer) == chat.choices[0].message.content
        assert said(answer, "thinking") == (getattr(chat.choices[0].message, "reasoning", "") or "")
        assert [block.type for block in answer.content] == (["text"] if mode == "instruct" else ["thinking", "text"])
        assert prompt_tokens(answer) == chat.usage.prompt_tokens  # type: ignore[union-attr]
        assert answer.usage.output_tokens == chat.usage.completion_tokens  # type: ignore[union-attr]
        assert (answer.role, answer.type, answer.model, answer.stop_reason) == (
            "assistant",
            "message",
            mode,
            "end_turn",
        )
        assert answer.vlroute["decision"]["forced"] is True
        again = streamed(client, [asked(one)], mode, **GREEDY)
        assert (said(again), said(again, "thinking")) == (said(answer), said(answer, "thinking"))
        assert (again.stop_reason, again.usage.output_tokens) == ("end_turn", answer.usage.output_tokens)
        assert prompt_tokens(again) == prompt_tokens(answer)


def test_auto_decides_as_the_router_does(server: Served, client: anthropic.Anthropic) -> None:
    modes = set()
    for one in (*TASKS, SOME):
        raw = client.messages.with_raw_response.create(**fields_of([asked(one)]))
        answer: Any = raw.parse()
        assert answer.model == server.router.decide(one.prompt, one.frames).mode
        assert raw.headers["x-vlroute-mode"] == answer.model
        assert answer.id == f"msg_{raw.headers['x-vlroute-id']}"
        assert raw.headers["request-id"] == f"req_{raw.headers['x-vlroute-id']}"
        assert answer.vlroute["timing"]["total"] > 0
        modes.add(answer.model)
    assert modes == {"instruct", "thinking"}


def test_events_of_a_stream(server: Served) -> None:
    """Blocks begin and end in order; each event has its name and its type."""
    with server.http(headers={"x-api-key": KEY, "anthropic-version": "2023-06-01", "anthropic-beta": "any"}) as http:
        body = {"model": "thinking", "max_tokens": 400, "messages": [asked(SOME)], "stream": True}
        text = http.post("/v1/messages", json=body).text
    kinds = [block.splitlines()[0].removeprefix("event: ") for block in text.strip().split("\n\n")]
    assert [kind for kind in kinds if kind != "content_block_delta"] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "content_block_start",
        "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert all(f'data: {{"type":"{kind}"' in text for kind in kinds)
    events = list(server.anthropic().messages.create(**fields_of(model="thinking"), stream=True))
    assert events[0].message.vlroute["decision"]["mode"] == "thinking"  # before the first token
    assert events[-2].vlroute["timing"]["total"] > 0


def test_pictures_in_each_form(server: Served, client: anthropic.Anthropic) -> None:
    whole = said(ask(client, [asked(SOME)], "instruct"))
    assert whole == server.router.ask(SOME.prompt, SOME.frames, mode="instruct").text
    uri = {"type": "image", "source": {"type": "url", "url": data_uri(SOME.frames[0])}, "cache_control": None}
    text = {"type": "text", "text": SOME.prompt, "cache_control": {"type": "ephemeral"}}
    assert said(ask(client, [{"role": "user", "content": [uri, text]}], "instruct")) == whole
    only = ask(client, [{"role": "user", "content": [picture(SOME.frames[0])]}], "instruct")
    assert said(only) == server.router.ask("", SOME.frames, mode="instruct").text


def test_system_prompts(server: Served, client: anthropic.Anthropic) -> None:
    text = "Answer with a digit."
    plain = [{"role": "system", "content": text}, {"role": "user", "content": "Add 2 and 3."}]
    alone = server.router.ask(plain, mode="instruct", do_sample=False)
    for system in (text, [{"type": "text", "text": "Answer with "}, {"type": "text", "text": "a digit."}]):
        answer = ask(client, [plain[1]], "instruct", system=system, **GREEDY)
        assert (said(answer), prompt_tokens(answer)) == (alone.text, alone.usage.prompt_tokens)
    assert prompt_tokens(ask(client, plain, "instruct")) == alone.usage.prompt_tokens


@pytest.mark.parametrize(("fields", "mode"), [
    ({"thinking": {"type": "enabled", "budget_tokens": 4}}, "thinking"),
    ({"thinking": {"type": "disabled"}}, "instruct"), ({"model": "Qwen/Qwen3-VL-2B-Thinking"}, "thinking"),
    ({"model": "instruct"}, "instruct"), ({"vlroute": {"price": 0}}, "thinking"),
    ({"vlroute": {"price": 0}, "thinking": {"type": "adaptive"}}, "thinking"),
    ({"vlroute": {"price": 1000}}, "instruct"),
    ({"output_config": {"effort": "low"}, "vlroute": {"price": 1000}}, "instruct"),
])  # fmt: skip
def test_the_mode_is_chosen(client: anthropic.Anthropic, fields: dict[str, Any], mode: str) -> None:
    assert ask(client, **fields).model == mode


def test_budgets(client: anthropic.Anthropic) -> None:
    whole = ask(client, model="thinking").usage.output_tokens_details.thinking_tokens
    cut = ask(client, thinking={"type": "enabled", "budget_tokens": 4}, output_config={"effort": "low"})
    assert cut.usage.output_tokens_details.thinking_tokens < whole
    assert (cut.vlroute["closed"], cut.stop_reason) == ("budget", "end_turn")
    body = refused(
        anthropic.BadRequestError,
        lambda: ask(client, model="instruct", thinking={"type": "enabled", "budget_tokens": 4}),
    )
    assert "model and thinking.type contradict each other" in body.api_message


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_can_be_left_out(client: anthropic.Anthropic, stream: bool) -> None:
    read = streamed if stream else ask
    answer = read(client, thinking={"type": "enabled", "budget_tokens": 400, "display": "omitted"})
    thought, text = answer.content
    assert (thought.type, thought.thinking) == ("thinking", "")
    assert thought.signature
    assert text.text == said(ask(client, model="thinking"))


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    whole = said(ask(client, [asked(TASKS[0])], "instruct", **GREEDY))
    last = next(char for char in whole if char != whole[0])
    for read in (ask, streamed):
        answer = read(client, [asked(TASKS[0])], "instruct", stop_sequences=["never", last], **GREEDY)
        assert said(answer) == whole.partition(last)[0]
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", last)
        answer = read(client, [asked(TASKS[0])], "instruct", stop_sequences=["never"], **GREEDY)
        assert (said(answer), answer.stop_reason, answer.stop_sequence) == (whole, "end_turn", None)


def test_the_limit_of_tokens(client: anthropic.Anthropic) -> None:
    for read in (ask, streamed):
        answer = read(client, [asked(TASKS[0])], "instruct", max_tokens=1)
        assert (answer.usage.output_tokens, answer.stop_reason) == (1, "max_tokens")
        cut = read(client, model="thinking", max_tokens=3, vlroute={"answer_reserve": 0})
        assert ([block.type for block in cut.content], cut.stop_reason) == (["thinking"], "max_tokens")


def test_an_answer_of_the_other_mode() -> None:
    """Thinking gives no answer, so that Instruct answers; a stream has begun with the decision for Thinking."""
    with scripted_endpoint() as script, served(router=script.router()) as server:
        scripts = (
            [chunk(reasoning="so"), chunk(end="length"), USAGE, DONE],
            [chunk("5"), chunk(end="stop"), USAGE, DONE],
        )
        body = {
            "model": "thinking",
            "max_tokens": 40,
            "messages": [{"role": "user", "content": "Add."}],
            "stream": True,
        }
        client = server.anthropic()
        for read in (ask, streamed):
            script.play(*scripts)
            answer = read(client, body["messages"], "thinking", max_tokens=40)
            assert [block.type for block in answer.content] == ["thinking", "text"]
            assert (said(answer), said(answer, "thinking"), answer.usage.output_tokens) == ("5", "so", 18)
            assert answer.model == ("instruct" if read is ask else "thinking")
        script.play(*scripts)
        with server.http() as http:
            events = [json.loads(line[6:]) for line in http.post("/v1/messages", json=body).text.splitlines()[1::3]]
        assert events[0]["message"]["vlroute"]["decision"]["mode"] == "thinking"
        (changed,) = [event["vlroute"] for event in events if event["type"] == "ping" and "vlroute" in event]
        assert (changed["decision"]["mode"], changed["decision"]["rescued"]) == ("instruct", True)
        assert events[-2]["vlroute"]["decision"] == changed["decision"]


def test_structured_output(client: anthropic.Anthropic) -> None:
    class Sum(BaseModel):
        sum: Literal["4", "5", "6"]

    messages: Any = [{"role": "user", "content": "Add 2 and 3."}]
    answer = client.messages.parse(model="thinking", max_tokens=400, messages=messages, output_format=Sum)
    assert answer.parsed_output == Sum(sum="5")
    schema = {"type": "json_schema", "schema": Sum.model_json_schema()}
    older = ask(client, messages, "thinking", extra_body={"output_format": schema})
    assert Sum.model_validate_json(said(older)).sum == "5"
    wrong = {"type": "json_schema", "schema": {"type": "objekt"}}
    for fields in ({"output_config": {"format": wrong}}, {"extra_body": {"output_format": wrong}}):
        name = "output_config.format.schema" if "output_config" in fields else "output_format.schema"
        assert name in refused(anthropic.BadRequestError, lambda: ask(client, messages, **fields)).api_message  # noqa: B023
    both = {"output_config": {"format": schema}, "extra_body": {"output_format": {**schema, "schema": {}}}}
    assert "contradict" in refused(anthropic.BadRequestError, lambda: ask(client, messages, **both)).api_message


def test_feedback_takes_the_id_of_a_message(tmp_path: Any) -> None:
    with served(store=tmp_path / "answers.db") as server:
        answer = ask(server.anthropic(), [{"role": "user", "content": "Add 2 and 3."}])
        with server.http() as http:
            assert http.post("/v1/feedback", json={"id": answer.id, "correct": True}).json()["stored"] is True


# conversations


def test_earlier_turns_are_those_of_chat_completions(server: Served, client: anthropic.Anthropic) -> None:
    first = ask(client, model="thinking")
    question = {"role": "user", "content": "Read the text."}
    turn = {"role": "assistant", "content": first.content}  # with its reasoning and signature
    redacted = {"type": "redacted_thinking", "data": "encrypted"}
    chat = server.openai().chat.completions.create(
        model="thinking", temperature=0,
        messages=[user(SOME), {"role": "assistant", "content": said(first), "reasoning": said(first, "thinking")},
                  question],  # type: ignore[list-item, misc]
    )  # fmt: skip
    for content in (turn["content"], [redacted, *first.content], said(first)):
        answer = ask(client, [asked(SOME), {"role": "assistant", "content": content}, question], "thinking", **GREEDY)
        assert (said(answer), prompt_tokens(answer)) == (
            chat.choices[0].message.content, chat.usage.prompt_tokens,  # type: ignore[union-attr]
        )  # fmt: skip
    assert answer.usage.cache_read_input_tokens > 0


def test_an_answer_is_continued(client: anthropic.Anthropic) -> None:
    whole = said(ask(client, [asked(TASKS[0])], "instruct", **GREEDY))
    for content in (whole[:2], [{"type": "text", "text": whole[:2]}]):
        messages = [asked(TASKS[0]), {"role": "assistant", "content": content}]
        for read in (ask, streamed):
            answer = read(client, messages, **GREEDY)
            assert (answer.model, said(answer)) == ("instruct", whole[2:])
        counted = count(client, messages)
        assert counted.vlroute["input_tokens"] == {"instruct": prompt_tokens(answer)}
    refused(anthropic.BadRequestError, lambda: ask(client, messages, "thinking"))
    refused(anthropic.BadRequestError, lambda: count(client, messages, "thinking"))


def test_tags_in_an_earlier_answer_are_text(server: Served, client: anthropic.Anthropic) -> None:
    messages = [
        {"role": "user", "content": "Add 2 and 3."}, {"role": "assistant", "content": "<think>x</think>5"},
        {"role": "user", "content": "Add 1."},
    ]  # fmt: skip
    plain = [messages[0], {**messages[1], "reasoning_content": ""}, messages[2]]
    alone = server.router.ask(plain, mode="instruct")
    assert count(client, messages, "instruct").input_tokens == alone.usage.prompt_tokens


# tools


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["thinking", "auto"])
def test_tools_give_the_steps_of_the_router(
    server: Served, client: anthropic.Anthropic, model: str, stream: bool
) -> None:
    read = streamed if stream else ask

    def through_client(messages: list[dict[str, Any]]) -> Any:
        """The answer as an object with the attributes that `steps_of` uses."""
        answer = read(client, list(map(converted, messages)), model, tools=CUSTOM, **GREEDY)
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert answer.stop_reason == ("tool_use" if calls else "end_turn")

        return SimpleNamespace(
            text=said(answer),
            thinking=said(answer, "thinking"),
            tool_calls=[ToolCall(call.id, call.name, call.input, "") for call in calls],
            message={"role": "assistant", "content": answer.content},
        )

    for one in tasks(2, seed=1):
        alone = steps_of(one, lambda messages: server.router.ask(messages, tools=TOOLS, mode=model, **GREEDY))  # type: ignore[arg-type]
        assert steps_of(one, through_client) == alone
        assert any(calls for *_, calls in alone)


def converted(message: dict[str, Any]) -> dict[str, Any]:
    """A message of `steps_of` in Anthropic's form."""
    if message["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}
        return {"role": "user", "content": [result]}
    if message["role"] == "user":
        parts = [picture(part["image"]) if part["type"] == "image" else part for part in message["content"]]
        return {"role": "user", "content": parts}
    return message


def looped(**result: Any) -> list[dict[str, Any]]:
    """A question, a call and its result."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "tap", "input": {"button": "B"}}
    return [
        {"role": "user", "content": "Open B and read it."},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "tap B", "signature": "x"}, call]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", **result}]},
    ]


def test_results_of_tools(server: Served, client: anthropic.Anthropic) -> None:
    call = {"id": "toolu_1", "type": "function", "function": {"name": "tap", "arguments": '{"button": "B"}'}}

    def alone(content: Any) -> Any:
        messages = [
            {"role": "user", "content": "Open B and read it."},
            {"role": "assistant", "content": "", "reasoning_content": "tap B", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "toolu_1", "content": content},
        ]
        return server.router.ask(messages, tools=TOOLS, mode="thinking", **GREEDY).usage.prompt_tokens

    for result, same in (
        ({"content": "B"}, "B"), ({}, ""), ({"content": "no B", "is_error": True}, "Error: no B"),
        ({"content": [{"type": "text", "text": "B"}, picture(SOME.frames[0])]},
         [{"type": "text", "text": "B"}, {"type": "image", "image": SOME.frames[0]}]),
    ):  # fmt: skip
        answer = ask(client, looped(**result), "thinking", tools=CUSTOM, **GREEDY)
        assert prompt_tokens(answer) == alone(same)
    followed = looped(content="B")
    followed[2]["content"].append({"type": "text", "text": "Now read A."})
    assert ask(client, followed, tools=CUSTOM).stop_reason in ("end_turn", "tool_use")
    assert ask(client, looped(content="B"), tools=CUSTOM, tool_choice={"type": "none"}).stop_reason == "end_turn"


def test_a_call_ends_an_answer_without_parallel_calls(client: anthropic.Anthropic) -> None:
    one = tasks(1, seed=1)[0]
    content = [picture(one.picture), {"type": "text", "text": one.prompt}]
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    answer = ask(client, [{"role": "user", "content": content}], "thinking", tools=CUSTOM, tool_choice=choice, **GREEDY)
    assert [block.type for block in answer.content].count("tool_use") == 1


def test_a_call_can_be_required(client: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "Hello!"}]
    strict = [{**tool, "strict": True} for tool in CUSTOM]
    assert ask(client, messages, "instruct", tools=strict).stop_reason == "end_turn"
    for choice, names in (({"type": "any"}, {"tap", "read"}), ({"type": "tool", "name": "tap"}, {"tap"})):
        for read in (ask, streamed):
            answer = read(client, messages, "instruct", tools=strict, tool_choice=choice, **GREEDY)
            assert answer.stop_reason == "tool_use"
            (call,) = [block for block in answer.content if block.type != "thinking"]
            assert call.name in names
            assert call.name == "read" or isinstance(call.input["button"], str)


@pytest.mark.parametrize("stream", [False, True])
def test_the_loop_of_the_client(client: anthropic.Anthropic, stream: bool) -> None:
    """It asks for a conversation that the server keeps, and goes on without it."""
    one = tasks(2)[1]
    app = App(one)

    def runs(name: str, **arguments: Any) -> str:
        return app.call(name, arguments)

    runnable = [anthropic.beta_tool(partial(runs, tool["name"]), **tool) for tool in CUSTOM]
    content: Any = [picture(one.picture), {"type": "text", "text": one.prompt}]
    runner: Any = client.beta.messages.tool_runner(
        model="thinking", max_tokens=400, tools=runnable, messages=[{"role": "user", "content": content}],
        stream=stream, extra_body=GREEDY,
    )  # fmt: skip
    assert said(runner.until_done()) == one.answer
    assert app.screen != one.start


# counting


@pytest.mark.parametrize("model", [*MODES, "auto"])
def test_counts_are_those_of_answers(server: Served, client: anthropic.Anthropic, model: str) -> None:
    chance = random.Random(MODES.index(model) if model in MODES else 7)  # type: ignore[arg-type]
    fresh = [draw_task(chance, kind, "hard", "en") for kind in ("gui", "hop")]
    encoded = server.router.cache.stats().encodes
    cases: list[dict[str, Any]] = [
        {"messages": [asked(one)]} for one in fresh
    ] + [
        {"messages": looped(content=[picture(fresh[0].frames[0])]), "tools": CUSTOM, "system": "You operate an app."},
        {"messages": looped(content="B"), "tools": CUSTOM, "tool_choice": {"type": "none"}},
        {"messages": [{"role": "user", "content": "加一"}]},
    ]  # fmt: skip
    counts = [count(client, model=model, **case) for case in cases]
    assert server.router.cache.stats().encodes == encoded  # without the tower
    for case, counted in zip(cases, counts, strict=True):
        answer = ask(client, model=model, **case, max_tokens=60)
        if not answer.vlroute["decision"]["rescued"]:
            assert counted.vlroute["input_tokens"][answer.model] == prompt_tokens(answer)
        expected = counted.vlroute["input_tokens"]
        assert counted.input_tokens == (expected[model] if model in MODES else max(expected.values()))
        assert count(client, model=model, **case) == counted  # with what is cached now


def test_counts_of_a_hybrid(server: Served) -> None:
    with served(router=Router.from_pretrained("pocket-hybrid")) as hybrid:
        client = hybrid.anthropic()
        for messages in ([asked(SOME)], looped(content=[picture(SOME.frames[0])])):
            counted = count(client, messages, tools=CUSTOM)
            for mode in MODES:
                answer = ask(client, messages, mode, tools=CUSTOM, max_tokens=60)
                if not answer.vlroute["decision"]["rescued"]:
                    assert counted.vlroute["input_tokens"][mode] == prompt_tokens(answer)


def test_thinking_chooses_what_is_counted(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "Add 2 and 3."}]
    forced = count(client, messages, thinking={"type": "disabled"})
    assert forced.input_tokens == forced.vlroute["input_tokens"]["instruct"]
    raw = client.messages.with_raw_response.count_tokens(model="auto", messages=messages)  # type: ignore[arg-type]
    assert raw.headers["request-id"].startswith("req_")
    assert refused(anthropic.NotFoundError, lambda: count(client, messages, "claude")).type == "not_found_error"
    body = refused(anthropic.BadRequestError, lambda: count(client, messages, extra_body={"max_tokens": 5}))
    assert "'max_tokens'" in body.api_message


def test_endpoints(server: Served) -> None:
    """Answers of endpoints are complete; their tokens cannot be counted in advance, and counts may be missing."""
    with scripted_endpoint() as script, served(router=script.router()) as far:
        client = far.anthropic()
        for whole in (True, False):
            script.play([chunk(reasoning="so"), chunk("5 apples"), chunk(end="stop"), *[USAGE] * whole, DONE])
            answer = ask(client, [{"role": "user", "content": "Add."}], "thinking", stop_sequences=["apples"])
            assert (said(answer), said(answer, "thinking")) == ("5 ", "so")
            assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "apples")
            assert answer.usage.input_tokens == 0  # the stream was ended before its counts
            script.play([chunk("5"), chunk(end="stop"), *[USAGE] * whole, DONE])
            assert prompt_tokens(ask(client, [{"role": "user", "content": "Add."}], "instruct")) == 20 * whole
        error = refused(anthropic.BadRequestError, lambda: count(client, [{"role": "user", "content": "Add."}]))
        assert error.error_code == "not_available"
        script.play([], status=503)
        error = refused(anthropic.InternalServerError, lambda: ask(client, [{"role": "user", "content": "Add."}]))
        assert (error.status_code, error.type) == (503, "overloaded_error")


# errors


BAD: list[tuple[dict[str, Any], str]] = [
    ({"extra_body": {"n": 2}}, "'n'"), ({"extra_body": {"stop_sequence": ["x"]}}, "did you mean 'stop_sequences'"),
    ({"max_tokens": 401}, "at most 400 tokens"), ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "1"}, "temperature"), ({"top_p": 0}, "top_p"), ({"stop_sequences": [""]}, "stop_sequences.0"),
    ({"stop_sequences": ["x"] * 17}, "stop_sequences"), ({"stop_sequences": "x"}, "stop_sequences"),
    ({"tool_choice": {"type": "any"}}, "needs tools"), ({"tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "tool", "name": "type"}, "tools": CUSTOM}, "'type', which is not offered"),
    ({"tool_choice": {"type": "auto", "name": "tap"}}, "tool_choice.name"),
    ({"tool_choice": {"type": "x"}}, "tool_choice"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "'web_search_20250305'"),
    ({"tools": [{"name": "tap"}]}, "input_schema"), ({"tools": [{"name": "a b", "input_schema": {}}]}, "'a b'"),
    ({"tools": [{"name": "tap", "input_schema": {}, "strict": 1}]}, "strict"),
    ({"extra_body": {"thread": {"type": "create"}}}, "send all messages"),
    ({"tools": [{"name": "tap", "input_schema": {}, "input_examples": [{}]}]}, "input_examples"),
    ({"tools": [{"name": "tap", "input_schema": {}, "defer_loading": True}]}, "defer_loading"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"), ({"thinking": {"type": "enabled", "x": 1}}, "'x'"),
    ({"speed": "fast"}, "speed"), ({"container": "c"}, "container"), ({"inference_geo": "eu"}, "inference_geo"),
    ({"extra_body": {"mcp_servers": [{}]}}, "mcp_servers"), ({"vlroute": {"prise": 1}}, "did you mean 'price'"),
    ({"output_config": {"effort": "huge"}}, "output_config.effort"), ({"system": 5}, "system"),
    ({"system": [{"type": "image"}]}, "system"), ({"extra_body": {"stream": "yes"}}, "stream"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_fields_are_refused_by_name(client: anthropic.Anthropic, fields: dict[str, Any], message: str) -> None:
    error = refused(anthropic.BadRequestError, lambda: ask(client, **fields))
    assert message in error.api_message
    assert (error.status_code, error.type) == (400, "invalid_request_error")


def content(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


def picture_of(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", **source}}


TEXT = {"type": "text", "text": "What?"}


def answered(block: Any) -> list[dict[str, Any]]:
    return [*content(TEXT), {"role": "assistant", "content": [block]}, *content(TEXT)]


@pytest.mark.parametrize(("messages", "message"), [
    ([{"role": "assistant", "content": "x"}], "nothing to answer"),
    ([{"role": "tool", "content": "x"}], "role must be user"), ([{"role": "user", "content": 7}], "content must be"),
    ([{"role": "user", "content": "x <|im_end|> y"}], "control token"), ([{"role": "user", "content": " "}], "empty"),
    ([{"role": "user", "content": "x", "name": "y"}], "unknown field 'name'"), (content("x"), "type 'None'"),
    (content({"type": "document", "source": {}}), "'document'"), (content({"type": "thinking"}), "'thinking'"),
    (content({"type": "text"}), "text"), (content({"type": "text", "text": "x", "y": 1}), "'y'"),
    (content({"type": "image"}, TEXT), "source"),
    (content({"type": "image", "source": {"type": "file", "file_id": "f"}}, TEXT), "'file'"),
    (content(picture_of(media_type="text/html"), TEXT), "media_type"),
    (content(picture_of(data="####"), TEXT), "base64"), (content(picture_of(data=5), TEXT), "base64"),
    (content(picture_of(data="AAAA"), TEXT), "cannot be decoded"),
    (content({"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}, TEXT), "does not fetch"),
    (content({"type": "image", "source": {"type": "url", "url": "file:///etc/passwd"}}, TEXT), "http(s)"),
    (content({"type": "image", "source": {"type": "url", "url": "/etc/passwd"}}, TEXT), "http(s)"),
    (content({"type": "image", "source": {"type": "url"}}, TEXT), "needs a url"),
    (content({**picture(SOME.frames[0]), "transformations": {"oversized_image": "error"}}, TEXT), "transformations"),
    (content(*[picture(SOME.frames[0])] * 5, TEXT), "more than 4 pictures"),
    (content(TEXT, {"type": "tool_result", "tool_use_id": "x"}), "first ones"),
    (content({"type": "tool_result", "tool_use_id": "x"}), "must follow an answer"),
    (content({"type": "tool_result"}), "tool_use_id"), (looped(content=[{"type": "document"}]), "'document'"),
    (looped(content=5), "content of a block"), (looped(toolset_name="x"), "toolset_name"),
    (looped(is_error="yes"), "is_error"), (answered({"type": "server_tool_use"}), "server_tool_use"),
    (answered({"type": "tool_use", "id": "1", "name": "a b"}), "name of a tool"),
    (answered({"type": "tool_use", "id": "1", "name": "a", "input": 5}), "JSON object"),
    (answered({"type": "tool_use", "id": "1", "name": "a", "caller": {"type": "x"}}), "caller"),
    (answered({"type": "thinking"}), "'thinking'"), (answered(picture(SOME.frames[0])), "'image'"),
])  # fmt: skip
def test_messages_are_refused_by_name(client: anthropic.Anthropic, messages: Any, message: str) -> None:
    for call in (lambda: ask(client, messages), lambda: count(client, messages)):
        error = refused(anthropic.BadRequestError, call)
        assert message in error.api_message
        assert "/" not in error.api_message.replace("http(s)", "").replace("image/", "").replace("text/", "")  # no path


def test_fields_without_effect_are_listed(client: anthropic.Anthropic) -> None:
    fields = {"metadata": {"user_id": "me"}, "service_tier": "auto", "cache_control": {"type": "ephemeral"}}
    assert ask(client, **fields, speed="standard").vlroute["ignored"] == sorted(fields)
    assert count(client, [asked(SOME)], cache_control=fields["cache_control"]).vlroute["ignored"] == ["cache_control"]


@pytest.mark.parametrize(("model", "fields", "ignored"), [
    ("instruct", {"thinking": {"type": "adaptive", "budget_tokens": 5}}, ["thinking.budget_tokens"]),
    ("thinking", {"thinking": {"type": "adaptive", "budget_tokens": 5}}, []),
    ("instruct", {"output_config": {"effort": "low"}}, ["output_config.effort"]),
    ("thinking", {"output_config": {"effort": "low"}}, []),
    ("thinking", {"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 5}},
     ["output_config.effort"]),
    ("instruct", {"tool_choice": {"type": "auto"}}, ["tool_choice"]),
    ("instruct", {"tool_choice": {"type": "none", "disable_parallel_tool_use": True},
                  "tools": [{"name": "f", "input_schema": {"type": "object"}}]},
     ["tool_choice.disable_parallel_tool_use"]),
])  # fmt: skip
def test_fields_without_effect_because_of_others_are_listed(
    client: anthropic.Anthropic, model: str, fields: dict[str, Any], ignored: list[str]
) -> None:
    assert ask(client, model=model, **fields).vlroute["ignored"] == ignored


def test_errors_of_every_layer_have_the_same_shape(server: Served, client: anthropic.Anthropic) -> None:
    for key in ("wrong", KEY + "x"):
        error = refused(anthropic.AuthenticationError, lambda: ask(server.anthropic(key)))  # noqa: B023
        assert error.type == "authentication_error"
    assert refused(anthropic.NotFoundError, lambda: ask(client, model="claude-x")).type == "not_found_error"
    large = content({"type": "text", "text": "x" * 600_000})
    assert refused(anthropic.RequestTooLargeError, lambda: ask(client, large)).type == "request_too_large"
    refused(anthropic.NotFoundError, lambda: client.messages.batches.list())
    with server.http(headers={"x-api-key": KEY}) as http:
        as_json = {"Content-Type": "application/json"}
        for method, path, body, headers, status in (
            ("GET", "/v1/messages", b"", {}, 405), ("POST", "/v1/messages", b"{", as_json, 400),
            ("POST", "/v1/messages", b"[" * 50_000, as_json, 400), ("POST", "/v1/messages", b"x", {}, 415),
            ("POST", "/v1/messages/count_tokens", b"[]", as_json, 400),
            ("POST", "/v1/messages/x/y", b"{}", as_json, 404),
            ("POST", "/v1/messages/count_tokens", b"\xff", as_json, 400), ("POST", "/v1/messages", b"", as_json, 400),
        ):  # fmt: skip
            reply = http.request(method, path, content=body, headers=headers)
            assert (reply.status_code, reply.json()["type"]) == (status, "error"), (path, reply.text)
            assert reply.headers["request-id"] == reply.json()["request_id"]
        assert http.post("/v1/messagesx", json={}).json()["error"]["code"] == "not_found"  # another path
        assert http.get("/v1/models").status_code == 200  # the header is accepted everywhere
        for headers in ({"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
            assert http.get("/v1/models", headers=headers).status_code == 401


def test_models_in_the_form_of_the_client(server: Served, client: anthropic.Anthropic) -> None:
    names = ["auto", "instruct", "thinking", "pocket-instruct", "pocket-thinking"]
    page = client.models.list()
    assert [one.id for one in page.data] == [one.display_name for one in page.data] == names
    assert (page.has_more, page.first_id, page.last_id) == (False, names[0], names[-1])
    assert [one.id for one in client.models.list(limit=2)] == names  # the client asks for the next pages
    assert [one.id for one in client.models.list(limit=2).data] == names[:2]
    assert [one.id for one in client.models.list(before_id="thinking", limit=1)] == ["instruct", "auto"]
    assert not client.models.list(lifecycle=["retired"]).data
    assert len(client.models.list(lifecycle=["retired", "active"]).data) == len(names)
    found = client.models.retrieve("Thinking")
    assert (found.id, found.type, found.lifecycle) == ("thinking", "model", "active")
    assert found.created_at.tzinfo is not None
    for kind, call in (
        (anthropic.NotFoundError, lambda: client.models.retrieve("claude-x")),
        (anthropic.AuthenticationError, lambda: server.anthropic("wrong").models.list()),
        (anthropic.BadRequestError, lambda: client.models.list(after_id="claude-x")),
        (anthropic.BadRequestError, lambda: client.models.list(after_id="auto", before_id="thinking")),
        (anthropic.BadRequestError, lambda: client.models.list(limit=0)),
    ):
        refused(kind, call)


def test_a_deadline_ends_the_answer() -> None:
    with served(ServerSettings(deadline=0.8), generation=LONG) as server:
        client = server.anthropic()
        error = refused(anthropic.APIStatusError, lambda: ask(client, model="thinking", max_tokens=6000))
        assert (error.status_code, error.type) == (504, "timeout_error")
        with pytest.raises(anthropic.APIStatusError) as caught:
            streamed(client, model="thinking", max_tokens=6000)
        assert caught.value.type == "timeout_error"


def test_a_disconnected_client_cancels_the_answer() -> None:
    with served(generation=LONG) as server:
        client = server.anthropic()
        with client.messages.stream(**fields_of(model="thinking", max_tokens=6000)) as stream:
            next(iter(stream))
            assert running(server) == 1
        until(lambda: running(server) == 0, 5)
        with pytest.raises(anthropic.APITimeoutError):
            ask(client.with_options(timeout=0.5), model="thinking", max_tokens=6000)
        until(lambda: running(server) == 0, 5)
