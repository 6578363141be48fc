"""What each mode was worth on a data set, family by family: a table for the terminal and a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from vlroute.decision.wilson import share_interval
from vlroute.learning.intervals import Interval, Sampling, Values
from vlroute.learning.records import Record, outcomes
from vlroute.modes import MODES

if TYPE_CHECKING:
    from vlroute.learning.collect import Collected

_HEADINGS = ("family", "records", "accuracy Instruct", "accuracy Thinking", "seconds Instruct", "seconds Thinking")
_READING = """\
Accuracy: mean of `correct`. Seconds: mean of what a user waits for one answer, picture and prefill included, with one
request at a time. Brackets are 95 % intervals (Wilson for accuracy). They cover the sampling of the records, as if each
were drawn alone, and not other kinds of questions: where those of the two modes overlap widely, the table cannot tell
which is better. `vlroute train` learns a router from the records."""
_AGREEMENT = """\
Rows without a gold answer were labelled by whether the two modes agree, at the shares in the settings below. Their
accuracies are therefore assumed and not measured: only the share of agreement is. See `learning.judges.Agreement`."""


def as_table(records: Sequence[Record]) -> Table:
    """Accuracy and seconds by family and mode, for the terminal."""
    table = Table(
        title=f"{len(records)} records",
        caption="brackets: 95 % intervals · seconds: what a user waits",
    )
    for index, name in enumerate(_HEADINGS):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in _rows(records):
        table.add_row(*row, style="bold" if row[0] == "all" else None)
    return table


def as_markdown(records: Sequence[Record], settings: Mapping[str, Any], result: Collected) -> str:
    """The whole report. `result`: of the run that wrote it; `settings`: what all its runs shared."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS), *(tuple(map(_escaped, row)) for row in _rows(records))]
    parts = [
        "# What each mode is worth here",
        "\n".join("| " + " | ".join(line) + " |" for line in lines),
        _READING,
    ]
    if settings.get("agreement"):
        parts.append(_AGREEMENT)
    parts += [
        "## This run",
        f"{result.recorded} recorded, {result.without_gold} of them without gold; {result.skipped} were recorded "
        f"before; {result.failed} failed and are not in the table.",
    ]
    if result.reasons:
        parts.append("\n".join(f"* {_escaped(reason)}" for reason in result.reasons))
    parts += ["## Settings", "```json\n" + json.dumps(settings, ensure_ascii=False, indent=2) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """One row a family, the largest first, and one for all of them if there are several."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record.family or record.set or "unnamed", []).append(record)
    rows = [_row(name, some) for name, some in sorted(families.items(), key=lambda item: (-len(item[1]), item[0]))]
    return rows if len(rows) == 1 else [*rows, _row("all", records)]


def _row(name: str, records: Sequence[Record]) -> tuple[str, ...]:
    right = [[float(one.correct) for one in outcomes(records, mode)] for mode in MODES]
    seconds = [[one.seconds for one in outcomes(records, mode) if one.seconds is not None] for mode in MODES]
    return (
        name,
        str(len(records)),
        *(_mean(values, share_interval, "{:.1%}", "{:.0%}") for values in right),
        *(_mean(values, _of_seconds, "{:.2f}", "{:.2f}") for values in seconds),
    )


def _of_seconds(values: Values) -> Interval | None:
    return Sampling(len(values)).positive_mean(values)


def _mean(values: Sequence[float], interval_of: Callable[[Values], Interval | None], form: str, bound: str) -> str:
    """Mean and its interval."""
    if not values:
        return "–"
    array = np.asarray(values, np.float64)
    interval = interval_of(array)
    bounds = "" if interval is None else f" ({bound.format(interval[0])} – {bound.format(interval[1])})"
    return form.format(array.mean()) + bounds


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
