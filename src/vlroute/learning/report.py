"""An evaluation for people: a table for the terminal, a page of Markdown, a part of `router.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vlroute.learning.evaluate import Evaluation, Figure, Row

READING = """\
`routed` decides by gain against price, on records its model had not seen. It is worth its while if it beats both
`always` rows, `random` and `longest prompts` at the same share; the `oracle` knows the answers and is out of reach.
Area over random: mean over all shares sent to Thinking of (accuracy − random line), in points. Gain AUC: of a record
that Thinking wins and one that Instruct wins, how often the gain ranks the first higher. Headroom captured: 0 = the
better single mode, 1 = the oracle. ECE, Brier: how far the probabilities are off; 0 is perfect. Brackets are 95 %
bootstrap intervals over the records. More in docs/decision.md."""


def as_table(evaluation: Evaluation) -> Table:
    """The ways of choosing, for the terminal."""
    table = Table(title=f"{evaluation.records} records, out of fold")
    for index, name in enumerate(_HEADINGS):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in evaluation.rows:
        table.add_row(*_cells(row), style="bold" if row.name == "routed" else None)
    return table


def figures_table(evaluation: Evaluation) -> Table:
    """The metrics, for the terminal."""
    table = Table("figure", "value", "95 % interval")
    for name, figure in evaluation.figures.items():
        table.add_row(name, *_figure_cells(figure))
    return table


def as_markdown(evaluation: Evaluation, provenance: Mapping[str, Any], pace_note: str) -> str:
    """The whole report. `provenance` as in `router.json`."""
    files = ", ".join(f"`{one['file']}` ({one['sha256'][:12]}…)" for one in provenance["data"])
    settings = ", ".join(f"{name} {value}" for name, value in provenance["settings"].items())
    sets = ", ".join(f"{name or 'unnamed'} {count}" for name, count in provenance["sets"].items())
    parts = [
        "# Router report",
        f"{evaluation.records} records ({sets}) from {files}. {settings}. {provenance['date']}. {pace_note}",
        "## Ways of choosing the mode",
        _markdown(_HEADINGS, [_cells(row) for row in evaluation.rows]),
        "## Figures",
        _markdown(
            ("figure", "value", "95 % interval"),
            [(name, *_figure_cells(figure)) for name, figure in evaluation.figures.items()],
        ),
        "## How to read this",
        READING,
    ]
    return "\n\n".join(parts) + "\n"


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Rows and figures as plain values, for the artefact's card."""
    return asdict(evaluation)


_HEADINGS = ("way", "to Thinking", "accuracy", "95 % interval", "tokens", "seconds")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.share:.1%}",
        f"{row.accuracy:.1%}",
        "–" if row.interval is None else "{:.1%} – {:.1%}".format(*row.interval),
        "–" if row.tokens is None else f"{row.tokens:.0f}",
        "–" if row.seconds is None else f"{row.seconds:.2f}",
    )


def _figure_cells(figure: Figure) -> tuple[str, str]:
    value = "undefined" if figure.value is None else f"{figure.value:.3f}"
    interval = "–" if figure.interval is None else "{:.3f} – {:.3f}".format(*figure.interval)
    return value, interval


def _markdown(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
