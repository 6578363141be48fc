"""Targets: an accuracy, a time, a share of Thinking or a preset, converted to a price."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np

from vlroute.checks import Number, refused
from vlroute.decision.policy import checked_stages
from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.errors import SettingsError
from vlroute.types import Preset, Stage

PRESETS: tuple[Preset, ...] = get_args(Preset)
#: The share of the extra seconds of always thinking that a preset may use.
EXTRA_SECONDS: dict[Preset, float] = {"fast": 0.25, "balanced": 0.5}


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """One goal, converted to a price on the calibration records at the latencies of this machine.

    Exactly one attribute other than `stages` is set.

    Attributes:
        target_accuracy: Accuracy from 0 to 1, to be reached in as few seconds as possible.
        max_mean_seconds: Mean seconds of an answer; the accuracy within them is as high as possible.
        thinking_share: Share of requests, 0 to 1, that Thinking answers; a smaller share if fewer have a positive gain.
        preset: "fast" and "balanced" use at most a quarter and a half of the extra seconds that always thinking takes;
            "accurate" thinks if the gain is above 0; "knee" is the point of diminishing returns: farthest above the
            straight line between the fastest and the most accurate point (Kneedle, Satopaa et al. 2011).
        stages: The stages at which a request may be decided, see `Policy`.

    Raises:
        SettingsError: Not exactly one attribute is set, or its value is invalid.
    """

    target_accuracy: float | None = None
    max_mean_seconds: float | None = None
    thinking_share: float | None = None
    preset: Preset | None = None
    stages: tuple[Stage, ...] | None = None

    def __post_init__(self) -> None:
        if self.stages is not None:
            object.__setattr__(self, "stages", checked_stages(self.stages))
        given = self._given()
        if len(given) != 1:
            goals = ", ".join(f.name for f in fields(self) if f.name != "stages")
            raise SettingsError(f"a target has exactly one of {goals}, not {len(given)}")
        name, value = given.popitem()
        if name == "preset":
            if not (isinstance(value, str) and value in PRESETS):
                raise refused("preset", value, f"one of {', '.join(PRESETS)}")
        else:
            accepted = Number(0) if name == "max_mean_seconds" else Number(0, 1)
            object.__setattr__(self, name, accepted.read(name, value))

    def __repr__(self) -> str:
        given = self._given() | ({} if self.stages is None else {"stages": self.stages})
        return f"Target({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def _given(self) -> dict[str, Any]:
        """The attribute that is set, by name."""
        return {
            f.name: value for f in fields(self) if f.name != "stages" and (value := getattr(self, f.name)) is not None
        }

    def resolve(self, curve: TradeoffCurve) -> OperatingPoint:
        """The operating point that meets the target.

        Args:
            curve: What each price leads to.

        Returns:
            The operating point; if no price meets the target, the nearest one.
        """
        return curve.operating_point(self._position(curve))

    def _position(self, curve: TradeoffCurve) -> int:
        if self.target_accuracy is not None:
            enough = np.flatnonzero(curve.accuracies >= self.target_accuracy)
            if not len(enough):
                return int(np.argmax(curve.accuracies))
            return int(enough[np.argmin(curve.seconds[enough])])
        if self.thinking_share is not None:
            return int(np.argmin(np.abs(curve.shares - self.thinking_share)))
        if self.preset == "accurate":
            return len(curve.prices) - 1
        if self.preset == "knee":
            return _knee(curve)
        if self.preset is not None:
            instruct, thinking = curve.single_seconds
            return _best_within(curve, float(instruct + EXTRA_SECONDS[self.preset] * max(0.0, thinking - instruct)))
        return _best_within(curve, float(self.max_mean_seconds or 0.0))


def _best_within(curve: TradeoffCurve, seconds: float) -> int:
    affordable = np.flatnonzero(curve.seconds <= seconds)
    if not len(affordable):
        return int(np.argmin(curve.seconds))
    return int(affordable[np.argmax(curve.accuracies[affordable])])


def _knee(curve: TradeoffCurve) -> int:
    """The point farthest above the straight line from the fastest to the most accurate point."""
    seconds, accuracies = curve.seconds, curve.accuracies
    start, end = int(np.argmin(seconds)), int(np.argmax(accuracies))
    longer, better = seconds[end] - seconds[start], accuracies[end] - accuracies[start]
    if longer <= 0 or better <= 0:
        return end
    above = (accuracies - accuracies[start]) / better - (seconds - seconds[start]) / longer
    return int(np.argmax(above))
