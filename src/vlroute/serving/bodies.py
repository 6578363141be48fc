"""Bodies of requests: the key is checked before they are read, their memory is limited, and JSON is bounded."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from vlroute.serving.dependencies import check_key
from vlroute.serving.errors import APIError
from vlroute.serving.request_log import current_request
from vlroute.serving.settings import MiB, ServerSettings

#: Maximum number of brackets, commas, colons and strings of a body. Python's parser needs less than 50 ms for them.
MAX_STRUCTURE = 80_000
MAX_DEPTH = 400
#: Strings from this length are kept out of the JSON parser if they may be pictures.
LONG = 4096
#: Bytes that are looked at without a break.
PIECE = 2**15
#: Bodies from this size are parsed in another thread.
_SMALL = 2**16
_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
#: A string that is certainly text for `JSONBody`, and what a body contains before the first other string.
_SHORT_STRING = re.compile(rb'"(?:[^"\\]|\\.){0,%d}+"' % (LONG - 1), re.DOTALL)
_SHORT_STRINGS = re.compile(rb'(?:[^"]++|%s)*+' % _SHORT_STRING.pattern, re.DOTALL)
_NO_STRUCTURE = bytes(set(range(256)) - set(b"[]{},:"))
#: Characters of base64, data URIs and percent-encoding. A blank is not one of them: text has blanks.
_ENCODED = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=-_%:;,."
_ESCAPES = ((rb"\/", b"/"), (rb"\n", b"\n"), (rb"\r", b"\r"), (rb"\t", b"\t"))


def max_text(settings: ServerSettings) -> int:
    """Maximum size of a body without its pictures, in bytes: JSON may need six bytes for a character.

    Args:
        settings: Settings of the server.

    Returns:
        The size.
    """
    return 6 * settings.max_prompt + 2 * MiB


class BodyPool:
    """Limits the bytes of bodies that are in memory at the same time. Thread-safe.

    A flow of requests may hold as many bytes as are free (dynamic thresholds, Choudhury and Hahne, 1998): one flow
    alone gets half of the pool, two flows get a third each. So a further flow always finds room.

    Args:
        most: Maximum number of bytes.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes that requests hold now."""
        with self._lock:
            return self._held.total()

    def take(self, flow: str, size: int) -> None:
        """Count bytes that have arrived.

        Args:
            flow: Name of the flow of the request.
            size: Number of bytes.

        Raises:
            APIError: 429 if there is no room for them.
        """
        with self._lock:
            mine, all = self._held[flow], self._held.total()
            if mine + size <= self.most - all:
                self._held[flow] += size
                return
        raise APIError(
            429, f"the bodies of requests that are being answered have {all} bytes, {mine} of them with your key or "
            "from your address, which leaves no room for more (the server's setting max_total_body); try again later, "
            "or send smaller pictures and videos", "too_many_bytes", headers={"Retry-After": "5"},
        )  # fmt: skip

    def give_back(self, flow: str, size: int) -> None:
        """The bytes are no longer needed."""
        with self._lock:
            self._held[flow] -= size
            if not self._held[flow]:
                del self._held[flow]


class PooledBody:
    """The bytes of one body in a pool, and of what is read from a store for the request. Thread-safe.

    Args:
        pool: The pool.
    """

    def __init__(self, pool: BodyPool) -> None:
        self._pool, self._flow, self._size = pool, "", 0
        self._lock, self._released = threading.Lock(), False

    def take(self, flow: str, size: int) -> None:
        """Count the next bytes. Raises the error of `BodyPool.take`. After `release`, nothing is counted.

        Args:
            flow: Name of the flow of the request; that of the first bytes counts.
            size: Number of bytes.
        """
        with self._lock:
            if self._released:
                return
            self._flow = self._flow or flow
            self._pool.take(self._flow, size)
            self._size += size

    def release(self) -> int:
        """Give all bytes back: the request has ended.

        Returns:
            Number of bytes.
        """
        with self._lock:
            size, self._size, self._released = self._size, 0, True
        self._pool.give_back(self._flow, size)
        return size


class JSONBody:
    """A JSON body that is checked piece by piece while it arrives, and parsed at its end.

    Python's parser stops all threads, for seconds if a large body consists of brackets. So the structure and the text
    of a body are limited before it is parsed, and long strings of base64, which may be pictures, are kept out of the
    parser: for each, it gets a number that nobody can guess.

    Args:
        max_text: Maximum number of bytes, not counting long strings of base64.
    """

    def __init__(self, max_text: int) -> None:
        self.size = 0
        self._max_text = max_text
        self._text = bytearray()  # the body, with a number in place of each string in _media
        self._media: list[list[bytes]] = []
        self._numbers = f"-0.{secrets.randbelow(10**18):018}e"
        self._moved: list[tuple[int, int]] = []  # for each of _media: its end in _text, and the bytes left out
        self._structure = self._depth = 0
        self._start: int | None = None  # where the current string begins in _text; None: outside of strings
        self._pieces: list[bytes] | None = None  # of the current string, if it may be a picture
        self._looked = False  # whether that was found out
        self._held = b""  # a backslash at the end of a piece

    def feed(self, piece: bytes) -> None:
        """Add the next piece. For the time of one call, `PIECE` bytes are a good size.

        Args:
            piece: The bytes.

        Raises:
            APIError: 400 for a body that is nested too deeply, 413 for one with too much text or structure.
        """
        self.size += len(piece)
        data, at = self._held + piece, 0
        self._held = b""
        while at < len(data):
            if self._start is None:
                found = _SHORT_STRINGS.match(data, at)
                assert found is not None
                if found.end() > at:
                    outside, strings = _SHORT_STRING.subn(b"", found.group())
                    self._count(outside, strings)
                    self._add(found.group())
                    at = found.end()
                    continue
                quote = data.find(b'"', at)
                end = len(data) if quote < 0 else quote
                self._count(data[at:end], strings=int(quote >= 0))
                self._add(data[at : end + 1])
                at = end + 1
                if quote >= 0:
                    self._start, self._looked = len(self._text), False
            else:
                end, closed = _end_of_string(data, at)
                self._add_to_string(data[at:end])
                if closed:
                    self._end_string()
                    at = end + 1
                else:
                    self._held, at = data[end:], len(data)

    def value(self) -> Any:
        """Parse the body.

        Returns:
            The value.

        Raises:
            ValueError: It is not JSON in UTF-8.
        """
        text = (self._text + self._held).decode("utf-8-sig", "surrogatepass")  # a string that is not closed is an error
        if not self._media:
            return json.loads(text)
        strings = {f"{self._numbers}{index}": pieces for index, pieces in enumerate(self._media)}

        def number(digits: str) -> Any:
            pieces = strings.get(digits)
            return float(digits) if pieces is None else _joined(pieces)

        try:
            return json.loads(text, parse_float=number)
        except json.JSONDecodeError as error:
            place = len(text[: error.pos].encode("utf-8", "surrogatepass"))
            left_out = sum(size for end, size in self._moved if end <= place)
            error.pos += left_out
            raise

    def _count(self, outside: bytes, strings: int) -> None:
        """Count the structure in a part outside of strings, and the strings that follow it."""
        found = outside.translate(None, _NO_STRUCTURE)
        self._structure += len(found) + strings
        if self._structure > MAX_STRUCTURE:
            raise APIError(
                413, f"the JSON body has more than {MAX_STRUCTURE} brackets, commas, colons and strings",
                "body_too_large",
            )  # fmt: skip
        for one in found:
            if one in b"[{":
                self._depth += 1
                if self._depth > MAX_DEPTH:
                    raise APIError(
                        400, f"the JSON body is nested too deeply: more than {MAX_DEPTH} levels", "invalid_json"
                    )
            elif one in b"]}":
                self._depth -= 1

    def _add(self, text: bytes) -> None:
        if len(self._text) + len(text) > self._max_text:
            raise APIError(
                413, f"the JSON body has more than {self._max_text} bytes besides pictures and videos", "body_too_large"
            )
        self._text += text

    def _add_to_string(self, piece: bytes) -> None:
        if self._pieces is not None:
            self._pieces.append(piece)
            if not _may_be_base64(piece):
                self._keep_as_text()
            return
        assert self._start is not None
        if self._looked or len(self._text) - self._start + len(piece) < LONG:
            self._add(piece)
            return
        self._looked = True
        start = bytes(self._text[self._start :])
        if _may_be_base64(start) and _may_be_base64(piece):
            del self._text[self._start :]
            self._pieces = [start, piece]
        else:
            self._add(piece)

    def _keep_as_text(self) -> None:
        """Count the current string as text after all."""
        pieces, self._pieces = self._pieces or [], None
        for piece in pieces:
            self._add(piece)

    def _end_string(self) -> None:
        self._start = None
        if self._pieces is None:
            self._add(b'"')
            return
        del self._text[-1:]  # the quotation mark before it
        self._add(f"{self._numbers}{len(self._media)}".encode())
        size = sum(map(len, self._pieces)) + 2 - len(self._numbers) - len(str(len(self._media)))
        self._moved.append((len(self._text), size))
        self._media.append(self._pieces)
        self._pieces = None


def _end_of_string(data: bytes, at: int) -> tuple[int, bool]:
    """Where the string that goes on at `at` ends in `data`, and whether there is its closing quotation mark.

    Otherwise what follows the end is a backslash whose next character has not arrived.
    """
    quote = data.find(b'"', at)
    end = len(data) if quote < 0 else quote
    if data.find(b"\\", at, end) < 0:
        return end, quote >= 0
    found = _STRING.match(data, at)
    assert found is not None
    return found.end(), data[found.end() : found.end() + 1] == b'"'


def _may_be_base64(piece: bytes) -> bool:
    """Whether part of a string may be base64 or the beginning of a data URI, with line breaks or escaped slashes."""
    rest = piece.translate(None, _ENCODED)
    if not rest:
        return True
    few = len(piece) < 1024 or 8 * len(rest) <= len(piece)
    return few and not rest.strip(b"\\") and b"\\" not in _unescaped(piece)


def _unescaped(piece: bytes) -> bytes:
    if b"\\" in piece:
        for escape, character in _ESCAPES:
            piece = piece.replace(escape, character)
    return piece


def _joined(pieces: list[bytes]) -> str:
    """A long string. Other threads can run meanwhile, as they could not while `str.join` copies 60 MiB."""
    text = ""
    for piece in pieces:
        text += _unescaped(piece).decode("ascii")  # in place, because nothing else refers to the text
    return text


class _JSONRequest(Request):
    """A request whose body is a `JSONBody`."""

    _parsed: Any = None
    _failed: Exception | None = None
    _size = 0

    async def read(self, max_text: int) -> None:
        """Read and parse the body. Errors of the parser are raised by `json`, as FastAPI expects."""
        body = JSONBody(max_text)
        try:
            async for piece in self.stream():  # `LoopShares` has cut it
                body.feed(piece)
        except ClientDisconnect:
            raise APIError(499, "the client disconnected", "client_left") from None
        self._size = body.size
        try:
            if body.size:
                small, parse = body.size < _SMALL, body.value
                self._parsed = parse() if small else await asyncio.to_thread(current_request().in_thread, parse)
        except (ValueError, RecursionError) as error:
            self._failed = error

    async def body(self) -> bytes:
        """Whether there is a body: FastAPI asks for no more."""
        return b"read" if self._size else b""

    async def json(self) -> Any:
        """The parsed body."""
        if self._failed is not None:
            raise self._failed
        return self._parsed


class JSONRoute(APIRoute):
    """An endpoint that reads its body after the key was checked, and only within limits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function that answers a request."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def read_and_handle(request: Request) -> Response:
            check_key(request)
            read = _JSONRequest(request.scope, request.receive)
            await read.read(max_text(request.app.state.service.settings))
            return await handle(read)

        return read_and_handle
