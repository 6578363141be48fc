"""Silent, slow and too many clients: each costs the server a bounded time, and others are answered meanwhile."""

from __future__ import annotations

import json
import logging
import resource
import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace

import httpx
import pytest
from training.chaos import attacks

from tests.serving import KEY, Served, served
from vlroute.serving.http_server import HTTPServer
from vlroute.serving.settings import ServerSettings

LIMIT, PER_ADDRESS = 200, 20
SETTINGS = ServerSettings(
    api_keys=(KEY,), max_connections=LIMIT, max_per_address=PER_ADDRESS, header_seconds=1.0, body_seconds=1.0,
    idle_seconds=1.0, write_seconds=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(SETTINGS) as one:
        yield one


@pytest.fixture(scope="module")
def direct() -> Iterator[Served]:
    """A server for which the loopback address is not that of a proxy."""
    settings = ServerSettings(forwarded_allow_ips=(), max_per_address=PER_ADDRESS, header_seconds=30.0)
    with served(settings) as one:
        yield one


def connect(server: Served) -> socket.socket:
    parts = httpx.URL(server.url)
    return socket.create_connection((parts.host, parts.port), timeout=10)


def until_closed(client: socket.socket, within: float = 10.0) -> tuple[bytes, float]:
    """What the server sends until it closes the connection, and the seconds."""
    began, received = time.monotonic(), b""
    client.settimeout(within)
    while piece := client.recv(2**16):
        received += piece
    return received, time.monotonic() - began


@pytest.mark.parametrize("attack", [attacks.idle_connections, attacks.slow_header])
def test_more_silent_connections_than_the_limit_keep_nobody_out(server: Served, attack: object) -> None:
    assert callable(attack)
    figures = attack(server.url, count=300, seconds=3.0)
    assert figures.failed == 0
    assert figures.p95 < 1000
    assert figures.still_open <= LIMIT
    assert len(figures.milliseconds) > 10


def test_a_silent_connection_and_one_whose_header_stops_are_closed(server: Served) -> None:
    with closing(connect(server)) as silent, closing(connect(server)) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localh")
        received, seconds = until_closed(silent)
        assert (received, 0.5 < seconds < 5) == (b"", True)
        received, _ = until_closed(slow)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "header_timeout"


def test_an_idle_connection_is_closed_also_if_it_sends_empty_lines(server: Served) -> None:
    for more in (b"", b"\r\n"):
        with closing(connect(server)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if more:
                time.sleep(0.3)
                client.sendall(more)
            received, seconds = until_closed(client)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert 0.5 < seconds < 5


def test_a_large_header_is_refused(server: Served) -> None:
    with closing(connect(server)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 2**18)
        assert client.recv(100).startswith(b"HTTP/1.1 431 ")


def test_a_header_with_many_fields_is_refused(server: Served) -> None:
    for fields, status in ((190, b"200"), (201, b"431")):
        with closing(connect(server)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a:\r\n" * fields + b"\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 %s " % status)


def test_what_is_not_http_is_refused_in_the_format_of_the_api(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    with closing(connect(server)) as client:
        client.sendall(b"not http\r\n\r\n")
        received, _ = until_closed(client)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


POST = b"POST /v1/route HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
JSON = b"Content-Type: application/json\r\n"
ROUTE = b'{"messages": [{"role": "user", "content": "Hi"}]}'
SIZED = b"Content-Length: %d\r\n" % len(ROUTE)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ROUTE), ROUTE)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("head", "body", "status", "code"), [
    (b"GET /health HTTP/1.1\r\n", b"", 400, "invalid_http"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", b"", 400, "invalid_http"),
    (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", b"", 400, "invalid_http"),
    (POST + JSON + b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS, 400, "unsupported_transfer_coding"),
    (POST + JSON + b"Transfer-Encoding: gzip\r\n" + CHUNKED, CHUNKS, 400, "unsupported_transfer_coding"),
    (POST + JSON + b"Transfer-Encoding: identity\r\n", ROUTE, 400, "unsupported_transfer_coding"),
    (POST.replace(b"1.1", b"1.0") + JSON + CHUNKED, CHUNKS, 400, "unsupported_transfer_coding"),
    (POST + JSON + CHUNKED, b"fffffffffffffffff\r\n" + ROUTE, 400, "invalid_http"),
    (POST + JSON + CHUNKED, b"zz\r\n" + ROUTE, 400, "invalid_http"),
    (POST + JSON + CHUNKED, b"2\r\n{}{}\r\n0\r\n\r\n", 400, "invalid_http"),
    (POST + JSON + SIZED + b"Content-Encoding: gzip\r\n", ROUTE, 415, "unsupported_content_encoding"),
    (POST + JSON + SIZED + b"Content-Encoding: identity\r\nContent-Encoding: br\r\n", ROUTE, 415,
     "unsupported_content_encoding"),
    (POST + b'Content-Type: application/json;Charset="UTF-16"\r\n' + SIZED, ROUTE, 415, "unsupported_charset"),
    (POST + b"Content-Type: application/json; charset=latin-1\r\n" + SIZED, ROUTE, 415, "unsupported_charset"),
])  # fmt: skip
def test_what_is_not_obeyed_in_a_header_is_refused(
    server: Served, head: bytes, body: bytes, status: int, code: str, apart: bool
) -> None:
    with closing(connect(server)) as client:
        client.sendall(head + b"\r\n")
        if apart and body:
            time.sleep(0.1)
            with suppress(OSError):  # the refusal came before it
                client.sendall(body)
        elif body:
            client.sendall(body)
        received, _ = until_closed(client)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1 ") == 1
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == code


@pytest.mark.parametrize("head", [
    JSON + SIZED + b"Content-Encoding: identity\r\n",
    b'Content-Type: application/JSON ; charset="UTF-8"\r\n' + SIZED,
    JSON + b"Transfer-Encoding: Chunked\r\n",
])  # fmt: skip
def test_what_means_the_same_is_accepted(server: Served, head: bytes) -> None:
    with closing(connect(server)) as client:
        client.sendall(POST + head + b"\r\n" + (ROUTE if b"Length" in head else CHUNKS))
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")


def test_after_a_response_a_wrong_body_gets_no_second_one(server: Served) -> None:
    with closing(connect(server)) as client:
        client.sendall(POST.replace(b"Bearer ", b"Bearer x") + JSON + CHUNKED + b"\r\n")
        assert client.recv(2**16).startswith(b"HTTP/1.1 401 ")
        client.sendall(b"zz\r\n")
        with suppress(ConnectionResetError):
            assert until_closed(client)[0] == b""


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("size", [7, 2**20])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("upgrade", [UPGRADE, b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b""])
def test_a_request_to_upgrade_is_answered_like_any_other(
    server: Served, upgrade: bytes, chunked: bool, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Add 2 and 3."}]}).encode()
    post = b"POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    post += b"Authorization: Bearer %s\r\n%s" % (KEY.encode(), upgrade)
    if chunked:
        post += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        post += b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    sent = (post + HEALTH + upgrade + b"\r\n") * 2 + HEALTH + b"Connection: close\r\n\r\n"
    with closing(connect(server)) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(sent), size):
            client.sendall(sent[at : at + size])
        received, _ = until_closed(client)
    assert received.count(b"HTTP/1.1 200 ") == 5
    assert received.count(b'"decision"') == 2
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("target", [b"example.org:443", b"/health"])
def test_connect_is_refused(server: Served, target: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with closing(connect(server)) as client:
        client.sendall(b"CONNECT %s HTTP/1.1\r\nHost: localhost\r\n\r\n%s\r\n" % (target, HEALTH))
        received, _ = until_closed(client)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"CONNECT is not supported" in received
    assert received.count(b"HTTP/1.1 ") == 1
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("count", [17, 18])
def test_requests_that_do_not_wait_for_responses(server: Served, count: int, caplog: pytest.LogCaptureFixture) -> None:
    """One is answered, and 16 wait."""
    request, received, reset = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"", False
    with closing(connect(server)) as client:
        client.sendall(count * request)
        try:
            received, _ = until_closed(client)
        except ConnectionError:
            reset = True
    assert reset == (count > 17)
    assert reset or received.count(b"HTTP/1.1 200 ") == count
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("size", [300_000, 2_000_000, 20_000_000])
@pytest.mark.parametrize("key", [KEY, "a wrong key, long enough"])
def test_the_connection_goes_on_after_a_refused_body(server: Served, key: str, size: int) -> None:
    header = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    header += f"Content-Type: text/plain\r\nContent-Length: {size}\r\n\r\n"
    began, client = time.monotonic(), connect(server)
    with closing(client):
        client.sendall(header.encode() + b"x" * size)
        assert client.recv(2**16).startswith(b"HTTP/1.1 4")
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while b"HTTP/1.1 200 " not in received:
            received += (piece := client.recv(2**16))
            assert piece
    assert time.monotonic() - began < 5


def test_chunks_of_one_byte_are_read(server: Served) -> None:
    header = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    header += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"messages": [{"role": "user", "content": "Hi " * 30_000}], "max_tokens": 1, "stop": 3}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % one for one in body) + b"0\r\n\r\n"
    with closing(connect(server)) as client:
        client.sendall(header.encode() + chunks)
        assert client.recv(1000).startswith(b"HTTP/1.1 422 ")


def test_an_endless_trailer_is_not_stored(server: Served) -> None:
    header = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    with closing(connect(server)) as client:
        client.sendall(f"{header}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n".encode())
        began, sent = time.monotonic(), 0
        with suppress(ConnectionError):
            while time.monotonic() - began < 10:
                sent += client.send(b"a:\r\n" * 1000)
    assert sent < 5_000_000
    with closing(connect(server)) as client:  # a short one has no effect
        body = b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: b\r\n\r\n"
        client.sendall(f"{header}Content-Type: application/json\r\n".encode() + body)
        assert client.recv(100).startswith(b"HTTP/1.1 422 ")


@pytest.mark.parametrize(("path", "shape"), [("/v1/chat/completions", "error"), ("/v1/messages", "type")])
def test_a_body_that_stops_gets_status_408(server: Served, path: str, shape: str) -> None:
    header = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    with closing(connect(server)) as client:
        client.sendall(f"{header}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
        began = time.monotonic()
        if path == "/v1/messages":  # one byte after the other is no progress
            while not select.select([client], [], [], 0.1)[0]:
                client.sendall(b" ")
        received, _ = until_closed(client)
        seconds = time.monotonic() - began
    assert received.startswith(b"HTTP/1.1 408 ")
    assert next(iter(json.loads(received.partition(b"\r\n\r\n")[2]))) == shape
    assert 0.5 < seconds < 5


def test_a_body_that_arrives_steadily_is_read(server: Served) -> None:
    content = json.dumps({"messages": [{"role": "user", "content": "Add 2 and 3." + " " * 60_000}]}).encode()
    header = f"POST /v1/route HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    with closing(connect(server)) as client:
        client.sendall(f"{header}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode())
        for at in range(0, len(content), 3000):  # two seconds in total
            client.sendall(content[at : at + 3000])
            time.sleep(0.1)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_goes_on_sending_a_refused_body_is_disconnected(server: Served) -> None:
    header = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with closing(connect(server)) as client:
        client.sendall(f"{header}Content-Length: 1000000\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 401 ")
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began + 10:
                client.sendall(b" ")
                time.sleep(0.05)
        assert time.monotonic() - began < 5


def test_a_client_that_does_not_read_is_disconnected(server: Served) -> None:
    figures = attacks.slow_reader(server.url, KEY, count=3, seconds=10)
    assert figures.still_open == 0
    assert figures.seconds < 8
    assert figures.failed == 0


def test_connections_of_one_address_are_limited(direct: Served) -> None:
    """Those that have sent no request are closed first; those with one stay, and the new one is refused."""
    with direct.http() as http:
        http.get("/health").raise_for_status()
    silent = [connect(direct) for _ in range(PER_ADDRESS + 5)]
    try:
        poll = select.poll()
        for one in silent:
            poll.register(one, select.POLLIN)
        assert len(poll.poll(2000)) <= 6  # the client above may still have counted
        with direct.http() as http:
            assert http.get("/health").status_code == 200
    finally:
        for one in silent:
            one.close()
    running = [connect(direct) for _ in range(PER_ADDRESS)]
    try:
        header = b"POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for one in running:
            one.sendall(header + b"Content-Length: 1000\r\n\r\n{")
        time.sleep(0.5)
        with closing(connect(direct)) as refused:
            received, _ = until_closed(refused)
        assert received.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: 5\r\n" in received
        assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
    finally:
        for one in running:
            one.close()
    end = time.monotonic() + 5
    while True:
        with closing(connect(direct)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if until_closed(client)[0].startswith(b"HTTP/1.1 200 "):
                break
        assert time.monotonic() < end


def test_requests_of_one_address_behind_a_proxy_are_limited(server: Served) -> None:
    def header(address: str) -> bytes:
        return (
            "POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nX-Forwarded-For: {address}\r\nContent-Length: 1000\r\n\r\n{{"
        ).encode()

    clients = [connect(server) for _ in range(PER_ADDRESS + 2)]
    try:
        for one in clients[:PER_ADDRESS]:
            one.sendall(header("2001:db8::1"))
        time.sleep(0.3)
        clients[-2].sendall(header("2001:db8::2"))  # of the same /64 network
        received = clients[-2].recv(2**16)
        assert received.startswith(b"HTTP/1.1 429 ")
        assert b"too_many_requests_of_address" in received
        clients[-1].sendall(header("192.0.2.7"))
        assert clients[-1].recv(100).startswith(b"HTTP/1.1 408 ")  # its body does not arrive
    finally:
        for one in clients:
            one.close()


def test_nothing_stays_after_the_attacks(server: Served) -> None:
    connections = server.server.config.http.keywords["connections"]  # type: ignore[union-attr]
    end = time.monotonic() + 10
    while connections.open or connections.refused:
        assert time.monotonic() < end, (connections.open, connections.refused)
        time.sleep(0.1)
    for kept in ("_silent", "_idle", "_of_address"):
        assert not getattr(connections, kept)


def test_the_start_says_what_is_left_to_a_proxy(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    for host, said in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "vlroute"):
            HTTPServer(server.app, server.service, replace(SETTINGS, host=host))
        assert ("reverse proxy" in caplog.text) == said


def test_the_limit_of_open_files_lowers_the_number_of_connections(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits))
    for (soft, hard), wanted, allowed in (
        ((1024, 4096), 1024, 1024), ((1024, 1024), 1024, 768), ((256, 256), 1024, 128), ((4096, 4096), 1024, 1024),
    ):  # fmt: skip
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=(soft, hard): limits)
        caplog.clear()
        one = HTTPServer(server.app, server.service, replace(SETTINGS, max_connections=wanted))
        assert one.config.http.keywords["connections"].most == allowed  # type: ignore[union-attr]
        assert ("lowered" in caplog.text) == (allowed < wanted)
    assert raised == [(1280, 4096), (1024, 1024), (256, 256)]
