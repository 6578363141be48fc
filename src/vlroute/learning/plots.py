"""Figures of trade-off curves and of calibration, with labels in English or Chinese."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, NullLocator

from vlroute.decision.tradeoff import TradeoffCurve
from vlroute.learning.evaluate import ALL, SHARES, UNNAMED, Curve, Mark, Point, TradeOff
from vlroute.learning.metrics import Values, brier, ece, reliability
from vlroute.learning.sample_size import LearningPoint
from vlroute.types import Stage

Language = Literal["en", "zh"]

#: Chinese texts of the figures and of the page with curves, by their English text.
CHINESE: dict[str, str] = json.loads(Path(__file__).with_name("templates").joinpath("chinese.json").read_text("utf-8"))


def say(english: str, language: Language) -> str:
    """Translate a text.

    Args:
        english: The English text.
        language: "en" or "zh".

    Returns:
        The translation; the English text if there is none.
    """
    return english if language == "en" else CHINESE.get(english, english)


def name_of(found: TradeOff, language: Language) -> str:
    """Return the name of the records of a curve.

    Args:
        found: The curve.
        language: "en" or "zh".

    Returns:
        The name of a topic as it is; for all records and for an unnamed topic, a translation.
    """
    return say(found.name, language) if found.name in (ALL, UNNAMED) else found.name


#: What accuracy is drawn against.
Against = Literal["share", "mean_seconds", "p95_seconds"]

#: Upper end of the accuracy axis: a mark at 1 is drawn completely.
HIGHEST = 1.015
MAX_TOPICS = 12
#: Fonts with simplified Chinese characters, by their names in matplotlib, the best first.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Noto Sans CJK JP",  # a collection file contains all regions; matplotlib reads the first
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "SimHei",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)

_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#777777"

_AXES: dict[Against, str] = {
    "share": "requests sent to Thinking",
    "mean_seconds": "mean time per answer (s)",
    "p95_seconds": "95th percentile of the time per answer (s)",
}


def chinese_font() -> str | None:
    """Find a font with Chinese characters.

    Returns:
        The first of `CHINESE_FONTS` that is installed; None if there is none.
    """
    known = set(fontManager.get_font_names())
    return next((name for name in CHINESE_FONTS if name in known), None)


def usable_language(language: Language) -> Language:
    """Check that figures can be labeled in a language.

    Args:
        language: "en" or "zh".

    Returns:
        The same language; "en", with a warning in the log, if no font for Chinese labels is installed.
    """
    if language == "zh" and chinese_font() is None:
        logging.getLogger("vlroute").warning(
            "no font with Chinese characters found: figures have English labels (install a font such as fonts-noto-cjk)"
        )
        return "en"
    return language


def trade_off_figure(
    found: TradeOff,
    against: Against = "share",
    *,
    language: Language = "en",
    measured: bool = True,
    marks: Sequence[Mark] = (),
) -> Figure:
    """Draw accuracy against the share sent to Thinking, or against seconds; 7 x 4.5 inches.

    Shows the curve of the router with its interval, the longest prompts first, chance, both single modes and the
    oracle. The interval is a band. If the seconds do not simply rise or fall with the share, it is bars at every tenth
    share instead.

    Args:
        found: The curves.
        against: "share", "mean_seconds" or "p95_seconds".
        language: Language of the labels.
        measured: Whether the seconds were measured; if not, the axis says so.
        marks: Operating points, such as those of `operating_marks`; a ring surrounds the one in force.

    Returns:
        The figure.

    Raises:
        ValueError: No record has seconds to draw against.
    """
    language = usable_language(language)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, found, against, language)
    _draw_marks(axes, marks, against, language)
    axes.set_title(_title(found, against, language))
    axes.set_xlabel(_x_label(against, language, measured))
    axes.set_ylabel(say("accuracy", language))
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _with_fonts(figure)


def topic_figure(
    found: Sequence[TradeOff], against: Against = "share", *, language: Language = "en", measured: bool = True
) -> Figure:
    """Draw a small `trade_off_figure` for each topic, three in a row, each with its own scale of accuracy.

    Args:
        found: Curves of topics; only the first `MAX_TOPICS` are drawn.
        against: "share", "mean_seconds" or "p95_seconds".
        language: Language of the labels.
        measured: Whether the seconds were measured; if not, the axis says so.

    Returns:
        The figure.

    Raises:
        ValueError: There is no topic, or no record of one has seconds to draw against.
    """
    if not found:
        raise ValueError("no topic to draw")
    language = usable_language(language)
    shown = found[:MAX_TOPICS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(max(3.4 * columns, 6.8), 2.7 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, one in zip(grid, shown, strict=False):
        _draw(axes, one, against, language)
        axes.set_title(_title(one, against, language), fontsize="small")
        axes.tick_params(labelsize="small")
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    figure.supxlabel(_x_label(against, language, measured), fontsize="medium")
    figure.supylabel(say("accuracy", language), fontsize="medium")
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize="small"
    )
    return _with_fonts(figure)


def reliability_figure(probabilities: Values, right: Values, *, language: Language = "en") -> Figure:
    """Draw reliability diagrams of p_instruct and p_thinking, with the number of records per bin; 8 x 4.8 inches.

    Args:
        probabilities: Predicted probabilities of Instruct and Thinking, `[2, n]`.
        right: How right both modes were, `[2, n]`, 0 to 1.
        language: Language of the labels.

    Returns:
        The figure. Its titles give ECE and Brier score.
    """
    language = usable_language(language)
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
    for column, (name, p, correct) in enumerate(zip(("p_instruct", "p_thinking"), probabilities, right, strict=True)):
        above, below = grid[:, column]
        bins = reliability(p, correct)
        above.plot([0, 1], [0, 1], color=_GREY, linestyle=":", label=say("calibrated", language))
        label = say("observed in bins of 0.1", language)
        above.plot(bins.predicted, bins.observed, color=_BLUE, marker="o", label=label, clip_on=False)
        above.set(title=f"{name}: ECE {ece(p, correct):.3f}, Brier {brier(p, correct):.3f}", xlim=(0, 1), ylim=(0, 1))
        below.hist(p, bins=10, range=(0, 1), color=_BLUE, alpha=0.6, edgecolor="white")
        below.set_xlabel(say("predicted probability of a right answer", language))
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        for axes in (above, below):
            _tidy(axes)
    grid[0, 0].set_ylabel(say("share of right answers", language))
    grid[1, 0].set_ylabel(say("records", language))
    grid[0, 0].legend(frameon=False, fontsize="small", loc="upper left")
    return _with_fonts(figure)


def learning_curve_figure(points: Sequence[LearningPoint], *, language: Language = "en") -> Figure:
    """Draw the area over random against the number of training records, with 95 % intervals; 7 x 4.5 inches.

    Args:
        points: The points of `learning_curve`.
        language: Language of the labels.

    Returns:
        The figure. The records have a logarithmic axis.
    """
    language = usable_language(language)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    sizes = [point.records for point in points]
    ends = np.asarray([point.interval or (point.area, point.area) for point in points]).T
    axes.fill_between(sizes, *ends, color=_BLUE, alpha=0.18, linewidth=0)
    label = say("router, 95 % interval", language)
    axes.plot(sizes, [point.area for point in points], color=_BLUE, linewidth=2, marker="o", label=label)
    axes.axhline(0, color=_GREY, linestyle=":", label=say("random", language))
    axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(say("training records", language))
    axes.set_ylabel(say("area over random, in points", language))
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    _tidy(axes)
    return _with_fonts(figure)


def stages_figure(
    curves: Mapping[tuple[Stage, ...], TradeoffCurve], *, language: Language = "en", measured: bool = True
) -> Figure:
    """Draw accuracy against mean seconds for each set of stages; 7 x 4.5 inches.

    Args:
        curves: The curves by stages, as from `stage_curves`.
        language: Language of the labels.
        measured: Whether the seconds were measured; if not, the axis says so.

    Returns:
        The figure, with both single modes.
    """
    language = usable_language(language)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (stages, curve), color in zip(curves.items(), cycle((_BLUE, _ORANGE, _GREY, _PURPLE)), strict=False):
        order = np.argsort(curve.seconds, kind="stable")
        axes.plot(curve.seconds[order], curve.accuracies[order], color=color, label=", ".join(stages))
    first = next(iter(curves.values()))
    for name, marker, color, i in (("always Instruct", "o", _GREEN, 0), ("always Thinking", "s", _RED, 1)):
        single = first.single_seconds[i], first.single_accuracies[i]
        axes.plot(*single, marker, color=color, markersize=7, label=say(name, language), zorder=3)
    axes.yaxis.set_major_formatter(_percent)
    axes.set_title(say("{} records", language).format(first.count))
    axes.set_xlabel(_x_label("mean_seconds", language, measured))
    axes.set_ylabel(say("accuracy", language))
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    _tidy(axes)
    return _with_fonts(figure)


def _draw(axes: Axes, found: TradeOff, against: Against, language: Language) -> None:
    for name, curve, color, line in (
        ("random", found.random, _GREY, ":"),
        ("longest prompts first", found.longest, _ORANGE, "--"),
    ):
        x = _x(curve, against)
        at = _legible(x)
        axes.plot(x[at], curve.accuracy[at], color=color, linestyle=line, label=say(name, language))
    x, routed = _x(found.routed, against), found.routed
    at = _legible(x)
    if at.step is None:
        axes.fill_between(x, routed.low, routed.high, color=_BLUE, alpha=0.18, linewidth=0)
    else:
        axes.vlines(x[at], routed.low[at], routed.high[at], color=_BLUE, alpha=0.35, linewidth=4)
    axes.plot(x[at], routed.accuracy[at], color=_BLUE, linewidth=2, label=say("router, 95 % interval", language))
    for name, point, marker, color in (
        ("always Instruct", found.instruct, "o", _GREEN),
        ("always Thinking", found.thinking, "s", _RED),
        ("oracle", found.oracle, "*", _PURPLE),
    ):
        size = 13 if marker == "*" else 7
        (drawn,) = axes.plot(_x(point, against), point.accuracy, marker, color=color, markersize=size, zorder=3)
        drawn.set_label(say(name, language))
    axes.yaxis.set_major_formatter(_percent)
    low, high = axes.get_ylim()
    if high > HIGHEST:  # a flat line at the top would get ticks beyond 100 %
        axes.set_ylim(max(-0.015, min(low, 0.9)), HIGHEST)
    if against == "share":
        axes.xaxis.set_major_formatter(_percent)
        axes.set_xlim(-0.03, 1.03)
    _tidy(axes)


def mark_name(mark: Mark, language: Language) -> str:
    """Return the preset with its price, or the price alone.

    Args:
        mark: The operating point.
        language: "en" or "zh".

    Returns:
        Its name.
    """
    price = say("price {}", language).format(f"{mark.price:.3g}")
    return say("{}, {}", language).format(mark.name, price) if mark.name else price


def _draw_marks(axes: Axes, marks: Sequence[Mark], against: Against, language: Language) -> None:
    for mark, shape in zip(marks, cycle("v^DPX"), strict=False):
        at = _x(mark.point, against), mark.point.accuracy
        axes.plot(*at, shape, color="black", markersize=6, label=mark_name(mark, language), zorder=4)
        if mark.in_force:
            label = say("in force", language)
            axes.plot(*at, "o", color=_RED, fillstyle="none", markersize=14, label=label, zorder=4)


def _x(drawn: Curve | Point, against: Against) -> Any:
    if against == "share" and isinstance(drawn, Curve):
        return SHARES
    value = getattr(drawn, against)
    if value is None:
        raise ValueError(f"no record has seconds for both modes: {against} cannot be drawn")
    return value


def _legible(x: Values) -> slice:
    """All shares; every tenth if the seconds go up and down with the share, which would draw an unreadable line."""
    step = np.diff(x)
    back_and_forth = min(step.clip(min=0).sum(), -step.clip(max=0).sum())
    return slice(None, None, None if back_and_forth <= 0.05 * np.ptp(x) else 10)


def _x_label(against: Against, language: Language, measured: bool) -> str:
    assumed = "" if measured or against == "share" else say(" with an assumed latency", language)
    return say(_AXES[against], language) + assumed


def _title(found: TradeOff, against: Against, language: Language) -> str:
    count = say("{} records", language).format(found.records)
    if against != "share" and found.timed < found.records:
        count = say("{}, {} with known seconds", language).format(count, found.timed)
    return count if found.name == ALL else f"{name_of(found, language)} ({count})"


def _percent(share: float, _: object = None) -> str:
    return f"{round(100 * share, 6):g}%"


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _with_fonts(figure: Figure) -> Figure:
    """Let each text fall back to a Chinese font: a topic may have a Chinese name under English labels, too."""
    if font := chinese_font():
        for text in figure.findobj(Text):
            text.set_fontfamily(["DejaVu Sans", font])
    return figure
