"""The page of `vlroute curves`: figures and tables of trade-off curves and of calibration."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Plot

from vlroute.decision.classifier import Prediction
from vlroute.decision.target import PRESETS, Target
from vlroute.decision.tradeoff import TradeoffCurve
from vlroute.errors import InputError
from vlroute.files import replace_file
from vlroute.learning.assumptions import mean_tokens, measure_latency
from vlroute.learning.evaluate import (
    DEFAULT_PRICE,
    SHARES,
    Figure,
    Mark,
    Point,
    TradeOff,
    operating_marks,
    sampling_of,
    seconds_of,
    trade_offs,
)
from vlroute.learning.folds import Together
from vlroute.learning.intervals import Sampling
from vlroute.learning.metrics import Values, brier, ece, ece_if_calibrated, reliability
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.learning.plots import (
    Against,
    Language,
    mark_name,
    name_of,
    reliability_figure,
    say,
    stages_figure,
    topic_figure,
    trade_off_figure,
    usable_language,
)
from vlroute.learning.report import Grid, range_cell, render, seconds_cell
from vlroute.records import Record, outcomes
from vlroute.types import MODES, Preset, Stage

DPI = 150
PAGE = "curves.html"


def write_curves(
    records: Sequence[Record],
    unseen: OutOfFold | Values,
    out: str | Path,
    *,
    language: Language = "en",
    folds: int = 5,
    together: Together = "text",
    tokens: Values | None = None,
    stages: Mapping[tuple[Stage, ...], TradeoffCurve] | None = None,
    in_force: float | Preset = DEFAULT_PRICE,
) -> list[Path]:
    """Write trade-off curves and reliability diagrams as PNG files and on the page `curves.html`.

    Seconds are as recorded; where only tokens are known, the latency model of the records gives the seconds. The page
    needs no other file and no network. Each file is written whole or not at all. If no font has Chinese characters,
    "zh" gives a Chinese page with English figures.

    Args:
        records: Labeled records.
        unseen: Predictions of models that had not seen the records, from `out_of_fold`, or only their probabilities,
            from `read_oof` (`[2, n]`). Predictions of several seeds are averaged.
        out: Folder of the files.
        language: "en" or "zh".
        folds: Number of folds, for predictions that are an array.
        together: What shared a fold, for predictions that are an array.
        tokens: Expected tokens of both modes (`[2, n]`), for predictions that are an array. Without them, all requests
            have the same expected seconds at presets and prices, and the page says so.
        stages: Curves of sets of stages, from `stage_curves`; they get a figure and a table of their own.
        in_force: The price or preset by which the router decides. The figures mark it and the presets.

    Returns:
        The paths of the files, the page last.

    Raises:
        InputError: There are no records, or the predictions are for another number of records.
        OSError: Writing fails.
    """
    unknown_tokens = False
    if isinstance(unseen, OutOfFold):
        seeds = [
            [(one.p_instruct, one.p_thinking, one.tokens_instruct, one.tokens_thinking) for one in seed]
            for seed in unseen.given
        ]
        p, tokens = np.split(np.asarray(seeds, dtype=float).mean(axis=0).T, 2)
    else:
        p, unseen, unknown_tokens = unseen, OutOfFold([], [], folds, together), tokens is None
        if tokens is None:
            tokens = np.tile(np.asarray([*mean_tokens(records).values()])[:, None], len(records))
    if not records or p.shape != (2, len(records)):
        raise InputError(f"need at least one record and two probabilities each, not {len(records)} and {p.shape}")
    sampling = sampling_of(records, unseen)
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    found = trade_offs(
        p[1] - p[0],
        right,
        seconds_of(records, measure_latency(records)),
        np.asarray([float(len(record.prompt)) for record in records]),
        [record.topic for record in records],
        sampling=sampling,
    )
    predictions = [
        Prediction(p_instruct, p_thinking, short, long, coverage=1.0)
        for (p_instruct, p_thinking), (short, long) in zip(p.T.tolist(), tokens.T.tolist(), strict=True)
    ]
    marks = operating_marks(records, predictions, measure_latency(records), in_force, sampling=sampling)
    measured = all(any(o.seconds is not None for o in outcomes(records, mode)) for mode in MODES)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    groups: dict[str, list[tuple[str, str]]] = {}
    labels = usable_language(language)
    for heading, file, figure, caption in _drawings(found, p, right, labels, measured, stages or {}, marks):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # equal figures make equal files
        replace_file(out / file, buffer.getvalue())
        written.append(out / file)
        groups.setdefault(heading, []).append((base64.b64encode(buffer.getvalue()).decode(), caption))
    page = render(
        "curves.html.j2", t=lambda english: say(english, language), language=language, measured=measured,
        groups=groups.items(), **_grids(found, p, right, sampling, language), stages=_stages(stages or {}, language),
        marks=_marks(marks, language), unknown_tokens=unknown_tokens,
    )  # fmt: skip
    replace_file(out / PAGE, page.encode())
    return [*written, out / PAGE]


def _drawings(
    found: Sequence[TradeOff],
    p: Values,
    right: Values,
    language: Language,
    measured: bool,
    stages: Mapping[tuple[Stage, ...], TradeoffCurve],
    marks: Sequence[Mark],
) -> Iterable[tuple[str, str, Plot, str]]:
    """Heading, file, figure and caption of each drawing."""
    captions: dict[Against, str] = {
        "share": "Accuracy against the share of requests sent to Thinking.",
        "mean_seconds": "Accuracy against the mean time per answer.",
        "p95_seconds": "Accuracy against the 95th percentile of the time per answer.",
    }
    for against, caption in captions.items():
        if against == "share" or found[0].timed:
            figure = trade_off_figure(found[0], against, language=language, measured=measured, marks=marks)
            yield "Trade-off curves", f"accuracy-{against.replace('_', '-')}.png", figure, caption
    for against, caption in captions.items():
        if shown := [topic for topic in found[1:] if against == "share" or topic.timed]:
            figure = topic_figure(shown, against, language=language, measured=measured)
            yield "Topics", f"topics-{against.replace('_', '-')}.png", figure, caption
    if stages:
        caption = "Accuracy against the mean time per answer, for each set of stages."
        yield "Stages", "stages.png", stages_figure(stages, language=language, measured=measured), caption
    caption = "Reliability: on the dotted line, the probability equals the share of right answers."
    yield "Calibration", "reliability.png", reliability_figure(p, right, language=language), caption


def _grids(
    found: Sequence[TradeOff], p: Values, right: Values, sampling: Sampling, language: Language
) -> dict[str, Grid]:
    """The tables of the page, by their names in the template."""
    everything, topics = found[0], found[1:]
    points = {
        "always Instruct": everything.instruct,
        "always Thinking": everything.thinking,
        "oracle": everything.oracle,
    }
    curves = {"router": everything.routed, "longest prompts first": everything.longest, "random": everything.random}
    seconds = ("mean (s)", "95th percentile (s)")
    modes = list(zip(("Instruct", "Thinking"), p, right, strict=True))
    bins = [(mode, reliability(mine, correct)) for mode, mine, correct in modes]
    return {
        "singles": Grid(
            ("way", "to Thinking", "accuracy", "95 % interval", *seconds),
            [(say(name, language), *_point(point)) for name, point in points.items()],
        ),
        "curve": Grid(
            ("to Thinking", "router", "95 % interval", "longest prompts first", "random", *seconds),
            [_step(everything, index) for index in range(0, len(SHARES), 10)],
        ),
        "metrics": Grid(
            ("figure", *curves),
            [
                (say(name, language), *(_value(curve.figures[name], language) for curve in curves.values()))
                for name in everything.routed.figures
            ],
        ),
        "topics": Grid(
            ("topic", "records", "always Instruct", "always Thinking", "oracle", "area over random", "APGR"),
            [_topic(one, language) for one in topics],
        ),
        "calibration": Grid(
            ("mode", "ECE", "chance level", "Brier"),
            [(mode, *_calibration(mine, correct, sampling, language)) for mode, mine, correct in modes],
        ),
        "bins": Grid(
            ("mode", "predicted", "observed", "records"),
            [
                (mode, f"{predicted:.3f}", f"{observed:.3f}", str(count))
                for mode, one in bins
                for predicted, observed, count in zip(one.predicted, one.observed, one.count, strict=True)
            ],
        ),
    }


def _marks(marks: Sequence[Mark], language: Language) -> Grid:
    """Presets, price and the one in force."""
    rows = [
        (mark_name(mark, language), say("in force", language) if mark.in_force else "", *_point(mark.point))
        for mark in marks
    ]
    seconds = ("mean (s)", "95th percentile (s)")
    return Grid(("operating point", "", "to Thinking", "accuracy", "95 % interval", *seconds), rows)


def _stages(curves: Mapping[tuple[Stage, ...], TradeoffCurve], language: Language) -> Grid:
    """The operating point of each preset, for each set of stages."""
    rows = []
    for stages, curve in curves.items():
        for preset in PRESETS:
            point = Target(preset=preset).resolve(curve)
            rows.append((
                ", ".join(stages), preset, f"{point.thinking_share:.1%}", f"{point.accuracy:.1%}",
                range_cell(point.interval), f"{point.mean_seconds:.4g}",
            ))  # fmt: skip
    return Grid(("stages", "preset", "to Thinking", "accuracy", "95 % interval", "mean (s)"), rows)


def _point(point: Point) -> tuple[str, ...]:
    seconds = (seconds_cell(point.mean_seconds), seconds_cell(point.p95_seconds))
    return f"{point.share:.1%}", f"{point.accuracy:.1%}", range_cell(point.interval), *seconds


def _step(found: TradeOff, index: int) -> tuple[str, ...]:
    routed = found.routed
    return (
        f"{SHARES[index]:.0%}",
        f"{routed.accuracy[index]:.1%}",
        range_cell((routed.low[index], routed.high[index])),
        f"{found.longest.accuracy[index]:.1%}",
        f"{found.random.accuracy[index]:.1%}",
        *(seconds_cell(None if cost is None else cost[index]) for cost in (routed.mean_seconds, routed.p95_seconds)),
    )


def _topic(found: TradeOff, language: Language) -> tuple[str, ...]:
    accuracies = (f"{point.accuracy:.1%}" for point in (found.instruct, found.thinking, found.oracle))
    figures = (_value(found.routed.figures[name], language) for name in ("area over random", "APGR"))
    return name_of(found, language), str(found.records), *accuracies, *figures


def _calibration(p: Values, correct: Values, sampling: Sampling, language: Language) -> list[str]:
    learned = 2 * (p - p.mean()) * (correct - correct.mean())
    score = Figure(brier(p, correct), sampling.share((p - correct) ** 2, learned=learned))
    return [_number(ece(p, correct)), _number(ece_if_calibrated(p)), _value(score, language)]


def _value(figure: Figure, language: Language) -> str:
    if figure.value is None:
        return say("undefined", language)
    interval = "" if figure.interval is None else " ({} – {})".format(*map(_number, figure.interval))
    return _number(figure.value) + interval


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no "-0.000"
