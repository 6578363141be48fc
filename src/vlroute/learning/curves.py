"""Trade-off curves: what accuracy, and how long a wait, each share of requests sent to Thinking buys.

Arrays have one column per record: `scores` `[n]`, the higher the sooner a record goes to Thinking; `right` `[2, n]`,
how right Instruct and Thinking were, 0 to 1; `seconds` `[2, n]`, how long they took, NaN where unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.learning.curve_metrics import aiq, apgr, area_over_random_line, cpt, nauc, qnc
from vlroute.learning.evaluate import Figure, learned_part
from vlroute.learning.intervals import Interval, Sampling, marginal_gain
from vlroute.learning.metrics import Values, share_by_score

#: Where a curve is taken: 0, 1 … 100 % to Thinking.
SHARES: Values = np.linspace(0, 1, 101)
ALL = "all records"
UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Point:
    """One way of choosing the mode. `share` to Thinking and `accuracy` 0 to 1, its 95 % `interval`.

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
    """One way of ranking, at each of `SHARES` `[k]`: `accuracy`, its 95 % band `low` to `high`, seconds.

    `mean_seconds`, `p95_seconds`: as in `Point`, `[k]` or None. `figures`: the metrics of `curve_metrics` by name; the
    area of the router has a 95 % interval. The others divide by a gap that may be 0, or take a minimum or a hull of a
    noisy curve: no interval is known that holds its level on few records.
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
    scores: Values,
    right: Values,
    seconds: Values,
    length: Values,
    *,
    name: str = ALL,
    sampling: Sampling | None = None,
) -> TradeOff:
    """Curves of the router's `scores`, of the prompts' `length` `[n]` and of chance; arrays as the module tells.

    `sampling`: how the records were drawn and predicted; by default independently, by a given router. ValueError for
    arrays of another shape, no records, values that are not finite, or `right` outside 0 to 1.
    """
    _check(scores, right, seconds, length)
    sampling = sampling or Sampling(len(scores))
    rankings = {"routed": scores, "longest": length, "random": np.zeros(len(scores))}
    curves = {way: _curve(ranking, right, seconds, sampling, way == "routed") for way, ranking in rankings.items()}
    return TradeOff(
        name,
        len(scores),
        int((~np.isnan(seconds).any(axis=0)).sum()),
        **curves,
        instruct=_point(np.zeros(len(scores)), right, seconds, sampling),
        thinking=_point(np.ones(len(scores)), right, seconds, sampling),
        oracle=_point((right[1] > right[0]).astype(float), right, seconds, sampling),
    )


def trade_offs(
    scores: Values,
    right: Values,
    seconds: Values,
    length: Values,
    families: Sequence[str],
    *,
    sampling: Sampling | None = None,
    least: int = 20,
) -> list[TradeOff]:
    """First that of all records, then that of each family with at least `least` records, the largest first.

    `families`: one name a record, "" unnamed. One family alone is not repeated. Else as `trade_off`.
    """
    if len(families) != len(scores):
        raise ValueError(f"expected a family for each of {len(scores)} records, not {len(families)}")
    sampling = sampling or Sampling(len(scores))
    found = [trade_off(scores, right, seconds, length, sampling=sampling)]
    names, of, counts = np.unique(np.asarray(families, dtype=object), return_inverse=True, return_counts=True)
    for family in np.argsort(-counts, kind="stable") if len(names) > 1 else []:
        at = of == family
        if counts[family] >= least:
            name = names[family] or UNNAMED
            one = trade_off(scores[at], right[:, at], seconds[:, at], length[at], name=name, sampling=sampling.of(at))
            found.append(one)
    return found


def interval_at(
    scores: Values, gain: Values, instruct: Values, share: float, sampling: Sampling, predicted: bool
) -> Interval | None:
    """95 % interval of the accuracy when the top `share` of the `scores` thinks; arrays `[n]`.

    `predicted`: whether a router made the scores, so that they take part in the randomness of fitting.
    """
    sent = share_by_score(scores, share)
    influence = instruct + sent * gain + marginal_gain(scores, gain, share) * (share - sent)
    return sampling.share(influence, learned=learned_part(sent, gain) if predicted else None)


def _curve(scores: Values, right: Values, seconds: Values, sampling: Sampling, predicted: bool) -> Curve:
    gain = right[1] - right[0]
    sent = [share_by_score(scores, float(share)) for share in SHARES]
    points = [_measure(one, right, seconds) for one in sent]
    accuracy = np.asarray([point[0] for point in points])
    timed = points[0][1] is not None
    mean_seconds, p95_seconds = (np.asarray([p[i] for p in points], dtype=float) if timed else None for i in (1, 2))
    bands = [interval_at(scores, gain, right[0], float(share), sampling, predicted) for share in SHARES]
    low, high = np.asarray([(np.nan, np.nan) if band is None else band for band in bands]).T
    figures = {name: Figure(value, None) for name, value in _figures(accuracy, mean_seconds).items()}
    if predicted:
        area = figures["area over random"].value
        figures["area over random"] = Figure(area, sampling.area(scores[None], gain))
    return Curve(accuracy, low, high, mean_seconds, p95_seconds, figures)


def _point(sent: Values, right: Values, seconds: Values, sampling: Sampling) -> Point:
    interval = sampling.share(right[0] + sent * (right[1] - right[0]))
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


def _figures(accuracy: Values, mean_seconds: Values | None) -> dict[str, float | None]:
    figures = {
        "area over random": area_over_random_line(accuracy),
        "APGR": apgr(accuracy),
        "CPT 50 %": cpt(accuracy, 0.5),
        "CPT 80 %": cpt(accuracy, 0.8),
    }
    for name, metric in {"AIQ": aiq, "nAUC": nauc, "QNC": qnc}.items():
        figures[name] = None if mean_seconds is None else metric(mean_seconds, accuracy)
    return figures


def _check(scores: Values, right: Values, seconds: Values, length: Values) -> None:
    n = len(scores)
    if not n or scores.shape != (n,) or length.shape != (n,) or right.shape != (2, n) or seconds.shape != (2, n):
        shapes = [array.shape for array in (scores, right, seconds, length)]
        raise ValueError(f"scores [n], right [2, n], seconds [2, n] and length [n] with n > 0 expected, not {shapes}")
    if not np.isfinite(scores).all() or not np.isfinite(length).all() or np.isinf(seconds).any():
        raise ValueError("scores and length must be finite, seconds finite or NaN")
    if not ((right >= 0) & (right <= 1)).all():
        raise ValueError("right must be within 0 and 1")
