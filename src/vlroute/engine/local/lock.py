"""One at a time, first come first served; who has come far already goes first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


class PriorityLock:
    """A lock that is handed on in the order in which it was asked for: `with turn:`. Not reentrant.

    `with turn.ahead():` waits for whoever has it, and for others ahead, but not for those who wait in the line.

    Pictures (in the line) and prompts (ahead) of a pair go through it: many small operations of many threads would take
    Python's interpreter from each other so often that eight at once get no more than half of what one alone does.
    """

    def __init__(self) -> None:
        self._ahead: deque[threading.Lock] = deque()
        self._line: deque[threading.Lock] = deque()
        self._taken = False
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._take(self._line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @contextmanager
    def ahead(self) -> Iterator[None]:
        self._take(self._ahead)
        try:
            yield
        finally:
            self._leave()

    def _take(self, line: deque[threading.Lock]) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            line.append(mine)
        mine.acquire()

    def _leave(self) -> None:
        with self._lock:
            if line := self._ahead or self._line:
                line.popleft().release()
            else:
                self._taken = False
