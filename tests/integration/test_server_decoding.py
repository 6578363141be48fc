"""Pictures and videos of requests: when they are fetched and decoded, how many at a time, and until when."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from PIL import Image
from training.chaos.media import blank_png, blank_video, picture_bombs

from tests.serving import KEY, Served, png, served, until
from vlroute.inputs.limits import Limits
from vlroute.inputs.messages import parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.errors import APIError
from vlroute.serving.keys import session_namespace
from vlroute.serving.settings import ServerSettings

PICTURE = png(Image.new("RGB", (64, 64), "red"))
#: Takes several times the deadline to decode, also on a fast machine.
LONG_VIDEO = blank_video(60_000, 1024)
OTHER = "another key for tests, long enough"


class Files(BaseHTTPRequestHandler):
    """Sends a picture, slowly, and records how many are sent at a time."""

    now = most = 0
    lock = threading.Lock()
    seconds = 0.0

    def do_GET(self) -> None:
        with Files.lock:
            Files.now += 1
            Files.most = max(Files.most, Files.now)
        time.sleep(Files.seconds)
        with Files.lock:
            Files.now -= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def server(port: int) -> Iterator[Served]:
    settings = ServerSettings(
        api_keys=(KEY, OTHER), max_num_seqs=2, deadline=3.0, max_fetches=2,
        allowed_hosts=(f"cdn.example:{port}", f"files.internal:{port}", f"localhost:{port}"),
        fetch_networks=("10.0.0.0/8",),
        limits=Limits(local_files=False, max_pixels=2**22, max_video_pixels=2**22, max_total_pixels=2**22),
        max_media_pixels=2**23,
    )  # fmt: skip
    with served(settings) as one:
        yield one


def uri(kind: str, data: bytes) -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    name = f"{kind.partition('/')[0]}_url"
    return {"type": name, name: {"url": url}}


def body(*parts: dict[str, Any], **more: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What color is it?"}]
    return {"model": "instruct", "messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}


def post(server: Served, body: dict[str, Any], key: str = KEY, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, **{"timeout": 60} | options)


def idle(server: Served) -> None:
    until(
        lambda: (
            not len(server.service._queue)
            and not len(server.service._decoding.queue)
            and not server.service._pixels.held
        )
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_video_bomb_ends_at_the_deadline(server: Served, stream: bool) -> None:
    bomb = uri("video/mp4", LONG_VIDEO)
    began = time.perf_counter()
    reply = post(server, body(bomb, stream=stream))
    seconds = time.perf_counter() - began
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert 2.5 < seconds < 5
    idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_decoding_of_its_video(server: Served, stream: bool) -> None:
    bomb = uri("video/mp4", LONG_VIDEO)
    with pytest.raises(httpx.ReadTimeout):
        post(server, body(bomb, stream=stream), timeout=0.8)
    began = time.perf_counter()
    idle(server)
    assert time.perf_counter() - began < 1.5


def test_another_key_decodes_while_one_key_sends_bombs(server: Served) -> None:
    bomb = uri("video/mp4", LONG_VIDEO)
    with ThreadPoolExecutor(3) as pool:
        bombs = [pool.submit(post, server, body(bomb)) for _ in range(3)]
        until(lambda: server.service._decoding.queue.waiting)
        began = time.perf_counter()
        assert post(server, body(uri("image/png", PICTURE)), OTHER).status_code == 200
        assert time.perf_counter() - began < 2
        assert [one.result().status_code for one in bombs] == [504] * 3
    idle(server)


def test_pictures_beyond_the_budget_of_a_request_are_refused(server: Served) -> None:
    large = uri("image/png", blank_png(1500))
    assert post(server, body(large)).status_code == 200
    reply = post(server, body(large, large))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "limit_exceeded")
    assert "limit for one request" in reply.json()["error"]["message"]
    idle(server)


def test_large_pictures_at_once_are_answered_within_the_budget_of_the_process(server: Served) -> None:
    figures = picture_bombs(server.url, KEY, os.getpid(), count=8, side=2000)
    assert figures["refused"] == 0
    assert figures["answered"] >= 4  # on a slow machine, the last ones reach the deadline while they wait for pixels
    idle(server)


def test_media_of_the_page_have_the_limits_of_requests(server: Served) -> None:
    """They were decoded before the request was admitted, and not counted."""
    service = server.service
    options = RequestOptions(
        mode="instruct", namespace=session_namespace("1", service.key_of(f"Bearer {KEY}", "").login)
    )
    events = service.stream_turn(lambda: parse("What?", [PICTURE]), options)
    next(events)
    assert service._pixels.held == 64 * 64
    events.close()
    assert service._pixels.held == 0
    large = Limits(max_video_pixels=2**40, max_total_pixels=2**40, max_video_bytes=2**30)
    with pytest.raises(APIError) as late:
        next(service.stream_turn(lambda: parse("What?", None, LONG_VIDEO, limits=large), options))
    assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    asked = replace(options, cancel=stop)
    assert not [*service.stream_turn(lambda: parse("What?", None, LONG_VIDEO, limits=large), asked)]
    until(lambda: service._pixels.held == 0)


def test_a_request_that_waits_is_not_fetched_and_ends_at_the_deadline(server: Served, port: int) -> None:
    Files.seconds = 0.0
    long = {
        "model": "thinking",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 20_000,
        "min_tokens": 20_000,
    }
    before = server.service._queue
    with ThreadPoolExecutor(8) as pool:
        many = [pool.submit(post, server, long) for _ in range(4)]
        until(lambda: len(before) == 4)
        Files.most = 0
        began = time.perf_counter()
        late = pool.submit(
            post, server, body({"type": "image_url", "image_url": {"url": f"http://localhost:{port}/a.png"}})
        )
        until(lambda: before.waiting == 1)
        time.sleep(0.3)
        assert Files.most == 0
        assert late.result().status_code in (200, 504)  # the places are free at the deadline of those before it
        assert time.perf_counter() - began < 5
        assert {one.result().status_code for one in many} == {504}
    idle(server)


def address(found: str) -> Any:
    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if isinstance(host, bytes):
            host = host.decode()
        if host in ("cdn.example", "files.internal"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]
        return REAL(host, port, *args, **options)

    return getaddrinfo


REAL = socket.getaddrinfo


@pytest.mark.parametrize("found", ["127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1"])
def test_an_allowed_name_with_a_private_address_is_not_fetched(
    server: Served, port: int, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", address(found))
    picture = {"type": "image_url", "image_url": {"url": f"http://cdn.example:{port}/a.png"}}
    reply = post(server, body(picture))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unreadable_media")
    assert "private address" in reply.json()["error"]["message"]
    assert found not in reply.text


def test_the_checked_address_is_the_one_that_is_connected_to(
    server: Served, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose second answer differs (DNS rebinding) is looked up once."""
    asked = list[str]()
    addresses = iter(["10.255.255.1", "127.0.0.1"])

    def getaddrinfo(host: Any, where: Any, *args: Any, **options: Any) -> Any:
        if host in ("files.internal", b"files.internal"):
            asked.append("asked")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(addresses), where))]
        return REAL(host, where, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    picture = {"type": "image_url", "image_url": {"url": f"http://files.internal:{port}/a.png"}}
    assert post(server, body(picture)).status_code in (400, 504)  # 10.255.255.1 is allowed, but nothing is there
    assert asked == ["asked"]


def test_fetches_of_one_key_are_limited(server: Served, port: int) -> None:
    Files.seconds, Files.most = 0.2, 0
    pictures = [{"type": "image_url", "image_url": {"url": f"http://localhost:{port}/{n}.png"}} for n in range(2)]
    with ThreadPoolExecutor(4) as pool:
        replies = [pool.submit(post, server, body(*pictures)) for _ in range(4)]
        assert {one.result().status_code for one in replies} == {200}
    assert Files.most == 2
    assert not server.app.state.fetcher._turns._queues
    idle(server)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_decoding": 0}, "max_decoding must be above 0"),
        ({"max_media_pixels": 1000}, "max_media_pixels must be at least"),
        ({"max_decoding": 5}, "max_media_pixels must be at least"),
        ({"max_fetches": 0}, "max_fetches must be above 0"),
        ({"fetch_networks": ("10.0.0.1/8",)}, "fetch_networks"),
        ({"fetch_networks": ("intern",)}, "fetch_networks"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerSettings(**wrong)
