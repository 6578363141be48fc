"""What another router artifact would have changed, from the decisions that a shadow has stored.

Three kinds of figures, from the weakest to the strongest evidence:

* what the two artifacts expect, on all requests; each artifact is a biased judge of its own decisions
* ratings of users, where the outcome of both decisions is known; users choose what they rate
* the random sample of requests that were answered in both modes
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from vlroute.decision.wilson import NORMAL_95
from vlroute.errors import InputError
from vlroute.learning.intervals import Interval, Sampling, Values
from vlroute.store import ShadowedAnswer, Store, counts_for
from vlroute.types import MODES, Mode, ModelIdentity

#: How the decision of the shadow differs.
SAME, TO_THINKING, TO_INSTRUCT = DIRECTIONS = ("same mode", "instruct → thinking", "thinking → instruct")
ALL = "all requests"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval; both None where unknown."""

    value: float | None
    interval: Interval | None


UNKNOWN = Estimate(None, None)


@dataclass(frozen=True, slots=True)
class Contrast:
    """One quantity under both artifacts.

    Attributes:
        used: With the artifact in force.
        shadow: With the shadow.
        difference: Shadow minus artifact in force, from the same requests.
    """

    used: Estimate
    shadow: Estimate
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Changes:
    """The requests of one direction.

    Attributes:
        requests: Their number.
        share: Their share of all requests.
        accuracy: Expected accuracy, by the artifact whose expectation it is ("used" and "shadow").
        seconds: Expected seconds of an answer, likewise.
    """

    requests: int
    share: Estimate
    accuracy: dict[str, Contrast]
    seconds: dict[str, Contrast]


@dataclass(frozen=True, slots=True)
class Rated:
    """The requests of one direction with feedback.

    Attributes:
        requests: Number of requests whose outcome is known for the artifact in force.
        accuracy: Their accuracy.
        both: Number of requests whose outcome is known for both artifacts.
        contrast: Accuracy on these. For all requests, only the difference: that of each direction, weighted by the
            share of the direction. Unknown if a direction has no such request.
    """

    requests: int
    accuracy: Estimate
    both: int
    contrast: Contrast


@dataclass(frozen=True, slots=True)
class Sample:
    """The requests that were answered in both modes, weighted by the inverse of their probability.

    Attributes:
        drawn: Number of requests that were drawn.
        labeled: How many of them were answered in the other mode. The others were skipped or failed.
        agreement: Share of requests to which both modes gave the same answer.
        seconds: Measured seconds of an answer.
        known: Number of requests whose correctness is known for both artifacts.
        accuracy: Accuracy on these.
    """

    drawn: int
    labeled: int
    agreement: Estimate
    seconds: Contrast
    known: int
    accuracy: Contrast


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What `evaluate_shadow` found.

    Attributes:
        used: Fingerprint of the artifact in force; empty if there was none.
        shadow: Fingerprint of the shadow.
        requests: Number of requests on which both decided.
        since: Time of the first one, in seconds since 1970, UTC.
        until: Time of the last one.
        other_artifacts: Number of requests that were left out because one of the two artifacts or the model was
            another one.
        changes: Figures by direction, and for all requests.
        rated: Likewise, on requests with feedback.
        sample: The requests that were answered in both modes.
    """

    used: str
    shadow: str
    requests: int
    since: float
    until: float
    other_artifacts: int
    changes: dict[str, Changes]
    rated: dict[str, Rated]
    sample: Sample

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values.

        Returns:
            Values that can be written as JSON.
        """
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Row:
    """A request with the correctness of both choices, None where unknown."""

    answer: ShadowedAnswer
    right: dict[Mode, float | None]

    @property
    def direction(self) -> str:
        used, shadow = self.answer.decision.used.mode, self.answer.decision.shadow.mode
        return SAME if used == shadow else TO_THINKING if shadow == "thinking" else TO_INSTRUCT

    @property
    def outcomes(self) -> tuple[float | None, float | None]:
        """Correctness of the choice in force and of the shadow's."""
        decision = self.answer.decision
        return self.right[decision.used.mode], self.right[decision.shadow.mode]

    @property
    def weight(self) -> float:
        label = self.answer.label
        return 1 / label.probability if label is not None else 1.0


def evaluate_shadow(store: Store) -> ShadowReport:
    """Compare the artifact in force with its shadow, on the requests that a store holds.

    If other artifacts or another model were used before, only the requests of the last ones count.

    Args:
        store: The store of the router.

    Returns:
        The figures.

    Raises:
        InputError: The store holds no decisions of a shadow.
        StoreError: The store cannot be read.
    """
    found = list(store.shadowed())
    if not found:
        raise InputError(
            "the store holds no decisions of a shadow; answer requests with Router.from_pretrained(shadow=…, store=…) "
            "or vlroute serve --shadow FOLDER --store FILE first"
        )
    last, model = _artifacts(found[-1]), found[-1].model
    kept = [one for one in found if _artifacts(one) == last and counts_for(model, one.model)]
    rows = _with_outcomes(store, kept, model)
    groups = {ALL: rows, **{name: [row for row in rows if row.direction == name] for name in DIRECTIONS}}
    changes = {name: _changes(some, rows) for name, some in groups.items()}
    rated = {name: _rated(some) for name, some in groups.items()}
    # users may rate more requests of one direction, so the mean over all ratings would mean nothing
    rated[ALL] = replace(rated[ALL], contrast=Contrast(UNKNOWN, UNKNOWN, _gain(changes, rated)))
    rated[SAME] = replace(rated[SAME], contrast=replace(rated[SAME].contrast, difference=Estimate(0.0, None)))
    return ShadowReport(
        *last, len(kept), kept[0].decision.created, kept[-1].decision.created, len(found) - len(kept),
        changes, rated, _sample(rows),
    )  # fmt: skip


def _artifacts(one: ShadowedAnswer) -> tuple[str, str]:
    return one.decision.used.artifact, one.decision.shadow.artifact


def _with_outcomes(store: Store, answers: Sequence[ShadowedAnswer], model: ModelIdentity | None) -> list[_Row]:
    """Find the correctness of each mode: rated for this request, or that of an equal answer of the same model."""
    ratings: dict[tuple[str, Mode], list[float]] = {}
    for one in store.records():
        if counts_for(model, one.model):
            ratings.setdefault((one.request, one.mode), []).append(float(one.outcome.correct))
    rows = []
    for answer in answers:
        right: dict[Mode, float | None] = {
            mode: fmean(found) if (found := ratings.get((answer.request, mode))) else None for mode in MODES
        }
        if (label := answer.label) is not None and label.same and right[label.mode] is None:
            right[label.mode] = answer.correct
        rows.append(_Row(answer, right))
    return rows


def _changes(rows: Sequence[_Row], everything: Sequence[_Row]) -> Changes:
    n = len(everything)
    at = np.arange(n) < len(rows)  # an interval does not depend on the order
    share = Estimate(len(rows) / n, Sampling(n).share(at.astype(float)) if len(rows) < n else None)
    accuracy, seconds = {}, {}
    for judge in ("used", "shadow"):
        accuracy[judge] = _expected(rows, judge, "p")
        seconds[judge] = _expected(rows, judge, "seconds")
    return Changes(len(rows), share, accuracy, seconds)


def _expected(rows: Sequence[_Row], judge: str, quantity: str) -> Contrast:
    decisions = [row.answer.decision for row in rows]
    used, shadow = (
        [getattr(getattr(one, judge), f"{quantity}_{getattr(one, side).mode}") for one in decisions]
        for side in ("used", "shadow")
    )
    return _contrast(used, shadow, [row.answer.request for row in rows], shares=quantity == "p")


def _rated(rows: Sequence[_Row]) -> Rated:
    known = [row for row in rows if row.outcomes[0] is not None]
    both = [row for row in known if row.outcomes[1] is not None]
    used = np.asarray([row.outcomes[0] for row in known], dtype=float)
    groups = [row.answer.request for row in known]
    accuracy = Estimate(float(used.mean()), Sampling(len(known), groups).share(used)) if known else UNKNOWN
    return Rated(len(known), accuracy, len(both), _accuracies(both))


def _accuracies(rows: Sequence[_Row], weights: Values | None = None) -> Contrast:
    used, shadow = ([float(row.outcomes[side] or 0.0) for row in rows] for side in (0, 1))
    return _contrast(used, shadow, [row.answer.request for row in rows], weights, shares=True, outcomes=True)


def _contrast(
    used: Iterable[float],
    shadow: Iterable[float],
    groups: Sequence[str],
    weights: Values | None = None,
    shares: bool = False,
    outcomes: bool = False,
) -> Contrast:
    """Means of both and of their difference, with intervals.

    `shares`: the values are 0 to 1. `outcomes`: they are correctness, so that few of them may all be equal by chance.
    Equal requests count as one draw. With weights, each value becomes its influence on the weighted mean, so that the
    mean of all influences is the weighted mean.
    """
    first, second = np.asarray(list(used), dtype=float), np.asarray(list(shadow), dtype=float)
    n = len(first)
    if not n:
        return Contrast(UNKNOWN, UNKNOWN, UNKNOWN)
    weights = np.ones(n) if weights is None else weights
    sampling = Sampling(n, groups)

    def influence(values: Values) -> Values:
        mean = (weights * values).sum() / weights.sum()
        return np.asarray(mean + weights * n / weights.sum() * (values - mean))

    def estimate(values: Values, interval: Callable[[Values], Interval | None]) -> Estimate:
        parts = influence(values)
        return Estimate(float(parts.mean()), interval(parts))

    one = sampling.share if shares else sampling.positive_mean
    difference = estimate(second - first, sampling.difference if outcomes else sampling.mean)
    return Contrast(estimate(first, one), estimate(second, one), difference)


def _gain(changes: dict[str, Changes], rated: dict[str, Rated]) -> Estimate:
    """The differences by direction, weighted by their shares. Requests of the same mode differ by 0."""
    parts = [(changes[name], rated[name].contrast.difference) for name in (TO_THINKING, TO_INSTRUCT)]
    value, variance = 0.0, 0.0
    for change, difference in parts:
        if not change.requests:
            continue
        if difference.value is None or difference.interval is None:
            return UNKNOWN
        share = change.share.value or 0.0
        value += share * difference.value
        half = (difference.interval[1] - difference.interval[0]) / 2 / NORMAL_95
        variance += (share * half) ** 2
    half = NORMAL_95 * float(np.sqrt(variance))
    return Estimate(value, (value - half, value + half))


def _sample(rows: Sequence[_Row]) -> Sample:
    labeled = [row for row in rows if row.answer.label is not None]
    known = [row for row in labeled if None not in row.outcomes]
    weights = np.asarray([row.weight for row in labeled])
    seconds: dict[str, list[float]] = {"used": [], "shadow": []}
    same = []
    for row in labeled:
        answer, label = row.answer, row.answer.label
        assert label is not None
        same.append(float(label.same))
        for name, times in seconds.items():
            mode = getattr(answer.decision, name).mode
            times.append(label.seconds if mode == label.mode else answer.seconds)
    groups = [row.answer.request for row in labeled]
    return Sample(
        sum(row.answer.decision.drawn for row in rows),
        len(labeled),
        _contrast(same, same, groups, weights, shares=True).used,
        _contrast(seconds["used"], seconds["shadow"], groups, weights),
        len(known),
        _accuracies(known, np.asarray([row.weight for row in known])),
    )
