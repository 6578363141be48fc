"""Answers as server-sent events, in the format of any API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, ClassVar, Protocol, TypeVar

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, api_error
from vlroute.serving.replies import compact_json, is_large
from vlroute.stream import AsyncStream
from vlroute.types import Finished

#: Seconds between two events that keep the connection open: proxies close a silent stream after about 30 s.
PING_SECONDS = 10.0
#: Several streams send one after the other, with so many seconds between them. With many streams, each pauses for
#: `MAX_PAUSE_SECONDS`. Tokens that come meanwhile are sent together. Otherwise the streams of one client could use up
#: the event loop, and others would wait for it.
SECONDS_PER_STREAM, MAX_PAUSE_SECONDS = 0.0025, 0.1
#: Maximum number of events that are converted without a break.
MAX_EVENTS = 50
#: Under another server than `HTTPServer`, a stream is cut off this time after the shutdown has begun.
SHUTDOWN_SECONDS = 20.0


T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class StreamFormat(Protocol[T_contra]):
    """Converts the events of one request to the events of an API. The first one, Decided, is known before it starts."""

    def first(self) -> Iterable[ServerSentEvent]:
        """What is sent at once."""

    def of(self, event: T_contra) -> Iterable[ServerSentEvent]:
        """What is sent for a later event. The last one is Finished."""

    def error(self, error: APIError) -> Iterable[ServerSentEvent]:
        """What is sent for an error, which ends the answer."""

    def last(self) -> Iterable[ServerSentEvent]:
        """What is sent at the end, also after an error."""


class EventStream(EventSourceResponse):
    """The answer as server-sent events. Generation stops as soon as the response ends, for whatever reason.

    Args:
        events: The events after the first one.
        format: Converts them.
        count: Called with status and code of an error within the stream.
        headers: Headers of the response.
        ping: Makes what keeps the connection open; by default a comment.

    Attributes:
        running: Number of streams that this process sends.
    """

    running: ClassVar[int] = 0
    _turn: ClassVar[float] = 0.0  # when the last one of them may send again, `time.monotonic()`

    def __init__(
        self,
        events: AsyncStream[T],
        format: StreamFormat[T],
        count: Count,
        headers: dict[str, str],
        ping: Callable[[], ServerSentEvent] = lambda: ServerSentEvent(comment="still working", sep="\n"),
    ) -> None:
        super().__init__(
            _body(events, format, count),
            headers={**headers, "Cache-Control": "no-cache"},
            ping=PING_SECONDS,
            ping_message_factory=ping,
            shutdown_grace_period=SHUTDOWN_SECONDS,
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the request is cancelled when the client disconnects."""
        EventStream.running += 1
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the generator: if it was never started, its `finally` does not run
            EventStream.running -= 1
            self._events.close()

    @classmethod
    def pause(cls) -> float:
        """Seconds until a stream that has just sent something may send again."""
        if cls.running < 2:
            return 0.0
        now = time.monotonic()
        cls._turn = min(max(cls._turn + SECONDS_PER_STREAM, now), now + MAX_PAUSE_SECONDS)
        return cls._turn - now


async def _body(
    events: AsyncStream[T], format: StreamFormat[T], count: Count
) -> AsyncIterator[ServerSentEvent | bytes]:
    """All events of the stream."""
    try:
        for sent in format.first():
            yield sent
        event: T | None = None
        while not isinstance(event, Finished):
            received = [await events.next(), *events.received()]
            event = received[-1]
            for at in range(0, len(received), MAX_EVENTS):
                if at:
                    await asyncio.sleep(0)
                some = received[at : at + MAX_EVENTS]
                # the last event may contain the log-probabilities of all tokens
                large = isinstance(some[-1], Finished) and is_large([some[-1].answer])
                if data := await asyncio.to_thread(_encoded, format, some) if large else _encoded(format, some):
                    yield data
            if not isinstance(event, Finished) and (pause := EventStream.pause()):
                await events.pause(pause)
    except Exception as error:
        converted = api_error(error)
        count(converted.status, converted.code)
        for sent in format.error(converted):
            yield sent
    for sent in format.last():
        yield sent


def _encoded(format: StreamFormat[T], events: Iterable[T]) -> bytes:
    return b"".join(sent.encode() for one in events for sent in format.of(one))


def json_event(value: dict[str, Any], event: str | None = None) -> ServerSentEvent:
    """A server-sent event whose data is JSON.

    Args:
        value: The data.
        event: Name of the event, for APIs that name them.

    Returns:
        The event.
    """
    return ServerSentEvent(compact_json(value), event=event, sep="\n")
