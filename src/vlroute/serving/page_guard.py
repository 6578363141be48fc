"""Protects the web page: only its own origin may write, uploads have a quota, and responses restrict the browser."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, error_response, route_path

#: What the browser may load and do on the page. Gradio's own scripts are inline; the elements of the head say so too.
POLICY = "base-uri 'self'; form-action 'self'; frame-ancestors 'self'; object-src 'none'"
#: Uploads that are younger, in seconds, are not removed to make room for others: they may not have been used yet.
YOUNG_SECONDS = 600
_SAME_SITE_NONE = re.compile(rb"samesite=none", re.IGNORECASE)


class PageGuard:
    """Refuses requests of other sites, and uploads over the quota; adds headers to the responses.

    Browsers send the cookies of a visitor, and requests to this machine, also for pages of other sites. They say so in
    `Sec-Fetch-Site` or `Origin`; programs that are no browsers send neither.

    Args:
        app: The application of the page.
        origins: Other origins that may use the page, see `ServerSettings.cors_origins`.
        uploads: Folder of the uploaded files.
        quota: Maximum number of bytes of all uploaded files together.
        count: Called with status and code of each refusal.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str], uploads: Path, quota: int, count: Count) -> None:
        self.app, self.origins, self.count = app, frozenset(origins), count
        self.uploads, self.quota = uploads, quota
        self._arriving = 0  # bytes of the uploads that are being received

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                _restrict(message)
            await send(message)

        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not self._is_own(headers):
            refusal = APIError(403, "only the web page of this server may send this; see cors_origins", "wrong_origin")
            await error_response(refusal, scope, self.count)(scope, receive, guarded_send)
        elif scope["method"] == "POST" and route_path(scope).rstrip("/").endswith("/upload"):
            await self._upload(scope, receive, guarded_send, headers.get("content-length", ""))
        else:
            await self.app(scope, receive, guarded_send)

    def _is_own(self, headers: Headers) -> bool:
        """Whether the request comes from this page, from an allowed origin, or from a program that is no browser."""
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin in self.origins or "*" in self.origins:
            return True
        if site is not None:
            return site in ("same-origin", "none")
        if origin is None:
            return True
        try:
            return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        except ValueError:  # such as for a part of an IPv6 address
            return False

    async def _upload(self, scope: Scope, receive: Receive, send: Send, length: str) -> None:
        if not length.isdecimal():
            refusal = APIError(411, "an upload needs a Content-Length", "length_required")
        elif not await self._has_room(int(length)):
            refusal = APIError(
                503, f"the uploads of all visitors together are limited to {self.quota} bytes; try again later",
                "uploads_full", headers={"Retry-After": "60"},
            )  # fmt: skip
        else:
            with self._counted(int(length)):
                await self.app(scope, receive, send)
            return
        await error_response(refusal, scope, self.count)(scope, receive, send)

    @contextmanager
    def _counted(self, size: int) -> Iterator[None]:
        self._arriving += size
        try:
            yield
        finally:
            self._arriving -= size

    async def _has_room(self, size: int) -> bool:
        """Whether an upload of `size` bytes fits, after older uploads were removed."""
        most = self.quota - self._arriving - size
        return most >= 0 and await asyncio.to_thread(shrink, self.uploads, most)


def shrink(folder: Path, most: int) -> bool:
    """Remove the oldest files until the folder has at most `most` bytes.

    Args:
        folder: The folder, with its subfolders; it may be missing.
        most: Maximum number of bytes.

    Returns:
        Whether this was possible without the files of the last `YOUNG_SECONDS`.
    """
    files = []
    for file in folder.rglob("*"):
        with suppress(OSError):
            state = file.stat()
            if file.is_file():
                files.append((state.st_mtime, state.st_size, file))
    total = sum(size for _, size, _ in files)
    for changed, size, file in sorted(files, key=lambda one: one[0]):
        if total <= most or changed > time.time() - YOUNG_SECONDS:
            break
        with suppress(OSError):
            file.unlink()
            total -= size
    return total <= most


def _restrict(message: Message) -> None:
    """Add the headers to the start of a response."""
    headers = MutableHeaders(scope=message)
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    message["headers"] = [
        (name, _SAME_SITE_NONE.sub(b"SameSite=lax", value) if name.lower() == b"set-cookie" else value)
        for name, value in message["headers"]
    ]
