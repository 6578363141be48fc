"""Ways to say what one wants; each becomes a price, and says what it is expected to give."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from vlroute.checks import Number, refused
from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.errors import SettingsError

Preset = Literal["fast", "balanced", "accurate", "knee"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
#: How much of the extra time of always thinking a preset may spend.
SPENDING: dict[Preset, float] = {"fast": 0.25, "balanced": 0.5}


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """Exactly one wish, resolved on the calibration records at this machine's pace.

    `target_accuracy`: 0 to 1, reached in as few seconds as possible. `max_mean_seconds`: as right as possible within
    so many seconds an answer. `thinking_share`: 0 to 1, of the requests think (fewer where thinking helps fewer).
    `preset`: "fast" and "balanced" spend at most a quarter and half of the extra seconds that always thinking
    takes; "accurate" thinks wherever it helps; "knee" is where more seconds begin to bring less (Kneedle,
    Satopaa et al. 2011: farthest above the chord of accuracy over seconds).
    """

    target_accuracy: float | None = None
    max_mean_seconds: float | None = None
    thinking_share: float | None = None
    preset: Preset | None = None

    def __post_init__(self) -> None:
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        if len(given) != 1:
            raise SettingsError(
                f"a target holds exactly one wish of {[f.name for f in fields(self)]}, not {len(given)}"
            )
        name, value = given.popitem()
        if name == "preset":
            if not (isinstance(value, str) and value in PRESETS):
                raise refused("preset", value, f"one of {', '.join(PRESETS)}")
        else:
            accepted = Number(0) if name == "max_mean_seconds" else Number(0, 1)
            object.__setattr__(self, name, accepted.read(name, value))

    def __repr__(self) -> str:
        given = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        return f"Target({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    def resolve(self, curve: TradeoffCurve) -> OperatingPoint:
        """The price and what it gives. Where the wish is out of reach, what comes nearest."""
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
            return _best_within(curve, float(instruct + SPENDING[self.preset] * max(0.0, thinking - instruct)))
        return _best_within(curve, float(self.max_mean_seconds or 0.0))


def _best_within(curve: TradeoffCurve, seconds: float) -> int:
    affordable = np.flatnonzero(curve.seconds <= seconds)
    if not len(affordable):
        return int(np.argmin(curve.seconds))
    return int(affordable[np.argmax(curve.accuracies[affordable])])


def _knee(curve: TradeoffCurve) -> int:
    """From the fastest point to the most accurate one, the point farthest above the straight line between them."""
    seconds, accuracies = curve.seconds, curve.accuracies
    start, end = int(np.argmin(seconds)), int(np.argmax(accuracies))
    longer, better = seconds[end] - seconds[start], accuracies[end] - accuracies[start]
    if longer <= 0 or better <= 0:
        return end
    above = (accuracies - accuracies[start]) / better - (seconds - seconds[start]) / longer
    return int(np.argmax(above))
