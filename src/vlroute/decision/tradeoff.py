"""Accuracy against seconds at each price, on the calibration records of a router."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.latency import LatencyModel
from vlroute.decision.text_encoder import Floats
from vlroute.decision.wilson import share_interval
from vlroute.types import MODES, Mode, Stage

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Records with their out-of-fold predictions and their outcomes. The two columns are Instruct and Thinking.

    Attributes:
        p: Predicted probabilities of a right answer, float32 `[n, 2]`.
        expected: Predicted numbers of tokens, `[n, 2]`.
        right: Correctness of the answers, 0 to 1, `[n, 2]`.
        tokens: Numbers of generated tokens, `[n, 2]`; the predicted ones if they were not recorded.
        coverage: See `Prediction`, `[n]`.
        later: `p` at later stages, by the stages that were passed, see `StageHeads`.

    Raises:
        ValueError: There are no records, a shape is wrong, or a value is out of range.
    """

    p: Floats
    expected: Floats
    right: Floats
    tokens: Floats
    coverage: Floats
    later: Mapping[tuple[Stage, ...], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.coverage)
        pairs = [getattr(self, name) for name in self.PAIRS] + [*self.later.values()]
        if n == 0 or self.coverage.shape != (n,) or any(one.shape != (n, 2) for one in pairs):
            raise ValueError("a calibration set needs at least one record, and two columns for each array")
        shares = (self.p, self.right, self.coverage, *self.later.values())
        if not all(one.min() >= 0 and one.max() <= 1 for one in shares):
            raise ValueError("probabilities, correctness and coverage of a calibration set must be from 0 to 1")
        if not (self.expected.min() >= 0 and self.tokens.min() >= 0):
            raise ValueError("numbers of tokens of a calibration set must be at least 0")

    PAIRS = ("p", "expected", "right", "tokens")


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a price is expected to lead to.

    Attributes:
        price: The price.
        accuracy: Expected accuracy, 0 to 1.
        interval: Its 95 % interval (Wilson), for the sampling of the calibration records.
        mean_seconds: Expected mean seconds of an answer.
        thinking_share: Expected share of requests that Thinking answers, 0 to 1.
    """

    price: float
    accuracy: float
    interval: tuple[float, float]
    mean_seconds: float
    thinking_share: float


class TradeoffCurve:
    """The operating points of all prices that differ, from the highest price (fewest requests think) down to 0.

    Records are sorted by expected gain per extra second. Each price then divides the sorted list into records that
    think and records that do not.

    Args:
        records: The calibration records.
        latency: Converts tokens to seconds.
        min_coverage: Records with a lower coverage go to `fallback_mode` at any price.
        fallback_mode: The mode for these records, as in `Policy`.

    Attributes:
        prices: One price for each operating point, falling, `[k]`.
        shares: Share of records that think, `[k]`.
        accuracies: Accuracy, `[k]`.
        seconds: Mean seconds, `[k]`.
        single_accuracies: Accuracy of always using Instruct and always using Thinking, `[2]`.
        single_seconds: Their mean seconds, `[2]`.
        count: Number of records.
    """

    def __init__(
        self,
        records: CalibrationSet,
        latency: LatencyModel,
        min_coverage: float = 0.0,
        fallback_mode: Mode = "instruct",
    ) -> None:
        expected, written = (seconds_of(tokens, latency) for tokens in (records.expected, records.tokens))
        gain = (records.p[:, 1] - records.p[:, 0]).astype(np.float64)
        extra = expected[:, 1] - expected[:, 0]
        with np.errstate(divide="ignore", over="ignore"):
            most = np.where(extra > 0, gain / np.where(extra > 0, extra, 1.0), np.inf)
        most = np.where(gain > 0, most, -np.inf)
        most = np.where(records.coverage < min_coverage, np.inf if fallback_mode == "thinking" else -np.inf, most)
        order = np.argsort(-most, kind="stable")
        most = most[order]
        right, written = records.right.astype(np.float64)[order], written[order]
        n = len(most)
        always, possible = int(np.isposinf(most).sum()), int((most > 0).sum())
        falls = np.flatnonzero(most[:-1] > most[1:]) + 1  # records with equal values think together
        cuts = np.unique([always, *falls[(falls >= always) & (falls <= possible)], possible])
        self._most, self._right, self._order, self._records = most, right, order, records
        self.count = n
        self._cuts = cuts
        self.prices: Values = np.asarray([_price(most, int(cut)) for cut in cuts])
        self.shares: Values = cuts / n
        self.accuracies: Values = (right[:, 0].sum() + _sums(right[:, 1] - right[:, 0])[cuts]) / n
        self.seconds: Values = (written[:, 0].sum() + _sums(written[:, 1] - written[:, 0])[cuts]) / n
        self.single_accuracies: Values = right.mean(axis=0)
        self.single_seconds: Values = written.mean(axis=0)

    def operating_point(self, position: int) -> OperatingPoint:
        """The operating point of the price at `position` in `prices`."""
        cut = int(self._cuts[position])
        got = np.concatenate([self._right[:cut, 1], self._right[cut:, 0]])
        return OperatingPoint(
            float(self.prices[position]), float(self.accuracies[position]), share_interval(got) or (0.0, 1.0),
            float(self.seconds[position]), float(self.shares[position]),
        )  # fmt: skip

    def answers(self, position: int) -> Values:
        """Correctness of each record at the price at `position` in `prices`, in the order of the records, `[n]`."""
        thinks = np.zeros(len(self._order), bool)
        thinks[self._order[: int(self._cuts[position])]] = True
        return np.where(thinks, self._records.right[:, 1], self._records.right[:, 0]).astype(np.float64)

    def at(self, price: float) -> OperatingPoint:
        """The operating point of any price >= 0."""
        found = self.operating_point(int(np.searchsorted(self._cuts, (self._most > price).sum())))
        return OperatingPoint(price, found.accuracy, found.interval, found.mean_seconds, found.thinking_share)


def seconds_of(tokens: Floats, latency: LatencyModel) -> Values:
    """Seconds `[n, 2]` for these numbers of tokens; they are linear in the tokens."""
    start = np.asarray([latency.expected(mode, 0.0) for mode in MODES])
    step = np.asarray([latency.expected(mode, 1.0) for mode in MODES]) - start
    return np.asarray(start + tokens * step)


def _sums(values: Values) -> Values:
    return np.concatenate([[0.0], np.cumsum(values)])


def _price(most: Values, cut: int) -> float:
    """A price at which exactly the first `cut` records think, half-way between its two bounds."""
    below = max(float(most[cut]), 0.0) if cut < len(most) else 0.0
    above = float(most[cut - 1]) if cut else math.inf
    if math.isinf(above):
        return below * 2 if below else 1.0
    return (below + above) / 2 if below else 0.0
