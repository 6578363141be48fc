"""Metrics of a router, as small functions.

All arrays have one value per record, float `[n]`. `instruct` and `thinking` tell how right each mode was, 0 to 1;
records with higher `scores` are sent to Thinking first. Nothing here assumes that Thinking is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from scipy.optimize import isotonic_regression
from sklearn.metrics import roc_auc_score

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Accuracies and costs closer than this are equal: sums in another order differ by less.
TOLERANCE = 1e-12


def accuracy_curve(scores: Values, instruct: Values, thinking: Values) -> Values:
    """Return the accuracy if the k records with the highest scores think, for k = 0 … n: `[n + 1]`.

    Records with equal scores have the mean gain of these records, so a constant score gives exactly the random line, in
    any order of the records.
    """
    order = _order(scores)
    extra = _average_over_ties(scores[order], (thinking - instruct)[order])
    return np.asarray((instruct.sum() + np.concatenate([[0.0], extra.cumsum()])) / len(scores))


def area_over_random(scores: Values, instruct: Values, thinking: Values) -> float:
    """Return the mean, over all shares k/n sent to Thinking, of accuracy − random line, in points; 0: mere chance."""
    random_line = np.linspace(instruct.mean(), thinking.mean(), len(instruct) + 1)
    return float(100 * (accuracy_curve(scores, instruct, thinking) - random_line).mean())


def share_by_score(scores: Values, share: float) -> Values:
    """Return which records think, 0 or 1, if the top `share` of the scores does; at the border a probability."""
    n = len(scores)
    sent = np.clip(share * n - np.arange(n), 0.0, 1.0)
    result = np.empty(n)
    order = _order(scores)
    result[order] = _average_over_ties(scores[order], sent)
    return result


def headroom_captured(router: float, instruct: float, thinking: float, oracle: float) -> float | None:
    """Return (router − better single mode) / (oracle − better single mode), from accuracies.

    1 is all of the headroom; a negative value is worse than always using the better mode. None if there is no headroom.
    """
    better = max(instruct, thinking)
    return (router - better) / (oracle - better) if oracle - better > TOLERANCE else None


def gain_auc(scores: Values, instruct: Values, thinking: Values) -> float | None:
    """Return the area under the ROC curve for "Thinking wins" among the records on which the modes differ.

    This is the probability that a record that Thinking wins has a higher score than one that Instruct wins. None
    unless there are records of both kinds.
    """
    differ = thinking != instruct
    won = thinking[differ] > instruct[differ]
    return float(roc_auc_score(won, scores[differ])) if 0 < won.sum() < len(won) else None


def brier(probabilities: Values, correct: Values) -> float:
    """Return the mean squared difference of probability and outcome (Brier 1950). 0: perfect; 0.25: always 0.5."""
    return float(np.mean((probabilities - correct) ** 2))


def ece(probabilities: Values, correct: Values, bins: int = 10) -> float:
    """Return the expected calibration error over `bins` bins of equal width (Naeini et al. 2015), 0 to 1.

    It is the mean over the bins, weighted by their sizes, of |mean probability − share correct|.
    """
    gaps = np.bincount(_bin_of(probabilities, bins), weights=probabilities - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))


def ece_if_calibrated(probabilities: Values, bins: int = 10) -> float:
    """Return the `ece` that 95 % of samples stay below if outcomes happen exactly with these `probabilities`.

    The ECE of a sample is above 0 by chance alone, so an interval around it would be biased. This is consistency
    resampling (Bröcker and Smith 2007), with the normal approximation of the sum in each bin.
    """
    variance = np.bincount(_bin_of(probabilities, bins), weights=probabilities * (1 - probabilities), minlength=bins)
    gaps = np.abs(np.random.default_rng(0).normal(size=(4000, bins)) * np.sqrt(variance))
    return float(np.quantile(gaps.sum(axis=1), 0.95) / len(probabilities))


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: one value per bin that contains a record, from low to high, each `[bins]`.

    Attributes:
        predicted: Mean probability, 0 to 1.
        observed: Share correct, 0 to 1.
        count: Records in the bin.
    """

    predicted: Values
    observed: Values
    count: Indices


def reliability(probabilities: Values, correct: Values, bins: int = 10) -> Reliability:
    """Compare predicted and observed shares in the bins of `ece` (Murphy and Winkler 1977).

    scikit-learn's `calibration_curve` returns no counts and does not accept shares of several tries as outcomes.
    """
    bin_of = _bin_of(probabilities, bins)
    count = np.bincount(bin_of, minlength=bins)
    held = count > 0
    predicted, observed = (
        np.bincount(bin_of, weights=values, minlength=bins)[held] / count[held] for values in (probabilities, correct)
    )
    return Reliability(predicted, observed, count[held])


def area_over_random_line(accuracy: Values) -> float:
    """Return the area between a curve and the straight line from its first to its last value, in points.

    This is the integral that `area_over_random` sums over single records; 0: mere chance.
    """
    gap = accuracy - np.linspace(accuracy[0], accuracy[-1], len(accuracy))
    return 100 * _mean_over_shares(gap)


def pgr(router: float, instruct: float, thinking: float) -> float | None:
    """Return the performance gap recovered: (router − instruct) / (thinking − instruct) (RouteLLM, arXiv 2406.18665).

    From accuracies. 0: Instruct alone; 1: as good as Thinking alone; more: better than both. None if Thinking is not
    more accurate than Instruct, because there is no gap.
    """
    gap = thinking - instruct
    return (router - instruct) / gap if gap > TOLERANCE else None


def apgr(accuracy: Values) -> float | None:
    """Return the average performance gap recovered: mean `pgr` over all shares (RouteLLM, arXiv 2406.18665).

    Chance: 0.5. The integral uses the trapezoid rule, as RouteLLM's own evaluation does. None where `pgr` is None.
    """
    return pgr(_mean_over_shares(accuracy), float(accuracy[0]), float(accuracy[-1]))


def cpt(accuracy: Values, recovered: float = 0.5) -> float | None:
    """Return the call-performance threshold: the least share to Thinking with `pgr` >= `recovered` (arXiv 2406.18665).

    Chance: `recovered` itself. None where `pgr` is None, and if no point of the curve reaches it.
    """
    gap = float(accuracy[-1] - accuracy[0])
    if gap <= TOLERANCE:
        return None
    reached = np.flatnonzero(accuracy >= accuracy[0] + recovered * gap - TOLERANCE)
    return float(reached[0] / (len(accuracy) - 1)) if len(reached) else None


def aiq(cost: Values, accuracy: Values) -> float | None:
    """Return the average improvement in quality (RouterBench, arXiv 2403.12031): mean accuracy over all budgets.

    It is 1 / (highest − lowest cost) times the integral over the cost of the non-decreasing convex hull: the best
    accuracy that mixing two points of the curve by chance gives for at most this cost. None if all costs are equal.
    """
    costs, best = _best_by_cost(cost, accuracy)
    width = np.diff(costs)
    if width.sum() <= TOLERANCE:
        return None
    # the slopes of the least concave majorant are the decreasing regression of the slopes of the curve
    slope = isotonic_regression(np.diff(best) / width, weights=width, increasing=False).x.clip(min=0)
    hull = best[0] + np.concatenate([[0.0], (slope * width).cumsum()])
    return float(trapezoid(hull, costs) / width.sum())


def nauc(cost: Values, accuracy: Values) -> float | None:
    """Return the normalized area under the accuracy-cost curve (MMR-Bench, arXiv 2601.17814), 0 to 1.

    Like `aiq`, but under straight lines between the Pareto points: those more accurate than all cheaper ones. It is at
    most `aiq`. After the best point the curve is flat up to the highest cost; MMR-Bench ends there, which would compare
    routers over different budgets. None if all costs are equal.
    """
    costs, best = _best_by_cost(cost, accuracy)
    if costs[-1] - costs[0] <= TOLERANCE:
        return None
    pareto = np.diff(np.maximum.accumulate(best), prepend=-np.inf) > 0
    area = trapezoid(np.append(best[pareto], best[pareto][-1]), np.append(costs[pareto], costs[-1]))
    return float(area / (costs[-1] - costs[0]))


def qnc(cost: Values, accuracy: Values) -> float | None:
    """Return the quality-neutral cost: the least cost with the accuracy of Thinking alone, relative to its cost.

    UniRoute (arXiv 2502.08773), MMR-Bench (arXiv 2601.17814). 0.6: the same accuracy for 60 % of the seconds. None if
    Thinking is not more accurate than Instruct, because Instruct is neutral already, or if Thinking costs nothing.
    """
    if accuracy[-1] - accuracy[0] <= TOLERANCE or cost[-1] <= 0:
        return None
    return float(cost[accuracy >= accuracy[-1] - TOLERANCE].min() / cost[-1])


def _bin_of(probabilities: Values, bins: int) -> Indices:
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def _order(scores: Values) -> Indices:
    """From high to low; the order of equal scores does not matter."""
    return np.argsort(-scores)


def _average_over_ties(scores: Values, values: Values) -> Values:
    """`values` averaged over equal `scores`, which are sorted from high to low."""
    group = np.concatenate([[0], (scores[1:] != scores[:-1]).cumsum()])
    return np.asarray((np.bincount(group, weights=values) / np.bincount(group))[group])


def _mean_over_shares(values: Values) -> float:
    return float(trapezoid(values, dx=1 / (len(values) - 1)))


def _best_by_cost(cost: Values, accuracy: Values) -> tuple[Values, Values]:
    """The distinct costs from low to high, each with the best accuracy at this cost."""
    order = np.argsort(cost, kind="stable")
    costs, first = np.unique(cost[order], return_index=True)
    return costs, np.maximum.reduceat(accuracy[order], first)
