"""Limits per key: requests a minute, requests at the same time, and tokens a day."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from vlroute.errors import StoreError
from vlroute.serving.errors import APIError
from vlroute.serving.keys import APIKey, session_key_name
from vlroute.store import Store
from vlroute.types import Usage

log = logging.getLogger("vlroute")
MINUTE = 60.0
CONCURRENT = "concurrent_requests_exceeded"
PATIENCE_SECONDS = 0.3  # for which a request waits for the end of another one with the same key
FRESH_SECONDS = 1.0  # for which a count of tokens is used without reading the store, to which other processes add


@dataclass(slots=True)
class _Use:
    """What one key has used."""

    started: deque[float] = field(default_factory=deque)  # when the requests of the last minute began
    running: int = 0
    counts_tokens: bool = False  # only if they are limited, because each answer is then a write to the store


class KeyLimiter:
    """Counts what each key uses, and refuses requests beyond its limits. Thread-safe.

    Keys are told apart by their names, so that a key can be replaced without a new start of its counts. Requests are
    counted in this process; tokens are counted in the store, by all processes that use it.

    Args:
        store: Where tokens are counted; None: nowhere.
        clock: The time in seconds, for the counts of requests.
    """

    def __init__(self, store: Store | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.tokens = None if store is None else TokenCounts(store)
        self._clock, self._lock = clock, threading.Lock()
        self._uses: dict[str, _Use] = {}
        self._names: dict[str, str] = {}  # of namespaces; those of removed keys too, whose answers may still run

    def used_today(self, key: APIKey) -> int | None:
        """Tokens that a key has used today; None if they are not limited. It may read the store.

        Args:
            key: The key.

        Returns:
            The number of tokens since midnight UTC.

        Raises:
            StoreError: The store cannot be read.
        """
        if key.limits.tokens_per_day is None or self.tokens is None:
            return None
        return self.tokens.today(key.name)

    def enter(self, key: APIKey, used_tokens: int | None) -> dict[str, str]:
        """Count the start of a request, or refuse it. `leave` must be called at its end.

        Args:
            key: The key of the request.
            used_tokens: See `used_today`.

        Returns:
            Headers that tell the client what is left.

        Raises:
            APIError: 429 beyond a limit; `leave` must not be called then.
        """
        headers, most = dict[str, str](), key.limits.requests_per_minute
        with self._lock:
            self._names[key.namespace] = key.name
            use, now = self._uses.setdefault(key.name, _Use()), self._clock()
            use.counts_tokens = key.limits.tokens_per_day is not None
            while use.started and use.started[0] <= now - MINUTE:
                use.started.popleft()
            refusal = _refusal(key, use, used_tokens, now)
            if refusal is None:
                use.running += 1
                if most is not None:
                    use.started.append(now)
            if most is not None:
                reset = use.started[-1] + MINUTE - now if use.started else 0.0
                headers |= _headers("requests", most, len(use.started), reset)
        if key.limits.tokens_per_day is not None and used_tokens is not None:
            headers |= _headers("tokens", key.limits.tokens_per_day, used_tokens, _seconds_of_day_left())
        if refusal is not None:
            refusal.headers = {**headers, **(refusal.headers or {})}
            raise refusal
        return headers

    async def enter_soon(self, key: APIKey, used_tokens: int | None) -> dict[str, str]:
        """`enter`, which waits a moment for the end of another request of the key.

        A client may receive the last byte of an answer, and send its next request, slightly before the previous
        request has ended here.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.enter(key, used_tokens)
            except APIError as error:
                if error.code != CONCURRENT or time.monotonic() > until:
                    raise
            await asyncio.sleep(0.01)

    def leave(self, key: APIKey) -> None:
        """Count the end of a request."""
        with self._lock:
            self._uses[key.name].running -= 1

    def spent(self, namespace: str, usage: Usage) -> None:
        """Count the tokens of an answer, which may be cut off, if those of its key are limited.

        Args:
            namespace: The namespace of the request, see `APIKey.namespace` and `session_namespace`.
            usage: The tokens of the answer.
        """
        name = session_key_name(namespace) or self._names.get(namespace)
        use = None if name is None else self._uses.get(name)
        tokens = (usage.prompt_tokens or 0) + (usage.completion_tokens or 0)  # None if an endpoint sent no counts
        if name is not None and use is not None and use.counts_tokens and self.tokens is not None and tokens:
            self.tokens.add(name, tokens)


class TokenCounts:
    """Tokens of each key and day (UTC), in a store to which several processes add. Thread-safe.

    Args:
        store: The store.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._known: dict[str, tuple[str, int, float]] = {}  # of each name: day, count, and when it was read
        self._pending: dict[tuple[str, str], int] = {}  # what could not be stored yet

    def today(self, name: str) -> int:
        """The count of a key. It may be a second old with regard to other processes.

        Args:
            name: The name of the key.

        Returns:
            The tokens since midnight UTC.

        Raises:
            StoreError: The store cannot be read.
        """
        day, now = utc_day(), time.monotonic()
        with self._lock:
            known = self._known.get(name)
        if known is None or known[0] != day or now - known[2] > FRESH_SECONDS:
            known = (day, self._store.tokens_of(name, day), now)  # without the lock: a store may be slow
        with self._lock:
            self._known[name] = known
            return known[1] + self._pending.get((name, day), 0)

    def add(self, name: str, tokens: int) -> None:
        """Add to the count of today. If the store fails, the error is logged and the tokens are added later.

        Args:
            name: The name of the key.
            tokens: The number of tokens.
        """
        day = utc_day()
        with self._lock:
            self._pending[name, day] = self._pending.get((name, day), 0) + tokens
            adding, self._pending = self._pending, {}
        for (one, when), count in adding.items():
            try:
                total = self._store.add_tokens(one, when, count)
            except StoreError as error:
                log.error("tokens of the key %s are counted later: %s", one, error)
                with self._lock:
                    self._pending[one, when] = self._pending.get((one, when), 0) + count
                continue
            if when == day:
                with self._lock:
                    self._known[one] = (day, total, time.monotonic())

    def remove_old(self) -> int:
        """Delete the counts of past days, except yesterday, to which a slow process may still add.

        Returns:
            How many were deleted.

        Raises:
            StoreError: The store cannot be changed.
        """
        yesterday = date.fromisoformat(utc_day()) - timedelta(days=1)
        return self._store.remove_tokens(yesterday.isoformat())


def _refusal(key: APIKey, use: _Use, used_tokens: int | None, now: float) -> APIError | None:
    """The error for a request with this key, if a limit does not allow it."""
    limits = key.limits
    most = limits.requests_per_minute
    if limits.tokens_per_day is not None and used_tokens is not None and used_tokens >= limits.tokens_per_day:
        reason = f"has used {used_tokens} of its {limits.tokens_per_day} tokens of this day (UTC)"
        return _limited("tokens_per_day_exceeded", reason, _seconds_of_day_left())
    if most is not None and len(use.started) >= most:
        reason = f"has sent {len(use.started)} requests in a minute, and {most} are allowed"
        return _limited("requests_per_minute_exceeded", reason, use.started[-most] + MINUTE - now)
    if limits.concurrent_requests is not None and use.running >= limits.concurrent_requests:
        reason = f"has {use.running} requests that are not finished, and {limits.concurrent_requests} are allowed"
        return _limited(CONCURRENT, reason, 1)
    return None


def _limited(code: str, reason: str, seconds: float) -> APIError:
    wait = max(math.ceil(seconds), 1)
    message = f"this API key {reason}; try again in {duration(wait)}"
    return APIError(429, message, code, headers={"Retry-After": str(wait)})


def _headers(kind: str, limit: int, used: int, reset: float) -> dict[str, str]:
    """Headers with OpenAI's names."""
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(max(limit - used, 0)),
        f"x-ratelimit-reset-{kind}": duration(math.ceil(max(reset, 0.0))),
    }


def duration(seconds: int) -> str:
    """Seconds as in OpenAI's headers: 5s, 1m0s, 2h0m5s."""
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if seconds >= 60 else ''}{seconds % 60}s"


def utc_day() -> str:
    """The current day in UTC, such as 2026-11-29."""
    return datetime.now(UTC).date().isoformat()


def _seconds_of_day_left() -> float:
    now = datetime.now(UTC)
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    return (midnight - now).total_seconds()
