"""The numbers behind the curves, as HTML tables with captions. Everything is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import isnan

from vlroute.learning.curves import SHARES, Point, TradeOff
from vlroute.learning.evaluate import Figure
from vlroute.learning.intervals import Sampling
from vlroute.learning.labels import Language, name_of, say
from vlroute.learning.metrics import Values, brier, ece, ece_if_calibrated, reliability

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
