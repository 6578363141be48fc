"""Which mode should answer? Caption, classifier, pace and policy joined into one decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlroute.decision.captioner import CachedCaptioner
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Decision, Policy
from vlroute.media import Picture, Video
from vlroute.messages import Conversation
from vlroute.modes import Mode

if TYPE_CHECKING:
    from vlroute.engine.request import Request

#: What the Instruct model is asked for a caption; the pocket pair is trained on this very prompt.
CAPTION_PROMPT = "Describe the picture in a few words."
NO_ARTEFACT = Prediction(p_instruct=0.5, p_thinking=0.5, tokens_instruct=0, tokens_thinking=0, known=0)
MediaCaptioner = Callable[[Picture | Video], str]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One picture or video as the captioner meets it: in a request that may hold its features already."""

    media: Picture | Video
    request: Request | None

    @property
    def digest(self) -> str:
        return self.media.digest


class Judge:
    """Decides from words, numbers and captions; a model is asked for a caption only within a request. Thread-safe."""

    def __init__(
        self, classifier: ComplexityClassifier | None, policy: Policy, captioner: MediaCaptioner | None
    ) -> None:
        self.classifier, self.policy = classifier, policy
        self.pace = classifier.pace if classifier else Pace()
        self._captioner = captioner
        self._captions: CachedCaptioner[_Seen] = CachedCaptioner(self._describe)

    def caption(self, conversation: Conversation, request: Request | None) -> str | None:
        """Captions of what the last message brings; of the whole conversation where it brings nothing."""
        media: list[Picture | Video] = [*conversation.last_pictures, *conversation.last_videos]
        media = media or [*conversation.pictures, *conversation.videos]
        seen = [_Seen(one, request) for one in media]
        if request is None and self._captioner is None:
            kept = [self._captions.cached(one) for one in seen]
            return "; ".join(filter(None, kept)) if kept and None not in kept else None
        return self._captions.describe(seen) if seen else None

    def decide(
        self,
        conversation: Conversation,
        caption: str | None,
        mode: Mode | None,
        price: float | None,
        unread: Mapping[Mode, int] | None = None,
    ) -> Decision:
        """`unread`: how many tokens each mode would have to read, where that is known."""
        policy = self.policy if price is None else replace(self.policy, price=price)
        if self.classifier is None:
            decision = policy.decide(NO_ARTEFACT, self.pace, caption, mode or policy.unsure_mode, unread)
            if mode is None:
                reason = "no router artefact for this pair: pass router=, or train one with training/retrain.py"
                decision = replace(decision, forced=False, reason=reason)
            return decision
        prediction = self.classifier.predict(conversation.prompt, caption)
        decision = policy.decide(prediction, self.pace, caption, mode, unread)
        if caption is None and mode is None and (conversation.pictures or conversation.videos):
            reason = f"{decision.reason} (by the prompt alone: no caption before the pair is loaded)"
            decision = replace(decision, reason=reason)
        return decision

    def _describe(self, seen: _Seen) -> str:
        if self._captioner is not None:
            return self._captioner(seen.media)
        if seen.request is None:
            raise RuntimeError("the Instruct model captions only within a request on a loaded pair")
        return seen.request.caption(seen.media, CAPTION_PROMPT)
