"""Trade-off curves against figures worked out by hand, and what their figures show."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Text

from vlroute.decision.classifier import Prediction
from vlroute.decision.target import PRESETS
from vlroute.errors import SettingsError
from vlroute.learning import plots
from vlroute.learning.assumptions import measure_latency
from vlroute.learning.evaluate import ALL, SHARES, UNNAMED, Mark, TradeOff, operating_marks, trade_off, trade_offs
from vlroute.learning.metrics import share_by_score
from vlroute.learning.plots import reliability_figure, topic_figure, trade_off_figure
from vlroute.records import Outcome, Record

# four records: Thinking wins the first, loses the second, the other two are equal
RIGHT = np.array([[0.0, 1, 1, 0], [1.0, 0, 1, 0]])
SECONDS = np.array([[1.0, 1, 1, 1], [2.0, 3, 4, 5]])
SCORES = np.array([4.0, 1, 3, 2])
LENGTH = np.array([1.0, 9, 9, 9])


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, right, seconds and length of `n` records whose gain the scores tell with much noise."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, 2, (2, n)).astype(float)
    seconds = np.array([rng.gamma(8, 0.1, n), rng.gamma(3, 0.7, n)])
    return right[1] - right[0] + rng.normal(0, 1, n), right, seconds, rng.integers(1, 30, n).astype(float)


def test_curves_by_hand() -> None:
    found = trade_off(SCORES, RIGHT, SECONDS, LENGTH)
    quarters = slice(None, None, 25)
    np.testing.assert_allclose(SHARES[quarters], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(found.routed.accuracy[quarters], [0.5, 0.75, 0.75, 0.75, 0.5])
    np.testing.assert_allclose(found.random.accuracy, 0.5)
    # the three longest tie, and together lose one answer: a third of it each
    np.testing.assert_allclose(found.longest.accuracy[quarters], [0.5, 0.5 - 1 / 12, 0.5 - 2 / 12, 0.25, 0.5])
    assert found.routed.mean_seconds is not None
    np.testing.assert_allclose(found.routed.mean_seconds[quarters], [1, 5 / 4, 8 / 4, 12 / 4, 14 / 4])
    assert found.routed.p95_seconds is not None
    np.testing.assert_allclose(found.routed.p95_seconds[quarters], [1, 2, 4, 5, 5])
    assert (found.name, found.records, found.timed) == (ALL, 4, 4)


def test_single_modes_and_oracle_by_hand() -> None:
    found = trade_off(SCORES, RIGHT, SECONDS, LENGTH)
    for point, share, accuracy, mean, p95 in (
        (found.instruct, 0, 0.5, 1, 1),
        (found.thinking, 1, 0.5, 3.5, 5),
        (found.oracle, 0.25, 0.75, 1.25, 2),
    ):
        assert (point.share, point.accuracy, point.mean_seconds, point.p95_seconds) == (share, accuracy, mean, p95)
        assert point.interval is not None
        assert point.interval[0] <= accuracy <= point.interval[1]


def test_the_95th_percentile_is_that_of_all_answers() -> None:
    scores, right, seconds, length = drawn(300)
    found = trade_off(scores, right, seconds, length)
    assert found.routed.p95_seconds is not None
    for index in (0, 50, 100):
        sent = share_by_score(scores, float(SHARES[index])) == 1
        answers = np.where(sent, seconds[1], seconds[0])
        assert found.routed.p95_seconds[index] == np.quantile(answers, 0.95, method="inverted_cdf")


def test_the_band_holds_the_curve_and_ends_at_the_intervals_of_the_single_modes() -> None:
    scores, right, seconds, length = drawn(60)
    found = trade_off(scores.round(), right, seconds, length)
    band = found.routed
    assert (band.low <= band.accuracy).all()
    assert (band.accuracy <= band.high).all()
    assert (band.high - band.low > 0.05).all()
    for index, point in ((0, found.instruct), (100, found.thinking)):
        assert (band.low[index], band.high[index]) == pytest.approx(point.interval)


def test_figures_have_intervals_and_stay_undefined_where_thinking_is_worse() -> None:
    scores, right, seconds, length = drawn(200)
    better = right.copy()
    better[0, :60] = 0
    figures = trade_off(scores, better, seconds, length).routed.figures
    assert all(figure.value is not None for figure in figures.values())
    value, interval = figures["area over random"].value, figures["area over random"].interval
    assert value is not None
    assert interval is not None
    assert interval[0] < value < interval[1]
    figures = trade_off(scores, better[::-1], seconds, length).routed.figures
    assert {name for name, f in figures.items() if f.value is None} == {"APGR", "CPT 50 %", "CPT 80 %", "QNC"}


def test_unknown_seconds_are_left_out() -> None:
    scores, right, seconds, length = drawn(100)
    seconds[0, :40] = np.nan
    found = trade_off(scores, right, seconds, length)
    assert found.timed == 60
    assert found.thinking.mean_seconds == pytest.approx(seconds[1, 40:].mean())
    assert found.thinking.accuracy == pytest.approx(right[1].mean())
    nothing = trade_off(scores, right, np.full((2, 100), np.nan), length)
    assert nothing.timed == 0
    assert nothing.routed.mean_seconds is nothing.oracle.p95_seconds is nothing.routed.figures["AIQ"].value is None
    with pytest.raises(ValueError, match="no record has seconds"):
        trade_off_figure(nothing, "mean_seconds")


def test_topics_come_largest_first_and_small_ones_not_at_all() -> None:
    scores, right, seconds, length = drawn(100)
    topics = ["few"] * 10 + ["some"] * 30 + [""] * 60
    found = trade_offs(scores, right, seconds, length, topics)
    assert [(one.name, one.records) for one in found] == [(ALL, 100), (UNNAMED, 60), ("some", 30)]
    alone = trade_off(scores[10:40], right[:, 10:40], seconds[:, 10:40], length[10:40])
    np.testing.assert_allclose(found[2].routed.accuracy, alone.routed.accuracy)
    assert len(trade_offs(scores, right, seconds, length, ["one"] * 100)) == 1
    with pytest.raises(ValueError, match="100 records, not 1"):
        trade_offs(scores, right, seconds, length, ["one"])


@pytest.mark.parametrize(
    ("scores", "right", "seconds", "words"),
    [
        (SCORES[:3], RIGHT, SECONDS, "expected"),
        (SCORES, RIGHT[:, :3], SECONDS, "expected"),
        (SCORES, RIGHT, SECONDS[0], "expected"),
        (np.zeros(0), np.zeros((2, 0)), np.zeros((2, 0)), "n > 0"),
        (SCORES * np.nan, RIGHT, SECONDS, "finite"),
        (SCORES, RIGHT, SECONDS * np.inf, "finite"),
        (SCORES, RIGHT * 2, SECONDS, "within 0 and 1"),
        (SCORES, RIGHT * np.nan, SECONDS, "within 0 and 1"),
    ],
)
def test_unusable_arrays_are_refused(scores: np.ndarray, right: np.ndarray, seconds: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trade_off(scores, right, seconds, np.zeros(len(scores)))


@pytest.fixture(scope="module")
def found() -> list[TradeOff]:
    scores, right, seconds, length = drawn(200)
    return trade_offs(scores, right, seconds, length, ["几何", "a & b"] * 100)


def texts(figure: plots.Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


@pytest.mark.parametrize(
    ("against", "label"),
    [
        ("share", "requests sent to Thinking"),
        ("mean_seconds", "mean time per answer (s)"),
        ("p95_seconds", "95th percentile of the time per answer (s)"),
    ],
)
def test_figures_name_what_they_show(found: list[TradeOff], against: plots.Against, label: str) -> None:
    shown = {"accuracy", "router, 95 % interval", "random", "always Instruct", "always Thinking", "oracle"}
    figure = trade_off_figure(found[0], against)
    assert shown | {label, "200 records"} <= texts(figure)
    axes = figure.axes[0]
    assert len(axes.collections) == 1  # the band
    assert {line.get_label(): len(line.get_xdata()) for line in axes.lines}["oracle"] == 1
    several = topic_figure(found[1:], against, measured=False)
    expected = label if against == "share" else f"{label} with an assumed latency"
    assert shown | {expected, "几何 (100 records)", "a & b (100 records)"} <= texts(several)


def test_marks_are_the_presets_and_the_price_in_force() -> None:
    rng = np.random.default_rng(1)
    p = rng.random((2, 200))
    right = rng.random((2, 200)) < p
    seconds = np.array([rng.gamma(8, 0.1, 200), rng.gamma(8, 0.3, 200)])
    outcomes = [
        [Outcome(bool(ok), round(100 * took), float(took), 0.0) for ok, took in zip(*mode, strict=True)]
        for mode in zip(right, seconds, strict=True)
    ]
    records = [Record(str(i), "x", None, *both) for i, both in enumerate(zip(*outcomes, strict=True))]
    predictions = [Prediction(p[0, i], p[1, i], 80, 240, 1.0) for i in range(200)]
    latency = measure_latency(records)
    extra = latency.expected("thinking", 240) - latency.expected("instruct", 80)
    marks = operating_marks(records, predictions, latency, 0.2)
    assert [mark.name for mark in marks] == [*PRESETS, ""]
    assert [mark.name for mark in marks if mark.in_force] == [""]
    chosen = p[1] - p[0] > 0.2 * extra
    by_price = marks[-1].point
    assert by_price.share == pytest.approx(chosen.mean())
    assert by_price.accuracy == pytest.approx(np.where(chosen, right[1], right[0]).mean())
    assert by_price.mean_seconds == pytest.approx(np.where(chosen, seconds[1], seconds[0]).mean())
    assert by_price.p95_seconds == np.quantile(np.where(chosen, seconds[1], seconds[0]), 0.95, method="inverted_cdf")
    shares = {mark.name: mark.point.share for mark in marks}
    assert shares["fast"] < shares["balanced"] < shares["accurate"] == pytest.approx((p[1] > p[0]).mean())
    by_preset = operating_marks(records, predictions, latency, "balanced")
    assert [mark.name for mark in by_preset if mark.in_force] == ["balanced"]
    assert len(by_preset) == len(PRESETS)
    with pytest.raises(SettingsError, match="preset"):
        operating_marks(records, predictions, latency, "quick")  # type: ignore[arg-type]


@pytest.mark.parametrize("against", ["share", "mean_seconds", "p95_seconds"])
def test_figures_mark_presets_and_a_ring_surrounds_the_point_in_force(
    found: list[TradeOff], against: plots.Against
) -> None:
    marks = [Mark("fast", 1.5, found[0].instruct), Mark("", 0.1, found[0].oracle, in_force=True)]
    lines = {line.get_label(): line for line in trade_off_figure(found[0], against, marks=marks).axes[0].lines}
    ring, price = lines["in force"], lines["price 0.1"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (price.get_xdata()[0], price.get_ydata()[0])
    assert price.get_ydata()[0] == found[0].oracle.accuracy
    assert lines["fast, price 1.5"].get_ydata()[0] == found[0].instruct.accuracy
    assert "in force" not in texts(trade_off_figure(found[0], against, marks=marks[:1]))


def test_reliability_diagrams_show_both_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((2, 300))
    figure = reliability_figure(p, (rng.random((2, 300)) < p).astype(float))
    assert {"predicted probability of a right answer", "share of right answers", "records"} <= texts(figure)
    assert [axes.get_title().split(":")[0] for axes in figure.axes[:2]] == ["p_instruct", "p_thinking"]


def test_chinese_labels_need_a_font(
    found: list[TradeOff], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plots, "chinese_font", lambda: "Some CJK Font")
    assert {"准确率", "理论上限", "200 条记录"} <= texts(trade_off_figure(found[0], language="zh"))
    assert not caplog.records
    monkeypatch.setattr(plots, "chinese_font", lambda: None)
    with caplog.at_level(logging.WARNING, logger="vlroute"):
        assert "accuracy" in texts(trade_off_figure(found[0], language="zh"))
    assert "font" in caplog.text


def test_plots_touch_no_global_state() -> None:
    code = "import sys, vlroute.learning.plots; print({'matplotlib.pyplot', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
