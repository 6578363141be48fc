"""When is thinking worth the wait? Gain against price."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vlroute.checks import Number, refused
from vlroute.decision.classifier import Prediction
from vlroute.decision.pace import Pace
from vlroute.modes import MODES, Mode

Stage = Literal["prompt", "prefill", "answer"]
#: Price of one second of waiting, in probability of a right answer.
PRICE = Number(0)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which mode answers, and why.

    `stage`: how much evidence it rests on. `p_*`, `gain`: probabilities. `seconds_*`: expected, for the whole
    answer. `threshold`: the gain needed, price x extra seconds. `forced`: the caller chose the mode.
    `caption`: what was read. `fallback`: the mode that was chosen could not answer, so `mode` is the other one.
    """

    mode: Mode
    stage: Stage
    p_instruct: float
    p_thinking: float
    gain: float
    seconds_instruct: float
    seconds_thinking: float
    threshold: float
    reason: str
    caption: str | None = None
    forced: bool = False
    fallback: bool = False

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON: no NaN, no infinity."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Policy:
    """Think when gain > price x extra seconds.

    `price`: what one second of waiting is worth, in probability of a right answer. 0.1: wait one second more
    for ten points. 0: think whenever it helps at all. `min_known`: a request of which a smaller share of
    tokens is known is too far from the training data to judge, and gets `unsure_mode`.

    Invariants, unless forced, unsure or fallen back: `mode == "thinking"` exactly if `gain > threshold`; a gain <= 0
    never thinks; with the same prediction a higher price never turns Instruct into Thinking. Always: every number
    in the decision is finite, `threshold >= 0`, `gain == p_thinking - p_instruct`.
    """

    price: float = 0.1
    min_known: float = 0.3
    unsure_mode: Mode = "instruct"

    def __post_init__(self) -> None:
        object.__setattr__(self, "price", PRICE.read("price", self.price))
        object.__setattr__(self, "min_known", Number(0, 1).read("min_known", self.min_known))
        _check_mode("unsure_mode", self.unsure_mode)

    def decide(
        self,
        prediction: Prediction,
        pace: Pace,
        caption: str | None = None,
        forced: Mode | None = None,
        unread: Mapping[Mode, int] | None = None,
    ) -> Decision:
        """Weigh one prediction at this machine's pace. ValueError if `forced` is no mode.

        `unread`: how many tokens each mode has not read yet. In a conversation the mode that answered last has
        little left to read, so changing the mode costs what the other one must read first.
        """
        left = unread or {}
        instruct = pace.expected("instruct", prediction.tokens_instruct, left.get("instruct"))
        thinking = pace.expected("thinking", prediction.tokens_thinking, left.get("thinking"))
        extra, gain = thinking - instruct, prediction.gain
        threshold = min(self.price * max(extra, 0.0), sys.float_info.max)
        mode: Mode = "thinking" if gain > threshold else "instruct"
        if forced is not None:
            _check_mode("mode", forced)
            mode, reason = forced, f"{forced} was asked for"
        elif prediction.known < self.min_known:
            mode = self.unsure_mode
            reason = f"only {prediction.known:.0%} of the words are known: too far from the training data to judge"
        else:
            reason = _reason(gain, extra, threshold)
        return Decision(
            mode=mode,
            stage="prompt",
            p_instruct=prediction.p_instruct,
            p_thinking=prediction.p_thinking,
            gain=gain,
            seconds_instruct=instruct,
            seconds_thinking=thinking,
            threshold=threshold,
            reason=reason,
            caption=caption,
            forced=forced is not None,
        )


def _reason(gain: float, extra: float, threshold: float) -> str:
    if gain <= 0:
        return f"gain {gain:+.2f}: thinking would not help"
    if extra <= 0:
        return f"gain {gain:+.2f} and thinking takes no longer"
    side = "over" if gain > threshold else "not over"
    return f"gain {gain:+.2f} is {side} the price of {extra:.2g} s more ({threshold:.2g})"


def _check_mode(name: str, mode: object) -> None:
    if not (isinstance(mode, str) and mode in MODES):
        raise refused(name, mode, f"one of {', '.join(MODES)}")
