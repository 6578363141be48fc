"""Linear models: many logistic or ridge regressions on one matrix at once, and Platt's sigmoid."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from vlroute.decision.text_encoder import Floats

Values = NDArray[np.float64]

#: A fit ends when the gradient is this part of its first size.
TOLERANCE = 1e-3
#: Accuracy of each Newton step, as part of the gradient; steps far from the solution need not be accurate.
STEP_TOLERANCE = 0.05
MAX_NEWTON, MAX_CONJUGATE, MAX_HALVINGS = 20, 50, 10
#: L2 penalty of the slope of a sigmoid, in standard units of the logits.
RIDGE = 1e-3


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
        return self._values.T @ values


def fit_logistic(
    matrix: Matrix, target: Floats, weight: Floats, penalty: float, offset: Floats | float = 0.0
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

    Returns:
        Weights `[columns, k]` and biases `[k]`.
    """
    total, right = weight.sum(axis=0), (weight * target).sum(axis=0)
    mixed = (right > 0) & (right < total)
    bias = np.log((right + 1) / (total - right + 1))
    weights = np.zeros((matrix.shape[1], target.shape[1]), np.float32)
    logits = np.broadcast_to(bias, target.shape) + offset
    first = None
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
    return loss.sum(axis=0, dtype=np.float64) + penalty / 2 * (weights**2).sum(axis=0, dtype=np.float64)


def _length(values: Floats) -> Floats:
    return np.asarray(np.sqrt((values**2).sum(axis=0)))


def platt(logits: Values, target: Values, weight: Values) -> tuple[float, float]:
    """Fit a sigmoid on logits (Platt 1999) by Newton's method.

    Args:
        logits: Of left-out rows, `[m]`.
        target: How right the mode was, 0 to 1, `[m]`.
        weight: Weights of the rows, `[m]`.

    Returns:
        Slope and intercept. The slope is 0 instead of negative: misleading logits are ignored, not inverted.
    """
    total, right = float(weight.sum()), float(weight @ target)
    # Platt's targets, (n + 1) / (n + 2), keep a perfect head from becoming certain
    high, low = (right + 1) / (right + 2), 1 / (total - right + 2)
    soft = low + (high - low) * target
    # in standard units: a common scale of the logits must not change the result
    center, scale = float(weight @ logits) / total, max(float(logits.std()), 1e-9)
    columns = np.stack([(logits - center) / scale, np.ones_like(logits)])
    share = float(weight @ soft) / total
    found = np.asarray([0.0, np.log(share / (1 - share))])
    for _ in range(MAX_NEWTON):
        p = expit(found @ columns)
        hessian = (columns * (weight * p * (1 - p))) @ columns.T + np.diag([RIDGE, 0])
        step = np.linalg.solve(hessian, columns @ (weight * (p - soft)) + [RIDGE * found[0], 0])
        found -= step
        if np.abs(step).max() < 1e-6:
            break
    if found[0] > 0:
        return float(found[0] / scale), float(found[1] - found[0] * center / scale)
    share = (right + 1) / (total + 2)
    return 0.0, float(np.log(share / (1 - share)))
