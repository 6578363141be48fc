"""Base learners: linear heads over words or over the embedding, fitted with all choices made on left-out rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from vlroute.decision.features import RequestEncoder
from vlroute.learning.assumptions import mean_tokens
from vlroute.records import Record, outcomes
from vlroute.types import Mode

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]
Matrix = Any  # csr or float64 `[m, columns]`

#: Inverse strengths of the L2 penalty of the right/wrong heads, ascending (each fit starts from the previous one).
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
USUAL = 1  # position of the usual strength
ERRORS = 2.0  # another strength must be better than the usual one by this many standard errors
#: Strengths of the L2 penalty of the token heads.
PENALTIES = (1.0, 5.0, 25.0)
#: With fewer known lengths, all answers of a mode are assumed to have the same length.
MIN_LENGTHS = 20


@dataclass
class Design:
    """The training matrix.

    A record with a caption has two rows, with and without its caption, with half the weight each, so that the heads
    learn both conditions.

    Attributes:
        encoder: Computes the features.
        records: The n training records.
        matrix: Features of the m rows, csr `[m, width]`.
        embedding: Embeddings, float64 `[m, embedding width]`.
        owner: Record of each row, `[m]`.
        given: Row of each record with its caption, if it has one, `[n]`.
        captioned: Whether the row has a caption, `[m]`.
        right: How right both modes were, 0 to 1, `[m, 2]`.
        weight: Weight of each row, `[m]`.
    """

    encoder: RequestEncoder
    records: Sequence[Record]
    matrix: sparse.csr_matrix = field(init=False)
    embedding: Values = field(init=False)
    owner: Indices = field(init=False)
    given: Indices = field(init=False)
    captioned: Mask = field(init=False)
    right: Values = field(init=False)
    weight: Values = field(init=False)

    def __post_init__(self) -> None:
        owner, features = [], []
        for index, record in enumerate(self.records):
            found = self.encoder.encode(record.prompt, record.caption, record.tools)
            rows = [found, self.encoder.encode(record.prompt, tools=record.tools)] if found.captioned else [found]
            owner += [index] * len(rows)
            features += rows
        starts = np.cumsum([0, *(len(f.columns) for f in features)])
        columns = np.concatenate([f.columns for f in features])
        values = np.concatenate([f.values for f in features]).astype(np.float64)
        self.matrix = sparse.csr_matrix((values, columns, starts), shape=(len(features), self.encoder.width))
        self.embedding = np.stack([f.embedding for f in features]).astype(np.float64)
        self.owner = np.asarray(owner, dtype=np.int64)
        self.given = np.unique(self.owner, return_index=True)[1]
        self.captioned = np.asarray([f.captioned for f in features])
        right = [(float(record.instruct.correct), float(record.thinking.correct)) for record in self.records]
        self.right = np.asarray(right)[self.owner]
        self.weight = 1.0 / np.bincount(self.owner)[self.owner]


@dataclass(frozen=True, slots=True)
class RightHeads:
    """Heads "Instruct is right" and "Thinking is right".

    Attributes:
        weights: `[columns, 2]`.
        bias: `[2]`.
        unseen: Logits of rows that were left out of the fit, `[m, 2]`.
    """

    weights: Values
    bias: Values
    unseen: Values


def fit_right(
    matrix: Matrix, right: Values, weight: Values, fold: Indices, strengths: Sequence[float] = STRENGTHS
) -> RightHeads:
    """Fit logistic heads with a common L2 penalty.

    The usual penalty is replaced only by one whose squared error of the *gain* on left-out rows, after calibration, is
    lower by more than `ERRORS` standard errors: on a thousand records the best penalty is mostly chance. The log loss
    of each head would be the wrong criterion: it prefers weak penalties, but errors that both heads share cancel in
    the gain, and errors of one head do not. The error falls and then rises with weaker penalties, so the search stops
    when it rises; weak penalties also take longest.

    Args:
        matrix: Features of the rows, `[m, columns]`.
        right: How right both modes were, 0 to 1, `[m, 2]`.
        weight: Weights of the rows, `[m]`.
        fold: Fold of each row, `[m]`.
        strengths: Inverse strengths of the penalty, ascending; the second one is the usual one.

    Returns:
        Heads fitted on all rows, and their logits on left-out rows.
    """
    tests = list(tests_of(fold))
    paths = [[_logistic_path(matrix, own, weight, ~test, strengths) for own in right.T] for test in tests]
    unseen, errors = [], []
    for position in range(len(strengths)):
        logits = np.zeros(right.shape)
        for test, heads in zip(tests, paths, strict=True):
            for head, path in enumerate(heads):
                weights, start = next(path)
                logits[test, head] = matrix[test] @ weights + start
        unseen.append(logits)
        errors.append(weight * (_gain(logits, right, weight) - right[:, 1] + right[:, 0]) ** 2)
        if position > USUAL and errors[position].sum() > errors[position - 1].sum():
            break
    saved = errors[USUAL] - errors
    better = saved.sum(axis=1) > ERRORS * np.sqrt(len(right)) * saved.std(axis=1)
    best = int(np.argmax(np.where(better, saved.sum(axis=1), 0))) if better.any() else USUAL
    every_row = np.full(len(right), True)
    last = [list(_logistic_path(matrix, own, weight, every_row, strengths[: best + 1]))[-1] for own in right.T]
    bias = np.asarray([one[1] for one in last])
    return RightHeads(np.column_stack([one[0] for one in last]), bias, unseen[best])


def _gain(logits: Values, right: Values, weight: Values) -> Values:
    p = []
    for own, target in zip(logits.T, right.T, strict=True):
        slope, intercept = platt(own, target, weight)
        p.append(expit(slope * own + intercept))
    return np.asarray(p[1] - p[0])


def _logistic_path(
    matrix: Matrix, target: Values, weight: Values, rows: Mask, strengths: Sequence[float]
) -> Iterator[tuple[Values, float]]:
    """Weights and bias for each strength. A target between 0 and 1 is a right and a wrong row with partial weights."""
    matrix, right, weight = matrix[rows], target[rows], weight[rows]
    wins, losses = np.flatnonzero(right > 0), np.flatnonzero(right < 1)
    if not len(wins) or not len(losses):  # all labels are equal: the bias is the add-one estimate
        share = (float(right.sum()) + 1) / (len(right) + 2)
        for _ in strengths:
            yield np.zeros(matrix.shape[1]), float(np.log(share / (1 - share)))
        return
    matrix = matrix[np.concatenate([wins, losses])]
    labels = np.repeat([1, 0], [len(wins), len(losses)])
    weights = np.concatenate([(weight * right)[wins], (weight * (1 - right))[losses]])
    model = LogisticRegression(max_iter=500, tol=1e-3, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength).fit(matrix, labels, sample_weight=weights)
        yield model.coef_[0].copy(), float(model.intercept_[0])


def platt(logits: Values, target: Values, weight: Values) -> list[float]:
    """Fit a sigmoid on logits (Platt 1999).

    Args:
        logits: Of left-out rows, `[m]`.
        target: How right the mode was, 0 to 1, `[m]`.
        weight: Weights of the rows, `[m]`.

    Returns:
        Slope and intercept. The slope is 0 instead of negative: misleading logits are ignored, not inverted.
    """
    total = float(weight.sum())
    # Platt's targets, (n + 1) / (n + 2), keep a perfect head from becoming certain
    high, low = (weight @ target + 1) / (weight @ target + 2), 1 / (total - weight @ target + 2)
    soft = low + (high - low) * target
    parts = np.concatenate([weight * soft, weight * (1 - soft)])
    model = LogisticRegression(C=1e3, max_iter=500)
    model.fit(np.tile(logits, 2)[:, None], np.repeat([1, 0], len(logits)), sample_weight=parts)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope > 0:
        return [slope, intercept]
    share = (float(weight @ target) + 1) / (total + 2)
    return [0.0, float(np.log(share / (1 - share)))]


@dataclass(frozen=True, slots=True)
class TokenHead:
    """Linear head of ln tokens.

    Attributes:
        weights: `[columns]`.
        bias: The intercept.
        limits: Lowest and highest ln tokens, and ln of Duan's smearing factor, see `Heads.log_tokens`.
    """

    weights: Values
    bias: float
    limits: tuple[float, float, float]


def fit_tokens(design: Design, fold: Indices, mode: Mode) -> TokenHead:
    """Fit the token head of one mode by ridge regression; the penalty has the lowest error on left-out rows."""
    counts = [o.tokens for o in outcomes(design.records, mode)]
    known = np.asarray([count is not None for count in counts])[design.owner]
    target = np.log(np.maximum(np.asarray([count or 0 for count in counts], dtype=float), 1))[design.owner]
    nothing = np.zeros(design.matrix.shape[1])
    if known.sum() < MIN_LENGTHS:
        level = float(np.log(max(mean_tokens(design.records)[mode], 1.0)))
        return TokenHead(nothing, level, (level, level, 0.0))
    low, high = float(target[known].min()), float(target[known].max())
    if high - low < 1e-9:
        return TokenHead(nothing, low, (low, high, 0.0))
    unseen = np.zeros((len(PENALTIES), len(target)))
    for test in tests_of(fold):
        if not (~test & known).any():
            continue
        for row, penalty in zip(unseen, PENALTIES, strict=True):
            weights, bias = _ridge(design, target, ~test & known, penalty)
            row[test] = (design.matrix[test] @ weights + bias).clip(low, high)
    weight = design.weight * known
    best = int(np.argmin(((unseen - target) ** 2) @ weight))
    smearing = np.log((weight @ np.exp(target - unseen[best])) / weight.sum())
    weights, bias = _ridge(design, target, known, PENALTIES[best])
    return TokenHead(weights, bias, (low, high, float(smearing)))


def _ridge(design: Design, target: Values, rows: Mask, penalty: float) -> tuple[Values, float]:
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3)
    model.fit(design.matrix[rows], target[rows], sample_weight=design.weight[rows])
    return model.coef_, float(model.intercept_)


def tests_of(fold: Indices) -> Iterator[Mask]:
    """Yield the rows of each fold as a mask, `[m]`."""
    for number in range(int(fold.max()) + 1):
        yield fold == number
