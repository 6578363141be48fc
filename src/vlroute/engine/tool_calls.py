"""Finds tool calls in the text of an answer. Does not import torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlroute.engine.families.family import CallFormat
from vlroute.engine.protocol import Piece
from vlroute.engine.text import Trimmed, begun
from vlroute.inputs.tools import NAME, Tools, new_call_id, read_object
from vlroute.types import Channel, Mode, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _PARAMETER = re.compile(r"\s*<function=([^>\n]+)>"), re.compile(r"\s*<parameter=([^>\n]+)>\n?")
_END = re.compile(r"\s*(?:</function>\s*)?")
#: Quotes of JSON strings, and escaped characters.
_QUOTES = re.compile(r'\\.|"', re.DOTALL)
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*')
#: Maximum number of parts of a JSON schema that are searched for types.
MAX_SCHEMAS = 100


class CallReader:
    """Separates tool calls from the rest of an answer that arrives in pieces.

    A call is passed on when it is complete. Text between the tags that is not a call remains part of the answer's text,
    so that nothing is lost; so does a call that was cut off. At the end of a complete answer, the closing tag may be
    missing.
    """

    def __init__(self, tools: Tools, form: CallFormat, mode: Mode, continues: bool = False) -> None:
        """Begin an answer.

        Args:
            tools: The tools that were offered.
            form: How the model writes calls.
            mode: The mode that answers; ids of calls contain it.
            continues: Whether the answer continues a given beginning.
        """
        self.tools, self.form, self.mode = tools, form, mode
        self.calls: list[ToolCall] = []
        self._held, self._inside = "", False  # text that may belong to a tag or a call
        self._scanned, self._quoted = 0, False  # scanned characters of a call; whether a JSON string is open there
        self._trimmed, self._texts = Trimmed(continues), list[str]()

    @property
    def text(self) -> str:
        """The text of the answer so far, without calls."""
        return "".join(self._texts)

    @property
    def ended(self) -> bool:
        """Whether the answer ends here, because it may contain only one call."""
        return bool(self.calls) and not self.tools.parallel

    def read(self, pieces: Iterable[tuple[Channel, Piece]]) -> Iterator[tuple[Channel, Piece]]:
        """Yield the pieces, with tool calls separated from the text of the answer."""
        for channel, piece in pieces:
            if channel == "answer" and isinstance(piece, str):
                yield from self._push(piece)
            else:
                yield channel, piece

    def flush(self, complete: bool) -> Iterator[tuple[Channel, Piece]]:
        """The rest, when no more text follows. `complete`: whether the answer ended by itself."""
        rest, inside, self._held, self._inside = self._held, self._inside, "", False
        if self.ended:
            return
        if inside and complete and (call := self._read(rest)):
            yield self._called(call)
        elif rest or inside:
            yield from self._said(OPEN * inside + rest)

    def _push(self, piece: str) -> Iterator[tuple[Channel, Piece]]:
        searched = len(self._held)  # without a whole tag
        self._held += piece
        while self._held and not self.ended:
            tag = CLOSE if self._inside else OPEN
            at = self._held.find(tag, max(0, searched - len(tag)))
            searched = 0
            while at >= 0 and self._inside and self._in_string(at):
                at = self._held.find(tag, at + 1)
            if at < 0:
                if not self._inside:
                    safe = len(self._held) - begun(self._held, tag)
                    text, self._held = self._held[:safe], self._held[safe:]
                    yield from self._said(text)
                return
            before, self._held = self._held[:at], self._held[at + len(tag) :]
            self._inside = not self._inside
            self._scanned, self._quoted = 0, False
            if self._inside:
                yield from self._said(before)
            elif call := self._read(before):
                yield self._called(call)
            else:
                yield from self._said(OPEN + before + CLOSE)

    def _in_string(self, end: int) -> bool:
        """Whether the tag at `end` is part of a string of JSON."""
        if self.form != "json":
            return False
        for mark in _QUOTES.finditer(self._held, self._scanned, end):
            self._quoted ^= mark[0] == '"'
        self._scanned = end
        return self._quoted

    def _read(self, body: str) -> ToolCall | None:
        return read_call(body, self.tools, self.form, new_call_id(self.mode))

    def _said(self, text: str) -> Iterator[tuple[Channel, Piece]]:
        if piece := self._trimmed.push(text):
            self._texts.append(piece)
            yield "answer", piece

    def _called(self, call: ToolCall) -> tuple[Channel, Piece]:
        self.calls.append(call)
        return "call", call


def read_call(body: str, tools: Tools, form: CallFormat, id: str) -> ToolCall | None:
    """Read the text between the tags of a call.

    Args:
        body: The text.
        tools: The tools that were offered. The types of their parameters decide how values in tags are read.
        form: How the model writes calls.
        id: The id of the call.

    Returns:
        The call; None if the text is no call.
    """
    return _json_call(body, id) if form == "json" else _xml_call(body, tools, id)


def _json_call(body: str, id: str) -> ToolCall | None:
    call = read_object(body)
    if call is None or not call.keys() <= {"name", "arguments"} or not isinstance(name := call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # JSON in a string
        return call_of(id, name, arguments)
    if not isinstance(arguments, dict):
        return None
    # the arguments as they are written, so that the next prompt repeats them exactly
    text = json.dumps(arguments, ensure_ascii=False)
    if begin := _ARGUMENTS.search(body):
        found, end = _DECODER.raw_decode(body, begin.end())
        text = body[begin.end() : end] if found == arguments else text
    return call_of(id, name, text)


_DECODER = json.JSONDecoder()


def call_of(id: str, name: str, text: str) -> ToolCall | None:
    """A call with its arguments as JSON text; None if the name or the text is invalid."""
    arguments = read_object(text or "{}")
    return None if arguments is None or not NAME.fullmatch(name) else ToolCall(id, name, arguments, text or "{}")


def _xml_call(body: str, tools: Tools, id: str) -> ToolCall | None:
    if (head := _FUNCTION.match(body)) is None:
        return None
    schema, arguments, at = tools.schema(name := head[1].strip()), dict[str, Any](), head.end()
    while parameter := _PARAMETER.match(body, at):
        if (end := body.find("</parameter>", parameter.end())) < 0:
            return None
        value = body[parameter.end() : end].removesuffix("\n")
        arguments[parameter[1]] = _value(value, schema, parameter[1])
        at = end + len("</parameter>")
    if not _END.fullmatch(body, at):
        return None
    return call_of(id, name, json.dumps(arguments, ensure_ascii=False))


def _value(text: str, schema: Mapping[str, Any], name: str) -> Any:
    """The value of a parameter in tags: JSON, unless its schema allows a string or says nothing."""
    properties = schema.get("properties")
    kinds = kinds_of(properties.get(name) if isinstance(properties, Mapping) else None, schema)
    if not kinds or ("string" in kinds and not ("null" in kinds and text == "null")):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text.strip(), text)


def kinds_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a JSON schema allows, as far as they are stated.

    Args:
        schema: The schema.
        root: The schema to which references belong.

    Returns:
        Names of types; "other" for listed values that are no strings.
    """
    return {kind for one in alternatives(schema, root) for kind in stated_kinds(one)}


def stated_kinds(schema: Mapping[str, Any]) -> set[str]:
    """The types that `type`, `const` and `enum` of a schema state; "other" for listed values that are no strings."""
    stated = schema.get("type")
    kinds = {kind for kind in (stated if isinstance(stated, list) else [stated]) if isinstance(kind, str)}
    return kinds | {"string" if isinstance(value, str) else "other" for value in listed_values(schema) or ()}


def alternatives(schema: Any, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A JSON schema and the schemas that it combines or refers to.

    Args:
        schema: The schema.
        root: The schema to which references belong.

    Yields:
        At most `MAX_SCHEMAS` schemas.
    """
    todo = [schema]
    for _ in range(MAX_SCHEMAS):
        if not todo:
            break
        one = todo.pop()
        if not isinstance(one, Mapping):
            continue
        yield one
        for name in ("anyOf", "oneOf", "allOf"):
            todo += one[name] if isinstance(one.get(name), list) else ()
        if isinstance(reference := one.get("$ref"), str):
            todo.append(_referenced(reference, root))


def listed_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that `const` or `enum` of a schema lists; None if it has neither."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _referenced(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found
