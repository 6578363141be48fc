"""Answers that consist of calls, calls that follow their schema, and tools together with a response format."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field
from training.bench.structured import draw_schema

from tests.conftest import forget, media, task
from tests.forcing import STRONG, biased, token_ids
from tests.integration.test_tools import steps_of, tasks
from tests.recording import model_calls
from tests.scripted_endpoint import DONE, Scripted, chunk, scripted_endpoint
from tests.serving import Served, served
from vlroute import Answer, MessageError, Router, SettingsError
from vlroute.engine.local.grammar import constraint, token_id
from vlroute.engine.tool_calls import CLOSE, OPEN
from vlroute.engine.tool_grammar import tool_grammar
from vlroute.errors import LimitError, MissingExtraError
from vlroute.inputs.tools import checked_tools
from vlroute.pocket.screens import TOOLS, draw_screen_task, opening
from vlroute.types import MODES, Finished, Mode, ToolCalled

pytestmark = pytest.mark.float32
SOME = task("math")
GREEDY = {"temperature": 0}


class Draw(BaseModel):
    """Draw a shape."""

    shape: Literal["circle", "square"]
    sides: list[Annotated[int, Field(ge=0, le=9)]] = Field(min_length=1, max_length=3)
    label: str | None = None
    filled: bool = False


def tool(name: str, schema: Any = None, **fields: Any) -> dict[str, Any]:
    parameters = {} if schema is None else {"parameters": schema}
    return {"type": "function", "function": {"name": name, **parameters, **fields}}


MIXED = [tool("draw", Draw.model_json_schema()), tool("wait"), *TOOLS]
SCHEMAS = {one["function"]["name"]: one["function"].get("parameters", {"type": "object"}) for one in MIXED}


@pytest.fixture(scope="module")
def hybrid() -> Iterator[Router]:
    """Writes calls in XML."""
    with Router.from_pretrained("pocket-hybrid").load() as router:
        yield router


@pytest.fixture(scope="module")
def both(router: Router, hybrid: Router) -> dict[str, Router]:
    return {"json": router, "xml": hybrid}


@pytest.fixture(scope="module")
def server(router: Router) -> Iterator[Served]:
    with served() as one:
        yield one


@pytest.fixture(scope="module")
def script() -> Iterator[Scripted]:
    with scripted_endpoint() as one:
        yield one


def ask(router: Router, mode: Mode | None = "instruct", **options: Any) -> Answer:
    """An answer to a question for which the model would not call a tool."""
    settings = {"max_new_tokens": 300, "thinking_budget": 15, "tools": MIXED, **options}
    return router.ask(SOME.prompt, **media(SOME), mode=mode, **settings)


def check(answer: Answer, names: Any = SCHEMAS) -> None:
    """The answer consists of calls of tools with these names, whose arguments follow their schemas."""
    assert (answer.text, answer.finish_reason) == ("", "tool_calls")
    for call in answer.tool_calls:
        assert call.name in names
        jsonschema.validate(call.arguments, SCHEMAS[call.name])


# --- required, a name, allowed tools ---


@pytest.mark.parametrize("which", ["json", "xml"])
@pytest.mark.parametrize("mode", MODES)
def test_required_answers_consist_of_calls_that_follow_their_schema(
    both: dict[str, Router], which: str, mode: Mode
) -> None:
    asked = [
        {"prompt": SOME.prompt, **media(SOME), "mode": mode, "tool_choice": "required", "seed": seed,
         "temperature": 1.5, "max_new_tokens": 300, "thinking_budget": 10, "parallel_tool_calls": seed % 3 == 0,
         "tools": MIXED[:2] if seed % 2 else MIXED}
        for seed in range(12)
    ]  # fmt: skip
    answers = both[which].ask_many(asked)
    whole = [one for one in answers if one.finish_reason != "length"]
    assert len(whole) >= 8
    for answer in whole:
        check(answer)
    assert len({call.name for one in whole for call in one.tool_calls}) >= 2
    if mode == "thinking":
        free = both[which].ask_many([{**one, "tool_choice": "auto"} for one in asked[:6]])
        assert [one.thinking for one in answers[:6]] == [one.thinking for one in free]


@pytest.mark.parametrize("which", ["json", "xml"])
def test_one_named_tool_is_called_once(both: dict[str, Router], which: str) -> None:
    for choice in ("draw", {"type": "function", "function": {"name": "draw"}}, {"type": "function", "name": "draw"}):
        answer = ask(both[which], tool_choice=choice, **GREEDY)
        check(answer, {"draw"})
        assert len(answer.tool_calls) == 1
        assert Draw.model_validate(answer.tool_calls[0].arguments)
    for seed in range(5):
        answer = ask(both[which], tool_choice="required", parallel_tool_calls=False, seed=seed, temperature=2.0)
        if answer.finish_reason != "length":
            assert len(answer.tool_calls) == 1


@pytest.mark.parametrize("which", ["json", "xml"])
def test_only_allowed_tools_are_called(both: dict[str, Router], which: str) -> None:
    one = tasks(1)[0]
    called = both[which].ask(opening(one), tools=TOOLS, mode="thinking", **GREEDY)
    (name,) = {call.name for call in called.tool_calls}
    others = [each["function"] for each in MIXED if each["function"]["name"] != name]
    for mode in ("auto", "required"):
        allowed = {"mode": mode, "tools": [{"type": "function", "name": each["name"]} for each in others]}
        answer = both[which].ask(
            opening(one), tools=MIXED, tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
            mode="thinking", max_new_tokens=300, **GREEDY,
        )  # fmt: skip
        assert name not in {call.name for call in answer.tool_calls}
        assert answer.finish_reason == "length" or bool(answer.tool_calls) >= (mode == "required")


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_the_model_would_write_anyway_stays_the_same(both: dict[str, Router], mode: Mode) -> None:
    """The first step of a GUI task is a call; a grammar for it changes neither its tokens nor the thought."""
    for router in both.values():
        for one in tasks(4, seed=3):
            free = router.ask(opening(one), tools=TOOLS, mode=mode, **GREEDY)
            forced = router.ask(opening(one), tools=TOOLS, mode=mode, tool_choice="required", **GREEDY)
            if free.tool_calls and not free.text:
                assert forced.thinking == free.thinking
                assert [(call.name, call.text) for call in forced.tool_calls] == [
                    (call.name, call.text) for call in free.tool_calls
                ]
                assert forced.usage.completion_tokens == free.usage.completion_tokens


# --- strict ---


@pytest.mark.parametrize("which", ["json", "xml"])
def test_strict_changes_no_step_of_a_loop_with_valid_calls(both: dict[str, Router], which: str) -> None:
    strict = [{**one, "function": {**one["function"], "strict": True}} for one in TOOLS]
    router = both[which]
    for one in tasks(2):
        expected = steps_of(one, lambda messages: router.ask(messages, tools=TOOLS, mode="thinking", **GREEDY))
        assert expected == steps_of(one, lambda messages: router.ask(messages, tools=strict, mode="thinking", **GREEDY))
        assert "strict" not in str(router.ask(opening(one), tools=strict, mode="thinking", **GREEDY).message)


@pytest.mark.parametrize("which", ["json", "xml"])
def test_strict_calls_among_text_follow_their_schema(both: dict[str, Router], which: str) -> None:
    strict = [{**one, "function": {**one["function"], "strict": True}} for one in MIXED]
    asked = [
        {"prompt": opening(draw_screen_task(random.Random(seed), steps=2)), "mode": "instruct", "tools": strict,
         "seed": seed, "temperature": 1.6, "max_new_tokens": 200}
        for seed in range(16)
    ]  # fmt: skip
    answers = both[which].ask_many(asked)
    calls = [call for answer in answers for call in answer.tool_calls]
    assert len(calls) > 6
    for call in calls:
        jsonschema.validate(call.arguments, SCHEMAS[call.name])
    for answer in answers:
        assert "<tool_call>" not in answer.text or answer.finish_reason == "length"


def test_random_schemas_as_parameters(router: Router, hybrid: Router) -> None:
    """Those whose root is an object. In JSON every schema is followed; XML refuses what it cannot follow."""
    schemas = [draw_schema(random.Random(f"tool {i}")) for i in range(60)]
    schemas = [one for one in schemas if one.get("type") == "object"][:16]
    assert len(schemas) == 16
    refused = 0
    for i, schema in enumerate(schemas):
        offered = [tool("f", schema, strict=True)]
        for one in (router, hybrid):
            try:
                answer = ask(one, tools=offered, tool_choice="f", seed=i, temperature=1.0, max_new_tokens=150)
            except SettingsError as error:
                assert one is hybrid
                assert "XML" in str(error)  # noqa: PT017
                refused += 1
                continue
            if answer.finish_reason != "length":
                jsonschema.validate(answer.tool_calls[0].arguments, schema)
    assert refused < len(schemas) / 2


OPTIONAL = {"anyOf": [{"enum": ["a", "b"]}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("schema", "written", "ok"),
    [
        ({"x": {"enum": ["a", "b"]}}, "<parameter=x>\na\n</parameter>\n", True),
        ({"x": {"enum": ["a", "b"]}}, "<parameter=x>\nc\n</parameter>\n", False),
        ({"x": OPTIONAL}, "<parameter=x>\nnull\n</parameter>\n", True),
        ({"x": OPTIONAL}, "<parameter=x>\nab\n</parameter>\n", False),
        ({"x": {"type": "integer"}}, "<parameter=x>\n12\n</parameter>\n", True),
        ({"x": {"type": "integer"}}, "<parameter=x>\n1.5\n</parameter>\n", False),
        ({"x": {"type": "integer"}}, "", False),  # it is required
        ({"x": {"type": "string"}, "y": {"type": "string"}}, "<parameter=x>\n\n</parameter>\n", True),  # y is not
        ({"x": {"type": "string"}}, "<parameter=x>\na\n<b>\n\nc\n</parameter>\n", True),
        ({"x": {"type": "string"}}, "<parameter=z>\na\n</parameter>\n", False),
        ({"x": {"$ref": "#/$defs/n"}}, "<parameter=x>\n[1, 2]\n</parameter>\n", True),
        ({"x": {"$ref": "#/$defs/n"}}, '<parameter=x>\n["1"]\n</parameter>\n', False),
        ({"x": {"const": "only"}}, "<parameter=x>\nonly\n</parameter>\n", True),
        ({"x": {"type": ["string", "integer"]}}, "<parameter=x>\n5\n</parameter>\n", True),
    ],
)
def test_parameters_in_xml(hybrid: Router, schema: dict[str, Any], written: str, ok: bool) -> None:
    whole = {"type": "object", "properties": schema, "required": ["x"],
             "$defs": {"n": {"type": "array", "items": {"type": "integer"}}}}  # fmt: skip
    grammar = _grammar(hybrid, [tool("f", whole)], "required")
    assert _accepts(hybrid, grammar, f"<tool_call>\n<function=f>\n{written}</function>\n</tool_call>") == ok


def test_calls_in_json(router: Router) -> None:
    grammar = _grammar(router, MIXED, "required")
    wait = '<tool_call>\n{"name": "wait", "arguments": {"any": 1}}\n</tool_call>'
    tap = '<tool_call>\n{"name": "tap", "arguments": {"button": "B"}}\n</tool_call>'
    assert _accepts(router, grammar, wait)
    assert _accepts(router, grammar, f"{tap}\n{wait}\n{tap}")
    for wrong in ("", "so", tap + wait, f"{tap}\n", tap.replace("tap", "fly"), tap.replace('"B"', "5"), tap[:-12]):
        assert not _accepts(router, grammar, wrong)
    auto = _grammar(router, [{**one, "function": {**one["function"], "strict": True}} for one in TOOLS], "auto")
    assert _accepts(router, auto, f"First this.\n{tap}\nthen {tap}!")
    assert not _accepts(router, auto, f"First {tap.replace('tap', 'fly')}")


@pytest.mark.parametrize("schema", [
    {"type": ["object", "null"]}, {"type": ["null", "object"], "properties": {"x": {"type": "integer"}}},
    {"properties": {"x": {"type": "integer"}}}, {"type": None}, {"anyOf": [{"type": "object"}, {"type": "null"}]},
    {"enum": [1, {"x": 1}]}, {"anyOf": [{"type": "integer"}]}, {"const": 5},
    {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}},
])  # fmt: skip
def test_arguments_are_always_an_object(router: Router, schema: dict[str, Any]) -> None:
    """Others are no call: with `tool_choice="required"`, there was none."""
    grammar = _grammar(router, [tool("f", schema)], "required")

    def accepts(arguments: str) -> bool:
        return _accepts(router, grammar, f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>')

    assert accepts('{"x": 1}') or accepts("{}")
    assert not any(map(accepts, ("null", "1", "5", "[]", '"x"')))


def _grammar(router: Router, offered: list[Any], choice: str) -> str:
    checkpoint, tools = router.pair.instruct, checked_tools(offered, choice)
    assert tools is not None
    tags = token_id(checkpoint.tokenizer, OPEN), token_id(checkpoint.tokenizer, CLOSE)
    return tool_grammar(tools, checkpoint.family.call_format, tags)


def _accepts(router: Router, grammar: str, text: str) -> bool:
    checkpoint = router.pair.instruct
    ids = checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"]
    vocabulary = checkpoint.model.config.text_config.vocab_size
    matcher = constraint(checkpoint.tokenizer, vocabulary, grammar, frozenset()).matcher
    return all(matcher.consume_token(token) for token in ids) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "open_"),
    [
        ({"properties": {"x": {"type": "integer"}}}, False),
        ({"properties": {"x": {"type": "integer"}}, "additionalProperties": True}, True),
        ({"properties": {"x": {"type": "integer"}}, "required": ["y"]}, True),
        ({"properties": {"x": {"type": "integer"}}, "minProperties": 2, "patternProperties": {"y": {}}}, True),
        ({"allOf": [{"properties": {"x": {"type": "integer"}}}, {"properties": {"y": {"type": "integer"}}}]}, True),
        ({}, True),
    ],
)
def test_objects_are_closed_unless_something_else_may_name_properties(
    router: Router, schema: dict[str, Any], open_: bool
) -> None:
    grammar = _grammar(router, [tool("f", {"type": "object", **schema})], "required")
    text = '<tool_call>\n{"name": "f", "arguments": {"x": 1, "y": 2}}\n</tool_call>'
    assert _accepts(router, grammar, text) == open_


# --- together with a response format ---


class Found(BaseModel):
    number: int


@pytest.mark.parametrize("which", ["json", "xml"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calls", [False, True])
def test_an_answer_is_either_calls_or_has_the_format(
    both: dict[str, Router], which: str, mode: Mode, calls: bool
) -> None:
    router = both[which]
    (tag,) = token_ids(router, "<tool_call>", mode)
    with biased(router, mode, {tag: STRONG if calls else -STRONG}):
        answer = ask(router, mode, tools=TOOLS, parallel_tool_calls=False, response_format=Found, **GREEDY)
    if calls:
        check(answer)
        assert answer.parsed is None
    else:
        assert isinstance(answer.parsed, Found)
        assert answer.tool_calls == ()


@pytest.mark.parametrize("form", [{"choice": ["a/b", 'say "no"']}, {"regex": "a/[0-9]{2}\n?b|c\\/d"}])
def test_other_formats_beside_tools(router: Router, form: Any) -> None:
    answer = ask(router, response_format=form, **GREEDY)
    alone = ask(router, response_format=form, tools=None, **GREEDY)
    assert (answer.text, answer.tool_calls) == (alone.text, ()) or answer.tool_calls


# --- in batches, streams and over HTTP ---


def test_constrained_calls_in_a_batch_are_those_alone(both: dict[str, Router]) -> None:
    for router in both.values():
        choices: list[dict[str, Any]] = [
            {"tool_choice": "required"}, {"tool_choice": "draw"}, {}, {"tools": None}, {"response_format": Found}
        ]  # fmt: skip
        asked = [
            {"prompt": f"{SOME.prompt} {i}", **media(SOME), "mode": MODES[i % 2], "tools": MIXED, "seed": i,
             "temperature": 1.0, "max_new_tokens": 80, "thinking_budget": 10, **choices[i % len(choices)]}
            for i in range(10)
        ]  # fmt: skip
        alone = [router.ask(**one) for one in asked]
        forget(router)
        with model_calls() as calls:
            together = router.ask_many(asked)
        assert max(calls.steps) > 2

        def said(one: Answer) -> Any:
            return one.text, one.thinking, [(call.name, call.text) for call in one.tool_calls], one.finish_reason

        assert [said(one) for one in together] == [said(one) for one in alone]


def test_a_stream_has_the_same_calls(router: Router) -> None:
    settings = {"tools": MIXED, "tool_choice": "required", "thinking_budget": 10, **GREEDY}
    events = [*router.stream(SOME.prompt, **media(SOME), mode="thinking", max_new_tokens=300, **settings)]
    answer = ask(router, "thinking", **settings)
    assert isinstance(events[-1], Finished)
    assert [event.call.text for event in events if isinstance(event, ToolCalled)] == [
        call.text for call in answer.tool_calls
    ]


def test_openai_clients(server: Served) -> None:
    client, asked = server.openai(), [{"role": "user", "content": "How many?"}]
    create = client.chat.completions.create
    fields: dict[str, Any] = {"model": "instruct", "messages": asked, "tools": MIXED, "max_tokens": 300, "seed": 1}
    for choice in ("required", {"type": "function", "function": {"name": "draw"}}):
        found = create(**fields, tool_choice=choice).choices[0]
        assert found.finish_reason == "tool_calls"
        assert found.message.content is None
        for call in found.message.tool_calls or ():
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    strict = openai.pydantic_function_tool(Draw, name="draw")
    assert strict["function"]["strict"] is True
    parsed = client.chat.completions.parse(
        model="thinking", messages=asked, tools=[strict], tool_choice="required", max_tokens=300, seed=1,
        parallel_tool_calls=False, extra_body={"thinking_budget": 10},
    )  # fmt: skip
    call = (parsed.choices[0].message.tool_calls or [])[0]
    assert isinstance(call.function.parsed_arguments, Draw)
    deltas = [chunk.choices[0].delta for chunk in create(**fields, tool_choice="required", stream=True)]
    assert [one.function.name for delta in deltas for one in delta.tool_calls or ()]
    assert not "".join(delta.content or "" for delta in deltas)


# --- endpoints ---


def test_endpoints_get_the_choice(script: Scripted) -> None:
    called = chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "tap", "arguments": '{"button": "B"}'}}])
    strict = [{**one, "function": {**one["function"], "strict": True}} for one in TOOLS]
    read = {"type": "function", "function": {"name": "read"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{**read, "name": "read"}]}}
    with script.router() as router:
        for choice, sent in (
            ("required", "required"), ("read", read), (read, read), (allowed, "required"), ("auto", None)
        ):  # fmt: skip
            script.play([called, chunk(end="tool_calls"), DONE])
            answer = router.ask("Tap B.", mode="instruct", tools=strict, tool_choice=choice)
            body = script.bodies[-1]
            assert body.get("tool_choice") == sent
            assert body["tools"] == (strict[1:] if sent == read or choice is allowed else strict)
            assert [call.name for call in answer.tool_calls] == ["tap"]
        script.play([chunk("no call"), chunk(end="stop"), DONE])
        answer = router.ask("Tap B.", mode="instruct", tools=TOOLS, tool_choice="required")
        assert (answer.text, answer.tool_calls) == ("no call", ())
        assert "called no tool although tool_choice requires it" in answer.decision.reason
        with pytest.raises(SettingsError, match="no response_format together with tools"):
            router.ask("Tap B.", tools=TOOLS, response_format=Found)


# --- refusals ---


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("fly", "names the tool 'fly', which is not offered; the tools are draw, wait, tap, read"),
        ({"type": "function", "function": {"name": "fly"}}, "which is not offered"),
        ({"type": "function", "function": {}}, "names the tool None"),
        ({"type": "custom", "name": "draw"}, "is not supported; expected 'auto', 'none', 'required'"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": []}}, "is not supported"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, "is not supported"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}}, "is not supported"),
        (5, "tool_choice=5 is not supported"),
        (True, "tool_choice=True is not supported"),
    ],
)
def test_an_invalid_choice_is_refused(router: Router, server: Served, choice: Any, message: str) -> None:
    with pytest.raises(MessageError, match=message):
        ask(router, tool_choice=choice)
    if isinstance(choice, str | dict):
        with pytest.raises(openai.BadRequestError, match="tool_choice"):
            server.openai().chat.completions.create(
                model="auto", messages=[{"role": "user", "content": "Hello?"}], tools=MIXED, tool_choice=choice
            )


def test_a_required_call_needs_tools(router: Router) -> None:
    with pytest.raises(MessageError, match="needs tools"):
        ask(router, tools=[], tool_choice="required")
    with pytest.raises(MessageError, match="there are no tools"):
        ask(router, tools=None, tool_choice="draw")
    with pytest.raises(MessageError, match="strict of 'a' must be true or false"):
        ask(router, tools=[tool("a", strict="yes")])


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"properties": {"x": {"type": "string", "pattern": "[a-z]+"}}}, "pattern"),
        ({"properties": {"x": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]}}}, "maxLength"),
        ({"properties": {"x": {"type": "string"}}, "required": ["y"]}, "for which the required parameter 'y'"),
        ({"properties": {"x": {"type": "string"}}, "minProperties": 1}, "minProperties"),
        ({"properties": {"x": {"enum": ["</parameter>", "a"]}}}, "the value '</parameter>'"),
        ({"properties": {"x": {"anyOf": [{"const": "a</tool_call>"}]}}}, "the value 'a</tool_call>'"),
        ({"properties": {"x": {"$ref": "#/$defs/none"}}}, "/none' does not exist"),
        ({"properties": {"a>b": {"type": "string"}}}, "cannot write"),
        ({"properties": {"": {"type": "string"}}}, "cannot write"),
    ],
)
def test_what_xml_cannot_follow_is_refused_if_strict(hybrid: Router, schema: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        ask(hybrid, tools=[tool("f", {"type": "object", **schema}, strict=True)])
    if word != "cannot write":
        answer = ask(hybrid, tools=[tool("f", {"type": "object", **schema})], tool_choice="f", **GREEDY)
        assert answer.tool_calls or answer.finish_reason == "length"


def test_a_schema_that_cannot_be_followed(router: Router) -> None:
    """Refused if strict; otherwise the arguments are any object."""
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "propertyNames": {"pattern": "x"}}
    with pytest.raises(SettingsError, match="the schema of the tool 'f': the JSON schema uses propertyNames"):
        ask(router, tools=[tool("f", schema, strict=True)])
    answer = ask(router, tools=[tool("f", schema)], tool_choice="f", max_new_tokens=100, **GREEDY)
    assert answer.tool_calls or answer.finish_reason == "length"


def test_a_schema_without_an_end_is_refused_in_plain_words(router: Router) -> None:
    endless = {"type": "object", "properties": {"x": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"$ref": "#/$defs/x"}}}
    with pytest.raises(LimitError) as error:
        ask(router, tools=[tool("f", {**endless, "required": ["x"]})], tool_choice="f", **GREEDY)
    assert "no text matches a part of it; choose a simpler" in str(error.value)


def test_without_llguidance(router: Router, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"vlroute\[structured\]"):
        ask(router, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="runs without the extra 'structured'"):
        server.openai().chat.completions.create(
            model="instruct", messages=[{"role": "user", "content": "Hello?"}], tools=MIXED, tool_choice="required"
        )
    assert ask(router, **GREEDY).finish_reason in ("stop", "tool_calls", "length")
