"""Reports: tables for the terminal, Markdown pages of collect, train and eval, and the HTML page of the curves.

The texts of the pages are Jinja templates in the folder `templates`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure as Plot
from rich.table import Table

from vlroute.decision.wilson import share_interval
from vlroute.errors import InputError
from vlroute.files import replace_file
from vlroute.learning.assumptions import measure_latency
from vlroute.learning.evaluate import (
    SHARES,
    Assessment,
    Evaluation,
    Figure,
    Point,
    TradeOff,
    Way,
    sampling_of,
    seconds_of,
    trade_offs,
)
from vlroute.learning.fit import Comparison
from vlroute.learning.folds import Together
from vlroute.learning.intervals import Interval, Sampling
from vlroute.learning.metrics import Values, brier, ece, ece_if_calibrated, reliability
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.learning.plots import (
    Against,
    Language,
    name_of,
    reliability_figure,
    say,
    topic_figure,
    trade_off_figure,
    usable_language,
)
from vlroute.records import Record, outcomes
from vlroute.types import MODES

DPI = 150
PAGE = "curves.html"
UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a table. `bold`: first cell of the row that is printed bold in the terminal."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bold: str = ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _markdown(grid: Grid) -> str:
    lines = [grid.headings, ("---",) * len(grid.headings), *(map(_cell, row) for row in grid.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


_TEMPLATES = Environment(
    loader=PackageLoader("vlroute.learning"), autoescape=select_autoescape(["html.j2"]), undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_TEMPLATES.filters.update(
    cell=_cell, markdown=_markdown, json=lambda value: json.dumps(value, ensure_ascii=False, indent=2)
)


def _terminal(grid: Grid, title: str | None = None, caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption)
    for index, name in enumerate(grid.headings):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in grid.rows:
        table.add_row(*row, style="bold" if row[0] == grid.bold else None)
    return table


# The reports of `collect`.


def collection_table(records: Sequence[Record]) -> Table:
    """Tabulate accuracy and seconds by topic and mode.

    Args:
        records: All records of a file.

    Returns:
        A table for the terminal.
    """
    caption = "brackets: 95 % intervals · seconds: mean time that a user waits"
    return _terminal(_collection(records), f"{len(records)} records", caption)


def collection_report(records: Sequence[Record], settings: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Write the report of `collect_records`.

    Args:
        records: All records of the file.
        settings: What all runs for the file shared.
        result: The fields of `Collected`, for the last run.

    Returns:
        A page in Markdown.
    """
    page = _TEMPLATES.get_template("collection_report.md.j2")
    return page.render(grid=_collection(records), settings=settings, result=result)


def _collection(records: Sequence[Record]) -> Grid:
    """One row per topic, the largest first, and one for all if there are several."""
    topics: dict[str, list[Record]] = {}
    for record in records:
        topics.setdefault(record.topic or record.set or "unnamed", []).append(record)
    found = sorted(topics.items(), key=lambda item: (-len(item[1]), item[0]))
    rows = [_collected(name, some) for name, some in (found if len(found) == 1 else [*found, ("all", records)])]
    headings = ("accuracy Instruct", "accuracy Thinking", "seconds Instruct", "seconds Thinking")
    return Grid(("topic", "records", *headings), rows, bold="all")


def _collected(name: str, records: Sequence[Record]) -> tuple[str, ...]:
    right = [[float(one.correct) for one in outcomes(records, mode)] for mode in MODES]
    seconds = [[one.seconds for one in outcomes(records, mode) if one.seconds is not None] for mode in MODES]
    return (
        name,
        str(len(records)),
        *(_mean(values, share_interval, ".1%", ".0%") for values in right),
        *(_mean(values, lambda v: Sampling(len(v)).positive_mean(v), ".2f", ".2f") for values in seconds),
    )


def _mean(values: Sequence[float], interval_of: Callable[[Values], Interval | None], form: str, bound: str) -> str:
    if not values:
        return UNKNOWN
    array = np.asarray(values, np.float64)
    interval = interval_of(array)
    return format(array.mean(), form) + ("" if interval is None else f" ({_range(interval, bound)})")


# The reports of `train` and `eval`.


def ways_table(evaluation: Evaluation, kind: str = "out of fold") -> Table:
    """Tabulate the ways of choosing the mode.

    Args:
        evaluation: The figures.
        kind: How the records relate to the training of the router, for the title.

    Returns:
        A table for the terminal.
    """
    return _terminal(_ways(evaluation), f"{evaluation.records} records, {kind}")


def figures_table(evaluation: Evaluation) -> Table:
    """Tabulate the metrics.

    Args:
        evaluation: The figures.

    Returns:
        A table for the terminal.
    """
    return _terminal(_figures(evaluation), caption=evaluation.covers)


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Tabulate the comparison of models that led to the final one.

    Args:
        comparisons: One per model.

    Returns:
        A table for the terminal.
    """
    return _terminal(_comparisons(comparisons), "model selection, on inner folds of the final model")


def topics_table(topics: Mapping[str, Evaluation]) -> Table:
    """Tabulate accuracy and cost by topic.

    Args:
        topics: Figures by topic.

    Returns:
        A table for the terminal.
    """
    table = Table(title="by topic: accuracy of each way, share and seconds of routed answers", pad_edge=False)
    grid = _topics(topics)
    for index, name in enumerate(grid.headings[:8]):  # more do not fit into 80 characters
        table.add_column(name.replace(" ", "\n"), justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in grid.rows:
        table.add_row(" ".join(row[0].split()), *row[1:8])
    return table


def router_report(
    evaluation: Evaluation,
    provenance: Mapping[str, Any],
    latency_note: str,
    comparisons: Sequence[Comparison],
    warnings: Sequence[str] = (),
) -> str:
    """Write the report of `train_router`.

    Args:
        evaluation: Out-of-fold figures.
        provenance: As in `router.json`.
        latency_note: Where the seconds come from.
        comparisons: The models that were compared for the final router.
        warnings: Sentences without a full stop.

    Returns:
        A page in Markdown.
    """
    return _TEMPLATES.get_template("router_report.md.j2").render(
        warnings=warnings, provenance=provenance, latency_note=latency_note, comparisons=_comparisons(comparisons),
        **_parts(evaluation, {}),
    )  # fmt: skip


def evaluation_report(found: Assessment, router: str | Path) -> str:
    """Write the report of `evaluate_router`.

    Args:
        found: Its result.
        router: Folder of the router.

    Returns:
        A page in Markdown.
    """
    return _TEMPLATES.get_template("evaluation_report.md.j2").render(
        found=found, files=[(Path(name).name, digest) for name, digest in found.files.items()],
        router=Path(router).name, **_parts(found.evaluation, found.topics),
    )  # fmt: skip


def _parts(evaluation: Evaluation, topics: Mapping[str, Evaluation]) -> dict[str, Any]:
    return {
        "evaluation": evaluation, "ways": _ways(evaluation), "figures": _figures(evaluation), "topics": _topics(topics)
    }  # fmt: skip


def _ways(evaluation: Evaluation) -> Grid:
    headings = ("way", "to Thinking", "accuracy", "95 % interval", "tokens", "seconds")
    return Grid(headings, [_way(one) for one in evaluation.rows], bold="routed")


def _way(one: Way) -> tuple[str, ...]:
    tokens = UNKNOWN if one.tokens is None else f"{one.tokens:.0f}"
    return one.name, f"{one.share:.1%}", f"{one.accuracy:.1%}", _range(one.interval), tokens, _seconds(one.seconds)


def _figures(evaluation: Evaluation) -> Grid:
    rows = [(name, *_figure_cells(figure)) for name, figure in evaluation.figures.items()]
    return Grid(("figure", "value", "95 % interval"), rows)


def _figure_cells(figure: Figure) -> tuple[str, str]:
    return "undefined" if figure.value is None else f"{figure.value:.3f}", _range(figure.interval, ".3f")


def _comparisons(comparisons: Sequence[Comparison]) -> Grid:
    rows = [
        (
            one.name,
            f"{one.area:.2f}",
            _range(one.interval, ".2f"),
            "chosen" if one.chosen else f"{one.behind:+.2f} ± {one.error:.2f}",
        )
        for one in comparisons
    ]
    chosen = next((one.name for one in comparisons if one.chosen), "")
    return Grid(("model", "area over random", "95 % interval", "behind"), rows, chosen)


def _topics(topics: Mapping[str, Evaluation]) -> Grid:
    rows = []
    for name, one in topics.items():
        ways = {way.name: _way(way) for way in one.rows}
        accuracies = (ways[way][2] for way in ("always instruct", "always thinking", "routed", "oracle"))
        _, share, _, interval, _, seconds = ways["routed"]
        area = _figure_cells(one.figures["area over random"])[0]
        rows.append((name, str(one.records), *accuracies, share, seconds, interval, area))
    headings = ("topic", "records", "Instruct", "Thinking", "routed", "oracle", "to Thinking", "seconds")
    return Grid((*headings, "routed, 95 %", "area over random"), rows)


# The page of `curves`.


def write_curves(
    records: Sequence[Record],
    unseen: OutOfFold | Values,
    out: str | Path,
    *,
    language: Language = "en",
    folds: int = 5,
    together: Together = "text",
) -> list[Path]:
    """Write trade-off curves and reliability diagrams as PNG files and on the page `curves.html`.

    Seconds are as recorded; where only tokens are known, the latency model of the records gives the seconds. The page
    needs no other file and no network. Each file is written whole or not at all. If no font has Chinese characters,
    "zh" gives a Chinese page with English figures.

    Args:
        records: Labeled records.
        unseen: Predictions of models that had not seen the records, from `out_of_fold` or `read_oof` (`[2, n]`).
            Predictions of several seeds are averaged.
        out: Folder of the files.
        language: "en" or "zh".
        folds: Number of folds, for predictions that are an array.
        together: What shared a fold, for predictions that are an array.

    Returns:
        The paths of the files, the page last.

    Raises:
        InputError: There are no records, or the predictions are for another number of records.
        OSError: Writing fails.
    """
    if isinstance(unseen, OutOfFold):
        seeds = np.asarray([[(one.p_instruct, one.p_thinking) for one in seed] for seed in unseen.given], dtype=float)
        p = np.asarray(seeds.mean(axis=0).T)
    else:
        p, unseen = unseen, OutOfFold([], [], folds, together)
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
    measured = all(any(o.seconds is not None for o in outcomes(records, mode)) for mode in MODES)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    groups: dict[str, list[tuple[str, str]]] = {}
    for heading, file, figure, caption in _drawings(found, p, right, usable_language(language), measured):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # equal figures make equal files
        replace_file(out / file, buffer.getvalue())
        written.append(out / file)
        groups.setdefault(heading, []).append((base64.b64encode(buffer.getvalue()).decode(), caption))
    page = _TEMPLATES.get_template("curves.html.j2").render(
        t=lambda english: say(english, language), language=language, measured=measured, groups=groups.items(),
        **_grids(found, p, right, sampling, language),
    )  # fmt: skip
    replace_file(out / PAGE, page.encode())
    return [*written, out / PAGE]


def _drawings(
    found: Sequence[TradeOff], p: Values, right: Values, language: Language, measured: bool
) -> Iterable[tuple[str, str, Plot, str]]:
    """Heading, file, figure and caption of each drawing."""
    captions: dict[Against, str] = {
        "share": "Accuracy against the share of requests sent to Thinking.",
        "mean_seconds": "Accuracy against the mean time per answer.",
        "p95_seconds": "Accuracy against the 95th percentile of the time per answer.",
    }
    for against, caption in captions.items():
        if against == "share" or found[0].timed:
            figure = trade_off_figure(found[0], against, language=language, measured=measured)
            yield "Trade-off curves", f"accuracy-{against.replace('_', '-')}.png", figure, caption
    for against, caption in captions.items():
        if shown := [topic for topic in found[1:] if against == "share" or topic.timed]:
            figure = topic_figure(shown, against, language=language, measured=measured)
            yield "Topics", f"topics-{against.replace('_', '-')}.png", figure, caption
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


def _point(point: Point) -> tuple[str, ...]:
    seconds = (_seconds(point.mean_seconds), _seconds(point.p95_seconds))
    return f"{point.share:.1%}", f"{point.accuracy:.1%}", _range(point.interval), *seconds


def _step(found: TradeOff, index: int) -> tuple[str, ...]:
    routed = found.routed
    return (
        f"{SHARES[index]:.0%}",
        f"{routed.accuracy[index]:.1%}",
        _range((routed.low[index], routed.high[index])),
        f"{found.longest.accuracy[index]:.1%}",
        f"{found.random.accuracy[index]:.1%}",
        *(_seconds(None if cost is None else cost[index]) for cost in (routed.mean_seconds, routed.p95_seconds)),
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


def _range(interval: Interval | None, form: str = ".1%") -> str:
    return UNKNOWN if interval is None or isnan(interval[0]) else " – ".join(format(end, form) for end in interval)


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"
