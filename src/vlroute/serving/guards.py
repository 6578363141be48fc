"""What is refused before a request is read: bodies too large, of another type, or for another host."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, response

_HOST = re.compile(r"(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?", re.IGNORECASE)


class Guards:
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
