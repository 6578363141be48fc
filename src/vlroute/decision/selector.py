"""Chooses the mode of a request: caption, classifier, latency model and policy combined."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from vlroute.checks import refused
from vlroute.decision.captions import CachedCaptioner, Captioner, VisionProbe
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.evidence import StageHeads
from vlroute.decision.information import StagedCurve, StagePlan, usable
from vlroute.decision.latency import HALF_LIFE, LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.staged import StagedDecision
from vlroute.decision.target import PRESETS, Target
from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.errors import ArtifactError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation
from vlroute.steps import Steps
from vlroute.types import Decision, Mode, Preset, Stage

log = logging.getLogger("vlroute")

#: The prompt with which the Instruct model is asked for a caption; the pocket pair is trained on it.
CAPTION_PROMPT = "Describe the picture in a few words."
NO_ARTIFACT = Prediction(p_instruct=0.5, p_thinking=0.5, tokens_instruct=0, tokens_thinking=0, coverage=0)
#: The price of a target is recomputed after this many answers or after `HALF_LIFE` seconds; it takes about 1 ms.
RESOLVE_EVERY = 32
#: Maximum number of prices for which a plan is cached; requests can have their own prices.
MOST_PLANS = 32
CaptionSource = Literal["instruct", "probe"]


class VisionRequest(Protocol):
    """The part of a running request that caption sources use. Engines implement it."""

    @property
    def namespace(self) -> str:
        """Tenant of the request."""

    @property
    def tower(self) -> str | None:
        """Fingerprint of the Instruct tower whose features `pooled` returns; None if there are no features."""

    def pooled(self, seen: Picture | Video, /) -> Steps[NDArray[np.float32]]:
        """Vision features of a picture or video, pooled to `[2 · width]`."""

    def caption(self, seen: Picture | Video, prompt: str, /) -> Steps[str]:
        """The greedy answer of the Instruct model to `prompt` about one picture or video."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture or video and the request that contains it, which may already have its features."""

    media: Picture | Video
    request: VisionRequest | None

    @property
    def digest(self) -> str:
        return f"{self.request.namespace if self.request else ''} {self.media.digest}"


@dataclass(frozen=True, slots=True)
class _State:
    """The classifier, policy and vision probe in use. They are replaced together, atomically."""

    classifier: ComplexityClassifier | None
    policy: Policy
    probe: VisionProbe | None
    captions: CachedCaptioner[_Seen]  # captions of this probe
    plans: dict[float, StagePlan] = field(default_factory=dict)  # of this classifier at the latest latencies, by price


class ModeSelector:
    """Chooses the mode from the text, a caption and the latency model. Thread-safe.

    Args:
        classifier: The trained classifier; None sends every request to the fallback mode of the policy.
        policy: A policy, or a target or preset from which the price is computed.
        captioner: A callable, "instruct", "probe", or None for the probe if it matches the tower of the model,
            otherwise Instruct.
        probe: The vision probe of the router artifact.
        shared: Whether both modes run on one machine, see `LatencyModel`.
        available: The later stages for which the engine gives evidence.
        shared_prompt: Whether Thinking continues a prompt that Instruct has read, as in a hybrid.

    Raises:
        ArtifactError: A target needs a calibration set, or "probe" a probe, and the artifact has none.
        SettingsError: The policy or the captioner is of another kind.
    """

    def __init__(
        self,
        classifier: ComplexityClassifier | None,
        policy: Policy | Target | Preset | None = None,
        captioner: Captioner | CaptionSource | None = None,
        probe: VisionProbe | None = None,
        shared: bool = True,
        available: Sequence[Stage] = (),
        shared_prompt: bool = False,
    ) -> None:
        if not (captioner is None or callable(captioner)) and captioner not in get_args(CaptionSource):
            raise refused("captioner", captioner, "'instruct', 'probe', a callable or None")
        if not (isinstance(policy, Policy | Target | None) or policy in PRESETS):
            raise refused("policy", policy, f"Policy(price=…), a Target, or one of {', '.join(PRESETS)}")
        self._target = Target(preset=policy) if isinstance(policy, str) else policy or Policy()
        self._captioner = captioner
        self._captioning = threading.local()
        self._lock = threading.Lock()
        self._observed = 0
        self._warned = self._warned_of_price = False
        self._resolved_at = -math.inf
        self._shared, self._available, self._shared_prompt = shared, tuple(available), shared_prompt
        self._fingerprint: str | None = None
        self.latency = LatencyModel(shared=shared)
        self.use(classifier, probe)

    @property
    def policy(self) -> Policy:
        """The policy in use. The price of a target follows the latency model."""
        return self._current().policy

    @property
    def target(self) -> Target | None:
        """The target from which the price of the policy is computed, if any."""
        return self._target if isinstance(self._target, Target) else None

    @property
    def has_own_captioner(self) -> bool:
        """Whether the captioner is a callable, which may be slow."""
        return callable(self._captioner)

    @property
    def classifier(self) -> ComplexityClassifier | None:
        """The classifier in use; None if the router has no artifact."""
        return self._state.classifier

    @property
    def probe(self) -> VisionProbe | None:
        """The vision probe in use, if any."""
        return self._state.probe

    def check_not_captioning(self) -> None:
        """Check that this thread does not run the captioner: another thread might wait for its caption.

        Raises:
            RuntimeError: The captioner of this router has made the call.
        """
        if getattr(self._captioning, "runs", False):
            raise RuntimeError(
                "a captioner may call its own router only with ask, decide or chat.send, and with mode= or caption=: "
                "any other call might wait for the caption that it has to return"
            )

    def use(self, classifier: ComplexityClassifier | None, probe: VisionProbe | None) -> None:
        """Decide with another classifier and probe from the next request on. Observed latencies are kept.

        Args:
            classifier: The classifier; None for the fallback mode.
            probe: The vision probe.

        Raises:
            ArtifactError: The artifact lacks what the target or the captioner needs. Nothing is changed.
        """
        if self._captioner == "probe" and probe is None:
            raise ArtifactError(
                "captioner='probe' needs a router artifact with a vision probe in its folder probe/: train one "
                "(vlroute probe), or pass captioner='instruct'"
            )
        with self._lock:
            latency = self.latency if self._observed or classifier is None else classifier.latency
            latency.shared = self._shared
            captions: CachedCaptioner[_Seen] = CachedCaptioner(partial(self._describe, probe))
            current = _State(classifier, self._resolved(classifier, latency), probe, captions)
            self.latency, self._state = latency, current
        self._warn_of_stages(current)

    def check_evidence(self, fingerprint: str | None) -> None:
        """Use later stages only if they were trained on evidence of the model that answers; otherwise log a warning.

        Args:
            fingerprint: Fingerprint of the checkpoints; None if it is not known, as for endpoints.
        """
        with self._lock:
            self._fingerprint = fingerprint
            heads = None if self._state.classifier is None else self._state.classifier.stages
            if heads is not None and self._is_of_another_model(heads):
                log.warning(
                    "the later stages of the router artifact were trained on evidence of other checkpoints "
                    "(fingerprint %s…), so decisions use the stage prompt only; train a router for this model",
                    heads.source.fingerprint[:12],
                )
                self._resolve_again()

    def _is_of_another_model(self, heads: StageHeads) -> bool:
        return self._fingerprint not in (None, heads.source.fingerprint)

    def observe(
        self, mode: Mode, tokens: int, prefill_seconds: float, decode_seconds: float, uncached_tokens: int | None
    ) -> None:
        """Update the latency model with one answer, and at intervals the price of a target.

        Args:
            mode: The mode that answered.
            tokens: Number of generated tokens.
            prefill_seconds: Seconds until the first token.
            decode_seconds: Seconds after it.
            uncached_tokens: Number of prompt tokens that were prefilled, if known.
        """
        self.latency.observe(mode, tokens, prefill_seconds, decode_seconds, uncached_tokens)
        with self._lock:
            self._observed += 1
            if self._observed % RESOLVE_EVERY == 1:
                self._resolve_again()

    def operating_point(self, target: Target | None = None) -> OperatingPoint:
        """Expected accuracy, seconds and share of Thinking with the current policy or with `target`.

        Args:
            target: Replaces the policy.

        Returns:
            The operating point at the current latencies.

        Raises:
            ArtifactError: The router artifact contains no calibration set.
        """
        current = self._current()
        policy = current.policy if target is None else replace(current.policy, stages=target.stages)
        curve = self._curve(current.classifier, self.latency, policy)
        return target.resolve(curve) if target else curve.at(current.policy.price)

    def _current(self) -> _State:
        """The current state. The price of a target is recomputed if it is old."""
        if isinstance(self._target, Target) and self._is_old():
            with self._lock:
                if self._is_old():  # no other thread has done it in the meantime
                    self._resolve_again()
        return self._state

    def _is_old(self) -> bool:
        return time.monotonic() - self._resolved_at > HALF_LIFE

    def _resolve_again(self) -> None:
        policy = self._resolved(self._state.classifier, self.latency)
        self._state = replace(self._state, policy=policy, plans={})

    def _resolved(self, classifier: ComplexityClassifier | None, latency: LatencyModel) -> Policy:
        if isinstance(self._target, Policy):
            return self._target
        policy, self._resolved_at = Policy(stages=self._target.stages), time.monotonic()
        return replace(policy, price=self._target.resolve(self._curve(classifier, latency, policy)).price)

    def curve(self) -> TradeoffCurve:
        """The trade-off curve of the policy in use at the current latencies.

        Returns:
            The curve; a `StagedCurve` if later stages are in use.

        Raises:
            ArtifactError: The router artifact contains no calibration set.
        """
        current = self._current()
        return self._curve(current.classifier, self.latency, current.policy)

    def _curve(self, classifier: ComplexityClassifier | None, latency: LatencyModel, policy: Policy) -> TradeoffCurve:
        if classifier is None or classifier.calibration is None:
            raise ArtifactError(
                "targets and presets need a router artifact with a calibration set: pass router=, or retrain it with "
                "vlroute train; Policy(price=…) works without one"
            )
        records, stages = classifier.calibration, self._stages(classifier, policy)
        if len(stages) == 1:
            return TradeoffCurve(records, latency, policy.min_coverage, policy.fallback_mode)
        return StagedCurve(records, stages, latency, policy.min_coverage, policy.fallback_mode, self._shared_prompt)

    def _stages(self, classifier: ComplexityClassifier, policy: Policy) -> tuple[Stage, ...]:
        """The stages in use, "prompt" first."""
        heads = classifier.stages
        if heads is not None and self._is_of_another_model(heads):
            return ("prompt",)
        return usable(classifier.calibration, classifier.stages, policy.stages, self._available)

    def _warn_of_stages(self, current: _State) -> None:
        """Warn of stages that the caller asked for but that cannot be used."""
        if current.classifier is None:
            return
        used = self._stages(current.classifier, current.policy)
        for stage in current.policy.stages or ():
            if stage not in used:
                known = stage in self._available
                why = "the router artifact was not trained for it" if known else "this engine gives no evidence for it"
                log.warning("the stage %s is not used: %s", stage, why)

    def _plan(self, current: _State, policy: Policy) -> StagePlan | None:
        """The plan at the price of `policy`; None if only the stage "prompt" is used."""
        classifier, plans = current.classifier, current.plans
        if classifier is None or classifier.calibration is None:
            return None
        stages = self._stages(classifier, policy)
        if len(stages) == 1:
            return None
        if (plan := plans.get(policy.price)) is None:
            if len(plans) >= MOST_PLANS:
                plans.clear()
            plan = StagePlan(
                classifier.calibration, stages, self.latency, policy.price, policy.min_coverage, policy.fallback_mode,
                self._shared_prompt,
            )  # fmt: skip
            plans[policy.price] = plan
        return plan

    def caption(self, conversation: Conversation, request: VisionRequest | None) -> Steps[str | None]:
        """Caption of the media in the last message, or of all media if the last message has none.

        Args:
            conversation: The messages.
            request: The request on a loaded model; None if it is not loaded.

        Returns:
            The captions, joined by "; "; None if there are no media, or if a caption would need the model.

        Raises:
            RuntimeError: The captioner has made the call, see `check_not_captioning`.
        """
        self.check_not_captioning()
        media: list[Picture | Video] = [*conversation.last_pictures, *conversation.last_videos]
        media = media or [*conversation.pictures, *conversation.videos]
        seen = [_Seen(one, request) for one in media]
        captions = self._state.captions
        if request is None and not callable(self._captioner):
            kept = [captions.cached(one) for one in seen]
            return "; ".join(filter(None, kept)) if kept and None not in kept else None
        return (yield from captions.describe(seen)) if seen else None

    def begin(
        self,
        conversation: Conversation,
        caption: str | None,
        mode: Mode | None,
        price: float | None,
        uncached_tokens: Mapping[Mode, int] | None = None,
    ) -> StagedDecision:
        """Choose the mode at the stage "prompt".

        Args:
            conversation: The messages.
            caption: The caption, if there is one.
            mode: Forces a mode.
            price: Replaces the price of the policy, even if the policy is a target.
            uncached_tokens: Number of prompt tokens that each mode would have to prefill, if known.

        Returns:
            The decision, with its reason. Later stages may change it, see `StagedDecision.goes_on`.
        """
        current = self._current()
        policy = current.policy if price is None else replace(current.policy, price=price)
        tools, previous = conversation.tool_use, conversation.previous_mode
        decide = partial(
            policy.decide, latency=self.latency, caption=caption, uncached_tokens=uncached_tokens, tools=tools,
            previous=previous,
        )  # fmt: skip
        if current.classifier is None:
            decision = decide(NO_ARTIFACT, forced=mode or previous or policy.fallback_mode)
            if mode is None:
                kept = f"{previous} is kept from the previous step of the loop of tool calls; " if previous else ""
                reason = f"{kept}no router artifact for this model: pass router=, or train one (vlroute train)"
                decision = replace(decision, forced=False, reason=reason)
            return StagedDecision(decision, NO_ARTIFACT, policy, self.latency)
        prediction = current.classifier.predict(conversation.prompt, caption, tools)
        interval = current.classifier.gain_interval(prediction.gain) if previous and mode is None else None
        decision = decide(prediction, forced=mode, interval=interval)
        budgets, budget = current.classifier.budgets, None
        if budgets is not None and prediction.coverage >= policy.min_coverage:
            second_price = policy.price * self.latency.seconds_per_token("thinking")
            budget = partial(budgets.budget, expected=prediction.tokens_thinking, second_price=second_price)
            decision = replace(decision, thinking_budget=budget(decision.gain))
        self._warn_of_price(decision, policy.price)
        if caption is None and mode is None and (conversation.pictures or conversation.videos):
            reason = f"{decision.reason} (from the prompt alone: no caption is made before the model is loaded)"
            decision = replace(decision, reason=reason)
        # in a loop of tool calls, Thinking is not interrupted to get evidence from Instruct
        staged = mode is None and prediction.coverage >= policy.min_coverage and previous != "thinking"
        plan = self._plan(current, policy) if staged else None
        return StagedDecision(
            decision,
            prediction,
            policy,
            self.latency,
            current.classifier.stages,
            plan,
            self._shared_prompt,
            uncached_tokens,
            budget,
            current.classifier.gain_interval,
        )

    def _warn_of_price(self, decision: Decision, price: float) -> None:
        """Warn once if the threshold is above 1: no gain exceeds 1, so such a request never goes to Thinking."""
        if decision.threshold <= 1 or decision.forced or self._warned_of_price:
            return
        self._warned_of_price = True
        extra = decision.seconds_thinking - decision.seconds_instruct
        log.warning(
            "Thinking would need a gain of %.2g, and no gain exceeds 1: the price is %.3g per second and Thinking is "
            "expected to take %.3g s longer. Set a lower price or policy='balanced'; if the seconds are wrong, train "
            "the router again with records that contain tokens and seconds (logged once per router)",
            decision.threshold, price, extra,
        )  # fmt: skip

    def _describe(self, probe: VisionProbe | None, seen: _Seen) -> Steps[str]:
        if callable(self._captioner):
            self._captioning.runs = True
            try:
                return self._captioner(seen.media)
            finally:
                self._captioning.runs = False
        if seen.request is None:
            raise RuntimeError("the probe and the Instruct model caption only requests on a loaded model")
        if probe is not None and self._fits(probe, seen.request):
            return probe.describe((yield from seen.request.pooled(seen.media)))
        return (yield from seen.request.caption(seen.media, CAPTION_PROMPT))

    def _fits(self, probe: VisionProbe, request: VisionRequest) -> bool:
        """Whether the probe makes the captions. Raises ArtifactError if it has to, but was trained on another tower."""
        if self._captioner == "instruct":
            return False
        try:
            if request.tower is None:
                raise ArtifactError("endpoints give no vision features for the probe; pass captioner='instruct'")
            probe.check_tower(request.tower)
        except ArtifactError as error:
            if self._captioner == "probe":
                raise
            if not self._warned:
                log.warning("the Instruct model captions instead: %s", error)
            self._warned = True
            return False
        return True
