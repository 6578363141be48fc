"""Media of a request: downloads from allowed hosts, and the conversation that is made from its messages."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import httpx

from vlroute import __version__
from vlroute.errors import LimitError, UnreadableMediaError
from vlroute.fair_share import Flow
from vlroute.inputs.encoded import is_data_uri
from vlroute.inputs.media import FrameSampling
from vlroute.inputs.messages import (
    IMAGE,
    REASONING_TEXTS,
    VIDEO,
    Conversation,
    Message,
    last_question,
    nested_fields,
    parse,
)
from vlroute.inputs.tools import Tools
from vlroute.serving.admission import FairQueue
from vlroute.serving.settings import ServerSettings

Messages = Sequence[Mapping[str, Any]]
#: Maximum length of a text, and number of its messages, that are decided on without a thread.
QUICK_CHARACTERS = 4000
QUICK_MESSAGES = 50
_PORTS = {"http": 80, "https": 443}
_TEXTS = ("text", "input_text", "output_text", "refusal")
#: The limit of bytes counts them before decoding.
_HEADERS: dict[bytes | str, bytes | str] = {"Accept": "image/*, video/*", "Accept-Encoding": "identity"}
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Fetcher:
    """Downloads http(s) addresses of allowed hosts. It follows no redirect, sends no credentials, and uses no proxy.

    An address is parsed once, by the library that connects: two parsers could disagree on the host. The name of a host
    is resolved once for a connection, and the address that was checked is the one that is connected to.

    Args:
        settings: Allowed hosts and networks, and limits.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.allowed, self.seconds = frozenset(host.lower() for host in settings.allowed_hosts), settings.fetch_seconds
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False), max_connections=None,
            network_backend=_CheckedNetwork(settings.fetch_networks),
        )  # fmt: skip
        self._turns = _Turns(settings.max_fetches)

    async def fetch(self, address: str, max_bytes: int, flow: Flow) -> bytes:
        """Download one file.

        Args:
            address: Its URL.
            max_bytes: Maximum size.
            flow: Flow of the request.

        Returns:
            The content of the file.

        Raises:
            UnreadableMediaError: The host is not allowed, or the file cannot be downloaded.
            LimitError: The file is too large.
        """
        url = self._checked(address)
        async with self._turns.turn(f"flow {flow.name}", flow), self._turns.turn(f"host {url.host}", flow):
            try:
                async with asyncio.timeout(self.seconds):
                    return await self._read(url, max_bytes)
            except (TimeoutError, OSError, *_FAILURES) as error:
                raise UnreadableMediaError(
                    f"the picture or video at {url.host} could not be fetched ({type(error).__name__})"
                ) from error

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

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
        timeouts = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self.seconds)}
        raw = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        named: dict[bytes | str, bytes | str] = {"Host": url.netloc, "User-Agent": f"vlroute/{__version__}"}
        async with self._pool.stream("GET", raw, headers={**_HEADERS, **named}, extensions=timeouts) as reply:
            if reply.status != 200:
                raise UnreadableMediaError(
                    f"{url.host} answered with status {reply.status} instead of a picture or video; redirects are not "
                    "followed"
                )
            data = bytearray()
            async for chunk in reply.aiter_stream():
                data += chunk
                if len(data) > max_bytes:
                    raise LimitError(f"the file at {url.host} is over the limit of {max_bytes} bytes")
            return bytes(data)


_FAILURES = (
    httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol,
)  # fmt: skip


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, to those in `networks`, and to addresses that are given as such.

    The name of an allowed host is not enough: whoever controls its DNS could direct it to a machine that only this
    server can reach.

    Args:
        networks: Allowed networks of private addresses.
    """

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host. UnreadableMediaError if it has no address to which connections are allowed."""
        address = await self._resolved(host, port)
        return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)

    async def _resolved(self, host: str, port: int) -> str:
        try:
            return str(ipaddress.ip_address(host.strip("[]")))  # the operator has allowed this address
        except ValueError:
            pass
        try:
            found = await asyncio.to_thread(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise UnreadableMediaError(f"the host {host} of a picture or video has no address") from error
        for *_, where in found:
            address = ipaddress.ip_address(str(where[0]).partition("%")[0])
            if self._is_allowed(address, host):
                return str(address)
        raise UnreadableMediaError(
            f"the host {host} of a picture or video has a private address; an operator can allow it with fetch_networks"
        )

    def _is_allowed(self, address: _Address, host: str) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if host.lower() == "localhost" and address.is_loopback:
            return True
        return (address.is_global and not address.is_multicast) or any(address in network for network in self._networks)


class _Turns:
    """Limits the tasks with the same key that run at a time. Flows share the turns of a key, see `FairQueue`.

    Args:
        most: Maximum number of tasks of one key. Flows with less than their share of them do not wait; so several flows
            can have more together, at most 2.5 times as many for `most` = 8.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._queues: dict[str, FairQueue] = {}

    @asynccontextmanager
    async def turn(self, key: str, flow: Flow) -> AsyncIterator[None]:
        """Wait for a turn of this key."""
        # without a limit of those that wait, nobody is refused
        queue = self._queues.setdefault(key, FairQueue(self._most, None, AssertionError))
        ticket = queue.enter(flow)
        try:
            await asyncio.wrap_future(ticket.place)
            yield
        finally:
            queue.leave(ticket)
            if not len(queue):  # keys without tasks are not stored
                del self._queues[key]


async def embed_media(messages: Messages, fetcher: Fetcher, settings: ServerSettings, flow: Flow) -> Messages:
    """Download the pictures and videos that messages refer to.

    Args:
        messages: The messages of a request.
        fetcher: Downloads files.
        settings: Limits of the number and size of files.
        flow: Flow of the request.

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
                    part = _with_data(part, kind, key, await fetcher.fetch(address, max_bytes[kind], flow))
                parts.append(part)
            message = {**message, "content": parts}
        embedded.append(message)
    return embedded


def is_quick(messages: Messages) -> bool:
    """Whether the messages are short text: nothing has to be decoded, and the decision takes no time."""
    if len(messages) > QUICK_MESSAGES or any(message.keys() - {"role", "content"} for message in messages):
        return False
    contents = [message.get("content") for message in messages]
    texts = [content for content in contents if isinstance(content, str)]
    return len(texts) == len(messages) and sum(map(len, texts)) <= QUICK_CHARACTERS


class Preparation:
    """Makes the conversation of one request, after it was admitted. Calling it checks the messages and decodes media.

    Args:
        messages: The messages.
        fetcher: Downloads files.
        settings: Limits of the request.
        sampling: See `parse`.
        tools: The checked tools.

    Attributes:
        messages: The messages; after `fetch` without network addresses.
    """

    def __init__(
        self,
        messages: Messages,
        fetcher: Fetcher,
        settings: ServerSettings,
        sampling: Callable[[], FrameSampling],
        tools: Tools | None = None,
    ) -> None:
        self.messages = messages
        self._fetcher, self._settings, self._sampling, self._tools = fetcher, settings, sampling, tools

    @property
    def decodes(self) -> bool:
        """Whether there may be pictures or videos to decode, so that the call takes long."""
        contents = [message.get("content") for message in self.messages]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return any(message.get("images") for message in self.messages) or any(
            not isinstance(part, Mapping) or part.get("type") not in _TEXTS for part in parts
        )

    async def fetch(self, flow: Flow) -> None:
        """Download the pictures and videos that the messages refer to. Raises the errors of `embed_media`.

        Args:
            flow: Flow of the request.
        """
        self.messages = await embed_media(self.messages, self._fetcher, self._settings, flow)

    def __call__(self) -> Conversation:
        """The conversation. InputError for invalid messages and media."""
        settings = self._settings
        _check_length(self.messages, settings.max_prompt)  # before anything else looks at every character
        conversation = parse(list(self.messages), limits=settings.limits, sampling=self._sampling, tools=self._tools)
        length = sum(_characters(turn) for turn in conversation.messages) + len(conversation.prefix)
        length += len(self._tools.text) if self._tools else 0
        if length > settings.max_prompt:
            raise _too_long(length, settings.max_prompt)
        return conversation


def _check_length(messages: Messages, most: int) -> None:
    """LimitError if the texts of `messages` have more than `most` characters, arguments of tool calls included."""
    question = last_question(messages)
    length = sum(len(text) for index, one in enumerate(messages) for text in _texts(one, index > question))
    if length > most:
        raise _too_long(length, most)


def _texts(message: Mapping[str, Any], with_reasoning: bool) -> Iterator[str]:
    """All texts of a message that was not checked, as far as `parse` reads them."""
    content, calls = message.get("content"), message.get("tool_calls")
    found = [message.get("name"), message.get("refusal")]
    for part in content if isinstance(content, list) else (content,):
        found += (part.get("text"), part.get("refusal")) if isinstance(part, Mapping) else (part,)
    if with_reasoning:
        found.append(next((message[name] for name in REASONING_TEXTS if message.get(name)), None))
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, Mapping):
            function = call.get("function")
            found.append(call.get("arguments"))
            found.append(function.get("arguments") if isinstance(function, Mapping) else None)
    while found:
        value = found.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):  # arguments, which Anthropic's clients send as an object
            found += value
            found += value.values()
        elif isinstance(value, list):
            found += value


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
