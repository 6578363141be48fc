"""What one request may decode: its pixels, its part of the pixels of the process, and until when."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vlroute.errors import LimitError, VLRouteError

POLL_SECONDS = 0.05  # between two checks whether a request that waits for pixels was cancelled


class DecodingCancelledError(VLRouteError):
    """The request was cancelled before all of its pictures and videos were decoded."""


class PixelPool:
    """Limits the decoded pixels that the requests of a process hold together. Thread-safe.

    A flow of requests leaves as many pixels free as one request may have, so that another flow need not wait.

    Args:
        most: Maximum number of pixels.
        reserved: Number of pixels that a flow leaves free.
    """

    def __init__(self, most: int, reserved: int) -> None:
        self.most, self.reserved = most, reserved
        self._held: Counter[str] = Counter()
        self._changed = threading.Condition()

    @property
    def held(self) -> int:
        """Pixels that requests hold now."""
        return self._held.total()

    def take(self, flow: str, pixels: int, check: Callable[[], None]) -> None:
        """Wait until the pixels are free.

        Args:
            flow: Name of the flow of the request.
            pixels: Number of pixels, at most `most - reserved`.
            check: Called while waiting; it raises an error to give up.
        """
        with self._changed:
            while self._held.total() + pixels > self.most or self._held[flow] + pixels > self.most - self.reserved:
                check()
                self._changed.wait(POLL_SECONDS)
            self._held[flow] += pixels

    def give_back(self, flow: str, pixels: int) -> None:
        """Free pixels of a flow."""
        with self._changed:
            self._held[flow] -= pixels
            if not self._held[flow]:
                del self._held[flow]
            self._changed.notify_all()


class MediaBudget:
    """The pictures and videos of one request. Thread-safe.

    Args:
        pool: The pixels of the process, if they are limited.
        flow: Name of the flow of the request.
        cancelled: Whether to stop decoding.
    """

    def __init__(
        self, pool: PixelPool | None = None, flow: str = "", cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        self._pool, self._flow, self._cancelled = pool, flow, cancelled
        self._lock = threading.Lock()
        self._taken, self._released = 0, False

    def check(self) -> None:
        """Raise DecodingCancelledError if the request was cancelled."""
        if self._released or self._cancelled():
            raise DecodingCancelledError("the request was cancelled while its pictures and videos were decoded")

    def take(self, pixels: int, name: str, most: int) -> None:
        """Count pixels before they are decoded, and wait until the process has room for them.

        Args:
            pixels: Width x height, times the number of frames.
            name: Name of the picture or video for error messages.
            most: Maximum number of pixels of all pictures and videos of a request.

        Raises:
            LimitError: The request has more pixels.
            DecodingCancelledError: The request was cancelled.
        """
        self.check()
        if self._taken + pixels > most:
            raise LimitError(
                f"{name} has {pixels} pixels. With it, the pictures and videos of this request, including those of "
                f"earlier messages, have more than {most}, the limit for one request; send fewer, scale them down, or "
                "begin a new conversation"
            )
        if self._pool is not None:
            self._pool.take(self._flow, pixels, self.check)
        with self._lock:
            self._taken += pixels
            late = self._released
        if late and self._pool is not None:  # released while this thread waited
            self._pool.give_back(self._flow, pixels)

    def release(self) -> int:
        """Give all pixels back: the request has ended. Decoding that still runs stops at its next check.

        Returns:
            Number of pixels; 0 if they were given back before.
        """
        with self._lock:
            taken = 0 if self._released else self._taken
            self._released = True
        if self._pool is not None and taken:
            self._pool.give_back(self._flow, taken)
        return taken


_current: ContextVar[MediaBudget | None] = ContextVar("vlroute_media_budget", default=None)


@contextmanager
def decoding(budget: MediaBudget | None = None) -> Iterator[MediaBudget]:
    """Count what is decoded in this context for one request.

    Args:
        budget: Of the request; None: the current one, or a new one without a pool.

    Yields:
        The budget.
    """
    found = budget or _current.get() or MediaBudget()
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def current_budget() -> MediaBudget:
    """The budget of this context; outside of `decoding` a new one."""
    return _current.get() or MediaBudget()
