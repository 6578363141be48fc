"""The HTTP server process: uvicorn with limits of connections, and a shutdown that ends every answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import HANDLED_SIGNALS

from vlroute.serving.connections import Connection, Connections
from vlroute.serving.service import Service
from vlroute.serving.settings import ServerSettings, is_loopback

log = logging.getLogger("vlroute")
#: Files that the server may need besides its connections: checkpoints, the store, connections to endpoints.
RESERVED_FILES = 256
#: Time for the last bytes of responses after the answers have ended.
LAST_BYTES_SECONDS = 5
#: After a second signal, the process ends after this time at the latest.
AT_ONCE_SECONDS = 1.0
#: After this time, a thread that runs Python lets another one run. With 5 ms, as Python sets it, short answers took a
#: fifth longer while another key sent large bodies and pictures.
SWITCH_SECONDS = 0.001


class HTTPServer(uvicorn.Server):
    """Serves one application.

    At the first SIGTERM or SIGINT, `/ready` reports "shutting down" and requests get status 503, while the server
    still listens. Running answers may end within `ServerSettings.grace_seconds`; then they are cancelled, and their
    clients get an error in the format of the API. A second signal cancels them, and ends the process after
    `AT_ONCE_SECONDS` at the latest.

    Args:
        app: The application, with the web page or without.
        service: The service of the application.
        settings: Settings of the server.
    """

    def __init__(self, app: ASGIApp, service: Service, settings: ServerSettings) -> None:
        connections = Connections(settings, _allowed_connections(settings.max_connections), service.metrics.refused)
        protocol: Any = partial(Connection, connections=connections)
        super().__init__(uvicorn.Config(
            app, host=settings.host, port=settings.port, log_config=None, access_log=False, http=protocol,
            ws="none",  # nothing here uses web sockets, which would need limits of their own
            proxy_headers=False,  # the application reads them
            server_header=False, lifespan="on",  # with "auto", uvicorn ignores an exception at start-up
            timeout_keep_alive=settings.idle_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=LAST_BYTES_SECONDS,
        ))  # fmt: skip
        self._service, self._grace = service, settings.grace_seconds
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None
        if not is_loopback(settings.host):
            log.info(
                "listening on %s for other machines: TLS, floods from many addresses, and limits of bandwidth and of "
                "requests a second are left to a reverse proxy; see the guide 'Deploy behind a proxy'",
                settings.host,
            )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal arrives. A signal after that ends the process at once, also with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            super().run(sockets)
            return
        sys.setswitchinterval(SWITCH_SECONDS)
        before = {one: signal.signal(one, _end) for one in HANDLED_SIGNALS}  # uvicorn restores _end when it has stopped
        try:
            super().run(sockets)
        finally:
            if not self._signals:
                for one, handler in before.items():
                    signal.signal(one, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called with a signal. It takes no lock: the code that it interrupts may hold it."""
        self._signals += 1
        if self._signals == 1:
            self._service.draining = True
        elif self._signals == 2:
            self._service.hurry = True
            timer = threading.Timer(AT_ONCE_SECONDS, _end)
            timer.daemon = True
            timer.start()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._signals and self._draining is None:
            log.info("shutting down: unfinished answers have %g s; a second signal ends at once", self._grace)
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        await self._service.finish(self._grace)
        self.should_exit = True


def _end(*_: object) -> None:
    """End the process, whatever its threads do."""
    os._exit(0)


def _allowed_connections(wanted: int) -> int:
    """Raise the limit of open files for this number of connections. Returns a lower number if that is not allowed."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    allowed = max(raised - RESERVED_FILES, raised // 2)
    if allowed < wanted:
        log.warning("max_connections is lowered from %d to %d: the limit of open files is %d", wanted, allowed, raised)
    return min(allowed, wanted)
