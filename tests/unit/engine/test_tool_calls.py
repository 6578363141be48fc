"""Tool calls in the text of an answer, however it is divided into pieces."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlroute.engine.families.family import CallFormat
from vlroute.engine.tool_calls import CallReader
from vlroute.inputs.tools import Tools, checked_tools

TOOLS = checked_tools([
    {"name": "tap", "parameters": {"type": "object", "properties": {
        "button": {"type": "string"}, "times": {"type": "integer"}, "hard": {"type": "boolean"},
        "at": {"type": "array"}, "note": {"type": ["string", "null"]}, "any": {},
    }}},
    {"name": "read"},
])  # fmt: skip
assert TOOLS is not None
JSON_CALL = '<tool_call>\n{"name": "tap", "arguments": {"button": "B", "times": 2}}\n</tool_call>'
XML_CALL = (
    "<tool_call>\n<function=tap>\n<parameter=button>\nB\n</parameter>\n<parameter=times>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
FORMS: dict[CallFormat, str] = {"json": JSON_CALL, "xml": XML_CALL}


def read(pieces: list[str], form: CallFormat = "json", complete: bool = True, tools: Tools | None = None) -> Any:
    """Text, and name and arguments of each call."""
    reader = CallReader(tools or TOOLS, form, "instruct")  # type: ignore[arg-type]
    passed = []
    for piece in pieces:
        passed += reader.read([("answer", piece)])
        if reader.ended:
            break
    passed += reader.flush(complete)
    assert "".join(piece for channel, piece in passed if channel == "answer") == reader.text  # type: ignore[misc]
    assert [piece for channel, piece in passed if channel == "call"] == reader.calls
    return reader.text, [(call.name, call.arguments) for call in reader.calls]


@pytest.mark.parametrize("form", ["json", "xml"])
def test_every_division_into_two_pieces(form: CallFormat) -> None:
    text = f"First. {FORMS[form]}\n{FORMS[form]} "
    expected = ("First.", [("tap", {"button": "B", "times": 2})] * 2)
    for at in range(len(text) + 1):
        assert read([text[:at], text[at:]], form) == expected
    assert read([*text], form) == expected


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", "<", "a", "\n", '{"name": "read"}', "<tool_ca", JSON_CALL])
    ),
    st.integers(1, 7),
    st.booleans(),
)
def test_nothing_is_lost(parts: list[str], size: int, complete: bool) -> None:
    """Without calls, the text is that of the model; and the division into pieces has no influence."""
    text = "".join(parts)
    whole = read([text], complete=complete)
    assert read([text[i : i + size] for i in range(0, len(text), size)], complete=complete) == whole
    if not whole[1]:
        assert whole[0] == text.strip()
    assert len(whole[1]) >= parts.count(JSON_CALL) - parts.count("<tool_call>") - parts.count("<tool_ca")


def test_a_call_that_is_cut_off() -> None:
    cut = JSON_CALL.removesuffix("\n</tool_call>")
    assert read([cut], complete=True)[1] == [("tap", {"button": "B", "times": 2})]
    assert read([cut], complete=False) == (cut, [])
    assert read([cut[:-5]], complete=True) == (cut[:-5], [])


def test_one_call_only() -> None:
    tools = checked_tools([{"name": "tap"}], parallel_tool_calls=False)
    assert read([f"so {JSON_CALL}{JSON_CALL} more"], tools=tools) == ("so", [("tap", {"button": "B", "times": 2})])


def test_arguments_are_kept_as_they_are_written() -> None:
    reader = CallReader(TOOLS, "json", "thinking")  # type: ignore[arg-type]
    list(
        reader.read(
            [("answer", '<tool_call>{"name":"tap","arguments":{"button":"\\u4e2d",  "times":1.0}}</tool_call>')]
        )
    )
    assert reader.calls[0].text == '{"button":"\\u4e2d",  "times":1.0}'
    assert reader.calls[0].arguments == {"button": "中", "times": 1.0}


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "tap"}', {}),
        ('{"arguments": {"a": {"b": "}"}}, "name": "tap"}', {"a": {"b": "}"}}),
        ('{"name": "tap", "arguments": "{\\"button\\": \\"B\\"}"}', {"button": "B"}),
        ('{"name": "tap", "arguments": {"arguments": {"x": 1}}}', {"arguments": {"x": 1}}),
    ],
)
def test_other_json_calls(body: str, arguments: dict[str, Any]) -> None:
    text, calls = read([f"<tool_call>{body}</tool_call>"])
    assert (text, calls) == ("", [("tap", arguments)])
    reader = CallReader(TOOLS, "json", "thinking")  # type: ignore[arg-type]
    list(reader.read([("answer", f"<tool_call>{body}</tool_call>")]))
    assert json.loads(reader.calls[0].text) == arguments


@pytest.mark.parametrize(
    "body",
    [
        "",
        "tap",
        "[1]",
        '{"name": "a b"}',
        '{"name": 5}',
        '{"name": "tap", "arguments": [1]}',
        "[" * 100_000,
        '{"name": "tap", "parameters": {"a": 1}}',
        '{"name": "tap", "arguments": {"a": NaN}}',
        '{"name": "tap", "arguments": {"a": 1e999}}',
        '{"name": "tap", "arguments": {"a": "\\ud800"}}',
    ],
)
def test_what_is_no_json_call(body: str) -> None:
    assert read([f"<tool_call>{body}</tool_call>"]) == (f"<tool_call>{body}</tool_call>", [])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("button", "12", "12"), ("button", "two\nlines", "two\nlines"), ("times", "12", 12), ("times", "many", "many"),
        ("hard", "true", True), ("hard", "False", False), ("at", "[1, 2]", [1, 2]), ("note", "null", None),
        ("note", "5", "5"), ("any", "5", "5"), ("other", "5", "5"), ("button", "", ""),
    ],
)  # fmt: skip
def test_values_in_tags_follow_the_schema(name: str, text: str, value: Any) -> None:
    body = f"<function=tap>\n<parameter={name}>\n{text}\n</parameter>\n</function>"
    assert read([f"<tool_call>\n{body}\n</tool_call>"], "xml") == ("", [("tap", {name: value})])


def test_calls_in_tags_without_parameters_and_without_an_end() -> None:
    assert read(["<tool_call>\n<function=read>\n</function>\n</tool_call>"], "xml")[1] == [("read", {})]
    assert read(["<tool_call>\n<function=read>\n</tool_call>"], "xml")[1] == [("read", {})]
    assert read(["<tool_call>\nread\n</tool_call>"], "xml") == ("<tool_call>\nread\n</tool_call>", [])


@pytest.mark.parametrize(
    "body",
    [
        "<function=read>\n</function>\n<function=tap>\n</function>",
        "I think <function=read>\n</function>",
        "<function=read>\n</function> hmm",
        "<function=tap>\n<parameter=button>\nB",
        "<function=tap>\n<parameter=button>\nB\n</parameter>\nso\n</function>",
        "<function=a b>\n</function>",
    ],
)
def test_what_is_no_call_in_tags(body: str) -> None:
    """Nothing between the tags is dropped without notice."""
    assert read([f"<tool_call>\n{body}\n</tool_call>"], "xml") == (f"<tool_call>\n{body}\n</tool_call>", [])


def test_a_value_may_contain_the_end_of_a_function() -> None:
    body = "<function=tap>\n<parameter=button>\n</function>\n\n</parameter>\n</function>"
    assert read([f"<tool_call>\n{body}\n</tool_call>"], "xml") == ("", [("tap", {"button": "</function>\n"})])


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "5", 5),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "null", None),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "5", "5"),
        ({"$ref": "#/$defs/Place"}, '{"x": 1}', {"x": 1}),
        ({"allOf": [{"$ref": "#/$defs/Place"}]}, '{"x": 1}', {"x": 1}),
        ({"enum": [1, 2]}, "1", 1),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"const": 5}, "5", 5),
        ({"$ref": "#/$defs/Loop"}, "5", "5"),
        ({"$ref": "https://example.org/x"}, "5", "5"),
        ({}, "5", "5"),
        (True, "5", "5"),
    ],
)
def test_types_are_looked_up_in_the_schema(schema: Any, text: str, value: Any) -> None:
    """As pydantic and other libraries write them."""
    definitions = {"Place": {"type": "object"}, "Loop": {"$ref": "#/$defs/Loop"}}
    parameters = {"type": "object", "properties": {"at": schema}, "$defs": definitions}
    tools = checked_tools([{"name": "go", "parameters": parameters}])
    body = f"<function=go>\n<parameter=at>\n{text}\n</parameter>\n</function>"
    assert read([f"<tool_call>\n{body}\n</tool_call>"], "xml", tools=tools) == ("", [("go", {"at": value})])


@pytest.mark.parametrize(
    "body",
    [
        "<function=f" * 20_000,
        "<function=f>" + "<parameter=a>\n" * 20_000,
        '{"name": "tap", ' + '"arguments": {' * 20_000,
        '{"name": "tap", "a": "' + '\\"' * 20_000,
    ],
)
@pytest.mark.parametrize("form", ["json", "xml"])
def test_hostile_text_takes_linear_time(body: str, form: CallFormat) -> None:
    began = time.perf_counter()
    assert not read([f"<tool_call>{body}</tool_call>"], form)[1]
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("value", ["</tool_call>", 'a \\" </tool_call> b', "</tool_call><tool_call>"])
def test_a_tag_within_a_string_of_a_call(value: str, size: int) -> None:
    written = f'<tool_call>\n{{"name": "tap", "arguments": {{"button": "{value}"}}}}\n</tool_call> so'
    reader = CallReader(TOOLS, "json", "thinking")  # type: ignore[arg-type]
    pieces = [("answer", written[start : start + size]) for start in range(0, len(written), size)]
    found = [*reader.read(pieces), *reader.flush(True)]  # type: ignore[arg-type]
    (call,) = reader.calls
    assert call.arguments == {"button": json.loads(f'"{value}"')}
    assert "".join(piece for channel, piece in found if channel == "answer") == "so"  # type: ignore[misc]
