"""Which mode should answer? Caption, classifier, pace and policy joined into one decision."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from vlroute.checks import refused
from vlroute.decision.captions import CachedCaptioner, Captioner
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.latency import HALF_LIFE, LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.target import PRESETS, Preset, Target
from vlroute.decision.tradeoff import OperatingPoint, TradeoffCurve
from vlroute.decision.vision_probe import VisionProbe
from vlroute.errors import ArtifactError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation
from vlroute.types import Decision, Mode

if TYPE_CHECKING:
    from vlroute.engine.protocol import EngineRequest

log = logging.getLogger("vlroute")

#: What the Instruct model is asked for a caption; the pocket pair is trained on this very prompt.
CAPTION_PROMPT = "Describe the picture in a few words."
NO_ARTIFACT = Prediction(p_instruct=0.5, p_thinking=0.5, tokens_instruct=0, tokens_thinking=0, coverage=0)
#: The price of a target is recomputed after this many answers or after `HALF_LIFE` seconds; it takes about 1 ms.
RESOLVE_EVERY = 32
CaptionSource = Literal["instruct", "probe"]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One picture or video as the captioner meets it: in a request that may hold its features already."""

    media: Picture | Video
    request: EngineRequest | None

    @property
    def digest(self) -> str:
        return f"{self.request.namespace if self.request else ''} {self.media.digest}"


@dataclass(frozen=True, slots=True)
class _Ruling:
    """What decides: changed as a whole, so that no request meets one half of a change."""

    classifier: ComplexityClassifier | None
    policy: Policy
    probe: VisionProbe | None
    captions: CachedCaptioner[_Seen]  # by this probe: another one says something else


class ModeSelector:
    """Decides from words, numbers and captions; a model is asked for a caption only within a request. Thread-safe."""

    def __init__(
        self,
        classifier: ComplexityClassifier | None,
        policy: Policy | Target | Preset | None = None,
        captioner: Captioner | CaptionSource | None = None,
        probe: VisionProbe | None = None,
        shared: bool = True,
    ) -> None:
        """`captioner`: a callable, "instruct", "probe", or None for the probe if it matches the tower of the pair, else
        Instruct. `shared`: whether both modes run on one machine, see `LatencyModel`.

        ArtifactError for a target without a calibration set, and for "probe" if there is no probe.
        SettingsError for any other policy or captioner.
        """
        if not (captioner is None or callable(captioner)) and captioner not in get_args(CaptionSource):
            raise refused("captioner", captioner, "'instruct', 'probe', a callable or None")
        if not (isinstance(policy, Policy | Target | None) or policy in PRESETS):
            raise refused("policy", policy, f"Policy(price=…), a Target, or one of {', '.join(PRESETS)}")
        self._target = Target(preset=policy) if isinstance(policy, str) else policy or Policy()
        self._captioner = captioner
        self._lock = threading.Lock()
        self._observed = 0
        self._warned = self._warned_of_price = False
        self._resolved_at = -math.inf
        self._shared = shared
        self.latency = LatencyModel(shared=shared)
        self.use(classifier, probe)

    @property
    def policy(self) -> Policy:
        """The policy in force; a target's price follows the pace of this machine."""
        return self._current().policy

    @property
    def target(self) -> Target | None:
        """The target from which the price of the policy is computed, if any."""
        return self._target if isinstance(self._target, Target) else None

    @property
    def classifier(self) -> ComplexityClassifier | None:
        return self._ruling.classifier

    @property
    def probe(self) -> VisionProbe | None:
        return self._ruling.probe

    def use(self, classifier: ComplexityClassifier | None, probe: VisionProbe | None) -> None:
        """Decide by `classifier` and `probe` from now on. Decisions that run finish by the old ones; what was observed
        of this machine's pace stays. ArtifactError, and no change, if the wishes cannot be met with them."""
        if self._captioner == "probe" and probe is None:
            raise ArtifactError(
                "captioner='probe' needs a router artifact with a vision probe in its folder probe/: train one "
                "(docs/decision.md, Captions), or pass captioner='instruct'"
            )
        with self._lock:
            latency = self.latency if self._observed or classifier is None else classifier.latency
            latency.shared = self._shared
            captions: CachedCaptioner[_Seen] = CachedCaptioner(partial(self._describe, probe))
            ruling = _Ruling(classifier, self._resolved(classifier, latency), probe, captions)
            self.latency, self._ruling = latency, ruling

    def observe(self, mode: Mode, tokens: int, prefill_seconds: float, decode_seconds: float, read: int | None) -> None:
        """Update the latency model with one answer; every `RESOLVE_EVERY` answers update the price of a target."""
        self.latency.observe(mode, tokens, prefill_seconds, decode_seconds, read)
        with self._lock:
            self._observed += 1
            if self._observed % RESOLVE_EVERY == 1:
                self._resolve_again()

    def operating_point(self, target: Target | None = None) -> OperatingPoint:
        """What the policy in force, or `target`, is expected to give here. ArtifactError without a calibration set."""
        ruling = self._current()
        curve = _tradeoff_curve(ruling.classifier, self.latency, ruling.policy)
        return target.resolve(curve) if target else curve.at(ruling.policy.price)

    def _current(self) -> _Ruling:
        """The current policy. The pace, and with it the price of a target, also changes while nothing is answered."""
        if isinstance(self._target, Target) and self._is_old():
            with self._lock:
                if self._is_old():  # no other thread has done it meanwhile
                    self._resolve_again()
        return self._ruling

    def _is_old(self) -> bool:
        return time.monotonic() - self._resolved_at > HALF_LIFE

    def _resolve_again(self) -> None:
        policy = self._resolved(self._ruling.classifier, self.latency)
        self._ruling = replace(self._ruling, policy=policy)

    def _resolved(self, classifier: ComplexityClassifier | None, latency: LatencyModel) -> Policy:
        if isinstance(self._target, Policy):
            return self._target
        policy, self._resolved_at = Policy(), time.monotonic()
        return replace(policy, price=self._target.resolve(_tradeoff_curve(classifier, latency, policy)).price)

    def caption(self, conversation: Conversation, request: EngineRequest | None) -> str | None:
        """Captions of what the last message brings; of the whole conversation where it brings nothing."""
        media: list[Picture | Video] = [*conversation.last_pictures, *conversation.last_videos]
        media = media or [*conversation.pictures, *conversation.videos]
        seen = [_Seen(one, request) for one in media]
        captions = self._ruling.captions
        if request is None and not callable(self._captioner):
            kept = [captions.cached(one) for one in seen]
            return "; ".join(filter(None, kept)) if kept and None not in kept else None
        return captions.describe(seen) if seen else None

    def decide(
        self,
        conversation: Conversation,
        caption: str | None,
        mode: Mode | None,
        price: float | None,
        uncached_tokens: Mapping[Mode, int] | None = None,
    ) -> Decision:
        """`uncached_tokens`: how many tokens each mode would have to read, where that is known."""
        ruling = self._current()
        policy = ruling.policy if price is None else replace(ruling.policy, price=price)
        if ruling.classifier is None:
            decision = policy.decide(NO_ARTIFACT, self.latency, caption, mode or policy.fallback_mode, uncached_tokens)
            if mode is None:
                reason = "no router artifact for this pair: pass router=, or train one with training/retrain.py"
                decision = replace(decision, forced=False, reason=reason)
            return decision
        prediction = ruling.classifier.predict(conversation.prompt, caption)
        decision = policy.decide(prediction, self.latency, caption, mode, uncached_tokens)
        self._warn_of_price(decision, policy.price)
        if caption is None and mode is None and (conversation.pictures or conversation.videos):
            reason = f"{decision.reason} (by the prompt alone: no caption before the pair is loaded)"
            decision = replace(decision, reason=reason)
        return decision

    def _warn_of_price(self, decision: Decision, price: float) -> None:
        """Warn once: no gain exceeds 1, so with such a threshold no such request is routed to Thinking."""
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

    def _describe(self, probe: VisionProbe | None, seen: _Seen) -> str:
        if callable(self._captioner):
            return self._captioner(seen.media)
        if seen.request is None:
            raise RuntimeError("probe and Instruct model caption only within a request on a loaded pair")
        if probe is not None and self._fits(probe, seen.request):
            return probe.describe(seen.request.pooled(seen.media))
        return seen.request.caption(seen.media, CAPTION_PROMPT)

    def _fits(self, probe: VisionProbe, request: EngineRequest) -> bool:
        """Whether the probe is wanted and may speak. ArtifactError where it must, but knows another tower."""
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


def _tradeoff_curve(classifier: ComplexityClassifier | None, latency: LatencyModel, policy: Policy) -> TradeoffCurve:
    if classifier is None or classifier.calibration is None:
        raise ArtifactError(
            "targets and presets need a router artifact with a calibration set: pass router=, or retrain it with "
            "training/retrain.py; Policy(price=…) works without one"
        )
    return TradeoffCurve(classifier.calibration, latency, policy.min_coverage, policy.fallback_mode)
