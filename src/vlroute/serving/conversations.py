"""From the messages of a request to a checked conversation: addresses fetched, limits kept, pictures decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlroute.errors import LimitError
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
                kind, address = _address(part)
                if address is not None:
                    left[kind] -= 1
                    if left[kind] < 0:
                        raise LimitError(f"more {kind}s in one request than the server takes; send fewer")
                    part = {"type": kind, kind: await fetcher.fetch(address, most[kind])}
                parts.append(part)
            message = {**message, "content": parts}
        found.append(message)
    return found


def is_quick(messages: Messages) -> bool:
    """Whether it is plain text, and short: nothing to decode, and decided at once."""
    contents = [message.get("content") for message in messages]
    texts = [content for content in contents if isinstance(content, str)]
    return len(texts) == len(contents) and sum(map(len, texts)) <= QUICK_CHARACTERS


def prepared(messages: Messages, settings: ServerSettings) -> Callable[[], Conversation]:
    """What makes the conversation, for the thread that answers: decoding pictures takes a while. InputError."""

    def prepare() -> Conversation:
        conversation = parse(list(messages), limits=settings.limits)
        length = sum(len(turn.text) for turn in conversation.messages)
        if length > settings.max_prompt:
            raise LimitError(f"{length} characters of text, over the limit of {settings.max_prompt}; send fewer turns")
        return conversation

    return prepare


def _address(part: Any) -> tuple[str, str | None]:
    """("image" or "video", address) of a part that names one on the network; else ("", None)."""
    if not isinstance(part, Mapping) or part.get("type") not in ("image_url", "input_image", "video_url"):
        return "", None
    kind = "video" if part["type"] == "video_url" else "image"
    url = part.get(f"{kind}_url")
    if isinstance(url, Mapping):
        url = url.get("url")
    if not isinstance(url, str) or url[:5].lower() == "data:":
        return "", None
    return kind, url
