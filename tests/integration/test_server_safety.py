"""What a server refuses: other hosts, internal addresses, and large bodies; requests that its schema allows."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from tests.conftest import task
from tests.serving import Served, png, served, user
from vlroute.inputs.media import Limits
from vlroute.serving.settings import ServerSettings

SOME = task("ocr")
#: Requests to each endpoint; `make soak` sends more.
CASES = int(os.environ.get("VLROUTE_SCHEMA_CASES", "60"))
PICTURE = png(SOME.frames[0])


class Files(BaseHTTPRequestHandler):
    """A server of pictures and of other responses."""

    def do_GET(self) -> None:
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
            return
        body = {"/picture.png": PICTURE, "/large": b"x" * 400_000, "/text": b"no picture"}.get(self.path)
        self.send_response(200 if body else 404)
        if self.path == "/gzip":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.path == "/slow":
            threading.Event().wait(3)
        self.wfile.write(body or b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def server(files: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = Limits(local_files=False, max_bytes=300_000)
    settings = ServerSettings(limits=limits, max_body=2_000_000, allowed_hosts=(files,), fetch_seconds=1.0)
    with served(settings, store=tmp_path_factory.mktemp("store") / "answers.db") as one:
        yield one


def asked(url: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": SOME.prompt}]
    return {"messages": [{"role": "user", "content": content}], "model": "instruct"}


def test_pictures_come_from_allowed_hosts_only(server: Served, files: str) -> None:
    with server.http() as http:
        fetched = http.post("/v1/chat/completions", json=asked(f"http://{files}/picture.png")).json()
        sent = http.post("/v1/chat/completions", json={"messages": [user(SOME)], "model": "instruct"}).json()
        assert fetched["choices"][0]["message"] == sent["choices"][0]["message"]
        port = files.partition(":")[2]
        for url in (
            f"http://localhost:{port}/picture.png", f"http://{files.partition(':')[0]}/picture.png",
            f"http://127.1:{port}/picture.png", f"http://2130706433:{port}/picture.png",
            f"http://[::ffff:127.0.0.1]:{port}/picture.png", f"http://user:pass@{files}/picture.png",
            f"http://{files}@evil.example/picture.png", f"http://evil.example\\@{files}/picture.png",
            f"http://{files}.evil.example/", f"ftp://{files}/picture.png", f"//{files}/picture.png",
            f"http://{files}#@evil.example", "http://", "http://\x00", "https://" + "a" * 5000,
            f"http://{files}/redirect", f"http://{files}/missing", f"http://{files}/large", f"http://{files}/slow",
            f"http://{files}/text", f"http://{files}/gzip",
        ):  # fmt: skip
            said = http.post("/v1/chat/completions", json=asked(url))
            assert said.status_code == 400, (url, said.text)
            assert said.json()["error"]["code"] in ("unreadable_media", "limit_exceeded"), (url, said.text)


def test_the_messages_api_fetches_from_allowed_hosts_only(server: Served, files: str) -> None:
    def message(source: dict[str, Any]) -> Any:
        content: Any = [{"type": "image", "source": source}, {"type": "text", "text": SOME.prompt}]
        return server.anthropic().messages.create(
            model="instruct", max_tokens=40, messages=[{"role": "user", "content": content}]
        )

    data = base64.b64encode(PICTURE).decode()
    sent = message({"type": "base64", "media_type": "image/png", "data": data})
    assert message({"type": "url", "url": f"http://{files}/picture.png"}).content == sent.content
    for url in (
        f"http://localhost:{files.partition(':')[2]}/picture.png",
        f"http://{files}/redirect",
        f"http://{files}/text",
    ):
        with pytest.raises(anthropic.BadRequestError):
            message({"type": "url", "url": url})


def test_bodies_are_limited_and_declared_as_json(server: Served) -> None:
    with server.http() as http:
        large = json.dumps({"messages": [{"role": "user", "content": "x" * 3_000_000}]}).encode()
        as_json = {"Content-Type": "application/json"}
        assert http.post("/v1/route", content=large, headers=as_json).status_code == 413
        chunks = (large[i : i + 65536] for i in range(0, len(large), 65536))  # without a Content-Length
        said = http.post("/v1/route", content=chunks, headers=as_json)
        assert (said.status_code, said.json()["error"]["code"]) == (413, "body_too_large")
        small = b'{"messages":[{"role":"user","content":"hi"}]}'
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
            assert http.post("/v1/route", content=small, headers={"Content-Type": kind}).status_code == 415
        assert http.post(
            "/v1/route", content=small, headers={"Content-Type": "application/json; charset=utf-8"}
        ).is_success
        for broken in (b"", b"{", b"[" * 100_000, b'{"messages": NaN}', b"\xff\xfe", b'{"a":' * 5000, b"1" * 5000):
            said = http.post("/v1/route", content=broken, headers=as_json)
            assert said.status_code in (400, 422), broken[:20]
            assert set(said.json()) == {"error"}


def test_other_host_names_are_refused(server: Served) -> None:
    with server.http() as http:
        for host in (
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "x:localhost",
        ):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 421
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1:80", "[::1]:7860"):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_lone_surrogates_are_no_server_error(server: Served) -> None:
    with server.http() as http:
        for body in (
            b'{"model":"\\ud800","messages":[{"role":"user","content":"hi"}]}',
            b'{"messages":[{"role":"user","content":"\\ud800"}]}',
            b'{"messages":[{"role":"\\ud800","content":"hi"}]}',
            b'{"\\ud800":1,"messages":[{"role":"user","content":"hi"}],"model":"instruct"}',
            b'{"messages":[{"role":"user","content":"hi"}],"reasoning_effort":"\\ud800"}',
            b'{"messages":[{"role":"user","content":"hi"}],"vlroute":{"caption":"\\ud800"}}',
            b'{"messages":[{"role":"user","content":"hi"}],"vlroute":{"\\ud800":1}}',
        ):
            for path in ("/v1/route", "/v1/chat/completions", "/v1/messages"):
                said = http.post(path, content=body, headers={"Content-Type": "application/json"})
                assert said.status_code < 500, (path, body, said.text)
        for body in (
            b'{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"\\ud800"}]}]}',
            b'{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"text","\\ud800":"x"}]}]}',
            b'{"max_tokens":5,"messages":[{"role":"user","content":"x"}],"tools":[{"type":"\\ud800"}]}',
            b'{"max_tokens":5,"messages":[{"role":"user","content":"x"}],"stop_sequences":["\\ud800"],"model":"instruct"}',
            b'{"max_tokens":5,"messages":[{"role":"user","content":"x"}],"system":"\\ud800"}',
            b'{"max_tokens":5,"messages":[{"role":"user","content":[' + b"[" * 900 + b"]" * 900 + b"]}]}",
            b'{"max_tokens":5,"messages":[{"role":"user","content":"x"}],"tools":[{"name":"x","input_schema":'
            + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}]}",
        ):  # fmt: skip
            said = http.post("/v1/messages", content=body, headers={"Content-Type": "application/json"})
            assert said.status_code < 500, (body, said.text)


def test_requests_that_the_schema_allows_are_no_server_error(server: Served) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 15
    for operation in operations:

        @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy())
        def never_a_500(case: Any) -> None:
            case.call_and_validate(checks=[not_a_server_error])

        never_a_500()
