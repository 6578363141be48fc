"""The router: the one room that joins deciding and answering."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vlroute.answer import Answer, AnswerDelta, Decided, Event, Finished, ThinkingDelta, Timing, Usage
from vlroute.decision.captioner import CachedCaptioner
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Decision, Policy
from vlroute.media import DEFAULT_LIMITS, Limits, Picture, Video
from vlroute.messages import Conversation, parse
from vlroute.modes import MODES, Mode
from vlroute.shipped import shipped

if TYPE_CHECKING:  # the engine brings torch and transformers: it is imported by `load`, not before
    from vlroute.engine.pair import Pair
    from vlroute.engine.request import Reply, Request

log = logging.getLogger("vlroute")

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


class Router:
    """Decides per request whether Instruct answers or Thinking reasons first, and answers. Thread-safe.

    Make one with `from_pretrained`. Nothing of the models is loaded before the first answer or `load()`.
    """

    def __init__(
        self,
        instruct: str | Path,
        thinking: str | Path,
        *,
        classifier: ComplexityClassifier | None = None,
        policy: Policy | None = None,
        captioner: MediaCaptioner | None = None,
        limits: Limits = DEFAULT_LIMITS,
        loading: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        """`loading` goes to `load_pair`; `generation` holds settings for both modes, or per mode under its name."""
        self.instruct, self.thinking = instruct, thinking
        self.classifier, self.policy, self.limits = classifier, policy or Policy(), limits
        self.pace: Pace = classifier.pace if classifier else Pace()
        self.loading, self.generation = dict(loading or {}), dict(generation or {})
        self._captioner = captioner
        self._captions: CachedCaptioner[_Seen] = CachedCaptioner(self._describe)
        self._pair: Pair | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        instruct: str | Path | None = None,
        thinking: str | Path | None = None,
        router: str | Path | None = None,
        policy: Policy | None = None,
        captioner: MediaCaptioner | None = None,
        limits: Limits = DEFAULT_LIMITS,
        device: str | None = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        quantization: Any = None,
        generation: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Router:
        """A router over a pair of checkpoints; without any name over the embedded pocket pair.

        Args:
            name: "Qwen/Qwen3-VL-2B" stands for "…-Instruct" and "…-Thinking"; or a folder that holds
                `instruct/` and `thinking/`.
            instruct, thinking: any two hub ids or folders, instead of `name`.
            router: folder of a router artefact (see docs/decision.md); the pocket pair brings its own.
            policy: `Policy(price=…)`.
            captioner: called with a `media.Picture` or `media.Video`, gives a short caption; without one the
                Instruct model makes it. Captions are cached by content.
            limits: what a request may bring, see docs/messages.md.
            device, dtype, attn_implementation, quantization: see `engine.pair.load_pair`.
            settings: generation settings for both modes, under transformers' names: `do_sample=False`.
            generation: the same per mode: `{"thinking": {"max_new_tokens": 4096}}`.

        Raises:
            ValueError: a name together with `instruct=`/`thinking=`, or only one of these two.
            ArtefactError: the router artefact cannot be used.
        """
        if (instruct is None) != (thinking is None) or (name is not None and instruct is not None):
            raise ValueError("pass one name for the pair, or both instruct= and thinking=")
        if instruct is None or thinking is None:
            if name is None:
                log.warning(
                    "using the embedded pocket pair: 1.9 M parameters, trained on small drawn pictures only; "
                    'for real pictures: Router.from_pretrained("Qwen/Qwen3-VL-2B")'
                )
                instruct, thinking = shipped("pocket/instruct"), shipped("pocket/thinking")
                router = router or shipped("pocket/router")
            elif Path(name).expanduser().is_dir():
                instruct, thinking = (
                    Path(name).expanduser() / "instruct",
                    Path(name).expanduser() / "thinking",
                )
            else:
                instruct, thinking = f"{name}-Instruct", f"{name}-Thinking"
        options = {
            "device": device, "dtype": dtype, "attn_implementation": attn_implementation, "quantization": quantization,
        }  # fmt: skip
        return cls(
            instruct,
            thinking,
            classifier=ComplexityClassifier.load(router) if router else None,
            policy=policy,
            captioner=captioner,
            limits=limits,
            loading={key: value for key, value in options.items() if value is not None},
            generation={**settings, **(generation or {})},
        )

    @property
    def pair(self) -> Pair:
        """The loaded pair; loads it at the first call."""
        with self._lock:
            if self._pair is None:
                from vlroute.engine.pair import load_pair

                self._pair = load_pair(self.instruct, self.thinking, **self.loading)
            return self._pair

    def load(self) -> Router:
        """Load both checkpoints now instead of at the first answer."""
        _ = self.pair
        return self

    def decide(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        history: Sequence[Any] | None = None,
        caption: str | None = None,
        mode: Mode | None = None,
        price: float | None = None,
    ) -> Decision:
        """Which mode should answer? Never loads a checkpoint.

        Without `caption` a cached one is used, or one made now if the captioner is at hand: one given to the router,
        or the Instruct model once it is loaded. Else the prompt alone decides, and `reason` says so.

        Raises:
            InputError: the message cannot be used (see docs/messages.md).
            ValueError: an unknown mode or an impossible price.
        """
        conversation = parse(prompt, images, videos, history, self.limits)
        request = self._request(conversation) if self._pair else None
        return self._decide(conversation, request, caption, mode, price)

    def ask(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        history: Sequence[Any] | None = None,
        caption: str | None = None,
        mode: Mode | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Answer:
        """Decide, then answer.

        Args:
            prompt, images, videos, history: see docs/messages.md.
            caption: what is in the pictures, instead of the captioner's words.
            mode: "instruct" or "thinking" forces that mode.
            price: instead of the policy's, for this request.
            cancel: once set, generation ends within one token, with `finish_reason="cancelled"`.
            generation: settings under transformers' names, and `presence_penalty`, `thinking_budget` (tokens).

        Raises:
            InputError: the message cannot be used.
            CheckpointError: a checkpoint cannot be loaded.
            TypeError: an unknown generation setting.
        """
        conversation = parse(prompt, images, videos, history, self.limits)
        return self._answer(conversation, caption, mode, price, cancel, generation, lambda event: None)

    def stream(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        history: Sequence[Any] | None = None,
        caption: str | None = None,
        mode: Mode | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Iterator[Event]:
        """As `ask`, as events: `Decided`, `ThinkingDelta`s, `AnswerDelta`s, `Finished`.

        Bad input raises here, not at the first event. Closing the iterator cancels the generation.
        """
        conversation = parse(prompt, images, videos, history, self.limits)
        cancel = cancel or threading.Event()
        answer = partial(self._answer, conversation, caption, mode, price, cancel, generation)
        return self._events(cancel, answer)

    def _events(self, cancel: threading.Event, answer: Callable[[Callable[[Event], Any]], Answer]) -> Iterator[Event]:
        events: SimpleQueue[Event | BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                answer(events.put)
            except BaseException as error:  # handed to the thread that reads the events
                events.put(error)
            events.put(None)

        worker = threading.Thread(target=work, name="vlroute-stream", daemon=True)
        worker.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            cancel.set()
            worker.join()

    def _answer(
        self,
        conversation: Conversation,
        caption: str | None,
        mode: Mode | None,
        price: float | None,
        cancel: threading.Event | None,
        generation: Mapping[str, Any],
        emit: Callable[[Event], Any],
    ) -> Answer:
        request = self._request(conversation)
        began = time.perf_counter()
        if caption is None and mode is None:
            caption = self._caption(conversation, request)
        captioned = time.perf_counter()
        decision = self._decide(conversation, None, caption, mode, price)
        decided = time.perf_counter()
        emit(Decided(decision))
        settings = self._settings(decision.mode, generation)

        def on_piece(channel: str, piece: str) -> None:
            emit(ThinkingDelta(piece) if channel == "thinking" else AnswerDelta(piece))

        reply = request.answer(decision.mode, settings, on_piece, cancel)
        self._observe(decision.mode, reply)
        timing = Timing(
            caption=captioned - began,
            decide=decided - captioned,
            vision=reply.vision_seconds,
            prefill=reply.prefill_seconds,
            decode=reply.decode_seconds,
            total=time.perf_counter() - began,
        )
        usage = Usage(reply.prompt_tokens, reply.vision_tokens, reply.completion_tokens, reply.thinking_tokens)
        answer = Answer(reply.text, reply.thinking, decision, reply.finish_reason, usage, timing)
        emit(Finished(answer))
        return answer

    def _request(self, conversation: Conversation) -> Request:
        from vlroute.engine.request import Request

        return Request(self.pair, conversation)

    def _settings(self, mode: Mode, generation: Mapping[str, Any]) -> dict[str, Any]:
        both = {key: value for key, value in self.generation.items() if key not in MODES}
        return {**both, **self.generation.get(mode, {}), **generation}

    def _observe(self, mode: Mode, reply: Reply) -> None:
        if reply.finish_reason != "cancelled":
            self.pace.observe(mode, reply.completion_tokens, reply.prefill_seconds, reply.decode_seconds)

    def _describe(self, seen: _Seen) -> str:
        if self._captioner is not None:
            return self._captioner(seen.media)
        if seen.request is None:
            raise RuntimeError("the Instruct model captions only within a request on a loaded pair")
        return seen.request.caption(seen.media, CAPTION_PROMPT)

    def _caption(self, conversation: Conversation, request: Request | None) -> str | None:
        """Captions of what the last message brings; of the whole conversation where it brings nothing."""
        media: list[Picture | Video] = [*conversation.last_pictures, *conversation.last_videos]
        media = media or [*conversation.pictures, *conversation.videos]
        seen = [_Seen(one, request) for one in media]
        if request is None and self._captioner is None:
            kept = [self._captions.cached(one) for one in seen]
            return "; ".join(filter(None, kept)) if kept and None not in kept else None
        return self._captions.describe(seen) if seen else None

    def _decide(
        self,
        conversation: Conversation,
        request: Request | None,
        caption: str | None,
        mode: Mode | None,
        price: float | None,
    ) -> Decision:
        policy = self.policy if price is None else replace(self.policy, price=price)
        if caption is None:
            caption = self._caption(conversation, request) if mode is None else None
        if self.classifier is None:
            decision = policy.decide(NO_ARTEFACT, self.pace, caption, forced=mode or policy.unsure_mode)
            if mode is None:
                reason = "no router artefact for this pair: pass router=, or train one with training/retrain.py"
                decision = replace(decision, forced=False, reason=reason)
            return decision
        decision = policy.decide(self.classifier.predict(conversation.prompt, caption), self.pace, caption, forced=mode)
        if caption is None and mode is None and (conversation.pictures or conversation.videos):
            reason = f"{decision.reason} (by the prompt alone: no caption before the pair is loaded)"
            decision = replace(decision, reason=reason)
        return decision
