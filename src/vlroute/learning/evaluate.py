"""How good is a router on records it has not seen? Every figure rests on out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.decision.classifier import Prediction
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Policy
from vlroute.learning.cross_fit import Unseen
from vlroute.learning.design import group_of
from vlroute.learning.intervals import Interval, Sampling, marginal_gain
from vlroute.learning.metrics import (
    Values,
    area_over_random,
    brier,
    ece,
    ece_if_calibrated,
    gain_auc,
    headroom_captured,
    share_by_score,
)
from vlroute.learning.records import Outcome, Record, outcomes
from vlroute.modes import MODES, Mode

WITHHELD = ", captions withheld"


@dataclass(frozen=True, slots=True)
class Row:
    """One way of choosing the mode. `share` sent to Thinking, `accuracy` 0 to 1 with its 95 % (Wilson) interval.

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
    """Everything the report tells. `figures` by name, in the order to show them; docs/decision.md explains each.

    `covers`: what the intervals cover, in sentences.
    """

    records: int
    rows: list[Row]
    figures: dict[str, Figure]
    covers: str


def evaluate(records: Sequence[Record], unseen: Unseen, policy: Policy, pace: Pace) -> Evaluation:
    """Compare routing by `policy` at `pace` with the baselines. Figures of several seeds are averaged.

    Intervals cover the sampling of the records and, where `unseen` is out of fold, the randomness of fitting; see
    `intervals.Sampling`. They say nothing about other kinds of requests.
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
        {name: _sent(predictions, policy, pace) for name, predictions in conditions.items()},
        np.asarray([float(len(record.prompt)) for record in records]),
        (_tokens(records), seconds_of(records, pace)),
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
    """What `evaluate` does, on arrays.

    Args:
        right: How right Instruct and Thinking were, `[2, n]`, 0 to 1.
        p: Predicted probabilities by condition, `[seeds, n, 2]`: "" as the records are, `WITHHELD` without caption.
        sent: The share of seeds that send a record to Thinking, `[n]`, by condition.
        length: Characters of the prompts, `[n]`.
        costs: Tokens and seconds of both modes, `[2, n]`, NaN where unknown.
        sampling: How the records were drawn and predicted.

    Returns:
        All rows and figures.
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
    # what one more record that is sent to Thinking gains, where the share sent depends on the sample
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
        rows.append(Row(name, float(way.mean()), float(value.mean()), interval, tokens, seconds))

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


def sampling_of(records: Sequence[Record], unseen: Unseen) -> Sampling:
    """How the records were drawn and predicted, for intervals."""
    groups = [group_of(record) for record in records] if unseen.together == "text" else None
    return Sampling(len(records), groups, unseen.folds)


def learned_part(sent: Values, gain: Values) -> Values:
    """The part of the routed accuracy that rests on which records are sent to Thinking, `[n]`."""
    return np.asarray((sent - sent.mean()) * (gain - gain.mean()))


def _mean(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _sent(predictions: list[list[Prediction]], policy: Policy, pace: Pace) -> Values:
    """The share of seeds that send each record to Thinking, `[n]`."""
    modes = [[policy.decide(one, pace).mode for one in seed] for seed in predictions]
    return np.asarray(np.mean(np.asarray(modes) == "thinking", axis=0))


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
