"""Evaluate a router on records that it has not seen: ways of choosing the mode, metrics, trade-off curves.

Arrays have one value per record: `right` and `seconds` are `[2, n]` for Instruct and Thinking (seconds are NaN where
unknown), `scores` are gains `[n]`, `length` is the number of characters of the prompts `[n]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.target import PRESETS, Target
from vlroute.decision.tradeoff import TradeoffCurve
from vlroute.learning.calibration import calibration_set
from vlroute.learning.folds import group_of
from vlroute.learning.intervals import Interval, Sampling, marginal_gain
from vlroute.learning.metrics import (
    Values,
    aiq,
    apgr,
    area_over_random,
    area_over_random_line,
    brier,
    cpt,
    ece,
    ece_if_calibrated,
    gain_auc,
    headroom_captured,
    nauc,
    qnc,
    share_by_score,
)
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.records import Outcome, Record, outcomes
from vlroute.types import MODES, Mode, Preset

WITHHELD = ", captions withheld"
#: A topic with fewer records is not evaluated: its figures would mean nothing.
LEAST = 20
DEFAULT_PRICE = Policy().price


@dataclass(frozen=True, slots=True)
class Way:
    """One way of choosing the mode.

    Attributes:
        name: Such as "always instruct".
        share: Share of records sent to Thinking.
        accuracy: Mean accuracy, 0 to 1.
        interval: Its 95 % Wilson interval.
        tokens: Mean tokens per answer, over the records where they are known for both modes; None if there are none.
        seconds: Mean seconds per answer, likewise.
    """

    name: str
    share: float
    accuracy: float
    interval: Interval | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric and its 95 % interval; None where undefined."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of a router.

    Attributes:
        records: Number of records.
        rows: The ways of choosing the mode.
        figures: Metrics by name, in the order of the report.
        covers: What the intervals cover, in sentences.
    """

    records: int
    rows: list[Way]
    figures: dict[str, Figure]
    covers: str


def evaluate(records: Sequence[Record], unseen: OutOfFold, policy: Policy, latency: LatencyModel) -> Evaluation:
    """Compare routing with the baselines.

    Intervals cover the sampling of the records and, if `unseen` is out of fold, the randomness of fitting; see
    `intervals.Sampling`. They do not cover other kinds of requests.

    Args:
        records: Labeled records.
        unseen: Predictions for them. Figures of several seeds are averaged.
        policy: Decides by these predictions.
        latency: Gives the expected seconds of each mode.

    Returns:
        The figures.
    """
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    conditions = {"": unseen.given}
    if any(record.caption for record in records):
        conditions[WITHHELD] = unseen.without_caption
    return compare(
        right,
        {
            name: np.asarray([[(o.p_instruct, o.p_thinking) for o in seed] for seed in p])
            for name, p in conditions.items()
        },
        {name: _sent(predictions, policy, latency) for name, predictions in conditions.items()},
        np.asarray([float(len(record.prompt)) for record in records]),
        (_tokens(records), seconds_of(records, latency)),
        sampling_of(records, unseen),
    )


def compare(
    right: Values,
    p: Mapping[str, Values],
    sent: Mapping[str, Values],
    length: Values,
    costs: tuple[Values, Values],
    sampling: Sampling,
) -> Evaluation:
    """Compare routing with the baselines, on arrays.

    Args:
        right: How right Instruct and Thinking were, `[2, n]`, 0 to 1.
        p: Predicted probabilities by condition, `[seeds, n, 2]`: "" with captions, `WITHHELD` without.
        sent: Share of seeds that send a record to Thinking, `[n]`, by condition.
        length: Characters of the prompts, `[n]`.
        costs: Tokens and seconds of both modes, `[2, n]`, NaN where unknown.
        sampling: How the records were drawn and predicted.

    Returns:
        The figures.
    """
    (instruct, thinking), n = right, right.shape[1]
    gain = thinking - instruct
    routed = sent[""]
    share = float(routed.mean())
    ways = {
        "always instruct": np.zeros(n),
        "always thinking": np.ones(n),
        "random, same share": np.full(n, share),
        "longest prompts, same share": share_by_score(length, share),
        "routed": routed,
    }
    # gain of one more record sent to Thinking, where the share sent depends on the sample
    marginal = {
        "random, same share": float(gain.mean()),
        "longest prompts, same share": marginal_gain(length, gain, share),
    }
    predicted = {"routed", "routed" + WITHHELD}
    if WITHHELD in sent:
        ways["routed" + WITHHELD] = sent[WITHHELD]
    ways["oracle"] = (thinking > instruct).astype(float)
    rows = []
    for name, way in ways.items():
        value = instruct + way * gain
        influence = value + marginal[name] * (routed - way) if name in marginal else value
        learned = learned_part(way, gain) if name in predicted else None
        tokens, seconds = (_mean_cost(way, cost) for cost in costs)
        interval = sampling.share(influence, learned=learned)
        rows.append(Way(name, float(way.mean()), float(value.mean()), interval, tokens, seconds))

    got = instruct + routed * gain
    best = np.maximum(instruct, thinking)
    headroom = headroom_captured(*(float(one.mean()) for one in (got, instruct, thinking, best)))
    figures = {
        "headroom captured": Figure(headroom, sampling.headroom(got, *right, learned=learned_part(routed, gain)))
    }
    for mode, single in zip(MODES, right, strict=True):
        above = got - single
        interval = sampling.difference(above, learned=learned_part(routed, gain))
        figures[f"routed above always {mode}"] = Figure(float(above.mean()), interval)
    for suffix, probabilities in p.items():
        gains = probabilities[:, :, 1] - probabilities[:, :, 0]
        area, auc = (_mean(metric(seed, *right) for seed in gains) for metric in (area_over_random, gain_auc))
        figures["area over random" + suffix] = Figure(area, sampling.area(gains, gain))
        figures["gain AUC" + suffix] = Figure(auc, sampling.gain_auc(gains, gain))
        for head, mode in enumerate(MODES):
            mine, correct = probabilities[:, :, head], right[head]
            error = np.mean((mine - correct) ** 2, axis=0)
            learned = np.mean([2 * (seed - seed.mean()) * (correct - correct.mean()) for seed in mine], axis=0)
            figures[f"ECE {mode}{suffix}"] = Figure(_mean(ece(seed, correct) for seed in mine), None)
            figures[f"chance level of ECE {mode}{suffix}"] = Figure(_mean(map(ece_if_calibrated, mine)), None)
            figures[f"Brier {mode}{suffix}"] = Figure(
                _mean(brier(seed, correct) for seed in mine), sampling.share(error, learned=learned)
            )
    fixed = Sampling(n, sampling.groups)  # these rankings are not learned
    figures["area of the longest prompts"] = Figure(area_over_random(length, *right), fixed.area(length[None], gain))
    figures["area of the oracle"] = Figure(area_over_random(gain, *right), fixed.oracle_area(gain))
    return Evaluation(n, rows, figures, sampling.covers)


def sampling_of(records: Sequence[Record], unseen: OutOfFold) -> Sampling:
    """Describe how the records were drawn and predicted.

    Args:
        records: The records.
        unseen: Their predictions.

    Returns:
        What intervals are computed from.
    """
    groups = [group_of(record) for record in records] if unseen.together == "text" else None
    return Sampling(len(records), groups, unseen.folds)


def learned_part(sent: Values, gain: Values) -> Values:
    """Compute the part of the routed accuracy that depends on which records are sent to Thinking.

    Args:
        sent: Share of seeds that send each record to Thinking, `[n]`.
        gain: Thinking minus Instruct, `[n]`.

    Returns:
        Influence values, `[n]`.
    """
    return np.asarray((sent - sent.mean()) * (gain - gain.mean()))


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _sent(predictions: Sequence[Sequence[Prediction]], policy: Policy, latency: LatencyModel) -> Values:
    """The share of seeds that send each record to Thinking, `[n]`."""
    modes = [[policy.decide(one, latency).mode for one in seed] for seed in predictions]
    return np.asarray(np.mean(np.asarray(modes) == "thinking", axis=0))


def _mean_cost(sent: Values, cost: Values) -> float | None:
    """Mean of `cost` `[2, n]` (NaN: unknown) of the mode chosen, over the records where both are known."""
    known = ~np.isnan(cost).any(axis=0)
    return float((cost[0] + sent * (cost[1] - cost[0]))[known].mean()) if known.any() else None


def _tokens(records: Sequence[Record]) -> Values:
    return np.asarray(
        [[np.nan if o.tokens is None else float(o.tokens) for o in outcomes(records, mode)] for mode in MODES]
    )


def seconds_of(records: Sequence[Record], latency: LatencyModel) -> Values:
    """Return the seconds of both modes.

    Args:
        records: The records.
        latency: Gives the seconds of outcomes that have only tokens.

    Returns:
        `[2, n]`, NaN where neither is known.
    """

    def seconds(mode: Mode, outcome: Outcome) -> float:
        if outcome.seconds is not None:
            return outcome.seconds
        return np.nan if outcome.tokens is None else latency.expected(mode, outcome.tokens)

    return np.asarray([[seconds(mode, o) for o in outcomes(records, mode)] for mode in MODES])


#: Shares sent to Thinking at which curves are computed: 0, 1 … 100 %.
SHARES: Values = np.linspace(0, 1, 101)
ALL = "all records"
UNNAMED = "unnamed"


@dataclass(frozen=True, slots=True)
class Point:
    """One way of choosing the mode, as a point beside the curves.

    Attributes:
        share: Share of records sent to Thinking.
        accuracy: Mean accuracy, 0 to 1.
        interval: Its 95 % interval.
        mean_seconds: Mean seconds per answer, over the records whose seconds are known for both modes; None if there
            are none.
        p95_seconds: Shortest time within which at least 95 % of these answers are complete.
    """

    share: float
    accuracy: float
    interval: Interval | None
    mean_seconds: float | None
    p95_seconds: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """One ranking of the records, evaluated at each of `SHARES` `[k]`.

    Attributes:
        accuracy: Mean accuracy, `[k]`.
        low: Lower end of its 95 % band, `[k]`.
        high: Upper end, `[k]`.
        mean_seconds: As in `Point`, `[k]`; None if no seconds are known.
        p95_seconds: Likewise.
        figures: Metrics of the whole curve by name. Only the area of the router has an interval: the other metrics
            divide by a gap that may be 0, or take a minimum or a hull of a noisy curve, and no interval is known that
            is reliable on few records.
    """

    accuracy: Values
    low: Values
    high: Values
    mean_seconds: Values | None
    p95_seconds: Values | None
    figures: dict[str, Figure]


@dataclass(frozen=True, slots=True)
class TradeOff:
    """Curves of accuracy against the share sent to Thinking and against seconds.

    Attributes:
        name: The topic, or `ALL`.
        records: Number of records.
        timed: Number of records whose seconds are known for both modes.
        routed: Curve of the router.
        longest: The longest prompts think first.
        random: Records chosen at random, in expectation.
        instruct: Always Instruct.
        thinking: Always Thinking.
        oracle: Thinks exactly where Thinking is more right.
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
    """Compute the curves of a router, of the longest prompts and of chance.

    Args:
        scores: Gains that the router predicts, `[n]`.
        right: How right Instruct and Thinking were, `[2, n]`, 0 to 1.
        seconds: Seconds of both modes, `[2, n]`, NaN where unknown.
        length: Characters of the prompts, `[n]`.
        name: Name of the curves.
        sampling: How the records were drawn and predicted; by default independently, by a given router.

    Returns:
        The curves.

    Raises:
        ValueError: Arrays of another shape, no records, values that are not finite, or `right` outside 0 to 1.
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
    topics: Sequence[str],
    *,
    sampling: Sampling | None = None,
) -> list[TradeOff]:
    """Compute the curves of all records and of each topic.

    Args:
        scores: As in `trade_off`.
        right: As in `trade_off`.
        seconds: As in `trade_off`.
        length: As in `trade_off`.
        topics: Topic of each record; "" is shown as unnamed.
        sampling: As in `trade_off`.

    Returns:
        First the curves of all records, then those of each topic with at least `LEAST` records, the largest first. A
        single topic is not repeated.

    Raises:
        ValueError: As in `trade_off`, or the number of topics is wrong.
    """
    if len(topics) != len(scores):
        raise ValueError(f"expected a topic for each of {len(scores)} records, not {len(topics)}")
    sampling = sampling or Sampling(len(scores))
    found = [trade_off(scores, right, seconds, length, sampling=sampling)]
    for name, places in by_topic(topics).items():
        at = np.isin(np.arange(len(scores)), places)
        one = trade_off(scores[at], right[:, at], seconds[:, at], length[at], name=name, sampling=sampling.of(at))
        found.append(one)
    return found


@dataclass(frozen=True, slots=True)
class Mark:
    """An operating point that figures mark beside the curves.

    Attributes:
        name: The preset; "" for a price that was set.
        price: Its price.
        point: What the price leads to on the records.
        in_force: Whether the router decides by it.
    """

    name: Preset | Literal[""]
    price: float
    point: Point
    in_force: bool = False


def operating_marks(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    latency: LatencyModel,
    in_force: float | Preset = DEFAULT_PRICE,
    *,
    sampling: Sampling | None = None,
) -> list[Mark]:
    """Compute the operating points of all presets and of the price in force.

    A request thinks if its gain is greater than the price times its expected extra seconds. The curves of `trade_off`
    sort by the gain alone, so a mark may lie beside them.

    Args:
        records: The records.
        predictions: Predictions for them by a router that had not seen them.
        latency: Gives the expected seconds.
        in_force: The price or preset by which the router decides.
        sampling: How the records were drawn and predicted; by default independently, by a given router.

    Returns:
        The presets in the order of `PRESETS`, then the price, if one was set.

    Raises:
        SettingsError: The price or preset is invalid.
    """
    curve = TradeoffCurve(calibration_set(records, predictions, limit=None), latency)
    prices: dict[Preset | Literal[""], float] = {
        preset: Target(preset=preset).resolve(curve).price for preset in PRESETS
    }
    if isinstance(in_force, str):
        Target(preset=in_force)  # refuses an unknown one
    else:
        prices[""] = in_force
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    seconds, sampling = seconds_of(records, latency), sampling or Sampling(len(records))
    marks = []
    for name, price in prices.items():
        sent = _sent([predictions], Policy(price, min_coverage=0), latency)
        point = _point(sent, right, seconds, sampling, predicted=True)
        marks.append(Mark(name, price, point, name == (in_force if isinstance(in_force, str) else "")))
    return marks


def by_topic(topics: Sequence[str]) -> dict[str, list[int]]:
    """Group records by topic.

    Args:
        topics: Topic of each record; "" is shown as unnamed.

    Returns:
        Indices of the records of each topic with at least `LEAST`, the largest first; none for a single topic.
    """
    places: dict[str, list[int]] = {}
    for index, topic in enumerate(topics):
        places.setdefault(topic or UNNAMED, []).append(index)
    ordered = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))
    return {name: at for name, at in ordered if len(at) >= LEAST and len(places) > 1}


def interval_at(
    scores: Values, gain: Values, instruct: Values, share: float, sampling: Sampling, predicted: bool
) -> Interval | None:
    """Compute the 95 % interval of the accuracy if the records with the highest scores think.

    Args:
        scores: `[n]`.
        gain: Thinking minus Instruct, `[n]`.
        instruct: How right Instruct was, `[n]`.
        share: Share of records that think.
        sampling: How the records were drawn and predicted.
        predicted: Whether a router predicted the scores, so that they depend on the randomness of fitting.

    Returns:
        The interval; None if it is undefined.
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


def _point(sent: Values, right: Values, seconds: Values, sampling: Sampling, *, predicted: bool = False) -> Point:
    gain = right[1] - right[0]
    interval = sampling.share(right[0] + sent * gain, learned=learned_part(sent, gain) if predicted else None)
    accuracy, mean_seconds, p95_seconds = _measure(sent, right, seconds)
    return Point(float(sent.mean()), accuracy, interval, mean_seconds, p95_seconds)


def _measure(sent: Values, right: Values, seconds: Values) -> tuple[float, float | None, float | None]:
    """Accuracy, mean seconds and their 95th percentile if each record thinks with probability `sent` `[n]`."""
    accuracy = float((right[0] + sent * (right[1] - right[0])).mean())
    known = ~np.isnan(seconds).any(axis=0)
    if not known.any():
        return accuracy, None, None
    seconds, sent = seconds[:, known], sent[known]
    # unlike numpy.quantile with weights, this tolerates rounding errors of their sum
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
