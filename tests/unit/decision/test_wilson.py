"""Wilson intervals and quantiles compared with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vlroute.decision.wilson import share_interval, student_95, wilson_interval


def test_a_mean_that_rounding_keeps_from_one_has_the_interval_of_one() -> None:
    assert wilson_interval(1 - 1e-16, 1e-4, 200) == pytest.approx(wilson_interval(1.0, 1e-4, 200))


def test_shares_get_wilson_intervals() -> None:
    for right, of in ((0, 150), (150, 150), (1, 20), (37, 100), (1, 1)):
        expected = stats.binomtest(right, of).proportion_ci(method="wilson")
        found = share_interval(np.repeat([1.0, 0.0], [right, of - right]))
        assert found == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share_interval(np.zeros(0)) is None


def test_quantiles_of_students_t() -> None:
    for degrees in (1, 2, 3, 4, 7, 20, 99, 5000):
        assert student_95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)
