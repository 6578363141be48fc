"""When is thinking worth the wait? Gain against price."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from vlroute.checks import Number, refused
from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.types import MODES, Decision, Mode

#: Price of one second of waiting, in probability of a right answer.
PRICE = Number(0)


@dataclass(frozen=True, slots=True)
class Policy:
    """Think when gain > price x extra seconds.

    `price`: what one second of waiting is worth, in probability of a right answer. 0.1: wait one second more
    for ten points. 0: think whenever it helps at all. `min_coverage`: a request of which a smaller share of
    tokens is known is too far from the training data to judge, and gets `fallback_mode`.

    Invariants, unless forced, unsure or fallen back: `mode == "thinking"` exactly if `gain > threshold`; a gain <= 0
    never thinks; with the same prediction a higher price never turns Instruct into Thinking. Always: every number
    in the decision is finite, `threshold >= 0`, `gain == p_thinking - p_instruct`.
    """

    price: float = 0.1
    min_coverage: float = 0.3
    fallback_mode: Mode = "instruct"

    def __post_init__(self) -> None:
        object.__setattr__(self, "price", PRICE.read("price", self.price))
        object.__setattr__(self, "min_coverage", Number(0, 1).read("min_coverage", self.min_coverage))
        _check_mode("fallback_mode", self.fallback_mode)

    def decide(
        self,
        prediction: Prediction,
        latency: LatencyModel,
        caption: str | None = None,
        forced: Mode | None = None,
        uncached_tokens: Mapping[Mode, int] | None = None,
    ) -> Decision:
        """Weigh one prediction at this machine's pace. ValueError if `forced` is no mode.

        `uncached_tokens`: how many tokens each mode has not read yet. In a conversation the mode that answered last has
        little left to read, so changing the mode costs what the other one must read first.
        """
        left = uncached_tokens or {}
        instruct = latency.expected("instruct", prediction.tokens_instruct, left.get("instruct"))
        thinking = latency.expected("thinking", prediction.tokens_thinking, left.get("thinking"))
        extra, gain = thinking - instruct, prediction.gain
        threshold = min(self.price * max(extra, 0.0), sys.float_info.max)
        mode: Mode = "thinking" if gain > threshold else "instruct"
        if forced is not None:
            _check_mode("mode", forced)
            mode, reason = forced, f"{forced} was asked for"
        elif prediction.coverage < self.min_coverage:
            mode = self.fallback_mode
            reason = f"only {prediction.coverage:.0%} of the words are known: too far from the training data to judge"
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
