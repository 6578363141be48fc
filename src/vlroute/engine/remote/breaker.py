"""A circuit breaker (Nygard, Release It!, 2007): an endpoint that keeps failing is left alone for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Opens after `failures` in a row; after `rest` seconds one request may try, and closes it or opens it again.

    The rest doubles with each failed try, up to `longest`. Thread-safe.
    """

    def __init__(
        self,
        failures: int = 3,
        rest: float = 5.0,
        longest: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most, self.first_rest, self.longest, self._clock = failures, rest, longest, clock
        self._failed, self._rest, self._opened = 0, rest, 0.0
        self._trying = False
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        with self._lock:
            return self._state()

    def admit(self) -> bool:
        """Whether a request may be sent now. Who gets true must tell `succeeded`, `failed` or `gave_up`."""
        with self._lock:
            state = self._state()
            if state == "half-open":
                self._trying = True
            return state != "open"

    def succeeded(self) -> None:
        with self._lock:
            self._failed, self._rest, self._trying = 0, self.first_rest, False

    def failed(self) -> None:
        with self._lock:
            self._failed += 1
            if self._trying:
                self._rest = min(2 * self._rest, self.longest)
            if self._trying or self._failed == self.most:
                self._opened = self._clock()
            self._trying = False

    def gave_up(self) -> None:
        """The request says nothing about the endpoint: it was cancelled, or was itself at fault."""
        with self._lock:
            self._trying = False

    def _state(self) -> State:
        if self._failed < self.most:
            return "closed"
        return "open" if self._trying or self._clock() < self._opened + self._rest else "half-open"
