"""Fields of messages and of their parts: each one is obeyed, changes nothing, or is refused by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlroute.errors import MessageError

BUDGET = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "detail")
IMAGE = ("min_pixels", "max_pixels", "resized_height", "resized_width", "detail", "channel_axis")
VIDEO = (
    "fps", "nframes", "num_frames", "min_frames", "max_frames", "video_start", "video_end", "sample_fps",
    "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "channel_axis",
)  # fmt: skip
#: Hints to the caches of other servers.
_WITHOUT_EFFECT = ("type", "cache_control")
_MESSAGE = ("role", "content", "name", "id", "images")
#: What servers add to an answer and clients send back with it.
_ANSWER = (
    "refusal", "reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "annotations",
    "parsed", "provider_specific_fields", "status",
)  # fmt: skip
_TEXTS = ("name", "refusal", "reasoning", "reasoning_content", "thinking")
_TOOLS = ("tool_calls", "tool_call_id", "function_call")


def known_fields(given: Mapping[Any, Any], where: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields that hold something. None is absent. MessageError for a field that is not known."""
    fields = {}
    for name, value in given.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name not in known:
            raise MessageError(f"{where} has the unknown field {str(name)[:40]!r}; known: {', '.join(known)}")
        fields[name] = value
    return fields


def message_fields(message: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a message that hold something; besides its content empty lists, dicts and texts hold nothing.

    MessageError for a field that is not known, and for one that vlroute cannot obey.
    """
    filled = {name: value for name, value in message.items() if name == "content" or not _is_empty(value)}
    for name in _TOOLS:
        if name in filled:
            raise MessageError(f"{name} is not supported: vlroute calls no tools; leave tool calls and results out")
    role = str(filled.get("role"))[:40]
    known = (*_MESSAGE, *_ANSWER) if role == "assistant" else _MESSAGE
    fields = known_fields(filled, f"a message of the role {role!r}", known)
    for name in _TEXTS:
        if not isinstance(fields.get(name, ""), str):
            raise MessageError(f"{name} must be a str, got a {type(fields[name]).__name__}")
    return fields


def nested_fields(part: Mapping[Any, Any], key: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields of a part in OpenAI's form, `{"type": key, key: {"url": …}}`: options may stand in it or beside it.

    MessageError for a field that is not known, or that stands in both places with different values.
    """
    where = f"a part of type {part['type']!r}"
    fields = known_fields(part, where, (key, *known))
    if isinstance(fields.get(key), Mapping):
        inside = known_fields(fields[key], f"{key} of {where}", ("url", *known))
        fields[key] = inside.pop("url", None)
        for name, value in inside.items():
            if name in fields and fields[name] != value:
                raise MessageError(f"{where} holds {name} twice, with different values; send it once")
            fields[name] = value
    return fields


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)
