"""Grammars for answers with tool calls: which calls are allowed, and what else. Does not import torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from vlroute.engine.families.family import CallFormat
from vlroute.engine.tool_calls import CLOSE, OPEN, alternatives, kinds_of, listed_values, stated_kinds
from vlroute.errors import SettingsError
from vlroute.grammar_check import TOO_COMPLEX, grammar_error, seconds_spent
from vlroute.inputs.tools import MAX_CALLS, Tools
from vlroute.structured import ResponseFormat, check_installed, json_rule, json_schema

#: Text without the opening tag, which would begin a call without its token.
_TEXT = rf"/(.|\n)*/ & ~/(.|\n)*{OPEN}(.|\n)*/"
_ANY = {"type": "object"}
#: Maximum processor time for the schemas of the tools of one request.
CHECK_SECONDS = 5.0
#: Keywords that restrict strings, and combinations of schemas, that XML does not follow.
_NOT_IN_XML = ("pattern", "format", "minLength", "maxLength", "allOf", "not", "if")
#: Keywords at the root of a schema that XML follows.
_XML_ROOT = frozenset((
    "type", "properties", "required", "additionalProperties", "$defs", "definitions", "title", "description", "$schema",
    "$id", "$comment", "examples", "default", "strict",
))  # fmt: skip


def tool_grammar(
    tools: Tools, form: CallFormat, tags: tuple[int | None, int | None], response: ResponseFormat | None = None
) -> str:
    """The grammar of an answer with tools.

    Args:
        tools: The tools of the request.
        form: How the model writes calls.
        tags: Ids of the tokens `<tool_call>` and `</tool_call>`; None for a tag that is no token.
        response: The format of an answer without calls; None: any text.

    Returns:
        The grammar for llguidance's matcher. Arguments follow the schema of their tool, with no other properties than
        those that it names, because small models do not end objects that are open. If llguidance cannot follow the
        schema and the tool is not strict, they are any JSON object.

    Raises:
        SettingsError: The schema of a strict tool is invalid or not supported, or all of them together are too complex.
        MissingExtraError: llguidance is missing.
    """
    check_installed()
    rules, most = list[str](), seconds_spent() + CHECK_SECONDS
    for i, name in enumerate(tools.names):
        write = _json_call if form == "json" else _xml_call
        rules += write(f"t{i}", name, tools.schema(name), name in tools.strict)
        if seconds_spent() > most:
            raise SettingsError(
                f"compiling the schemas of the tools takes more than {CHECK_SECONDS:g} s; send simpler or fewer tools"
            )
    bodies = " | ".join(f"t{i}" for i in range(len(tools.names)))
    several = tools.parallel
    calls = f"call ({_quoted(chr(10))} call){{0,{MAX_CALLS - 1}}}" if several else "call"
    if tools.required:
        start = calls
    elif response is not None:
        start = f"answer | {calls}"
        rules.append(f"answer: {response.rule}")
    else:
        start = f"TEXT (call TEXT){{0,{MAX_CALLS}}}" if several else "TEXT call?"
        rules.append(f"TEXT: {_TEXT}")

    def with_tags(opening: str, closing: str) -> str:
        call = f"call: {opening} ({bodies}) {closing}"
        return LLMatcher.grammar_from_lark("\n".join([f"start: {start}", call, *rules]) + "\n")

    from llguidance import LLMatcher

    texts = [_quoted(tag) for tag in (OPEN, CLOSE)]
    if error := grammar_error(with_tags(*texts)):
        reason = error if error == TOO_COMPLEX else f"invalid or not supported: {' '.join(error.split())[:300]}"
        raise SettingsError(f"the schemas of the tools are together {reason}")
    opening, closing = (text if token is None else f"<[{token}]>" for text, token in zip(texts, tags, strict=True))
    return with_tags(opening, closing)


def _quoted(text: str) -> str:
    """A text as a string of Lark."""
    return json.dumps(text, ensure_ascii=False)


def _json_call(rule: str, name: str, schema: Mapping[str, Any], strict: bool) -> Iterator[str]:
    yield " ".join([f"{rule}:", _quoted(f'\n{{"name": "{name}", "arguments": '), f"{rule}a", _quoted("}\n")])
    yield f"{rule}a: {json_rule(_supported(name, {**schema, **_ANY}, strict))}"


def _xml_call(rule: str, name: str, schema: Mapping[str, Any], strict: bool) -> Iterator[str]:
    """Parameters in the order of the schema, the optional ones only if the model writes them."""
    properties, required = schema.get("properties") or {}, schema.get("required")
    required = required if isinstance(required, list) else []
    if strict and (other := sorted(set(schema) - _XML_ROOT)):
        raise _not_strict(name, str(other[0]))
    if strict and (unnamed := [key for key in required if key not in properties]):
        raise _not_strict(name, f"the required parameter {unnamed[0]!r}, which properties does not name,")
    parameters = []
    for i, (key, value) in enumerate(properties.items()):
        if not key or ">" in key or "\n" in key:
            if strict or key in required:
                raise SettingsError(
                    f"the tool {name!r} has the parameter {key!r}, which this model cannot write, because it writes "
                    "<parameter=name>; give the parameter another name, or use tool_choice 'auto' without strict"
                )
            continue
        own = f"{rule}p{i}"
        parameters.append(own if key in required else f"{own}?")
        yield from _xml_parameter(own, name, key, value if isinstance(value, Mapping) else {}, schema, strict)
    if strict:  # what XML does not need to follow, such as a reference, must be valid, too
        _supported(name, {**schema, **_ANY}, strict)
    yield " ".join([f"{rule}:", _quoted(f"\n<function={name}>\n"), *parameters, _quoted("</function>\n")])


def _xml_parameter(
    rule: str, name: str, key: str, value: Mapping[str, Any], schema: Mapping[str, Any], strict: bool
) -> Iterator[str]:
    """A string as it is, up to the closing tag; everything else as JSON. See `tool_calls.read_call`."""
    begin, end, kinds = _quoted(f"<parameter={key}>\n"), _quoted("\n</parameter>\n"), kinds_of(value, schema)
    if kinds and "string" not in kinds:
        definitions = {part: schema[part] for part in ("$defs", "definitions") if part in schema}
        yield f"{rule}: {begin} {rule}v {end}"
        yield f"{rule}v: {json_rule(_supported(name, {**definitions, **value}, strict, fallback={}))}"
        return
    parts = [*alternatives(value, schema)]
    listed = [listed_values(one) for one in parts if "string" in stated_kinds(one)]
    strings = [one for values in listed for one in values or () if isinstance(one, str)]
    if strict and (found := next((word for one in parts for word in _NOT_IN_XML if word in one), None)):
        raise _not_strict(name, f"{found} for the parameter {key!r}")
    tagged = next((one for one in strings if "</parameter>" in one or CLOSE in one), None)
    if strict and tagged is not None:  # the call could not be read
        raise _not_strict(name, f"the value {tagged!r} of the parameter {key!r}")
    if listed and None not in listed and strings and tagged is None:
        allowed = dict.fromkeys([*strings, *(["null"] if "null" in kinds else [])])
        yield f"{rule}: {begin} ({' | '.join(map(_quoted, allowed))}) {end}"
        return
    yield f"{rule}: {begin} {rule}v"
    yield rf"{rule}v[lazy]: /(.|\n)*\n<\/parameter>\n/"


def _supported(name: str, schema: Mapping[str, Any], strict: bool, fallback: Mapping[str, Any] = _ANY) -> Any:
    """The schema as llguidance takes it; `fallback` if it cannot follow the schema of a tool that is not strict."""
    try:
        closed = '"allOf"' not in json.dumps(schema)  # its parts may be anywhere, and may name further properties
        return json.loads(str(json_schema(f"the schema of the tool {name!r}", schema, closed=closed).content))
    except SettingsError:
        if strict:
            raise
        return fallback


def _not_strict(name: str, what: str) -> SettingsError:
    return SettingsError(
        f"the tool {name!r} is strict, but this model writes calls in XML, for which {what} is not supported; leave "
        "out strict, or simplify the schema"
    )
