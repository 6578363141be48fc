"""Fitting one head at a time; every choice is made on rows the head has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from vlroute.learning.design import Design, Indices, Mask, Values
from vlroute.learning.records import outcomes
from vlroute.modes import Mode

#: Inverse strengths of the right/wrong heads' L2 penalty to choose from, ascending (one fit starts the next).
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
PATIENCE = 2
#: Strengths of the token heads' L2 penalty to choose from.
PENALTIES = (1.0, 5.0, 25.0)
#: A condition (with or without caption) with fewer examples is calibrated together with the other.
MIN_CALIBRATION = 50
#: With fewer known lengths a mode is taken to write `ASSUMED_TOKENS`.
MIN_LENGTHS = 20
ASSUMED_TOKENS: dict[Mode, float] = {"instruct": 60.0, "thinking": 600.0}

Head = tuple[Values, float, list[list[float]]]
LengthHead = tuple[Values, float, list[float]]


def fit_right(design: Design, fold: Indices, mode: Mode) -> Head:
    """Weights, bias and the calibration without and with caption of one right/wrong head.

    Crosses are used only where they lower the loss on unseen records by more than one standard error: some
    data needs them, elsewhere they are noise.
    """
    target = np.asarray([float(o.correct) for o in outcomes(design.records, mode)])[design.owner]
    matrix = design.uncrossed
    best, logits = _choose_strength(design, matrix, target, fold)
    if design.matrix.nnz > matrix.nnz:
        crossed_best, crossed_logits = _choose_strength(design, design.matrix, target, fold)
        lower = _log_loss(logits, target) - _log_loss(crossed_logits, target)
        saved = np.bincount(design.owner, weights=design.weight * lower)
        if saved.mean() > saved.std() / np.sqrt(len(saved)):
            matrix, best, logits = design.matrix, crossed_best, crossed_logits
    every_row = np.full(len(target), True)
    *_, (weights, bias) = _logistic_path(matrix, target, design.weight, every_row, STRENGTHS[: best + 1])
    both = _platt(logits, target, design.weight)
    calibration = [
        _platt(logits[rows], target[rows], design.weight[rows]) if rows.sum() >= MIN_CALIBRATION else both
        for rows in (~design.captioned, design.captioned)
    ]
    return weights, bias, calibration


def _choose_strength(design: Design, matrix: sparse.csr_matrix, target: Values, fold: Indices) -> tuple[int, Values]:
    """The strength with the lowest loss on unseen records, by position, and its raw logits there.

    The loss counts after calibration, which comes anyway: a strong penalty makes raw probabilities timid, not wrong.
    The loss falls, then rises: weaker penalties, which take longest, are not tried once it has risen twice.
    """
    tests = list(_tests(fold))
    paths = [_logistic_path(matrix, target, design.weight, ~test, STRENGTHS) for test in tests]
    best, lowest, chosen = 0, np.inf, np.zeros(len(target))
    for position in range(len(STRENGTHS)):
        logits = np.zeros(len(target))
        for test, path in zip(tests, paths, strict=True):
            weights, bias = next(path)
            logits[test] = matrix[test] @ weights + bias
        slope, intercept = _platt(logits, target, design.weight)
        loss = float(_log_loss(slope * logits + intercept, target) @ design.weight)
        if loss < lowest:
            best, lowest, chosen = position, loss, logits
        elif position - best == PATIENCE:
            break
    return best, chosen


def _log_loss(logits: Values, target: Values) -> Values:
    return np.asarray(np.logaddexp(0, logits) - target * logits)


def _logistic_path(
    matrix: sparse.csr_matrix,
    target: Values,
    weight: Values,
    rows: Mask,
    strengths: Sequence[float],
) -> Iterator[tuple[Values, float]]:
    """Weights and bias for each strength. A target between 0 and 1 counts in part as right, in part as wrong."""
    matrix, right, weight = matrix[rows], target[rows], weight[rows]
    weights = np.concatenate([weight * right, weight * (1 - right)])
    used = weights > 0
    labels = np.repeat([1, 0], len(right))[used]
    if len(set(labels.tolist())) < 2:  # always right or always wrong: only the add-one share can be learnt
        share = (float(right.sum()) + 1) / (len(right) + 2)
        for _ in strengths:
            yield np.zeros(matrix.shape[1]), float(np.log(share / (1 - share)))
        return
    stacked = sparse.vstack([matrix, matrix]).tocsr()[used]
    model = LogisticRegression(max_iter=500, tol=1e-3, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength).fit(stacked, labels, sample_weight=weights[used])
        yield model.coef_[0].copy(), float(model.intercept_[0])


def _platt(logits: Values, target: Values, weight: Values) -> list[float]:
    """Slope and intercept of a sigmoid on the raw logit (Platt 1999). A head that misleads is flattened, not turned."""
    total = float(weight.sum())
    # Platt's targets: n+1 right of n+2, so that a perfect head does not become certain
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


def fit_length(design: Design, fold: Indices, mode: Mode) -> LengthHead:
    """Weights, bias and (lowest, highest, smearing) ln tokens of one token head."""
    counts = [o.tokens for o in outcomes(design.records, mode)]
    known = np.asarray([count is not None for count in counts])[design.owner]
    target = np.log(np.maximum(np.asarray([count or 0 for count in counts], dtype=float), 1))[design.owner]
    nothing = np.zeros(design.matrix.shape[1])
    if known.sum() < MIN_LENGTHS:
        level = float(np.log(ASSUMED_TOKENS[mode]))
        return nothing, level, [level, level, 0.0]
    low, high = float(target[known].min()), float(target[known].max())
    if high - low < 1e-9:
        return nothing, low, [low, high, 0.0]
    unseen = np.zeros((len(PENALTIES), len(target)))
    for test in _tests(fold):
        if not (~test & known).any():
            continue
        for row, penalty in zip(unseen, PENALTIES, strict=True):
            weights, bias = _ridge(design, target, ~test & known, penalty)
            row[test] = (design.uncrossed[test] @ weights + bias).clip(low, high)
    weight = design.weight * known
    best = int(np.argmin(((unseen - target) ** 2) @ weight))
    smearing = np.log((weight @ np.exp(target - unseen[best])) / weight.sum())
    weights, bias = _ridge(design, target, known, PENALTIES[best])
    return weights, bias, [low, high, float(smearing)]


def _ridge(design: Design, target: Values, rows: Mask, penalty: float) -> tuple[Values, float]:
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-4)
    model.fit(design.uncrossed[rows], target[rows], sample_weight=design.weight[rows])
    return model.coef_, float(model.intercept_)


def _tests(fold: Indices) -> Iterator[Mask]:
    """Each fold in turn as the rows to predict."""
    for number in range(int(fold.max()) + 1):
        yield fold == number
