"""What a router is worth, in small functions. All take one value per record: float arrays `[n]`.

`instruct`, `thinking`: how right each mode was, 0 to 1. `scores`: the higher, the sooner a record goes to
Thinking. Nothing here assumes that Thinking is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
