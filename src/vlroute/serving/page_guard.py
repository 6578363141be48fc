"""Protects the web page.

Only its own origin may write, Gradio gets only what the page sends, uploads have a quota, and responses restrict the
browser.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.fair_share import Flow
from vlroute.serving.admission import FairQueue
from vlroute.serving.bodies import BodyPool, max_text
from vlroute.serving.connections import address_group
from vlroute.serving.errors import APIError, Count, error_response, no_endpoint, route_path
from vlroute.serving.settings import ServerSettings

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
_UPLOAD, _RUN, _JOIN = "/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/queue/join"
_CALLS = (_JOIN, _RUN)
#: Number of calls that run at the same time without the queue, at most one of a visitor. Gradio needs up to 50 ms for
#: each, in which the server answers nothing else.
_RUNNING = 2
_JSON, _FORM = frozenset({"application/json"}), frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
#: What the page sends: the types of the body.
_WRITTEN = {
    "/login": _FORM, _UPLOAD: frozenset({"multipart/form-data"}),
    **dict.fromkeys((*_CALLS, "/gradio_api/cancel", "/gradio_api/reset"), _JSON),
}  # fmt: skip
#: Maximum number of bytes of what is neither a call nor an upload.
_SMALL = 2**14
#: An upload counts as this many bytes at least: what the smallest file occupies.
_BLOCK = 2**12
#: Room is made for so many bytes of an upload at a time, when they arrive.
_STEP = 2**24
_FILES = "/gradio_api/file="
#: A part of a file, as browsers ask for it.
_RANGE = re.compile(rb"bytes=(?:(\d{1,18})-(\d{0,18})|-\d{1,18})")
#: Headers of a response with a file.
_FILE_HEADERS = frozenset(
    b"accept-ranges content-disposition content-encoding content-length content-range content-type etag last-modified "
    b"vary".split()
)
#: Responses with these paths are the same for all visitors: caches may keep them.
_SHARED = re.compile(r"/(?:(?:assets|static)/.*|theme\.css|favicon\.ico|robots\.txt)")
#: Streams that last as long as a visitor keeps the page open.
_STREAMS = re.compile(r"/gradio_api/(?:queue/data|upload_progress|heartbeat/.*)")
#: Maximum size of a part of a path: that of the name of a file.
_MAX_NAME = 255
_PAGES = ("", "zh")
_FILE = {"_type": "gradio.FileData"}
_SURROGATES = re.compile("[\ud800-\udfff]")
_SESSION = re.compile(r"[\w-]{1,100}", re.ASCII)
#: Headers from which Gradio makes addresses, and what they may contain.
_HOST_HEADERS = ("host", "x-forwarded-host")
_HOST = re.compile(r"[\w.:/\[\], -]{0,255}", re.ASCII)


class PageGuard:
    """Refuses requests of other sites, what the page does not send, and uploads over the quota; adds headers.

    Browsers send the cookies of a visitor, and requests to this machine, also for pages of other sites. They say so in
    `Sec-Fetch-Site` or `Origin`; programs that are no browsers send neither.

    Gradio answers with status 500, or with a traceback in the log, to much that its own pages never send; an event of a
    session without a name even stops its queue. So only requests with known paths, sessions and functions, and with
    files that are uploads or examples, are passed on, and their bodies are limited before Gradio reads them. Where
    visitors log in, nothing of this is done for others.

    Visitors share the page, as requests share a `BodyPool`: one more event of a visitor is accepted if at least as many
    places of the queue stay free as the visitor has, and further bytes of an upload if as much room is left as the
    visitor has used within `YOUNG_SECONDS`. If there are too many sessions, the values of the oldest session of the
    visitor with most sessions are deleted. Streams without end are closed if their connections are needed.

    Args:
        app: The application of the page.
        blocks: Gradio's page.
        logins: Users by the tokens of their cookies; None if nobody has to log in.
        settings: Settings of the server.
        uploads: Folder of the uploaded files.
        count: Called with status and code of each refusal.
    """

    def __init__(
        self,
        app: ASGIApp,
        blocks: Any,
        logins: MutableMapping[str, str] | None,
        settings: ServerSettings,
        uploads: Path,
        count: Count,
    ) -> None:
        self.app, self.blocks, self.logins, self.count = app, blocks, logins, count
        self.origins, self.uploads, self.quota = frozenset(settings.cors_origins), uploads, settings.max_uploads
        self._most = {path: max_text(settings) if path in _CALLS else _SMALL for path in _WRITTEN}
        self._most[_UPLOAD] = self.quota
        self._arriving = 0  # bytes for which uploads that are being received have room
        self._uploaded = BodyPool(self.quota)
        self._joining: list[tuple[str, Any]] = []  # visitor and function of events that Gradio has not noted yet
        self._runs = FairQueue(_RUNNING, None, no_endpoint, per_flow=1)
        self._sessions: OrderedDict[str, str] = OrderedDict()  # the visitor of each, the least recently used first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the refusal, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                _restrict(message, path)
            await send(message)

        headers, path = Headers(scope=scope), route_path(scope)
        call: tuple[str, Any] | None = None
        try:
            self._check(scope, headers, path)
            _replace_range(scope, path)
            if scope["method"] == "POST" and path != _UPLOAD:
                receive, content = await self._read(receive, path)
                call = await self._checked_call(scope, content) if path in _CALLS else None
        except APIError as refusal:
            await error_response(refusal, scope, self.count)(scope, receive, guarded_send)
            return
        if path == _UPLOAD and scope["method"] == "POST":
            await self._upload(scope, receive, guarded_send, int(headers["content-length"]))
            return
        if call is not None:
            await (self._run if path == _RUN else self._join)(call, scope, receive, guarded_send)
            return
        if path == "/logout":  # Gradio would end all sessions of the user: of all visitors with the same key
            scope["query_string"] = b"all_session=false"
            for token in _tokens(scope):
                (self.logins or {}).pop(token, None)
        elif _STREAMS.fullmatch(path) is not None:
            scope["state"].get("may_be_closed", lambda: None)()
        await self.app(scope, receive, guarded_send)

    def _check(self, scope: Scope, headers: Headers, path: str) -> None:
        """APIError for a request that the page does not send, as far as this can be said without its body."""
        reads = scope["method"] in ("GET", "HEAD", "OPTIONS")
        if not (reads and path != "/logout") and not self._is_own(headers):
            raise APIError(403, "only the web page of this server may send this; see cors_origins", "wrong_origin")
        long = any(len(part.encode("utf-8", "replace")) > _MAX_NAME for part in path.split("/"))
        known = _READ.fullmatch(path) is not None if reads else scope["method"] == "POST" and path in _WRITTEN
        if not known or long or "\0" in path:
            raise no_endpoint()
        for name in _HOST_HEADERS:
            if _HOST.fullmatch(headers.get(name, "")) is None:
                raise APIError(400, f"the header {name} names no host", "bad_header")
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(page not in _PAGES for page in query.get("page", ())) or "deep_link" in query:
            raise no_endpoint()
        if path.startswith("/gradio_api/") and self.logins is not None and self._user(scope) is None:
            raise APIError(401, "log in first", "not_logged_in")
        if not reads:
            self._check_body(headers, path)
        sessions = self.blocks._queue.pending_messages_per_session  # noqa: SLF001
        if path.endswith("/queue/data") and query.get("session_hash", [""])[-1] not in sessions:
            raise APIError(404, "no event of this session is running; reload the page", "session_not_found")

    def _check_body(self, headers: Headers, path: str) -> None:
        """APIError if the header declares a body of a wrong type or size."""
        kind, length = headers.get("content-type", "").partition(";")[0].strip().lower(), headers.get("content-length")
        if kind not in _WRITTEN[path]:
            expected = " or ".join(sorted(_WRITTEN[path]))
            raise APIError(415, f"the body must have the Content-Type {expected}", "unsupported_media_type")
        if path == _UPLOAD and not (length or "").isdecimal():
            raise APIError(411, "an upload needs a Content-Length", "length_required")
        if length is not None and length.isdecimal() and int(length) > self._most[path]:
            raise self._too_large(path)

    def _too_large(self, path: str) -> APIError:
        return APIError(413, f"the body is over the limit of {self._most[path]} bytes", "body_too_large")

    async def _read(self, receive: Receive, path: str) -> tuple[Receive, bytes]:
        """Read a body that is no upload. Returns what replays it, and the body. APIError if it is too large."""
        messages, size, more = list[Message](), 0, True
        while more:
            messages.append(message := await receive())
            more, size = message.get("more_body", False), size + len(message.get("body", b""))
            if size > self._most[path]:
                raise self._too_large(path)
        if message["type"] == "http.disconnect":
            raise APIError(499, "the client disconnected", "client_left")
        left = iter(messages)

        async def replay() -> Message:
            return next(left, None) or await receive()

        return replay, b"".join(message.get("body", b"") for message in messages)

    async def _checked_call(self, scope: Scope, content: bytes) -> tuple[str, Any]:
        """The visitor, and the function that a body calls. APIError if it is no call, or there is no place for it."""
        call = await asyncio.to_thread(self._call, content) if len(content) > _SMALL else self._call(content)
        if call is None:
            raise APIError(400, "the page has no such function, or not with these values; reload it", "bad_call")
        visitor, function = self._visitor(scope), self.blocks.fns[call["fn_index"]]
        if function.queue and not self._has_place(visitor, function):
            busy = "the page is busy with other questions; try again later"
            raise APIError(503, busy, "queue_full", headers={"Retry-After": "5"})
        self._use_session(visitor, call["session_hash"])
        return visitor, function

    def _user(self, scope: Scope) -> str | None:
        """The user of a request; None if nobody has logged in."""
        return next((user for token in _tokens(scope) if (user := (self.logins or {}).get(token)) is not None), None)

    def _visitor(self, scope: Scope) -> str:
        """Whose share a request uses: the user, or without log-ins the address."""
        return self._user(scope) or address_group((scope.get("client") or ("",))[0])

    def _has_place(self, visitor: str, function: Any) -> bool:
        """Whether a further event of this visitor leaves as many places free as the visitor has.

        These are the places for events, and, if the visitor has an event of the same function, those of the function.
        """
        queue = self.blocks._queue  # noqa: SLF001
        noted = [event for event in [*queue.event_ids_to_events.values()] if not event.closed]
        events = [*self._joining, *((_visitor_of(event), event.fn) for event in noted)]
        mine = [one for one in events if one[0] == visitor]
        if len(mine) + len(events) >= queue.max_size:
            return False
        same, most = [one for one in events if one[1] is function], function.concurrency_limit
        mine = [one for one in same if one[0] == visitor]
        return not mine or not isinstance(most, int) or len(mine) + len(same) < most

    def _use_session(self, visitor: str, session: str) -> None:
        """Note the use of a session, and delete the values of another one if there are too many."""
        self._sessions[session] = visitor
        self._sessions.move_to_end(session)
        if len(self._sessions) > self.blocks.state_session_capacity:
            (heaviest, _), *_ = Counter(self._sessions.values()).most_common(1)
            oldest = next(one for one, owner in self._sessions.items() if owner == heaviest)
            holder = self.blocks.state_holder
            with holder.lock:
                for kept in (self._sessions, holder.session_data, holder.time_last_used):
                    kept.pop(oldest, None)

    def _call(self, content: bytes) -> dict[str, Any] | None:
        """The call in a body; None if it does not name a session and a function of the page, with all its values."""
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(body, dict):
            return None
        session, index, values = body.get("session_hash"), body.get("fn_index"), body.get("data")
        if not isinstance(session, str) or _SESSION.fullmatch(session) is None or type(index) is not int:
            return None
        function = self.blocks.fns.get(index)
        if function is None or not isinstance(values, list) or len(values) != len(function.inputs):
            return None
        options = ("batched", "simple_format", "event_id", "oauth_token")
        if any(body.get(name) for name in options) or not self._is_plain(body):
            return None
        if body.get("trigger_id") is not None and type(body["trigger_id"]) is not int:
            return None
        event = body.get("event_data")
        if function.collects_event_data and not (isinstance(event, dict) and {"index", "value"} <= event.keys()):
            return None
        known = self.blocks.state_holder.session_data.get(session)  # with the choices that this session was given
        current = {} if known is None else known.blocks_config.blocks
        inputs = [current.get(one._id, one) for one in function.inputs]  # noqa: SLF001
        return body if all(map(_fits, inputs, values)) else None

    def _is_plain(self, value: Any) -> bool:
        """Whether all texts can be encoded, and all files are uploads or examples."""
        if isinstance(value, str):
            return not _SURROGATES.search(value)
        if isinstance(value, list):
            return all(map(self._is_plain, value))
        if not isinstance(value, dict):
            return True
        if "path" in value and (value.get("meta") != _FILE or not self._is_known_file(value["path"])):
            return False
        return all(map(self._is_plain, (*value, *value.values())))

    def _is_known_file(self, path: Any) -> bool:
        from gradio.utils import is_static_file

        if not isinstance(path, str) or "\0" in path:
            return False
        file, uploads = os.path.realpath(path), os.path.join(os.path.realpath(self.uploads), "")
        try:
            if stat.S_ISDIR(os.stat(file).st_mode):
                return False
        except FileNotFoundError:  # it was deleted because of its age: the page says so
            pass
        except OSError:  # such as for a name that is too long
            return False
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

    async def _join(self, call: tuple[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on that becomes an event. It counts at once: Gradio notes it some steps later."""
        self._joining.append(call)
        try:
            await self.app(scope, receive, send)
        finally:
            self._joining.remove(call)

    async def _run(self, call: tuple[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on that does not use Gradio's queue, in turn."""
        ticket = self._runs.enter(Flow(call[0]))
        try:
            await asyncio.wrap_future(ticket.place)
            await self.app(scope, receive, send)
        finally:
            self._runs.leave(ticket)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, length: int) -> None:
        """Pass an upload on, within the quota and the share of the visitor. What has not arrived does not count."""
        visitor, size, room, counted = self._visitor(scope), 0, 0, 0

        async def counting_receive() -> Message:
            nonlocal size, room, counted
            message = await receive()
            size += len(message.get("body", b""))
            while size > room:
                step = max(min(_STEP, length - room), size - room)
                try:
                    self._uploaded.take(visitor, max(step, _BLOCK))
                except APIError:
                    raise self._no_room() from None
                counted, room, self._arriving = counted + max(step, _BLOCK), room + step, self._arriving + step
                if not await asyncio.to_thread(shrink, self.uploads, self.quota - self._arriving):
                    raise self._no_room()
            return message

        try:
            await self.app(scope, counting_receive, send)
        finally:
            self._arriving -= room
            arrived = min(max(size, _BLOCK), counted)
            self._uploaded.give_back(visitor, counted - arrived)
            asyncio.get_running_loop().call_later(YOUNG_SECONDS, self._uploaded.give_back, visitor, arrived)

    def _no_room(self) -> HTTPException:
        return HTTPException(
            503, f"the uploads of all visitors together are limited to {self.quota} bytes, of which each has a share; "
            "try again later", {"Retry-After": "60"},
        )  # fmt: skip


def _fits(component: Any, value: Any) -> bool:
    """Whether the page can send this value of a component of Gradio.

    Gradio or the function would fail on another one, and the log would contain the value.
    """
    import gradio as gr
    from gradio_client.utils import is_valid_file

    match component:
        case gr.State():  # Gradio uses its own value
            return True
        case gr.Dropdown() | gr.Radio():
            return value is None or any(type(one) is type(value) and one == value for _, one in component.choices)
        case gr.Slider():
            return type(value) in (int, float) and component.minimum <= value <= component.maximum
        case gr.Checkbox():
            return isinstance(value, bool)
        case gr.Textbox():
            return isinstance(value, str)
        case gr.HTML():
            return value is None or isinstance(value, str)
        case gr.File():
            return value is None or _read(component, value) is not None
        case gr.MultimodalTextbox():
            asked = _read(component, value)
            return asked is not None and all(is_valid_file(one.path, component.file_types) for one in asked.files)
    return False  # no function of the page has other inputs


def _read(component: Any, value: Any) -> Any:
    """A value in the form that Gradio gives it; None if this is not possible."""
    try:
        return component.data_model.model_validate(value)
    except ValueError:
        return None


def _visitor_of(event: Any) -> str:
    """See `PageGuard._visitor`."""
    return event.username or address_group(getattr(event.request.client, "host", ""))


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


def _replace_range(scope: Scope, path: str) -> None:
    """Let Starlette answer a request for a part of a file, and ignore other ranges, as HTTP allows.

    Gradio's own answer contains all headers of the request, with the cookies. It answers only to `bytes` in lower case,
    Starlette to all spellings.
    """
    ranges = [value.strip() for name, value in scope["headers"] if name == b"range"]
    scope["headers"] = [one for one in scope["headers"] if one[0] != b"range"]
    if path.startswith(_FILES) and len(ranges) == 1 and (found := _RANGE.fullmatch(ranges[0])) is not None:
        first, last = found.groups()
        if not last or int(first) <= int(last):
            scope["headers"].append((b"range", ranges[0].replace(b"bytes", b"Bytes")))


def _restrict(message: Message, path: str) -> None:
    """Add security headers to the start of a response; a response with a file keeps only `_FILE_HEADERS`."""
    if path.startswith(_FILES) and message["status"] < 400:
        message["headers"] = [one for one in message["headers"] if one[0].lower() in _FILE_HEADERS]
    headers = MutableHeaders(scope=message)
    if _SHARED.fullmatch(path) is None:
        headers["Cache-Control"] = "private" if path.startswith(_FILES) else "no-store"
    headers["Content-Security-Policy"] = POLICY
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Referrer-Policy"] = "same-origin"
    message["headers"] = [
        (name, _SAME_SITE_NONE.sub(b"SameSite=lax", value) if name.lower() == b"set-cookie" else value)
        for name, value in message["headers"]
    ]
