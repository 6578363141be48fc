"""SIGTERM: /ready changes first, streams get their end, and the exit code is 0."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from training.chaos import attacks

LONG = {"ignore_eos": True, "max_tokens": 20_000, "vlroute": {"close_loops": False}}
ASKED = [{"role": "user", "content": "Add 2 and 3."}]


@contextmanager
def running(*options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = "from vlroute.cli.app import run; run()"
    command = [sys.executable, "-c", code, "serve", "--no-page", "--port", str(port), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)
        yield url, process
    finally:
        process.kill()
        process.wait()


#: For each API: a request whose answer takes long, and the end of a stream that an error has ended.
STREAMS = {
    "/v1/chat/completions": (
        {"model": "thinking", "messages": ASKED, **LONG}, r'"code":"shutting_down"\}\}\s+data: \[DONE\]\s+$'
    ),
    "/v1/responses": (
        {"model": "thinking", "input": ASKED[0]["content"] * 50}, r"event: response.failed\s.*event: error\s"
    ),
    "/v1/messages": (
        {"model": "thinking", "messages": [{**ASKED[0], "content": ASKED[0]["content"] * 50}], "max_tokens": 4000},
        r"event: error\s+data: .*shutting down",
    ),
}  # fmt: skip
#: The end of a stream with a complete answer.
COMPLETE = {
    "/v1/chat/completions": r"data: \[DONE\]\s+$", "/v1/responses": "event: response.completed",
    "/v1/messages": "event: message_stop",
}  # fmt: skip


def test_at_a_second_signal_each_stream_ends_at_once_with_an_error_of_its_protocol() -> None:
    received: list[tuple[str, list[str]]] = [(path, []) for path in STREAMS for _ in range(4)]
    begun = threading.Barrier(len(received) + 1)

    def read(url: str, path: str, pieces: list[str]) -> None:
        with httpx.stream("POST", url + path, json={**STREAMS[path][0], "stream": True}, timeout=60) as reply:
            begun.wait(60)
            pieces += reply.iter_text()

    with running("--grace-seconds", "300") as (url, process):
        threads = [threading.Thread(target=read, args=(url, path, pieces)) for path, pieces in received]
        for thread in threads:
            thread.start()
        begun.wait(60)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        for thread in threads:
            thread.join(60)
        assert process.wait(20) == 0
        assert time.monotonic() - began < 5
    for path, (_, error) in STREAMS.items():
        texts = ["".join(pieces) for one, pieces in received if one == path]
        failed = [text for text in texts if re.search(error, text, re.DOTALL)]
        assert all(text in failed or re.search(COMPLETE[path], text) for text in texts), texts
        assert failed or path != "/v1/chat/completions"  # the others may have been quick enough


def test_answers_that_end_in_time_are_complete_and_new_requests_are_told_to_come_back() -> None:
    with running("--grace-seconds", "60") as (url, process), httpx.Client(base_url=url, timeout=30) as kept:
        kept.get("/health").raise_for_status()
        done: list[attacks.Shutdown] = []
        attack = threading.Thread(
            target=lambda: done.append(attacks.sigterm_during_streams(url, process.pid, count=5, tokens=300))
        )
        attack.start()
        end = time.monotonic() + 60
        while kept.get("/ready").json() == {"status": "ready"}:
            assert time.monotonic() < end
            time.sleep(0.005)
        assert kept.get("/ready").json() == {"status": "shutting down"}
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/feedback"):
            refused = kept.post(path, json={"messages": ASKED})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert "shutting down" in refused.text
        assert kept.get("/health").status_code == 200
        attack.join(60)
        assert (done[0].answered, done[0].failed, done[0].cut) == (5, 0, 0)
        assert done[0].ready
        assert set(done[0].ready) <= {503}  # on a new connection each
        assert process.wait(20) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
