"""A lock that threads get in the order in which they ask for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """A fair lock: first come, first served. `threading.Lock` may go to the same thread again and again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()  # the first one has the lock

    @contextmanager
    def turn(self, seconds: float) -> Iterator[None]:
        """Wait for the lock and hold it.

        Args:
            seconds: Maximum time to wait.

        Yields:
            While the lock is held.

        Raises:
            TimeoutError: The lock was not free in time.
        """
        mine = object()
        try:
            with self._condition:
                self._queue.append(mine)
                if not self._condition.wait_for(lambda: self._queue[0] is mine, seconds):
                    raise TimeoutError(f"other threads have used it for {seconds:g} s")
            yield
        finally:
            with self._condition:
                if mine in self._queue:  # a signal may arrive before it is
                    self._queue.remove(mine)
                self._condition.notify_all()
