"""The events of one answer: as a generator, produced by a thread of its own, or for an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

from vlroute.exit import end_at_exit
from vlroute.steps import Steps, check_waiting, may_wait, start
from vlroute.types import Event

T = TypeVar("T")
#: Produces an answer; its argument is called with each event.
Work = Callable[[Callable[[Event], Any]], Any]


class Stream(Generator[Event, None, None]):
    """The events of one answer. A separate thread produces them; it starts when the first event is requested.

    Any thread may read or close the stream. Closing cancels the answer and waits until its thread has ended. A stream
    that is closed in a callback of an answer, or garbage-collected before its end, is cancelled without waiting.

    Args:
        work: Produces the answer; None if `_begin` is overridden.
        cancel: An event that no other stream uses. Setting it ends `work` early.
    """

    def __init__(self, work: Work | None, cancel: threading.Event) -> None:
        self._work, self._cancel = work, cancel
        self._events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()
        self._ended = False

    def _begin(self) -> Work:
        """Called by the thread that requests the first event."""
        assert self._work is not None
        return self._work

    def send(self, value: None) -> Event:
        """The next event; see `Generator.send`. The first call starts the work.

        Raises RuntimeError in a callback of the engine, which would wait for itself.
        """
        if self._ended:
            raise StopIteration
        check_waiting()
        try:
            with self._starting:
                if self._worker is None:
                    work = partial(_make_events, self._begin(), self._events.put)
                    if self._ended:  # another thread has closed the stream
                        raise StopIteration
                    worker = threading.Thread(target=work, name="vlroute-stream", daemon=True)
                    end_at_exit(worker, self._cancel.set)
                    worker.start()
                    self._worker = worker
            event = self._events.get()
        except BaseException:
            self.close()
            raise
        if event is not None and not isinstance(event, BaseException):
            return event
        self._ended = True
        self._events.put(None)  # for another thread that reads
        raise StopIteration if event is None else event

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Event:
        """Close the stream and raise the error; see `Generator.throw`."""
        self.close()
        raise typ

    def close(self) -> None:
        """Cancel the work and wait for its thread, unless this thread has to generate the rest of the answer."""
        self._drop()
        if self._worker is not None and may_wait():
            self._worker.join()

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Cancel the rest of the answer without waiting."""
        if self._worker is not None and not self._ended:
            self._cancel.set()
        self._ended = True
        self._events.put(None)  # for another thread that reads


def _make_events(work: Work, put: Callable[[Event | BaseException | None], None]) -> None:
    """Not a method: a thread with a reference to its stream would prevent garbage collection of the stream."""
    try:
        work(put)
    except BaseException as error:  # handed to the thread that reads the events
        put(error)
    put(None)


class AsyncStream(Generic[T]):
    """Items that other threads produce, read by `next` on the event loop that created the stream.

    Args:
        pool: Its threads run `work`.
        work: Produces items: it calls its argument with each of them. See `vlroute.steps`.
        cancel: Ends `work` early; it is set after `seconds` or by `close`.
        seconds: Time limit, if any.

    Attributes:
        ended: Future that is done when the work has ended.
    """

    def __init__(
        self,
        pool: Executor,
        work: Callable[[Callable[[T], None]], Steps[Any]],
        cancel: threading.Event,
        seconds: float | None = None,
    ) -> None:
        self._cancel = cancel
        self._loop, self._items, self._arrived = asyncio.get_running_loop(), deque[Any](), asyncio.Event()
        self._waiting = False  # for an item
        self._complete, self._pause = False, cast("asyncio.Future[None] | None", None)
        self._alarm = None if seconds is None else self._loop.call_later(max(seconds, 0), cancel.set)

        def done(future: Future[Any]) -> None:
            error = future.exception()
            # not read after the last item
            self._call(self._end, error or RuntimeError("the work ended without a last item"))

        self.ended = start(work(self._put), pool)
        self.ended.add_done_callback(done)

    async def next(self) -> T:
        """The next item. Raises the error that ended the work."""
        while not self._items:
            self._arrived.clear()
            self._waiting = True
            if not self._items:  # which came before the line above
                await self._arrived.wait()
            self._waiting = False
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return cast(T, item)

    def received(self) -> list[T]:
        """Further items that have come already. An error that ended the work stays for `next`."""
        items: list[T] = []
        while self._items and not isinstance(self._items[0], BaseException):
            items.append(self._items.popleft())
        return items

    async def pause(self, seconds: float) -> None:
        """Let items come, until the work has ended or for `seconds`."""
        if self._complete:
            return
        self._pause = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._end_pause)
        try:
            await self._pause
        finally:
            timer.cancel()
            self._pause = None

    def close(self) -> None:
        """Stop the work: generation ends within one token."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._cancel.set()

    def _put(self, item: T) -> None:
        self._items.append(item)
        if self._waiting:  # otherwise the event loop need not wake up for it
            self._call(self._arrived.set)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _end(self, error: BaseException) -> None:
        self._items.append(error)
        self._arrived.set()
        self._complete = True
        self._end_pause()

    def _end_pause(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)
