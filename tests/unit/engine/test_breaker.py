"""The circuit breaker of an endpoint."""

from __future__ import annotations

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


def test_a_half_open_breaker_allows_one_request_and_doubles_its_pause() -> None:
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
    breaker.inconclusive()  # the next request may try
    assert breaker.allow()
    breaker.succeeded()
    assert breaker.state == "closed"
    breaker.failed()
    clock.now += 5  # the first pause again
    assert breaker.state == "half-open"


def test_failures_of_requests_sent_before_it_opened_do_not_prolong_the_pause() -> None:
    clock = Clock()
    breaker = Breaker(failures=2, pause=5, clock=clock)
    breaker.failed()
    breaker.failed()
    clock.now += 4.9
    breaker.failed()
    clock.now += 0.1
    assert breaker.state == "half-open"
