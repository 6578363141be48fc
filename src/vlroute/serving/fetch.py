"""Pictures and videos by address, from hosts that the operator named and from no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.inputs.encoded import is_data_uri
from vlroute.inputs.media import FrameSampling
from vlroute.inputs.messages import IMAGE, VIDEO, Conversation, nested_fields, parse
from vlroute.serving.settings import ServerSettings

CHUNK = 2**16
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}  # so that bytes counted are bytes kept


class Fetcher:
    """Fetches http(s) addresses of allowed hosts; follows no redirect, sends no credentials, uses no proxy.

    An address is parsed once, by the library that connects: two parsers that disagree on the host would be a way in.
    """

    def __init__(self, allowed: Sequence[str], seconds: float) -> None:
        self.allowed, self.seconds = frozenset(host.lower() for host in allowed), seconds
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=seconds)

    async def fetch(self, address: str, most: int) -> bytes:
        """At most `most` bytes. UnreadableMediaError or LimitError for all that is not plainly the file asked for."""
        url = self._checked(address)
        try:
            return await asyncio.wait_for(self._read(url, most), self.seconds)
        except (TimeoutError, httpx.HTTPError) as error:
            raise UnreadableMediaError(
                f"the picture or video at {url.host} could not be fetched ({type(error).__name__})"
            ) from error

    async def close(self) -> None:
        await self._client.aclose()

    def _checked(self, address: str) -> httpx.URL:
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: half of a surrogate pair
            raise UnreadableMediaError("the address of a picture or video is no URL") from error
        if url.scheme not in ("http", "https") or url.userinfo:
            raise UnreadableMediaError("an address must be http(s) without user and password, or a data URI")
        host = url.host.lower() if url.port is None else f"{url.host.lower()}:{url.port}"
        if host not in self.allowed:
            raise UnreadableMediaError(
                "this server fetches nothing from that host: send a data URI (data:image/png;base64,...), or ask its "
                "operator to allow the host"
            )
        return url

    async def _read(self, url: httpx.URL, most: int) -> bytes:
        async with self._client.stream("GET", url, headers=_HEADERS) as reply:
            if reply.status_code != 200:
                raise UnreadableMediaError(
                    f"{url.host} answered with status {reply.status_code} instead of a picture or video; redirects are "
                    "not followed"
                )
            data = bytearray()
            async for chunk in reply.aiter_raw(CHUNK):
                data += chunk
                if len(data) > most:
                    raise LimitError(f"the file at {url.host} is over the limit of {most} bytes")
            return bytes(data)


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
