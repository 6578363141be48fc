"""One log line for each request, with its id, tokens and seconds; and the response header `X-Request-Id`."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.types import Answer, Decision, new_id

log = logging.getLogger("vlroute.access")

#: Steps of an answer, in the order in which they happen. `Timing` has their seconds.
STEPS = ("caption", "decide", "vision", "queue", "prefill", "decode")
#: Endpoints that are polled by machines: their lines have the level DEBUG, unless the request is refused.
POLLED = ("/health", "/ready", "/metrics")
_ACCEPTED_ID = re.compile(r"[!-~]{1,128}")
_BARE = re.compile(r"[\w.,:/@+*()~-]+", re.ASCII)  # needs no quotes in a line of text
_LONGEST = 200  # characters of a path or of another text that a client has chosen
T = TypeVar("T")


@dataclass(slots=True)
class RequestRecord:
    """What is known about one request. Different threads add to it.

    Attributes:
        id: Its id: that of the client, if it sent a valid one.
        own_id: Whether the server has made the id, so that the answer can have it too.
        method: HTTP method.
        path: The path, or "page" for an answer of the web page.
        scheme: http or https.
        headers: The headers of the request.
        route: The path of the endpoint with the names of its parameters; None if there is no such endpoint.
        polled: Whether the endpoint is polled, or the request is for files or events of the web page.
        key: Name of the API key; None without keys.
        model: The model that the request asks for.
        status: HTTP status; None if no response was begun.
        error: Code of the error, also of one within a stream.
        error_status: HTTP status that belongs to the error. The response has another one if it had begun.
        disconnected: Whether the client disconnected before the end of the response.
        decision: Which mode answers.
        answer: The answer. It exists also if the client does not get it, such as after the deadline.
        answer_seconds: Seconds from the arrival to the end of the answer.
        first_token_seconds: Seconds from the arrival to the first token.
        trace_id: Id of the trace, if the request is traced.
        began_ns: Time of the arrival, in nanoseconds since 1970.
        seconds: Duration until the end of the response.
        thread_seconds: CPU time in seconds of threads that parse large bodies, and prepare and finish answers.
        on_end: Called with the record when the response and the answers have ended.
    """

    id: str = field(default_factory=new_id)
    own_id: bool = True
    method: str = ""
    path: str = ""
    scheme: str = "http"
    headers: Headers = field(default_factory=Headers)
    route: str | None = None
    polled: bool = False
    key: str | None = None
    model: str | None = None
    status: int | None = None
    error: str | None = None
    error_status: int | None = None
    disconnected: bool = False
    decision: Decision | None = None
    answer: Answer | None = None
    answer_seconds: float = 0.0
    first_token_seconds: float | None = None
    trace_id: str | None = None
    began_ns: int = field(default_factory=time.time_ns)
    seconds: float = 0.0
    thread_seconds: float = 0.0
    on_end: Callable[[RequestRecord], None] | None = None
    _began: float = field(default_factory=time.perf_counter)
    _open: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer_id(self) -> str:
        """The id for the answer of this request; "" if it must be a new one."""
        if not self.own_id:
            return ""
        self.own_id = False  # a further answer of the same request needs another id
        return self.id

    def answered(self, answer: Answer, seconds: float) -> None:
        """Add the answer, which ended `seconds` after the arrival of the request."""
        self.answer, self.decision, self.answer_seconds = answer, answer.decision, seconds
        if answer.usage.completion_tokens:
            self.first_token_seconds = max(seconds - answer.timing.decode, 0.0)

    def failed(self, status: int, code: str) -> None:
        """Add an error; the last one counts."""
        self.error_status, self.error = status, code

    @property
    def answering(self) -> bool:
        """Whether an answer is being made, see `begin_answer`."""
        return self._open > 1

    def begin_answer(self) -> None:
        """Keep the record open until `end_answer`: an answer that is cancelled ends after the response."""
        with self._lock:
            self._open += 1

    def end_answer(self) -> None:
        """See `begin_answer`."""
        with self._lock:
            self._open -= 1
            ended = self._open == 0
        if ended and self.on_end is not None:
            self.on_end(self)

    def end(self) -> None:
        """The response has ended, for whatever reason."""
        self.seconds = time.perf_counter() - self._began
        self.end_answer()

    def in_thread(self, work: Callable[[], T]) -> T:
        """Run work for the request in another thread than that of the event loop, and add its CPU time.

        Args:
            work: The work.

        Returns:
            What `work` returns.
        """
        began = time.thread_time()
        try:
            return work()
        finally:
            with self._lock:
                self.thread_seconds += time.thread_time() - began

    def fields(self) -> dict[str, Any]:
        """The fields of the log line. Those without a value are left out."""
        found: dict[str, Any] = {
            "request_id": self.id, "key": self.key, "method": self.method, "path": self.path, "status": self.status,
            "error": self.error, "disconnected": self.disconnected or None, "seconds": round(self.seconds, 6),
            "model": self.model, "trace_id": self.trace_id,
        }  # fmt: skip
        if (decision := self.decision) is not None:
            found |= {"mode": decision.mode, "stage": decision.stage, "forced": decision.forced}
        if (answer := self.answer) is not None:
            used = answer.usage
            found |= {
                "answer_id": None if answer.id == self.id else answer.id, "finish_reason": answer.finish_reason,
                "prompt_tokens": used.prompt_tokens, "cached_tokens": used.cached_tokens,
                "completion_tokens": used.completion_tokens, "thinking_tokens": used.thinking_tokens,
            }  # fmt: skip
            found |= {f"{step}_seconds": round(getattr(answer.timing, step), 6) for step in STEPS}
            if self.first_token_seconds is not None:
                found["first_token_seconds"] = round(self.first_token_seconds, 6)
        return {
            name: value[:_LONGEST] if isinstance(value, str) else value
            for name, value in found.items()
            if value is not None
        }


_current: ContextVar[RequestRecord] = ContextVar("vlroute_request")


def current_request() -> RequestRecord:
    """The record of the request that is being answered; a new one, which is not logged, outside of a request."""
    return _current.get(None) or RequestRecord()


def current_request_id() -> str | None:
    """The id of the request that is being answered, for log lines."""
    record = _current.get(None)
    return None if record is None else record.id


def line_of(fields: dict[str, Any]) -> str:
    """The fields as `name=value`, separated by blanks, in one line of visible ASCII characters.

    Args:
        fields: Values by name. Strings may come from clients: they are quoted as in JSON if they contain anything but
            letters, digits and a few signs, so that they cannot add fields or lines.

    Returns:
        The line.
    """
    return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())


class _Line:
    """The message of a request, which is created only if the log has the text format."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __str__(self) -> str:
        return line_of(self._fields)


def _quoted(value: Any) -> str:
    if isinstance(value, str) and not _BARE.fullmatch(value):
        return json.dumps(value).replace("\x7f", r"\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


class RequestLog:
    """ASGI middleware that logs each request when it has ended, and returns its id as `X-Request-Id`.

    It must wrap all other middleware, so that their refusals are logged too.

    Args:
        app: The wrapped application.
        count: Called with status 499 and code "client_left" if the client disconnected during a stream.
        on_end: Called with each record at its end, such as with `write`.
    """

    def __init__(
        self, app: ASGIApp, count: Callable[[int, str], None], on_end: Callable[[RequestRecord], None]
    ) -> None:
        self.app, self.count, self.on_end = app, count, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log it at its end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, application, complete = Headers(scope=scope), scope.get("app"), False
        sent = headers.getlist("x-request-id")
        accepted = len(sent) == 1 and _ACCEPTED_ID.fullmatch(sent[0]) is not None
        record = RequestRecord(
            sent[0] if accepted else new_id(),
            not accepted,
            scope["method"],
            scope["path"],
            scope["scheme"],
            headers,
            on_end=self.on_end,
        )
        header = (b"x-request-id", record.id.encode())

        async def watched_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not complete:
                record.disconnected = True
            return message

        async def watched_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), header]}
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                complete = True  # before it is sent, because uvicorn then reports a disconnect
            await send(message)

        token = _current.set(record)
        try:
            await self.app(scope, watched_receive, watched_send)
        except BaseException:
            if not complete and record.error is None:
                record.failed(503, "interrupted")
            raise
        finally:
            _current.reset(token)
            page = scope.get("app") is not application  # Gradio's application is mounted in this one
            record.route = None if page else getattr(scope.get("route"), "path_format", None)
            record.polled = page or record.route in POLLED
            record.key = scope.get("state", {}).get("key")
            if record.disconnected and record.error is None and not page:
                record.failed(499, "client_left")
                self.count(499, "client_left")
            record.end()


def write(record: RequestRecord) -> None:
    """Log a request. The fields are also in the attribute `fields` of the `LogRecord`, for other formatters."""
    level = logging.DEBUG if record.polled and record.error is None else logging.INFO
    if log.isEnabledFor(level):
        fields = record.fields()
        log.log(level, _Line(fields), extra={"fields": fields})
