"""Fields of messages and of their parts: each is obeyed, accepted without effect, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vlroute.errors import MessageError

BUDGET = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "detail")
IMAGE = ("min_pixels", "max_pixels", "resized_height", "resized_width", "detail", "channel_axis")
VIDEO = (
    "fps", "nframes", "num_frames", "min_frames", "max_frames", "video_start", "video_end", "sample_fps",
    "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "channel_axis",
)  # fmt: skip
#: Cache hints for other servers.
_WITHOUT_EFFECT = ("type", "cache_control")
_MESSAGE = ("role", "content", "name", "id", "images")
#: Fields that servers add to answers and that clients send back.
_ANSWER = (
    "refusal", "reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "annotations",
    "parsed", "provider_specific_fields", "status",
)  # fmt: skip
_TEXTS = ("name", "refusal", "reasoning", "reasoning_content", "thinking")
_TOOLS = ("tool_calls", "tool_call_id", "function_call")


def known_fields(given: Mapping[Any, Any], where: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields that are not None. MessageError for an unknown field."""
    fields = {}
    for name, value in given.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name not in known:
            raise MessageError(f"{where} has the unknown field {str(name)[:40]!r}; known: {', '.join(known)}")
        fields[name] = value
    return fields


def message_fields(message: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a message that have a value; empty lists, dicts and strings (except the content) count as absent.

    MessageError for an unknown field, and for a field that vlroute cannot obey.
    """
    filled = {name: value for name, value in message.items() if name == "content" or not _is_empty(value)}
    for name in _TOOLS:
        if name in filled:
            raise MessageError(f"{name} is not supported; leave tool calls and results out")
    role = str(filled.get("role"))[:40]
    known = (*_MESSAGE, *_ANSWER) if role == "assistant" else _MESSAGE
    fields = known_fields(filled, f"a message of the role {role!r}", known)
    for name in _TEXTS:
        if not isinstance(fields.get(name, ""), str):
            raise MessageError(f"{name} must be a str, got a {type(fields[name]).__name__}")
    return fields


def nested_fields(part: Mapping[Any, Any], key: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields of a part in OpenAI's form, `{"type": key, key: {"url": …}}`. Options may be in either object.

    MessageError for an unknown field, and for a field with different values in both objects.
    """
    where = f"a part of type {part['type']!r}"
    fields = known_fields(part, where, (key, *known))
    if isinstance(fields.get(key), Mapping):
        inside = known_fields(fields[key], f"{key} of {where}", ("url", *known))
        fields[key] = inside.pop("url", None)
        for name, value in inside.items():
            if name in fields and not np.array_equal(fields[name], value):
                raise MessageError(f"{where} contains {name} twice, with different values; send it once")
            fields[name] = value
    return fields


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)
