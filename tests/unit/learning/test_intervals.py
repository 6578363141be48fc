"""Confidence intervals hold their level: checked by simulation, at the ends, and in what the commands print."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from training.bench.coverage import SCENARIOS, simulate, simulate_folds, true_values
from training.page import figures
from typer.testing import CliRunner

from vlroute.cli.app import app
from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.learning.evaluate import Evaluation, evaluate, interval_at, operating_marks
from vlroute.learning.intervals import Sampling
from vlroute.learning.metrics import ece, ece_if_calibrated
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.records import Outcome, Record, write_records


def evaluation(right: np.ndarray, p: np.ndarray, **how: object) -> Evaluation:
    """Of records with outcomes and predicted probabilities `[2, n]`."""
    records = [
        Record(str(index), f"question {index // 3}", None, Outcome(float(i)), Outcome(float(t)))
        for index, (i, t) in enumerate(right.T)
    ]
    given = [Prediction(float(i), float(t), 1, 1, 1) for i, t in p.T]
    return evaluate(records, OutOfFold([given], [given], **how), Policy(price=0.01), LatencyModel())  # type: ignore[arg-type]


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    p = 1 / (1 + np.exp(-np.stack([0.5 - x, 0.8 + 0 * x])))
    return (rng.random((2, n)) < p).astype(float), p


@pytest.mark.parametrize("scenario", ["noise", "strong signal", "ties"])
def test_each_interval_holds_the_true_value_in_about_95_of_100_samples(
    scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.bench.coverage.POPULATION", 20_000)
    true_values.cache_clear()
    for name, (held, of, samples) in simulate(scenario, 100, 150).items():
        assert of > 0.9 * samples, name
        assert stats.binomtest(held, of, 0.95).pvalue > 1e-4, (name, held, of)
    true_values.cache_clear()


@pytest.mark.parametrize("scenario", ["strong router", "very strong router"])
def test_intervals_of_very_good_routers_hold_the_true_value(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bench.coverage.POPULATION", 20_000)
    true_values.cache_clear()
    found = simulate(scenario, 100, 150)
    for name in ("gain AUC", "headroom captured", "area over random", "accuracy, routed"):
        held, of, samples = found[name]
        assert of > 0.7 * samples, name
        assert stats.binomtest(held, of, 0.95, "less").pvalue > 1e-3, (name, held, of)
    true_values.cache_clear()


def test_out_of_fold_areas_of_noise_are_seldom_above_zero_and_those_of_a_signal_often() -> None:
    noise, signal = simulate_folds("noise", 100, 40), simulate_folds("signal", 200, 12)
    assert noise["corrected"]["above zero"] <= 5
    assert noise["corrected"]["above zero"] <= noise["uncorrected"]["above zero"]
    assert signal["corrected"]["above zero"] >= 4


def test_the_committed_table_is_complete_and_holds_the_level() -> None:
    found = figures("intervals")
    for scenario in SCENARIOS:
        for n in (100, 300, 1000):
            held, of, samples = found["fixed"][f"{scenario}, {n}"]["area over random"]
            assert of == samples >= 200
            assert 0.915 < held / of < 0.98
            for name in ("gain AUC", "headroom captured"):
                held, of, _ = found["fixed"][f"{scenario}, {n}"][name]
                assert held / of > 0.915, (scenario, n, name)
    for name, one in found["folds"].items():
        if name.startswith("noise"):
            assert one["corrected"]["above zero"] <= 0.05 * one["files"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 1.0]),
            st.sampled_from([0.0, 0.5, 1.0]),
            st.sampled_from([0.0, 0.2, 0.7, 1.0]),
            st.sampled_from([0.0, 0.2, 0.6, 1.0]),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([{}, {"folds": 2}, {"folds": 5, "together": "text"}, {"together": "text"}]),
)
def test_any_sample_gives_finite_intervals_that_hold_the_figure_or_none(
    lines: list[tuple[float, float, float, float]], how: dict[str, object]
) -> None:
    table = np.asarray(lines).T
    found = evaluation(table[:2], table[2:], **how)
    for value, interval in [
        *((row.accuracy, row.interval) for row in found.rows),
        *((figure.value, figure.interval) for figure in found.figures.values()),
    ]:
        if interval is not None:
            assert all(map(math.isfinite, interval))
            assert value is not None
            assert interval[0] - 1e-9 <= value <= interval[1] + 1e-9
    for row in found.rows:
        if row.interval is not None:
            assert 0 <= row.interval[0] < row.interval[1] <= 1


def test_folds_widen_what_rests_on_predictions_and_nothing_else() -> None:
    right, p = drawn(200)
    fixed, folded = evaluation(right, p), evaluation(right, p, folds=5)

    def width(one: Evaluation, name: str) -> float:
        low, high = one.figures[name].interval or (0, 0)
        return high - low

    assert width(folded, "area over random") == pytest.approx(1.5 * width(fixed, "area over random"), rel=0.01)
    assert width(folded, "gain AUC") > 1.4 * width(fixed, "gain AUC")
    assert width(folded, "headroom captured") > width(fixed, "headroom captured")
    assert width(folded, "area of the longest prompts") == width(fixed, "area of the longest prompts")
    for before, after in zip(fixed.rows, folded.rows, strict=True):
        assert before.accuracy == after.accuracy
        if before.name == "routed":
            assert (after.interval or (0, 0))[0] < (before.interval or (0, 0))[0]
        else:
            assert after.interval == before.interval
    assert "fitting" in folded.covers
    assert "fitting" not in fixed.covers


def test_records_of_one_text_count_as_one_draw_if_asked() -> None:
    right, p = drawn(100)
    right, p = np.repeat(right, 3, axis=1), np.repeat(p, 3, axis=1)
    alone, together = evaluation(right, p), evaluation(right, p, together="text")
    for name in ("area over random", "routed above always instruct", "Brier instruct"):
        low, high = alone.figures[name].interval or (0, 0)
        wide = together.figures[name].interval or (0, 0)
        assert wide[1] - wide[0] > 1.5 * (high - low)
    assert "100 draws" in together.covers
    only = Sampling(5, ["same"] * 5)
    values = np.asarray([0.0, 1, 1, 1, 0])
    assert only.share(values) is only.mean(values) is only.area(values[None], values) is None


def test_an_ece_stands_beside_its_chance_level() -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(3, 2, 300)
    chance = ece_if_calibrated(p)
    below = sum(ece(p, (rng.random(300) < p).astype(float)) <= chance for _ in range(400))
    assert 0.92 <= below / 400 <= 0.98
    right, p = drawn(200)
    figures = evaluation(right, p).figures
    assert figures["ECE instruct"].interval is None
    assert (figures["chance level of ECE instruct"].value or 0) > 0


def test_reports_say_what_their_intervals_cover(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ("red", "blue", "how", "many", "count", "angle", "area", "left")
    records = [
        Record(
            str(index), " ".join(rng.choice(words, 4)) + f" {index}", None,
            Outcome(bool(rng.random() < 0.6)), Outcome(bool(rng.random() < 0.7)),
        )
        for index in range(60)
    ]  # fmt: skip
    write_records(tmp_path / "old.jsonl", records)
    new = [Record(f"n{one.id}", one.prompt, None, one.instruct, one.thinking) for one in records]
    write_records(tmp_path / "new.jsonl", new)
    out = str(tmp_path / "router")
    trained = CliRunner().invoke(
        app, ["train", str(tmp_path / "old.jsonl"), "--out", out, "--folds", "2", "--seeds", "1", "--encoder", "none"]
    )
    assert trained.exit_code == 0, trained.output
    judged = CliRunner().invoke(
        app, ["eval", str(tmp_path / "new.jsonl"), "--router", out, "--out", str(tmp_path / "new.md")]
    )
    assert judged.exit_code == 0, judged.output

    def plain(text: str) -> str:
        return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())

    for text in (trained.output, (tmp_path / "router" / "report.md").read_text("utf-8")):
        assert "randomness of fitting" in plain(text)
    for text in (judged.output, (tmp_path / "new.md").read_text("utf-8")):
        assert "with the router as it is" in plain(text)


def test_a_share_of_one_has_an_interval() -> None:
    right, p = drawn(150)
    right[1] = 1
    rows = {row.name: row for row in evaluation(right, p).rows}
    low, high = rows["always thinking"].interval or (1, 0)
    assert (rows["always thinking"].accuracy, high) == (1, 1)
    assert 0.95 < low < 0.99


def nearly_always_right(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, and how right Instruct and Thinking are; with the best share, 97 % of the answers are right."""
    hard = rng.random(n) < 0.2
    scores = rng.normal(np.where(hard, 2.0, -1.0))
    instruct = rng.random(n) < np.where(hard, 0.05, 0.995)
    thinking = rng.random(n) < np.where(hard, 0.99, 0.8)
    return scores, instruct.astype(float), thinking.astype(float)


@pytest.mark.parametrize("share", [0.2, 0.22, 0.25])
def test_the_band_near_100_percent_holds_its_level_and_does_not_collapse(share: float) -> None:
    rng = np.random.default_rng(0)

    def accuracy(scores: np.ndarray, instruct: np.ndarray, thinking: np.ndarray) -> float:
        chosen = scores > np.quantile(scores, 1 - share)
        return float(np.where(chosen, thinking, instruct).mean())

    true, held, samples = accuracy(*nearly_always_right(400_000, rng)), 0, 400
    for _ in range(samples):
        scores, instruct, thinking = nearly_always_right(60, rng)
        low, high = interval_at(scores, thinking - instruct, instruct, share, Sampling(60), False)  # type: ignore[misc]
        assert high - low < 0.3
        held += low <= true <= high
    assert stats.binomtest(held, samples, 0.95).pvalue > 1e-4, held


def test_an_effective_size_has_a_lower_bound_where_the_variance_has_further_sources() -> None:
    sampling = Sampling(120, folds=5)
    values = np.ones(120)
    values[:60] += 0.002  # as of influence values, whose mean is nearly 1
    values[60:] -= 0.004
    low, high = sampling.share(values, learned=np.repeat([0.2, -0.2], 60)) or (0.0, 0.0)
    assert 0.85 < low < 0.95 < high


def test_marks_cover_the_randomness_of_fitting_as_the_curve_does() -> None:
    right, p = drawn(200)
    records = [
        Record(str(index), f"question {index}", None, Outcome(float(i), tokens=2), Outcome(float(t), tokens=20))
        for index, (i, t) in enumerate(right.T)
    ]
    given = [Prediction(float(i), float(t), 2, 20, 1) for i, t in p.T]

    def width(folds: int | None) -> float:
        marks = operating_marks(records, given, LatencyModel(), 0.1, sampling=Sampling(200, folds=folds))
        low, high = next(mark.point.interval for mark in marks if mark.name == "balanced")  # type: ignore[misc]
        return high - low

    assert width(5) > 1.05 * width(None)
