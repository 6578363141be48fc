"""Base learners: linear heads over words or over the embedding, with predictions for left-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from vlroute.decision.text_encoder import Floats
from vlroute.learning.corpus import Design, Indices, Values
from vlroute.learning.linear import Matrix, calibrate, fit_logistic, fit_ridge

ERRORS = 2.0  # another strength must be better than the usual one by this many standard errors
#: Strengths of the L2 penalty of the token heads.
PENALTIES = (1.0, 5.0, 25.0)
#: With fewer known lengths, all answers of a mode are assumed to have the same length.
MIN_LENGTHS = 20


@dataclass(frozen=True, slots=True)
class RightHeads:
    """Heads "Instruct is right" and "Thinking is right".

    Attributes:
        weights: `[columns, 2]`.
        bias: `[2]`.
        unseen: Logits of rows that were left out of the fit, offset included, `[m, 2]`.
    """

    weights: Values
    bias: Values
    unseen: Values


def fit_right(
    matrix: Matrix,
    right: Values,
    weight: Values,
    fold: Indices,
    strengths: Sequence[float],
    usual: int = 0,
    offset: Values | None = None,
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
        strengths: Inverse strengths of the penalty, ascending.
        usual: Position of the usual strength.
        offset: Logits to which the heads add, for each fit of `fit_weights`, `[m, folds + 1, 2]`.

    Returns:
        Heads fitted on all rows, and their logits on left-out rows.
    """
    used = fit_weights(weight, fold)
    parts = used.shape[1]
    target = np.tile(right, parts).astype(np.float32)
    known = np.zeros_like(target) if offset is None else offset.reshape(target.shape).astype(np.float32)
    rows = np.arange(len(right))
    heads, errors = [], []
    found: tuple[Floats, Floats] | None = None
    for position, strength in enumerate(strengths):
        found = weights, bias = fit_logistic(matrix, target, np.repeat(used, 2, axis=1), 1 / strength, known, found)
        logits = (matrix @ weights + bias + known).reshape(-1, parts, 2)
        unseen = logits[rows, fold].astype(np.float64)
        heads.append(RightHeads(weights[:, -2:].astype(np.float64), bias[-2:].astype(np.float64), unseen))
        errors.append(weight * (_gain(unseen, right, weight) - right[:, 1] + right[:, 0]) ** 2)
        if position > usual and errors[position].sum() > errors[position - 1].sum():
            break
    saved = errors[usual] - np.asarray(errors)
    better = saved.sum(axis=1) > ERRORS * np.sqrt(len(right)) * saved.std(axis=1)
    return heads[int(np.argmax(np.where(better, saved.sum(axis=1), 0))) if better.any() else usual]


def _gain(logits: Values, right: Values, weight: Values) -> Values:
    p = expit(logits * (sigmoid := calibrate(logits, right, weight))[:, 0] + sigmoid[:, 1])
    return np.asarray(p[:, 1] - p[:, 0])


def fit_weights(weight: Values, fold: Indices) -> Floats:
    """Return the weights of the rows in each fit of a cross-validation.

    Args:
        weight: Weights of the rows, `[m]`.
        fold: Fold of each row, `[m]`.

    Returns:
        For each fold, and then for the fit of all rows, the weights; 0 in rows that are left out, `[m, folds + 1]`.
    """
    folds = int(fold.max()) + 1
    return np.where(fold[:, None] == np.arange(folds + 1), 0, weight[:, None]).astype(np.float32)


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


def fit_tokens(design: Design, fold: Indices, mode: int, usual: float) -> TokenHead:
    """Fit the token head of one mode by ridge regression; the penalty has the lowest error on left-out rows.

    Args:
        design: Features and lengths.
        fold: Fold of each row.
        mode: Column of the mode.
        usual: Assumed number of tokens, if too few lengths are known.

    Returns:
        The head.
    """
    counts = design.tokens[:, mode]
    known = ~np.isnan(counts)
    target = np.log(np.maximum(np.where(known, counts, 1), 1))
    nothing = np.zeros(design.words.shape[1])
    if known.sum() < MIN_LENGTHS:
        level = float(np.log(max(usual, 1.0)))
        return TokenHead(nothing, level, (level, level, 0.0))
    low, high = float(target[known].min()), float(target[known].max())
    if high - low < 1e-9:
        return TokenHead(nothing, low, (low, high, 0.0))
    used = fit_weights(design.weight * known, fold)
    parts = used.shape[1]
    used[:, ~used.any(axis=0)] = used[:, -1:]  # a fold that holds all known lengths: nothing is left out
    every = np.tile(used, len(PENALTIES))
    weights, bias = fit_ridge(
        design.words,
        np.broadcast_to(target[:, None], every.shape).astype(np.float32),
        every,
        np.repeat(PENALTIES, parts).astype(np.float32),
    )
    logs = (design.words @ weights + bias).reshape(-1, len(PENALTIES), parts).clip(low, high)
    unseen = logs[np.arange(len(fold)), :, fold]
    weight = design.weight * known
    best = int(np.argmin(weight @ (unseen - target[:, None]) ** 2))
    smearing = np.log((weight @ np.exp(target - unseen[:, best])) / weight.sum())
    last = (best + 1) * parts - 1
    return TokenHead(weights[:, last].astype(np.float64), float(bias[last]), (low, high, float(smearing)))
