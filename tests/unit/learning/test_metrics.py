"""Each metric compared with values computed by hand; Thinking may be the worse mode."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from vlroute.learning import metrics
from vlroute.learning.metrics import (
    accuracy_curve,
    aiq,
    apgr,
    area_over_random,
    area_over_random_line,
    brier,
    cpt,
    ece,
    gain_auc,
    headroom_captured,
    nauc,
    pgr,
    qnc,
    reliability,
    share_by_score,
)

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"

# four records: Thinking wins the first, loses the second, the other two are equal
INSTRUCT = np.array([0.0, 1.0, 1.0, 0.0])
THINKING = np.array([1.0, 0.0, 1.0, 0.0])


def scores(*values: float) -> np.ndarray:
    return np.array(values)


def test_accuracy_curve_by_hand() -> None:
    np.testing.assert_allclose(accuracy_curve(scores(4, 1, 3, 2), INSTRUCT, THINKING), [0.5, 0.75, 0.75, 0.75, 0.5])


def test_area_by_hand() -> None:
    assert area_over_random(scores(4, 1, 3, 2), INSTRUCT, THINKING) == pytest.approx(100 * 0.75 / 5)
    assert area_over_random(scores(1, 4, 2, 3), INSTRUCT, THINKING) == pytest.approx(-100 * 0.75 / 5)


def test_equal_scores_are_shared_out() -> None:
    # the first two tie: half of each gain, so +1 - 1 = 0 on average
    np.testing.assert_allclose(accuracy_curve(scores(2, 2, 1, 0), INSTRUCT, THINKING), [0.5] * 5)
    always = np.ones(3)
    np.testing.assert_allclose(accuracy_curve(scores(5, 5, 5), 0 * always, always), [0, 1 / 3, 2 / 3, 1])


@given(st.integers(1, 40), st.integers(0, 2**16))
def test_a_constant_score_is_chance_and_the_ends_are_the_single_modes(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    instruct, thinking = rng.integers(0, 2, (2, n)).astype(float)
    assert area_over_random(np.zeros(n), instruct, thinking) == pytest.approx(0, abs=1e-9)
    curve = accuracy_curve(rng.random(n), instruct, thinking)
    assert (curve[0], curve[-1]) == (pytest.approx(instruct.mean()), pytest.approx(thinking.mean()))
    best = area_over_random(thinking - instruct, instruct, thinking)
    assert best >= area_over_random(rng.random(n), instruct, thinking) - 1e-9


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared routing records lie outside the repository")
@pytest.mark.parametrize(
    ("name", "length", "oracle"), [("gsm8k", 2.20, 13.63), ("mmmu_pro", 1.09, 12.01), ("mathvista", 1.52, 14.81)]
)
def test_the_published_references_are_met(name: str, length: float, oracle: float) -> None:
    with gzip.open(DATA / f"{name}.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    instruct, thinking = (np.array([float(row[m]["correct"]) for row in rows]) for m in ("cheap", "strong"))
    lengths = np.array([float(len(row["prompt"])) for row in rows])
    assert area_over_random(lengths, instruct, thinking) == pytest.approx(length, abs=0.01)
    assert area_over_random(thinking - instruct, instruct, thinking) == pytest.approx(oracle, abs=0.006)


def test_share_by_score_by_hand() -> None:
    np.testing.assert_allclose(share_by_score(scores(1, 9, 5, 3), 0.5), [0, 1, 1, 0])
    np.testing.assert_allclose(share_by_score(scores(1, 9, 5, 3), 0.375), [0, 1, 0.5, 0])
    np.testing.assert_allclose(share_by_score(scores(7, 7, 7, 7), 0.25), [0.25] * 4)
    assert share_by_score(scores(1, 2), 0).tolist() == [0, 0]
    assert share_by_score(scores(1, 2), 1).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("router", "instruct", "thinking", "oracle", "expected"),
    [
        (0.7, 0.5, 0.6, 0.8, 0.5),
        (0.7, 0.6, 0.5, 0.8, 0.5),  # Thinking is the worse mode
        (0.5, 0.5, 0.6, 0.8, -0.5),
        (0.8, 0.5, 0.6, 0.8, 1.0),
        (0.6, 0.5, 0.6, 0.6, None),
    ],
)
def test_headroom(router: float, instruct: float, thinking: float, oracle: float, expected: float | None) -> None:
    assert headroom_captured(router, instruct, thinking, oracle) == (
        None if expected is None else pytest.approx(expected)
    )


def test_gain_auc_by_hand() -> None:
    instruct, thinking = np.array([0.0, 0, 1, 1, 1]), np.array([1.0, 1, 0, 0, 1])
    # won score 3 and 1, lost 2 and 1; pairs: 3>2, 3>1, 1<2, 1=1 -> 2.5 of 4
    assert gain_auc(scores(3, 1, 2, 1, 99), instruct, thinking) == 0.625


def test_gain_auc_is_undefined_where_one_mode_never_wins() -> None:
    assert gain_auc(scores(1, 2), np.zeros(2), np.ones(2)) is None
    assert gain_auc(scores(1, 2), np.ones(2), np.zeros(2)) is None
    assert gain_auc(scores(1, 2), np.ones(2), np.ones(2)) is None


def test_brier_and_ece_by_hand() -> None:
    p, right = scores(0.15, 0.15, 0.95, 1.0), scores(0, 1, 1, 1)
    assert brier(p, right) == pytest.approx((0.15**2 + 0.85**2 + 0.05**2) / 4)
    # bins 0.1-0.2: |0.3 - 1|, 0.9-1.0: |1.95 - 2|
    assert ece(p, right) == pytest.approx((0.7 + 0.05) / 4)
    assert ece(scores(0, 1), scores(0, 1)) == 0
    assert brier(np.full(4, 0.5), right) == 0.25


def test_reliability_by_hand() -> None:
    bins = reliability(scores(0.15, 0.11, 0.95, 1.0), scores(0, 1, 0.5, 1))
    np.testing.assert_allclose(bins.predicted, [0.13, 0.975])
    np.testing.assert_allclose(bins.observed, [0.5, 0.75])
    assert bins.count.tolist() == [2, 2]


@given(st.integers(0, 2**16))
def test_reliability_is_scikit_learns_and_gives_ece(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, right = rng.random(80), rng.integers(0, 2, 80).astype(float)
    bins = reliability(p, right)
    observed, predicted = calibration_curve(right, p, n_bins=10)
    np.testing.assert_allclose(bins.observed, observed)
    np.testing.assert_allclose(bins.predicted, predicted)
    assert np.abs(bins.predicted - bins.observed) @ bins.count / 80 == pytest.approx(ece(p, right))


def test_performance_gap_recovered_by_hand() -> None:
    assert pgr(0.7, 0.5, 0.9) == pytest.approx(0.5)
    assert pgr(0.95, 0.5, 0.9) == pytest.approx(1.125)  # better than both modes
    assert pgr(0.4, 0.5, 0.9) == pytest.approx(-0.25)
    assert pgr(0.5, 0.5, 0.5) is None
    assert pgr(0.7, 0.9, 0.5) is None


CURVE = scores(0.5, 0.7, 0.9, 0.9, 0.7)  # at 0, 25, 50, 75, 100 % to Thinking


def test_average_performance_gap_recovered_by_hand() -> None:
    # pgr 0, 1, 2, 2, 1: trapezoids (0.5 + 1.5 + 2 + 1.5) / 4
    assert apgr(CURVE) == pytest.approx(5.5 / 4)
    assert apgr(np.linspace(0.4, 0.8, 11)) == pytest.approx(0.5)
    assert apgr(CURVE[::-1]) is None
    assert apgr(np.full(5, 0.5)) is None


def test_area_over_the_random_line_by_hand() -> None:
    # mean of the curve 0.6, 0.8, 0.9, 0.8 less the mean of the line, 0.6
    assert area_over_random_line(CURVE) == pytest.approx(100 * (3.1 / 4 - 0.6))
    assert area_over_random_line(np.linspace(0.8, 0.4, 7)) == pytest.approx(0)


def test_the_area_of_a_curve_is_that_of_its_records() -> None:
    rng = np.random.default_rng(3)
    instruct, thinking = rng.integers(0, 2, (2, 5000)).astype(float)
    ranking = thinking - instruct + rng.normal(0, 1, 5000)
    curve = accuracy_curve(ranking, instruct, thinking)
    assert area_over_random_line(curve) == pytest.approx(area_over_random(ranking, instruct, thinking), rel=1e-3)


def test_call_performance_threshold_by_hand() -> None:
    assert cpt(CURVE, 0.5) == 0.25
    assert cpt(CURVE, 1) == 0.25
    assert cpt(CURVE, 1.2) == 0.5
    assert cpt(CURVE, 2.5) is None  # never reached
    assert cpt(np.linspace(0.4, 0.8, 11), 0.8) == pytest.approx(0.8)
    assert cpt(CURVE[::-1]) is None
    assert cpt(np.full(5, 0.5)) is None


COST = scores(1, 2, 3, 4, 5)


def test_average_improvement_in_quality_by_hand() -> None:
    # the hull: 0.5, 0.7, 0.9, then flat
    assert aiq(COST, CURVE) == pytest.approx((0.6 + 0.8 + 0.9 + 0.9) / 4)
    # the dent at cost 2 is bridged from 0.5 to 0.9
    assert aiq(COST, scores(0.5, 0.5, 0.9, 0.8, 0.7)) == pytest.approx((0.6 + 0.8 + 0.9 + 0.9) / 4)
    # a worse Thinking leaves it defined: nothing beats the cheapest point
    assert aiq(COST, scores(0.8, 0.7, 0.6, 0.5, 0.4)) == pytest.approx(0.8)
    assert aiq(np.full(5, 2.0), CURVE) is None


def test_normalised_area_by_hand() -> None:
    # Pareto points (1, 0.5), (2, 0.6), (4, 0.9); cost 3 is no better than cost 2
    assert nauc(COST, scores(0.5, 0.6, 0.6, 0.9, 0.7)) == pytest.approx((0.55 + 0.675 + 0.825 + 0.9) / 4)
    assert nauc(COST, CURVE) == pytest.approx(aiq(COST, CURVE) or 0)
    assert nauc(COST, scores(0.8, 0.7, 0.6, 0.5, 0.4)) == pytest.approx(0.8)
    assert nauc(np.full(5, 2.0), CURVE) is None


def test_costs_need_not_rise_with_the_share() -> None:
    # sorted by cost: (1, 0.7), (2, best of 0.5 and 0.6), (3, 0.9)
    cost, accuracy = scores(2, 2, 3, 1), scores(0.5, 0.6, 0.9, 0.7)
    assert aiq(cost, accuracy) == pytest.approx((0.75 + 0.85) / 2)
    assert nauc(cost, accuracy) == pytest.approx((0.75 + 0.85) / 2)


@given(st.integers(0, 2**16))
def test_mixing_points_by_chance_never_hurts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, accuracy = rng.integers(0, 12, 9).astype(float), rng.random(9)
    whole, fronts = aiq(cost, accuracy), nauc(cost, accuracy)
    if whole is None or fronts is None:
        assert np.ptp(cost) == 0
        return
    assert accuracy.min() - 1e-9 <= fronts <= whole + 1e-9 <= accuracy.max() + 2e-9


def test_quality_neutral_cost_by_hand() -> None:
    assert qnc(COST, CURVE) == pytest.approx(2 / 5)
    assert qnc(COST, scores(0.5, 0.5, 0.5, 0.5, 0.7)) == 1
    assert qnc(scores(5, 4, 3, 2, 1), scores(0.5, 0.6, 0.6, 0.8, 0.7)) == 1  # a Thinking that is cheaper, too
    assert qnc(COST, CURVE[::-1]) is None
    assert qnc(COST, np.full(5, 0.5)) is None
    assert qnc(np.zeros(5), CURVE) is None


def test_every_metric_survives_thinking_that_never_helps() -> None:
    ones, zeros, some = np.ones(5), np.zeros(5), np.arange(5.0)
    assert area_over_random(some, ones, zeros) == pytest.approx(0)
    assert metrics.headroom_captured(1, 1, 0, 1) is None
    assert metrics.gain_auc(some, ones, zeros) is None
