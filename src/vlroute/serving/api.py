"""The OpenAI-compatible server: completions, decisions, feedback, health, metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

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
from vlroute.serving.service import Service
from vlroute.serving.settings import ServerSettings, is_loopback

log = logging.getLogger("vlroute")
GRACE_SECONDS = 20.0  # for answers under way when the server is told to stop


def create_app(router: Router, settings: ServerSettings | None = None) -> FastAPI:
    """The server over `router`, which should be made with `rows=settings.rows`. The pair is loaded at start-up."""
    settings = settings or ServerSettings()
    service = Service(router, settings)
    door = Door(settings, service, Fetcher(settings.allowed_hosts, settings.fetch_seconds), Keys(settings.api_keys))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(asyncio.to_thread(service.load))
        loading.add_done_callback(_log_failure)
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


def _log_failure(loading: asyncio.Task[None]) -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("the models could not be loaded: %s", error)
