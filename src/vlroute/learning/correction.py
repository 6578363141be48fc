"""Corrects the probabilities of a router artifact with ratings of single answers.

A rating tells how right one mode was on one request; what the other mode would have answered is mostly unknown. Each
head ("Instruct is right", "Thinking is right") therefore learns from the ratings of its own mode. It learns only the
difference to the artifact: its logits are a fixed offset, and the correction is a linear function of the same features
with a normal prior around 0 (Gaussian process classification with Laplace's approximation, Rasmussen and Williams 2006,
algorithm 3.1). Without ratings near a request, its probabilities stay those of the artifact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from vlroute.decision.classifier import ComplexityClassifier, Heads
from vlroute.decision.features import GramEncoder, LexicalEncoder, RequestEncoder, terms_of, tokenize
from vlroute.learning.ratings import AskedRequest, Rating
from vlroute.types import MODES

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Prior variance of each weight of a correction. The features of a request have about unit length in each of four
#: blocks, so the prior standard deviation of a corrected logit is about 1.5.
VARIANCE = 0.5
#: The largest inverse propensity weight: without a limit, a few explored requests would outweigh all other ones.
MAX_WEIGHT = 5.0
#: Seconds after which a rating has half of its weight, because models and users change.
HALF_LIFE = 30 * 86_400.0
#: Newton's method needs fewer steps.
MAX_STEPS = 50


@dataclass(frozen=True, slots=True)
class Correction:
    """The ratings as a training problem, from which corrections on all ratings or on some of them can be fitted.

    Attributes:
        base: The artifact that is corrected, with the words of the ratings added to its vocabulary.
        ratings: The n ratings.
        features: Features of the requests, csr `[n, width + embedding width]`.
        logits: Calibrated logits of the artifact, `[n, 2]`.
        slope: Slope of its calibration, `[n, 2]`.
        gram: Inner products of the features, `[n, n]`; 1 is added for the bias.
        weight: Inverse propensity weight of each rating, decayed with its age, `[n]`.
    """

    base: ComplexityClassifier
    ratings: Sequence[Rating]
    features: Any
    logits: Values
    slope: Values
    gram: Values
    weight: Values

    @classmethod
    def of(cls, base: ComplexityClassifier, ratings: Sequence[Rating], now: float) -> Correction:
        """Compute the features of the ratings.

        Args:
            base: The artifact that is corrected.
            ratings: At least one rating.
            now: The present, in seconds since 1970, UTC.

        Returns:
            The training problem.
        """
        base = extended(base, [one.request for one in ratings])
        matrix, logits, slope = _inputs(base, [one.request for one in ratings])
        gram = np.asarray((matrix @ matrix.T).todense()) + 1.0
        ages = np.asarray([max(now - one.request.created, 0.0) for one in ratings])
        weight = propensity_weights(ratings) * 0.5 ** (ages / HALF_LIFE)
        return cls(base, ratings, matrix, logits, slope, gram, weight)

    def fit(self, at: Mask | None = None) -> tuple[Values, Values]:
        """Fit both heads.

        Args:
            at: The ratings to learn from, `[n]`; None: all.

        Returns:
            The dual coefficients `[n, 2]`, 0 for other ratings; and the probabilities of all n requests, `[n, 2]`.
        """
        at = np.full(len(self.ratings), True) if at is None else at
        modes = np.asarray([MODES.index(one.mode) for one in self.ratings])
        right = np.asarray([one.correct for one in self.ratings])
        dual, p = np.zeros((len(right), 2)), np.zeros((len(right), 2))
        for head in (0, 1):
            rows = np.flatnonzero(at & (modes == head))
            slope, start = self.slope[:, head], self.logits[:, head]
            if len(rows):
                kernel = VARIANCE * self.gram[np.ix_(rows, rows)] * np.outer(slope[rows], slope[rows])
                dual[rows, head] = _newton(kernel, start[rows], right[rows], self.weight[rows]) * slope[rows]
            p[:, head] = expit(start + slope * VARIANCE * (self.gram @ dual[:, head]))
        return dual, p

    def apply(self, dual: Values) -> ComplexityClassifier:
        """Add a correction to the artifact.

        Args:
            dual: The dual coefficients, see `fit`.

        Returns:
            A new artifact with its own card.
        """
        heads, width = self.base.heads, self.base.encoder.width
        added = VARIANCE * np.asarray(self.features.T @ dual)
        weights, bias = heads.weights.copy(), heads.bias.copy()
        weights[:, :2] += added[:width].astype(np.float32)
        bias[:2] += VARIANCE * dual.sum(axis=0).astype(np.float32)
        embedded = heads.embedded + added[width:].astype(np.float32)
        base = self.base
        known = None if base.record_hashes is None else replace(base.record_hashes, complete=False)  # without ratings
        return ComplexityClassifier(
            base.encoder, replace(heads, weights=weights, bias=bias, embedded=embedded), base.latency, base.card,
            base.calibration, base.stages, base.start, known,
        )  # fmt: skip


def propensity_weights(ratings: Sequence[Rating]) -> Values:
    """Inverse propensity weights, `[n]`.

    They are limited to `MAX_WEIGHT` and scaled so that the ratings of each mode together weigh as much as their
    effective sample size (Kish 1965): a few large weights are not worth many ratings.
    """
    weight = np.minimum(1 / np.asarray([one.propensity for one in ratings]), MAX_WEIGHT)
    for mode in MODES:
        rows = np.asarray([one.mode == mode for one in ratings])
        if rows.any():
            weight[rows] *= weight[rows].sum() / (weight[rows] ** 2).sum()
    return np.asarray(weight)


def extended(base: ComplexityClassifier, requests: Sequence[AskedRequest]) -> ComplexityClassifier:
    """Add the words and character n-grams of `requests` to the vocabulary of an artifact, as hashes if it has hashes.

    They get no weight. They count as known from then on, see `Prediction.coverage`.

    Args:
        base: The artifact.
        requests: The requests.

    Returns:
        The artifact with more columns.
    """
    old = base.encoder
    prompts = LexicalEncoder.fit(terms_of(tokenize(one.prompt)) for one in requests)
    captions = LexicalEncoder.fit(terms_of(tokenize(one.caption)) for one in requests if one.caption)
    grams = GramEncoder.fit(one.prompt for one in requests)
    if (salt := old.salt) is not None:
        prompts, captions, grams = prompts.hashed(salt)[0], captions.hashed(salt)[0], grams.hashed(salt)[0]
    union = np.union1d(old.grams.grams, grams.grams)
    idf = np.zeros(len(union), np.float32)
    idf[np.searchsorted(union, grams.grams)] = grams.idf
    kept = np.searchsorted(union, old.grams.grams)
    idf[kept] = old.grams.idf
    encoder = RequestEncoder(
        _joined(old.prompt, prompts), GramEncoder(union, idf, salt), _joined(old.caption, captions), old.center,
        old.scale, old.text,
    )  # fmt: skip
    start = encoder.prompt.width
    places = np.concatenate([
        np.arange(old.prompt.width),
        start + kept,
        start + encoder.grams.width + np.arange(old.caption.width),
        encoder.width - len(old.center) + np.arange(len(old.center)),
    ])  # fmt: skip
    weights = np.zeros((encoder.width, 4), np.float32)
    weights[places] = base.heads.weights
    heads = Heads(**{**{name: getattr(base.heads, name) for name in Heads.__slots__}, "weights": weights})
    return ComplexityClassifier(
        encoder, heads, base.latency, base.card, base.calibration, base.stages, base.start, base.record_hashes
    )


def _joined(old: LexicalEncoder, new: LexicalEncoder) -> LexicalEncoder:
    known = set(old.terms)
    more = [(term, idf) for term, idf in zip(new.terms, new.idf, strict=True) if term not in known]
    idf = np.concatenate([old.idf, np.asarray([one[1] for one in more], np.float32)])
    return LexicalEncoder([*old.terms, *(one[0] for one in more)], idf, old.salt)


def _inputs(classifier: ComplexityClassifier, requests: Sequence[AskedRequest]) -> tuple[Any, Values, Values]:
    """Features, calibrated logits, and slope of the calibration, one row for each request."""
    found = [classifier.encoder.encode(one.prompt, one.caption, one.tools) for one in requests]
    starts = np.cumsum([0, *(len(one.columns) for one in found)])
    columns, values = (np.concatenate([getattr(one, name) for one in found]) for name in ("columns", "values"))
    words = sparse.csr_matrix((values.astype(float), columns, starts), shape=(len(found), classifier.encoder.width))
    embedding = np.stack([one.embedding for one in found]).astype(float)
    matrix = sparse.hstack([words, sparse.csr_matrix(embedding)], format="csr") if embedding.shape[1] else words
    logits = np.asarray([classifier.logits(one.prompt, one.caption, one.tools)[0] for one in requests])
    slope = classifier.heads.calibration[:, [int(one.captioned) for one in found], 0].astype(float)  # [2, n]
    return matrix, logits, slope.T


def _newton(kernel: Values, start: Values, right: Values, weight: Values) -> Values:
    """Coefficients at the mode of the posterior: the corrected logits are `start + kernel @ coefficients`."""
    added, coefficients = np.zeros(len(start)), np.zeros(len(start))
    for _ in range(MAX_STEPS):
        p = expit(start + added)
        curvature = np.maximum(weight * p * (1 - p), 1e-12)
        root = np.sqrt(curvature)
        b = curvature * added + weight * (right - p)
        factor = cho_factor(np.eye(len(start)) + root[:, None] * kernel * root)
        coefficients = b - root * cho_solve(factor, root * (kernel @ b))
        before, added = added, kernel @ coefficients
        if np.abs(added - before).max() < 1e-6:
            break
    return coefficients
