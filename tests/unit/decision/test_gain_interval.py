"""The interval of the gain holds its level, and is honest about few and about equal records."""

from __future__ import annotations

import numpy as np
import pytest

from vlroute.decision.gain_interval import GainInterval


def drawn(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, and outcomes drawn from them."""
    p = rng.uniform(0.2, 0.9, (count, 2))
    return p, (rng.uniform(size=p.shape) < p).astype(float), p[:, 1] - p[:, 0]


@pytest.mark.parametrize("count", [100, 2000])
def test_it_contains_the_true_gain_in_95_of_100_cases(count: int) -> None:
    rng, inside, total = np.random.default_rng(1), 0, 0
    for _ in range(300):
        p, right, true = drawn(rng, count)
        interval, gain = GainInterval(p, right), float(rng.choice([-0.2, 0.0, 0.3]))
        low, high = interval.around(gain)
        # the mean true gain of the nearest records
        near = np.sort(np.argsort(np.abs(true - gain), kind="stable")[: min(count, max(100, count // 10))])
        inside += low <= float(true[near].mean()) <= high
        total += 1
    assert inside / total > 0.93


def test_more_records_narrow_it() -> None:
    rng = np.random.default_rng(2)
    widths = []
    for count in (200, 2000, 20000):
        low, high = GainInterval(*drawn(rng, count)[:2]).around(0.2)
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[2]


@pytest.mark.parametrize("gain", [-1.0, 0.0, 1.0])
def test_equal_records_leave_a_width(gain: float) -> None:
    low, high = GainInterval(np.full((30, 2), 0.5), np.ones((30, 2))).around(gain)
    assert -0.4 < low < 0 < high < 0.4


def test_one_record_says_next_to_nothing() -> None:
    low, high = GainInterval(np.full((1, 2), 0.5), np.asarray([[0.0, 1.0]])).around(0.0)
    assert -1 <= low < -0.5
    assert high == 1
