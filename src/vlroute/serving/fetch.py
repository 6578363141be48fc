"""Media of a request: downloads from allowed hosts, and the conversation that is made from its messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.inputs.encoded import is_data_uri
from vlroute.inputs.media import FrameSampling
from vlroute.inputs.messages import IMAGE, VIDEO, Conversation, Message, nested_fields, parse
from vlroute.inputs.tools import Tools
from vlroute.serving.settings import ServerSettings

Messages = Sequence[Mapping[str, Any]]
#: Maximum length of a text that is decided on without a thread.
QUICK_CHARACTERS = 4000
_CHUNK = 2**16
_PORTS = {"http": 80, "https": 443}
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}  # the limit counts bytes before decoding


class Fetcher:
    """Downloads http(s) addresses of allowed hosts. It follows no redirect, sends no credentials, and uses no proxy.

    An address is parsed once, by the library that connects: two parsers could disagree on the host.

    Args:
        allowed: Hosts, as `host` or `host:port`.
        seconds: Time limit of one download.
    """

    def __init__(self, allowed: Sequence[str], seconds: float) -> None:
        self.allowed, self.seconds = frozenset(host.lower() for host in allowed), seconds
        self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, timeout=seconds)

    async def fetch(self, address: str, max_bytes: int) -> bytes:
        """Download one file.

        Args:
            address: Its URL.
            max_bytes: Maximum size.

        Returns:
            The content of the file.

        Raises:
            UnreadableMediaError: The host is not allowed, or the file cannot be downloaded.
            LimitError: The file is too large.
        """
        url = self._checked(address)
        try:
            return await asyncio.wait_for(self._read(url, max_bytes), self.seconds)
        except (TimeoutError, httpx.HTTPError) as error:
            raise UnreadableMediaError(
                f"the picture or video at {url.host} could not be fetched ({type(error).__name__})"
            ) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _checked(self, address: str) -> httpx.URL:
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: a lone surrogate
            raise UnreadableMediaError("the address of a picture or video is not a valid URL") from error
        if url.scheme not in ("http", "https") or url.userinfo:
            raise UnreadableMediaError("an address must be http(s) without user and password, or a data URI")
        host = url.raw_host.decode().lower()
        host = f"[{host}]" if ":" in host else host
        # without a port, only the default one of the scheme is allowed
        if f"{host}:{url.port or _PORTS[url.scheme]}" not in self.allowed and (url.port or host not in self.allowed):
            raise UnreadableMediaError(
                "this server does not fetch from that host: send a data URI (data:image/png;base64,...), or ask its "
                "operator to allow the host"
            )
        return url

    async def _read(self, url: httpx.URL, max_bytes: int) -> bytes:
        async with self._client.stream("GET", url, headers=_HEADERS) as reply:
            if reply.status_code != 200:
                raise UnreadableMediaError(
                    f"{url.host} answered with status {reply.status_code} instead of a picture or video; redirects are "
                    "not followed"
                )
            data = bytearray()
            async for chunk in reply.aiter_raw(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise LimitError(f"the file at {url.host} is over the limit of {max_bytes} bytes")
            return bytes(data)


async def embed_media(messages: Messages, fetcher: Fetcher, settings: ServerSettings) -> Messages:
    """Download the pictures and videos that messages refer to.

    Args:
        messages: The messages of a request.
        fetcher: Downloads files.
        settings: Limits of the number and size of files.

    Returns:
        The messages with data in place of network addresses.

    Raises:
        InputError: A file cannot be downloaded or is over a limit.
    """
    limits, left = settings.limits, {"image": settings.limits.max_images, "video": settings.limits.max_videos}
    max_bytes = {"image": limits.max_bytes, "video": limits.max_video_bytes}
    embedded = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = []
            for part in content:
                kind, key, address = _address(part)
                if address is not None:
                    left[kind] -= 1
                    if left[kind] < 0:
                        raise LimitError(f"one request has more {kind}s than the server accepts; send fewer")
                    part = _with_data(part, kind, key, await fetcher.fetch(address, max_bytes[kind]))
                parts.append(part)
            message = {**message, "content": parts}
        embedded.append(message)
    return embedded


def is_quick(messages: Messages) -> bool:
    """Whether the messages are short text: nothing has to be decoded, and the decision takes no time."""
    contents = [
        message.get("content") for message in messages if not (message.get("images") or message.get("tool_calls"))
    ]
    texts = [content for content in contents if isinstance(content, str)]
    return len(texts) == len(messages) and sum(map(len, texts)) <= QUICK_CHARACTERS


def preparer(
    messages: Messages,
    settings: ServerSettings,
    sampling: Callable[[], FrameSampling],
    tools: Callable[[], Tools | None] = lambda: None,
) -> Callable[[], Conversation]:
    """Create the function that makes the conversation. It runs in the thread that answers: decoding pictures is slow.

    Args:
        messages: The messages, without network addresses.
        settings: Limits of the request.
        sampling: See `parse`.
        tools: Checks the tools, see `parse`.

    Returns:
        The function; it raises InputError for invalid messages and tools.
    """

    def prepare() -> Conversation:
        _check_length(messages, settings.max_prompt)  # before anything else looks at every character
        offered = tools()
        conversation = parse(list(messages), limits=settings.limits, sampling=sampling, tools=offered)
        length = sum(_characters(turn) for turn in conversation.messages) + len(conversation.prefix)
        length += len(offered.text) if offered else 0
        if length > settings.max_prompt:
            raise _too_long(length, settings.max_prompt)
        return conversation

    return prepare


def _check_length(messages: Messages, most: int) -> None:
    """LimitError if the texts in the contents of `messages` have more than `most` characters."""
    contents = (content for message in messages if (content := message.get("content")))
    parts = (part for content in contents for part in (content if isinstance(content, list) else (content,)))
    texts = (part.get("text") if isinstance(part, Mapping) else part for part in parts)
    length = sum(len(text) for text in texts if isinstance(text, str))
    if length > most:
        raise _too_long(length, most)


def _too_long(length: int, most: int) -> LimitError:
    return LimitError(f"{length} characters of text, over the limit of {most}; send fewer turns")


def _characters(message: Message) -> int:
    """Number of characters of the text of a message, with its reasoning and tool calls."""
    calls = sum(len(call.id) + len(call.name) + len(call.text) for call in message.tool_calls)
    return len(message.text) + len(message.thinking) + calls


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
