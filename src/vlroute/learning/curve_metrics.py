"""What a whole trade-off curve is worth, next to the two single modes, in small functions.

`accuracy`: `[k]`, 0 to 1, at evenly spaced shares of records sent to Thinking: the first value is always Instruct's,
the last always Thinking's. `cost`: `[k]`, what an answer costs on average at the same shares, in any unit (mean
seconds here). `metrics.accuracy_curve` gives such curves of accuracies, and of costs given in their place. Nothing
assumes that Thinking is better or dearer: a figure that this leaves without a meaning is None.
"""

from __future__ import annotations

import numpy as np
from scipy.integrate import trapezoid
from scipy.optimize import isotonic_regression

from vlroute.learning.metrics import Values, accuracy_curve

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
