"""Attacks on a running server by its clients. Each returns what other clients notice meanwhile.

They are meant for a server on this machine: a server of somebody else must not be attacked. For one run of all of them:

    vlroute serve --port 8000 &
    python -m training.chaos.attacks http://127.0.0.1:8000
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

#: A request to /health that takes longer counts as failed.
HEALTH_SECONDS = 10.0
PAUSE_SECONDS = 0.02  # between two requests to /health
CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Figures:
    """What happened during an attack.

    Attributes:
        milliseconds: Duration of each request to /health, each on a new connection.
        failed: Number of those that were refused, or not answered within `HEALTH_SECONDS`.
        still_open: Number of connections of the attack that the server has not closed at its end.
        statuses: How often the requests of the attack were answered with each status; 0: not at all.
        seconds: Seconds from the first request of the attack to its last answer or closed connection.
    """

    milliseconds: list[float] = field(default_factory=list)
    failed: int = 0
    still_open: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def p95(self) -> float:
        """95th percentile of `milliseconds`, in which a failed request counts as `HEALTH_SECONDS`."""
        values = sorted([*self.milliseconds, *[HEALTH_SECONDS * 1000] * self.failed])
        return values[min(int(len(values) * 0.95), len(values) - 1)] if values else 0.0

    @property
    def longest(self) -> float:
        """The longest of `milliseconds`, likewise."""
        return max([*self.milliseconds, *[HEALTH_SECONDS * 1000] * bool(self.failed)], default=0.0)

    def summary(self) -> dict[str, Any]:
        """The figures for a table."""
        kept = {name: value for name, value in asdict(self).items() if name != "milliseconds"}
        middle = statistics.median(self.milliseconds) if self.milliseconds else 0.0
        return {
            "health_median_ms": round(middle, 1), "health_p95_ms": round(self.p95, 1),
            "health_max_ms": round(self.longest, 1), "health_requests": len(self.milliseconds) + self.failed, **kept,
        }  # fmt: skip


def idle_connections(url: str, count: int = 300, seconds: float = 5.0) -> Figures:
    """Open connections and send nothing."""
    return _held(url, count, seconds, lambda _: b"")


@contextmanager
def silent(url: str, count: int) -> Iterator[None]:
    """Hold connections that send nothing until the block ends.

    Args:
        url: The server.
        count: Number of connections. One that the server closes is not opened again.
    """
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connected(url))
        yield


def slow_header(url: str, count: int = 300, seconds: float = 5.0) -> Figures:
    """Send the header of a request byte by byte."""
    header = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 100_000
    return _held(url, count, seconds, lambda index: header[index : index + 1])


def slow_body(url: str, key: str = "none", count: int = 50, seconds: float = 5.0) -> Figures:
    """Send the body of a request byte by byte."""
    header = _header(CHAT, key, 1_000_000)
    return _held(url, count, seconds, lambda index: b" " if index else header)


def slow_reader(url: str, key: str = "none", count: int = 5, seconds: float = 30.0) -> Figures:
    """Ask for long responses and do not read them. The attack ends when all connections are closed."""
    host, port = _address(url)
    request = f"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode() * 16
    figures, began = Figures(), time.monotonic()
    with health(url, figures), ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(5)
            client.connect((host, port))
            client.sendall(request)
            clients.append(client)
        while clients and time.monotonic() < began + seconds:
            time.sleep(0.1)
            clients = [client for client in clients if not _is_reset(client)]
        figures.still_open = len(clients)
    figures.seconds = round(time.monotonic() - began, 2)
    return figures


#: Bodies for `big_json`: each makes one of about so many bytes.
BODIES: dict[str, Callable[[int], bytes]] = {
    "brackets": lambda size: b'{"messages": [' + b"[]," * (size // 3) + b"[]]}",
    "fields": lambda size: b"{" + b",".join(b'"%08x":1' % index for index in range(size // 13)) + b"}",
    "escapes": lambda size: b'{"messages": "' + b"\\n" * (size // 2) + b'"}',
    "text": lambda size: _chat(b"word " * (size // 5)),
    "base64": lambda size: b'{"data": ["data:image/png;base64,' + b"QUJD" * (size // 4) + b'", "?", "auto"]}',
    "blanks": lambda size: b" " * size,
}


def big_json(url: str, key: str = "none", kind: str = "brackets", megabytes: int = 60, count: int = 1) -> Figures:
    """Send large JSON bodies.

    Args:
        url: The server.
        key: An API key.
        kind: One of `BODIES`.
        megabytes: Size of each body.
        count: Number of requests, one after the other.

    Returns:
        The figures.
    """
    path = "/api/predict" if kind == "base64" else CHAT
    return post(url, path, BODIES[kind](megabytes * 2**20), key, count)


def post(url: str, path: str, content: bytes, key: str = "none", count: int = 1) -> Figures:
    """Send one JSON body several times.

    Args:
        url: The server.
        path: Where to.
        content: The body.
        key: An API key.
        count: Number of requests, one after the other.

    Returns:
        The figures.
    """
    figures, began = Figures(), time.monotonic()
    with health(url, figures):
        for _ in range(count):
            status = 0
            with suppress(OSError), connected(url) as client:
                client.settimeout(120)
                sending = threading.Thread(target=_send, args=(client, _header(path, key, len(content)), content))
                sending.start()
                status = _read_status(client)
                client.shutdown(socket.SHUT_RDWR)
                sending.join()
            figures.statuses[status] = figures.statuses.get(status, 0) + 1
    figures.seconds = round(time.monotonic() - began, 2)
    return figures


def deep_json(url: str, key: str = "none", megabytes: int = 10) -> Figures:
    """Send JSON that is nested as deeply as it is long."""
    return post(url, CHAT, b"[" * (megabytes * 2**20), key)


@dataclass(frozen=True, slots=True)
class Shutdown:
    """What happened to streams when the server was told to stop.

    Attributes:
        answered: Number of streams with a complete answer.
        failed: Number of streams that ended with an error event and the last event.
        cut: Number of streams that ended without their last event.
        ready: Statuses of /ready between the signal and the end.
        seconds: Seconds from the signal to the end of the last stream.
    """

    answered: int
    failed: int
    cut: int
    ready: list[int]
    seconds: float


def sigterm_during_streams(url: str, pid: int, key: str = "none", count: int = 10, tokens: int = 400) -> Shutdown:
    """Send SIGTERM to the process `pid` of the server while it streams answers."""
    body = {
        "model": "thinking", "stream": True, "max_tokens": tokens, "ignore_eos": True, "thinking_budget": tokens - 50,
        "vlroute": {"close_loops": False}, "messages": [{"role": "user", "content": "Add 2 and 3."}],
    }  # fmt: skip
    received: list[bytearray] = [bytearray() for _ in range(count)]

    def read(into: bytearray) -> None:
        content = json.dumps(body).encode()
        with suppress(OSError), connected(url) as client:
            client.settimeout(120)
            client.sendall(_header(CHAT, key, len(content), "Connection: close") + content)
            while piece := client.recv(2**16):
                into += piece

    threads = [threading.Thread(target=read, args=(into,), daemon=True) for into in received]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while not all(b"reasoning" in into for into in received) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    began, ready = time.monotonic(), list[int]()
    while any(thread.is_alive() for thread in threads):
        with suppress(OSError):
            ready.append(_status(url, "/ready", 2.0))
        time.sleep(0.05)
    failed = [b'"error"' in into for into in received]
    ended = [b"data: [DONE]" in into for into in received]
    return Shutdown(
        sum(done and not wrong for done, wrong in zip(ended, failed, strict=True)),
        sum(done and wrong for done, wrong in zip(ended, failed, strict=True)),
        ended.count(False), ready, round(time.monotonic() - began, 2),
    )  # fmt: skip


def _held(url: str, count: int, seconds: float, piece: Callable[[int], bytes]) -> Figures:
    """Open `count` connections and send the piece 0, 1, … on each, five a second, for `seconds`.

    A connection that the server closes is opened again, as an attacker would.
    """
    figures, began = Figures(), time.monotonic()
    clients: list[tuple[socket.socket, int]] = []
    with health(url, figures):
        index, end = 0, began + seconds
        while time.monotonic() < end:
            kept = []
            for client, first in clients:
                try:
                    if _is_closed(client):
                        raise OSError
                    if data := piece(index - first):
                        client.sendall(data)
                    kept.append((client, first))
                except OSError:
                    client.close()
            clients = kept
            while len(clients) < count and time.monotonic() < end:
                try:
                    client = connected(url)
                    if data := piece(0):
                        client.sendall(data)
                except OSError:
                    break
                clients.append((client, index))
            index += 1
            time.sleep(0.2)
    figures.seconds = round(time.monotonic() - began, 2)
    for client, _ in clients:
        figures.still_open += not _is_closed(client)
        client.close()
    return figures


def _send(client: socket.socket, *pieces: bytes) -> None:
    with suppress(OSError):  # the server may have closed the connection after its answer
        for piece in pieces:
            client.sendall(piece)


@contextmanager
def health(url: str, figures: Figures) -> Iterator[None]:
    """Ask for /health again and again in another thread until the block ends.

    Args:
        url: The server.
        figures: Gets the durations.
    """
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            try:
                answered = _status(url, "/health", HEALTH_SECONDS) == 200
            except OSError:
                answered = False
            if answered:
                figures.milliseconds.append((time.perf_counter() - began) * 1000)
            else:
                figures.failed += 1
            stop.wait(PAUSE_SECONDS)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _status(url: str, path: str, seconds: float) -> int:
    with connected(url) as client:
        client.settimeout(seconds)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return _read_status(client)


def _read_status(client: socket.socket) -> int:
    line = b""
    while len(line) < 12:
        piece = client.recv(64)
        if not piece:
            return 0
        line += piece
    return int(line[9:12])


def _header(path: str, key: str, length: int, more: str = "X-Attack: 1") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{more}\r\n\r\n"
    ).encode()


def _chat(text: bytes) -> bytes:
    return b'{"messages": [{"role": "user", "content": "' + text + b'"}]}'


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or 80


def connected(url: str) -> socket.socket:
    return socket.create_connection(_address(url), timeout=5)


def _is_closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection. What it has sent is read."""
    try:
        client.setblocking(False)
        while piece := client.recv(2**16):
            if not piece:
                return True
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        client.settimeout(5)


def _is_reset(client: socket.socket) -> bool:
    """Whether the server has reset the connection. Nothing is read."""
    poll = select.poll()
    poll.register(client, select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))


def main(arguments: Sequence[str]) -> None:
    """Run all attacks that leave the server running, and print their figures as JSON, one in a line.

    Args:
        arguments: The URL of the server, and an API key if it needs one.
    """
    url, key = arguments[0], arguments[1] if len(arguments) > 1 else "none"
    attacks: dict[str, Callable[[], Figures]] = {
        "idle_connections": lambda: idle_connections(url, 1100),
        "slow_header": lambda: slow_header(url, 1100),
        "slow_body": lambda: slow_body(url, key),
        "slow_reader": lambda: slow_reader(url, key, seconds=40),
        **{f"big_json {kind}": lambda kind=kind: big_json(url, key, kind) for kind in BODIES},  # type: ignore[misc]
        "big_json without a key": lambda: big_json(url, "a wrong key"),
        "deep_json": lambda: deep_json(url, key),
    }
    for name, attack in attacks.items():
        print(json.dumps({"attack": name, **attack().summary()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
