"""Messages over HTTP: the same fields as in Python, and the requests to an endpoint."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving import Served, png, served
from vlroute import Router
from vlroute.errors import MessageError, UnreadableMediaError
from vlroute.inputs.messages import parse
from vlroute.serving.settings import ServerSettings

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8))
URI = "data:image/png;base64," + base64.b64encode(png(PICTURE)).decode()
TEXT = {"type": "text", "text": "What is it?"}


class Loopback(BaseHTTPRequestHandler):
    """Serves a picture, answers as an endpoint, and keeps the requests."""

    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        self._reply(png(PICTURE), "image/png")

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        delta = {"index": 0, "delta": {"role": "assistant", "content": "Noise."}, "finish_reason": "stop"}
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
        self._reply(f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode(), "text/event-stream")

    def _reply(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def loopback() -> Iterator[ThreadingHTTPServer]:
    Loopback.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Loopback)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture(scope="module")
def host(loopback: ThreadingHTTPServer) -> str:
    return f"127.0.0.1:{loopback.server_port}"


@pytest.fixture(scope="module")
def server(host: str) -> Iterator[Served]:
    with served(ServerSettings(allowed_hosts=(host,))) as one:
        yield one


def ask(server: Served, *messages: dict[str, Any], path: str = "/v1/chat/completions") -> tuple[int, dict[str, Any]]:
    with server.http() as http:
        reply = http.post(path, json={"messages": messages, "model": "instruct"})
    return reply.status_code, reply.json()


def user(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, TEXT], **fields}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route"])
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (user({"type": "image_url", "image_url": {"url": URI, "max_pixel": 9}}), "max_pixel"),
        (user({"type": "image_url", "image_url": {"url": URI}, "fps": 2}), "fps"),
        (user({"type": "image_url", "image_url": {"url": URI, "detail": "best"}}), "detail"),
        (user({"type": "image", "image": URI, "resized_width": 64}), "resized_height"),
        (user({"type": "video_url", "video_url": {"url": URI}, "nframes": 1}), "nframes"),
        (user({**TEXT, "txet": "?"}), "txet"),
        (user(contnet="?"), "contnet"),
        (user(images=["no base64!"]), "base64"),
    ],
)
def test_a_wrong_field_is_refused_by_name(server: Served, path: str, message: dict[str, Any], field: str) -> None:
    status, body = ask(server, message, path=path)
    assert status == 400
    assert field in body["error"]["message"]


def test_no_form_of_a_part_reads_a_file_of_the_server(server: Served, tmp_path: Any) -> None:
    file = tmp_path / "picture.png"
    file.write_bytes(png(PICTURE))
    for address in (str(file), file.as_uri(), "~/picture.png"):
        for kind in ("image", "video"):
            for key in (kind, "url", "path", "base64"):
                status, body = ask(server, user({"type": kind, key: address}))
                assert (status, "choices" in body) == (400, False), (kind, key, address)
        status, _ = ask(server, user({"type": "image_url", "image_url": {"url": address}}))
        assert status == 400
        status, _ = ask(server, user(images=[address]))
        assert status == 400


def test_all_forms_of_a_picture_are_equal(server: Served, host: str) -> None:
    raw, address = URI.partition(",")[2], f"http://{host}/a.png"
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": URI}},
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "input_image", "image_url": address, "detail": "auto"},
        {"type": "image", "url": address},
        {"type": "image", "image": address},
        {"type": "image", "image": URI},
        {"type": "image", "base64": raw},
    ]
    messages = [*map(user, parts), user(images=[raw])]
    answers = [ask(server, message)[1] for message in messages]
    assert len({answer["choices"][0]["message"]["content"] for answer in answers}) == 1
    assert len({answer["usage"]["prompt_tokens"] for answer in answers}) == 1
    assert sum(answer["vlroute"]["encoded"] for answer in answers) == 1


def test_options_apply_to_a_picture_that_is_fetched(server: Served, host: str) -> None:
    address = f"http://{host}/a.png"
    whole = ask(server, user({"type": "image", "url": address}))[1]["usage"]["prompt_tokens"]
    for part in (
        {"type": "image", "url": address, "max_pixels": 2304},
        {"type": "image_url", "image_url": {"url": address}, "max_pixels": 2304},
        {"type": "image_url", "image_url": {"url": address, "max_pixels": 2304}},
        {"type": "image_url", "image_url": {"url": URI, "max_pixels": 2304}},
    ):
        assert ask(server, user(part))[1]["usage"]["prompt_tokens"] < whole
    status, body = ask(server, user({"type": "image_url", "image_url": {"url": address, "max_pixel": 9}}))
    assert (status, "max_pixel" in body["error"]["message"]) == (400, True)


def test_an_answer_can_be_sent_back_as_the_client_received_it(server: Served) -> None:
    client = server.openai()
    first: Any = {"role": "user", "content": "What is 2 + 2?"}
    for model in ("instruct", "thinking"):
        said = client.chat.completions.create(model=model, messages=[first], max_tokens=200).choices[0].message
        for back in (said, said.model_dump(), said.model_dump(exclude_none=True)):
            again: Any = [first, back, {"role": "user", "content": "Sure?", "name": None}]
            assert client.chat.completions.create(model="instruct", messages=again, max_tokens=8).choices


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        ({}, lambda width, height: (width, height) == PICTURE.size),
        ({"detail": "high"}, lambda width, height: (width, height) == PICTURE.size),
        ({"detail": "low"}, lambda width, height: 200_000 < width * height <= 512 * 512),
        ({"max_pixels": 100_000}, lambda width, height: 75_000 < width * height <= 100_000),
        ({"min_pixels": 900_000}, lambda width, height: 900_000 <= width * height < 1_100_000),
        ({"resized_height": 100, "resized_width": 333}, lambda width, height: (width, height) == (320, 96)),
    ],
)
def test_an_endpoint_gets_the_requested_size(host: str, options: dict[str, Any], fits: Any) -> None:
    endpoint = (f"http://{host}/v1", "m")
    with Router.from_endpoints(endpoint, endpoint) as router:
        answer = router.ask([user({"type": "image", "image": PICTURE, **options})], mode="instruct", caption="noise")
    assert answer.text == "Noise."
    sent = Loopback.asked[-1]["messages"][0]["content"][0]["image_url"]["url"]
    assert fits(*Image.open(io.BytesIO(base64.b64decode(sent.partition(",")[2]))).size)


@pytest.mark.parametrize("value", [5, True, {"url": 5}])
@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_source_of_a_wrong_type_is_told_what_the_server_accepts(kind: str, value: Any) -> None:
    for part in ({"type": kind, kind: value}, {"type": f"{kind}_url", f"{kind}_url": value}):
        with pytest.raises((UnreadableMediaError, MessageError)) as caught:
            parse([{"role": "user", "content": [part, TEXT]}], limits=ServerSettings().limits)
        said = str(caught.value)
        assert f"data:{kind}/" in said
        assert not any(word in said for word in ("PIL", "numpy", "array", "path"))
