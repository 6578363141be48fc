"""A server on the loopback address for tests, and pictures as clients send them."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import anthropic
import httpx
import openai
import uvicorn
from PIL import Image

from vlroute import Router
from vlroute.pocket import Task
from vlroute.serving.app import create_app
from vlroute.serving.http_server import HTTPServer
from vlroute.serving.settings import ServerSettings

KEY = "a key for tests, long enough"


@dataclass(frozen=True, slots=True)
class Served:
    """One server under test, with its router."""

    url: str
    router: Router
    app: Any
    server: uvicorn.Server

    def openai(self, key: str = KEY, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def anthropic(self, key: str = KEY, **options: Any) -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=60, **options)

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    @property
    def service(self) -> Any:
        return self.app.state.service


def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def served(
    settings: ServerSettings | None = None, wrap: Any = lambda app: app, router: Router | None = None, **options: Any
) -> Iterator[Served]:
    """The pocket pair behind uvicorn on a free port, ready. `options`: arguments of `Router.from_pretrained`."""
    settings = settings or ServerSettings()
    router = router or Router.from_pretrained(max_num_seqs=settings.max_num_seqs, **options)
    app = create_app(router, settings)
    server = HTTPServer(wrap(app), app.state.service, replace(settings, host="127.0.0.1", port=0))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while not (server.started and app.state.service.ready):
        assert thread.is_alive()
        assert time.monotonic() < until
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Served(f"http://127.0.0.1:{port}", router, app, server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def user(task: Task, **more: Any) -> dict[str, Any]:
    """One message with the pictures of a task, as OpenAI's clients send it."""
    pictures = [{"type": "image_url", "image_url": {"url": data_uri(frame)}} for frame in task.frames]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": task.prompt}], **more}
