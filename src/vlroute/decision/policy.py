"""The policy: whether the expected gain of Thinking justifies its extra seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlroute.checks import Number, refused
from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.types import MODES, STAGES, Decision, Mode, Stage, ToolUse

#: Accepted prices: what one second of waiting is worth, in probability of a right answer.
PRICE = Number(0)


@dataclass(frozen=True, slots=True)
class Policy:
    """Thinking answers if its expected gain is greater than price × extra seconds.

    This holds unless the mode is forced, the coverage is low, or the chosen mode could not answer. Thinking is never
    chosen for a gain of at most 0. For the same prediction, a higher price never changes the mode from Instruct to
    Thinking. All numbers of a decision are finite, `threshold >= 0`, and `gain == p_thinking - p_instruct`.

    Attributes:
        price: What one second of waiting is worth, in probability of a right answer. 0.1: one more second has to raise
            the probability by 0.1. 0: Thinking answers whenever its expected gain is positive.
        min_coverage: A request with a lower coverage (share of its tokens that training has seen) is too different from
            the training data, and is sent to `fallback_mode`.
        fallback_mode: The mode for requests with low coverage, and without a classifier.
        stages: The stages at which a request may be decided: "prompt" and any of "prefill" and "answer". A later stage
            is used if the router artifact and the engine support it and its evidence is worth its seconds. None: the
            stages that the router artifact recommends.
        decide_within: Maximum seconds for which a stream holds back the first text of Instruct for the stage "answer".

    Raises:
        SettingsError: A value is invalid.
    """

    price: float = 0.1
    min_coverage: float = 0.3
    fallback_mode: Mode = "instruct"
    stages: tuple[Stage, ...] | None = None
    decide_within: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "price", PRICE.read("price", self.price))
        object.__setattr__(self, "min_coverage", Number(0, 1).read("min_coverage", self.min_coverage))
        _check_mode("fallback_mode", self.fallback_mode)
        if self.stages is not None:
            object.__setattr__(self, "stages", checked_stages(self.stages))
        object.__setattr__(self, "decide_within", Number(0).read("decide_within", self.decide_within))

    def decide(
        self,
        prediction: Prediction,
        latency: LatencyModel,
        caption: str | None = None,
        forced: Mode | None = None,
        uncached_tokens: Mapping[Mode, int] | None = None,
        stage: Stage = "prompt",
        wasted: float = 0.0,
        tools: ToolUse = "",
        previous: Mode | None = None,
        interval: tuple[float, float] | None = None,
    ) -> Decision:
        """Choose the mode for one prediction.

        Args:
            prediction: Probabilities and tokens expected of both modes.
            latency: Converts tokens to seconds.
            caption: The caption that the prediction is based on.
            forced: Forces a mode.
            uncached_tokens: Number of prompt tokens that each mode would have to prefill, if known. In a conversation
                the mode that answered last has fewer of them than the other one.
            stage: The stage of the prediction.
            wasted: Seconds of Instruct until this stage, which are lost if Thinking answers.
            tools: What the prediction was made from, see `Decision`.
            previous: In a loop of tool calls, the mode of the previous step. The mode then changes only if the whole
                interval of the gain is on the other side of the threshold.
            interval: The interval of the gain; None if it is unknown, so that the mode does not change.

        Returns:
            The decision.

        Raises:
            SettingsError: `forced` is not a mode.
        """
        left = uncached_tokens or {}
        instruct = latency.expected("instruct", prediction.tokens_instruct, left.get("instruct"))
        thinking = latency.expected("thinking", prediction.tokens_thinking, left.get("thinking")) + wasted
        extra, gain = thinking - instruct, prediction.gain
        threshold = min(self.price * max(extra, 0.0), sys.float_info.max)
        mode: Mode = "thinking" if gain > threshold else "instruct"
        if forced is not None:
            _check_mode("mode", forced)
            mode, reason = forced, f"mode {forced} was requested"
        elif prediction.coverage < self.min_coverage:
            mode = self.fallback_mode
            reason = f"coverage {prediction.coverage:.0%}: the request is too different from the training data"
        else:
            reason = _reason(gain, extra, threshold)
        if forced is None and previous not in (None, mode) and not _is_beyond(threshold, interval, mode):
            why = "is unknown" if interval is None else f"is {interval[0]:+.2f} to {interval[1]:+.2f}"
            kept = f"{previous} is kept from the previous step of the loop of tool calls"
            reason = f"{reason}; {kept}, because the interval of the gain {why}"
            mode = previous
        return Decision(
            mode=mode,
            stage=stage,
            p_instruct=prediction.p_instruct,
            p_thinking=prediction.p_thinking,
            gain=gain,
            seconds_instruct=instruct,
            seconds_thinking=thinking,
            threshold=threshold,
            reason=reason,
            caption=caption,
            forced=forced is not None,
            tools=tools,
            previous=previous,
        )


def _is_beyond(threshold: float, interval: tuple[float, float] | None, mode: Mode) -> bool:
    """Whether the whole interval of the gain speaks for `mode`."""
    if interval is None:
        return False
    low, high = interval
    return low > threshold if mode == "thinking" else high < threshold


def _reason(gain: float, extra: float, threshold: float) -> str:
    expected = f"expected gain {gain:+.2f}"
    if gain <= 0:
        return f"{expected}: Thinking would not help"
    if extra <= 0:
        return f"{expected}, and Thinking takes no longer"
    verb = "justifies" if gain > threshold else "does not justify"
    return f"{expected} {verb} {extra:.2g} s of extra waiting (needs {threshold:.2g})"


def _check_mode(name: str, mode: object) -> None:
    if not (isinstance(mode, str) and mode in MODES):
        raise refused(name, mode, f"one of {', '.join(MODES)}")


def checked_stages(value: Any) -> tuple[Stage, ...]:
    """The stages in order. SettingsError if `value` does not consist of stages, "prompt" among them."""
    given = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
    if "prompt" not in given or any(stage not in STAGES for stage in given):
        raise refused("stages", value, f"a tuple of {', '.join(STAGES)}, with prompt")
    return tuple(stage for stage in STAGES if stage in given)
