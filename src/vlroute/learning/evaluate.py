"""How good is a router on records it has not seen? Every figure rests on out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.decision.classifier import Prediction
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Policy
from vlroute.learning.cross_fit import Unseen
from vlroute.learning.metrics import (
    Indices,
    Values,
    area_over_random,
    bootstrap_interval,
    brier,
    ece,
    gain_auc,
    headroom_captured,
    mean_interval,
    share_by_score,
)
from vlroute.learning.records import Outcome, Record, outcomes
from vlroute.modes import MODES, Mode

Interval = tuple[float, float]

WITHHELD = ", captions withheld"


@dataclass(frozen=True, slots=True)
class Row:
    """One way of choosing the mode. `share` sent to Thinking, `accuracy` 0 to 1 with its 95 % interval.

    `tokens`, `seconds`: means an answer, over the records where they are known for both modes; None if there
    are none.
    """

    name: str
    share: float
    accuracy: float
    interval: Interval | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric with its 95 % interval; None where it is undefined."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Everything the report tells. `figures` by name, in the order to show them; docs/decision.md explains each."""

    records: int
    rows: list[Row]
    figures: dict[str, Figure]


def evaluate(
    records: Sequence[Record], unseen: Unseen, policy: Policy, pace: Pace, *, samples: int = 1000
) -> Evaluation:
    """Compare routing by `policy` at `pace` with the baselines. Figures of several seeds are averaged.

    Intervals resample the records `samples` times; they say nothing about other kinds of requests.
    """
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    instruct, thinking = right
    length = np.asarray([float(len(record.prompt)) for record in records])
    routed = _sent(unseen.given, policy, pace)
    share = float(routed.mean())
    ways = {
        "always instruct": np.zeros(len(records)),
        "always thinking": np.ones(len(records)),
        "random, same share": np.full(len(records), share),
        "longest prompts, same share": share_by_score(length, share),
        "routed": routed,
    }
    conditions = {"": unseen.given}
    if any(record.caption for record in records):
        conditions[WITHHELD] = unseen.without_caption
        ways["routed" + WITHHELD] = _sent(unseen.without_caption, policy, pace)
    ways["oracle"] = (thinking > instruct).astype(float)
    costs = _tokens(records), seconds_of(records, pace)
    rows = [_row(name, sent, right, costs, samples) for name, sent in ways.items()]

    statistics = {"headroom captured": _headroom(routed, right)}
    for suffix, predictions in conditions.items():
        p = np.asarray([[(one.p_instruct, one.p_thinking) for one in seed] for seed in predictions])
        gains = p[:, :, 1] - p[:, :, 0]
        statistics["area over random" + suffix] = _ranking(area_over_random, gains, right)
        statistics["gain AUC" + suffix] = _ranking(gain_auc, gains, right)
        for head, mode in enumerate(MODES):
            statistics[f"ECE {mode}{suffix}"] = _calibration(ece, p[:, :, head], right[head])
            statistics[f"Brier {mode}{suffix}"] = _calibration(brier, p[:, :, head], right[head])
    statistics["area of the longest prompts"] = _ranking(area_over_random, length[None], right)
    statistics["area of the oracle"] = _ranking(area_over_random, (thinking - instruct)[None], right)
    everything = np.arange(len(records))
    figures = {
        name: Figure(statistic(everything), bootstrap_interval(statistic, len(records), samples=samples))
        for name, statistic in statistics.items()
    }
    return Evaluation(len(records), rows, figures)


Statistic = Callable[[Indices], float | None]


def _ranking(metric: Callable[[Values, Values, Values], float | None], scores: Values, right: Values) -> Statistic:
    """`metric` of each row of `scores` `[seeds, n]`, averaged."""
    return lambda at: _mean(metric(seed[at], right[0, at], right[1, at]) for seed in scores)


def _calibration(metric: Callable[[Values, Values], float], p: Values, correct: Values) -> Statistic:
    """`metric` of each row of `p` `[seeds, n]`, averaged."""
    return lambda at: _mean(metric(seed[at], correct[at]) for seed in p)


def _headroom(sent: Values, right: Values) -> Statistic:
    def statistic(at: Indices) -> float | None:
        instruct, thinking = right[:, at]
        router = instruct + sent[at] * (thinking - instruct)
        return headroom_captured(
            float(router.mean()),
            float(instruct.mean()),
            float(thinking.mean()),
            float(np.maximum(instruct, thinking).mean()),
        )

    return statistic


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _sent(predictions: list[list[Prediction]], policy: Policy, pace: Pace) -> Values:
    """The share of seeds that send each record to Thinking, `[n]`."""
    modes = [[policy.decide(one, pace).mode for one in seed] for seed in predictions]
    return np.asarray(np.mean(np.asarray(modes) == "thinking", axis=0))


def _row(name: str, sent: Values, right: Values, costs: tuple[Values, Values], samples: int) -> Row:
    value = right[0] + sent * (right[1] - right[0])
    interval = mean_interval(value, samples=samples)
    tokens, seconds = (_mean_cost(sent, cost) for cost in costs)
    return Row(name, float(sent.mean()), float(value.mean()), interval, tokens, seconds)


def _mean_cost(sent: Values, cost: Values) -> float | None:
    """Mean of `cost` `[2, n]` (NaN: unknown) of the mode chosen, over the records where both are known."""
    known = ~np.isnan(cost).any(axis=0)
    return float((cost[0] + sent * (cost[1] - cost[0]))[known].mean()) if known.any() else None


def _tokens(records: Sequence[Record]) -> Values:
    return np.asarray(
        [[np.nan if o.tokens is None else float(o.tokens) for o in outcomes(records, mode)] for mode in MODES]
    )


def seconds_of(records: Sequence[Record], pace: Pace) -> Values:
    """As recorded; where only the tokens are known, what they take at `pace`."""

    def seconds(mode: Mode, outcome: Outcome) -> float:
        if outcome.seconds is not None:
            return outcome.seconds
        return np.nan if outcome.tokens is None else pace.expected(mode, outcome.tokens)

    return np.asarray([[seconds(mode, o) for o in outcomes(records, mode)] for mode in MODES])
