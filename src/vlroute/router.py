"""The router: the one room that joins deciding and answering."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlroute.answer import Answer, Event, Events
from vlroute.answering import Answering, Wish, begin, decide
from vlroute.chat import Chat
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.frontier import Outlook
from vlroute.decision.policy import Decision, Policy
from vlroute.decision.target import Preset, Target
from vlroute.decision.vision_probe import VisionProbe, probe_of
from vlroute.judge import CaptionSource, Judge, MediaCaptioner
from vlroute.media import DEFAULT_LIMITS, Limits
from vlroute.messages import Conversation, parse
from vlroute.modes import Mode
from vlroute.pair_names import resolve_pair

if TYPE_CHECKING:  # the engine brings torch and transformers: it is imported by `load`, not before
    from vlroute.engine.batching import Batching
    from vlroute.engine.pair import Pair
    from vlroute.engine.prefix_cache import PrefixCache
    from vlroute.engine.request import Request
    from vlroute.engine.vision_cache import VisionCache
    from vlroute.store import Store


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
        policy: Policy | Target | Preset | None = None,
        captioner: MediaCaptioner | CaptionSource | None = None,
        probe: VisionProbe | None = None,
        limits: Limits = DEFAULT_LIMITS,
        loading: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        caching: Mapping[str, Any] | None = None,
        store: Store | str | Path | None = None,
        rows: int = 1,
    ) -> None:
        """See `from_pretrained`. `loading`: for `load_pair`; `caching` may hold `vision_cache` and `prefix_cache`."""
        self.instruct, self.thinking, self.limits = instruct, thinking, limits
        self.judge = Judge(classifier, _policy(policy), captioner, probe)
        self.loading, self.generation, self._caching = dict(loading or {}), dict(generation or {}), dict(caching or {})
        self.store, self.rows = _open(store), rows
        self._answering: Answering | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path | None = None,
        *,
        instruct: str | Path | None = None,
        thinking: str | Path | None = None,
        router: str | Path | None = None,
        policy: Policy | Target | Preset | None = None,
        captioner: MediaCaptioner | CaptionSource | None = None,
        limits: Limits = DEFAULT_LIMITS,
        device: str | None = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        quantization: Any = None,
        generation: Mapping[str, Any] | None = None,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
        store: Store | str | Path | None = None,
        rows: int = 1,
        **settings: Any,
    ) -> Router:
        """A router over a pair of checkpoints; without any name over the embedded pocket pair.

        Args:
            name: "Qwen/Qwen3-VL-2B" stands for "…-Instruct" and "…-Thinking"; or a folder that holds
                `instruct/` and `thinking/`.
            instruct, thinking: any two hub ids or folders, instead of `name`.
            router: folder of a router artefact (see docs/decision.md); the pocket pair brings its own.
            policy: `Policy(price=…)`, or a wish that becomes a price at this machine's pace: "fast", "balanced",
                "accurate", "knee", or a `Target`. `outlook()` says what to expect of it.
            captioner: who describes pictures and videos: "probe", the artefact's vision probe (nearly free);
                "instruct", the Instruct model; or a callable, given a `media.Picture` or `media.Video`. By default
                the probe if one knows this pair's tower, else Instruct. Captions are cached by content.
            limits: what a request may bring, see docs/messages.md.
            device, dtype, attn_implementation, quantization: see `engine.pair.load_pair`.
            settings: generation settings for both modes, under transformers' names: `do_sample=False`.
            generation: the same per mode: `{"thinking": {"max_new_tokens": 4096}}`.
            vision_cache, prefix_cache: with budgets of your own (see docs/conversations.md). Routers may share a vision
                cache.
            store: where answers are remembered for `feedback`: a `Store`, a file, or a postgresql:// URL.
            rows: answers that several threads wait for share forward passes, up to so many in each mode; 1: none do.

        Raises:
            ValueError: a name together with `instruct=`/`thinking=`, or only one of these two.
            ArtefactError: the router artefact or its probe cannot be used, or "probe" was asked for and there is none.
        """
        instruct, thinking, router = resolve_pair(name, instruct, thinking, router)
        options = {
            "device": device, "dtype": dtype, "attn_implementation": attn_implementation, "quantization": quantization,
        }  # fmt: skip
        return cls(
            instruct,
            thinking,
            classifier=ComplexityClassifier.load(router) if router else None,
            policy=policy,
            captioner=captioner,
            probe=probe_of(router) if router else None,
            limits=limits,
            loading={key: value for key, value in options.items() if value is not None},
            generation={**settings, **(generation or {})},
            caching={"vision_cache": vision_cache, "prefix_cache": prefix_cache},
            store=store,
            rows=rows,
        )

    def use(self, artefact: str | Path | ComplexityClassifier) -> None:
        """Decide by another router artefact, a folder with its own probe, from the next request on, without a restart.
        ArtefactError, and no change, if it cannot be used."""
        if isinstance(artefact, ComplexityClassifier):
            self.judge.use(artefact, self.judge.probe)
        else:
            self.judge.use(ComplexityClassifier.load(artefact), probe_of(artefact))

    def outlook(self, target: Target | Preset | None = None) -> Outlook:
        """What the policy in force, or `target` instead, is expected to give at this machine's pace. ArtefactError if
        the router artefact holds no calibration set."""
        return self.judge.outlook(Target(preset=target) if isinstance(target, str) else target)

    def load(self) -> Router:
        """Load both checkpoints now instead of at the first answer."""
        _ = self._loaded
        return self

    @property
    def pair(self) -> Pair:
        """The loaded pair; loads it at the first call."""
        return self._loaded.pair

    @property
    def cache(self) -> VisionCache:
        """The vision features kept; `router.cache.stats()` says what it did. Loads the pair at the first call."""
        return self._loaded.vision

    @property
    def prefixes(self) -> PrefixCache:
        """What conversations have read so far, see `PrefixCache.stats`. Loads the pair at the first call."""
        return self._loaded.prefixes

    @property
    def _loaded(self) -> Answering:
        with self._lock:
            if self._answering is None:
                from vlroute.engine.pair import load_pair

                pair = load_pair(self.instruct, self.thinking, **self.loading)
                self._answering = begin(pair, self.judge, self.generation, self.store, self.rows, **self._caching)
            return self._answering

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

        Without `caption` a cached one is used, or one made now if the captioner is at hand: a callable, or probe and
        Instruct model once the pair is loaded. Else the prompt alone decides, and `reason` says so.

        Raises:
            InputError: the message cannot be used (see docs/messages.md).
            ValueError: an unknown mode or an impossible price.
        """
        return self.decide_on(parse(prompt, images, videos, history, self.limits), Wish(caption, mode, price))

    def decide_on(self, conversation: Conversation, wish: Wish) -> Decision:
        """`decide` for a conversation that is parsed already."""
        return decide(self.judge, self._answering, conversation, wish)

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
        return self._loaded.answer(conversation, Wish(caption, mode, price, cancel, generation))

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
    ) -> Events:
        """As `ask`, as events: `Decided`, deltas, `Finished`. Bad input raises here; closing it cancels the answer."""
        conversation = parse(prompt, images, videos, history, self.limits)
        return self._loaded.stream(conversation, Wish(caption, mode, price, cancel, generation))

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        """Say how right an answer was (`Answer.id`): true, false or a share 0 to 1. The last word on an answer counts.
        Errors as of `Store.feedback`; ValueError if the router has no store."""
        if self.store is None:
            raise ValueError("this router stores no answers; make it with store='answers.db'")
        self.store.feedback(answer_id, correct=correct, comment=comment)

    @property
    def batching(self) -> Batching | None:
        """Who writes several answers at the same time; None unless `rows` is above 1 and the pair is loaded."""
        return self._answering.batching if self._answering else None

    def close(self) -> None:
        """Cancel what is being written in shared rows. Nothing is answered afterwards; other routers go on."""
        with self._lock:
            if self.batching is not None:
                self.batching.close()

    def request(self, conversation: Conversation) -> Request:
        """The engine's side of one request, for what needs no decision; use it as a context manager."""
        return self._loaded.request(conversation)

    def chat(self, system: str | None = None) -> Chat:
        """A new conversation, answered turn by turn."""
        return Chat(self, system=system)

    def resume(self, folder: str | Path) -> Chat:
        """The conversation that `Chat.save` wrote. ChatFileError if it cannot be read."""
        from vlroute.chat_file import read_chat

        system, turns = read_chat(folder, self.limits)
        return Chat(self, turns, system)

    def answer_turn(
        self, conversation: Conversation, wish: Wish, emit: Callable[[Event], Any] = lambda event: None
    ) -> Answer:
        """As `ask`, for a `Chat`: earlier turns are not read again. `emit` is told each event, in this thread."""
        return self._loaded.answer(conversation, wish, in_turns=True, emit=emit)

    def stream_turn(self, conversation: Conversation, wish: Wish) -> Events:
        """As `stream`, for a `Chat`."""
        return self._loaded.stream(conversation, wish, in_turns=True)


def _open(store: Store | str | Path | None) -> Store | None:
    if not isinstance(store, str | Path):
        return store
    from vlroute.store import Store  # brings SQLAlchemy

    return Store(store)


def _policy(wish: Policy | Target | Preset | None) -> Policy | Target:
    return Target(preset=wish) if isinstance(wish, str) else wish or Policy()
