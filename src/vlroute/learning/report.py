"""An evaluation for people: a table for the terminal, a page of Markdown, a part of `router.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from vlroute.learning.candidates import Comparison
from vlroute.learning.evaluate import Evaluation, Figure, Row

READING = """\
`routed` decides by gain against price, on records its model had not seen. It is worth its while if it beats both
`always` rows, `random` and `longest prompts` at the same share; the `oracle` knows the answers and is out of reach.
Area over random: mean over all shares sent to Thinking of (accuracy − random line), in points. Gain AUC: of a record
that Thinking wins and one that Instruct wins, how often the gain ranks the first higher. Headroom captured: 0 = the
better single mode, 1 = the oracle. ECE, Brier: how far the probabilities are off; 0 is perfect. An ECE is above 0 by
chance alone: if the probabilities are right, 95 % of samples of this size stay below its chance level.
More in docs/decision.md."""


CANDIDATES = """\
What the final model chose among, ranked on records that its members had not seen (inner folds; these figures chose, so
they flatter the chosen one a little: the figures above do not). Behind: how much less area than the chosen one, ± the
standard error of this difference. The incumbent is words, with the embedding where there is one;
others take over only when ahead by more than two standard errors."""


def as_table(evaluation: Evaluation, kind: str = "out of fold") -> Table:
    """The ways of choosing, for the terminal. `kind`: how the records relate to training, for the title."""
    table = Table(title=f"{evaluation.records} records, {kind}")
    for index, name in enumerate(_HEADINGS):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in evaluation.rows:
        table.add_row(*_cells(row), style="bold" if row.name == "routed" else None)
    return table


def figures_table(evaluation: Evaluation) -> Table:
    """The metrics, for the terminal."""
    table = Table("figure", "value", "95 % interval", caption=evaluation.covers)
    for name, figure in evaluation.figures.items():
        table.add_row(name, *_figure_cells(figure))
    return table


def candidates_table(candidates: Sequence[Comparison]) -> Table:
    """How the candidates compared, for the terminal."""
    table = Table(*_CANDIDATE_HEADINGS, title="candidates, on inner folds of the final model")
    for one in candidates:
        table.add_row(*_candidate_cells(one), style="bold" if one.chosen else None)
    return table


def as_markdown(
    evaluation: Evaluation,
    provenance: Mapping[str, Any],
    pace_note: str,
    candidates: Sequence[Comparison],
    warnings: Sequence[str] = (),
) -> str:
    """The whole report. `provenance` as in `router.json`. `warnings`: sentences without a full stop."""
    files = ", ".join(f"`{one['file']}` ({one['sha256'][:12]}…)" for one in provenance["data"])
    settings = ", ".join(f"{name} {value}" for name, value in provenance["settings"].items())
    sets = ", ".join(f"{name or 'unnamed'} {count}" for name, count in provenance["sets"].items())
    parts = [
        "# Router report",
        *(f"> **{warning}.**" for warning in warnings),
        f"{evaluation.records} records ({sets}) from {files}. {settings}. {provenance['date']}. {pace_note}",
        *sections(evaluation),
        "## Candidates",
        CANDIDATES,
        _markdown(_CANDIDATE_HEADINGS, [_candidate_cells(one) for one in candidates]),
    ]
    return "\n\n".join(parts) + "\n"


def sections(evaluation: Evaluation, families: Mapping[str, Evaluation] | None = None) -> list[str]:
    """The parts of a report in Markdown: ways of choosing, families if there are any, figures, how to read them."""
    return [
        "## Ways of choosing the mode",
        _markdown(_HEADINGS, [_cells(row) for row in evaluation.rows]),
        *(["## Families", _families(families)] if families else []),
        "## Figures",
        _markdown(
            ("figure", "value", "95 % interval"),
            [(name, *_figure_cells(figure)) for name, figure in evaluation.figures.items()],
        ),
        "## How to read this",
        f"{evaluation.covers}\n\n{READING}",
    ]


def families_table(families: Mapping[str, Evaluation]) -> Table:
    """Accuracy family by family, for the terminal."""
    table = Table(title="by family: accuracy of each way, and what routing takes", pad_edge=False)
    for index, name in enumerate((*_FAMILY_HEADINGS, *_ROUTED_HEADINGS)):
        table.add_column(name.replace(" ", "\n"), justify="left" if index == 0 else "right", no_wrap=index > 0)
    for name, one in families.items():
        table.add_row(*_family_cells(name, one), *_routed_cells(one))
    return table


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Rows and figures as plain values, for the artefact's card."""
    return asdict(evaluation)


_HEADINGS = ("way", "to Thinking", "accuracy", "95 % interval", "tokens", "seconds")
_CANDIDATE_HEADINGS = ("candidate", "area over random", "95 % interval", "behind")
_FAMILY_WAYS = ("always instruct", "always thinking", "routed", "oracle")
_FAMILY_HEADINGS = ("family", "records", "Instruct", "Thinking", "routed", "oracle")
_ROUTED_HEADINGS = ("to Thinking", "seconds")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.share:.1%}",
        f"{row.accuracy:.1%}",
        "–" if row.interval is None else "{:.1%} – {:.1%}".format(*row.interval),
        "–" if row.tokens is None else f"{row.tokens:.0f}",
        "–" if row.seconds is None else f"{row.seconds:.2f}",
    )


def _candidate_cells(one: Comparison) -> tuple[str, ...]:
    behind = "chosen" if one.chosen else f"{one.behind:+.2f} ± {one.error:.2f}"
    interval = "–" if one.interval is None else "{:.2f} – {:.2f}".format(*one.interval)
    return one.name, f"{one.area:.2f}", interval, behind


def _families(families: Mapping[str, Evaluation]) -> str:
    rows = []
    for name, one in families.items():
        interval = next(_cells(row)[3] for row in one.rows if row.name == "routed")
        area = _figure_cells(one.figures["area over random"])[0]
        cells = _family_cells(name.replace("|", "\\|"), one)
        rows.append((*cells, interval, *_routed_cells(one), area))
    return _markdown((*_FAMILY_HEADINGS, "routed, 95 %", *_ROUTED_HEADINGS, "area over random"), rows)


def _family_cells(name: str, one: Evaluation) -> tuple[str, ...]:
    accuracy = {row.name: _cells(row)[2] for row in one.rows}
    return " ".join(name.split()), str(one.records), *(accuracy[way] for way in _FAMILY_WAYS)


def _routed_cells(one: Evaluation) -> tuple[str, str]:
    routed = next(_cells(row) for row in one.rows if row.name == "routed")
    return routed[1], routed[-1]


def _figure_cells(figure: Figure) -> tuple[str, str]:
    value = "undefined" if figure.value is None else f"{figure.value:.3f}"
    interval = "–" if figure.interval is None else "{:.3f} – {:.3f}".format(*figure.interval)
    return value, interval


def _markdown(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
