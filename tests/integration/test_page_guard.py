"""The web page: requests of other sites, the quota of uploads, cookies and headers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from starlette.responses import PlainTextResponse

from tests.serving import KEY, Served, served, until
from vlroute.serving import app
from vlroute.serving.app import mount_page
from vlroute.serving.page_guard import YOUNG_SECONDS, PageGuard, shrink
from vlroute.serving.settings import ServerSettings

FILE = {"files": ("a.png", b"x" * 1000, "image/png")}
UPLOAD = "/gradio_api/upload"


@pytest.fixture(scope="module")
def page() -> Iterator[Served]:
    settings = ServerSettings(cors_origins=("https://friend.example",), max_uploads=10**6)
    with served(settings, mount_page) as server:
        yield server


@pytest.fixture
def http(page: Served) -> Iterator[httpx.Client]:
    with page.http() as client:
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://other.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another port is another origin
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1"},
    ],
)
@pytest.mark.parametrize("path", [UPLOAD, "/gradio_api/queue/join", "/login", "/zh/gradio_api/upload"])
def test_other_sites_cannot_write(http: httpx.Client, headers: dict[str, str], path: str) -> None:
    refused = http.post(path, headers=headers, files=FILE)
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "wrong_origin"


@pytest.mark.parametrize("site", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "https://friend.example"}])
def test_its_own_page_programs_and_listed_origins_can(http: httpx.Client, site: dict[str, str]) -> None:
    (path,) = http.post(UPLOAD, headers=site, files=FILE).raise_for_status().json()
    assert Path(path).read_bytes() == b"x" * 1000


def test_the_origin_is_compared_with_the_host(http: httpx.Client, page: Served) -> None:
    assert http.post(UPLOAD, headers={"Origin": page.url}, files=FILE).status_code == 200


def test_an_origin_that_is_no_address_is_refused(http: httpx.Client) -> None:
    refused = http.post(UPLOAD, headers={"Origin": "http://[::1"}, files=FILE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "wrong_origin")


def sent(function: Any) -> list[Any]:
    """What the page sends at first for the inputs of a function."""
    return [None if isinstance(one, gr.State) else getattr(one, "value", None) for one in function.inputs]


CALL = {"data": [None], "fn_index": 0, "session_hash": "a1"}
CALLS = [
    {"session_hash": ""}, {"session_hash": None}, {"session_hash": "\ud800"}, {"session_hash": "a b"},
    {"fn_index": 99999}, {"fn_index": 2**70}, {"fn_index": "0"}, {"fn_index": True}, {"data": None},
    {"data": [1] * 50}, {"data": {}},
    {"data": ["\ud800"]}, {"data": [{"path": "/etc/passwd"}]}, {"data": [[{"a": {"path": 5}}]]},
    {"event_data": {"path": "/proc/self/environ"}}, {"batched": True}, {"simple_format": True}, {"event_id": "x"},
]  # fmt: skip


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict"])
def test_only_calls_of_functions_of_the_page_are_passed_on(
    http: httpx.Client, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    for body in [*(json.dumps(CALL | change) for change in CALLS), "[]", "1", "null", "", "{", "[" * 300]:
        refused = http.post(path, content=body.encode(), headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_call"), body
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "value", ["x", 5, [1], [{"a": 1}], [{"path": None}], [{"path": "{file}"}], {"path": "{file}"}, [[]], {"a": {}}]
)
def test_values_of_wrong_types_are_refused(
    http: httpx.Client, page: Served, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Gradio answered with status 500 and a traceback."""
    (path,) = http.post(UPLOAD, files=FILE).json()
    value = json.loads(json.dumps(value).replace("{file}", path))
    seen = 0
    for index, function in guard_of(page).blocks.fns.items():
        for at, block in enumerate(function.inputs):
            if isinstance(block, gr.File | gr.MultimodalTextbox):
                values = sent(function)
                values[at] = value
                call = {"data": values, "fn_index": index, "session_hash": "types"}
                for name in ("run/predict", "queue/join"):
                    refused = http.post(f"/gradio_api/{name}", json=call)
                    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_call")
                seen += 1
    assert seen
    assert "Traceback" not in capfd.readouterr().err


WRONG: list[tuple[type[Any], list[Any]]] = [
    (gr.Radio, ["none", "A" * 2_000_000, 5, True, [], {}]),
    (gr.Dropdown, ["none", 5, 1.0, True, ["auto"], {"a": 1}]),
    (gr.Slider, [None, -1, 99, 10**400, float("nan"), float("inf"), True, "5", [], {}]),
    (gr.Checkbox, [None, 0, 1, "true", []]),
    (gr.Textbox, [None, 5, True, [], {}]),
    (gr.HTML, [5, [], {}]),
    (gr.MultimodalTextbox, [None, {"text": None}, {"text": "x", "files": None}]),
]


@pytest.mark.parametrize(("kind", "values"), WRONG, ids=lambda one: getattr(one, "__name__", ""))
def test_values_that_the_page_never_sends_are_refused(
    http: httpx.Client, page: Served, kind: type[Any], values: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    """Gradio, or the function of the page, failed with status 500, and the log contained the value."""
    guard, inputs = guard_of(page), [
        (index, function, at) for index, function in guard_of(page).blocks.fns.items()
        for at, block in enumerate(function.inputs) if isinstance(block, kind)
    ]  # fmt: skip
    assert inputs
    for index, function, at in inputs:
        for value in values:
            call = {"data": sent(function), "fn_index": index, "session_hash": "wrong", "event_data": EVENT}
            call["data"][at] = value
            name = "queue/join" if guard.blocks.fns[index].queue else "run/predict"
            refused = http.post(
                f"/gradio_api/{name}", content=json.dumps(call), headers={"Content-Type": "application/json"}
            )
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_call"), str(value)[:50]
            assert len(refused.content) < 500
    assert not capfd.readouterr().err


EVENT = {"index": 0, "value": "x", "liked": True}


@pytest.mark.parametrize(
    "event", [None, 5, "x", [], {}, {"index": 0}, {"value": 1}], ids=lambda event: json.dumps(event)
)
def test_events_without_their_data_are_refused(http: httpx.Client, page: Served, event: Any) -> None:
    found = [at for at, one in guard_of(page).blocks.fns.items() if one.collects_event_data]
    assert found
    for index in found:
        call = {"data": sent(guard_of(page).blocks.fns[index]), "fn_index": index, "session_hash": "event"}
        refused = http.post("/gradio_api/queue/join", json={**call, "event_data": event})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_call")
        refused = http.post("/gradio_api/queue/join", json={**call, "event_data": EVENT, "trigger_id": "x" * 1000})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_call")


@pytest.mark.parametrize("index", [-1, 99, 10**400, "0", None, [0, 0], {"a": 1}, True])
def test_an_example_that_does_not_exist(
    http: httpx.Client, page: Served, index: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    at, function = next((at, one) for at, one in guard_of(page).blocks.fns.items() if one.collects_event_data)
    call = {"data": sent(function), "fn_index": at, "session_hash": "example", "event_data": EVENT | {"index": index}}
    http.post("/gradio_api/queue/join", json=call).raise_for_status()
    assert completed(http, "example")
    assert "Traceback" not in capfd.readouterr().err


def test_no_preset(http: httpx.Client, page: Served, capfd: pytest.CaptureFixture[str]) -> None:
    at, function = next((at, one) for at, one in guard_of(page).blocks.fns.items() if one.name == "choose")
    http.post("/gradio_api/queue/join", json={"data": sent(function), "fn_index": at, "session_hash": "preset"})
    assert completed(http, "preset")
    assert "Traceback" not in capfd.readouterr().err


def test_the_choices_are_those_of_the_session(http: httpx.Client, page: Served) -> None:
    """The columns of a table can be chosen after it was read, in this session only."""
    fns = guard_of(page).blocks.fns
    (path,) = http.post(UPLOAD, files={"files": ("t.csv", b"prompt,other\nHi,1\n", "text/csv")}).json()
    read, remap = (next(at for at, one in fns.items() if one.name == name) for name in ("read", "remap"))
    table = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    call = {"data": [table, None], "fn_index": read, "session_hash": "table"}
    http.post("/gradio_api/queue/join", json=call).raise_for_status()
    assert completed(http, "table")
    for session, column, status in (("table", 1, 200), ("table", 2, 400), ("elsewhere", 1, 400)):
        call = {"data": [None, column, -1 if session == "table" else None, None], "fn_index": remap}
        reply = http.post("/gradio_api/run/predict", json={**call, "session_hash": session})
        assert reply.status_code == status


def completed(client: httpx.Client, session: str) -> bool:
    """Whether the event of a session is completed without an error."""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}, timeout=30) as events:
        for line in events.iter_lines():
            if "process_completed" in line:
                return bool(json.loads(line.removeprefix("data: "))["success"])
    return False


@pytest.mark.parametrize("name", ["", "..", "a" * 300, "{file}/x", "b" * 5000], ids=lambda name: name[:9])
def test_files_that_cannot_be_opened_are_refused(
    http: httpx.Client, page: Served, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (path,) = http.post(UPLOAD, files=FILE).json()
    file = {"path": os.path.join(os.path.dirname(path), name.format(file=path)), "meta": {"_type": "gradio.FileData"}}
    at = next(at for at, one in guard_of(page).blocks.fns.items() if one.name == "read")
    refused = http.post("/gradio_api/queue/join", json={"data": [[file], None], "fn_index": at, "session_hash": "f"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_call")
    assert "Traceback" not in capfd.readouterr().err


def test_a_question_has_pictures_and_videos_only(http: httpx.Client, page: Served) -> None:
    at, function = next((at, one) for at, one in guard_of(page).blocks.fns.items() if one.name == "submit")
    for name, status in (("a.csv", 400), ("a", 400), ("a.png", 200), ("a.MP4", 200)):
        (path,) = http.post(UPLOAD, files={"files": (name, b"x", "image/png")}).json()
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "mime_type": "A" * 10_000}
        values = sent(function)
        values[0] = {"text": "Hi", "files": [file]}
        call = {"data": values, "fn_index": at, "session_hash": "kinds"}
        assert http.post("/gradio_api/queue/join", json=call).status_code == status
    assert completed(http, "kinds")


def test_an_event_of_a_session_without_a_name_does_not_stop_the_others(http: httpx.Client, page: Served) -> None:
    """It ended the task that runs Gradio's queue."""
    http.post("/gradio_api/queue/join", json=CALL | {"session_hash": ""})
    time.sleep(0.5)
    index, function = next((at, one) for at, one in guard_of(page).blocks.fns.items() if one.queue)
    call = {"data": sent(function), "fn_index": index, "session_hash": "a2"}
    http.post("/gradio_api/queue/join", json=call).raise_for_status()
    with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "a2"}) as events:
        assert any("process_completed" in line for line in events.iter_lines())


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/self/environ", "/dev/zero", "{uploads}/../../etc/passwd", "{link}"]
)
@pytest.mark.parametrize("guarded", [True, False])
def test_no_visitor_reads_a_file_of_the_server(
    http: httpx.Client, page: Served, path: str, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradio copied each file into the folder that it serves, if a function got its path in the place of an upload."""
    guard = guard_of(page)
    link = guard.uploads / "link.png"
    link.symlink_to("/etc/passwd")
    if not guarded:  # the second line of defense: Gradio's own check
        monkeypatch.setattr(guard, "_is_plain", lambda value: True)
    before = {file for file in guard.uploads.rglob("*") if file.is_file()}
    file = {"path": path.format(uploads=guard.uploads, link=link), "meta": {"_type": "gradio.FileData"}}
    try:
        for index, function in guard.blocks.fns.items():
            for at in range(len(function.inputs)):
                values = sent(function)
                values[at] = file
                call = {"data": values, "fn_index": index, "session_hash": "files"}
                reply = http.post("/gradio_api/run/predict", json=call)
                assert reply.status_code == 400 if guarded else "root:" not in reply.text
    finally:
        link.unlink()
    assert {file for file in guard.uploads.rglob("*") if file.is_file()} <= before


def test_a_heartbeat_needs_a_log_in_and_keeps_nobody_out() -> None:
    settings = ServerSettings(api_keys=(KEY,), max_connections=20, forwarded_allow_ips=())
    with served(settings, mount_page) as server, ExitStack() as stack:
        client = stack.enter_context(server.http())
        assert client.get("/gradio_api/heartbeat/x").status_code == 401
        client.post("/login", data={"username": "me", "password": KEY}).raise_for_status()
        cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
        parts = httpx.URL(server.url)
        for at in range(40):
            one = stack.enter_context(closing(socket.create_connection((parts.host, parts.port or 80), timeout=10)))
            one.sendall(
                f"GET /gradio_api/heartbeat/s{at} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n".encode()
            )
            assert one.recv(100).startswith(b"HTTP/1.1 200 ")
        for _ in range(5):
            assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200


def test_one_visitor_does_not_fill_the_queue(http: httpx.Client, page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """With n places, n/2 are for one visitor."""
    guard = guard_of(page)
    queue = guard.blocks._queue
    client = SimpleNamespace(host="")
    running = SimpleNamespace(closed=False, username=None, fn=None, request=SimpleNamespace(client=client))
    index = next(at for at, one in guard.blocks.fns.items() if one.queue)
    call = {"data": sent(guard.blocks.fns[index]), "fn_index": index, "session_hash": "many"}
    for host, status in (("127.0.0.1", 503), ("192.0.2.1", 200)):
        running.request.client.host = host
        monkeypatch.setattr(queue, "event_ids_to_events", {str(at): running for at in range(queue.max_size // 2)})
        reply = http.post("/gradio_api/queue/join", json=call)
        assert reply.status_code == status
        assert status == 200 or reply.json()["error"]["code"] == "queue_full"


def test_one_visitor_does_not_fill_the_places_of_a_function(
    http: httpx.Client, page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guard_of(page)
    index, function = next((at, one) for at, one in guard.blocks.fns.items() if isinstance(one.concurrency_limit, int))
    client = SimpleNamespace(host="127.0.0.1")
    running = SimpleNamespace(closed=False, username=None, fn=function, request=SimpleNamespace(client=client))
    call = {"data": sent(function), "fn_index": index, "session_hash": "many"}
    half = function.concurrency_limit // 2
    for host, count, status in (
        ("127.0.0.1", half, 503), ("127.0.0.1", half - 1, 200), ("192.0.2.1", function.concurrency_limit, 200)
    ):  # fmt: skip
        client.host = host
        monkeypatch.setattr(guard.blocks._queue, "event_ids_to_events", {str(at): running for at in range(count)})
        assert http.post("/gradio_api/queue/join", json=call).status_code == status


def test_answers_of_one_visitor_do_not_keep_others_waiting() -> None:
    """Gradio's own limit was four for all visitors."""
    other = "another key for tests, long"
    endless = {"thinking": {"eos_token_id": -1, "max_new_tokens": 6000}}
    with (
        served(ServerSettings(api_keys=(KEY, other)), mount_page, generation=endless) as server,
        logged_in(server, KEY) as busy, logged_in(server, other) as client,
    ):  # fmt: skip
        with ThreadPoolExecutor(80) as threads:  # at the same time, so that Gradio has noted none of them

            def ask(at: int) -> int:
                return join(server, busy, f"busy{at}", "Think for long.", "thinking").status_code

            statuses = [*threads.map(ask, range(80))]
        accepted = statuses.count(200)
        assert 6 <= accepted <= guard_of(server).blocks._queue.max_size // 2
        assert statuses.count(503) == 80 - accepted
        until(lambda: len(server.service._admitted) == accepted)
        join(server, client, "mine", "Add 2 and 3.", "instruct").raise_for_status()
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "mine"}, timeout=30) as events:
            assert any("process_completed" in line for line in events.iter_lines())
        assert len(server.service._admitted) == accepted


def test_calls_without_the_queue_run_in_turn(http: httpx.Client, page: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradio needs tens of milliseconds of the event loop for each; sixteen at once stopped it for most of a second."""
    running, most = 0, 0

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        await PlainTextResponse("done")(scope, receive, send)

    guard = guard_of(page)
    monkeypatch.setattr(guard, "app", slow)
    index, function = next((at, one) for at, one in guard.blocks.fns.items() if not one.queue)
    call = {"data": sent(function), "fn_index": index, "session_hash": "one"}
    with ThreadPoolExecutor(6) as threads:
        replies = [*threads.map(lambda _: http.post("/gradio_api/run/predict", json=call).status_code, range(6))]
    assert (replies, most) == ([200] * 6, 1)


def join(page: Served, client: httpx.Client, session: str, text: str, mode: str) -> httpx.Response:
    """Send a question of the Chat tab."""
    index, function = next((at, one) for at, one in guard_of(page).blocks.fns.items() if one.name == "submit")
    values = sent(function)
    values[0] = {"text": text, "files": []}
    values[[block.elem_id for block in function.inputs].index("mode")] = mode
    return client.post("/gradio_api/queue/join", json={"data": values, "fn_index": index, "session_hash": session})


@contextmanager
def logged_in(page: Served, key: str) -> Iterator[httpx.Client]:
    with page.http() as client:
        client.post("/login", data={"username": "me", "password": key}).raise_for_status()
        yield client


def test_the_oldest_session_of_the_visitor_with_most_sessions_makes_room(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = guard_of(page)
    monkeypatch.setattr(guard.blocks, "state_session_capacity", 4)
    monkeypatch.setattr(guard, "_sessions", OrderedDict())
    holder = guard.blocks.state_holder
    for visitor, session in (
        ("one", "a"), ("many", "b"), ("many", "c"), ("many", "d"), ("many", "b"), ("other", "e"), ("many", "f")
    ):  # fmt: skip
        guard._use_session(visitor, session)
        holder[session]  # Gradio creates it
    assert [*guard._sessions] == ["a", "b", "e", "f"]
    assert {"a", "b", "e", "f"} <= {*holder.session_data}
    assert not {"c", "d"} & {*holder.session_data, *holder.time_last_used}


TYPES = {
    "/login": ("application/json", "text/plain", ""), UPLOAD: ("application/json", "multipart/x", ""),
    **dict.fromkeys(
        ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/cancel", "/gradio_api/reset"),
        ("multipart/x", "multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", TYPES)
def test_bodies_are_refused_before_they_are_read(http: httpx.Client, page: Served, path: str) -> None:
    """Gradio read bodies of any size into memory, or into a file, before it looked at the log-in."""
    for kind in TYPES[path]:
        assert answered(page, path, kind, 2**31).startswith(b"HTTP/1.1 415 "), kind
    kind = "multipart/form-data; boundary=x" if path in (UPLOAD, "/login") else "application/json"
    assert answered(page, path, kind, 2**31).startswith(b"HTTP/1.1 413 ")
    if path != UPLOAD:  # without a declared length
        pieces = (b"x" * 2**16 for _ in range(128))
        assert http.post(path, content=pieces, headers={"Content-Type": kind}).status_code == 413


@pytest.mark.parametrize("path", ["queue/join", "run/predict", "upload", "cancel", "reset"])
def test_nothing_is_read_of_visitors_who_have_not_logged_in(path: str) -> None:
    with served(ServerSettings(api_keys=(KEY,)), mount_page) as server:
        kind = "multipart/form-data; boundary=x" if path == "upload" else "application/json"
        assert answered(server, f"/gradio_api/{path}", kind, 1000).startswith(b"HTTP/1.1 401 ")
        for read in ("queue/data?session_hash=x", "upload_progress?upload_id=x", "file=/etc/passwd", "heartbeat/x"):
            assert httpx.get(f"{server.url}/gradio_api/{read}").status_code == 401


def answered(page: Served, path: str, kind: str, length: int) -> bytes:
    """The beginning of the response to a header whose body is never sent."""
    url = httpx.URL(page.url)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    with closing(socket.create_connection((url.host, url.port or 80), timeout=10)) as one:
        one.sendall(head.encode())
        return one.recv(100)


def test_an_upload_counts_what_has_arrived(page: Served, http: httpx.Client) -> None:
    """A declared length removed the files of others, or kept them out."""
    guard = guard_of(page)
    (kept,) = http.post(UPLOAD, files={"files": ("old.png", b"o" * 1000, "image/png")}).raise_for_status().json()
    os.utime(kept, (0, time.time() - 2 * YOUNG_SECONDS))
    url = httpx.URL(page.url)
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        "Content-Length: 300000\r\n\r\n"
    )
    for content in (b"", b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nx'):
        held = guard._uploaded.held
        with closing(socket.create_connection((url.host, url.port or 80), timeout=10)) as one:
            one.sendall(head.encode() + content)
            until(lambda content=content: bool(guard._arriving) == bool(content))
        until(lambda: guard._arriving == 0)
        assert guard._uploaded.held <= held + 4096
    assert http.post(UPLOAD, files=FILE).status_code == 200
    assert Path(kept).exists()


def test_a_visitor_leaves_as_much_room_for_uploads_as_it_has_used() -> None:
    settings = ServerSettings(api_keys=(KEY, "another key for tests, long"), max_uploads=600_000)
    with served(settings, mount_page) as server:
        files = {"files": ("a.png", b"x" * 190_000, "image/png")}
        with logged_in(server, KEY) as many, logged_in(server, "another key for tests, long") as other:
            assert many.post(UPLOAD, files=files).status_code == 200
            refused = many.post(UPLOAD, files={"files": ("b.png", b"x" * 250_000, "image/png")})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
            assert other.post(UPLOAD, files=files).status_code == 200
        guard = guard_of(server)
        until(lambda: guard._arriving == 0)


def test_a_link_of_another_site_does_not_log_out() -> None:
    with served(ServerSettings(api_keys=(KEY,)), mount_page) as server, logged_in(server, KEY) as client:
        assert client.get("/logout", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert client.get("/config").status_code == 200
        assert client.get("/logout", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 302
        assert client.get("/config").status_code == 401


def test_logging_out_ends_one_session() -> None:
    with served(ServerSettings(api_keys=(KEY,)), mount_page) as server:
        clients = [server.http() for _ in range(2)]
        for client in clients:
            client.post("/login", data={"username": "me", "password": KEY}).raise_for_status()
        cookies = dict(clients[0].cookies)
        clients[0].get("/logout")
        assert clients[1].get("/config").status_code == 200
        assert httpx.get(f"{server.url}/config", cookies=cookies).status_code == 401


READ = [
    "/?page=zzz", "/?page=%00", "/?deep_link=x", "/config?page=zzz", "/static/%00", f"/static/{'a' * 256}",
    f"/static/{'a' * 300}", f"/assets/{'é' * 200}", f"/assets/{'a' * 5000}", "/assets/%00", "/svelte/x", "/monitoring",
    "/monitoring/summary", "/pwa_icon/9", "/gradio_api/proxy=http://[::1", "/gradio_api/file=http://127.0.0.1/",
    "/gradio_api/file=https://example.com/a.png", "/gradio_api/file=~root", "/gradio_api/file=%00",
    f"/gradio_api/file=/{'a' * 300}", "/gradio_api/queue/data", "/gradio_api/queue/data?session_hash=zz",
    "/gradio_api/call/x/y", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/stream/a/b/1/playlist.m3u8",
    "/gradio_api/heartbeat/%C3%A9", "/gradio_api/custom_component/a/client/b/c", "/gradio_api/run-history/records",
    "/gradio_api/startup-events", "/gradio_api/vibe-code", "/gradio_api/token", "/gradio_api/deep_link?session_hash=x",
]  # fmt: skip
WRITTEN = [
    "run/nope", "call/nope", "call/v2/nope", "api/predict", "component_server", "stream/x", "stream/x/close",
    "process_recording", "vibe-edit", "undo-vibe-edit", "vibe-code", "vibe-starter-queries", "run-history/connect",
]  # fmt: skip


def test_what_the_page_does_not_ask_for_is_not_found(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    for path in READ:
        refused = http.get(path)
        assert (refused.status_code, "error" in refused.json()) == (404, True), path
    for name in WRITTEN:
        refused = http.post(f"/gradio_api/{name}", json=CALL)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found"), name
    assert http.delete("/login").status_code == 404
    assert http.get("/gradio_api/file=/etc/passwd").status_code == 403
    assert http.get("/static/missing.js").status_code == 404
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("value", ["\xe9" * 20_000, "a" * 300, "<script>", "a b@c"])
def test_headers_that_name_no_host(http: httpx.Client, value: str) -> None:
    for path in ("/", "/zh", "/logout", "/config"):
        refused = http.get(path, headers={"X-Forwarded-Host": value.encode("latin-1")})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_header")
    assert http.get("/", headers={"X-Forwarded-Host": "localhost:7860"}).status_code == 200


@pytest.mark.parametrize(("trusted", "seen"), [((), 0), (("127.0.0.1",), 1)])
def test_only_a_trusted_proxy_chooses_the_address_of_the_page(trusted: tuple[str, ...], seen: int) -> None:
    with served(ServerSettings(forwarded_allow_ips=trusted), mount_page) as server, server.http() as http:
        for headers, expected in (
            ({"X-Gradio-Server": "http://other.example"}, 0), ({"X-Forwarded-Host": "other.example"}, seen)
        ):  # fmt: skip
            for path in ("/", "/config"):
                reply = http.get(path, headers=headers).raise_for_status()
                assert ("other.example" in reply.text) == expected
        secure = http.get("/config", headers={"X-Forwarded-Proto": "https"}).json()["root"].startswith("https:")
        assert secure == seen


def test_only_files_that_are_the_same_for_all_stay_in_caches(http: httpx.Client) -> None:
    (path,) = http.post(UPLOAD, files=FILE).json()
    script = re.search(r'(?:src|href)="(?:\./|/)?(assets/[^"]+)"', http.get("/").text)
    assert script is not None
    for address, expected in (
        ("/", "no-store"), ("/zh", "no-store"), ("/config", "no-store"), (f"/gradio_api/file={path}", "private")
    ):  # fmt: skip
        assert http.get(address).raise_for_status().headers["cache-control"] == expected
    for address in (f"/{script[1]}", "/theme.css"):
        assert "no-store" not in http.get(address).raise_for_status().headers.get("cache-control", "")


RANGES = [
    ("bytes=0-5", 206, b"012345"), ("bytes=5-", 206, b"56789"), ("bytes=-3", 206, b"789"), ("bytes=4-4", 206, b"4"),
    ("bytes=8-99", 206, b"89"), ("bytes=10-12", 416, None), ("bytes=5-1", 200, None), ("bytes=0-1,2-3", 200, None),
    ("bytes=0-1-2", 200, None), (f"bytes=0-{'9' * 5000}", 200, None), ("bytes=\xb2-\xb3", 200, None),
    ("bytes=-", 200, None), ("lines=0-1", 200, None), ("", 200, None),
]  # fmt: skip


@pytest.mark.parametrize(("range", "status", "content"), RANGES, ids=[one[0][:20] for one in RANGES])
def test_parts_of_files(http: httpx.Client, range: str, status: int, content: bytes | None) -> None:
    """Gradio sent the headers of the request back, with the cookies, and failed for several ranges."""
    (path,) = http.post(UPLOAD, files={"files": ("a.txt", b"0123456789", "text/plain")}).json()
    forged = {
        "Cookie": "access-token-x=secret",
        "Set-Cookie": "a=b",
        "Location": "http://other.example",
        "X-Other": "1",
    }
    reply = http.get(f"/gradio_api/file={path}", headers={**forged, "Range": range.encode("latin-1")})
    assert reply.status_code == status
    assert status == 416 or reply.content == (b"0123456789" if content is None else content)
    assert not {name.lower() for name in forged} & {*reply.headers}
    assert "secret" not in str(reply.headers)
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("encoding", ["br", "gzip", "identity"])
def test_compressed_files(http: httpx.Client, encoding: str) -> None:
    content = b"prompt,a\n" * 1000
    (path,) = http.post(UPLOAD, files={"files": ("a.csv", content, "text/csv")}).json()
    with http.stream("GET", f"/gradio_api/file={path}", headers={"Accept-Encoding": encoding}) as reply:
        assert reply.headers.get("content-encoding", "identity") == encoding
        raw = b"".join(reply.iter_raw())
    assert (raw == content) == (encoding == "identity")


def test_parts_of_files_of_the_page_itself(http: httpx.Client) -> None:
    for range in ("bytes=5-1", "bytes=x", f"bytes=0-{'9' * 5000}"):
        assert http.get("/static/img/logo.svg", headers={"Range": range}).status_code in (200, 404)
        assert http.get("/favicon.ico", headers={"Range": range}).status_code in (200, 404)


def guard_of(page: Served) -> Any:
    return next(route.app for route in page.app.routes if isinstance(getattr(route, "app", None), PageGuard))


def test_uploads_are_private(http: httpx.Client) -> None:
    (path,) = http.post(UPLOAD, files=FILE).json()
    folder = next(one for one in Path(path).parents if one.name.startswith("vlroute-page-"))
    assert folder.stat().st_mode & 0o077 == 0


def test_uploads_over_the_quota(http: httpx.Client) -> None:
    refused = http.post(UPLOAD, files={"files": ("b.png", b"y" * 10**6, "image/png")})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    assert http.post(UPLOAD, files=FILE).status_code == 200
    refused = http.post(UPLOAD, content=iter([b"x"]), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert refused.status_code == 411


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    now = time.time()
    for age, name in ((3, "old"), (2, "middle"), (1, "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 100)
        os.utime(tmp_path / name / "file", (0, now - YOUNG_SECONDS * age - 10))
    (tmp_path / "young").write_bytes(b"x" * 100)
    assert shrink(tmp_path, 1000)
    assert shrink(tmp_path, 250)
    assert sorted(file.parent.name for file in tmp_path.glob("*/file")) == ["new"]
    assert not shrink(tmp_path, 50)
    assert (tmp_path / "young").exists()
    assert shrink(tmp_path / "missing", 0)


def test_headers_of_the_page(http: httpx.Client) -> None:
    reply = http.get("/")
    assert "frame-ancestors 'self'" in reply.headers["content-security-policy"]
    assert "object-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_cookies_and_the_schema_with_a_key() -> None:
    with served(ServerSettings(api_keys=(KEY,)), mount_page) as server, server.http() as http:
        reply = http.post("/login", data={"username": "me", "password": KEY}).raise_for_status()
        cookies = reply.headers.get_list("set-cookie")
        assert len(cookies) >= 2
        assert all("samesite=lax" in cookie.lower() for cookie in cookies)
        assert http.get("/openapi.json").status_code == 401
        schema = http.get("/openapi.json", headers={"Authorization": f"Bearer {KEY}"}).raise_for_status().json()
        assert "/v1/chat/completions" in schema["paths"]
        assert "/openapi.json" not in schema["paths"]


def test_many_log_ins_with_one_key_end_no_session_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest session of the same key ends."""
    monkeypatch.setattr(app, "MAX_LOGINS", 3)
    other = "another key for tests, long"
    with served(ServerSettings(api_keys=(KEY, other)), mount_page) as server:

        def logged_in(key: str) -> httpx.Client:
            client = server.http()
            client.post("/login", data={"username": "me", "password": key}).raise_for_status()
            return client

        kept, *mine = logged_in(other), *(logged_in(KEY) for _ in range(5))
        assert kept.get("/config").status_code == 200
        assert [one.get("/config").status_code for one in mine] == [401, 401, 200, 200, 200]


def test_a_log_in_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "keys.toml", "another key for tests, long"
    bob = '[bob]\nkey = "a key of bob, long enough"\n'
    file.touch(mode=0o600)

    def write(key: str | None) -> None:
        file.write_text(bob if key is None else f'[ann]\nkey = "{key}"\n{bob}')

    write(KEY)
    with (
        served(ServerSettings(key_file=file), mount_page) as server,
        logged_in(server, "a key of bob, long enough") as other_visitor,
    ):  # fmt: skip
        for replaced in (other, None):
            with logged_in(server, KEY) as http:
                assert join(server, http, "before", "Add 2 and 3.", "instruct").status_code == 200
                write(replaced)
                until(lambda http=http: http.get("/config").status_code == 401)
                assert http.post(UPLOAD, files=FILE).status_code == 401
                assert join(server, http, "after", "Add 2 and 3.", "instruct").status_code == 401
                assert '"dependencies":[]' in http.get("/").text
                assert other_visitor.get("/config").status_code == 200
                write(KEY)
                until(lambda: server.service.keys.find(KEY) is not None)
                assert http.get("/config").status_code == 401  # the visitor has to log in again
        monkeypatch.setattr(app, "LOGIN_SECONDS", 0.0)
        assert other_visitor.get("/config").status_code == 401


def test_files_in_a_call_leave_no_files_behind(http: httpx.Client, page: Served) -> None:
    """Gradio's component added an empty temporary file for each, which was never removed."""
    (path,) = http.post(UPLOAD, files=FILE).json()
    blocks = {id(one): one for function in guard_of(page).blocks.fns.values() for one in function.inputs}
    (files, *others) = [one for one in blocks.values() if isinstance(one, gr.File)]
    before = {*guard_of(page).uploads.rglob("*")}
    for one in (files, *others):
        assert one.preprocess(one.data_model.model_validate([{"path": path}] * 3)) == [path] * 3
    assert {*guard_of(page).uploads.rglob("*")} == before
