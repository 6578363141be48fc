"""ASGI middleware: refuses requests before they are read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, error_response
from vlroute.serving.settings import is_loopback

_LOCAL_HOST = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)


class RequestGuard:
    """Checks host, content type and body size, and answers unexpected errors.

    A POST to a guarded path must declare its body as JSON. A page of another site can make a browser post a form or
    plain text to this machine, but not JSON. For the same reason, a server on the loopback address accepts only local
    host names: a foreign name that resolves to it is DNS rebinding. `TrustedHostMiddleware` and
    `RequestBodyLimitMiddleware` of Starlette do not fit, because they refuse in plain text and know no address range.

    An unexpected error becomes a response with status 500 here, so that the connection stays open and the error is
    logged once.

    Args:
        app: The wrapped application.
        guarded: Prefixes of the guarded paths.
        max_body: Maximum size of a request body in bytes.
        local_only: Whether only local host names are accepted.
        count: Called with status and code of each refusal.
    """

    def __init__(self, app: ASGIApp, guarded: Sequence[str], max_body: int, local_only: bool, count: Count) -> None:
        self.app, self.guarded, self.count = app, tuple(guarded), count
        self.max_body, self.local_only = max_body, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (refusal := self._refusal(scope)) is not None:
            await error_response(refusal, scope, self.count)(scope, receive, send)
            return
        size, started = 0, False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def bounded_receive() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body and scope["path"].startswith(self.guarded):
                raise HTTPException(413, self._too_large().message)
            return message

        try:
            await self.app(scope, bounded_receive, watched_send)
        except Exception as error:  # Starlette's own handler would raise it again, and uvicorn close the connection
            if started:
                raise
            await error_response(error, scope, self.count)(scope, receive, send)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = Headers(scope=scope)
        if self.local_only and _LOCAL_HOST.fullmatch(headers.get("host", "localhost")) is None:
            return APIError(421, "this server accepts requests to localhost only", "wrong_host")
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


class LocalClientsOnly:
    """Refuses clients on other machines.

    A cluster without API keys uses it: the address that Ray's proxy listens on is not part of the settings.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 403, or pass the request on."""
        if scope["type"] == "http" and not is_loopback((scope.get("client") or ("",))[0]):
            message = "without API keys a cluster serves its own machine only; deploy it with VLROUTE_API_KEYS set"
            await error_response(APIError(403, message, "not_local"), scope)(scope, receive, send)
            return
        await self.app(scope, receive, send)
