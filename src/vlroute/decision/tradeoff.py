"""What every price would give: accuracy against seconds on the records a router was calibrated on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.latency import LatencyModel
from vlroute.decision.text_encoder import Floats
from vlroute.decision.wilson import share_interval
from vlroute.types import MODES, Mode

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Records as predicted by models that had not seen them, and what came of them; columns Instruct, Thinking.

    `p` float32 `[n, 2]`: predicted probabilities. `expected` `[n, 2]`: predicted tokens. `right` `[n, 2]`: 0 to 1.
    `tokens` `[n, 2]`: really written (as predicted where that is not recorded). `coverage` `[n]`: see `Prediction`.
    """

    p: Floats
    expected: Floats
    right: Floats
    tokens: Floats
    coverage: Floats

    def __post_init__(self) -> None:
        n = len(self.coverage)
        if n == 0 or self.coverage.shape != (n,) or any(getattr(self, name).shape != (n, 2) for name in self.PAIRS):
            raise ValueError("a calibration set holds at least one record, and two columns for each")

    PAIRS = ("p", "expected", "right", "tokens")


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What `price` is expected to give.

    `interval`: 95 % of the accuracy (Wilson); it covers the sampling of the calibration records. `mean_seconds` an
    answer at the pace given; `thinking_share` 0 to 1.
    """

    price: float
    accuracy: float
    interval: tuple[float, float]
    mean_seconds: float
    thinking_share: float


class TradeoffCurve:
    """The outlook at every price that makes a difference, from the highest (fewest think) down to 0.

    Records think in the order of gain per extra second, so each price is a cut in one sorted list.
    """

    def __init__(
        self, records: CalibrationSet, latency: LatencyModel, min_coverage: float = 0.0, unsure: Mode = "instruct"
    ) -> None:
        """At this `latency`; records below `min_coverage` go to `unsure` at any price, as `Policy` sends them."""
        expected, written = (_seconds(tokens, latency) for tokens in (records.expected, records.tokens))
        gain = (records.p[:, 1] - records.p[:, 0]).astype(np.float64)
        extra = expected[:, 1] - expected[:, 0]
        with np.errstate(divide="ignore", over="ignore"):
            most = np.where(extra > 0, gain / np.where(extra > 0, extra, 1.0), np.inf)
        most = np.where(gain > 0, most, -np.inf)
        most = np.where(records.coverage < min_coverage, np.inf if unsure == "thinking" else -np.inf, most)
        order = np.argsort(-most, kind="stable")
        most = most[order]
        right, written = records.right.astype(np.float64)[order], written[order]
        n = len(most)
        always, possible = int(np.isposinf(most).sum()), int((most > 0).sum())
        falls = np.flatnonzero(most[:-1] > most[1:]) + 1  # equal records think together
        cuts = np.unique([always, *falls[(falls >= always) & (falls <= possible)], possible])
        self._most, self._right = most, right
        self._cuts = cuts
        self.prices: Values = np.asarray([_price(most, int(cut)) for cut in cuts])
        self.shares: Values = cuts / n
        self.accuracies: Values = (right[:, 0].sum() + _sums(right[:, 1] - right[:, 0])[cuts]) / n
        self.seconds: Values = (written[:, 0].sum() + _sums(written[:, 1] - written[:, 0])[cuts]) / n
        self.single_accuracies: Values = right.mean(axis=0)
        self.single_seconds: Values = written.mean(axis=0)

    def operating_point(self, position: int) -> OperatingPoint:
        """Of one cut by its position in `prices`."""
        cut = int(self._cuts[position])
        got = np.concatenate([self._right[:cut, 1], self._right[cut:, 0]])
        return OperatingPoint(
            float(self.prices[position]), float(self.accuracies[position]), share_interval(got) or (0.0, 1.0),
            float(self.seconds[position]), float(self.shares[position]),
        )  # fmt: skip

    def at(self, price: float) -> OperatingPoint:
        """The outlook at any price >= 0."""
        found = self.operating_point(int(np.searchsorted(self._cuts, (self._most > price).sum())))
        return OperatingPoint(price, found.accuracy, found.interval, found.mean_seconds, found.thinking_share)


def _seconds(tokens: Floats, latency: LatencyModel) -> Values:
    """Seconds `[n, 2]` for so many tokens; linear in them, so two points of each mode tell all."""
    start = np.asarray([latency.expected(mode, 0.0) for mode in MODES])
    step = np.asarray([latency.expected(mode, 1.0) for mode in MODES]) - start
    return np.asarray(start + tokens * step)


def _sums(values: Values) -> Values:
    return np.concatenate([[0.0], np.cumsum(values)])


def _price(most: Values, cut: int) -> float:
    """A price at which exactly the first `cut` records think: half-way between the last that does and the next."""
    below = max(float(most[cut]), 0.0) if cut < len(most) else 0.0
    above = float(most[cut - 1]) if cut else math.inf
    if math.isinf(above):
        return below * 2 if below else 1.0
    return (below + above) / 2 if below else 0.0
