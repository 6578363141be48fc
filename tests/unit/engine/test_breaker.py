"""The circuit breaker, and the belief that a queue is gone after a while."""

from __future__ import annotations

import math

import pytest

from vlroute.decision.latency import LatencyModel
from vlroute.engine.remote.breaker import Breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(failures=3, pause=5, clock=Clock())
    for _ in range(4):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert breaker.state == "closed"
    for _ in range(3):
        assert breaker.allow()
        breaker.failed()
    assert breaker.state == "open"
    assert not breaker.allow()


def test_one_request_tries_and_the_rest_doubles() -> None:
    clock = Clock()
    breaker = Breaker(failures=1, pause=5, max_pause=15, clock=clock)
    breaker.failed()
    for pause in (5, 10, 15, 15):
        clock.now += pause - 0.1
        assert not breaker.allow()
        clock.now += 0.1
        assert breaker.allow()
        assert not breaker.allow()  # one at a time
        breaker.failed()
    clock.now += 15
    assert breaker.allow()
    breaker.inconclusive()  # it said nothing: the next one may try
    assert breaker.allow()
    breaker.succeeded()
    assert breaker.state == "closed"
    breaker.failed()
    clock.now += 5  # rests briefly again
    assert breaker.state == "half-open"


def test_failures_of_requests_sent_before_it_opened_do_not_prolong_the_rest() -> None:
    clock = Clock()
    breaker = Breaker(failures=2, pause=5, clock=clock)
    breaker.failed()
    breaker.failed()
    clock.now += 4.9
    breaker.failed()
    clock.now += 0.1
    assert breaker.state == "half-open"


def test_a_mode_nobody_asks_is_believed_to_recover() -> None:
    clock = Clock()
    latency = LatencyModel({"thinking": 0.01}, {"thinking": 0.1}, weight=1.0, half_life=30, clock=clock)
    latency.observe("thinking", 100, 0.1, 1.0)
    latency.observe("thinking", 100, 4.1, 3.0)
    assert latency.expected("thinking", 100) == pytest.approx(7.1)
    clock.now = 30
    assert latency.expected("thinking", 100) == pytest.approx(0.1 + 2.0 + 1.0 + 1.0)
    clock.now = 3000
    assert latency.expected("thinking", 100) == pytest.approx(1.1)
    assert latency.expected("instruct", 0) == pytest.approx(0.2)  # never observed, never changed


def test_without_a_half_life_nothing_is_forgotten() -> None:
    clock = Clock()
    latency = LatencyModel(weight=1.0, half_life=math.inf, clock=clock)
    latency.observe("thinking", 0, 0.1, 0.0)
    latency.observe("thinking", 0, 9.0, 0.0)
    clock.now = 1e6
    assert latency.expected("thinking", 0) == 9.0
    with pytest.raises(ValueError, match="half_life"):
        LatencyModel(half_life=0)
    with pytest.raises(ValueError, match="half_life"):
        LatencyModel(half_life=math.nan)
