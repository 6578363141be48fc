"""One request being answered in a thread, as its events reach the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, cast

from vlroute.answer import Event

Emit = Callable[[Event], None]


class Running:
    """Events of one request, read by `next` on the event loop that made it."""

    def __init__(
        self,
        pool: Executor,
        work: Callable[[Emit], Any],
        cancel: threading.Event,
        ended: Callable[[], None],
        left: float,
    ) -> None:
        """`work` runs in `pool`, then `ended` is called. `cancel` is set after `left` seconds or by `close`."""
        self._cancel = cancel
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        self._alarm = self._loop.call_later(max(left, 0), cancel.set)

        def over(future: Future[Any]) -> None:
            ended()
            error = None if future.cancelled() else future.exception()
            self._emit(error or RuntimeError("the work ended before its answer did"))  # after an answer nobody reads it

        self._future = pool.submit(work, self._emit)
        self._future.add_done_callback(over)

    async def next(self, timeout: float | None = None) -> Event:
        """The next event; raises what ended the work. TimeoutError if nothing comes in time."""
        event = await asyncio.wait_for(self._queue.get(), timeout)
        if isinstance(event, BaseException):
            raise event
        return cast(Event, event)

    def close(self) -> None:
        """Nobody reads on: writing ends within one token."""
        self._alarm.cancel()
        self._cancel.set()
        self._future.cancel()

    def _emit(self, event: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)
