"""Protects the web page.

Only its own origin may write, Gradio gets only what the page sends, uploads have a quota, and responses restrict the
browser.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, error_response, no_endpoint, route_path

#: What the browser may load and do on the page. Gradio's own scripts are inline; the elements of the head say so too.
POLICY = "base-uri 'self'; form-action 'self'; frame-ancestors 'self'; object-src 'none'"
#: Uploads that are younger, in seconds, are not removed to make room for others: they may not have been used yet.
YOUNG_SECONDS = 600
_SAME_SITE_NONE = re.compile(rb"samesite=none", re.IGNORECASE)
#: What the page asks for. Gradio has more endpoints, such as one that fetches any address.
_READ = re.compile(
    r"/(?:zh/?)?|/(?:config|theme\.css|favicon\.ico|robots\.txt|logout)|/(?:assets|static)/.*"
    r"|/gradio_api/(?:queue/data|upload_progress|heartbeat/[\w-]{1,100}|file=(?![A-Za-z]{2,}:|~).+)", re.ASCII,
)  # fmt: skip
_WRITTEN = re.compile(r"/login|/gradio_api/(?:queue/join|run/predict|upload|cancel|reset)", re.ASCII)
_UPLOAD, _CALLS = "/gradio_api/upload", ("/gradio_api/queue/join", "/gradio_api/run/predict")
#: Streams that last as long as a visitor keeps the page open.
_STREAMS = re.compile(r"/gradio_api/(?:queue/data|upload_progress|heartbeat/.*)")
#: Maximum size of a part of a path: that of the name of a file.
_MAX_NAME = 255
_PAGES = ("", "zh")
_SURROGATES = re.compile("[\ud800-\udfff]")
_SESSION = re.compile(r"[\w-]{1,100}", re.ASCII)
#: Headers from which Gradio makes addresses, and what they may contain.
_HOST_HEADERS = ("host", "x-forwarded-host", "x-gradio-server")
_HOST = re.compile(r"[\w.:/\[\], -]{0,255}", re.ASCII)


class PageGuard:
    """Refuses requests of other sites, what the page does not send, and uploads over the quota; adds headers.

    Browsers send the cookies of a visitor, and requests to this machine, also for pages of other sites. They say so in
    `Sec-Fetch-Site` or `Origin`; programs that are no browsers send neither.

    Gradio answers with status 500, or with a traceback in the log, to much that its own pages never send; an event of a
    session without a name even stops its queue. So only requests with known paths, sessions and functions, and with
    files that are uploads or examples, are passed on. Events of all visitors share a queue: one more of a visitor is
    accepted if at least as many places stay free as the visitor has, as in `BodyPool`. Streams without end are closed
    if their connections are needed.

    Args:
        app: The application of the page.
        blocks: Gradio's page.
        logins: Users by the tokens of their cookies; None if nobody has to log in.
        origins: Other origins that may use the page, see `ServerSettings.cors_origins`.
        uploads: Folder of the uploaded files.
        quota: Maximum number of bytes of all uploaded files together.
        count: Called with status and code of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        blocks: Any,
        logins: MutableMapping[str, str] | None,
        origins: Sequence[str],
        uploads: Path,
        quota: int,
        count: Count,
    ) -> None:
        self.app, self.blocks, self.logins, self.origins, self.count = app, blocks, logins, frozenset(origins), count
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

        headers, path = Headers(scope=scope), route_path(scope)
        if (refusal := self._refusal(scope, headers, path)) is not None:
            await error_response(refusal, scope, self.count)(scope, receive, guarded_send)
        elif path == _UPLOAD and scope["method"] == "POST":
            await self._upload(scope, receive, guarded_send, headers.get("content-length", ""))
        elif path in _CALLS and scope["method"] == "POST":
            await self._call(scope, receive, guarded_send)
        else:
            if path == "/logout":  # Gradio would end all sessions of the user: of all visitors with the same key
                scope["query_string"] = b"all_session=false"
                for token in _tokens(scope):
                    (self.logins or {}).pop(token, None)
            elif _STREAMS.fullmatch(path) is not None:
                scope["state"].get("may_be_closed", lambda: None)()
            await self.app(scope, receive, guarded_send)

    def _refusal(self, scope: Scope, headers: Headers, path: str) -> APIError | None:
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if not reads and not self._is_own(headers):
            return APIError(403, "only the web page of this server may send this; see cors_origins", "wrong_origin")
        long = any(len(part.encode("utf-8", "replace")) > _MAX_NAME for part in path.split("/"))
        known = (_READ if reads else _WRITTEN).fullmatch(path) is not None and (reads or scope["method"] == "POST")
        if not known or long or "\0" in path:
            return no_endpoint()
        for name in _HOST_HEADERS:
            if _HOST.fullmatch(headers.get(name, "")) is None:
                return APIError(400, f"the header {name} names no host", "bad_header")
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(page not in _PAGES for page in query.get("page", ())) or "deep_link" in query:
            return no_endpoint()
        if path.startswith("/gradio_api/heartbeat") and self.logins is not None and self._user(scope) is None:
            return APIError(401, "log in first", "not_logged_in")
        sessions = self.blocks._queue.pending_messages_per_session  # noqa: SLF001
        if path.endswith("/queue/data") and query.get("session_hash", [""])[-1] not in sessions:
            return APIError(404, "no event of this session is running; reload the page", "session_not_found")
        return None

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call of a function of the page on, if it is one."""
        messages = [message := await receive()]
        while message.get("more_body", False):
            messages.append(message := await receive())
        left = iter(messages)

        async def replay() -> Message:
            return next(left, None) or await receive()

        try:
            body = json.loads(b"".join(message.get("body", b"") for message in messages))
        except (ValueError, RecursionError):
            body = None
        if message["type"] == "http.disconnect":
            return
        if not self._is_call(body):
            refusal = APIError(400, "the page has no such function; reload it", "bad_call")
        elif not self._has_place(scope):
            busy = "the page is busy with other questions of yours; try again later"
            refusal = APIError(503, busy, "queue_full", headers={"Retry-After": "5"})
        else:
            await self.app(scope, replay, send)
            return
        await error_response(refusal, scope, self.count)(scope, receive, send)

    def _user(self, scope: Scope) -> str | None:
        """The user of a request; None if nobody has logged in."""
        return next((user for token in _tokens(scope) if (user := (self.logins or {}).get(token)) is not None), None)

    def _has_place(self, scope: Scope) -> bool:
        """Whether a further event of this visitor leaves as many places of the queue free as the visitor has."""
        queue = self.blocks._queue  # noqa: SLF001
        events = [event for event in [*queue.event_ids_to_events.values()] if not event.closed]
        visitor = self._user(scope) or (scope.get("client") or ("",))[0]
        mine = sum(visitor == (event.username or getattr(event.request.client, "host", "")) for event in events)
        return bool(mine + len(events) < queue.max_size)

    def _is_call(self, body: Any) -> bool:
        """Whether a body names a session and a function of the page, with as many values as the function takes."""
        if not isinstance(body, dict):
            return False
        session, index, values = body.get("session_hash"), body.get("fn_index"), body.get("data")
        if not isinstance(session, str) or _SESSION.fullmatch(session) is None or type(index) is not int:
            return False
        function = self.blocks.fns.get(index)
        options = ("batched", "simple_format", "event_id", "oauth_token")
        return (
            function is not None and isinstance(values, list) and len(values) == len(function.inputs)
            and not any(body.get(name) for name in options) and self._is_plain(body)
        )  # fmt: skip

    def _is_plain(self, value: Any) -> bool:
        """Whether all texts can be encoded, and all files are uploads or examples."""
        if isinstance(value, str):
            return not _SURROGATES.search(value)
        if isinstance(value, list):
            return all(map(self._is_plain, value))
        if not isinstance(value, dict):
            return True
        path = value.get("path")
        return (path is None or self._is_known_file(path)) and all(map(self._is_plain, (*value, *value.values())))

    def _is_known_file(self, path: Any) -> bool:
        from gradio.utils import is_static_file

        if not isinstance(path, str) or "\0" in path:
            return False
        file, uploads = os.path.realpath(path), os.path.join(os.path.realpath(self.uploads), "")
        return file.startswith(uploads) or bool(is_static_file(file))

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


def _tokens(scope: Scope) -> Iterator[str]:
    """The tokens in the cookies of a request."""
    for name, value in cookie_parser(Headers(scope=scope).get("cookie", "")).items():
        if name.startswith("access-token"):
            yield value


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
