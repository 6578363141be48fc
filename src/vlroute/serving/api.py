"""The OpenAI-compatible server: completions, decisions, feedback, health, metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from vlroute import __version__
from vlroute.router import Router
from vlroute.serving.door import Door
from vlroute.serving.endpoints import endpoints
from vlroute.serving.errors import add_error_handlers
from vlroute.serving.fetch import Fetcher
from vlroute.serving.guards import Guards
from vlroute.serving.keys import Keys
from vlroute.serving.predict import predictions
from vlroute.serving.service import Service, log_failure
from vlroute.serving.settings import ServerSettings, is_loopback

GRACE_SECONDS = 20.0  # for answers under way when the server is told to stop


def create_app(
    router: Router, settings: ServerSettings | None = None, on_failure: Callable[[BaseException], Any] = log_failure
) -> FastAPI:
    """Create the server application over `router`, which should be created with `rows=settings.rows`.

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
    door = Door(settings, service, Fetcher(settings.allowed_hosts, settings.fetch_seconds), Keys(settings.api_keys))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        try:
            yield
        finally:
            await service.drain(GRACE_SECONDS)
            await door.fetcher.close()

    app = FastAPI(
        title="vlroute", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Decides per request whether Qwen3-VL Instruct answers at once or Thinking reasons first.",
    )  # fmt: skip
    app.state.door = door
    refused = service.metrics.refused
    app.add_middleware(Guards, ("/v1/", "/api/predict"), settings.max_body, is_loopback(settings.host), refused)
    add_error_handlers(app, refused)
    app.include_router(endpoints)
    app.include_router(predictions)
    return app
