"""Which members, alone or averaged, rank the records best? Chosen on records that they had not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from vlroute.errors import InputError
from vlroute.learning import base_learners as members
from vlroute.learning.base_learners import Member, platt
from vlroute.learning.folds import Design, Indices, Values
from vlroute.learning.intervals import Interval, Sampling, area_influence
from vlroute.learning.metrics import area_over_random

#: On how many folds of the training records candidates compete.
INNER_FOLDS = 4
ERRORS = 2.0  # a challenger must be ahead by so many standard errors
#: A condition (with or without caption) with fewer examples is calibrated together with the other.
MIN_CALIBRATION = 50

Calibration = list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One candidate on records its members had not seen: area over random in points with its 95 % interval.

    `behind`: how much lower its area is than the chosen one's. `error`: the standard error of this difference.
    """

    name: str
    area: float
    interval: Interval | None
    behind: float
    error: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen members with their `shares`, which sum to 1, and their (slope, intercept) per head, `[members, 2, 2]`.

    A member's raw logit times slope plus intercept is its calibrated logit; the mean of these by share is the raw logit
    of the whole. `calibration`: of that, head by head, without and with caption, (slope, intercept).
    """

    members: list[Member]
    shares: list[float]
    platt: Values
    calibration: Calibration
    comparisons: list[Comparison]


Shares = Mapping[str, float]


def choose(design: Design, fold: Indices, only: str | None = None) -> Choice:
    """Compare all candidates that these records allow.

    Words, averaged with the embedding where there is a text encoder, are the incumbent. Crosses, and then any other
    candidate, take over only with an area over random higher by more than two standard errors of the paired
    difference: on a thousand records areas differ by chance. In an average words count double: they are two views,
    words and letters.
    `only`: the one candidate to consider; InputError if these records do not allow it.
    """
    known = {"words": members.words(design, fold)}
    if design.encoder.crossed.width:
        known["crosses"] = members.words(design, fold, crossed=True)
    if design.embedding.shape[1]:
        for make in (members.embedding, members.neighbours, members.boosting):
            known[make.__name__] = make(design, fold)
    right = design.right
    sigmoids = {
        name: np.asarray([platt(member.unseen[:, head], right[:, head], design.weight) for head in (0, 1)])
        for name, member in known.items()
    }
    logits = {name: member.unseen * sigmoids[name][:, 0] + sigmoids[name][:, 1] for name, member in known.items()}
    incumbent, candidates = "words", {name: {name: 1.0} for name in known}
    if "crosses" in known:
        lexical = {name: candidates[name] for name in ("words", "crosses")}
        incumbent = _best(design, lexical, logits, incumbent)[0]
    if "embedding" in known:
        words, incumbent = incumbent, f"{incumbent} + embedding"
        candidates[incumbent] = {words: 2 / 3, "embedding": 1 / 3}
        candidates["stack"] = {words: 2 / 5, "embedding": 1 / 5, "neighbours": 1 / 5, "boosting": 1 / 5}
    if only is not None:
        if only not in candidates:
            raise InputError(f"no candidate {only!r}; these records allow: {', '.join(candidates)}")
        candidates, incumbent = {only: candidates[only]}, only
    winner, comparisons = _best(design, candidates, logits, incumbent)
    shares = candidates[winner]
    return Choice(
        [known[name] for name in shares],
        list(shares.values()),
        np.stack([sigmoids[name] for name in shares]),
        by_condition(design, _mixed(shares, logits)),
        comparisons,
    )


def _mixed(shares: Shares, logits: Mapping[str, Values]) -> Values:
    return np.asarray(sum(share * logits[name] for name, share in shares.items()))


def _best(
    design: Design,
    candidates: Mapping[str, Shares],
    logits: Mapping[str, Values],
    incumbent: str,
) -> tuple[str, list[Comparison]]:
    right = design.right[design.given].T
    difference = right[1] - right[0]
    sampling = Sampling(len(difference), folds=INNER_FOLDS)
    scores = {name: _gain(design, _mixed(shares, logits)) for name, shares in candidates.items()}
    area = {name: area_over_random(score, *right) for name, score in scores.items()}
    influence = {name: area_influence(score, difference) for name, score in scores.items()}

    def error(name: str, other: str) -> float:
        return float(100 * (influence[name] - influence[other]).std() / len(difference) ** 0.5)

    better = [name for name in scores if area[name] - area[incumbent] > ERRORS * error(name, incumbent)]
    winner = max(better, key=lambda name: area[name], default=incumbent)
    return winner, [
        Comparison(
            name,
            area[name],
            sampling.area(score[None], difference),
            area[winner] - area[name],
            error(winner, name),
            name == winner,
        )
        for name, score in scores.items()
    ]


def _gain(design: Design, logits: Values) -> Values:
    """Of each record as it is, `[n]`, calibrated as the whole will be."""
    rows = design.given
    sigmoid = np.asarray(by_condition(design, logits))[:, design.captioned[rows].astype(int)]
    p = expit(sigmoid[..., 0] * logits[rows].T + sigmoid[..., 1])
    return np.asarray(p[1] - p[0])


def by_condition(design: Design, logits: Values) -> Calibration:
    """Head by head, without and with caption: (slope, intercept) of Platt's sigmoid on `logits` `[m, 2]`."""
    calibration = []
    for own, target in zip(logits.T, design.right.T, strict=True):
        both = platt(own, target, design.weight)
        conditions = (~design.captioned, design.captioned)
        calibration.append([
            platt(own[rows], target[rows], design.weight[rows]) if rows.sum() >= MIN_CALIBRATION else both
            for rows in conditions
        ])  # fmt: skip
    return calibration
