"""What is refused before a request is read: bodies too large, of another type, or for another host."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute import __version__
from vlroute.router import Router
from vlroute.serving.dependencies import Dependencies, Keys
from vlroute.serving.errors import APIError, Count, add_error_handlers, no_endpoint, response
from vlroute.serving.fetch import Fetcher
from vlroute.serving.routes import endpoints, predictions
from vlroute.serving.service import Service, log_failure
from vlroute.serving.settings import ServerSettings, is_loopback

_HOST = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)


class RequestGuard:
    """ASGI middleware over the paths that begin with one of `guarded`.

    JSON must say that it is JSON: a page of another site may make a browser post a form or plain text to this machine,
    but not that. For the same reason a server on the loopback address answers to that name only (a foreign name that
    resolves to it is DNS rebinding).

    An unexpected error becomes a response with status 500 here, so that the connection stays open and the error is
    logged once.
    """

    def __init__(self, app: ASGIApp, guarded: Sequence[str], max_body: int, local_only: bool, count: Count) -> None:
        self.app, self.guarded, self.count = app, tuple(guarded), count
        self.max_body, self.local_only = max_body, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await response(refusal, self.count)(scope, receive, send)
            return
        read, started = 0, False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body and scope["path"].startswith(self.guarded):
                raise HTTPException(413, self._too_large().message)
            return message

        try:
            await self.app(scope, bounded, noted)
        except Exception as error:  # Starlette's own handler raises it again, and uvicorn then closes the connection
            if started:
                raise
            await response(error, self.count)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> APIError | None:
        if self.local_only and _HOST.fullmatch(headers.get("host", "localhost")) is None:
            return APIError(421, "this server answers to localhost only", "wrong_host")
        if scope["method"] != "POST" or not scope["path"].startswith(self.guarded):
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return APIError(415, "send the body as JSON, with Content-Type: application/json", "unsupported_media_type")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is over the limit of {self.max_body} bytes", "body_too_large")


def mount_page(app: FastAPI) -> FastAPI:
    """`app` of `create_app`, with the page. Where the server has API keys, any name and a key log in."""
    dependencies = cast(Dependencies, app.state.dependencies)

    import gradio as gr

    from vlroute.serving.ui.app import build_page, page_settings

    options = page_settings(dependencies.settings.limits)
    if dependencies.settings.api_keys:
        options["auth"] = lambda _, key: dependencies.keys.known(key)
    gr.mount_gradio_app(app, build_page(dependencies.service), "", **options)
    page = cast(FastAPI, cast(Mount, app.routes[-1]).app)  # it gets every path that is not an endpoint of the API
    gradios = page.router.default

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        """Used for the paths that the page does not know either. Gradio's own response is not in OpenAI's shape."""
        if scope["type"] == "http":
            await response(no_endpoint(), dependencies.service.metrics.refused)(scope, receive, send)
        else:
            await gradios(scope, receive, send)

    page.router.default = not_found
    return app


GRACE_SECONDS = 20.0  # for answers under way when the server is told to stop


def create_app(
    router: Router, settings: ServerSettings | None = None, on_failure: Callable[[BaseException], Any] = log_failure
) -> FastAPI:
    """Create the server application over `router`, which should be created with `max_num_seqs=settings.max_num_seqs`.

    The pair is loaded in the background at start-up, or at the first request if the start-up of this application is not
    run (as when it is mounted in another one). If loading fails, requests, `/ready` and `/health` get status 503 and
    the state "failed" until the process is restarted.

    Args:
        router: the router that answers.
        settings: bounds and keys; by default those of `ServerSettings`.
        on_failure: called with the error, in another thread, if the pair cannot be loaded; by default, the error is
            logged. `vlroute serve` uses it to end the process.
    """
    settings = settings or ServerSettings()
    service = Service(router, settings)
    service.on_failure = on_failure
    dependencies = Dependencies(
        settings, service, Fetcher(settings.allowed_hosts, settings.fetch_seconds), Keys(settings.api_keys)
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        try:
            yield
        finally:
            await service.drain(GRACE_SECONDS)
            await dependencies.fetcher.close()

    app = FastAPI(
        title="vlroute", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Decides per request whether Qwen3-VL Instruct answers at once or Thinking reasons first.",
    )  # fmt: skip
    app.state.dependencies = dependencies
    refused = service.metrics.refused
    app.add_middleware(RequestGuard, ("/v1/", "/api/predict"), settings.max_body, is_loopback(settings.host), refused)
    add_error_handlers(app, refused)
    app.include_router(endpoints)
    app.include_router(predictions)
    return app
