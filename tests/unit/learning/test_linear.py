"""The linear models equal those of scikit-learn, and calibration shrinks on few records."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

from vlroute.learning.linear import Dense, calibrate, fit_logistic, fit_ridge


def drawn(rows: int, columns: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, targets of two heads, and weights."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, columns))
    right = rng.random((rows, 2)) < expit(values @ rng.normal(size=(columns, 2)) + [0.5, -1])
    return values, right.astype(np.float32), rng.uniform(0.5, 1.5, (rows, 2)).astype(np.float32)


class Counted(Dense):
    """Counts the products with weights."""

    products = 0

    def __matmul__(self, weights: np.ndarray) -> np.ndarray:
        self.products += 1
        return super().__matmul__(weights)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_logistic_regression_equals_that_of_scikit_learn(penalty: float, started: bool) -> None:
    """Rows of weight 0 are left out. The weakest penalty is on data that can almost be separated."""
    values, right, weight = drawn(150)
    weight[::3, 1] = 0
    start = fit_logistic(Dense(values), right, weight, 3 * penalty) if started else None
    weights, bias = fit_logistic(Dense(values), right, weight, penalty, start=start)
    for head in (0, 1):
        used = weight[:, head] > 0
        model = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000)
        model.fit(values[used], right[used, head], sample_weight=weight[used, head])
        np.testing.assert_allclose(weights[:, head], model.coef_[0], atol=0.03 * np.abs(model.coef_).max())
        assert bias[head] == pytest.approx(model.intercept_[0], abs=0.15)


def test_a_fit_that_starts_from_another_penalty_takes_fewer_steps() -> None:
    values, right, weight = drawn(400, columns=100)
    products = []
    for start in (None, fit_logistic(Dense(values), right, weight, 3.0)):
        matrix = Counted(values)
        fit_logistic(matrix, right, weight, 1.0, start=start)
        products.append(matrix.products)
    assert products[1] < products[0]


def test_an_offset_is_what_the_weights_add_to() -> None:
    values, right, weight = drawn(400)
    whole = fit_logistic(Dense(values), right, weight, 1e-3)[0]
    offset = (values[:, :6] @ whole[:6]).astype(np.float32)
    rest = fit_logistic(Dense(values[:, 6:]), right, weight, 1e-3, offset)[0]
    np.testing.assert_allclose(rest, whole[6:], atol=0.05 * np.abs(whole).max())


def test_equal_labels_give_the_add_one_estimate() -> None:
    values, right, weight = drawn(50)
    right[:, 0], weight[:] = 1, 1
    weights, bias = fit_logistic(Dense(values), right, weight, 1.0)
    assert not weights[:, 0].any()
    assert expit(bias[0]) == pytest.approx(51 / 52, abs=1e-5)
    assert weights[:, 1].any()


def test_ridge_regression_equals_that_of_scikit_learn() -> None:
    values, _, weight = drawn(80)
    target = np.random.default_rng(1).normal(size=(80, 2)).astype(np.float32)
    weights, bias = fit_ridge(Dense(values), target, weight, np.asarray([1, 25], np.float32))
    for head, penalty in enumerate((1, 25)):
        model = Ridge(alpha=penalty).fit(values, target[:, head], sample_weight=weight[:, head])
        np.testing.assert_allclose(weights[:, head], model.coef_, atol=2e-3)
        assert bias[head] == pytest.approx(model.intercept_, abs=2e-3)


def test_many_records_determine_both_slopes() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200_000, 2))
    right = (rng.random(truth.shape) < expit(truth)).astype(float)
    found = calibrate(truth * [0.5, 2] + [3, -1], right, np.ones(len(truth)))
    np.testing.assert_allclose(found, [[2, -6], [0.5, 0.5]], rtol=0.05)


def test_few_records_hardly_change_the_ratio_of_the_slopes() -> None:
    """Noise must not make one head count ten times as much as the other."""
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        logits = 0.3 * rng.normal(size=(60, 2))
        right = (rng.random(logits.shape) < expit(logits)).astype(float)
        slopes = calibrate(logits, right, np.ones(60))[:, 0]
        assert (slopes > 0).all()
        ratios.append(slopes[0] / slopes[1])
    low, high = np.quantile(ratios, [0.1, 0.9])
    assert 0.4 < low <= high < 2.5


def test_misleading_logits_are_ignored() -> None:
    logits = np.random.default_rng(0).normal(size=(4000, 2))
    right = (np.random.default_rng(1).random(logits.shape) < expit(-logits)).astype(float)
    slopes = calibrate(logits, right, np.ones(4000))[:, 0]
    assert (slopes > 0).all()
    assert (slopes < 0.05).all()
