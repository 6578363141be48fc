"""Interval of the gain of Thinking, for decisions that need a bound of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.wilson import share_interval

#: An interval rests on this share of the calibration records, at least `NEAREST`: those with the closest predictions.
SHARE, NEAREST = 0.1, 100


class GainInterval:
    """Computes intervals from the errors of predicted gains, on the calibration records with the closest predictions.

    Args:
        p: Out-of-fold probabilities of a right answer of Instruct and Thinking, `[n, 2]`.
        right: Correctness of their answers, 0 to 1, `[n, 2]`.
    """

    def __init__(self, p: NDArray[np.floating], right: NDArray[np.floating]) -> None:
        predicted = np.asarray(p[:, 1], np.float64) - p[:, 0]
        order = np.argsort(predicted, kind="stable")
        self._predicted = predicted[order]
        self._errors = (np.asarray(right[:, 1], np.float64) - right[:, 0])[order] - self._predicted

    def around(self, gain: float) -> tuple[float, float]:
        """The 95 % interval of the mean gain of requests with this predicted gain.

        It is the predicted gain plus the Wilson interval of the mean error of the predictions. If they are biased, the
        interval is extended so that it contains the predicted gain.

        Args:
            gain: The predicted gain, −1 to 1.

        Returns:
            Lower and upper limit, −1 to 1.
        """
        n = len(self._predicted)
        count = min(n, max(NEAREST, round(SHARE * n)))
        at = int(np.searchsorted(self._predicted, gain))
        start = min(max(at - count // 2, 0), n - count)
        # errors are between -2 and 2; Wilson's interval needs values between 0 and 1
        low, high = share_interval((2 + self._errors[start : start + count]) / 4) or (0.0, 1.0)
        return max(-1.0, gain + min(4 * low - 2, 0.0)), min(1.0, gain + max(4 * high - 2, 0.0))
