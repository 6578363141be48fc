"""ASGI middleware: refuses requests before they are read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, error_response, route_path
from vlroute.serving.settings import is_loopback
from vlroute.serving.wrong_keys import client_address

#: Response headers that web pages of other origins may read.
EXPOSED_HEADERS = (
    "X-Request-Id", "Request-Id", "X-VLRoute-Id", "X-VLRoute-Mode", "X-VLRoute-Gain", "X-VLRoute-Forced", "Retry-After",
    *(f"X-RateLimit-{what}-{kind}" for kind in ("Requests", "Tokens") for what in ("Limit", "Remaining", "Reset")),
)  # fmt: skip
_LOCAL_HOST = r"localhost|127\.\d+\.\d+\.\d+|\[::1\]"


class RequestGuard:
    """Checks host, content type and body size, and answers unexpected errors.

    A POST to a guarded path must declare its body as JSON. A page of another site can make a browser post a form or
    plain text to this machine, but not JSON. For the same reason, a server on the loopback address accepts only local
    and trusted host names: another name that resolves to it is DNS rebinding. `TrustedHostMiddleware` and
    `RequestBodyLimitMiddleware` of Starlette do not fit: they refuse in plain text and do not know address ranges.

    An unexpected error becomes a response with status 500 here, so that the connection stays open and the error is
    logged once.

    Args:
        app: The wrapped application.
        guarded: Prefixes of the guarded paths.
        max_body: Maximum size of a request body in bytes.
        trusted: Host names that are accepted besides local ones, see `ServerSettings.trusted_hosts`; None: all names.
        count: Called with status and code of each refusal.
    """

    def __init__(
        self, app: ASGIApp, guarded: Sequence[str], max_body: int, trusted: Sequence[str] | None, count: Count
    ) -> None:
        self.app, self.guarded, self.count, self.max_body = app, tuple(guarded), count, max_body
        self.hosts = None if trusted is None else _hosts(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await error_response(refusal, scope, self.count)(scope, receive, send)
            return
        client_address.set((scope.get("client") or ("",))[0])
        size, started = 0, False

        state = scope.setdefault("state", {})

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] == "http.response.start" and "limit_headers" in state:
                MutableHeaders(scope=message).update(state["limit_headers"])
            await send(message)

        async def bounded_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body and route_path(scope).startswith(self.guarded):
                raise HTTPException(413, self._too_large().message)
            return message

        try:
            await self.app(scope, bounded_receive, watched_send)
        except Exception as error:  # Starlette's own handler would raise it again, and uvicorn close the connection
            if started:
                raise
            await error_response(error, scope, self.count)(scope, receive, watched_send)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if self.hosts is not None and self.hosts.fullmatch(headers.get("host", "localhost")) is None:
            message = "the Host header names another host than this server accepts (its setting trusted_hosts)"
            return APIError(421, message, "wrong_host")
        if scope["method"] != "POST" or not route_path(scope).startswith(self.guarded):
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return APIError(415, "send the body as JSON, with Content-Type: application/json", "unsupported_media_type")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            return self._too_large()
        return None

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is over the limit of {self.max_body} bytes", "body_too_large")


class PathPrefix:
    """Declares the path prefix under which a reverse proxy serves the application, for addresses in its answers.

    Uvicorn's own option does not fit: it expects that the proxy removes the prefix, while this class accepts both.

    Args:
        app: The wrapped application.
        prefix: See `ServerSettings.root_path`.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the prefix."""
        scope["root_path"] = self.prefix  # in place: others look at this scope after the response
        await self.app(scope, receive, send)


def _hosts(trusted: Sequence[str]) -> re.Pattern[str]:
    """What a Host header may be: a local or trusted name, with any port."""
    names = [re.escape(name).replace(r"\*", r"[\w.-]+", 1) for name in trusted]
    return re.compile(rf"({'|'.join([_LOCAL_HOST, *names])})(:\d+)?", re.IGNORECASE | re.ASCII)


def add_cross_origin(app: FastAPI, origins: Sequence[str]) -> None:
    """Let web pages of these origins use the API; without origins, no page of another origin may use it.

    Gradio would otherwise add headers of its own, which let every origin use the web page with the cookies of its user.

    Args:
        app: The application.
        origins: See `ServerSettings.cors_origins`.
    """
    app.add_middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["GET", "HEAD", "POST", "DELETE"], allow_headers=["*"],
        expose_headers=EXPOSED_HEADERS,
    )  # fmt: skip


class LocalClientsOnly:
    """Refuses clients on other machines.

    A cluster without API keys uses it: the address that Ray's proxy listens on is not part of the settings.
    """

    def __init__(self, app: ASGIApp, count: Count) -> None:
        self.app, self.count = app, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 403, or pass the request on."""
        if scope["type"] == "http" and not is_loopback((scope.get("client") or ("",))[0]):
            message = "without API keys a cluster serves its own machine only; set VLROUTE_API_KEYS or a key file"
            await error_response(APIError(403, message, "not_local"), scope, self.count)(scope, receive, send)
            return
        await self.app(scope, receive, send)
