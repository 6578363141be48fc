"""Fits a `ComplexityClassifier`: base learners, the selection among them, calibration, token heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import expit

from vlroute.decision.classifier import ComplexityClassifier, Heads, Prediction, Start
from vlroute.decision.text_encoder import Floats, TextEncoder
from vlroute.errors import InputError
from vlroute.learning.assumptions import mean_tokens, measure_latency
from vlroute.learning.base_learners import RightHeads, fit_right, fit_tokens, fit_weights
from vlroute.learning.corpus import Corpus, Design, Indices, Values, Vocabulary
from vlroute.learning.folds import stratified_folds
from vlroute.learning.intervals import Interval, Sampling, area_influence
from vlroute.learning.linear import calibrate
from vlroute.learning.metrics import area_over_random
from vlroute.records import Record
from vlroute.types import MODES

MIN_RECORDS = 20
INNER_FOLDS = 4
ERRORS = 2.0  # another learner must be ahead of the default by this many standard errors
#: A condition (with or without caption) with fewer rows shares its calibration with the other one.
MIN_CALIBRATION = 200
#: With fewer records, nothing is selected: other learners and penalties are better by no more than chance.
MANY = 500
#: Inverse strengths of the L2 penalty, ascending; the first one is the usual one.
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
#: Share of the words in the average on many records, and the number of records that gives half of it.
MOST_WORDS, HALF_WORDS = 2 / 3, 20


@dataclass(frozen=True, slots=True)
class Comparison:
    """One learner on records that were left out of its fit.

    Attributes:
        name: "words", "embedding" or "words + embedding".
        area: Area over random, in points.
        interval: Its 95 % interval.
        behind: By how much the area is lower than that of the selected learner.
        error: Standard error of this difference.
        chosen: Whether this learner is selected.
    """

    name: str
    area: float
    interval: Interval | None
    behind: float
    error: float
    chosen: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected learner. Its logit is the sum of the logits of the base learners, each times a factor.

    Attributes:
        learners: Heads by name: "words" and, with a text encoder, "embedding".
        factors: Factor of each selected base learner.
        start: Slope and intercept for the logits of the router from which the training starts, `[2, 2]`; the heads add
            to them. None without such a router.
        calibration: Slope and intercept for the sum: head, without or with caption, (slope, intercept).
        comparisons: All learners in comparison.
    """

    learners: dict[str, RightHeads]
    factors: dict[str, float]
    start: Values | None
    calibration: Values
    comparisons: list[Comparison]


def select(design: Design, fold: Indices, learner: str | None = None) -> Selection:
    """Compare the base learners and their average on left-out records.

    The default is "words + embedding" if there is a text encoder, else "words". On `MANY` records, another learner
    replaces it if its area over random is higher by more than two standard errors of the paired difference: even on a
    thousand records areas differ by chance. The average is that of logits in standard units. On many records words have
    double weight, because they combine two views: words and characters. Few records teach little about single words.

    Args:
        design: The training matrix.
        fold: The fold of each row.
        learner: Name of the only learner to consider.

    Returns:
        The selected learner.

    Raises:
        InputError: There is no such `learner` for these records.
    """
    matrices = {"words": design.words}
    candidates, default = {"words": {"words": 1.0}}, "words"
    if design.embedding.shape[1]:
        matrices["embedding"] = design.embedding
        default = "words + embedding"
        share = MOST_WORDS * len(design.given) / (len(design.given) + HALF_WORDS)
        candidates |= {"embedding": {"embedding": 1.0}, default: {"words": share, "embedding": 1 - share}}
    if learner is not None:
        if learner not in candidates:
            raise InputError(f"no learner {learner!r}; for these records there are: {', '.join(candidates)}")
        candidates, default = {learner: candidates[learner]}, learner
    right, weight = design.right, design.weight
    offset = start = None
    if design.before is not None:
        sigmoids = [calibrate(design.before, right, used) for used in fit_weights(weight, fold).T.astype(float)]
        offset = np.stack([design.before * one[:, 0] + one[:, 1] for one in sigmoids], axis=1)
        start = sigmoids[-1]
    strengths = STRENGTHS if len(design.given) >= MANY else STRENGTHS[:1]
    needed = {name for shares in candidates.values() for name in shares}
    learners = {
        name: fit_right(matrices[name], right, weight, fold, strengths, offset=offset) for name in sorted(needed)
    }
    spread = {name: _spread(heads.unseen, weight) for name, heads in learners.items()}
    factors = {
        name: {base: share / spread[base] for base, share in shares.items()} for name, shares in candidates.items()
    }
    logits = {
        name: np.asarray(sum(factor * learners[base].unseen for base, factor in parts.items()))
        for name, parts in factors.items()
    }
    calibrations = {name: by_condition(design, one) for name, one in logits.items()}
    best, comparisons = _compare(design, logits, calibrations, default)
    return Selection(learners, factors[best], start, calibrations[best], comparisons)


def _spread(logits: Values, weight: Values) -> float:
    """Standard deviation of the logits within the heads."""
    spread = float(np.sqrt(weight @ (logits - weight @ logits / weight.sum()) ** 2).mean() / weight.sum() ** 0.5)
    return spread if spread > 1e-6 else 1.0


def _compare(
    design: Design, logits: Mapping[str, Values], calibrations: Mapping[str, Values], default: str
) -> tuple[str, list[Comparison]]:
    """The name of the selected learner, and all in comparison. `logits`: of left-out rows, `[m, 2]`."""
    right = design.right[design.given].T
    gain, n = right[1] - right[0], right.shape[1]
    sampling = Sampling(n, folds=INNER_FOLDS)
    scores = {name: _gain(design, one, calibrations[name]) for name, one in logits.items()}
    area = {name: area_over_random(score, *right) for name, score in scores.items()}
    influence = {name: area_influence(score, gain) for name, score in scores.items()}

    def error(name: str, other: str) -> float:
        return float(100 * (influence[name] - influence[other]).std() / n**0.5)

    ahead = [name for name in scores if n >= MANY and area[name] - area[default] > ERRORS * error(name, default)]
    best = max(ahead, key=lambda name: area[name], default=default)
    return best, [
        Comparison(
            name, area[name], sampling.area(score[None], gain), area[best] - area[name], error(best, name), name == best
        )
        for name, score in scores.items()
    ]


def _gain(design: Design, logits: Values, calibration: Values) -> Values:
    """Predicted gain of each record with its caption, `[n]`."""
    rows = design.given
    sigmoid = calibration[:, design.captioned[rows].astype(int)]
    p = expit(sigmoid[..., 0] * logits[rows].T + sigmoid[..., 1])
    return np.asarray(p[1] - p[0])


def by_condition(design: Design, logits: Values) -> Values:
    """Calibrate `logits` `[m, 2]` separately without and with caption.

    Args:
        design: The training matrix.
        logits: Of left-out rows, `[m, 2]`.

    Returns:
        For each head, without and with caption: slope and intercept of a sigmoid, `[2, 2, 2]`.
    """
    both = calibrate(logits, design.right, design.weight)
    return np.stack(
        [
            calibrate(logits[rows], design.right[rows], design.weight[rows]) if rows.sum() >= MIN_CALIBRATION else both
            for rows in (~design.captioned, design.captioned)
        ],
        axis=1,
    )


@dataclass(frozen=True, slots=True)
class Fitted:
    """Vocabulary and weights of a fitted classifier.

    Attributes:
        vocabulary: Vocabulary and scales.
        heads: The heads.
        comparisons: All learners in comparison.
        start: Factor of the logits of the router from which the training started, float32 `[2]`; None without one.
    """

    vocabulary: Vocabulary
    heads: Heads
    comparisons: list[Comparison]
    start: Floats | None

    def classifier(
        self,
        corpus: Corpus,
        records: Sequence[Record],
        text: TextEncoder | None,
        start: tuple[str, ComplexityClassifier] | None = None,
    ) -> ComplexityClassifier:
        """Return the classifier.

        Args:
            corpus: The records as numbers.
            records: The same records.
            text: Embeds other texts.
            start: Name of the router from which the training started, and this router.

        Returns:
            The classifier. Its card contains the comparison of the learners as `model_selection`.
        """
        encoder = corpus.terms.encoder(self.vocabulary, text if len(self.heads.embedded) else None)
        card = {"model_selection": [asdict(one) for one in self.comparisons]}
        first = None if start is None or self.start is None else Start(start[1], self.start, start[0])
        return ComplexityClassifier(encoder, self.heads, measure_latency(records), card, start=first)


def fit_heads(
    corpus: Corpus, rows: Indices, tokens: Sequence[float], *, seed: int = 0, learner: str | None = None
) -> Fitted:
    """Fit on the records with the indices `rows`.

    Selection and calibration use predictions for records that were left out of the fit, in `INNER_FOLDS` folds. Equal
    texts may be in different folds, because they may also be repeated in use: if they were kept together, the
    calibration would be that of new texts only, which measurably shifts the probabilities for prompts from templates.

    Args:
        corpus: The records as numbers.
        rows: Indices of the training records.
        tokens: Assumed tokens of an answer in both modes, if too few are known.
        seed: Seed of the folds.
        learner: The only base learner to consider, see `select`.

    Returns:
        The fitted classifier.

    Raises:
        InputError: There is no such `learner`.
    """
    vocabulary = corpus.fit(rows)
    design = corpus.design(vocabulary, rows)
    fold = stratified_folds(corpus.strata[rows], INNER_FOLDS, seed)[design.owner]
    selection = select(design, fold, learner)
    weights = np.zeros((design.words.shape[1], 4))
    embedded, bias = np.zeros((design.embedding.shape[1], 2)), np.zeros(4)
    heads = [fit_tokens(design, fold, mode, usual) for mode, usual in enumerate(tokens)]
    weights[:, 2:] = np.column_stack([head.weights for head in heads])
    bias[2:] = [head.bias for head in heads]
    for name, factor in selection.factors.items():  # a sum of linear functions is linear
        fitted = selection.learners[name]
        (weights if name == "words" else embedded)[:, :2] += fitted.weights * factor
        bias[:2] += fitted.bias * factor
    slope = None
    if selection.start is not None:  # the logits of each base learner contain it
        factor = sum(selection.factors.values())
        slope = (selection.start[:, 0] * factor).astype(np.float32)
        bias[:2] += selection.start[:, 1] * factor
    return Fitted(
        vocabulary,
        Heads(
            weights=weights.astype(np.float32),
            embedded=(embedded if embedded.any() else embedded[:0]).astype(np.float32),
            bias=bias.astype(np.float32),
            calibration=np.asarray(selection.calibration, dtype=np.float32),
            log_tokens=np.asarray([head.limits for head in heads], dtype=np.float32),
        ),
        selection.comparisons,
        slope,
    )


def predictions(fitted: Fitted, design: Design) -> list[Prediction]:
    """Predict all rows of a design, as `ComplexityClassifier.predict` does one request.

    Args:
        fitted: The fitted classifier.
        design: Features with its vocabulary.

    Returns:
        The predictions, `[m]`.
    """
    heads = fitted.heads
    raw = design.words @ heads.weights + heads.bias
    if len(heads.embedded):
        raw[:, :2] += design.embedding @ heads.embedded
    if design.before is not None and fitted.start is not None:
        raw[:, :2] += design.before * fitted.start
    sigmoids = heads.calibration[:, design.captioned.astype(int)].astype(np.float64)
    p = expit((sigmoids[..., 0] * raw[:, :2].T + sigmoids[..., 1]).clip(-30, 30))
    low, high, smearing = heads.log_tokens.astype(np.float64).T
    tokens = np.exp(raw[:, 2:].astype(np.float64).clip(low, high) + smearing)
    return [Prediction(*row) for row in np.column_stack([p.T, tokens, design.coverage]).tolist()]


def fit_classifier(
    records: Sequence[Record], *, seed: int = 0, text: TextEncoder | None = None, learner: str | None = None
) -> ComplexityClassifier:
    """Fit a classifier, see `fit_heads`.

    The result is deterministic: equal records in equal order and equal seeds give equal weights.

    Args:
        records: At least 20 labeled records.
        seed: Seed of the folds.
        text: Embeds prompts and captions; None: words only.
        learner: The only base learner to consider, see `select`. Useful where the folds cannot tell the learners
            apart, for example for prompts made from few templates.

    Returns:
        The classifier. Its card contains the comparison of the learners as `model_selection`.

    Raises:
        ValueError: There are too few records.
        InputError: There is no such `learner`.
    """
    if len(records) < MIN_RECORDS:
        raise ValueError(too_few(len(records), "record", MIN_RECORDS, "to learn from"))
    corpus, tokens = Corpus(records, text), mean_tokens(records)
    fitted = fit_heads(corpus, np.arange(len(records)), [tokens[mode] for mode in MODES], seed=seed, learner=learner)
    return fitted.classifier(corpus, records, text)


def too_few(number: int, noun: str, least: int, purpose: str) -> str:
    """The sentence that says how many records or requests there are and how many are needed."""
    found = f"1 {noun} is" if number == 1 else f"{number} {noun}s are"
    return f"{found} too few {purpose}: at least {least} are needed"
