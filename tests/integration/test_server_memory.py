"""Memory of the server: all bodies together are limited, and what large requests needed is returned."""

from __future__ import annotations

import base64
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest
from training.chaos.media import blank_png
from training.chaos.memory import ordinary_requests, used

from tests.serving import KEY, Served, served, until
from vlroute.serving import freed_memory
from vlroute.serving.settings import MiB, ServerSettings

OTHER = "another key, long enough"
BODY = 2 * MiB
SETTINGS = ServerSettings(api_keys=(KEY, OTHER), max_body=BODY, max_total_body=4 * BODY)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(SETTINGS) as one:
        yield one


def begin(server: Served, size: int, key: str) -> socket.socket:
    """Send a part of the largest body, and keep the connection."""
    parts = httpx.URL(server.url)
    client = socket.create_connection((parts.host, parts.port), timeout=20)
    client.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {BODY}\r\n\r\n".encode()
        + (b'{"a": "' + b"QUJD" * (size // 4))[:size]
    )
    return client


def ask(server: Served, key: str, size: int = 0) -> httpx.Response:
    message = {"role": "user", "content": "Add 2 and 3."}
    body = json.dumps({"model": "instruct", "max_tokens": 4, "messages": [message]}).ljust(size)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    return httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=60)


def refused(server: Served, key: str, size: int) -> bool:
    reply = ask(server, key, size)
    if reply.status_code == 200:
        return False
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "too_many_bytes")
    assert reply.headers["retry-after"] == "5"
    return True


def test_bodies_of_one_key_do_not_keep_out_another_one(server: Served) -> None:
    with ExitStack() as stack:
        for _ in range(2):  # half of the pool, but for a few bytes
            stack.enter_context(closing(begin(server, BODY - 4000, KEY)))
        until(lambda: refused(server, KEY, 20_000))
        assert not refused(server, OTHER, BODY // 2)
        assert refused(server, KEY, 20_000)
        assert not refused(server, KEY, 0)  # small requests fit in what is left
    until(lambda: not refused(server, KEY, 20_000))


def test_a_refused_body_of_the_messages_api_has_its_shape(server: Served) -> None:
    headers = {"x-api-key": KEY, "Content-Type": "application/json"}
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(closing(begin(server, BODY - 4000, KEY)))
        until(lambda: refused(server, KEY, 20_000))
        reply = httpx.post(f"{server.url}/v1/messages", content=b"{}".ljust(20_000), headers=headers)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
    assert reply.json()["error"]["type"] == "rate_limit_error"


def test_memory_is_returned_after_large_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "PAUSE_SECONDS", 0.05)
    with served(ServerSettings()) as one:
        returned: list[int] = []
        one.service.freed_memory.trim = returned.append
        picture = {"type": "image_url", "image_url": {"url": ""}}
        body = {
            "model": "instruct", "max_tokens": 4,
            "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "What color is it?"}]}],
        }  # fmt: skip
        for side in (64, 2100):
            assert not returned
            data = base64.b64encode(blank_png(side)).decode()
            picture["image_url"] = {"url": f"data:image/png;base64,{data}"}
            assert httpx.post(f"{one.url}/v1/chat/completions", json=body, timeout=60).status_code == 200
        until(lambda: returned)
        returned.clear()
        large = httpx.post(f"{one.url}/v1/chat/completions", json={"messages": "QUJD" * (5 * MiB)}, timeout=60)
        assert large.status_code in (400, 422)
        until(lambda: returned)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc of Linux")
def test_ordinary_requests_leave_no_files_and_no_threads() -> None:
    with served(ServerSettings()) as one:
        assert ordinary_requests(one.url, 100)["200"] > 40
        before = used(os.getpid())
        assert ordinary_requests(one.url, 100, seed=1)["200"] > 40
        until(lambda: used(os.getpid()).files <= before.files)
        until(lambda: used(os.getpid()).threads <= before.threads + 8)  # threads of pools start when they are needed
