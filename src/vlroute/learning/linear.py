"""Linear models: many logistic or ridge regressions on one matrix at once, and calibration by sigmoids."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from vlroute.decision.text_encoder import Floats

Values = NDArray[np.float64]

#: A fit ends when the gradient is this part of its size at weights of 0.
TOLERANCE = 1e-3
#: Accuracy of each Newton step, as part of the gradient; steps far from the solution need not be accurate.
STEP_TOLERANCE = 0.05
MAX_NEWTON, MAX_CONJUGATE, MAX_HALVINGS = 20, 50, 10
#: Slope of a sigmoid that is expected before any record is seen, and its lowest value, in standard units of the logits.
PRIOR_SLOPE, MIN_SLOPE = 0.3, 0.02
#: Precision of the prior: 40 for the difference of the slopes, 10 for their mean. A record adds at most 0.25.
PRIOR_PRECISION = np.asarray([[42.5, -37.5, 0, 0], [-37.5, 42.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


class Matrix(Protocol):
    """Features of m rows that can be multiplied from both sides."""

    shape: tuple[int, int]

    def __matmul__(self, weights: Floats, /) -> Floats:
        """Return the product with weights `[columns, k]`."""
        ...

    def adjoint(self, values: Floats, /) -> Floats:
        """Return the product of the transposed matrix and values `[m, k]`."""
        ...


class Dense:
    """A `Matrix` that is one array.

    Args:
        values: The array, `[m, columns]`.
    """

    def __init__(self, values: NDArray[np.floating]) -> None:
        self._values: Floats = values.astype(np.float32)
        self.shape = self._values.shape

    def __matmul__(self, weights: Floats) -> Floats:
        return self._values @ weights

    def adjoint(self, values: Floats) -> Floats:
        """Return the product of the transposed matrix and values `[m, k]`."""
        return self._values.T @ values


def fit_logistic(
    matrix: Matrix,
    target: Floats,
    weight: Floats,
    penalty: float,
    offset: Floats | float = 0.0,
    start: tuple[Floats, Floats] | None = None,
) -> tuple[Floats, Floats]:
    """Fit k logistic regressions with an L2 penalty by a truncated Newton method (Dembo and Steihaug 1983).

    All fits share the products with the matrix, in which nearly all of the time is spent. A weight of 0 leaves a row
    out, so that the folds of a cross-validation are fitted together without copies of the matrix. A regression whose
    targets are all equal gets no weights, and as its bias the add-one estimate.

    Args:
        matrix: Features, `[m, columns]`.
        target: 0 to 1, `[m, k]`.
        weight: Weights of the rows, `[m, k]`.
        penalty: Half of this times the squared length of the weights is added to the loss.
        offset: Added to the logits, `[m, k]`.
        start: Weights and biases from which the fit starts, such as those of another penalty: it ends earlier, and its
            result is as accurate. Default: weights of 0.

    Returns:
        Weights `[columns, k]` and biases `[k]`.
    """
    total, right = weight.sum(axis=0), (weight * target).sum(axis=0)
    mixed = (right > 0) & (right < total)
    bias = np.log((right + 1) / (total - right + 1))
    weights = np.zeros((matrix.shape[1], target.shape[1]), np.float32)
    logits: Floats = (np.broadcast_to(bias, target.shape) + offset).astype(np.float32)
    first = None
    if start is not None:
        error = weight * (expit(logits) - target)
        first = _length(matrix.adjoint(error)) + np.abs(error.sum(axis=0))
        weights, bias = start
        logits = (matrix @ weights + bias + offset).astype(np.float32)
    for _ in range(MAX_NEWTON):
        p = expit(logits)
        error = weight * (p - target)
        slope, slope_bias = matrix.adjoint(error) + penalty * weights, error.sum(axis=0)
        size = _length(slope) + np.abs(slope_bias)
        first = size if first is None else first
        active = mixed & (size > TOLERANCE * first)
        if not active.any():
            break
        step, step_bias = _newton_step(matrix, weight * p * (1 - p), penalty, slope, slope_bias, STEP_TOLERANCE)
        step, step_bias = step * active, step_bias * active
        change, shrink = matrix @ step + step_bias, np.ones(len(bias), np.float32)
        before = _loss(logits, target, weight, weights, penalty)
        for _ in range(MAX_HALVINGS):  # a full step may overshoot where the classes can be separated
            after = _loss(logits + shrink * change, target, weight, weights + shrink * step, penalty)
            worse = after > before + 1e-6 * np.abs(before)
            if not worse.any():
                break
            shrink = np.where(worse, shrink / 2, shrink).astype(np.float32)
        weights, bias, logits = weights + shrink * step, bias + shrink * step_bias, logits + shrink * change
    return weights, bias


def fit_ridge(matrix: Matrix, target: Floats, weight: Floats, penalty: Floats) -> tuple[Floats, Floats]:
    """Fit k ridge regressions by conjugate gradients.

    Args:
        matrix: Features, `[m, columns]`.
        target: `[m, k]`.
        weight: Weights of the rows, `[m, k]`; each column needs one above 0.
        penalty: Of each regression, `[k]`.

    Returns:
        Weights `[columns, k]` and biases `[k]`.
    """
    mean = (weight * target).sum(axis=0) / weight.sum(axis=0)
    error = weight * (mean - target)
    step, bias = _newton_step(matrix, weight, penalty, matrix.adjoint(error), error.sum(axis=0), TOLERANCE)
    return step, mean + bias


def _newton_step(
    matrix: Matrix, curvature: Floats, penalty: Floats | float, slope: Floats, slope_bias: Floats, tolerance: float
) -> tuple[Floats, Floats]:
    """Solve for the step of weights and bias; the bias is eliminated, so that the rest is well conditioned."""
    total = np.maximum(curvature.sum(axis=0), 1e-9)
    mean = matrix.adjoint(curvature)  # of the features, times `total`
    rest = mean * (slope_bias / total) - slope
    step, direction = np.zeros_like(rest), rest.copy()
    size = (rest**2).sum(axis=0)
    goal = tolerance**2 * size
    for _ in range(MAX_CONJUGATE):
        active = size > goal
        if not active.any():
            break
        product = matrix @ direction
        product -= (curvature * product).sum(axis=0) / total
        image = matrix.adjoint(curvature * product) + penalty * direction
        along = (direction * image).sum(axis=0)
        rate = np.where(active, size / np.where(active, along, 1), 0).astype(np.float32)
        step += rate * direction
        rest -= rate * image
        new = (rest**2).sum(axis=0)
        direction = rest + np.where(active, new / np.where(active, size, 1), 0).astype(np.float32) * direction
        size = np.where(active, new, size)
    return step, -(slope_bias + (mean * step).sum(axis=0)) / total


def _loss(logits: Floats, target: Floats, weight: Floats, weights: Floats, penalty: float) -> Values:
    loss = weight * (np.logaddexp(0, logits) - target * logits)
    squares = (weights**2).sum(axis=0, dtype=np.float64)
    return np.asarray(loss.sum(axis=0, dtype=np.float64) + penalty / 2 * squares)


def _length(values: Floats) -> Floats:
    return np.asarray(np.sqrt((values**2).sum(axis=0)))


def calibrate(logits: Values, target: Values, weight: Values) -> Values:
    """Fit a sigmoid on the logits of each of two heads (Platt 1999), with a prior on the slopes.

    Requests are ranked by the difference of two probabilities. A wrong ratio of the slopes therefore costs more than
    two wrong slopes of the right ratio, and few records hardly tell this ratio. The prior is that both slopes are equal
    and that the logits explain a little. It weighs as much as some hundred records, so that many records decide alone.

    Args:
        logits: Of left-out rows, `[m, 2]`.
        target: How right both modes were, 0 to 1, `[m, 2]`.
        weight: Weights of the rows, `[m]`.

    Returns:
        Slope and intercept of both heads, `[2, 2]`. Slopes are above 0: misleading logits are ignored, not inverted.
    """
    total, right = float(weight.sum()), weight @ target
    # Platt's targets, (n + 1) / (n + 2), keep a perfect head from becoming certain
    high, low = (right + 1) / (right + 2), 1 / (total - right + 2)
    soft = low + (high - low) * target
    center = weight @ logits / total
    spread = float(np.sqrt((weight @ (logits - center) ** 2).mean() / total))
    scale = spread if spread > 1e-6 else 1.0
    standard = (logits - center) / scale
    share = weight @ soft / total
    prior = np.asarray([PRIOR_SLOPE, PRIOR_SLOPE, 0, 0])
    found = np.concatenate([prior[:2], np.log(share / (1 - share))])
    for _ in range(MAX_NEWTON):
        p = expit(standard * found[:2] + found[2:])
        error, curvature = weight[:, None] * (p - soft), weight[:, None] * p * (1 - p)
        gradient = np.concatenate([(standard * error).sum(axis=0), error.sum(axis=0)])
        across = np.diag((curvature * standard).sum(axis=0))
        own = np.diag((curvature * standard**2).sum(axis=0))
        hessian = np.block([[own, across], [across, np.diag(curvature.sum(axis=0))]])
        step = np.linalg.solve(hessian + PRIOR_PRECISION, gradient + PRIOR_PRECISION @ (found - prior))
        found = found - step
        if np.abs(step).max() < 1e-6:
            break
    slope = np.maximum(found[:2], MIN_SLOPE) / scale
    return np.column_stack([slope, found[2:] - slope * center])
