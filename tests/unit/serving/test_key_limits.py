"""Limits per key: when requests are refused, what the client is told, and counts that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from vlroute.errors import StoreError
from vlroute.serving import key_limits
from vlroute.serving.errors import APIError
from vlroute.serving.key_limits import KeyLimiter, TokenCounts
from vlroute.serving.keys import APIKey, KeyLimits, session_namespace
from vlroute.store import Store
from vlroute.types import Usage


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "answers.db") as one:
        yield one


def key(name: str = "ann", **limits: int) -> APIKey:
    return APIKey(name, name.encode() * 8, KeyLimits(**limits))


def refused(limiter: KeyLimiter, one: APIKey, used: int | None = None) -> APIError:
    with pytest.raises(APIError) as error:
        limiter.enter(one, used)
    assert error.value.status == 429
    assert error.value.body()["error"]["type"] == "rate_limit_error"
    return error.value


def usage(prompt: int | None, completion: int) -> Usage:
    return Usage(prompt, 0, completion, 0)  # type: ignore[arg-type]


def test_requests_in_any_60_seconds() -> None:
    clock = Clock()
    limiter, ann = KeyLimiter(None, clock), key(requests_per_minute=2)
    assert limiter.enter(ann, None) == {
        "x-ratelimit-limit-requests": "2", "x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "1m0s",
    }  # fmt: skip
    clock.now += 20
    assert limiter.enter(ann, None)["x-ratelimit-remaining-requests"] == "0"
    clock.now += 10
    error = refused(limiter, ann)
    assert error.code == "requests_per_minute_exceeded"
    assert error.headers is not None
    assert error.headers["Retry-After"] == "30"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    limiter.enter(key("bob", requests_per_minute=2), None)  # not affected
    clock.now += 30
    limiter.enter(ann, None)
    assert refused(limiter, ann).headers["Retry-After"] == "20"  # type: ignore[index]
    # a lower limit takes effect at once
    assert refused(limiter, key(requests_per_minute=1)).headers["Retry-After"] == "60"  # type: ignore[index]


def test_requests_at_the_same_time() -> None:
    limiter, ann = KeyLimiter(None), key(concurrent_requests=2)
    limiter.enter(ann, None)
    limiter.enter(ann, None)
    error = refused(limiter, ann)
    assert (error.code, error.headers) == ("concurrent_requests_exceeded", {"Retry-After": "1"})
    limiter.leave(ann)
    limiter.enter(ann, None)
    refused(limiter, ann)


def test_a_refused_request_does_not_count() -> None:
    clock = Clock()
    limiter, ann = KeyLimiter(None, clock), key(concurrent_requests=1, requests_per_minute=2)
    limiter.enter(ann, None)
    for _ in range(5):
        assert refused(limiter, ann).code == "concurrent_requests_exceeded"
    limiter.leave(ann)
    limiter.enter(ann, None)


def test_tokens_of_a_day(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_limits, "utc_day", lambda: "2026-01-01")
    limiter, ann = KeyLimiter(store), key(tokens_per_day=100)
    headers = limiter.enter(ann, limiter.used_today(ann))
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("100", "100")
    limiter.spent(ann.namespace, usage(60, 30))
    limiter.spent("of another key", usage(60, 30))
    assert limiter.enter(ann, limiter.used_today(ann))["x-ratelimit-remaining-tokens"] == "10"
    limiter.spent(session_namespace("session", "ann"), usage(None, 50))  # an endpoint that sends no counts of prompts
    assert limiter.used_today(ann) == 140
    error = refused(limiter, ann, limiter.used_today(ann))
    assert error.code == "tokens_per_day_exceeded"
    assert error.headers is not None
    assert 1 <= int(error.headers["Retry-After"]) <= 86_400
    assert error.headers["x-ratelimit-remaining-tokens"] == "0"
    monkeypatch.setattr(key_limits, "utc_day", lambda: "2026-01-02")
    limiter.enter(ann, limiter.used_today(ann))


def test_counts_survive_a_restart_and_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_limits, "FRESH_SECONDS", -1.0)
    with Store(tmp_path / "answers.db") as one, Store(tmp_path / "answers.db") as two:
        counts = TokenCounts(one), TokenCounts(two)
        threads = [Thread(target=lambda n=n: [counts[n % 2].add("ann", 1) for _ in range(25)]) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [count.today("ann") for count in counts] == [100, 100]
    with Store(tmp_path / "answers.db") as again:
        assert TokenCounts(again).today("ann") == 100


def test_tokens_are_counted_later_if_the_store_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = TokenCounts(store)
    counts.add("ann", 5)

    def full(*_: Any) -> int:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add_tokens", full)
        counts.add("ann", 7)
        assert counts.today("ann") == 12  # the limit still holds
    assert store.tokens_of("ann", key_limits.utc_day()) == 5
    counts.add("ann", 1)
    assert store.tokens_of("ann", key_limits.utc_day()) == 13


def test_only_limited_tokens_are_counted(store: Store) -> None:
    limiter, today = KeyLimiter(store), key_limits.utc_day()
    limiter.enter(key("bob", requests_per_minute=9), None)
    limiter.spent(key("bob").namespace, usage(60, 30))
    assert store.tokens_of("bob", today) == 0
    limiter.enter(key("bob", tokens_per_day=100), 0)  # the key file was changed
    limiter.spent(key("bob").namespace, usage(60, 30))
    assert store.tokens_of("bob", today) == 90


def test_counts_of_past_days_are_deleted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, days = TokenCounts(store), ["2025-12-30", "2025-12-31", "2026-01-01"]
    for day in days:
        monkeypatch.setattr(key_limits, "utc_day", lambda day=day: day)
        counts.add("ann", 5)
        counts.add("bob", 6)
    assert counts.remove_old() == 2
    assert counts.remove_old() == 0
    assert [store.tokens_of("ann", day) for day in days] == [0, 5, 5]
    assert counts.today("bob") == 6


@pytest.mark.parametrize(("seconds", "text"), [(1, "1s"), (59, "59s"), (60, "1m0s"), (3605, "1h0m5s")])
def test_durations_are_written_as_openai_does(seconds: int, text: str) -> None:
    assert key_limits.duration(seconds) == text
