"""The decision on one request, from stage to stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from vlroute.decision.classifier import Prediction
from vlroute.decision.evidence import StageHeads
from vlroute.decision.information import StagePlan, wasted_seconds
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.text_encoder import Floats
from vlroute.types import Decision, Mode, PassedStage, Stage, other


class StagedDecision:
    """The decision on one request, which evidence of later stages may change.

    Args:
        decision: The decision at the stage "prompt".
        prediction: Its prediction.
        policy: The policy.
        latency: Converts tokens to seconds.
        heads: Heads of the later stages.
        plan: Decides whether to go on to them; None: no later stage is used.
        shared_prompt: See `StagePlan`.
        uncached_tokens: As for `Policy.decide`.
        budget: The thinking budget "auto" at a gain.
        interval: The interval of the gain, by the gain and the stages after "prompt".

    Attributes:
        decision: The decision at the latest stage.
        judged: Whether a later stage has decided.
    """

    def __init__(
        self,
        decision: Decision,
        prediction: Prediction,
        policy: Policy,
        latency: LatencyModel,
        heads: StageHeads | None = None,
        plan: StagePlan | None = None,
        shared_prompt: bool = False,
        uncached_tokens: Mapping[Mode, int] | None = None,
        budget: Callable[[float], int] | None = None,
        interval: Callable[[float, tuple[Stage, ...]], tuple[float, float] | None] | None = None,
    ) -> None:
        self._prediction, self._policy, self._latency = prediction, policy, latency
        self._heads, self._plan, self._shared_prompt = heads, plan, shared_prompt
        self._uncached_tokens, self._budget, self._interval = uncached_tokens, budget, interval
        self._evidence: dict[Stage, Floats] = {}
        self._explore: tuple[float, bool] | None = None
        self.judged = False
        self.decision = replace(decision, stages=(_passed(decision, 0.0),))
        if self.goes_on:
            assert plan is not None
            self.decision = replace(self.decision, later_stages=plan.stages[1:])

    @property
    def goes_on(self) -> bool:
        """Whether the next stage is worth its seconds."""
        if self._plan is None:
            return False
        margin = self.decision.gain - self.decision.threshold
        return self._plan.goes_on(self.decision.stage, margin)

    def explore(self, share: float, drawn: bool) -> None:
        """Explore: answer this request in the other mode than the last stage decides, if it is drawn.

        Args:
            share: Probability with which requests are drawn.
            drawn: Whether this one is drawn.
        """
        self._explore = share, drawn

    @property
    def decide_within(self) -> float:
        """See `Policy`."""
        return self._policy.decide_within

    def decided_after(self, seconds: float) -> None:
        """Record how long the stage "prompt" has taken."""
        first = replace(self.decision.stages[0], seconds=seconds)
        self.decision = replace(self.decision, stages=(first,))

    def judge(self, stage: Stage, evidence: Floats, seconds: float) -> bool | None:
        """Decide at a later stage.

        Args:
            stage: The stage.
            evidence: Its evidence: the hidden state, or the numbers of the answer.
            seconds: Seconds since the beginning of the request.

        Returns:
            Whether Instruct answers; None if the next stage has to decide.
        """
        assert self._heads is not None
        self._evidence[stage] = evidence
        before, first = self.decision, self._prediction
        p_instruct, p_thinking = self._heads.predict((first.p_instruct, first.p_thinking), self._evidence)
        prediction = replace(first, p_instruct=p_instruct, p_thinking=p_thinking)
        left = (self._uncached_tokens or {}).get("instruct")
        instruct = self._latency.expected("instruct", first.tokens_instruct, left)
        wasted = float(wasted_seconds(stage, instruct, self._latency, self._shared_prompt))
        interval = None
        if before.previous is not None and self._interval is not None:
            interval = self._interval(prediction.gain, tuple(self._evidence))
        decision = self._policy.decide(
            prediction, self._latency, before.caption, None, self._uncached_tokens, stage, wasted, before.tools,
            before.previous, interval,
        )  # fmt: skip
        self.decision = replace(
            decision,
            stages=(*before.stages, _passed(decision, seconds)),
            thinking_budget=None if self._budget is None else self._budget(decision.gain),
        )
        if self.goes_on:
            return None
        self.judged = True
        self._explored()
        return self.decision.mode == "instruct"

    def settle(self) -> Decision:
        """The decision with which the request is answered: no later stage can change it any more."""
        self._explored()
        self.decision = replace(self.decision, later_stages=())
        return self.decision

    def _explored(self) -> None:
        """Draw the mode once, after the last stage has decided."""
        if self._explore is None:
            return
        (share, drawn), self._explore = self._explore, None
        if not drawn:
            self.decision = replace(self.decision, propensity=1 - share)
            return
        mode = other(self.decision.mode)
        reason = f"{self.decision.reason}; {mode} answers, because the request was drawn for exploration"
        self.decision = replace(self.decision, mode=mode, reason=reason, explored=True, propensity=share)

    def without_evidence(self) -> None:
        """Let Instruct answer, because the engine gave no evidence and its text cannot be held back any longer."""
        self.judged, self._explore = True, None
        if self.decision.mode == "thinking":
            reason = f"{self.decision.reason}; the endpoint gives no evidence, so Instruct answers"
            self.decision = replace(self.decision, mode="instruct", reason=reason)


def _passed(decision: Decision, seconds: float) -> PassedStage:
    return PassedStage(decision.stage, decision.p_instruct, decision.p_thinking, decision.threshold, seconds)
