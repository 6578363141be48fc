"""Circuit breaker for an endpoint (Nygard, Release It!, 2007)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Stops requests to an endpoint that keeps failing. Thread-safe.

    It opens after `failures` failures in a row. After a pause it is half-open: one request is allowed, which closes the
    breaker or opens it again. Each failed attempt doubles the next pause.

    Args:
        failures: Number of failures in a row that open it.
        pause: First pause in seconds.
        max_pause: Longest pause in seconds.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        failures: int = 3,
        pause: float = 5.0,
        max_pause: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures, self.first_pause, self.max_pause, self._clock = failures, pause, max_pause, clock
        self._failed, self._pause, self._opened = 0, pause, 0.0
        self._trying = False
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """Whether requests are allowed ("closed"), not allowed ("open"), or one of them is ("half-open")."""
        with self._lock:
            return self._state()

    def allow(self) -> bool:
        """Whether a request may be sent now. If so, `succeeded`, `failed` or `inconclusive` must be called after it."""
        with self._lock:
            state = self._state()
            if state == "half-open":
                self._trying = True
            return state != "open"

    def succeeded(self) -> None:
        """Record that the endpoint answered."""
        with self._lock:
            self._failed, self._pause, self._trying = 0, self.first_pause, False

    def failed(self) -> None:
        """Record that the endpoint failed."""
        with self._lock:
            self._failed += 1
            if self._trying:
                self._pause = min(2 * self._pause, self.max_pause)
            if self._trying or self._failed == self.failures:
                self._opened = self._clock()
            self._trying = False

    def inconclusive(self) -> None:
        """Record a request that says nothing about the endpoint: it was cancelled, or was itself at fault."""
        with self._lock:
            self._trying = False

    def _state(self) -> State:
        if self._failed < self.failures:
            return "closed"
        return "open" if self._trying or self._clock() < self._opened + self._pause else "half-open"
