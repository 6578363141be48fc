"""The latency model: a queue that was observed is assumed to shrink with time."""

from __future__ import annotations

import math

import pytest

from vlroute.decision.latency import LatencyModel


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_mode_without_requests_is_assumed_to_recover() -> None:
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


def test_numbers_that_are_no_floats_are_refused() -> None:
    latency, huge = LatencyModel(), 10**400
    for attempt in (
        lambda: LatencyModel({"instruct": huge}),
        lambda: latency.expected("instruct", huge),
        lambda: latency.observe("instruct", huge, 0.1, 0.1),
        lambda: latency.observe("instruct", 1, huge, 0.1),
        lambda: latency.observe("instruct", 1, 0.1, 0.1, huge),
        lambda: LatencyModel.from_dict({"per_token": {"instruct": 1e10}, "prefill": {}}),
    ):
        with pytest.raises(ValueError, match=r"must be|finite"):
            attempt()
    assert LatencyModel.from_dict(latency.to_dict()).to_dict() == latency.to_dict()
