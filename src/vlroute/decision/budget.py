"""Chooses the number of reasoning tokens beyond which waiting for an answer is not worth its seconds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Minimum number of reasoning tokens of an automatic budget.
FLOOR = 32
#: Number of quantiles that represent the calibration set.
QUANTILES = 200


class BudgetRule:
    """Chooses budgets from the ratios of actual to expected reasoning tokens in the calibration set.

    The value of a budget of T tokens, for a request whose reasoning is expected to have τ tokens, is

        gain · P(rτ ≤ T) − price · seconds per token · E[min(rτ, T)],

    where r is the ratio of actual to expected tokens in the calibration set, with out-of-fold predictions. Both numbers
    include the answer, which is short compared with the reasoning. An answer after reasoning that was closed at the
    budget is assumed to be right as often as Instruct's. The budget is the T with the highest value. If the numbers of
    tokens were not recorded, all ratios are 1, and the budget is the expected number.

    Args:
        expected: Expected tokens of Thinking for each record, `[n]`.
        tokens: Generated tokens of Thinking for each record, `[n]`.
    """

    def __init__(self, expected: NDArray[np.floating], tokens: NDArray[np.floating]) -> None:
        ratios = np.asarray(tokens, np.float64) / np.maximum(np.asarray(expected, np.float64), 1.0)
        shares = (np.arange(QUANTILES) + 1) / QUANTILES
        self._ratios = np.quantile(ratios, shares)
        self._finished = shares
        # mean of min(r, ratio) for each ratio
        until = np.cumsum(self._ratios) / QUANTILES
        self._spent = until + (1 - shares) * self._ratios

    def budget(self, gain: float, expected: float, second_price: float) -> int:
        """The budget of one request.

        Args:
            gain: p_thinking − p_instruct.
            expected: Expected tokens of Thinking.
            second_price: Price of a second × seconds per token.

        Returns:
            Reasoning tokens, at least `FLOOR`.
        """
        values = gain * self._finished - second_price * expected * self._spent
        best = int(values.argmax())
        tokens = self._ratios[best] * expected if values[best] > 0 else 0.0
        return max(FLOOR, math.ceil(tokens))
