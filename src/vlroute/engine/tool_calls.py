"""Finds tool calls in the text of an answer. Does not import torch."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlroute.engine.families.family import CallFormat
from vlroute.engine.protocol import Piece
from vlroute.engine.text import Trimmed, begun
from vlroute.inputs.tools import NAME, Tools
from vlroute.types import Channel, ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
#: The arguments in a JSON call, as they are written.
_ARGUMENTS = re.compile(r'"arguments"\s*:\s*(\{.*\})\s*\}', re.DOTALL)


class CallReader:
    """Separates tool calls from the rest of an answer that arrives in pieces.

    A call is passed on when it is complete. Text between the tags that is no call remains text of the answer, so that
    nothing is lost; so does a call that was cut off. At the end of a complete answer, the closing tag may be missing.
    """

    def __init__(self, tools: Tools, form: CallFormat) -> None:
        """Begin an answer.

        Args:
            tools: The tools that were offered.
            form: How the model writes calls.
        """
        self.tools, self.form = tools, form
        self.calls: list[ToolCall] = []
        self._held, self._inside = "", False  # text that may belong to a tag or a call
        self._trimmed, self._texts = Trimmed(), list[str]()

    @property
    def text(self) -> str:
        """The text of the answer so far, without calls."""
        return "".join(self._texts)

    @property
    def ended(self) -> bool:
        """Whether the answer ends here, because it may contain only one call."""
        return bool(self.calls) and not self.tools.parallel

    def read(self, pieces: Iterable[tuple[Channel, Piece]]) -> Iterator[tuple[Channel, Piece]]:
        """Pass on pieces of other channels, and those of the answer with its calls separated."""
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
        if inside and complete and (call := read_call(rest, self.tools, self.form)):
            yield self._called(call)
        elif rest or inside:
            yield from self._said(OPEN * inside + rest)

    def _push(self, piece: str) -> Iterator[tuple[Channel, Piece]]:
        self._held += piece
        while self._held and not self.ended:
            tag = CLOSE if self._inside else OPEN
            at = self._held.find(tag)
            if at < 0:
                if not self._inside:
                    safe = len(self._held) - begun(self._held, tag)
                    text, self._held = self._held[:safe], self._held[safe:]
                    yield from self._said(text)
                return
            before, self._held = self._held[:at], self._held[at + len(tag) :]
            self._inside = not self._inside
            if self._inside:
                yield from self._said(before)
            elif call := read_call(before, self.tools, self.form):
                yield self._called(call)
            else:
                yield from self._said(OPEN + before + CLOSE)

    def _said(self, text: str) -> Iterator[tuple[Channel, Piece]]:
        if piece := self._trimmed.push(text):
            self._texts.append(piece)
            yield "answer", piece

    def _called(self, call: ToolCall) -> tuple[Channel, Piece]:
        self.calls.append(call)
        return "call", call


def new_call_id() -> str:
    """A random id in the form of OpenAI's."""
    return f"call_{secrets.token_hex(12)}"


def read_call(body: str, tools: Tools, form: CallFormat) -> ToolCall | None:
    """Read the text between the tags of a call.

    Args:
        body: The text.
        tools: The tools that were offered. The types of their parameters decide how values in tags are read.
        form: How the model writes calls.

    Returns:
        The call, with a new id; None if the text is no call.
    """
    return _json_call(body) if form == "json" else _xml_call(body, tools)


def _json_call(body: str) -> ToolCall | None:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(name := call.get("name"), str) or not NAME.fullmatch(name):
        return None
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):  # JSON in a string
        return call_of(new_call_id(), name, arguments)
    if not isinstance(arguments, dict):
        return None
    # the arguments as they are written, so that the next prompt repeats them exactly
    written = _ARGUMENTS.search(body)
    text = written[1] if written else ""
    try:
        same = json.loads(text) == arguments
    except (ValueError, RecursionError):
        same = False
    return ToolCall(new_call_id(), name, arguments, text if same else json.dumps(arguments, ensure_ascii=False))


def call_of(id: str, name: str, text: str) -> ToolCall | None:
    """A call with its arguments as JSON text; None if the text is no JSON object."""
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return ToolCall(id, name, arguments, text or "{}") if isinstance(arguments, dict) else None


def _xml_call(body: str, tools: Tools) -> ToolCall | None:
    found = _FUNCTION.search(body)
    if not found or not NAME.fullmatch(name := found[1].strip()):
        return None
    schemas = tools.parameters(name)
    arguments = {key: _value(text, schemas.get(key)) for key, text in _PARAMETER.findall(found[2])}
    return ToolCall(new_call_id(), name, arguments, json.dumps(arguments, ensure_ascii=False))


def _value(text: str, schema: Any) -> Any:
    """The value of a parameter in tags: JSON, unless its schema says that it is a string."""
    kinds = schema.get("type", "string") if isinstance(schema, Mapping) else "string"
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not ("null" in kinds and text == "null"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False}.get(text.strip(), text)
