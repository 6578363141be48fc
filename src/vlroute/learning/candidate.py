"""A candidate for the next router artifact: trained on ratings, compared with the artifact in use on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.learning.comparison import ArtifactComparison, Predictions, Rule, compare_artifacts
from vlroute.learning.correction import Correction
from vlroute.learning.ratings import AskedRequest, Rating

Values = NDArray[np.float64]
#: Probabilities (Instruct, Thinking) that a rated request got from a model that had not seen it, by the request.
HeldOut = Mapping[str, tuple[float, float]]
#: Each rating is held out once: a model trained on the other folds predicts it.
FOLDS = 5
#: A candidate is trained when there are this many ratings ...
MIN_RATINGS = 20
#: ... and this many new ones since the last candidate.
MIN_NEW = 20
#: Seconds for which ratings and requests are recent.
RECENT = 14 * 86_400.0
#: Maximum number of recent requests from which shares are computed.
MOST_REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained candidate.

    Attributes:
        classifier: The candidate, trained on all ratings.
        held_out: What models that were trained without a rated request predict for it, see `HeldOut`.
        comparison: The comparison with the artifact in use.
    """

    classifier: ComplexityClassifier
    held_out: dict[str, tuple[float, float]]
    comparison: ArtifactComparison


def train_candidate(
    base: ComplexityClassifier,
    used: ComplexityClassifier,
    used_held_out: HeldOut,
    ratings: Sequence[Rating],
    requests: Sequence[AskedRequest],
    rule: Rule,
    since: float,
    now: float,
) -> Candidate:
    """Train a candidate on all ratings, and compare it with the artifact in use on the recent ones.

    Each rating is held out in the comparison, in folds that keep equal requests together. The artifact in use is
    treated likewise: `used_held_out` has its predictions for ratings on which it was trained.

    Args:
        base: The artifact that the ratings correct, see `Correction`.
        used: The artifact in use.
        used_held_out: See above.
        ratings: At least one rating.
        requests: Recent requests, rated or not.
        rule: How the artifact in use decides.
        since: Ratings of older requests are not used in the comparison, in seconds since 1970.
        now: The present.

    Returns:
        The candidate.
    """
    correction = Correction.of(base, ratings, now)
    fold = np.asarray([crc32(one.request.group.encode()) % FOLDS for one in ratings])
    unseen = np.zeros((len(ratings), 2))
    for number in np.unique(fold):
        test = fold == number
        unseen[test] = correction.fit(~test)[1][test]
    classifier = correction.apply(correction.fit()[0])
    held_out = {one.request.group: (float(p[0]), float(p[1])) for one, p in zip(ratings, unseen, strict=True)}
    recent = [one for one in ratings if one.request.created >= since]
    rated = [one.request for one in recent]
    comparison = compare_artifacts(
        rule,
        np.asarray([one.extra_seconds for one in requests]),
        _predictions(used, requests, used_held_out),
        _predictions(classifier, requests, held_out),
        recent,
        _predictions(used, rated, used_held_out),
        _predictions(classifier, rated, held_out),
    )
    return Candidate(classifier, held_out, comparison)


def _predictions(classifier: ComplexityClassifier, requests: Sequence[AskedRequest], held_out: HeldOut) -> Predictions:
    found = [classifier.predict(one.prompt, one.caption, one.tools) for one in requests]
    gain = [
        held_out[request.group][1] - held_out[request.group][0] if request.group in held_out else one.gain
        for request, one in zip(requests, found, strict=True)
    ]
    return Predictions(np.asarray(gain), np.asarray([one.coverage for one in found]))
