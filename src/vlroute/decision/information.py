"""The value of information: when the next stage is worth its seconds, and the trade-off curve that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.evidence import LATER, Passed, StageHeads
from vlroute.decision.latency import LatencyModel
from vlroute.decision.tradeoff import CalibrationSet, OperatingPoint, TradeoffCurve, Values, seconds_of
from vlroute.decision.wilson import share_interval
from vlroute.types import Mode, Stage

#: The value of information at a margin is the mean over this share of the records, those with the nearest margins.
NEIGHBORS = 0.1
#: Minimum value of going on to the next stage. Smaller values are within the noise of the calibration records.
MIN_VALUE = 0.001
#: Number of margins at which a value of information is stored; values between them are interpolated.
POINTS = 129
#: Number of prices of a staged curve. The simulation of one price takes about 0.3 ms per 1000 records.
PRICES = 33


@dataclass(frozen=True, slots=True)
class Course:
    """Result of a staged policy on the calibration records at one price.

    Attributes:
        thinks: Whether Thinking answers, `[n]`.
        stage: Number of the stage of the decision, `[n]`.
        seconds: Seconds of the whole request, `[n]`.
    """

    thinks: NDArray[np.bool_]
    stage: NDArray[np.int64]
    seconds: Values


class StagePlan:
    """Decides, at one price, whether the next stage is worth its seconds.

    The margin is the gain minus the threshold. The value of going on is the mean, over calibration records with similar
    margins, of the utility of going on minus that of deciding now, both computed with the out-of-fold probabilities of
    the last stage. The utility of a mode is its probability of a right answer minus the price of all seconds until the
    answer, including those of abandoned work (Howard, "Information value theory", 1966).

    Args:
        records: The calibration records, with probabilities at later stages.
        stages: The stages to use, "prompt" first.
        latency: Converts tokens to seconds.
        price: Price of a second.
        min_coverage: Records with a lower coverage go to `fallback_mode` at the stage "prompt".
        fallback_mode: As in `Policy`.
        shared_prompt: Whether Thinking continues a prompt that Instruct has read, as in a hybrid.
    """

    def __init__(
        self,
        records: CalibrationSet,
        stages: Sequence[Stage],
        latency: LatencyModel,
        price: float,
        min_coverage: float = 0.0,
        fallback_mode: Mode = "instruct",
        shared_prompt: bool = False,
    ) -> None:
        self.stages, self.price = tuple(stages), price
        self._latency, self._shared_prompt = latency, shared_prompt
        self._min_coverage, self._fallback_mode = min_coverage, fallback_mode
        expected = seconds_of(records.expected, latency)
        p, wasted, margins, thinks = self._decisions(records)

        def utility(thinking: NDArray[np.bool_], cost: Values) -> Values:
            return np.where(
                thinking, p[-1][:, 1] - price * (expected[:, 1] + cost), p[-1][:, 0] - price * expected[:, 0]
            )

        covered = records.coverage >= min_coverage
        final, cost = thinks[-1], wasted[-1]
        #: For each stage but the last one, margins and the value of going on at them.
        self._values: list[tuple[Values, Values]] = []
        for i in reversed(range(len(self.stages) - 1)):
            value = utility(final, cost) - utility(thinks[i], wasted[i])
            points = _smoothed(margins[i][covered], value[covered])
            self._values.insert(0, points)
            on = np.interp(margins[i], *points) > MIN_VALUE
            final, cost = np.where(on, final, thinks[i]), np.where(on, cost, wasted[i])
        #: Result of this plan on the calibration records.
        self.course = self.on(records)

    def on(self, records: CalibrationSet) -> Course:
        """Result of this plan on records, which may be others than the calibration records.

        Args:
            records: Records with probabilities at the later stages.

        Returns:
            What is decided, where, and the seconds that the answers take.
        """
        taken = seconds_of(records.tokens, self._latency)
        _, _, margins, thinks = self._decisions(records)
        uncovered = records.coverage < self._min_coverage
        final, on = thinks[0], ~uncovered
        reached = np.zeros(len(final), np.int64)
        for i, points in enumerate(self._values):
            on = on & (np.interp(margins[i], *points) > MIN_VALUE)
            final, reached = np.where(on, thinks[i + 1], final), np.where(on, i + 1, reached)
        final = np.where(uncovered, self._fallback_mode == "thinking", final)
        wasted = [wasted_seconds(stage, taken[:, 0], self._latency, self._shared_prompt) for stage in self.stages]
        thinking = taken[:, 1] + np.stack(wasted)[reached, np.arange(len(reached))]
        return Course(final, reached, np.where(final, thinking, taken[:, 0]))

    def _decisions(
        self, records: CalibrationSet
    ) -> tuple[list[Values], list[Values], list[Values], list[NDArray[np.bool_]]]:
        """For each stage: probabilities, seconds lost until then, margins, and whether Thinking would answer."""
        expected = seconds_of(records.expected, self._latency)
        p = [_probabilities(records, self.stages[: i + 1]) for i in range(len(self.stages))]
        wasted = [wasted_seconds(stage, expected[:, 0], self._latency, self._shared_prompt) for stage in self.stages]
        extra = [expected[:, 1] + cost - expected[:, 0] for cost in wasted]
        gains = [q[:, 1] - q[:, 0] for q in p]
        margins = [gain - self.price * np.maximum(more, 0) for gain, more in zip(gains, extra, strict=True)]
        thinks = [(gain > 0) & (margin > 0) for gain, margin in zip(gains, margins, strict=True)]
        return p, wasted, margins, thinks

    def goes_on(self, stage: Stage, margin: float) -> bool:
        """Whether to go on to the next stage after `stage` at this margin; False after the last stage."""
        at = self.stages.index(stage)
        return at < len(self._values) and bool(np.interp(margin, *self._values[at]) > MIN_VALUE)


class StagedCurve(TradeoffCurve):
    """The operating points of a staged policy at some prices, from the highest price down to 0.

    Args:
        records: The calibration records, with probabilities at later stages.
        stages: The stages of the policy.
        latency: Converts tokens to seconds.
        min_coverage: As in `StagePlan`.
        fallback_mode: As in `StagePlan`.
        shared_prompt: As in `StagePlan`.

    Attributes:
        stage_shares: For each price, the share of requests that are decided at each stage, `[k, stages]`.
    """

    def __init__(
        self,
        records: CalibrationSet,
        stages: Sequence[Stage],
        latency: LatencyModel,
        min_coverage: float = 0.0,
        fallback_mode: Mode = "instruct",
        shared_prompt: bool = False,
    ) -> None:
        super().__init__(records, latency, min_coverage, fallback_mode)
        self._plan = partial(
            StagePlan, records, stages, latency,
            min_coverage=min_coverage, fallback_mode=fallback_mode, shared_prompt=shared_prompt,
        )  # fmt: skip
        at = np.unique(np.linspace(0, len(self.prices) - 1, PRICES).round().astype(int))
        self.prices = self.prices[at]
        courses = [self.plan(float(price)).course for price in self.prices]
        self._answers = [self._correctness(one) for one in courses]
        self.shares = np.asarray([one.thinks.mean() for one in courses])
        self.accuracies = np.asarray([answers.mean() for answers in self._answers], np.float64)
        self.seconds = np.asarray([one.seconds.mean() for one in courses])
        count = len(stages)
        self.stage_shares = np.stack([np.bincount(one.stage, minlength=count) / len(one.stage) for one in courses])

    def operating_point(self, position: int) -> OperatingPoint:
        """The operating point of the price at `position` in `prices`."""
        return OperatingPoint(
            float(self.prices[position]), float(self.accuracies[position]),
            share_interval(self._answers[position]) or (0.0, 1.0), float(self.seconds[position]),
            float(self.shares[position]),
        )  # fmt: skip

    def plan(self, price: float) -> StagePlan:
        """The plan of the policy at a price."""
        return self._plan(price=price)

    def answers(self, position: int) -> Values:
        """Correctness of each record at the price at `position` in `prices`."""
        return np.asarray(self._answers[position], np.float64)

    def at(self, price: float) -> OperatingPoint:
        """The operating point of any price >= 0."""
        course = self.plan(price).course
        right = self._correctness(course)
        return OperatingPoint(
            price, float(right.mean()), share_interval(right) or (0.0, 1.0), float(course.seconds.mean()),
            float(course.thinks.mean()),
        )  # fmt: skip

    def _correctness(self, course: Course) -> Values:
        """Correctness of the answer to each record."""
        return np.where(course.thinks, self._records.right[:, 1], self._records.right[:, 0])


def usable(
    records: CalibrationSet | None,
    heads: StageHeads | None,
    wanted: Sequence[Stage] | None,
    available: Sequence[Stage],
) -> tuple[Stage, ...]:
    """The stages that can be used.

    Args:
        records: The calibration records.
        heads: Heads of later stages.
        wanted: Stages of the policy; None for those that the router artifact recommends.
        available: Later stages for which the engine gives evidence.

    Returns:
        "prompt", and the wanted later stages that records, heads and engine support.
    """
    if records is None or heads is None:
        return ("prompt",)
    wanted = heads.recommended if wanted is None else wanted
    later = tuple(one for one in LATER if one in wanted and one in available and one in heads.stages)
    needed = [later[: i + 1] for i in range(len(later))]
    known = all(passed in heads.heads and passed in records.later for passed in needed)
    return ("prompt", *later) if known else ("prompt",)


def wasted_seconds(stage: Stage, instruct: Any, latency: LatencyModel, shared_prompt: bool) -> Any:
    """Seconds of Instruct until `stage` is decided, which are lost if Thinking answers.

    Args:
        stage: The stage.
        instruct: Seconds of Instruct's whole answer; a number or an array.
        latency: Gives the seconds of the prefill.
        shared_prompt: Whether Thinking continues the prompt that was read.

    Returns:
        The seconds, of the same shape.
    """
    if stage == "prompt":
        return 0.0 * instruct
    prefill = np.minimum(latency.expected("instruct", 0.0), instruct)
    spent = prefill if stage == "prefill" else instruct
    return spent - prefill if shared_prompt else spent


def _probabilities(records: CalibrationSet, stages: Passed) -> Values:
    passed = tuple(stage for stage in stages if stage != "prompt")
    return (records.later[passed] if passed else records.p).astype(np.float64)


def _smoothed(margins: Values, values: Values) -> tuple[Values, Values]:
    """Margins, `POINTS` of them, and the means of `values` over the records with the nearest margins."""
    if not len(margins):
        return np.zeros(1), np.zeros(1)
    order = np.argsort(margins, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(values[order])])
    n = len(margins)
    reach = max(1, round(NEIGHBORS * n / 2))
    at = np.unique(np.linspace(0, n - 1, POINTS).round().astype(int))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, n)
    return margins[order][at], (sums[high] - sums[low]) / (high - low)
