"""The difference in accuracy between two artifacts, at equal seconds, from ratings of single answers.

Both artifacts decide on the same recent requests. They differ only where they choose different modes, so the difference
is the sum over both directions (Instruct to Thinking, and back) of the share of the direction times the difference
between the modes there. The shares are known from all requests. The accuracy of a mode in a direction is the mean of
its ratings there, weighted by their inverse propensity (Hájek 1971). Wilson's intervals of these means are combined by
the method of variance estimates recovery (Zou and Donner 2008), which holds for a handful of ratings too. If a mode has
no rating in a direction, its gain there may be anything from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.policy import Policy
from vlroute.decision.wilson import wilson_interval
from vlroute.learning.ratings import Rating
from vlroute.types import MODES, Mode

Values = NDArray[Any]
Mask = NDArray[np.bool_]
#: A candidate replaces the artifact in use only if its difference in accuracy has a lower limit above this ...
LEAST_LOWER = -0.005
#: ... and an estimate above this.
LEAST_ESTIMATE = 0.0
_USUAL = Policy()


@dataclass(frozen=True, slots=True)
class Predictions:
    """What an artifact predicts for n requests.

    Attributes:
        gain: `p_thinking - p_instruct`, `[n]`.
        coverage: See `Prediction`, `[n]`.
    """

    gain: Values
    coverage: Values


@dataclass(frozen=True, slots=True)
class Direction:
    """The requests that the candidate answers in another mode.

    Attributes:
        share: Their share of all requests.
        ratings_instruct: Number of ratings of Instruct on such requests.
        ratings_thinking: The same for Thinking.
        gain: Accuracy of Thinking minus that of Instruct there; None if one of them has no rating.
    """

    share: float
    ratings_instruct: int
    ratings_thinking: int
    gain: float | None


@dataclass(frozen=True, slots=True)
class ArtifactComparison:
    """A candidate compared with the artifact in use.

    Attributes:
        difference: Accuracy of the candidate minus that of the artifact in use, at equal expected seconds.
        low: Lower limit of its 95 % interval.
        high: Upper limit.
        requests: Number of requests from which the shares were computed.
        ratings: Number of ratings.
        price: Price at which the artifact in use decides.
        equal_price: Price at which the candidate takes as many seconds.
        value: Difference at the same price: in accuracy, minus price times the difference in seconds. This is what a
            swap changes while the price stays.
        seconds: Difference in mean seconds at the same price.
        to_thinking: Requests that go from Instruct to Thinking.
        to_instruct: Requests that go from Thinking to Instruct.
    """

    difference: float
    low: float
    high: float
    requests: int
    ratings: int
    price: float
    equal_price: float
    value: float
    seconds: float
    to_thinking: Direction
    to_instruct: Direction

    @property
    def is_better(self) -> bool:
        """Whether the candidate replaces the artifact in use."""
        return self.low > LEAST_LOWER and self.difference > LEAST_ESTIMATE and self.value > 0

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """The part of a policy that a comparison needs, see `Policy`."""

    price: float
    min_coverage: float = _USUAL.min_coverage
    fallback_mode: Mode = _USUAL.fallback_mode

    @classmethod
    def of(cls, policy: Policy) -> Rule:
        """The part of this policy."""
        return cls(policy.price, policy.min_coverage, policy.fallback_mode)

    def thinks(self, predicted: Predictions, extra: Values) -> Mask:
        """Which requests Thinking answers, `[n]`. `extra`: expected extra seconds of Thinking, `[n]`."""
        wanted = predicted.gain > self.price * np.maximum(extra, 0.0)
        unknown = predicted.coverage < self.min_coverage
        return np.where(unknown, self.fallback_mode == "thinking", wanted & (predicted.gain > 0))

    def at_equal_seconds(self, seconds: float, predicted: Predictions, extra: Values) -> Rule:
        """The rule at the lowest price with at most `seconds` of extra time over all requests."""
        ratio = predicted.gain / np.maximum(extra, 1e-9)
        asked = (predicted.coverage >= self.min_coverage) & (predicted.gain > 0) & (extra > 0)
        fixed = self.thinks(predicted, extra) & (predicted.coverage < self.min_coverage)
        left = seconds - float(extra[fixed].sum())
        order = np.flatnonzero(asked)[np.argsort(-ratio[asked], kind="stable")]
        within = np.cumsum(extra[order]) <= left + 1e-9
        count = int(within.sum())
        if count == len(order):
            return Rule(0.0, self.min_coverage, self.fallback_mode)
        return Rule(float(ratio[order[count]]), self.min_coverage, self.fallback_mode)


def compare_artifacts(
    rule: Rule,
    extra: Values,
    used: Predictions,
    candidate: Predictions,
    ratings: Sequence[Rating],
    used_on_rated: Predictions,
    candidate_on_rated: Predictions,
) -> ArtifactComparison:
    """Compare a candidate with the artifact in use.

    Args:
        rule: How the artifact in use decides.
        extra: Expected extra seconds of Thinking on recent requests, `[n]`.
        used: What the artifact in use predicts for these.
        candidate: What the candidate predicts.
        ratings: The m ratings.
        used_on_rated: What the artifact in use predicts for the rated requests, without having seen the rating.
        candidate_on_rated: The same for the candidate.

    Returns:
        The comparison.
    """
    rated_extra = np.asarray([one.request.extra_seconds for one in ratings])
    before = rule.thinks(used, extra)
    equal = rule.at_equal_seconds(float(extra[before].sum()), candidate, extra)

    def directions(after: Rule) -> list[_Estimate]:
        changed = after.thinks(candidate, extra).astype(int) - before
        rated = after.thinks(candidate_on_rated, rated_extra).astype(int) - rule.thinks(used_on_rated, rated_extra)
        return [_Estimate.of(sign, changed, rated, ratings) for sign in (1, -1)]

    up, down = found = directions(equal)
    difference = sum(one.difference for one in found)
    low = difference - math.hypot(*(one.difference - one.low for one in found))
    high = difference + math.hypot(*(one.high - one.difference for one in found))
    more = float(((rule.thinks(candidate, extra).astype(int) - before) * extra).mean()) if len(extra) else 0.0
    value = sum(one.difference for one in directions(rule)) - rule.price * more
    return ArtifactComparison(
        difference, low, high, len(extra), len(ratings), rule.price, equal.price, value, more, up.direction,
        down.direction,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What a direction adds to the difference in accuracy, with its limits."""

    direction: Direction
    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, sign: int, changed: Values, rated: Values, ratings: Sequence[Rating]) -> _Estimate:
        """`changed` and `rated`: 1 for requests that go to Thinking, -1 for those that go to Instruct, else 0."""
        share = float((changed == sign).mean()) if len(changed) else 0.0
        here = [one for one, where in zip(ratings, rated, strict=True) if where == sign]
        instruct, thinking = ([one for one in here if one.mode == mode] for mode in MODES)
        gain, low, high = _gain(instruct, thinking)
        known = None if math.isnan(gain) else gain
        ends = sorted((sign * share * low, sign * share * high))
        return cls(Direction(share, len(instruct), len(thinking), known), sign * share * (known or 0.0), *ends)


def _gain(instruct: Sequence[Rating], thinking: Sequence[Rating]) -> tuple[float, float, float]:
    """Accuracy of Thinking minus that of Instruct, with its limits; NaN, -1 and 1 if one of them has no rating."""
    if not instruct or not thinking:
        return math.nan, -1.0, 1.0
    (first, first_low, first_high), (second, second_low, second_high) = _accuracy(instruct), _accuracy(thinking)
    low = math.hypot(second - second_low, first_high - first)
    high = math.hypot(second_high - second, first - first_low)
    return second - first, second - first - low, second - first + high


def _accuracy(ratings: Sequence[Rating]) -> tuple[float, float, float]:
    """Hájek's mean of the ratings with Wilson's interval."""
    weight = np.asarray([1 / one.propensity for one in ratings])
    right = np.asarray([one.correct for one in ratings])
    weight /= weight.sum()
    mean, size = float(weight @ right), float(1 / (weight**2).sum())
    n = len(ratings)
    variance = float((weight**2) @ (right - mean) ** 2) * n / max(n - 1, 1)
    low, high = wilson_interval(mean, variance, size)
    return mean, low, high
