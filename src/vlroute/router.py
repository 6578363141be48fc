"""The two ways to a router: checkpoints in this process, or endpoints elsewhere."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from vlroute.chat import Chat
from vlroute.checks import refused
from vlroute.decision.captions import Captioner
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.decision.selector import CaptionSource, ModeSelector
from vlroute.decision.target import Preset, Target
from vlroute.decision.tradeoff import OperatingPoint
from vlroute.decision.vision_probe import VisionProbe, probe_of
from vlroute.engine.local.checkpoint_files import check_folders, local_folder
from vlroute.engine.local.loading import MAX_NUM_SEQS, checked_loading
from vlroute.engine.settings import SETTINGS, UNSUPPORTED, checked_per_mode
from vlroute.errors import ArtifactError, MissingExtraError, RouterClosedError, SettingsError
from vlroute.hub import common_name, identify, pair_name, resolve_pair
from vlroute.inputs.media import DEFAULT_LIMITS, DEFAULT_SAMPLING, FrameSampling, Limits
from vlroute.inputs.messages import Conversation, parse
from vlroute.inputs.video import sampling_of
from vlroute.pipeline import Pipeline, RequestOptions, decide
from vlroute.types import MODES, Answer, Decision, Event, Events, ModeChoice, ModelIdentity, forced_mode

if TYPE_CHECKING:
    from vlroute.engine.cache.prefix import PrefixCache
    from vlroute.engine.cache.vision import VisionCache
    from vlroute.engine.local.checkpoint import ModelPair
    from vlroute.engine.local.engine import LocalEngine, Request
    from vlroute.engine.local.scheduler import Scheduler
    from vlroute.engine.remote.client import RemoteEngine
    from vlroute.engine.remote.endpoint import Endpoint
    from vlroute.store import Store

Made = TypeVar("Made", bound="Sources")
#: Arguments of `from_pretrained` about what this process loads.
_LOADING = ("device", "dtype", "attn_implementation", "quantization", "max_num_seqs", "vision_cache", "prefix_cache")


class Sources:
    """What `Router` is made from; each way says how it answers by arguments of `Router.__init__`."""

    def __init__(self, instruct: str | Path, thinking: str | Path, **options: Any) -> None:
        raise NotImplementedError("make a Router")

    @classmethod
    def from_pretrained(
        cls: type[Made],
        name: str | Path | None = None,
        *,
        instruct: str | Path | None = None,
        thinking: str | Path | None = None,
        router: str | Path | None = None,
        policy: Policy | Target | Preset | None = None,
        captioner: Captioner | CaptionSource | None = None,
        limits: Limits = DEFAULT_LIMITS,
        device: Any = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        quantization: Any = None,
        generation: Mapping[str, Any] | None = None,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
        store: Store | str | Path | None = None,
        max_num_seqs: int = 1,
        **settings: Any,
    ) -> Made:
        """A router over a pair of checkpoints; without any name over the embedded pocket pair.

        Args:
            name: "Qwen/Qwen3-VL-2B" stands for "…-Instruct" and "…-Thinking"; or a folder with `instruct/`, `thinking/`
                and optionally `router/`; or a .json file of endpoints, see `from_endpoints`.
            instruct, thinking: any two hub ids or folders, instead of `name`.
            router: folder of a router artifact (see docs/decision.md); the pocket pair brings its own.
            policy: `Policy(price=…)`, or a wish that becomes a price at this machine's pace: "fast", "balanced",
                "accurate", "knee", or a `Target`. `operating_point()` says what to expect of it.
            captioner: who describes pictures and videos: "probe", the artifact's vision probe (nearly free);
                "instruct", the Instruct model; or a callable, given a `media.Picture` or `media.Video`. By default
                the probe if one knows this pair's tower, else Instruct. Captions are cached by content.
            limits: what a request may bring, see docs/messages.md.
            device, dtype, attn_implementation, quantization: see `engine.pair.load_model_pair`.
            settings: generation settings for both modes, under transformers' names: `do_sample=False`.
            generation: the same per mode: `{"thinking": {"max_new_tokens": 4096}}`. docs/engine.md lists all settings.
            vision_cache, prefix_cache: with budgets of your own (see docs/conversations.md). Routers may share a vision
                cache.
            store: where answers are remembered for `feedback`: a `Store`, a file, or a postgresql:// URL.
            max_num_seqs: maximum number of answers in each mode that share forward passes; 1: each is generated alone.

        Raises:
            ValueError: a name together with `instruct=`/`thinking=`, or only one of these two.
            CheckpointError: the name does not stand for a pair, or a folder is missing, incomplete or damaged. `load`
                checks what only the loaded tokenizers and weights show.
            SettingsError: an argument has a wrong type or is out of range. This check does not import torch.
            ArtifactError: the router artifact or its probe cannot be used, or "probe" was asked for and there is none.
        """
        given = cls._settings(settings, generation)
        for argument, value in (("name", name), ("instruct", instruct), ("thinking", thinking), ("router", router)):
            if not isinstance(value, str | Path | None):
                raise refused(argument, value, "a hub id or a folder")
        options = {
            "device": device, "dtype": dtype, "attn_implementation": attn_implementation, "quantization": quantization,
        }  # fmt: skip
        if name is not None and str(name).endswith(".json"):
            if instruct or thinking:
                raise ValueError("a file of endpoints names both servers; leave out instruct= and thinking=")
            if captioner == "probe":
                raise ArtifactError("endpoints give no vision features for the probe; pass captioner='instruct'")
            from vlroute.engine.remote.endpoint import read_endpoints

            return cls.from_endpoints(
                *read_endpoints(Path(name)), router=router, policy=policy, captioner=captioner, limits=limits,
                generation=given, store=store, vision_cache=vision_cache, prefix_cache=prefix_cache,
                **options,
            )  # fmt: skip
        instruct, thinking, router = resolve_pair(name, instruct, thinking, router)
        check_folders(instruct, thinking)
        return cls(
            instruct,
            thinking,
            classifier=None if router is None else ComplexityClassifier.load(router),
            policy=policy,
            captioner=captioner,
            probe=None if router is None else probe_of(router),
            limits=limits,
            loading=options,
            generation=given,
            caching={"vision_cache": vision_cache, "prefix_cache": prefix_cache},
            store=store,
            max_num_seqs=max_num_seqs,
        )

    @classmethod
    def from_endpoints(
        cls: type[Made],
        instruct: Endpoint | tuple[str, str],
        thinking: Endpoint | tuple[str, str],
        *,
        router: str | Path | None = None,
        policy: Policy | Target | Preset | None = None,
        captioner: Captioner | Literal["instruct"] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        generation: Mapping[str, Any] | None = None,
        store: Store | str | Path | None = None,
        **settings: Any,
    ) -> Made:
        """A router over two OpenAI-compatible servers: vLLM, SGLang, llama-server, `vlroute serve`, …; brings no torch.

        Args:
            instruct, thinking: (base URL with /v1, the model's name there), or an `Endpoint` for keys, headers and
                deadlines; see docs/how-to/endpoints.md.
            others: as of `from_pretrained`. Only what is set is sent; else the servers' own settings hold.
        """
        from vlroute.engine.remote.client import RemoteEngine

        loading = {name: settings.pop(name) for name in _LOADING if name in settings}
        if loading.pop("max_num_seqs", 1) not in (None, 1) or any(value is not None for value in loading.values()):
            raise SettingsError(f"endpoints load nothing here: leave {', '.join(_LOADING)} to their servers")
        remote = RemoteEngine.over(instruct, thinking)
        try:
            return cls(
                *remote.names,
                classifier=None if router is None else ComplexityClassifier.load(router),
                policy=policy,
                captioner=captioner,
                limits=limits,
                generation=cls._settings(settings, generation),
                store=store,
                remote=remote,
            )
        except BaseException:
            remote.close()
            raise

    @classmethod
    def _settings(cls, settings: Mapping[str, Any], generation: Mapping[str, Any] | None) -> dict[str, Any]:
        """Both combined. SettingsError for a name that is not a setting, such as a misspelled argument."""
        if not isinstance(generation, Mapping | None):
            raise refused("generation", generation, "a mapping of settings, or of settings per mode")
        if "price" in settings:
            raise SettingsError("price is no argument of a router; pass policy=Policy(price=…), or price= to ask")
        arguments = [name for name in inspect.signature(cls.from_pretrained).parameters if name != "settings"]
        for name in settings:
            like = difflib.get_close_matches(name, [*arguments, *SETTINGS], 1)
            if name not in SETTINGS and name not in UNSUPPORTED and like and like[0] in arguments:
                raise SettingsError(f"unknown argument {name}; did you mean {like[0]}?")
        return {**settings, **(generation or {})}


log = logging.getLogger("vlroute")
Self = TypeVar("Self", bound="Router")


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
        captioner: Captioner | CaptionSource | None = None,
        probe: VisionProbe | None = None,
        limits: Limits = DEFAULT_LIMITS,
        loading: Mapping[str, Any] | None = None,
        generation: Mapping[str, Any] | None = None,
        caching: Mapping[str, Any] | None = None,
        store: Store | str | Path | None = None,
        max_num_seqs: int = 1,
        remote: RemoteEngine | None = None,
        engine: Any = None,
    ) -> None:
        """See `from_pretrained`. `loading`: for `load_model_pair`. `caching`: `vision_cache`, `prefix_cache` or both.
        `remote` or `engine`, which offers the models of this router, answers instead of checkpoints.

        Raises:
            SettingsError: an argument is invalid; nothing is loaded for this check.
        """
        if not isinstance(limits, Limits):
            raise refused("limits", limits, "vlroute.Limits(…)")
        self.instruct, self.thinking, self.limits = instruct, thinking, limits
        self.selector = ModeSelector(classifier, policy, captioner, probe, shared=remote is None)
        self.loading = checked_loading({} if loading is None else loading)
        self.generation = checked_per_mode({} if generation is None else generation, endpoints=remote is not None)
        self._caching = _checked_caches({} if caching is None else caching)
        self.store, self.max_num_seqs, self.remote = (
            _open(store),
            MAX_NUM_SEQS.read("max_num_seqs", max_num_seqs),
            remote,
        )
        self._owns_store = self.store is not store
        self._engine: LocalEngine | RemoteEngine | None = remote or engine
        self._sampling: FrameSampling | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        if classifier is None:
            log.info(
                "no router artifact for %s + %s: %s answers unless mode= is set; pass router=, or train one "
                "(docs/decision.md)", instruct, thinking, self.selector.policy.fallback_mode,
            )  # fmt: skip
        self._warn_of_another_pair()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not loaded" if self._engine is None else "loaded"
        return (
            f"{type(self).__name__}(instruct={str(self.instruct)!r}, thinking={str(self.thinking)!r}, "
            f"policy={self.selector.target or self.selector.policy!r}, max_num_seqs={self.max_num_seqs}, "
            f"{'endpoints' if self.remote and not self.closed else state})"
        )

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def use(self, artifact: str | Path | ComplexityClassifier) -> None:
        """Decide by another router artifact, a folder with its own probe, from the next request on, without a restart.
        ArtifactError, and no change, if it cannot be used."""
        if isinstance(artifact, ComplexityClassifier):
            self.selector.use(artifact, self.selector.probe)
        else:
            self.selector.use(ComplexityClassifier.load(artifact), probe_of(artifact))
        self._warn_of_another_pair()

    @property
    def identity(self) -> ModelIdentity:
        """Identity of the pair: its name, and its fingerprint if the weights are on this machine. Over endpoints, the
        names of the models."""
        if self.remote is not None:
            return ModelIdentity(common_name(*(self.remote.endpoints[mode].model for mode in MODES)))
        loaded: ModelPair | None = getattr(self._engine, "pair", None)
        if loaded is None:
            return identify(self.instruct, self.thinking)
        return ModelIdentity(pair_name(self.instruct, self.thinking), loaded.fingerprint)

    def _warn_of_another_pair(self) -> None:
        trained_for = self.selector.classifier.model if self.selector.classifier else None
        if trained_for is not None and trained_for.differs(here := self.identity):
            log.warning(
                "the router artifact was trained for the pair %s, but this pair is %s: its decisions may be wrong; "
                "train one for this pair (vlroute collect, then vlroute train) and pass it as router=",
                trained_for,
                here,
            )

    def operating_point(self, target: Target | Preset | None = None) -> OperatingPoint:
        """What the policy in force, or `target` instead, is expected to give at this machine's pace. ArtifactError if
        the router artifact holds no calibration set."""
        if not isinstance(target, Target | str | None):
            raise refused("target", target, "a vlroute.Target, the name of a preset or None")
        return self.selector.operating_point(Target(preset=target) if isinstance(target, str) else target)

    def load(self) -> Router:
        """Load both checkpoints now instead of at the first answer; over endpoints, see that both are there."""
        self._check_open()
        (self._local if self.remote is None else self.remote).wait()
        return self

    @property
    def pair(self) -> ModelPair:
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
                from vlroute.engine.local.engine import LocalEngine

                engine = LocalEngine.load(
                    self.instruct, self.thinking, self.loading, self.max_num_seqs, **self._caching
                )
                self._engine = engine
                if self.closed:  # closed meanwhile; `close` does not wait for loading
                    self._release()
                    raise RouterClosedError
                if None in (local_folder(self.instruct), local_folder(self.thinking)):  # names compared only
                    self._warn_of_another_pair()
            return cast("LocalEngine", engine)

    @property
    def _answering(self) -> Pipeline:
        self._check_open()
        return Pipeline(self.remote or self._local, self.selector, self.generation, self.store, self._closing)

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
        options = RequestOptions(caption, forced_mode(mode), price)
        return self.decide_on(parse(prompt, images, videos, history, self.limits, self.sampling), options)

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """`decide` for a conversation that is parsed already."""
        self._check_open()
        return decide(self.selector, self._engine, conversation, options)

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
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        conversation = parse(prompt, images, videos, history, self.limits, self.sampling)  # before anything is loaded
        return self._answering.answer(conversation, options)

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
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        conversation = parse(prompt, images, videos, history, self.limits, self.sampling)
        return self._answering.stream(conversation, options)

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        """Say how right an answer was (`Answer.id`): true, false or a share 0 to 1. The last word on an answer counts.
        Errors as of `Store.feedback`; ValueError if the router has no store."""
        self._check_open()
        if self.store is None:
            raise ValueError("this router stores no answers; make it with store='answers.db'")
        self.store.feedback(answer_id, correct=correct, comment=comment)

    @property
    def scheduler(self) -> Scheduler | None:
        """Who writes several answers at the same time; None unless `max_num_seqs` is above 1 and the pair is loaded."""
        return getattr(self._engine, "scheduler", None)

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
        from vlroute.chat import read_chat

        system, turns = read_chat(folder, self.limits)
        return Chat(self, turns, system)

    def answer_turn(
        self, conversation: Conversation, options: RequestOptions, emit: Callable[[Event], Any] | None = None
    ) -> Answer:
        """As `ask`, for a `Chat`: earlier turns are not read again. `emit` is told each event, in this thread."""
        return self._answering.answer(conversation, options, in_turns=True, emit=emit)

    def stream_turn(self, conversation: Conversation, options: RequestOptions) -> Events:
        """As `stream`, for a `Chat`."""
        return self._answering.stream(conversation, options, in_turns=True)


def _open(store: Store | str | Path | None) -> Store | None:
    if not isinstance(store, str | Path):
        if not (store is None or hasattr(store, "record")):
            raise refused("store", store, "a vlroute.store.Store, a file or a postgresql:// URL")
        return store
    try:
        from vlroute.store import Store
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "store") from error
    return Store(store)


#: Classes of the caches by argument; their modules import torch.
_CACHES = {
    "vision_cache": ("vlroute.engine.cache.vision", "VisionCache"),
    "prefix_cache": ("vlroute.engine.cache.prefix", "PrefixCache"),
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
