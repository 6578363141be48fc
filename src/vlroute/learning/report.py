"""An evaluation for people: a table for the terminal, a page of Markdown, a part of `router.json`."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from math import isnan
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Plot
from rich.table import Table

from vlroute.files import replace_file
from vlroute.learning.evaluate import SHARES, Evaluation, Figure, Point, Row, TradeOff
from vlroute.learning.fit import Comparison
from vlroute.learning.intervals import Sampling
from vlroute.learning.metrics import Values, brier, ece, ece_if_calibrated, reliability
from vlroute.learning.plots import (
    Against,
    Language,
    family_figure,
    name_of,
    reliability_figure,
    say,
    trade_off_figure,
    usable_language,
)

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
    latency_note: str,
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
        f"{evaluation.records} records ({sets}) from {files}. {settings}. {provenance['date']}. {latency_note}",
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
    """Rows and figures as plain values, for the artifact's card."""
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


UNKNOWN = "–"

_WHOLE = (
    "Whole curves. Area over random in points, 0 is chance; APGR: mean share of the gap between the modes that is "
    "recovered, chance 0.5; CPT: least share to Thinking that recovers so much; AIQ, nAUC: mean accuracy over all "
    "budgets of seconds; QNC: seconds as accurate as Thinking, in parts of Thinking's."
)
_SECONDS = ("mean (s)", "95th percentile (s)")


def tables(
    found: Sequence[TradeOff],
    probabilities: Values,
    right: Values,
    *,
    language: Language = "en",
    sampling: Sampling | None = None,
) -> list[str]:
    """One `<table>` each for the single modes, the curve, its metrics, the families, calibration and its bins.

    `found`: from `trade_offs`. `probabilities`, `right`: `[2, n]`, Instruct and Thinking. `sampling`: as in
    `trade_off`.
    """
    everything, families = found[0], found[1:]
    singles = {
        "always Instruct": everything.instruct,
        "always Thinking": everything.thinking,
        "oracle": everything.oracle,
    }
    curves = {"router": everything.routed, "longest prompts first": everything.longest, "random": everything.random}
    sampling = sampling or Sampling(right.shape[1])
    modes = list(zip(("Instruct", "Thinking"), probabilities, right, strict=True))
    written = [
        _table(
            "The single modes and the oracle, which knows the answers and is out of reach.",
            ("way", "to Thinking", "accuracy", "95 % interval", *_SECONDS),
            [(say(name, language), *_single(point)) for name, point in singles.items()],
            language,
        ),
        _table(
            "The router's curve: requests with the highest gain go to Thinking first.",
            ("to Thinking", "router", "95 % interval", "longest prompts first", "random", *_SECONDS),
            [_step(everything, index) for index in range(0, len(SHARES), 10)],
            language,
        ),
        _table(
            _WHOLE,
            ("figure", *curves),
            [
                (say(name, language), *(_figure(curve.figures[name], language) for curve in curves.values()))
                for name in everything.routed.figures
            ],
            language,
        ),
        _table(
            "Each family of at least 20 records, the largest first.",
            ("family", "records", "always Instruct", "always Thinking", "oracle", "area over random", "APGR"),
            [_family(one, language) for one in families],
            language,
        ),
        _table(
            "How far probabilities and outcomes differ; 0 is perfect. Chance level of the ECE: 95 % of samples of this "
            "size stay below it if the probabilities are right.",
            ("mode", "ECE", "chance level", "Brier"),
            [(mode, *_calibration(p, correct, sampling, language)) for mode, p, correct in modes],
            language,
        ),
        _table(
            "What the reliability diagrams show, bin by bin.",
            ("mode", "predicted", "observed", "records"),
            [(mode, *row) for mode, p, correct in modes for row in _bins(p, correct)],
            language,
        ),
    ]
    return [table for table in written if table]


def _table(caption: str, headings: Sequence[str], rows: Sequence[Iterable[str]], language: Language) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(say(heading, language))}</th>' for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f"<table>\n<caption>{escape(say(caption, language))}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _single(point: Point) -> tuple[str, ...]:
    interval = UNKNOWN if point.interval is None else _range(*point.interval)
    seconds = (_seconds(point.mean_seconds), _seconds(point.p95_seconds))
    return f"{point.share:.1%}", f"{point.accuracy:.1%}", interval, *seconds


def _step(found: TradeOff, index: int) -> tuple[str, ...]:
    routed = found.routed
    return (
        f"{SHARES[index]:.0%}",
        f"{routed.accuracy[index]:.1%}",
        _range(routed.low[index], routed.high[index]),
        f"{found.longest.accuracy[index]:.1%}",
        f"{found.random.accuracy[index]:.1%}",
        *(_seconds(None if cost is None else cost[index]) for cost in (routed.mean_seconds, routed.p95_seconds)),
    )


def _family(found: TradeOff, language: Language) -> tuple[str, ...]:
    accuracies = (f"{point.accuracy:.1%}" for point in (found.instruct, found.thinking, found.oracle))
    figures = (_figure(found.routed.figures[name], language) for name in ("area over random", "APGR"))
    return name_of(found, language), str(found.records), *accuracies, *figures


def _calibration(p: Values, correct: Values, sampling: Sampling, language: Language) -> list[str]:
    learned = 2 * (p - p.mean()) * (correct - correct.mean())
    score = Figure(brier(p, correct), sampling.share((p - correct) ** 2, learned=learned))
    return [_number(ece(p, correct)), _number(ece_if_calibrated(p)), _figure(score, language)]


def _bins(p: Values, correct: Values) -> list[tuple[str, ...]]:
    bins = reliability(p, correct)
    rows = zip(bins.predicted, bins.observed, bins.count, strict=True)
    return [(f"{predicted:.3f}", f"{observed:.3f}", str(count)) for predicted, observed, count in rows]


def _figure(figure: Figure, language: Language) -> str:
    if figure.value is None:
        return say("undefined", language)
    interval = "" if figure.interval is None else " ({} – {})".format(*map(_number, figure.interval))
    return _number(figure.value) + interval


def _number(value: float) -> str:
    return f"{round(value, 3) + 0.0:.3f}"  # + 0.0: no "-0.000"


def _range(low: float, high: float) -> str:
    return UNKNOWN if isnan(low) else f"{low:.1%} – {high:.1%}"


def _seconds(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


DPI = 150
PAGE = "curves.html"

_CAPTIONS: dict[Against, str] = {
    "share": "Accuracy against the share of requests sent to Thinking.",
    "mean_seconds": "Accuracy against the mean time per answer.",
    "p95_seconds": "Accuracy against the 95th percentile of the time per answer.",
}
_READING = (
    "Every prediction is by a model that had not seen the record. Bands and brackets are 95 % intervals. They cover "
    "the sampling of the records and, approximately, the randomness of fitting; not another kind of request."
)
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "figure{margin:1.5em 0}img{max-width:100%;height:auto}figcaption,caption{color:#555;text-align:left}"
    "table{border-collapse:collapse;margin:1.5em 0}caption{padding-bottom:.4em}"
    "th,td{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}"
    "th:first-child,td:first-child{text-align:left}"
)


def write_page(
    out: Path,
    found: Sequence[TradeOff],
    probabilities: Values,
    right: Values,
    *,
    language: Language = "en",
    measured: bool = True,
    sampling: Sampling | None = None,
) -> list[Path]:
    """Write PNG figures and `curves.html` into the folder `out`, made if missing; the paths written, the page last.

    `found`: from `trade_offs`. `probabilities`, `right`: `[2, n]`, Instruct and Thinking. `measured`: whether the
    seconds were. `sampling`: as in `trade_off`. The page needs no other file and no network. Each file appears whole or
    not at all. Where no font has Chinese characters, "zh" gives a Chinese page with English figures. OSError if the
    disk refuses.
    """
    everything, families = found[0], found[1:]
    drawable = usable_language(language)
    figures: dict[str, tuple[Plot, str]] = {}
    family_figures: dict[str, tuple[Plot, str]] = {}
    for against, caption in _CAPTIONS.items():
        name = against.replace("_", "-")
        if against == "share" or everything.timed:
            one = trade_off_figure(everything, against, language=drawable, measured=measured)
            figures[f"accuracy-{name}.png"] = one, caption
        shown = [family for family in families if against == "share" or family.timed]
        if shown:
            several = family_figure(shown, against, language=drawable, measured=measured)
            family_figures[f"families-{name}.png"] = several, caption
    diagrams = {
        "reliability.png": (
            reliability_figure(probabilities, right, language=drawable),
            "Reliability: on the dotted line, probabilities say how often the answer is right.",
        )
    }
    out.mkdir(parents=True, exist_ok=True)
    written, parts = [], []
    for heading, group in (("Trade-off curves", figures), ("Each family", family_figures), ("Calibration", diagrams)):
        parts += [f"<h2>{escape(say(heading, language))}</h2>"] if group else []
        for file, (figure, caption) in group.items():
            png = _png(figure)
            replace_file(out / file, png)
            written.append(out / file)
            parts.append(_embedded(png, say(caption, language)))
    parts.append(f"<h2>{escape(say('Numbers', language))}</h2>")
    parts += tables(found, probabilities, right, language=language, sampling=sampling)
    replace_file(out / PAGE, _page(parts, language, measured).encode())
    return [*written, out / PAGE]


def _png(figure: Plot) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})  # equal figures make equal files
    return buffer.getvalue()


def _page(parts: Iterable[str], language: Language, measured: bool) -> str:
    title = escape(say("Trade-off curves", language))
    seconds = (
        "Seconds are measured." if measured else "Seconds are assumed: the records hold none for one mode or both."
    )
    reading = escape(f"{say(_READING, language)} {say(seconds, language)}")
    return (
        f'<!DOCTYPE html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>vlroute: {title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{title}</h1>\n<p>{reading}</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _embedded(png: bytes, caption: str) -> str:
    source = base64.b64encode(png).decode()
    caption = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
