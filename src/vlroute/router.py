"""The router: the one room that joins deciding and answering."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from vlroute.answer import Answer, Event, Events
from vlroute.answering import Answering, Wish, decide
from vlroute.chat import Chat
from vlroute.checks import refused
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.frontier import Outlook
from vlroute.decision.policy import Decision, Policy
from vlroute.decision.target import Preset, Target
from vlroute.decision.vision_probe import VisionProbe, probe_of
from vlroute.engine.checkpoint_files import local_folder
from vlroute.engine.loading import ROWS, checked_loading
from vlroute.engine.settings import checked_per_mode
from vlroute.errors import ExtraMissing, RouterClosedError, SettingsError
from vlroute.frame_sampling import sampling_of
from vlroute.judge import CaptionSource, Judge, MediaCaptioner
from vlroute.media import DEFAULT_LIMITS, DEFAULT_SAMPLING, FrameSampling, Limits
from vlroute.messages import Conversation, parse
from vlroute.modes import MODES, ModeChoice, forced_mode
from vlroute.pair_identity import PairIdentity, common_name, identify, pair_name
from vlroute.sources import Sources

log = logging.getLogger("vlroute")
Self = TypeVar("Self", bound="Router")

if TYPE_CHECKING:  # the engine brings torch and transformers: it is imported by `load`, not before
    from vlroute.engine.batching import Batching
    from vlroute.engine.local import LocalEngine
    from vlroute.engine.pair import Pair
    from vlroute.engine.prefix_cache import PrefixCache
    from vlroute.engine.remote import RemoteEngine
    from vlroute.engine.request import Request
    from vlroute.engine.vision_cache import VisionCache
    from vlroute.store import Store


log = logging.getLogger("vlroute")


class Router(Sources):
    """Decides per request whether Instruct answers or Thinking reasons first, and answers. Thread-safe.

    Make one with `from_pretrained` or `from_endpoints`. No model is loaded before the first answer or `load()`.
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
        remote: RemoteEngine | None = None,
    ) -> None:
        """See `from_pretrained`. `loading`: for `load_pair`; `caching` may hold `vision_cache` and `prefix_cache`.
        `remote` answers instead of checkpoints.

        Raises:
            SettingsError: an argument is invalid; nothing is loaded for this check.
        """
        if not isinstance(limits, Limits):
            raise refused("limits", limits, "vlroute.Limits(…)")
        self.instruct, self.thinking, self.limits = instruct, thinking, limits
        self.judge = Judge(classifier, policy, captioner, probe, shared=remote is None)
        self.loading = checked_loading({} if loading is None else loading)
        self.generation = checked_per_mode({} if generation is None else generation, endpoints=remote is not None)
        self._caching = _checked_caches({} if caching is None else caching)
        self.store, self.rows, self.remote = _open(store), ROWS.read("rows", rows), remote
        self._owns_store = self.store is not store
        self._engine: LocalEngine | RemoteEngine | None = remote
        self._sampling: FrameSampling | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        if classifier is None:
            log.info(
                "no router artefact for %s + %s: %s answers unless mode= is set; pass router=, or train one "
                "(docs/decision.md)", instruct, thinking, self.judge.policy.unsure_mode,
            )  # fmt: skip
        self._warn_of_another_pair()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not loaded" if self._engine is None else "loaded"
        return (
            f"{type(self).__name__}(instruct={str(self.instruct)!r}, thinking={str(self.thinking)!r}, "
            f"policy={self.judge.target or self.judge.policy!r}, rows={self.rows}, "
            f"{'endpoints' if self.remote and not self.closed else state})"
        )

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use(self, artefact: str | Path | ComplexityClassifier) -> None:
        """Decide by another router artefact, a folder with its own probe, from the next request on, without a restart.
        ArtefactError, and no change, if it cannot be used."""
        if isinstance(artefact, ComplexityClassifier):
            self.judge.use(artefact, self.judge.probe)
        else:
            self.judge.use(ComplexityClassifier.load(artefact), probe_of(artefact))
        self._warn_of_another_pair()

    @property
    def identity(self) -> PairIdentity:
        """Identity of the pair: its name, and its fingerprint if the weights are on this machine. Over endpoints, the
        names of the models."""
        if self.remote is not None:
            return PairIdentity(common_name(*(self.remote.endpoints[mode].model for mode in MODES)))
        loaded: Pair | None = getattr(self._engine, "pair", None)
        if loaded is None:
            return identify(self.instruct, self.thinking)
        return PairIdentity(pair_name(self.instruct, self.thinking), loaded.fingerprint)

    def _warn_of_another_pair(self) -> None:
        trained_for = self.judge.classifier.pair if self.judge.classifier else None
        if trained_for is not None and trained_for.differs(here := self.identity):
            log.warning(
                "the router artifact was trained for the pair %s, but this pair is %s: its decisions may be wrong; "
                "train one for this pair (vlroute collect, then vlroute train) and pass it as router=",
                trained_for,
                here,
            )

    def outlook(self, target: Target | Preset | None = None) -> Outlook:
        """What the policy in force, or `target` instead, is expected to give at this machine's pace. ArtefactError if
        the router artefact holds no calibration set."""
        if not isinstance(target, Target | str | None):
            raise refused("target", target, "a vlroute.Target, the name of a preset or None")
        return self.judge.outlook(Target(preset=target) if isinstance(target, str) else target)

    def load(self) -> Router:
        """Load both checkpoints now instead of at the first answer; over endpoints, see that both are there."""
        self._check_open()
        _ = self._local if self.remote is None else self.remote.health()
        return self

    @property
    def pair(self) -> Pair:
        """The loaded pair; loads it at the first call. ValueError over endpoints."""
        return self._local.pair

    @property
    def cache(self) -> VisionCache:
        """The vision features kept; `router.cache.stats()` says what it did. As `pair`."""
        return self._local.vision

    @property
    def prefixes(self) -> PrefixCache:
        """What conversations have read so far, see `PrefixCache.stats`. As `pair`."""
        return self._local.prefixes

    def forget(self) -> None:
        """Forget the vision features that no request uses; endpoints keep theirs."""
        if self.remote is None:
            self.cache.clear()

    @property
    def _local(self) -> LocalEngine:
        if self.remote is not None:
            raise ValueError("this router answers through endpoints: it holds no pair and no caches")
        with self._lock:
            self._check_open()
            engine = self._engine
            if engine is None:
                from vlroute.engine.local import LocalEngine

                engine = LocalEngine.load(self.instruct, self.thinking, self.loading, self.rows, **self._caching)
                self._engine = engine
                if self.closed:  # closed meanwhile; `close` does not wait for loading
                    self._release()
                    raise RouterClosedError
                if None in (local_folder(self.instruct), local_folder(self.thinking)):  # names compared only
                    self._warn_of_another_pair()
            return cast("LocalEngine", engine)

    @property
    def _answering(self) -> Answering:
        self._check_open()
        return Answering(self.remote or self._local, self.judge, self.generation, self.store, self._closing)

    def _check_open(self) -> None:
        if self.closed:
            raise RouterClosedError

    def sampling(self) -> FrameSampling:
        """Frame sampling for video files: the settings of the Instruct checkpoint's processor if the checkpoint is on
        this machine (it is not loaded), else those of Qwen3-VL, also over endpoints."""
        if self._sampling is None and self.remote is None:
            self._sampling = sampling_of(self.instruct)
        return self._sampling or DEFAULT_SAMPLING

    def decide(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        history: Sequence[Any] | None = None,
        caption: str | None = None,
        mode: ModeChoice | None = None,
        price: float | None = None,
    ) -> Decision:
        """Decide which mode should answer. Never loads a checkpoint.

        Without `caption`, a cached caption is used, or a new one is made if the captioner is available: a callable, or
        the probe or Instruct model of a loaded pair. Otherwise only the prompt is used, and `reason` says so.

        Raises:
            InputError: the message (see docs/messages.md), mode, price or caption is invalid.
            RouterClosedError: the router was closed.
        """
        wish = Wish(caption, forced_mode(mode), price)
        return self.decide_on(parse(prompt, images, videos, history, self.limits, self.sampling), wish)

    def decide_on(self, conversation: Conversation, wish: Wish) -> Decision:
        """`decide` for a conversation that is parsed already."""
        self._check_open()
        return decide(self.judge, self._engine, conversation, wish)

    def ask(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        history: Sequence[Any] | None = None,
        caption: str | None = None,
        mode: ModeChoice | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Answer:
        """Decide, then answer.

        Args:
            prompt, images, videos, history: see docs/messages.md.
            caption: a description of the pictures, instead of the captioner's.
            mode: "instruct" or "thinking" forces that mode; "auto" or None lets the router decide.
            price: replaces the policy for this request, even if the policy is a target such as "fast".
            cancel: once set, generation ends within one token, with `finish_reason="cancelled"`.
            generation: settings under transformers' names, see docs/engine.md: `temperature=0` (greedy),
                `max_new_tokens=64`, `thinking_budget=500` (tokens of reasoning), …. None means "not set here".

        Raises:
            InputError: the message, mode, price or caption cannot be used.
            SettingsError: a setting that is unknown, not supported or out of range, or settings that contradict each
                other. It is raised before anything is loaded, captioned or generated.
            CheckpointError: a checkpoint cannot be loaded.
            RouterClosedError: the router was closed.
        """
        wish = Wish(caption, forced_mode(mode), price, cancel, generation)
        conversation = parse(prompt, images, videos, history, self.limits, self.sampling)  # before anything is loaded
        return self._answering.answer(conversation, wish)

    def stream(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        history: Sequence[Any] | None = None,
        caption: str | None = None,
        mode: ModeChoice | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Events:
        """As `ask`, as events: `Decided`, deltas, `Finished`. Bad input raises here; closing it cancels the answer."""
        wish = Wish(caption, forced_mode(mode), price, cancel, generation)
        conversation = parse(prompt, images, videos, history, self.limits, self.sampling)
        return self._answering.stream(conversation, wish)

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        """Say how right an answer was (`Answer.id`): true, false or a share 0 to 1. The last word on an answer counts.
        Errors as of `Store.feedback`; ValueError if the router has no store."""
        self._check_open()
        if self.store is None:
            raise ValueError("this router stores no answers; make it with store='answers.db'")
        self.store.feedback(answer_id, correct=correct, comment=comment)

    @property
    def batching(self) -> Batching | None:
        """Who writes several answers at the same time; None unless `rows` is above 1 and the pair is loaded."""
        return getattr(self._engine, "batching", None)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def close(self) -> None:
        """Cancel unfinished answers, and release models, connections, and the store if the router opened it.

        Unfinished answers end within one token with `finish_reason="cancelled"`; later calls raise a RouterClosedError.
        A second call does nothing. `with Router.from_pretrained() as router:` closes at the end of the block.
        """
        self._closing.set()
        self._release()

    def _release(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
        if self.store is not None and self._owns_store:
            self.store.close()

    def request(self, conversation: Conversation) -> Request:
        """The engine's side of one request, for what needs no decision; use it as a context manager."""
        return self._local.request(conversation)

    def chat(self, system: str | None = None) -> Chat:
        """A new conversation, answered turn by turn."""
        self._check_open()
        return Chat(self, system=system)

    def resume(self, folder: str | Path) -> Chat:
        """The conversation that `Chat.save` wrote. ChatFileError if it cannot be read."""
        self._check_open()
        from vlroute.chat_file import read_chat

        system, turns = read_chat(folder, self.limits)
        return Chat(self, turns, system)

    def answer_turn(
        self, conversation: Conversation, wish: Wish, emit: Callable[[Event], Any] = lambda event: None
    ) -> Answer:
        """As `ask`, for a `Chat`: earlier turns are not read again. `emit` is told each event, in this thread."""
        return self._answering.answer(conversation, wish, in_turns=True, emit=emit)

    def stream_turn(self, conversation: Conversation, wish: Wish) -> Events:
        """As `stream`, for a `Chat`."""
        return self._answering.stream(conversation, wish, in_turns=True)


def _open(store: Store | str | Path | None) -> Store | None:
    if not isinstance(store, str | Path):
        if not (store is None or hasattr(store, "record")):
            raise refused("store", store, "a vlroute.store.Store, a file or a postgresql:// URL")
        return store
    try:
        from vlroute.store import Store
    except ModuleNotFoundError as error:
        raise ExtraMissing(error, "store") from error
    return Store(store)


#: Classes of the caches by argument; their modules import torch.
_CACHES = {
    "vision_cache": ("vlroute.engine.vision_cache", "VisionCache"),
    "prefix_cache": ("vlroute.engine.prefix_cache", "PrefixCache"),
}


def _checked_caches(caches: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in caches.items():
        if name not in _CACHES:
            raise SettingsError(f"unknown cache {name}; expected some of {', '.join(_CACHES)}")
        module, kind = _CACHES[name]
        # if the module is not loaded, the value cannot be an instance of its class
        if value is not None and not (module in sys.modules and isinstance(value, getattr(sys.modules[module], kind))):
            raise refused(name, value, f"a vlroute.{kind}")
    return dict(caches)
