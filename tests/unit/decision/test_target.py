"""Targets and presets: what every price gives on a calibration set, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.target import Target
from vlroute.decision.tradeoff import CalibrationSet, TradeoffCurve

LATENCY = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.0, "thinking": 0.0})
# Instruct writes 10 tokens (0.1 s), Thinking 110 (1.1 s): every thought costs one second
GAINS = [0.6, 0.4, 0.2, -0.2, 0.1]
RIGHT = [(0, 1), (0, 1), (0, 0), (1, 0), (1, 1)]


def records(gains: list[float] = GAINS, right: list[tuple[int, int]] = RIGHT, coverage: float = 1.0) -> CalibrationSet:
    n = len(gains)
    tokens = np.tile(np.asarray([[10, 110]], np.float32), (n, 1))
    p = np.asarray([(0.3, 0.3 + gain) for gain in gains], np.float32)
    return CalibrationSet(p, tokens, np.asarray(right, np.float32), tokens, np.full(n, coverage, np.float32))


def test_every_price_by_hand() -> None:
    curve = TradeoffCurve(records(), LATENCY)
    assert curve.shares.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert curve.accuracies.tolist() == pytest.approx([0.4, 0.6, 0.8, 0.8, 0.8])
    assert curve.seconds.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert curve.prices.tolist() == pytest.approx([1.2, 0.5, 0.3, 0.15, 0.0])
    assert curve.single_accuracies.tolist() == pytest.approx([0.4, 0.6])
    at = curve.at(0.45)
    assert (at.price, at.accuracy, at.thinking_share) == pytest.approx((0.45, 0.6, 0.2))
    assert at.interval[0] < 0.6 < at.interval[1]
    assert curve.at(99).thinking_share == 0
    assert curve.at(0).thinking_share == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("target", "share"),
    [
        ({"target_accuracy": 0.6}, 0.2),
        ({"target_accuracy": 0.7}, 0.4),
        ({"target_accuracy": 0.99}, 0.4),  # out of reach: the most accurate, and the fastest of these
        ({"target_accuracy": 0.1}, 0.0),
        ({"max_mean_seconds": 0.45}, 0.2),
        ({"max_mean_seconds": 0.0}, 0.0),  # out of reach: the fastest
        ({"max_mean_seconds": 9.0}, 0.4),  # beyond the best nothing is spent
        ({"thinking_share": 0.45}, 0.4),
        ({"thinking_share": 1.0}, 0.8),  # who gains nothing never thinks
        ({"preset": "fast"}, 0.2),
        ({"preset": "balanced"}, 0.4),
        ({"preset": "accurate"}, 0.8),
    ],
    ids=str,
)
def test_each_target_by_hand(target: dict, share: float) -> None:
    assert Target(**target).resolve(TradeoffCurve(records(), LATENCY)).thinking_share == pytest.approx(share)


def test_the_knee_is_where_the_curve_bends() -> None:
    gains = [0.7, 0.6, 0.3, 0.2, 0.1]
    right = [(0, 1), (0, 1), (0, 0), (0, 0), (0, 1)]
    operating_point = Target(preset="knee").resolve(TradeoffCurve(records(gains, right), LATENCY))
    assert operating_point.thinking_share == pytest.approx(0.4)


@pytest.mark.parametrize(
    "target",
    [{}, {"preset": "quick"}, {"thinking_share": 1.5}, {"target_accuracy": -0.1}, {"max_mean_seconds": -1.0},
     {"thinking_share": float("nan")}, {"preset": "fast", "thinking_share": 0.5}],
    ids=str,
)  # fmt: skip
def test_targets_that_are_refused(target: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|exactly one"):
        Target(**target)


def test_the_unsure_go_where_the_policy_sends_them() -> None:
    assert TradeoffCurve(records(coverage=0.1), LATENCY, min_coverage=0.3).shares.tolist() == [0]
    curve = TradeoffCurve(records(coverage=0.1), LATENCY, min_coverage=0.3, fallback_mode="thinking")
    assert curve.shares.tolist() == [1]


def test_thinking_that_takes_no_longer_always_thinks_where_it_helps() -> None:
    same = LatencyModel({"instruct": 0.01, "thinking": 0.01 / 11}, {"instruct": 0.0, "thinking": 0.0})
    assert TradeoffCurve(records(), same).shares.tolist() == pytest.approx([0.8])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 300), st.integers(0, 300)), min_size=1),
    st.floats(0, 5),
)
def test_each_point_is_what_the_policy_does(rows: list[tuple[float, float, int, int]], price: float) -> None:
    p = np.asarray([row[:2] for row in rows], np.float32)
    tokens = np.asarray([row[2:] for row in rows], np.float32)
    curve = TradeoffCurve(CalibrationSet(p, tokens, p, tokens, np.ones(len(rows), np.float32)), LATENCY)
    predictions = [
        Prediction(*map(float, ours), *map(float, t), coverage=1.0) for ours, t in zip(p, tokens, strict=True)
    ]
    for cut in {price, *curve.prices.tolist()}:
        modes = [Policy(price=cut).decide(one, LATENCY).mode for one in predictions]
        # a gain that equals the threshold to the last bit may fall on either side
        close = sum(abs(one.gain - Policy(price=cut).decide(one, LATENCY).threshold) < 1e-9 for one in predictions)
        assert abs(curve.at(cut).thinking_share * len(rows) - modes.count("thinking")) <= close + 1e-6
