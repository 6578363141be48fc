"""Chooses the number of reasoning tokens beyond which waiting for an answer is not worth its seconds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

#: Fewest reasoning tokens of an automatic budget.
FLOOR = 32
#: Number of quantiles that stand for the calibration set.
QUANTILES = 200


class BudgetRule:
    """Budgets from how much longer or shorter than expected the reasoning of the calibration set was.

    A budget of T tokens for a request whose reasoning is expected to have τ tokens is worth

        gain · P(rτ ≤ T) − price · seconds per token · E[min(rτ, T)],

    where r is the ratio of actual to expected tokens in the calibration set, predicted out of fold. Both count the
    answer, which is short beside the reasoning. Reasoning that is closed at the budget is assumed to be right as often
    as Instruct. The budget is the T with the highest worth. If the numbers of tokens were not recorded, all ratios are
    1, and the budget is the expected number.

    Args:
        expected: Expected tokens of Thinking for each record, `[n]`.
        tokens: Tokens that it generated, `[n]`.
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
            second_price: Price of the seconds of one token.

        Returns:
            Reasoning tokens, at least `FLOOR`.
        """
        worth = gain * self._finished - second_price * expected * self._spent
        best = int(worth.argmax())
        tokens = self._ratios[best] * expected if worth[best] > 0 else 0.0
        return max(FLOOR, math.ceil(tokens))
