"""An OpenAI-compatible server that sends the responses of a test script, including faults, without a model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vlroute import Router
from vlroute.engine.remote.endpoint import Endpoint

#: Other steps of a script, besides events (dicts), lines (strings) and pauses (numbers).
HANG_UP, DONE = object(), "data: [DONE]\n\n"
READ_SECONDS = 10.0
USAGE: dict[str, Any] = {
    "choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29},
}  # fmt: skip


def chunk(
    content: str | None = None,
    reasoning: str | None = None,
    end: str | None = None,
    field: str = "reasoning_content",
    **more: Any,
) -> Any:
    """One chunk; `field`: name of the reasoning field of the server."""
    delta: dict[str, Any] = {"content": content} if content is not None else {}
    if reasoning is not None:
        delta[field] = reasoning
    choice = {"index": 0, "delta": {**delta, **more}, "finish_reason": end}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def failed(code: Any = None, kind: Any = None, message: str = "that went wrong") -> dict[str, Any]:
    """An error within a stream."""
    return {"error": {"message": message, "type": kind, "code": code}}


class Scripted:
    """Responses of the server, and the requests it received. The last script is repeated."""

    def __init__(self) -> None:
        self.scripts: list[Sequence[Any]] = []
        self.status = 200
        self.bodies: list[dict[str, Any]] = []
        self.url = ""
        self.stopping = threading.Event()

    def play(self, *scripts: Sequence[Any], status: int = 200) -> None:
        """Answer the next requests with these."""
        self.scripts, self.status, self.bodies = list(scripts), status, []

    def router(self, **options: Any) -> Router:
        """A router that asks this server in both modes."""
        options = {"retries": 0, "read_seconds": READ_SECONDS, **options}
        end = Endpoint(self.url, "m", **options)
        return Router.from_endpoints(end, end)


@contextmanager
def scripted_endpoint() -> Iterator[Scripted]:
    """Runs the server."""
    script = Scripted()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._whole({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "me"}]})

        def do_POST(self) -> None:
            script.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            steps = script.scripts.pop(0) if len(script.scripts) > 1 else script.scripts[0]
            if script.status != 200:
                self._whole(steps[0])
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                self._play(steps)
            except OSError:  # the client left
                self.close_connection = True

        def _play(self, steps: Sequence[Any]) -> None:
            for step in steps:
                if step is HANG_UP:
                    self.close_connection = True
                    return
                if isinstance(step, int | float):
                    until = time.monotonic() + step
                    while time.monotonic() < until and not script.stopping.is_set():
                        time.sleep(0.01)
                    continue
                data = (step if isinstance(step, str) else f"data: {json.dumps(step)}\n\n").encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")

        def _whole(self, value: Any) -> None:
            data = json.dumps(value).encode()
            self.send_response(script.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:  # the client left
            pass

    server = Server(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield script
    finally:
        script.stopping.set()
        server.shutdown()
        server.server_close()
