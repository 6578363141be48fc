"""Confidence intervals of shares, and the quantiles that they need. Needs numpy only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NORMAL_95 = 1.959964
_STUDENT_95 = {1: 12.7062, 2: 4.3027}


def student_95(degrees: int) -> float:
    """Return the quantile of Student's t distribution at 97.5 %, for 95 % intervals, to three digits.

    Abramowitz and Stegun (1964), 26.7.5; exact values below three degrees of freedom.
    """
    if degrees in _STUDENT_95:
        return _STUDENT_95[degrees]
    z = NORMAL_95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / degrees**power for power, term in enumerate(terms, 1)))


def wilson_interval(
    mean: float, variance: float, n: float, quantile: float = NORMAL_95, least: float = 0.0
) -> tuple[float, float]:
    """Compute Wilson's score interval (1927) of a mean of values from 0 to 1, at the effective sample size.

    For independent values that are 0 or 1 this is the usual Wilson interval. For shares of several tries, values that
    depend on each other, and other bounded values, the effective sample size is mean (1 - mean) / variance, as Korn
    and Graubard (1998) propose for surveys.

    Args:
        mean: Mean of the values, 0 to 1.
        variance: Estimated variance of this mean.
        n: Number of independent values; the sample size where all values are equal and the variance says nothing.
        quantile: Quantile of the normal or t distribution, for a two-sided interval.
        least: Lower bound of the effective sample size. Near a mean of 0 or 1, mean (1 - mean) approaches 0, but a
            variance with further sources does not. Without a bound, the size would be less than 1 there, and the
            interval almost 0 to 1. Where the bound applies, the width of the interval still depends on `variance`.

    Returns:
        Lower and upper limit, within 0 and 1.
    """
    product = mean * (1 - mean)
    # a mean of 1 - 1e-16 is a rounded 1, at which the effective sample size would be next to nothing
    size = product / variance if min(variance * n, product) > 1e-12 else float(n)
    size = max(size, least)
    squared = quantile**2 / size
    center = (mean + squared / 2) / (1 + squared)
    half = math.sqrt(quantile**2 * max(variance, product / size) + squared**2 / 4) / (1 + squared)
    return max(0.0, min(center - half, mean)), min(1.0, max(center + half, mean))


def share_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the 95 % Wilson interval of the mean of independent `values` `[n]` from 0 to 1; None for no values."""
    if not len(values):
        return None
    return wilson_interval(float(values.mean()), float(values.var()) / len(values), len(values))
