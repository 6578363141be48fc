"""Input items of OpenAI's Responses API as messages of the chat API, and messages as items."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlroute.inputs.messages import IMAGE, VIDEO, nested_fields
from vlroute.serving.errors import APIError, encodable

#: The fields of each type of input item; those in the second tuple have no effect.
_ITEMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "message": (("role", "content"), ("phase",)),
    "reasoning": (("summary", "content"), ("encrypted_content",)),
    "function_call": (("call_id", "name", "arguments"), ("parsed_arguments",)),
    "function_call_output": (("call_id", "output"), ("name",)),
}
#: Fields of parts that have no effect.
_PART = ("annotations", "logprobs", "parsed", "prompt_cache_breakpoint")
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
#: First bytes of files that browsers show, with their types.
_MIMES = {
    b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp",
    b"BM": "image/bmp", b"\0\0\0": "video/mp4",
}  # fmt: skip


def messages_of(given: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert the input of a response to messages in the form of the chat API.

    Reasoning, a message of the assistant and function calls in a row are one message.

    Args:
        given: The field `input`.

    Returns:
        The messages, with pictures and videos in the form of transformers.

    Raises:
        APIError: 400 for an item or field that is unknown or not supported.
        MessageError: A part has a field that is unknown.
    """
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    answer: dict[str, Any] = {}  # the fields so far of a message of the assistant
    for index, item in enumerate(given):
        where = f"input.{index}"
        kind, fields = _item(where, item)
        said = kind == "message" and fields.get("role") == "assistant"
        begins = kind == "reasoning" or (said and ("content" in answer or "tool_calls" in answer))
        if answer and (begins or not (said or kind == "function_call")):
            messages.append({"role": "assistant", "content": "", **answer})
            answer = {}
        if kind == "reasoning":
            answer["reasoning_content"] = _reasoning(where, fields)
        elif kind == "function_call":
            function = {"name": fields.get("name"), "arguments": fields.get("arguments", "")}
            call = {"id": fields.get("call_id", ""), "type": "function", "function": function}
            answer["tool_calls"] = [*answer.get("tool_calls", ()), call]
        elif said:
            answer["content"] = _content(f"{where}.content", fields.get("content"))
        elif kind == "message":
            content = _content(f"{where}.content", fields.get("content"))
            messages.append({"role": fields.get("role"), "content": content})
        else:
            output = _content(f"{where}.output", fields.get("output"))
            messages.append({"role": "tool", "tool_call_id": fields.get("call_id", ""), "content": output})
    if answer:
        messages.append({"role": "assistant", "content": "", **answer})
    return messages


def _item(where: str, item: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Type and fields of an input item. APIError for one that is not supported."""
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if kind == "item_reference":
        raise APIError(
            400, f"{where} has neither a type nor a role", "bad_message", where,
        )  # fmt: skip
    if not isinstance(kind, str) or kind not in _ITEMS:
        raise APIError(
            400, f"{where} has the type {encodable(str(kind)[:40])!r}, which is not supported; expected "
            f"{', '.join(_ITEMS)}", "unsupported_parameter", f"{where}.type",
        )  # fmt: skip
    known, harmless = _ITEMS[kind]
    fields = {name: value for name, value in item.items() if value is not None and name in known}
    for name, value in item.items():
        if value is not None and name not in (*known, *harmless, "type", "id", "status"):
            raise unknown_field(where, name)
    if kind == "reasoning" and item.get("encrypted_content") and not fields.get("content"):
        raise APIError(
            400, f"{where} is encrypted reasoning of another server; leave the item out", "unsupported_parameter",
            f"{where}.encrypted_content",
        )  # fmt: skip
    return kind, fields


def _reasoning(where: str, fields: Mapping[str, Any]) -> str:
    """The text of a reasoning item."""
    name = "content" if fields.get("content") else "summary"
    parts = _content(f"{where}.{name}", fields.get(name) or [])
    if isinstance(parts, str):
        return parts
    if any(part["type"] != "text" for part in parts):
        raise APIError(400, f"{where}.{name} must contain only text", "bad_message", f"{where}.{name}")
    return "\n\n".join(part["text"] for part in parts)


def _content(where: str, content: Any) -> str | list[dict[str, Any]]:
    """The content of a message, or the output of a function, in the form of the chat API and transformers."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise APIError(400, f"{where} must be a string or a list of parts", "bad_message", where)
    return [_part(f"{where}.{index}", part) for index, part in enumerate(content)]


def _part(where: str, part: Any) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise APIError(400, f"{where} must be an object with a type", "bad_message", where)
    kind = part.get("type")
    given = {name: value for name, value in part.items() if value is not None and name not in _PART}
    if kind in _TEXTS or kind == "refusal":
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(given.get(key), str):
            raise APIError(400, f"{where}.{key} must be a string", "bad_message", f"{where}.{key}")
        if unknown := sorted(given.keys() - {"type", key}):
            raise unknown_field(where, unknown[0])
        return {"type": "text", "text": given[key]}
    if kind == "input_image" and "file_id" in given:
        raise APIError(
            400, f"{where}.file_id is not supported; send the picture as a data URI in image_url",
            "unsupported_parameter", f"{where}.file_id",
        )  # fmt: skip
    if kind in ("input_image", "image_url"):
        fields = nested_fields(given, "image_url", IMAGE)
        return {"type": "image", "image": _url(where, fields, "image_url"), **fields}
    if kind == "video_url":
        fields = nested_fields(given, "video_url", VIDEO)
        return {"type": "video", "video": _url(where, fields, "video_url"), **fields}
    raise APIError(
        400, f"{where} has the type {encodable(str(kind)[:40])!r}, which is not supported; expected input_text, "
        "input_image, output_text or video_url", "unsupported_parameter", f"{where}.type",
    )  # fmt: skip


def _url(where: str, fields: dict[str, Any], key: str) -> str:
    """Remove and return the data URI or address of a picture or video."""
    url = fields.pop(key, None)
    if not isinstance(url, str):
        raise APIError(400, f"{where}.{key} must be a data URI", "bad_message", f"{where}.{key}")
    return url


#: Bytes of a picture or video that are encoded in one piece; a multiple of 3, so that the pieces can be joined.
_PIECE = 3 * 2**15


class StoredMedia:
    """Pictures and videos of stored items, which are written piece by piece: JSON of all at once stops other threads.

    In items, a random text takes the place of the data of each.
    """

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)
        self._media: list[bytes] = []

    def address(self, data: bytes) -> str:
        """What an item contains in place of the data URI of a picture or video."""
        self._media.append(data)
        mime = next((mime for start, mime in _MIMES.items() if data.startswith(start)), "application/octet-stream")
        return f"data:{mime};base64,{self._mark}{len(self._media) - 1}."

    def json(self, value: Any) -> Iterator[bytes]:
        """A value with items as pieces of JSON, with data URIs.

        Args:
            value: The value.

        Yields:
            The next piece.
        """
        parts = re.split(rf"{self._mark}(\d+)\.", json.dumps(value))
        for at, part in enumerate(parts):
            if at % 2 == 0:
                yield part.encode()
                continue
            data = self._media[int(part)]
            for begin in range(0, len(data), _PIECE):
                yield base64.b64encode(data[begin : begin + _PIECE])


def items_of(messages: Sequence[Mapping[str, Any]], id: str, media: StoredMedia) -> list[dict[str, Any]]:
    """The inverse of `messages_of`.

    Args:
        messages: Messages with media as bytes.
        id: Beginning of the ids of the items.
        media: Gets the media.

    Returns:
        The items.
    """
    items: list[dict[str, Any]] = []
    for message in messages:
        role, parts, given = message["role"], message["content"], []
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}] if parts else []
        if role == "assistant":
            if message.get("reasoning_content"):
                said = {"type": "reasoning_text", "text": message["reasoning_content"]}
                given.append({"type": "reasoning", "summary": [], "content": [said]})
            if parts:
                texts = [{"type": "output_text", "text": part["text"], "annotations": []} for part in parts]
                given.append({"type": "message", "role": role, "content": texts})
            for call in message.get("tool_calls", ()):
                function = {"call_id": call["id"], **call["function"]}
                given.append({"type": "function_call", **function})
        elif role == "tool":
            output = (
                message["content"]
                if isinstance(message["content"], str)
                else [_input_part(one, media) for one in parts]
            )
            given.append({"type": "function_call_output", "call_id": message["tool_call_id"], "output": output})
        else:
            given.append({"type": "message", "role": role, "content": [_input_part(one, media) for one in parts]})
        for item in given:
            items.append({"id": f"item_{id}_{len(items)}", "status": "completed", **item})
    return items


def _input_part(part: Mapping[str, Any], media: StoredMedia) -> dict[str, Any]:
    """The inverse of `_part`."""
    kind = part["type"]
    if kind == "text":
        return {"type": "input_text", "text": part["text"]}
    url = media.address(part[kind])
    options = {name: value for name, value in part.items() if name not in ("type", kind)}
    if kind == "image":
        return {"type": "input_image", "image_url": url, "detail": "auto", **options}
    return {"type": "video_url", "video_url": url, **options}


def unknown_field(where: str, name: str) -> APIError:
    """The error for a field that an object of a request must not have."""
    field = f"{where}.{encodable(str(name)[:80])}"
    return APIError(400, f"{where} has an unknown field: {field}", "unknown_parameter", field)
