"""From the messages of a request to a checked conversation: addresses fetched, limits kept, pictures decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlroute.encoded import is_data_uri
from vlroute.errors import LimitError
from vlroute.media import FrameSampling
from vlroute.message_fields import IMAGE, VIDEO, nested_fields
from vlroute.messages import Conversation, parse
from vlroute.serving.fetch import Fetcher
from vlroute.serving.settings import ServerSettings

Messages = Sequence[Mapping[str, Any]]
QUICK_CHARACTERS = 4000


async def fetched(messages: Messages, fetcher: Fetcher, settings: ServerSettings) -> Messages:
    """`messages` with each http(s) address exchanged for what lies there. InputError."""
    limits, left = settings.limits, {"image": settings.limits.max_images, "video": settings.limits.max_videos}
    most = {"image": limits.max_bytes, "video": limits.max_video_bytes}
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                kind, key, address = _address(part)
                if address is not None:
                    left[kind] -= 1
                    if left[kind] < 0:
                        raise LimitError(f"more {kind}s in one request than the server takes; send fewer")
                    part = _with_data(part, kind, key, await fetcher.fetch(address, most[kind]))
                parts.append(part)
            message = {**message, "content": parts}
        found.append(message)
    return found


def is_quick(messages: Messages) -> bool:
    """Whether it is plain text, and short: nothing to decode, and decided at once."""
    contents = [message.get("content") for message in messages if not message.get("images")]
    texts = [content for content in contents if isinstance(content, str)]
    return len(texts) == len(messages) and sum(map(len, texts)) <= QUICK_CHARACTERS


def prepared(
    messages: Messages, settings: ServerSettings, sampling: Callable[[], FrameSampling]
) -> Callable[[], Conversation]:
    """What makes the conversation, for the thread that answers: decoding pictures takes a while. InputError.

    `sampling`: see `parse`.
    """

    def prepare() -> Conversation:
        conversation = parse(list(messages), limits=settings.limits, sampling=sampling)
        length = sum(len(turn.text) for turn in conversation.messages)
        if length > settings.max_prompt:
            raise LimitError(f"{length} characters of text, over the limit of {settings.max_prompt}; send fewer turns")
        return conversation

    return prepare


def _address(part: Any) -> tuple[str, str, str | None]:
    """("image" or "video", field, address) of a part with a network address; else ("", "", None)."""
    if not isinstance(part, Mapping):
        return "", "", None
    match part.get("type"):
        case "image_url" | "input_image":
            kind, keys = "image", ["image_url"]
        case "video_url":
            kind, keys = "video", ["video_url"]
        case "image" | "video" as kind:
            keys = [kind, "url"]
        case _:
            return "", "", None
    for key in keys:
        url = part.get(key)
        if key.endswith("_url") and isinstance(url, Mapping):
            url = url.get("url")
        if isinstance(url, str) and not is_data_uri(url):
            return kind, key, url
    return "", "", None


def _with_data(part: Mapping[str, Any], kind: str, key: str, data: bytes) -> dict[str, Any]:
    """`part` in the form of transformers, with the downloaded bytes instead of the address; options are kept."""
    options = {name: value for name, value in part.items() if name not in ("type", key)}
    if isinstance(part[key], Mapping):
        inside = nested_fields(part, key, IMAGE if kind == "image" else VIDEO)
        options |= {name: value for name, value in inside.items() if name != key}
    return {**options, "type": kind, kind: data}
