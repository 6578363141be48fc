"""Trade-off curves: what accuracy, and how long a wait, each share of requests sent to Thinking buys.

Arrays have one column per record: `scores` `[n]`, the higher the sooner a record goes to Thinking; `right` `[2, n]`,
how right Instruct and Thinking were, 0 to 1; `seconds` `[2, n]`, how long they took, NaN where unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.learning.curve_metrics import aiq, apgr, area_over_random_line, cpt, nauc, qnc
from vlroute.learning.evaluate import Figure, Interval
from vlroute.learning.metrics import Values, mean_interval, share_by_score

#: Where a curve is taken: 0, 1 … 100 % to Thinking.
SHARES: Values = np.linspace(0, 1, 101)
ALL = "all records"
UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Point:
    """One way of choosing the mode. `share` to Thinking and `accuracy` 0 to 1, `interval` 95 % bootstrap.

    `mean_seconds`, `p95_seconds` an answer, over the records whose seconds are known for both modes; None if there
    are none. The 95th percentile is the least time within which at least 95 % of the answers are there.
    """

    share: float
    accuracy: float
    interval: Interval | None
    mean_seconds: float | None
    p95_seconds: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """One way of ranking, at each of `SHARES` `[k]`: `accuracy`, its 95 % bootstrap band `low` to `high`, seconds.

    `mean_seconds`, `p95_seconds`: as in `Point`, `[k]` or None. `figures`: the metrics of `curve_metrics` by name, with
    95 % bootstrap intervals if it is the router's.
    """

    accuracy: Values
    low: Values
    high: Values
    mean_seconds: Values | None
    p95_seconds: Values | None
    figures: dict[str, Figure]


@dataclass(frozen=True, slots=True)
class TradeOff:
    """The router's curve on `records` records of one kind, of which `timed` have seconds, and what to compare it with.

    `random`: records drawn by chance, in expectation. `longest`: the longest prompts first. `oracle`: thinks exactly
    where Thinking is more right.
    """

    name: str
    records: int
    timed: int
    routed: Curve
    longest: Curve
    random: Curve
    instruct: Point
    thinking: Point
    oracle: Point


def trade_off(
    scores: Values, right: Values, seconds: Values, length: Values, *, name: str = ALL, samples: int = 1000
) -> TradeOff:
    """Curves of the router's `scores`, of the prompts' `length` `[n]` and of chance; arrays as the module tells.

    `samples`: bootstrap draws of the records, the same ones for each curve. Deterministic. ValueError for arrays
    of another shape, no records, values that are not finite, or `right` outside 0 to 1.
    """
    _check(scores, right, seconds, length)
    rankings = {"routed": scores, "longest": length, "random": np.zeros(len(scores))}
    curves = {way: _curve(ranking, right, seconds, samples, way == "routed") for way, ranking in rankings.items()}
    return TradeOff(
        name,
        len(scores),
        int((~np.isnan(seconds).any(axis=0)).sum()),
        **curves,
        instruct=_point(np.zeros(len(scores)), right, seconds, samples),
        thinking=_point(np.ones(len(scores)), right, seconds, samples),
        oracle=_point((right[1] > right[0]).astype(float), right, seconds, samples),
    )


def trade_offs(
    scores: Values,
    right: Values,
    seconds: Values,
    length: Values,
    families: Sequence[str],
    *,
    samples: int = 1000,
    least: int = 20,
) -> list[TradeOff]:
    """First that of all records, then that of each family with at least `least` records, the largest first.

    `families`: one name a record, "" unnamed. One family alone is not repeated. Else as `trade_off`.
    """
    if len(families) != len(scores):
        raise ValueError(f"expected a family for each of {len(scores)} records, not {len(families)}")
    found = [trade_off(scores, right, seconds, length, samples=samples)]
    names, of, counts = np.unique(np.asarray(families, dtype=object), return_inverse=True, return_counts=True)
    for family in np.argsort(-counts, kind="stable") if len(names) > 1 else []:
        at = of == family
        if counts[family] >= least:
            one = trade_off(
                scores[at], right[:, at], seconds[:, at], length[at], name=names[family] or UNNAMED, samples=samples
            )
            found.append(one)
    return found


def _curve(scores: Values, right: Values, seconds: Values, samples: int, intervals: bool) -> Curve:
    points = [_measure(share_by_score(scores, float(share)), right, seconds) for share in SHARES]
    accuracy = np.asarray([point[0] for point in points])
    timed = points[0][1] is not None
    mean_seconds, p95_seconds = (np.asarray([p[i] for p in points], dtype=float) if timed else None for i in (1, 2))
    drawn = _resample(scores, right, samples)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    draws = []
    if intervals:
        drawn_seconds = _resample(scores, seconds, samples) if timed else [None] * samples
        draws = [_figures(*one) for one in zip(drawn, drawn_seconds, strict=True)]
    values = _figures(accuracy, mean_seconds)
    figures = {name: Figure(value, _interval([draw[name] for draw in draws])) for name, value in values.items()}
    return Curve(accuracy, low, high, mean_seconds, p95_seconds, figures)


def _point(sent: Values, right: Values, seconds: Values, samples: int) -> Point:
    interval = mean_interval(right[0] + sent * (right[1] - right[0]), samples=samples)
    accuracy, mean_seconds, p95_seconds = _measure(sent, right, seconds)
    return Point(float(sent.mean()), accuracy, interval, mean_seconds, p95_seconds)


def _measure(sent: Values, right: Values, seconds: Values) -> tuple[float, float | None, float | None]:
    """Accuracy, mean seconds and their 95th percentile if each record thinks with probability `sent` `[n]`."""
    accuracy = float((right[0] + sent * (right[1] - right[0])).mean())
    known = ~np.isnan(seconds).any(axis=0)
    if not known.any():
        return accuracy, None, None
    seconds, sent = seconds[:, known], sent[known]
    # numpy's own weighted quantiles need numpy 2
    order = np.argsort(seconds, axis=None)
    weight = np.concatenate([1 - sent, sent])[order].cumsum()
    p95 = seconds.ravel()[order][np.searchsorted(weight, 0.95 * weight[-1] - 1e-9)]
    return accuracy, float((seconds[0] + sent * (seconds[1] - seconds[0])).mean()), float(p95)


def _resample(scores: Values, values: Values, samples: int) -> Values:
    """The curve of the mean of `values` `[2, n]` (NaN: left out) for records drawn with replacement: `[samples, k]`.

    Equal scores are shared out, as in `metrics.accuracy_curve`. The draws are those of `metrics.bootstrap_interval`.
    """
    n = len(scores)
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(-scores[order], append=np.inf))  # of each run of equal scores
    known = ~np.isnan(values[:, order]).any(axis=0)
    start, extra = np.where(known, [values[0, order], (values[1] - values[0])[order]], 0.0)
    rng = np.random.default_rng(0)
    curves = np.empty((samples, len(SHARES)))
    for curve in curves:
        times = np.bincount(rng.integers(0, n, n), minlength=n)[order]
        sent = np.concatenate([[0], times.cumsum()[last]])
        gained = np.concatenate([[0.0], (times * extra).cumsum()[last]])
        curve[:] = (times @ start + np.interp(SHARES * n, sent, gained)) / ((times @ known) or np.nan)
    return curves


def _figures(accuracy: Values, mean_seconds: Values | None) -> dict[str, float | None]:
    figures = {
        "area over random": area_over_random_line(accuracy),
        "APGR": apgr(accuracy),
        "CPT 50 %": cpt(accuracy, 0.5),
        "CPT 80 %": cpt(accuracy, 0.8),
    }
    if mean_seconds is not None and np.isnan(mean_seconds).any():  # no timed record was drawn
        mean_seconds = None
    for name, metric in {"AIQ": aiq, "nAUC": nauc, "QNC": qnc}.items():
        figures[name] = None if mean_seconds is None else metric(mean_seconds, accuracy)
    return figures


def _interval(draws: Sequence[float | None]) -> Interval | None:
    defined = [value for value in draws if value is not None]
    if not defined:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)


def _check(scores: Values, right: Values, seconds: Values, length: Values) -> None:
    n = len(scores)
    if not n or scores.shape != (n,) or length.shape != (n,) or right.shape != (2, n) or seconds.shape != (2, n):
        shapes = [array.shape for array in (scores, right, seconds, length)]
        raise ValueError(f"scores [n], right [2, n], seconds [2, n] and length [n] with n > 0 expected, not {shapes}")
    if not np.isfinite(scores).all() or not np.isfinite(length).all() or np.isinf(seconds).any():
        raise ValueError("scores and length must be finite, seconds finite or NaN")
    if not ((right >= 0) & (right <= 1)).all():
        raise ValueError("right must be within 0 and 1")
