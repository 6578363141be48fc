"""Slows down clients that send wrong keys."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar

from vlroute.serving.connections import address_group
from vlroute.serving.errors import APIError

#: Wrong keys of one address within `WINDOW_SECONDS` that are answered like a missing key.
FREE = 10
WINDOW_SECONDS = 60.0
#: The longest time after which a client may try again; it doubles with each further wrong key.
LONGEST_SECONDS = 60.0
#: Most addresses that are stored; the one with the oldest wrong key is forgotten first.
ADDRESSES = 10_000
#: Address of the client of this request, for the log-in of the web page, which does not know it.
client_address: ContextVar[str] = ContextVar("vlroute_client_address", default="")


class WrongKeys:
    """Counts wrong keys of each address. Thread-safe.

    Beyond `FREE` wrong keys a minute, an address gets status 429 with growing `Retry-After` for a wrong key. Correct
    keys are accepted all the same: a key is too long to be guessed, and many clients may share one address.

    Args:
        clock: The time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()  # number, and when the latest one came

    def __len__(self) -> int:
        return len(self._wrong)

    def count(self, address: str) -> APIError | None:
        """Count a wrong key.

        Args:
            address: Address of the client; that of the proxy's client behind a trusted proxy.

        Returns:
            The error with status 429 if there were too many, otherwise None.
        """
        group = address_group(address)
        with self._lock:
            now = self._clock()
            number, latest = self._wrong.pop(group, (0, now))
            number = 1 if now - latest > WINDOW_SECONDS else number + 1
            self._wrong[group] = number, now
            if len(self._wrong) > ADDRESSES:
                self._wrong.popitem(last=False)
        if number <= FREE:
            return None
        seconds = round(min(2.0 ** min(number - FREE - 1, 30), LONGEST_SECONDS))
        return APIError(
            429, f"too many wrong API keys from this address; try again in {seconds} s", "too_many_wrong_keys",
            headers={"Retry-After": str(seconds)},
        )  # fmt: skip
