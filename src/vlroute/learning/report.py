"""Reports of collect, train and eval: tables for the terminal and pages in Markdown.

The texts of the pages are Jinja templates in the folder `templates`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from rich.table import Table

from vlroute.decision.wilson import share_interval
from vlroute.learning.intervals import Interval, Sampling, Values
from vlroute.markdown import cell, code, table
from vlroute.records import Record, outcomes
from vlroute.types import MODES, Stage

if TYPE_CHECKING:  # `collect` works without the packages that these modules need
    from vlroute.learning.assessment import Assessment
    from vlroute.learning.evaluate import Evaluation, Figure, Way
    from vlroute.learning.fit import Comparison
    from vlroute.learning.shadow import Contrast, Estimate, ShadowReport
    from vlroute.learning.stages import StageComparison

UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a table. `bold`: first cell of the row that is printed bold in the terminal."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    bold: str = ""


_TEMPLATES = Environment(
    loader=PackageLoader("vlroute.learning"), autoescape=select_autoescape(["html.j2"]), undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_TEMPLATES.filters.update(
    cell=cell, code=code, markdown=lambda grid: table(grid.headings, grid.rows),
    json=lambda value: json.dumps(value, ensure_ascii=False, indent=2),
)  # fmt: skip


def _terminal(grid: Grid, title: str | None = None, caption: str | None = None) -> Table:
    table = Table(title=title, caption=caption)
    for index, name in enumerate(grid.headings):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in grid.rows:
        table.add_row(*row, style="bold" if row[0] == grid.bold else None)
    return table


def render(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: Its file name.
        **values: Its variables.

    Returns:
        The page.
    """
    return _TEMPLATES.get_template(template).render(**values)


def range_cell(interval: Interval | None, form: str = ".1%") -> str:
    """Format an interval.

    Args:
        interval: Its ends; None or NaN if undefined.
        form: Format of an end.

    Returns:
        The text of a cell.
    """
    return UNKNOWN if interval is None or isnan(interval[0]) else " – ".join(format(end, form) for end in interval)


def seconds_cell(value: float | None) -> str:
    """Format seconds.

    Args:
        value: The seconds; None if unknown.

    Returns:
        The text of a cell.
    """
    return UNKNOWN if value is None else f"{value:.2f}"


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
    return render("collection_report.md.j2", grid=_collection(records), settings=settings, result=result)


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
    return format(array.mean(), form) + ("" if interval is None else f" ({range_cell(interval, bound)})")


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


def stages_table(
    stages: Sequence[StageComparison],
    recommended: Sequence[Stage],
    title: str = "stages, at the preset balanced, on the calibration records",
) -> Table:
    """Tabulate what each set of stages adds.

    Args:
        stages: One comparison per set.
        recommended: The set that the artifact recommends; its row is bold.
        title: Target and records.

    Returns:
        A table for the terminal.
    """
    return _terminal(_stages(stages, recommended), title, f"recommended: {', '.join(recommended)}")


def _stages(stages: Sequence[StageComparison], recommended: Sequence[Stage]) -> Grid:
    headings = (
        "stages", "accuracy", "mean seconds", "to Thinking", "decided at each stage",
        "points above prompt at equal seconds", "95 % interval",
    )  # fmt: skip
    rows = [
        (
            ", ".join(one.stages), f"{one.accuracy:.1%}", f"{one.seconds:.4g}", f"{one.thinking_share:.0%}",
            " / ".join(f"{share:.0%}" for share in one.shares), f"{100 * one.above:+.2f}" if one.interval else UNKNOWN,
            range_cell(one.interval and (100 * one.interval[0], 100 * one.interval[1]), "+.2f"),
        )
        for one in stages
    ]  # fmt: skip
    return Grid(headings, rows, bold=", ".join(recommended))


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
    stages: Sequence[StageComparison] = (),
    recommended: Sequence[Stage] = ("prompt",),
) -> str:
    """Write the report of `train_router`.

    Args:
        evaluation: Out-of-fold figures.
        provenance: As in `router.json`.
        latency_note: Where the seconds come from.
        comparisons: The models that were compared for the final router.
        warnings: Sentences without a full stop.
        stages: Comparison of the stages, if the records had evidence.
        recommended: The stages that the artifact recommends.

    Returns:
        A page in Markdown.
    """
    return render(
        "router_report.md.j2", warnings=warnings, provenance=provenance, latency_note=latency_note,
        comparisons=_comparisons(comparisons), stages=_stages(stages, recommended) if stages else None,
        recommended=recommended, **_parts(evaluation, {}),
    )  # fmt: skip


def evaluation_report(found: Assessment, router: str | Path) -> str:
    """Write the report of `evaluate_router`.

    Args:
        found: Its result.
        router: Folder of the router.

    Returns:
        A page in Markdown.
    """
    return render(
        "evaluation_report.md.j2", found=found, router=Path(router).name,
        files=[(Path(name).name, digest) for name, digest in found.files.items()],
        stages=_stages(found.stages, found.recommended) if found.stages else None,
        **_parts(found.evaluation, found.topics),
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
    return (
        one.name,
        f"{one.share:.1%}",
        f"{one.accuracy:.1%}",
        range_cell(one.interval),
        tokens,
        seconds_cell(one.seconds),
    )


def _figures(evaluation: Evaluation) -> Grid:
    rows = [(name, *_figure_cells(figure)) for name, figure in evaluation.figures.items()]
    return Grid(("figure", "value", "95 % interval"), rows)


def _figure_cells(figure: Figure) -> tuple[str, str]:
    return "undefined" if figure.value is None else f"{figure.value:.3f}", range_cell(figure.interval, ".3f")


def _comparisons(comparisons: Sequence[Comparison]) -> Grid:
    rows = [
        (
            one.name,
            f"{one.area:.2f}",
            range_cell(one.interval, ".2f"),
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


# The report of `eval --shadow`.

_JUDGES = {"used": "the artifact in force", "shadow": "the shadow"}
_SIDES = ("in force", "shadow", "difference")


def shadow_tables(found: ShadowReport) -> list[Table]:
    """Tabulate what a shadow would have changed.

    Args:
        found: The result of `evaluate_shadow`.

    Returns:
        Tables for the terminal, with intervals of differences only.
    """
    return [_terminal(grid, title) for title, grid in _shadow_grids(found, brief=True).items()]


def shadow_report(found: ShadowReport) -> str:
    """Write the report of `evaluate_shadow`.

    Args:
        found: Its result.

    Returns:
        A page in Markdown.
    """
    days = [datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M") for at in (found.since, found.until)]
    return render("shadow_report.md.j2", found=found, days=days, grids=_shadow_grids(found, brief=False))


def _shadow_grids(found: ShadowReport, brief: bool) -> dict[str, Grid]:
    """The tables by title. `brief`: with intervals of differences only, because more do not fit into 80 characters."""
    estimate, cells = partial(_estimate, brief=brief), partial(_contrast_cells, brief=brief)
    changes = found.changes.items()
    rows: list[tuple[str, ...]] = [(name, str(one.requests), _estimate(one.share)) for name, one in changes]
    grids = {"requests by change": Grid(("change", "requests", "share"), rows)}
    for quantity, form in (("accuracy", ".1%"), ("seconds", ".2f")):
        for judge, who in _JUDGES.items():
            rows = [(name, *cells(getattr(one, quantity)[judge], form)) for name, one in changes]
            grids[f"{quantity} that {who} expects"] = Grid(("change", *_SIDES), rows)
    if found.rated["all requests"].requests:
        rows = [
            (name, str(one.requests), estimate(one.accuracy), str(one.both), *cells(one.contrast))
            for name, one in found.rated.items()
        ]
        headings = ("change", "rated", "accuracy", "both known", *_SIDES)
        grids["accuracy of rated answers"] = Grid(headings, rows)
    if (sample := found.sample).drawn:
        rows = [
            ("equal answers", str(sample.labeled), estimate(sample.agreement), "", ""),
            ("seconds", str(sample.labeled), *cells(sample.seconds, ".2f")),
            ("accuracy", str(sample.known), *cells(sample.accuracy)),
        ]
        title = f"random sample: {sample.drawn} drawn, {sample.labeled} answered in both modes"
        grids[title] = Grid(("figure", "requests", *_SIDES), rows)
    return grids


def _contrast_cells(contrast: Contrast, form: str = ".1%", *, brief: bool) -> tuple[str, ...]:
    sides = [_estimate(one, form, brief) for one in (contrast.used, contrast.shadow)]
    return (*sides, _estimate(contrast.difference, "+" + form))


def _estimate(estimate: Estimate, form: str = ".1%", brief: bool = False) -> str:
    if estimate.value is None:
        return UNKNOWN
    bounds = "" if brief or estimate.interval is None else f" ({range_cell(estimate.interval, form)})"
    return format(estimate.value, form) + bounds
