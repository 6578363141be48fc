"""What a router is worth, in small functions. All take one value per record: float arrays `[n]`.

`instruct`, `thinking`: how right each mode was, 0 to 1. `scores`: the higher, the sooner a record goes to
Thinking. Nothing here assumes that Thinking is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import isotonic_regression

Values = NDArray[np.float64]
Indices = NDArray[np.int64]


def accuracy_curve(scores: Values, instruct: Values, thinking: Values) -> Values:
    """Accuracy when the k highest scores think, for k = 0 … n: `[n + 1]`.

    Equal scores are shared out evenly, so a constant score gives exactly the random line, in whatever order
    they come.
    """
    order = _order(scores)
    extra = _average_over_ties(scores[order], (thinking - instruct)[order])
    return np.asarray((instruct.sum() + np.concatenate([[0.0], extra.cumsum()])) / len(scores))


def random_line(instruct: Values, thinking: Values) -> Values:
    """Expected accuracy when k records drawn by chance think, for k = 0 … n: `[n + 1]`."""
    return np.linspace(instruct.mean(), thinking.mean(), len(instruct) + 1)


def area_over_random(scores: Values, instruct: Values, thinking: Values) -> float:
    """Mean over all shares k/n sent to Thinking of (accuracy - random line), in points; 0: mere chance."""
    gap = accuracy_curve(scores, instruct, thinking) - random_line(instruct, thinking)
    return float(100 * gap.mean())


def share_by_score(scores: Values, share: float) -> Values:
    """Which records think (1; at the border a probability) if the top `share` of the scores does."""
    n = len(scores)
    sent = np.clip(share * n - np.arange(n), 0.0, 1.0)
    result = np.empty(n)
    order = _order(scores)
    result[order] = _average_over_ties(scores[order], sent)
    return result


def headroom_captured(router: float, instruct: float, thinking: float, oracle: float) -> float | None:
    """(router - better single mode) / (oracle - better single mode); None where there is no headroom.

    Accuracies in, 1 = all of it; negative = worse than always using the better mode.
    """
    better = max(instruct, thinking)
    return (router - better) / (oracle - better) if oracle - better > 1e-12 else None


def gain_auc(scores: Values, instruct: Values, thinking: Values) -> float | None:
    """Where the modes differ: how probably one that Thinking wins scores over one Instruct wins; ties half.

    The Mann-Whitney form of the area under the ROC curve. None unless both kinds of record are there.
    """
    won, lost = scores[thinking > instruct], scores[thinking < instruct]
    if not len(won) or not len(lost):
        return None
    lost = np.sort(lost)
    below = np.searchsorted(lost, won, "left") + np.searchsorted(lost, won, "right")
    return float(below.mean() / (2 * len(lost)))


def brier(probabilities: Values, correct: Values) -> float:
    """Mean squared difference of probability and outcome (Brier 1950). 0: perfect; 0.25: always 0.5."""
    return float(np.mean((probabilities - correct) ** 2))


def ece(probabilities: Values, correct: Values, bins: int = 10) -> float:
    """Expected calibration error over `bins` bins of equal width (Naeini et al. 2015), 0 to 1.

    |mean probability - share correct| in each bin, averaged with the bins' sizes as weights.
    """
    gaps = np.bincount(_bin_of(probabilities, bins), weights=probabilities - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def ece_if_calibrated(probabilities: Values, bins: int = 10) -> float:
    """The `ece` that 95 % of samples stay below if outcomes happen exactly with these `probabilities`.

    The ECE of a sample is above 0 by chance alone, so an interval around it would be biased. Consistency resampling
    (Bröcker and Smith 2007), with the normal approximation of the sum in each bin.
    """
    variance = np.bincount(_bin_of(probabilities, bins), weights=probabilities * (1 - probabilities), minlength=bins)
    gaps = np.abs(np.random.default_rng(0).normal(size=(4000, bins)) * np.sqrt(variance))
    return float(np.quantile(gaps.sum(axis=1), 0.95) / len(probabilities))


@dataclass(frozen=True, slots=True)
class Reliability:
    """One row per bin that holds a record, from low to high: what a reliability diagram shows, each `[bins]`.

    `predicted`: mean probability, 0 to 1. `observed`: share correct, 0 to 1. `count`: records in the bin.
    """

    predicted: Values
    observed: Values
    count: Indices


def reliability(probabilities: Values, correct: Values, bins: int = 10) -> Reliability:
    """Predicted against observed in the bins of `ece` (Murphy and Winkler 1977): on the diagonal where calibrated.

    scikit-learn's `calibration_curve` gives neither the counts nor takes shares of several tries as outcomes.
    """
    bin_of = _bin_of(probabilities, bins)
    count = np.bincount(bin_of, minlength=bins)
    held = count > 0
    predicted, observed = (
        np.bincount(bin_of, weights=values, minlength=bins)[held] / count[held] for values in (probabilities, correct)
    )
    return Reliability(predicted, observed, count[held])


def _bin_of(probabilities: Values, bins: int) -> Indices:
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def _order(scores: Values) -> Indices:
    """From high to low; of equal scores in any order, for they share what they get."""
    return np.argsort(-scores)


def _average_over_ties(scores: Values, values: Values) -> Values:
    """Of `scores` from high to low and their `values`, each the mean over its equal scores."""
    group = np.concatenate([[0], (scores[1:] != scores[:-1]).cumsum()])
    return np.asarray((np.bincount(group, weights=values) / np.bincount(group))[group])


#: Accuracies and costs closer than this are equal: sums in another order differ by less.
TOLERANCE = 1e-12


def accuracy_seconds_curve(scores: Values, right: Values, seconds: Values) -> tuple[Values, Values] | None:
    """(mean seconds, accuracy) when the k highest scores think, k = 0 … m, each `[m + 1]`.

    `scores` `[n]`, `right` and `seconds` `[2, n]`: Instruct, Thinking. Over the m records whose seconds are known
    for both modes (not NaN); None if there are none.
    """
    known = ~np.isnan(seconds).any(axis=0)
    if not known.any():
        return None
    return accuracy_curve(scores[known], *seconds[:, known]), accuracy_curve(scores[known], *right[:, known])


def area_over_random_line(accuracy: Values) -> float:
    """Area between the curve and the straight line from its first to its last value, in points; 0: mere chance.

    The integral that `metrics.area_over_random` sums over single records.
    """
    gap = accuracy - np.linspace(accuracy[0], accuracy[-1], len(accuracy))
    return 100 * _mean_over_shares(gap)


def pgr(router: float, instruct: float, thinking: float) -> float | None:
    """Performance gap recovered: (router - instruct) / (thinking - instruct) (RouteLLM, arXiv 2406.18665).

    Accuracies in; 0: Instruct alone, 1: as good as Thinking alone, more: better than both. None where Thinking is
    not the more accurate mode, for there is no gap.
    """
    gap = thinking - instruct
    return (router - instruct) / gap if gap > TOLERANCE else None


def apgr(accuracy: Values) -> float | None:
    """Average performance gap recovered: mean `pgr` over all shares (RouteLLM, arXiv 2406.18665). Chance: 0.5.

    By the trapezoid rule, as RouteLLM's own evaluation does. None where `pgr` is.
    """
    return pgr(_mean_over_shares(accuracy), float(accuracy[0]), float(accuracy[-1]))


def cpt(accuracy: Values, recovered: float = 0.5) -> float | None:
    """Call-performance threshold: the least share to Thinking, 0 to 1, with `pgr` >= `recovered` (arXiv 2406.18665).

    Chance: `recovered` itself. None where `pgr` is, and where no point of the curve gets there.
    """
    gap = float(accuracy[-1] - accuracy[0])
    if gap <= TOLERANCE:
        return None
    reached = np.flatnonzero(accuracy >= accuracy[0] + recovered * gap - TOLERANCE)
    return float(reached[0] / (len(accuracy) - 1)) if len(reached) else None


def aiq(cost: Values, accuracy: Values) -> float | None:
    """Average improvement in quality (RouterBench, arXiv 2403.12031): mean accuracy over all budgets, 0 to 1.

    1 / (dearest - cheapest) x the integral over the cost of the non-decreasing convex hull: the best accuracy that
    mixing two points of the curve by chance gives for at most this cost. None if everything costs the same.
    """
    costs, best = _best_by_cost(cost, accuracy)
    width = np.diff(costs)
    if width.sum() <= TOLERANCE:
        return None
    # the slopes of the least concave majorant are the decreasing regression of the curve's own slopes
    slope = isotonic_regression(np.diff(best) / width, weights=width, increasing=False).x.clip(min=0)
    hull = best[0] + np.concatenate([[0.0], (slope * width).cumsum()])
    return float(trapezoid(hull, costs) / width.sum())


def nauc(cost: Values, accuracy: Values) -> float | None:
    """Normalised area under the accuracy-cost curve (MMR-Bench, arXiv 2601.17814), 0 to 1.

    As `aiq`, under the straight lines between the Pareto points: those more accurate than all cheaper ones. It
    is at most `aiq`. From the best point on it stays flat up to the dearest (MMR-Bench stops there, which would
    compare routers over unlike budgets). None if everything costs the same.
    """
    costs, best = _best_by_cost(cost, accuracy)
    if costs[-1] - costs[0] <= TOLERANCE:
        return None
    pareto = np.diff(np.maximum.accumulate(best), prepend=-np.inf) > 0
    area = trapezoid(np.append(best[pareto], best[pareto][-1]), np.append(costs[pareto], costs[-1]))
    return float(area / (costs[-1] - costs[0]))


def qnc(cost: Values, accuracy: Values) -> float | None:
    """Quality-neutral cost: the least cost as accurate as Thinking alone, in parts of what that costs.

    UniRoute (arXiv 2502.08773), MMR-Bench (arXiv 2601.17814). 0.6: the same accuracy for 60 % of the seconds. None
    where Thinking is not the more accurate mode (Instruct, the other one, is neutral already), or costs nothing.
    """
    if accuracy[-1] - accuracy[0] <= TOLERANCE or cost[-1] <= 0:
        return None
    return float(cost[accuracy >= accuracy[-1] - TOLERANCE].min() / cost[-1])


def _mean_over_shares(values: Values) -> float:
    return float(trapezoid(values, dx=1 / (len(values) - 1)))


def _best_by_cost(cost: Values, accuracy: Values) -> tuple[Values, Values]:
    """The different costs from low to high, each with the best accuracy that it buys."""
    order = np.argsort(cost, kind="stable")
    costs, first = np.unique(cost[order], return_index=True)
    return costs, np.maximum.reduceat(accuracy[order], first)
