"""95 % confidence intervals from influence values.

The influence of a record tells how much a statistic changes with the weight of this record (Hampel 1974); an estimate
differs from its population value by about the mean of the influences, so their variance gives its standard error. For
the area under the ROC curve this is the estimate of DeLong, DeLong and Clarke-Pearson (1988). No resampling is
needed, and records that depend on each other are summed first. `docs/benchmarks/intervals.md` shows how often these
intervals hold the true value in simulations.

Arrays have one value per record, `[n]`, or one row per seed, `[seeds, n]`. `gain`: how right Thinking was minus how
right Instruct was, -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.wilson import NORMAL_95, student_95, wilson_interval

Values = NDArray[np.float64]
Interval = tuple[float, float]

#: The largest possible value of `E[gain x (rank - 1/2)]`, where each mode wins half of the records.
LARGEST_AREA = 0.25


class Sampling:
    """How the records of an estimate were drawn, and whether models that were fitted on them predicted them.

    Args:
        n: Number of records.
        groups: One label per record; records with equal labels count as one draw. None: all are independent.
        folds: Number of folds of a cross-validation whose models predicted the records. Such predictions depend on the
            labels of the other folds, and another sample would give another model. Therefore the part of the
            variance that rests on predictions is multiplied by 1 + test share / training share, in units of the
            variance of one mean: 1 + folds / (folds - 1), the corrected variance of Nadeau and Bengio (2003). None:
            the predictions are those of a given router.
    """

    def __init__(self, n: int, groups: Sequence[Any] | None = None, folds: int | None = None) -> None:
        self.n, self.groups, self.folds = n, groups, folds
        self._group: NDArray[np.int64] | None = None
        self.draws = n
        if groups is not None:
            numbers = {label: number for number, label in enumerate(dict.fromkeys(groups))}
            self.draws = len(numbers)
            if self.draws < n:
                self._group = np.asarray([numbers[label] for label in groups], dtype=np.int64)
        self._refitted = folds / (folds - 1) if folds else 0.0
        sizes = np.ones(n) if self._group is None else np.bincount(self._group)
        #: Effective number of draws of unequal size (Kish 1965).
        self._effective = float(n**2 / (sizes**2).sum()) if n else 0.0

    @property
    def covers(self) -> str:
        """What the intervals cover, in sentences for reports."""
        if self.folds:
            sources = (
                "the sampling of the records and, approximately, the randomness of fitting: the folds share training "
                "records, so the part of the variance that rests on predictions is multiplied by "
                f"{1 + self._refitted:.2f} = 1 + folds / (folds - 1) (Nadeau and Bengio 2003)"
            )
        else:
            sources = "the sampling of these records, with the router as it is"
        draws = (
            "Each record counts as one draw."
            if self.groups is None
            else f"Records of equal prompt and caption count as one draw: {self.draws} draws."
        )
        return (
            f"The intervals are 95 % intervals and cover {sources}. {draws} They do not cover other kinds of requests. "
            "Figures without an interval have none that holds its level."
        )

    def share(self, values: Values, *, learned: Values | None = None) -> Interval | None:
        """Wilson interval of the mean of `values` from 0 to 1; see `wilson_interval`.

        Args:
            values: What is averaged, or influence values with the same mean.
            learned: The part of `values` that rests on predictions.

        Returns:
            The interval; None for fewer than two groups of dependent records.
        """
        if self.draws < min(2, self.n) or not self.n:
            return None
        quantile = NORMAL_95 if self._group is None else self._quantile
        mean = min(max(float(values.mean()), 0.0), 1.0)
        # without Bessel's correction, so that values of 0 and 1 give exactly Wilson's interval
        variance = self._variance(values, learned) * (self.draws - 1) / self.draws
        # fitting counts even where the sample shows none of its variance, as where all answers are right
        least = self._effective / (1 + self._refitted if learned is not None else 1)
        return wilson_interval(mean, variance, least, quantile, least)

    def mean(self, values: Values, *, learned: Values | None = None, added: float = 0.0) -> Interval | None:
        """Student's t interval of the mean of `values`.

        Args:
            values: What is averaged, or influence values with the same mean.
            learned: The part of `values` that rests on predictions.
            added: Sum of squares of pseudo-records, so that a sample without any variation does not give an
                interval without width (Agresti and Min 2005).

        Returns:
            The interval; None for fewer than two independent records.
        """
        if self.draws < 2:
            return None
        half = self._quantile * math.sqrt(self._variance(values, learned) + added / self.n**2)
        return float(values.mean()) - half, float(values.mean()) + half

    def positive_mean(self, values: Values) -> Interval | None:
        """Interval of the mean of `values` >= 0 that are skewed, such as seconds: t on the logarithm of the mean."""
        bounds = self.mean(values)
        mean = float(values.mean()) if self.n else 0.0
        if bounds is None or mean <= 0:
            return bounds
        factor = math.exp((bounds[1] - mean) / mean)
        return mean / factor, mean * factor

    def difference(self, values: Values, *, learned: Values | None = None) -> Interval | None:
        """Interval of a mean of paired differences of accuracies, -1 to 1 (after Agresti and Min 2005)."""
        bounds = self.mean(values, learned=learned, added=1.0)
        return None if bounds is None else (max(bounds[0], -1.0), min(bounds[1], 1.0))

    def area(self, scores: Values, gain: Values) -> Interval | None:
        """Interval of `metrics.area_over_random`, in points, averaged over the seeds of `scores`."""
        influence = np.mean([area_influence(seed, gain) for seed in scores], axis=0)
        # pseudo-records: one that each mode wins, with half the weight, at a random rank (variance 1/12)
        return _scaled(self.mean(influence, learned=influence, added=1 / 12), 100 * self.n / (self.n + 1))

    def area_difference(self, scores: Values, others: Values, gain: Values) -> Interval | None:
        """Interval of the area of `scores` minus the area of `others`, both `[n]`, in points."""
        influence = area_influence(scores, gain) - area_influence(others, gain)
        return _scaled(self.mean(influence, learned=influence, added=1 / 6), 100 * self.n / (self.n + 1))

    def oracle_area(self, gain: Values) -> Interval | None:
        """Interval of the area of the ranking by `gain` itself, in points."""
        bounds = self.share(area_influence(gain, gain) / LARGEST_AREA)
        return _scaled(bounds, 100 * LARGEST_AREA * self.n / (self.n + 1))

    def share_of_oracle_area(self, scores: Values, gain: Values) -> Interval | None:
        """Interval of the area of `scores` `[n]` divided by the oracle's; see `ratio`."""
        part = area_influence(scores, gain)
        return self.ratio(part, area_influence(gain, gain), learned=part, added=(1 / 12, 1 / 12, 0.0))

    def gain_auc(self, scores: Values, gain: Values) -> Interval | None:
        """Interval of `metrics.gain_auc`, averaged over the seeds of `scores`; None where the metric is None.

        Wilson's interval at the sample size at which a share would have the variance of the AUC. Two variances are
        estimated and the larger one is used. DeLong's holds for any distribution of scores but is too small where
        almost all pairs are in order, although half a record on each side, at a random rank, is added. Hanley and
        McNeil's (1982), as simplified by Newcombe (2006, method 5), assumes exponential scores, and is not estimated
        from the few pairs in the wrong order.
        """
        won, lost = gain > 0, gain < 0
        count = np.asarray([won.sum(), lost.sum()])
        if not count.all() or self.draws < 2:
            return None
        found = float(np.mean([_placed(seed[won], seed[lost]).mean() for seed in scores]))
        influence = np.mean([auc_influence(seed, gain) for seed in scores], axis=0)
        variance = self._variance(influence, influence) + (1 / 24 / count**2).sum()
        fewer = count.min()
        center = (found * fewer + 0.25) / (fewer + 0.5)
        first, second = (
            len(np.unique(self._group[side])) if self._group is not None else side.sum() for side in (won, lost)
        )
        other = (first + second) / 2 - 1
        exponential = (1 + other * (1 - found) / (2 - found) + other * found / (1 + found)) / (first * second)
        size = 1 / max(variance / (center * (1 - center)), exponential * (1 + self._refitted))
        return wilson_interval(found, found * (1 - found) / size, size, self._quantile)

    def headroom(
        self, routed: Values, instruct: Values, thinking: Values, *, learned: Values | None = None
    ) -> Interval | None:
        """Interval of `metrics.headroom_captured`.

        The metric is the smaller of two ratios, which compare the router with either mode. Therefore each limit is the
        smaller of the limits of these two.

        Args:
            routed: How right the routed answer was, 0 to 1.
            instruct: How right Instruct was.
            thinking: How right Thinking was.
            learned: The part of `routed` that rests on predictions.

        Returns:
            The interval; None where the sample does not show that there is any headroom.
        """
        oracle = np.maximum(instruct, thinking)
        # pseudo-records: one that each mode wins, with half the weight, of which the router sends half to Thinking; and
        # two answers that the router lost: a good router loses so few that a sample may contain none by chance
        added = (0.25 + 2, 0.5, 0.25)
        found = [
            self.ratio(routed - mode, oracle - mode, learned=learned, added=added) for mode in (instruct, thinking)
        ]
        if found[0] is None or found[1] is None:
            return None
        return min(found[0][0], found[1][0]), min(found[0][1], found[1][1], 1.0)

    def ratio(
        self,
        part: Values,
        whole: Values,
        *,
        learned: Values | None = None,
        added: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> Interval | None:
        """Fieller's interval (1954) of mean(`part`) / mean(`whole`).

        Args:
            part: Influence values of the numerator.
            whole: Influence values of the denominator.
            learned: The part of `part` that rests on predictions.
            added: Sums over pseudo-records: squares of the numerator, of the denominator, and their products.

        Returns:
            The interval; None where the denominator does not differ from 0 significantly: no limit is excluded then.
        """
        if self.draws < 2:
            return None
        squared = self._quantile**2
        a, b = float(part.mean()), float(whole.mean())
        var_a = self._variance(part, learned) + added[0] / self.n**2
        var_b = self._variance(whole) + added[1] / self.n**2
        covariance = (self._variance(part + whole) - self._variance(part - whole)) / 4 + added[2] / self.n**2
        first = b * b - squared * var_b
        if first <= 1e-15:
            return None
        second, third = a * b - squared * covariance, a * a - squared * var_a
        root = math.sqrt(max(second * second - first * third, 0.0))
        return (second - root) / first, (second + root) / first

    def of(self, at: NDArray[np.bool_]) -> Sampling:
        """Return the sampling of the records where `at` is true."""
        groups = None if self.groups is None else [label for label, kept in zip(self.groups, at, strict=True) if kept]
        return Sampling(int(at.sum()), groups, self.folds)

    @property
    def _quantile(self) -> float:
        return student_95(self.draws - 1)

    def _variance(self, values: Values, learned: Values | None = None) -> float:
        """Estimated variance of the mean of `values`."""
        found = self._of_draws(values)
        return found + self._refitted * self._of_draws(learned) if learned is not None and self._refitted else found

    def _of_draws(self, values: Values) -> float:
        totals = values - values.mean()
        if self._group is not None:
            totals = np.bincount(self._group, weights=totals)
        return float((totals**2).sum()) / self.n**2 * self.draws / max(self.draws - 1, 1)


def area_influence(scores: Values, gain: Values) -> Values:
    """Influence of each record on E[gain x (rank of its score, 0 to 1, - 1/2)], with that value as their mean.

    Times 100 n / (n + 1) the mean is `metrics.area_over_random`. Equal scores share their mean rank.
    """
    n = len(scores)
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = ((count.cumsum() - count / 2) / n)[place]
    total = np.bincount(place, weights=gain)
    above = ((total[::-1].cumsum()[::-1] - total / 2) / n)[place]  # mean gain of the records with a higher score
    own = gain * (rank - 0.5)
    return np.asarray(own + above - above.mean())


def auc_influence(scores: Values, gain: Values) -> Values:
    """Influence of each record on `metrics.gain_auc`, with that value as their mean (DeLong and others 1988).

    Args:
        scores: The predicted gain, `[n]`.
        gain: The true gain, `[n]`, with at least one positive and one negative value.

    Returns:
        Influence values `[n]`.
    """
    won, lost = gain > 0, gain < 0
    above, below = _placed(scores[won], scores[lost]), 1 - _placed(scores[lost], scores[won])
    auc = float(above.mean())
    influence = np.full(len(gain), auc)
    influence[won] += (above - auc) * len(gain) / won.sum()
    influence[lost] += (below - auc) * len(gain) / lost.sum()
    return influence


def marginal_gain(scores: Values, gain: Values, share: float) -> float:
    """Mean `gain` of the records whose rank is near the threshold that sends `share` of them to Thinking.

    If a threshold depends on the sample, each record that crosses it changes the accuracy by this amount. The window is
    a tenth of the records, at least ten.
    """
    n = len(scores)
    width = min(n, max(10, n // 10))
    start = min(max(round(share * n) - width // 2, 0), n - width)
    return float(gain[np.argsort(-scores, kind="stable")[start : start + width]].mean())


def _placed(scores: Values, others: Values) -> Values:
    """Share of `others` below each of `scores`; equal values count half."""
    others = np.sort(others)
    below = np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")
    return np.asarray(below / (2 * len(others)))


def _scaled(interval: Interval | None, factor: float) -> Interval | None:
    return None if interval is None else (interval[0] * factor, interval[1] * factor)
