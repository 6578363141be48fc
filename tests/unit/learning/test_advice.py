"""Warnings about records, and about routers that do not fit them."""

from __future__ import annotations

import numpy as np

from tests.unit.learning.test_intervals import evaluation
from vlroute.learning.advice import few_records, result_warnings


def outcomes_and_probabilities(n: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes `[2, n]` drawn from probabilities `[2, n]` that differ in which mode is better."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    p = 1 / (1 + np.exp(-np.stack([0.3 - 2 * x, 0.3 + 2 * x])))
    return (rng.random((2, n)) < p).astype(float), p


def test_a_router_that_fits_causes_no_warning() -> None:
    right, p = outcomes_and_probabilities()
    assert result_warnings(evaluation(right, p)) == []


def test_a_ranking_that_is_worse_than_chance_and_probabilities_that_do_not_fit_are_named() -> None:
    right, p = outcomes_and_probabilities()
    area, *errors, accuracy = result_warnings(evaluation(right, 1 - p))
    assert "is below zero: the router ranks these requests worse than chance" in area
    assert [("Instruct" in one, "Thinking" in one) for one in errors] == [(True, False), (False, True)]
    assert all("are wrong by 0.4" in one or "are wrong by 0.5" in one for one in errors)
    assert "less accurate than" in accuracy


def test_calibration_errors_of_few_records_that_chance_explains_are_not_named() -> None:
    right, p = outcomes_and_probabilities(40)
    assert not any("probabilities" in one for one in result_warnings(evaluation(right, p)))


def test_few_records_are_named() -> None:
    assert few_records(200) == []
    assert few_records(1)[0].startswith("Only 1 record: ")
    assert few_records(199)[0].startswith("Only 199 records: ")
