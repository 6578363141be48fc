"""The server application: API, middleware, and the web page on request."""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, HTTPException
from starlette.routing import Mount

from vlroute import __version__
from vlroute.files import shipped
from vlroute.router import Router
from vlroute.serving.errors import APIError, add_error_handlers
from vlroute.serving.fetch import Fetcher
from vlroute.serving.loop_shares import PAUSE, PAUSE_BESIDE_MODELS, LoopShares
from vlroute.serving.messages_api import router as messages
from vlroute.serving.middleware import AddressLimit, ForwardedHeaders, PathPrefix, RequestGuard, add_cross_origin
from vlroute.serving.models_api import router as models
from vlroute.serving.page_guard import PageGuard
from vlroute.serving.request_log import RequestLog
from vlroute.serving.responses import router as responses
from vlroute.serving.routes import router as routes
from vlroute.serving.service import Service, log_failure
from vlroute.serving.settings import ServerSettings, is_loopback
from vlroute.serving.wrong_keys import client_address
from vlroute.temporary_folder import TemporaryFolder

#: Number of log-ins of one key that are kept; the oldest one ends then.
MAX_LOGINS = 200
#: A log-in of the page ends after this time, in seconds.
LOGIN_SECONDS = 7 * 24 * 3600.0


def create_app(
    router: Router, settings: ServerSettings | None = None, on_failure: Callable[[BaseException], Any] = log_failure
) -> FastAPI:
    """Create the server application over `router`, which should be created with `max_num_seqs=settings.max_num_seqs`.

    The models are loaded in the background at start-up, or at the first request if the start-up of this application is
    not run (as when it is mounted in another one). If loading fails, requests, `/ready` and `/health` get status 503
    and the state "failed" until the process is restarted.

    Args:
        router: The router that answers.
        settings: Limits and keys; by default those of `ServerSettings`.
        on_failure: Called with the error, in another thread, if the models cannot be loaded; by default, the error is
            logged. `vlroute serve` uses it to end the process.

    Returns:
        The application.
    """
    settings = settings or ServerSettings()
    service = Service(router, settings, on_failure)
    fetcher = Fetcher(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.begin()
        tasks = [
            asyncio.create_task(service.remove_expired()),
            asyncio.create_task(service.freed_memory.return_to_system()),
        ]
        if settings.learned:
            tasks.append(asyncio.create_task(service.follow_learner()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await service.drain(settings.grace_seconds)
            await fetcher.close()

    # FastAPI would make further spans of its own as soon as an application configures OpenTelemetry
    no_spans: Any = {"telemetry": {"tracing": False, "metrics": False, "logs": False}} if service.telemetry else {}
    app = FastAPI(
        title="vlroute", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        **no_spans,
        description="Decides per request whether Qwen3-VL Instruct answers at once or Thinking reasons first.",
    )  # fmt: skip
    app.state.service, app.state.fetcher = service, fetcher
    count = service.metrics.refused
    # without trusted names, a server for other machines accepts all: it has keys, and does not know its own names
    trusted = settings.trusted_hosts if settings.trusted_hosts or is_loopback(settings.host) else None
    app.add_middleware(
        RequestGuard, ("/v1/", "/api/predict"), settings, trusted, count, lambda: service.draining,
        service.freed_memory.add,
    )  # fmt: skip
    elsewhere = router.blocks and not router.selector.has_own_captioner
    app.add_middleware(LoopShares, service.keys, PAUSE if elsewhere else PAUSE_BESIDE_MODELS)
    app.add_middleware(AddressLimit, settings, count)
    add_cross_origin(app, settings.cors_origins)  # outside, so that refusals have its headers
    app.add_middleware(
        ForwardedHeaders, "*" if "*" in settings.forwarded_allow_ips else [*settings.forwarded_allow_ips]
    )
    if settings.root_path:
        app.add_middleware(PathPrefix, settings.root_path)
    app.add_middleware(RequestLog, count, service.request_ended)  # added last: it wraps all other middleware
    add_error_handlers(app, count)
    app.include_router(routes)
    app.include_router(responses)
    app.include_router(messages)
    app.include_router(models)
    return app


class PageLogins(MutableMapping[str, str]):
    """Gradio's table of log-ins: the token in a cookie, and the user.

    Visitors choose their user names. Here, the user is `APIKey.login`, so that requests of the page count for the key,
    and no visitor can impersonate another one. A log-in ends when its key is removed or replaced, when the visitor logs
    out, after `LOGIN_SECONDS`, and after `MAX_LOGINS` further ones with the same key.

    Args:
        service: It knows the accepted keys.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._accepted = service, ""
        self._users: dict[str, tuple[str, float]] = {}  # by token, with the time of the log-in
        self._tokens: dict[str, deque[str]] = {}  # of each user, oldest first

    def accept(self, key: str) -> bool:
        """Whether a visitor may log in with this key. Gradio adds the token before anything else runs.

        Args:
            key: The key.

        Returns:
            Whether it is valid.

        Raises:
            HTTPException: 429 after too many wrong keys.
        """
        try:
            found = self._service.log_in(key, client_address.get())
        except APIError as error:  # Gradio would answer with status 500
            raise HTTPException(error.status, error.message, error.headers) from None
        self._accepted = found.login if found else ""
        return found is not None

    def __getitem__(self, token: str) -> str:
        user, began = self._users[token]
        if time.monotonic() - began > LOGIN_SECONDS or self._service.keys.logged_in(user) is None:
            self._users.pop(token, None)
            raise KeyError(token)
        return user

    def __setitem__(self, token: str, _: str) -> None:
        for user in [one for one in self._tokens if self._service.keys.logged_in(one) is None]:
            for ended in self._tokens.pop(user):
                self._users.pop(ended, None)
        self._users[token] = self._accepted, time.monotonic()
        tokens = self._tokens.setdefault(self._accepted, deque())
        tokens.append(token)
        if len(tokens) > MAX_LOGINS:
            self._users.pop(tokens.popleft(), None)

    def __delitem__(self, token: str) -> None:
        self._users.pop(token, None)  # it may have ended meanwhile

    def __iter__(self) -> Iterator[str]:
        return iter([*self._users])

    def __len__(self) -> int:
        return len(self._users)


def mount_page(app: FastAPI) -> FastAPI:
    """Add the web page to the application.

    If the server has API keys, the page asks for a login: any user name, and a key as the password.

    Args:
        app: An application of `create_app`.

    Returns:
        The same application.
    """
    if not os.environ.get("GRADIO_TEMP_DIR"):  # Gradio's default is shared with other programs and users
        folder = TemporaryFolder("vlroute-page-")
        os.environ["GRADIO_TEMP_DIR"] = str(folder.path)
        atexit.register(folder.remove)
    import gradio as gr

    from vlroute.serving.ui.app import build_page, login_settings, page_settings

    service: Service = app.state.service
    options, logins = page_settings(service.limits), PageLogins(service)
    if service.keys.required:
        options |= login_settings(logins.accept)
    embedded = (shipped("pocket/instruct"), shipped("pocket-hybrid"))

    def state() -> str:
        service.begin()  # the start-up of a mounted application is not run
        return service.state

    built = build_page(service, settings=service.settings, state=state, pocket=service.router.instruct in embedded)
    gr.mount_gradio_app(app, built, "", root_path=service.settings.root_path, **options)
    mounted = cast(Mount, app.routes[-1])  # it gets every path that is not an endpoint of the API
    page = cast(FastAPI, mounted.app)
    vars(page)["tokens"] = logins
    uploads = Path(vars(page)["uploaded_file_dir"])
    known = logins if service.keys.required else None
    mounted.app = PageGuard(page, built, known, service.settings, uploads, service.metrics.refused)
    return app
