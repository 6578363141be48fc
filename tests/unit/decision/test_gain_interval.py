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
def test_it_contains_its_own_estimate(count: int) -> None:
    rng, inside, total = np.random.default_rng(1), 0, 0
    for _ in range(300):
        p, right, _ = drawn(rng, count)
        gain = float(rng.choice([-0.5, -0.2, 0.0, 0.3]))
        low, high = GainInterval(p, right).around(gain)
        inside += low <= gain <= high
        total += 1
    assert inside == total  # the predictions are right, so the true gain is the predicted one


@pytest.mark.parametrize("bias", [-0.3, 0.3])
def test_it_contains_the_true_gain_of_biased_predictions(bias: float) -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(300):
        p, right, _ = drawn(rng, 1000)
        low, high = GainInterval(p + np.asarray([0, bias]), right).around(0.1 + bias)
        inside += low <= 0.1 <= high
        assert low <= 0.1 + bias <= high
    assert inside / 300 > 0.93


def test_it_is_not_wider_than_it_has_to_be() -> None:
    p, right, _ = drawn(np.random.default_rng(4), 1000)
    low, high = GainInterval(p, right).around(0.1)
    assert high - low < 2 * 1.96 * 0.65 / 100**0.5 * 1.5  # a gain of two drawn answers has a deviation of about 0.65


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
    assert max(-1, gain - 0.8) < low + 0.01
    assert high - 0.01 < min(1, gain + 0.8)
    assert high - low > 0.1


def test_one_record_says_next_to_nothing() -> None:
    low, high = GainInterval(np.full((1, 2), 0.5), np.asarray([[0.0, 1.0]])).around(0.0)
    assert (low, high) == (-1, 1)
