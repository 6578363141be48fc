"""Attacks on the web page of a server: bodies that Gradio would read, pictures and batches in sessions, uploads."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx
from PIL import Image

from training.chaos import attacks
from training.chaos.media import resident

MiB = 2**20
PATIENCE_SECONDS = 30.0
JOIN, RUN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/upload"


def bodies_for_gradio(url: str, pid: int, megabytes: int = 400) -> dict[str, float]:
    """Send large bodies without a log-in: forms and JSON to each path that Gradio reads.

    Args:
        url: Address of the server.
        pid: Its process.
        megabytes: Size of each body.

    Returns:
        How many were refused of how many, the growth of the resident memory in MiB, and the 95th percentile of the
        delay of `/health` in seconds.
    """
    figures, before, statuses = attacks.Figures(), resident(pid), []
    with attacks.health(url, figures):
        for path, kind in (
            (RUN, "multipart/x"), (JOIN, "multipart/x"), ("/login", "multipart/form-data; boundary=x"),
            (RUN, "application/json"),
        ):  # fmt: skip
            statuses.append(_send(url, path, kind, megabytes))
        grown = resident(pid) - before
    return {
        "refused": sum(400 <= one < 500 for one in statuses), "sent": len(statuses), "grown MiB": grown,
        "health p95 s": figures.p95 / 1000,
    }  # fmt: skip


def sessions_with_pictures(url: str, pid: int, key: str, count: int = 8) -> dict[str, float]:
    """Upload one small file with many pixels, and ask about 16 copies of it in many sessions.

    Args:
        url: Address of the server.
        pid: Its process.
        key: A valid key.
        count: Number of sessions.

    Returns:
        How many questions were answered, the growth of the resident memory in MiB after them, when freed memory was
        returned, and the 95th percentile of the delay of `/health` in seconds.
    """
    file = io.BytesIO()
    Image.new("RGB", (3500, 3500), (200, 10, 10)).save(file, "PNG", compress_level=9)
    figures = attacks.Figures()
    with visitor(url, key) as client:
        page = _Page(client)
        (path,) = client.post(UPLOAD, files={"files": ("a.png", file.getvalue(), "image/png")}).json()
        page.ask("first", "Hi")  # the first answer of a process takes memory that it keeps
        before = resident(pid)
        with attacks.health(url, figures):
            answered = sum(page.ask(f"session{at}", "What?", (path,) * 16) for at in range(count))
        grown = _at_rest(pid) - before
    return {"answered": answered, "grown MiB": grown, "health p95 s": figures.p95 / 1000}


def batches_of_one_visitor(url: str, flooding: str, other: str, count: int = 4) -> dict[str, float]:
    """Let one visitor answer tables of a thousand rows while another one asks in the Chat tab.

    Args:
        url: Address of the server.
        flooding: The key of the first visitor.
        other: The key of the other one.
        count: Number of batches.

    Returns:
        Seconds of the other visitor's answer before and, the longest of five, during the batches; how many of these
        five were answered, and how many batches were running.
    """
    table = b"prompt\n" + b"How many words are there? Think.\n" * 1000
    with visitor(url, flooding) as client, visitor(url, other) as second:
        page, asked = _Page(client), _Page(second)
        asked.ask("warm", "Add 2 and 3.")
        began = time.perf_counter()
        asked.ask("calm", "Add 2 and 3.")
        calm = time.perf_counter() - began
        (path,) = client.post(UPLOAD, files={"files": ("t.csv", table, "text/csv")}).json()
        running = sum(page.start_batch(f"batch{at}", path) for at in range(count))
        time.sleep(2)
        seconds, answered = list[float](), 0
        for at in range(5):
            began = time.perf_counter()
            answered += asked.ask(f"busy{at}", "Add 2 and 3.")
            seconds.append(time.perf_counter() - began)
    return {"calm s": calm, "longest s": max(seconds), "answered": answered, "batches": running}


def trickled_upload(url: str, attacker: str, other: str, seconds: float = 10.0) -> dict[str, float]:
    """Declare an upload of 2 GiB, and send some hundred bytes a second, while another visitor uploads files.

    Args:
        url: Address of the server.
        attacker: The key of the first visitor.
        other: The key of the other one.
        seconds: Duration.

    Returns:
        How many uploads of the other visitor were accepted, and how many were sent.
    """
    accepted = sent = 0
    with visitor(url, attacker) as first, visitor(url, other) as second, attacks.connected(url) as client:
        cookie = "; ".join(f"{name}={value}" for name, value in first.cookies.items())
        client.sendall(
            f"POST {UPLOAD} HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nContent-Length: {2**31 - 2**20}\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(OSError):
                client.sendall(b"x" * 200)
            reply = second.post(UPLOAD, files={"files": ("b.png", b"x" * 300_000, "image/png")})
            accepted, sent = accepted + (reply.status_code == 200), sent + 1
            time.sleep(0.5)
    return {"accepted": accepted, "sent": sent}


@contextmanager
def visitor(url: str, key: str) -> Iterator[httpx.Client]:
    """A visitor of the page who has logged in.

    Args:
        url: Address of the server.
        key: A valid key.

    Yields:
        The client.
    """
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
        client.post("/login", data={"username": "visitor", "password": key}).raise_for_status()
        yield client


class _Page:
    """Calls functions of the page as its script does."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        config = client.get("/config").raise_for_status().json()
        self._components = {one["id"]: one for one in config["components"]}
        self._functions = config["dependencies"]

    def ask(self, session: str, text: str, files: tuple[str, ...] = ()) -> bool:
        """Ask Instruct in the Chat tab; whether it answered."""
        question = {"text": text, "files": [_file(path) for path in files]}
        return self._call(session, "ask", "submit", {"ask": question, "mode": "instruct"}) and self._completed(session)

    def start_batch(self, session: str, path: str) -> bool:
        """Start a batch of the first column of a table; whether it runs."""
        values = {"batch-files": [_file(path)], "prompt-column": 0, "image-column": -1, "batch-mode": "thinking"}
        read = self._call(session, "batch-files", "change", values) and self._completed(session)
        return read and self._call(session, "run", "click", values) and self._completed(session, "process_generating")

    def _call(self, session: str, element: str, event: str, values: dict[str, Any]) -> bool:
        function = next(one for one in self._functions if self._is(one, element, event))
        inputs = [self._components[id]["props"] for id in function["inputs"]]
        data = [values.get(one.get("elem_id") or "", one.get("value")) for one in inputs]
        call = {"data": data, "fn_index": function["id"], "session_hash": session, "event_data": None}
        return self._client.post(JOIN, json=call).status_code == 200

    def _is(self, function: dict[str, Any], element: str, event: str) -> bool:
        return any(
            name == event and self._components[id]["props"].get("elem_id") == element
            for id, name in function["targets"]
            if id is not None
        )

    def _completed(self, session: str, kind: str = "process_completed") -> bool:
        """Whether an event of a session comes to this message."""
        with (
            suppress(httpx.TimeoutException),
            self._client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events,
        ):
            end = time.monotonic() + PATIENCE_SECONDS
            for line in events.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") in (kind, "process_completed"):
                    return bool(message["success"]) and 'role=\\"alert\\"' not in line
                if time.monotonic() > end:
                    break
        return False


def _at_rest(pid: int) -> float:
    """The resident memory after freed memory was returned to the system, which takes ten seconds."""
    found = []
    for _ in range(15):
        time.sleep(1)
        found.append(resident(pid))
    return min(found)


def _file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _send(url: str, path: str, kind: str, megabytes: int) -> int:
    """Send a body; its status, 0 without one."""
    with closing(attacks.connected(url)) as client:
        client.settimeout(PATIENCE_SECONDS)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        client.sendall(f"{head}Content-Length: {megabytes * MiB}\r\n\r\n".encode())
        start = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        if kind == "application/json":
            start = b'{"session_hash":"abc","fn_index":0,"data":["'
        with suppress(OSError):  # the server closes the connection of a body that it refuses
            client.sendall(start)
            for _ in range(megabytes - 1):
                client.sendall(b"A" * MiB)
        with suppress(OSError, ValueError, IndexError):  # no reply
            client.shutdown(socket.SHUT_WR)
            return int(client.recv(100).split()[1])
    return 0
