"""The words of figures and of the page with curves, in English and in Chinese."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from vlroute.learning.evaluate import ALL, SHARES, UNNAMED, Curve, Point, TradeOff
from vlroute.learning.metrics import Values, brier, ece, reliability

Language = Literal["en", "zh"]

_CHINESE = {
    ALL: "全部记录",
    UNNAMED: "未命名",
    "accuracy": "准确率",
    "requests sent to Thinking": "交给 Thinking 的请求占比",
    "mean time per answer (s)": "平均每次回答耗时（秒）",
    "95th percentile of the time per answer (s)": "回答耗时的第 95 百分位（秒）",
    " at an assumed pace": "，按假定速度",
    "router, 95 % interval": "路由器，95% 区间",
    "longest prompts first": "最长提示优先",
    "random": "随机",
    "always Instruct": "始终 Instruct",
    "always Thinking": "始终 Thinking",
    "oracle": "先知（上限）",
    "{} records": "{} 条记录",
    "{}, {} with known seconds": "{}，其中 {} 条有耗时",
    "predicted probability of a right answer": "预测的答对概率",
    "share of right answers": "实际答对的比例",
    "records": "记录数",
    "calibrated": "完全校准",
    "observed in bins of 0.1": "实际（每 0.1 一组）",
    "Trade-off curves": "权衡曲线",
    "Each family": "按类别",
    "Calibration": "校准",
    "Numbers": "数据",
    "way": "方式",
    "to Thinking": "交给 Thinking",
    "95 % interval": "95% 区间",
    "mean (s)": "平均（秒）",
    "95th percentile (s)": "第 95 百分位（秒）",
    "router": "路由器",
    "figure": "指标",
    "undefined": "无定义",
    "family": "类别",
    "area over random": "高出随机的面积",
    "predicted": "预测",
    "observed": "实际",
    "mode": "模式",
    "The single modes and the oracle, which knows the answers and is out of reach.": (
        "两个单一模式，以及先知：它知道答案，无法达到。"
    ),
    "The router's curve: requests with the highest gain go to Thinking first.": (
        "路由器的曲线：增益最高的请求先交给 Thinking。"
    ),
    "Whole curves. Area over random in points, 0 is chance; APGR: mean share of the gap between the modes that is "
    "recovered, chance 0.5; CPT: least share to Thinking that recovers so much; AIQ, nAUC: mean accuracy over all "
    "budgets of seconds; QNC: seconds as accurate as Thinking, in parts of Thinking's.": (
        "整条曲线。高出随机的面积以百分点计，0 即随机；APGR：两模式差距平均追回的比例，随机为 0.5；"
        "CPT：追回该比例所需的最少 Thinking 占比；AIQ、nAUC：在所有耗时预算上的平均准确率；"
        "QNC：达到 Thinking 准确率所需耗时与 Thinking 耗时之比。"
    ),
    "Each family of at least 20 records, the largest first.": "每个不少于 20 条记录的类别，从大到小。",
    "How far probabilities and outcomes differ; 0 is perfect. Chance level of the ECE: 95 % of samples of this "
    "size stay below it if the probabilities are right.": (
        "概率与结果的差距；0 为完美。ECE 的偶然水平：若概率正确，95% 的同规模样本低于此值。"
    ),
    "chance level": "偶然水平",
    "What the reliability diagrams show, bin by bin.": "可靠性图各组的数值。",
    "Accuracy against the share of requests sent to Thinking.": "准确率与交给 Thinking 的请求占比。",
    "Accuracy against the mean time per answer.": "准确率与平均回答耗时。",
    "Accuracy against the 95th percentile of the time per answer.": "准确率与回答耗时的第 95 百分位。",
    "Reliability: on the dotted line, probabilities say how often the answer is right.": (
        "可靠性：落在虚线上，概率就等于答对的频率。"
    ),
    "Every prediction is by a model that had not seen the record. Bands and brackets are 95 % intervals. They cover "
    "the sampling of the records and, approximately, the randomness of fitting; not another kind of request.": (
        "每个预测都来自没见过该记录的模型。色带与括号为 95% 区间：反映记录抽样的偶然，"
        "并近似反映训练的随机性，不涵盖其他种类的请求。"
    ),
    "Seconds are measured.": "耗时为实测。",
    "Seconds are assumed: the records hold none for one mode or both.": "耗时为假定：至少一个模式没有耗时记录。",
}


def say(english: str, language: Language) -> str:
    """`english` in the language asked for; as it is where no translation is known."""
    return english if language == "en" else _CHINESE.get(english, english)


def name_of(found: TradeOff, language: Language) -> str:
    """The family's own name, untranslated, or the words for all records and for a family without a name."""
    return say(found.name, language) if found.name in (ALL, UNNAMED) else found.name


#: What accuracy is drawn against.
Against = Literal["share", "mean_seconds", "p95_seconds"]

HIGHEST = 1.015  # accuracies end at 1; a mark there is drawn whole
MAX_FAMILIES = 12
#: Fonts with simplified Chinese characters, under the names that matplotlib knows them by, the best first.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Noto Sans CJK JP",  # one collection file holds all regions, and matplotlib reads its first
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
    """The first of `CHINESE_FONTS` that matplotlib finds on this machine; None if there is none."""
    known = set(fontManager.get_font_names())
    return next((name for name in CHINESE_FONTS if name in known), None)


def usable_language(language: Language) -> Language:
    """`language`, or "en" with a warning in the log if the figures' Chinese labels have no font here."""
    if language == "zh" and chinese_font() is None:
        logging.getLogger("vlroute").warning(
            "no font with Chinese characters found: labels are in English (install one, for example fonts-noto-cjk)"
        )
        return "en"
    return language


def trade_off_figure(
    found: TradeOff, against: Against = "share", *, language: Language = "en", measured: bool = True
) -> Figure:
    """Accuracy against the share sent to Thinking, the mean or the 95th percentile of the seconds, 7 x 4.5 inches.

    Shows the router's curve with its interval, the longest prompts first, chance, both single modes and the oracle.
    The interval is a band, or bars at every tenth share where the seconds do not simply rise or fall with the share.
    `measured`: whether the seconds were; if not, the axis says so. ValueError if no record has seconds.
    """
    language = usable_language(language)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, found, against, language)
    axes.set_title(_title(found, against, language))
    axes.set_xlabel(_x_label(against, language, measured))
    axes.set_ylabel(say("accuracy", language))
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return _with_fonts(figure)


def family_figure(
    found: Sequence[TradeOff], against: Against = "share", *, language: Language = "en", measured: bool = True
) -> Figure:
    """A small `trade_off_figure` for each of `found`, at most `MAX_FAMILIES` of them, three in a row.

    Each has its own scale of accuracy. ValueError if `found` is empty, or one has no seconds to draw against.
    """
    if not found:
        raise ValueError("no family to draw")
    language = usable_language(language)
    shown = found[:MAX_FAMILIES]
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
    """Reliability diagrams of p_instruct and p_thinking: observed against predicted, and how many records per bin.

    `probabilities`, `right`: `[2, n]`, Instruct and Thinking, 0 to 1. Titles give ECE and Brier score. 8 x 4.8 inches.
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


def _draw(axes: Axes, found: TradeOff, against: Against, language: Language) -> None:
    for name, curve, colour, line in (
        ("random", found.random, _GREY, ":"),
        ("longest prompts first", found.longest, _ORANGE, "--"),
    ):
        x = _x(curve, against)
        at = _legible(x)
        axes.plot(x[at], curve.accuracy[at], color=colour, linestyle=line, label=say(name, language))
    x, routed = _x(found.routed, against), found.routed
    at = _legible(x)
    if at.step is None:
        axes.fill_between(x, routed.low, routed.high, color=_BLUE, alpha=0.18, linewidth=0)
    else:
        axes.vlines(x[at], routed.low[at], routed.high[at], color=_BLUE, alpha=0.35, linewidth=4)
    axes.plot(x[at], routed.accuracy[at], color=_BLUE, linewidth=2, label=say("router, 95 % interval", language))
    for name, point, marker, colour in (
        ("always Instruct", found.instruct, "o", _GREEN),
        ("always Thinking", found.thinking, "s", _RED),
        ("oracle", found.oracle, "*", _PURPLE),
    ):
        size = 13 if marker == "*" else 7
        (drawn,) = axes.plot(_x(point, against), point.accuracy, marker, color=colour, markersize=size, zorder=3)
        drawn.set_label(say(name, language))
    axes.yaxis.set_major_formatter(_percent)
    low, high = axes.get_ylim()
    if high > HIGHEST:  # a flat line at the top would else stand in the middle of ticks beyond 100 %
        axes.set_ylim(max(-0.015, min(low, 0.9)), HIGHEST)
    if against == "share":
        axes.xaxis.set_major_formatter(_percent)
        axes.set_xlim(-0.03, 1.03)
    _tidy(axes)


def _x(drawn: Curve | Point, against: Against) -> Any:
    if against == "share" and isinstance(drawn, Curve):
        return SHARES
    value = getattr(drawn, against)
    if value is None:
        raise ValueError(f"no record has seconds for both modes: {against} cannot be drawn")
    return value


def _legible(x: Values) -> slice:
    """All shares; every tenth where the seconds go back and forth with the share, which would be a scribble."""
    step = np.diff(x)
    back_and_forth = min(step.clip(min=0).sum(), -step.clip(max=0).sum())
    return slice(None, None, None if back_and_forth <= 0.05 * np.ptp(x) else 10)


def _x_label(against: Against, language: Language, measured: bool) -> str:
    assumed = "" if measured or against == "share" else say(" at an assumed pace", language)
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
    """Let each text fall back to a Chinese font: a family may be named in Chinese under English labels too."""
    if font := chinese_font():
        for text in figure.findobj(Text):
            text.set_fontfamily(["DejaVu Sans", font])
    return figure
