"""Bodies of requests: the key comes first, and no body stops the server."""

from __future__ import annotations

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from training.chaos import attacks

from tests.conftest import task
from tests.serving import KEY, Served, data_uri, served
from vlroute.serving.app import mount_page
from vlroute.serving.settings import MiB, ServerSettings

POSTED = (
    "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/route", "/v1/feedback",
    "/api/predict",
)  # fmt: skip
#: Longest time for which no other thread may run. Without the limits it is several seconds, and it is about 30 ms with
#: them; other programs on the machine of the tests need time as well.
DELAY = 0.4


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServerSettings(api_keys=(KEY,))) as one:
        yield one


@contextmanager
def delays() -> Iterator[list[float]]:
    """How late a thread wakes up that sleeps for a moment again and again, in seconds."""
    found, stop = [0.0], threading.Event()

    def sample() -> None:
        while not stop.is_set():
            began = time.perf_counter()
            time.sleep(0.002)
            found.append(time.perf_counter() - began - 0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def connect(server: Served) -> socket.socket:
    parts = httpx.URL(server.url)
    return socket.create_connection((parts.host, parts.port), timeout=20)


def header(path: str, length: int, key: str, more: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{more}\r\n"
    ).encode()


@pytest.mark.parametrize("path", POSTED)
def test_a_wrong_key_is_refused_before_the_body_arrives(server: Served, path: str) -> None:
    with closing(connect(server)) as client:
        client.sendall(header(path, 60 * MiB, "a wrong key", "Expect: 100-continue\r\n"))
        assert client.recv(2**16).startswith(b"HTTP/1.1 401 ")


def test_a_right_key_is_told_to_continue(server: Served) -> None:
    content = json.dumps({"messages": [{"role": "user", "content": "Add 2 and 3."}]}).encode()
    with closing(connect(server)) as client:
        client.sendall(header("/v1/route", len(content), KEY, "Expect: 100-continue\r\n"))
        assert client.recv(2**16).startswith(b"HTTP/1.1 100 ")
        client.sendall(content)
        assert client.recv(2**16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("kind", [*attacks.BODIES])
def test_large_bodies_do_not_stop_other_threads(server: Served, kind: str) -> None:
    body = attacks.BODIES[kind](30 * MiB)
    with delays() as found:
        figures = attacks.post(server.url, "/api/predict" if kind == "base64" else POSTED[0], body, KEY)
    assert figures.statuses in ({413: 1}, {400: 1})
    assert max(found) < DELAY
    assert figures.failed == 0


def test_a_body_with_all_that_is_allowed_does_not_stop_other_threads(server: Served) -> None:
    bodies = {
        "brackets": '{"messages": [' + "[]," * 19_000 + "[]]}",
        "fields": json.dumps({f"x{index}": 1 for index in range(26_000)}),
        "objects": '{"messages": [{"role": "user", "content": [' + '{"a": 1},' * 15_000 + "{}]}]}",
        "messages": json.dumps({"messages": [{"role": "user", "content": "?"}] * 5000}),
        "wrong items": json.dumps({"messages": [{"role": "user", "content": "?"}], "guided_choice": [1] * 39_000}),
        "text": json.dumps({"messages": [{"role": "user", "content": "word " * 600_000}]}),
    }
    with server.http(headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}) as http:
        for name, body in bodies.items():
            with delays() as found:
                replies = [http.post(path, content=body) for path in ("/v1/chat/completions", "/v1/messages")]
            assert all(reply.status_code in (400, 422) for reply in replies), (name, [one.text for one in replies])
            assert all(len(reply.text) < 2000 for reply in replies), name
            assert max(found) < DELAY, name


def test_unknown_fields_are_named_up_to_ten(server: Served) -> None:
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        for path in POSTED:
            message = http.post(path, json={f"odd_{index:03}": 1 for index in range(300)}).text
            assert "odd_009" in message
            assert "odd_010" not in message
            assert "290 more" in message


def test_a_large_picture_is_answered_as_before(server: Served) -> None:
    """Its base64 does not go through the JSON parser; trailing bytes of a PNG file are not read."""
    some = task("count")
    head, _, data = data_uri(some.frames[0]).partition(",")
    large = base64.b64encode(base64.b64decode(data) + random.Random(1).randbytes(8 * MiB)).decode()
    contents = [
        [{"type": "image_url", "image_url": {"url": f"{head},{payload}"}}, {"type": "text", "text": some.prompt}]
        for payload in (data, large)
    ]
    bodies: list[Any] = [{"model": "instruct", "messages": [{"role": "user", "content": one}]} for one in contents]
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        with delays() as found:
            small, big = (http.post("/v1/chat/completions", json=body).json() for body in bodies)
        assert big["choices"][0]["message"]["content"] == small["choices"][0]["message"]["content"]
        predicted = http.post("/api/predict", json={"data": [large, some.prompt, "instruct"]}).json()
        assert predicted["data"] == [small["choices"][0]["message"]["content"]]
    assert max(found) < 2 * DELAY


def test_json_for_the_web_page_is_limited_as_well() -> None:
    with served(ServerSettings(), wrap=mount_page) as server, server.http() as http:
        for body, status in ((b"[" * 10 * MiB, (400, 413)), (b"[]," * 5 * MiB, (400, 413))):
            with delays() as found:
                reply = http.post("/gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
            assert reply.status_code in status
            assert max(found) < DELAY
        assert http.get("/").status_code == 200
