"""The router: decides per request which mode answers, and answers."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import logging
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from vlroute.chat import Chat, read_chat
from vlroute.checks import Number, refused
from vlroute.decision.captions import Captioner, VisionProbe, probe_of
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.evidence import LATER
from vlroute.decision.policy import Policy
from vlroute.decision.selector import CaptionSource, ModeSelector
from vlroute.decision.target import Target
from vlroute.decision.tradeoff import OperatingPoint
from vlroute.engine.local.checkpoint_files import check_folders
from vlroute.engine.local.loading import DEFAULT_NUM_SEQS, MAX_NUM_SEQS, CompileChoice, checked_loading
from vlroute.engine.settings import SETTINGS, UNSUPPORTED, checked_per_mode
from vlroute.errors import ArtifactError, MessageError, MissingExtraError, SettingsError
from vlroute.hub import resolve_pair
from vlroute.inputs.limits import DEFAULT_LIMITS, Limits
from vlroute.inputs.messages import Conversation
from vlroute.inputs.tools import checked_tools
from vlroute.inputs.video import FrameSampling
from vlroute.lazy_model import LazyModel
from vlroute.pipeline import EitherEvent, Pipeline, RequestOptions
from vlroute.shadow import LABEL_SHARE, Shadow, check_target
from vlroute.sharing import COMMIT_MESSAGE, push_router, router_folder, save_router
from vlroute.steps import check_waiting, run
from vlroute.types import Answer, Decision, Event, Events, Finished, ModeChoice, ModelIdentity, Preset, forced_mode

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from vlroute.engine.cache.prefix import PrefixCache
    from vlroute.engine.cache.vision import VisionCache
    from vlroute.engine.local.checkpoint import ModelPair
    from vlroute.engine.local.engine import LocalEngine, Request
    from vlroute.engine.local.scheduler import Scheduler
    from vlroute.engine.protocol import Engine
    from vlroute.engine.remote.client import RemoteEngine
    from vlroute.engine.remote.endpoint import Endpoint
    from vlroute.store import Store

log = logging.getLogger("vlroute")
Self = TypeVar("Self", bound="Router")
#: `ask_many` begins this many times `max_num_seqs` requests before the first of them is answered.
AHEAD = 4
#: Accepted values of `explore`.
EXPLORE = Number(0, 1)
#: Arguments of `from_pretrained` about what this process loads.
_LOADING = (
    "device", "dtype", "attn_implementation", "quantization", "memory", "compile", "max_num_seqs", "vision_cache",
    "prefix_cache",
)  # fmt: skip


class Router:
    """Decides per request whether Instruct answers or Thinking reasons first, and answers. Thread-safe.

    Create it with `from_pretrained` or `from_endpoints`. No model is loaded before the first answer or `load()`.

    Args:
        instruct: Hub id or folder of the Instruct checkpoint.
        thinking: Hub id or folder of the Thinking checkpoint.
        classifier: The trained classifier; without one, the fallback mode of the policy answers.
        policy: See `from_pretrained`.
        captioner: See `from_pretrained`.
        probe: The vision probe that belongs to the classifier.
        limits: What a request may contain.
        loading: `device`, `dtype`, `attn_implementation`, `quantization`, `memory` and `compile`, see
            `from_pretrained`.
        generation: Settings for both modes, or per mode under its name.
        caching: `vision_cache`, `prefix_cache` or both.
        store: Where answers are stored.
        max_num_seqs: See `from_pretrained`.
        engine: An engine that answers instead of checkpoints in this process; `instruct` and `thinking` are then names.
        shadow: A classifier that decides on the same requests as the one in force.
        label_share: See `from_pretrained`.
        explore: See `from_pretrained`.

    Raises:
        SettingsError: An argument is invalid. Nothing is loaded for this check.
        ArtifactError: There is no calibration set for the target, or no vision probe for the captioner "probe".
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
        max_num_seqs: int = DEFAULT_NUM_SEQS,
        engine: Engine | None = None,
        shadow: ComplexityClassifier | None = None,
        label_share: float = 0.0,
        explore: float = 0.0,
    ) -> None:
        if not isinstance(limits, Limits):
            raise refused("limits", limits, "vlroute.Limits(…)")
        remote = engine is not None and engine.remote
        self.selector = ModeSelector(
            classifier, policy, captioner, probe, shared=not remote,
            available=LATER if engine is None else engine.stages,
            shared_prompt=instruct == thinking if engine is None else engine.shared_prompt,
        )  # fmt: skip
        max_num_seqs = MAX_NUM_SEQS.read("max_num_seqs", max_num_seqs)
        self.limits = limits
        if not (store is None or isinstance(store, str | Path) or hasattr(store, "record")):
            raise refused("store", store, "a vlroute.Store, a file or a postgresql:// URL")
        self.explore = EXPLORE.read("explore", explore)
        if self.explore and store is None:
            raise SettingsError("explore needs store=: vlroute learn learns from the stored answers")
        _check_shadow(shadow, label_share, store)
        check_target(shadow, self.selector.target)
        self.generation = checked_per_mode({} if generation is None else generation, endpoints=remote)
        self._model = LazyModel(
            instruct,
            thinking,
            loading=checked_loading({} if loading is None else loading),
            caches=_checked_caches({} if caching is None else caching),
            max_num_seqs=max_num_seqs,
            engine=engine,
            on_load=partial(_warn_of_another_model, self.selector, shadow),
        )
        if classifier is None:
            log.info(
                "no router artifact for %s + %s: %s answers unless mode= is set; pass router=, or train one "
                "(vlroute collect, then vlroute train)", instruct, thinking, self.selector.policy.fallback_mode,
            )  # fmt: skip
        _warn_of_another_model(self.selector, shadow, self._model)
        self.store = _open(store)  # after all checks: a refused argument creates no file
        self._owns_store = self.store is not store
        self._shadow = None
        if shadow is not None or label_share:
            self._shadow = Shadow(shadow, cast("Store", self.store), label_share, max_num_seqs // 2)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        name: str | Path | None = None,
        *,
        instruct: str | Path | None = None,
        thinking: str | Path | None = None,
        router: str | Path | None = None,
        revision: str | None = None,
        policy: Policy | Target | Preset | None = None,
        captioner: Captioner | CaptionSource | None = None,
        limits: Limits = DEFAULT_LIMITS,
        device: Any = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        quantization: Any = None,
        memory: float | None = None,
        compile: CompileChoice | None = None,
        generation: Mapping[str, Any] | None = None,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
        store: Store | str | Path | None = None,
        max_num_seqs: int = DEFAULT_NUM_SEQS,
        shadow: str | Path | None = None,
        label_share: float = 0.0,
        explore: float = 0.0,
        trust_encoder: str | None = None,
        **settings: Any,
    ) -> Self:
        """A router for a pair of checkpoints or for one with both modes; without a name, for the embedded pocket pair.

        Args:
            name: "Qwen/Qwen3-VL-2B" stands for "…-Instruct" and "…-Thinking"; "Qwen/Qwen3.5-2B" is one checkpoint with
                both modes. Also a folder with `instruct/` and `thinking/`, or a folder of one checkpoint with both
                modes, each optionally with `router/`; or a .json file of endpoints, see `from_endpoints`. "pocket" and
                "pocket-hybrid" are the embedded models, unless there is a folder of this name.
            instruct: Hub id or folder of the Instruct checkpoint, together with `thinking` instead of `name`.
            thinking: Hub id or folder of the Thinking checkpoint.
            router: Folder of a router artifact, a name like "qwen3-vl-2b", or one on the hub: "user/name" or
                "user/name@revision". A `Path` is always a folder. The embedded models have their own.
            revision: Branch, tag or commit of the router on the hub; by default "main". Only a commit cannot change.
            policy: `Policy(price=…)`, or a target that is converted to a price at the latencies of this machine:
                "fast", "balanced", "accurate", "knee" or a `Target`. See `operating_point`.
            captioner: Describes pictures and videos: "probe", the vision probe of the artifact (nearly free);
                "instruct", the Instruct model; or a callable that takes a `Picture` or `Video` and returns a string.
                By default the probe if it was trained on the tower of this model, otherwise Instruct. Captions are
                cached by content.
            limits: What a request may contain.
            device: Device of the models, such as "cuda:1"; by default CUDA if available.
            dtype: Data type of the weights; by default bfloat16 on CUDA and float32 on other devices.
            attn_implementation: Attention implementation of transformers.
            quantization: "4bit", "8bit", "int8", or a quantization config of transformers. Not for checkpoints that
                already are quantized.
            memory: Share of the memory for keys, values and vision features: of the memory of a GPU that is free after
                loading (0.85 by default), or of the RAM (0.25). The log says how many tokens it holds. Caches with a
                budget of their own keep it.
            compile: "auto" captures the decode step as CUDA graphs on a GPU and changes nothing on a CPU; "off"
                captures nothing; "max" compiles it with `torch.compile` in addition, which takes a minute or more when
                answers are first generated.
            generation: Settings per mode: `{"thinking": {"max_new_tokens": 4096}}`.
            vision_cache: Cache of vision features with budgets of your own. Several routers may share it.
            prefix_cache: Cache of KV tokens with a budget of your own.
            store: Where answers are stored for `feedback`: a `Store`, a file, or a postgresql:// URL.
            max_num_seqs: Maximum number of answers that are generated at the same time by each checkpoint, from 1 to
                1024.
            shadow: A second router artifact, named like `router`. It also decides on each request without a forced
                mode, and both decisions are stored for `vlroute eval --shadow`. It never changes an answer. Needs
                `store`.
            label_share: Share of the requests without a forced mode, 0 to 1, that the other mode also answers, in the
                background after the answer was returned. With 0.01, this is one request in a hundred. Needs `store`.
            explore: Share of the requests without a forced mode, 0 to 1, that the other mode answers instead of the
                chosen one. The decision, which is stored with the answer, contains the probability. Without such
                answers, `vlroute learn` does not learn what the other mode would have answered. Needs `store`.
            trust_encoder: A text encoder of the hub that may be downloaded if the artifact names it, see
                `ComplexityClassifier.load`.
            **settings: Generation settings for both modes, with the names of transformers: `do_sample=False`.

        Returns:
            The router. Models are loaded later.

        Raises:
            ValueError: A name was passed together with `instruct` or `thinking`, or only one of these two.
            CheckpointError: The name does not stand for a pair, a folder is missing, incomplete or damaged, or a
                package for a quantized checkpoint is missing. Errors that only the loaded tokenizers and weights, or
                the files of a hub id, show are raised by `load`.
            SettingsError: An argument has a wrong type or is out of range. This check does not import torch.
            ArtifactError: The router artifact or its probe cannot be used, or "probe" was requested and there is none.
            HubError: The router does not exist on the hub, or the token does not permit reading it.
            HubUnavailableError: The hub cannot be reached and the router is not in the local cache.
        """
        given = _combined(settings, generation)
        for argument, value in (("name", name), ("instruct", instruct), ("thinking", thinking), ("router", router)):
            if not isinstance(value, str | Path | None):
                raise refused(argument, value, "a hub id or a folder")
        options = {
            "device": device, "dtype": dtype, "attn_implementation": attn_implementation, "quantization": quantization,
            "memory": memory, "compile": compile,
        }  # fmt: skip
        if name is not None and str(name).endswith(".json"):
            if instruct or thinking:
                raise ValueError("a file of endpoints names both servers; leave out instruct= and thinking=")
            if captioner == "probe":
                raise ArtifactError("endpoints give no vision features for the probe; pass captioner='instruct'")
            from vlroute.engine.remote.endpoint import read_endpoints

            return cls.from_endpoints(
                *read_endpoints(Path(name)), router=router, revision=revision, policy=policy, captioner=captioner,
                limits=limits, generation=given, store=store, vision_cache=vision_cache, prefix_cache=prefix_cache,
                shadow=shadow, label_share=label_share, explore=explore, trust_encoder=trust_encoder, **options,
            )  # fmt: skip
        instruct, thinking, router = resolve_pair(name, instruct, thinking, router)
        check_folders(instruct, thinking, quantization)
        classifier, probe = _artifact(router, revision, trust_encoder)
        return cls(
            instruct,
            thinking,
            classifier=classifier,
            policy=policy,
            captioner=captioner,
            probe=probe,
            limits=limits,
            loading=options,
            generation=given,
            caching={"vision_cache": vision_cache, "prefix_cache": prefix_cache},
            store=store,
            max_num_seqs=max_num_seqs,
            shadow=_artifact(shadow, None, trust_encoder)[0],
            label_share=label_share,
            explore=explore,
        )

    @classmethod
    def from_endpoints(
        cls: type[Self],
        instruct: Endpoint | tuple[str, str],
        thinking: Endpoint | tuple[str, str] | None = None,
        *,
        router: str | Path | None = None,
        revision: str | None = None,
        policy: Policy | Target | Preset | None = None,
        captioner: Captioner | Literal["instruct"] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        generation: Mapping[str, Any] | None = None,
        store: Store | str | Path | None = None,
        shadow: str | Path | None = None,
        label_share: float = 0.0,
        explore: float = 0.0,
        trust_encoder: str | None = None,
        **settings: Any,
    ) -> Self:
        """A router for OpenAI-compatible servers such as vLLM, SGLang, llama-server or `vlroute serve`.

        Torch is not imported.

        Args:
            instruct: (base URL with /v1, name of the model on the server), or an `Endpoint` with key, headers and
                deadlines.
            thinking: The same for Thinking. None: the model of `instruct` answers in both modes, and
                `Endpoint(family=…)` says how a request chooses one.
            router: See `from_pretrained`.
            revision: See `from_pretrained`.
            policy: See `from_pretrained`.
            captioner: A callable, or "instruct" (the default): the Instruct endpoint describes pictures and videos.
            limits: What a request may contain.
            generation: Settings per mode.
            store: Where answers are stored for `feedback`.
            shadow: See `from_pretrained`.
            label_share: See `from_pretrained`.
            explore: See `from_pretrained`.
            trust_encoder: See `from_pretrained`.
            **settings: Generation settings for both modes. Only settings that are passed are sent; the defaults are
                those of the servers.

        Returns:
            The router. The servers are not contacted before the first answer or `load()`.

        Raises:
            ValueError: An endpoint is not a pair of strings, or one endpoint does not answer in both modes.
            SettingsError: An argument is invalid, or concerns models that are loaded in this process.
            MissingExtraError: The package openai is missing.
            ArtifactError: The router artifact cannot be used.
            HubError: See `from_pretrained`.
        """
        from vlroute.engine.remote.client import RemoteEngine

        loading = {name: settings.pop(name) for name in _LOADING if name in settings}
        if loading.pop("max_num_seqs", 1) not in (None, 1) or any(value is not None for value in loading.values()):
            raise SettingsError(f"{', '.join(_LOADING)} cannot be used with endpoints; set them on the servers")
        remote = RemoteEngine.over(instruct, thinking)
        try:
            return cls(
                *remote.names,
                classifier=_artifact(router, revision, trust_encoder)[0],
                policy=policy,
                captioner=captioner,
                limits=limits,
                generation=_combined(settings, generation),
                store=store,
                engine=remote,
                shadow=_artifact(shadow, None, trust_encoder)[0],
                label_share=label_share,
                explore=explore,
            )
        except BaseException:
            remote.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self.closed else "not loaded" if self._model.engine is None else "loaded"
        return (
            f"{type(self).__name__}(instruct={str(self.instruct)!r}, thinking={str(self.thinking)!r}, "
            f"policy={self.selector.target or self.selector.policy!r}, max_num_seqs={self.max_num_seqs}, "
            f"{'endpoints' if self.remote and not self.closed else state})"
        )

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def instruct(self) -> str | Path:
        """Hub id or folder of the Instruct checkpoint, or the name of its endpoint."""
        return self._model.instruct

    @property
    def thinking(self) -> str | Path:
        """Hub id or folder of the Thinking checkpoint, or the name of its endpoint."""
        return self._model.thinking

    @property
    def max_num_seqs(self) -> int:
        """Maximum number of answers in each mode that are generated at the same time."""
        return self._model.max_num_seqs

    @property
    def blocks(self) -> bool:
        """Whether a request occupies a thread until it is answered, as with endpoints or a captioner of your own."""
        return self._model.blocks or self.selector.has_own_captioner

    @property
    def remote(self) -> RemoteEngine | None:
        """The engine that answers through endpoints; None if the models run in this process."""
        return self._model.remote

    @property
    def identity(self) -> ModelIdentity:
        """Name of the model, and its fingerprint if the weights are on this machine.

        For endpoints it consists of the names of both models.
        """
        return self._model.identity

    @property
    def pipeline(self) -> Pipeline:
        """Decides and answers parsed conversations; what `ask`, `stream` and chats use."""
        return Pipeline(
            self._model, self.selector, self.generation, self.limits, self.store, self._shadow, self.explore
        )

    @property
    def shadow(self) -> Shadow | None:
        """Shadow mode with its counts, see `Shadow.stats`; None without a second artifact and without a label share."""
        return self._shadow

    def use(self, artifact: str | Path | ComplexityClassifier, *, trust_encoder: str | None = None) -> None:
        """Decide with another router artifact from the next request on.

        While a `vlroute.learning.ContinualLearner` works with this router, leave the choice to it.

        Args:
            artifact: The artifact with its vision probe, named like `router` of `from_pretrained`; or a classifier,
                which keeps the probe.
            trust_encoder: See `from_pretrained`.

        Raises:
            ArtifactError: The artifact cannot be used. Nothing is changed.
            HubError: See `from_pretrained`. Nothing is changed.
        """
        if isinstance(artifact, ComplexityClassifier):
            self.selector.use(artifact, self.selector.probe)
        else:
            folder = router_folder(artifact)
            self.selector.use(ComplexityClassifier.load(folder, trust_encoder), probe_of(folder))
        _warn_of_another_model(self.selector, None, self._model)

    def save_pretrained(
        self, folder: str | Path, *, private_vocabulary: bool = False, license: str | None = None
    ) -> None:
        """Write the router artifact in use with its vision probe and a model card, README.md, into a folder.

        `Router.from_pretrained(router=folder)` decides in the same way. The checkpoints are not written.

        Args:
            folder: The folder. An artifact in it is replaced.
            private_vocabulary: Write hashes instead of the words of the training requests. Probabilities differ by at
                most about 1e-7. The vision probe is left out, because its captions cannot be hashed. A hash does not
                protect words that can be guessed.
            license: License of the artifact, an identifier of the hub such as "apache-2.0", for the model card.

        Raises:
            ArtifactError: This router has no artifact.
            SettingsError: An argument has a wrong type.
            OutputError: The folder cannot be created or written to, or contains a README.md but no router, or a vision
                probe of another artifact.
            OSError: A file cannot be written.
        """
        classifier = self._own_classifier()
        save_router(folder, classifier, self.selector.probe, private_vocabulary=private_vocabulary, license=license)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = COMMIT_MESSAGE,
        create_pr: bool = False,
        private_vocabulary: bool = False,
        license: str | None = None,
    ) -> CommitInfo:
        """Upload the router artifact in use to the hub, as `save_pretrained` writes it, in one commit.

        An artifact contains words of the requests it was trained on. A warning says how many, with examples, before
        the upload. The repository is created if it does not exist. Files of an earlier router in it are replaced,
        README.md included.

        Args:
            repo: "user/name", or "name" for a repository of the owner of the token.
            private: Whether a new repository is private; by default as the account is set up.
            token: A token of the hub; by default HF_TOKEN or the one of `hf auth login`.
            revision: Branch to upload to, created if it does not exist; by default "main".
            commit_message: The message of the commit.
            create_pr: Open a pull request instead of committing to the branch.
            private_vocabulary: See `save_pretrained`.
            license: See `save_pretrained`.

        Returns:
            The commit, with its id in `oid` and the address of a pull request in `pr_url`. If the branch already
            contains this router, nothing is uploaded: a warning says so, and the latest commit is returned.

        Raises:
            ArtifactError: This router has no artifact.
            SettingsError: An argument has a wrong type, or both a revision and a pull request were requested.
            HubError: The hub refuses the upload: the token does not permit it, or a value is invalid. Or the repository
                contains something other than a router.
            HubUnavailableError: The hub cannot be reached.
        """
        commit, _ = push_router(
            repo, self._own_classifier(), self.selector.probe, private=private, token=token, revision=revision,
            commit_message=commit_message, create_pr=create_pr, private_vocabulary=private_vocabulary, license=license,
        )  # fmt: skip
        return commit

    def _own_classifier(self) -> ComplexityClassifier:
        if self.selector.classifier is None:
            raise ArtifactError("this router has no artifact to share; pass router=, or train one with 'vlroute train'")
        return self.selector.classifier

    def operating_point(self, target: Target | Preset | None = None) -> OperatingPoint:
        """Expected accuracy, seconds and share of Thinking at the current latencies of this machine.

        Args:
            target: A target instead of the current policy.

        Returns:
            The operating point, with the price that leads to it.

        Raises:
            SettingsError: `target` is of another type.
            ArtifactError: The router artifact contains no calibration set.
        """
        if not isinstance(target, Target | str | None):
            raise refused("target", target, "a vlroute.Target, the name of a preset or None")
        return self.selector.operating_point(Target(preset=target) if isinstance(target, str) else target)

    def load(self) -> Router:
        """Load both checkpoints now instead of at the first answer; for endpoints, check that both are available.

        Returns:
            This router.

        Raises:
            CheckpointError: A checkpoint cannot be loaded.
            RouterClosedError: The router was closed.
        """
        self._model.load().wait()
        return self

    @property
    def pair(self) -> ModelPair:
        """The two checkpoints; the first use loads them. Raises ValueError for endpoints."""
        return self._local.pair

    @property
    def cache(self) -> VisionCache:
        """The cache of vision features; the first use loads the model. Raises ValueError for endpoints."""
        return self._local.vision

    @property
    def prefixes(self) -> PrefixCache:
        """The cache of KV tokens; the first use loads the model. Raises ValueError for endpoints."""
        return self._local.prefixes

    @property
    def scheduler(self) -> Scheduler | None:
        """Runs the models; None if they are not loaded in this process."""
        return getattr(self._model.engine, "scheduler", None)

    @property
    def _local(self) -> LocalEngine:
        if self.remote is not None:
            raise ValueError("this router answers through endpoints: it has no local model and no caches")
        return cast("LocalEngine", self._model.load())

    def request(self, conversation: Conversation) -> Request:
        """Open a request in the engine, without a decision.

        Args:
            conversation: The messages.

        Returns:
            A context manager; see `EngineRequest`.

        Raises:
            ValueError: The router answers through endpoints.
        """
        return self._local.request(conversation)

    def forget(self) -> None:
        """Remove vision features and KV tokens that no request uses from the caches. Has no effect on endpoints."""
        if self.remote is None:
            self.cache.clear()
            self.prefixes.clear()

    def sampling(self) -> FrameSampling:
        """Frame sampling for video files.

        Returns:
            The settings of the Instruct checkpoint's processor if the checkpoint is on this machine; otherwise, and for
            endpoints, those of Qwen3-VL.
        """
        return self._model.sampling()

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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
    ) -> Decision:
        """Decide which mode should answer, without answering. Never loads a checkpoint.

        Without `caption`, a cached caption is used, or a new one is made if the captioner is available: a callable, or
        the probe or Instruct model of a loaded model. Otherwise only the prompt is used, and `reason` says so.

        Args:
            prompt: The question, or a list of messages.
            images: One picture or several.
            videos: One video or several.
            history: Earlier messages.
            caption: A description of the media, instead of the captioner's.
            mode: "instruct" or "thinking" forces that mode.
            price: Replaces the price of the policy for this request.
            tools: Tools that the model may call. The classifier uses whether there are any.
            tool_choice: See `ask`.
            parallel_tool_calls: See `ask`.

        Returns:
            The decision with its probabilities, expected seconds and reason.

        Raises:
            InputError: The messages, mode, price or caption are invalid.
            RouterClosedError: The router was closed.
        """
        options = RequestOptions(caption, forced_mode(mode), price)
        offered = checked_tools(tools, tool_choice, parallel_tool_calls)
        return self.decide_on(self.pipeline.parse(prompt, images, videos, history, offered), options)

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """Decide for a conversation that is parsed already.

        Args:
            conversation: The messages.
            options: Mode, caption and price.

        Returns:
            The decision.

        Raises:
            RouterClosedError: The router was closed.
        """
        return self.pipeline.decide(conversation, options)

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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **generation: Any,
    ) -> Answer:
        """Decide, then answer.

        Args:
            prompt: The question, or a list of messages as in OpenAI's API.
            images: One picture or several: paths, PIL images, arrays, bytes or data URIs.
            videos: One video or several: paths, or frames with their times.
            history: Earlier messages.
            caption: A description of the media, instead of the captioner's.
            mode: "instruct" or "thinking" forces that mode; "auto" or None lets the router decide.
            price: Replaces the price of the policy for this request, even if the policy is a target such as "fast".
            cancel: Once set, generation ends within one token, with `finish_reason="cancelled"`.
            tools: Tools that the model may call, in OpenAI's form. The calls are in `Answer.tool_calls`. The messages
                of the next request continue with `Answer.message` and the results.
            tool_choice: "auto" or None: the model chooses between calls and text. "none": no tools are offered.
                "required": the answer consists of calls. The name of a tool: the answer is one call of it. OpenAI's
                objects of type "function" and "allowed_tools" are accepted too.
            parallel_tool_calls: Whether an answer may contain several calls; None: yes. Otherwise it ends after one.
            **generation: Settings with the names of transformers: `temperature=0` (greedy), `max_new_tokens=64`,
                `thinking_budget=500` (tokens of reasoning), …. None means "not set here".

        Returns:
            The answer with its decision, token counts and timing.

        Raises:
            InputError: The messages, mode, price or caption are invalid.
            SettingsError: A setting is unknown, not supported or out of range, or settings contradict each other. It
                is raised before anything is loaded, captioned or generated.
            CheckpointError: A checkpoint cannot be loaded.
            RouterClosedError: The router was closed.
            RuntimeError: The captioner of this router has made the call without `mode=` or `caption=`, or a callback of
                an answer has made it.
        """
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        offered, pipeline = checked_tools(tools, tool_choice, parallel_tool_calls), self.pipeline
        return run(pipeline.answer(pipeline.parse(prompt, images, videos, history, offered), options))

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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **generation: Any,
    ) -> Events:
        """Decide, then answer as a stream of events. Arguments and errors are those of `ask`.

        Args:
            prompt: The question, or a list of messages.
            images: One picture or several.
            videos: One video or several.
            history: Earlier messages.
            caption: A description of the media, instead of the captioner's.
            mode: Forces a mode.
            price: Replaces the price of the policy for this request.
            cancel: Cancels the answer once it is set.
            tools: Tools that the model may call.
            tool_choice: See `ask`.
            parallel_tool_calls: See `ask`.
            **generation: Generation settings.

        Returns:
            `Decided`, then `ThinkingDelta`, `AnswerDelta` and `ToolCalled`, then `Finished`. Closing it cancels the
            answer.

        Raises:
            InputError: The messages or options are invalid.
            RouterClosedError: The router was closed.
        """
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        offered, pipeline = checked_tools(tools, tool_choice, parallel_tool_calls), self.pipeline
        return pipeline.stream(pipeline.parse(prompt, images, videos, history, offered), options)

    async def aask(
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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **generation: Any,
    ) -> Answer:
        """`ask` for an event loop: `await router.aask(…)`. Many requests together share the steps of the models.

        Args:
            prompt: The question, or a list of messages.
            images: One picture or several.
            videos: One video or several.
            history: Earlier messages.
            caption: A description of the media, instead of the captioner's.
            mode: Forces a mode.
            price: Replaces the price of the policy for this request.
            cancel: Cancels the answer once it is set. Cancelling the task has the same effect.
            tools: Tools that the model may call.
            tool_choice: See `ask`.
            parallel_tool_calls: See `ask`.
            **generation: Generation settings.

        Returns:
            The answer.

        Raises:
            InputError: The messages or options are invalid. Other errors: see `ask`.
            RouterClosedError: The router was closed.
        """
        check_waiting()
        left, pipeline = threading.Event(), self.pipeline
        options = RequestOptions(caption, forced_mode(mode), price, EitherEvent(left, cancel), generation)
        offered = checked_tools(tools, tool_choice, parallel_tool_calls)
        answering = pipeline.start(partial(pipeline.parse, prompt, images, videos, history, offered), options)
        try:
            return await asyncio.wrap_future(answering)
        finally:
            left.set()

    async def astream(
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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **generation: Any,
    ) -> AsyncGenerator[Event, None]:
        """`stream` for an event loop: `async for event in router.astream(…)`. Closing it cancels the answer.

        Args:
            prompt: The question, or a list of messages.
            images: One picture or several.
            videos: One video or several.
            history: Earlier messages.
            caption: A description of the media, instead of the captioner's.
            mode: Forces a mode.
            price: Replaces the price of the policy for this request.
            cancel: Cancels the answer once it is set.
            tools: Tools that the model may call.
            tool_choice: See `ask`.
            parallel_tool_calls: See `ask`.
            **generation: Generation settings.

        Yields:
            The events, see `stream`.

        Raises:
            InputError: The messages or options are invalid. Other errors: see `ask`.
            RouterClosedError: The router was closed.
        """
        check_waiting()
        options, pipeline = RequestOptions(caption, forced_mode(mode), price, cancel, generation), self.pipeline
        offered = checked_tools(tools, tool_choice, parallel_tool_calls)
        events = pipeline.astream(partial(pipeline.parse, prompt, images, videos, history, offered), options)
        try:
            while True:
                event = await events.next()
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            events.close()

    def ask_many(self, requests: Iterable[Mapping[str, Any]], *, progress: bool = False) -> list[Answer]:
        """Answer many requests together: pictures and prompts are read in batches, and answers share decode steps.

        Args:
            requests: The arguments of `ask` for each request, as `{"prompt": "How many?", "images": "photo.jpg"}`.
                They are taken from the iterable as far as they are needed.
            progress: Show a progress bar on stderr.

        Returns:
            The answers, in the order of the requests.

        Raises:
            InputError: A request is invalid. The first error of a request is raised, see `ask`, and the others are
                cancelled. A note of the error says which request it was.
            RouterClosedError: The router was closed.
        """
        check_waiting()
        if not isinstance(progress, bool):
            raise refused("progress", progress, "True or False")
        left, pipeline = threading.Event(), self.pipeline
        running: deque[Future[Answer]] = deque()
        answers: list[Answer] = []

        def begun(request: Mapping[str, Any]) -> Future[Answer]:
            if not isinstance(request, Mapping):
                raise refused("a request", request, "a mapping of the arguments of ask")
            try:
                given = inspect.signature(self.ask).bind(**request)
            except TypeError as error:
                raise MessageError(f"a request is a mapping of the arguments of ask: {error}") from None
            given.apply_defaults()
            asked = given.arguments
            cancel = EitherEvent(left, asked["cancel"])
            options = RequestOptions(
                asked["caption"], forced_mode(asked["mode"]), asked["price"], cancel, asked["generation"]
            )
            prompt, images, videos, history = (asked[name] for name in ("prompt", "images", "videos", "history"))
            offered = checked_tools(*(asked[name] for name in ("tools", "tool_choice", "parallel_tool_calls")))
            return pipeline.start(partial(pipeline.parse, prompt, images, videos, history, offered), options)

        from rich.console import Console
        from rich.progress import Progress

        try:
            with Progress(console=Console(stderr=True), disable=not progress) as bar:
                shown = bar.add_task("answers", total=len(requests) if isinstance(requests, Sized) else None)

                def take() -> None:
                    with _noted(len(answers)):
                        answers.append(running.popleft().result())
                    bar.advance(shown)

                for number, request in enumerate(requests):
                    with _noted(number):
                        running.append(begun(request))
                    # some requests ahead, so that their pictures are prepared while others are answered
                    while running and (running[0].done() or len(running) >= AHEAD * self.max_num_seqs):
                        take()
                while running:
                    take()
            return answers
        finally:
            left.set()

    def answer_turn(
        self, conversation: Conversation, options: RequestOptions, emit: Callable[[Event], Any] | None = None
    ) -> Answer:
        """Answer a parsed conversation.

        Args:
            conversation: The messages.
            options: Mode, caption, price, generation settings and others.
            emit: Called with each event, in one thread after the other. Without it, an engine may restart the answer
                after a fault.

        Returns:
            The answer.
        """
        return run(self.pipeline.answer(conversation, options, emit))

    def stream_turn(self, prepare: Callable[[], Conversation], options: RequestOptions) -> Events:
        """The events of `answer_turn`.

        Args:
            prepare: Makes the conversation.
            options: Mode, caption, price, generation settings and others.

        Returns:
            The events; see `stream`.
        """
        return self.pipeline.stream(prepare(), options)

    def chat(self, system: str | None = None) -> Chat:
        """Start a conversation.

        Args:
            system: A system prompt.

        Returns:
            A chat without turns.

        Raises:
            MessageError: The system prompt contains control tokens.
            RouterClosedError: The router was closed.
        """
        self._model.check_open()
        return Chat(self.pipeline, system=system)

    def resume(self, folder: str | Path) -> Chat:
        """Continue a conversation that `Chat.save` wrote.

        Args:
            folder: The folder of the conversation.

        Returns:
            A chat with the saved turns.

        Raises:
            ChatFileError: The conversation cannot be read.
            RouterClosedError: The router was closed.
        """
        self._model.check_open()
        system, turns = read_chat(folder, self.limits)
        return Chat(self.pipeline, turns, system)

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None, key: str = "") -> None:
        """Store whether an answer was right. The latest feedback on an answer counts.

        Args:
            answer_id: `Answer.id` of the answer.
            correct: True, false, or a share from 0 to 1.
            comment: Free text that is stored with the feedback.
            key: Name of the client, such as that of its API key. It limits how many of its ratings count, see
                `vlroute.learning.ContinualLearner`; ratings without a name are not limited.

        Raises:
            ValueError: The router has no store.
            UnknownAnswerError: No answer with this id is stored.
            InputError: `correct` is out of range.
            StoreError: The feedback cannot be stored.
            RouterClosedError: The router was closed.
        """
        self._model.check_open()
        if self.store is None:
            raise ValueError("this router stores no answers; create it with store='answers.db'")
        self.store.feedback(answer_id, correct=correct, comment=comment, key=key)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._model.closed.is_set()

    def close(self) -> None:
        """Cancel unfinished answers, and release models, connections, and the store if the router opened it.

        Unfinished answers end within one token with `finish_reason="cancelled"`; later calls raise a RouterClosedError.
        A second call has no effect. `with Router.from_pretrained() as router:` closes at the end of the block.
        """
        self._model.close()
        if self._shadow is not None:
            self._shadow.close()
        if self.store is not None and self._owns_store:
            self.store.close()


def _artifact(
    router: str | Path | None, revision: str | None, trust_encoder: str | None
) -> tuple[ComplexityClassifier | None, VisionProbe | None]:
    """The classifier and the vision probe of an artifact in a folder or on the hub."""
    if router is None:
        if revision is not None:
            raise SettingsError("revision= is that of a router on the hub; pass router='user/name' as well")
        return None, None
    folder = router_folder(router, revision)
    return ComplexityClassifier.load(folder, trust_encoder), probe_of(folder)


@contextmanager
def _noted(number: int) -> Iterator[None]:
    """Add the number of a request of `ask_many` to its error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised for requests[{number}] of ask_many")
        raise


def _combined(settings: Mapping[str, Any], generation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Merge both arguments. Raises SettingsError for a name that is not a setting, such as a misspelled argument."""
    if not isinstance(generation, Mapping | None):
        raise refused("generation", generation, "a mapping of settings, or of settings per mode")
    if "price" in settings:
        raise SettingsError("price is not an argument of a router; pass policy=Policy(price=…), or price= to ask")
    arguments = [name for name in inspect.signature(Router.from_pretrained).parameters if name != "settings"]
    for name in settings:
        like = difflib.get_close_matches(name, [*arguments, *SETTINGS], 1)
        if name not in SETTINGS and name not in UNSUPPORTED and like and like[0] in arguments:
            raise SettingsError(f"unknown argument {name}; did you mean {like[0]}?")
    return {**settings, **(generation or {})}


def _check_shadow(shadow: ComplexityClassifier | None, label_share: float, store: Store | str | Path | None) -> None:
    share = LABEL_SHARE.read("label_share", label_share)
    if (shadow is not None or share) and not isinstance(store, str | Path) and not hasattr(store, "record_shadowed"):
        raise SettingsError(
            "label_share needs store=: the labels are stored with the answers"
            if shadow is None
            else "shadow needs store=: both decisions are stored with the answers"
        )


def _warn_of_another_model(selector: ModeSelector, shadow: ComplexityClassifier | None, model: LazyModel) -> None:
    if selector.classifier is not None and selector.classifier.stages is not None:
        selector.check_evidence(model.identity.fingerprint)  # which reads all weights
    for argument, used in (("router", selector.classifier), ("shadow", shadow)):
        trained_for = used.model if used else None
        if trained_for is not None and trained_for.differs(here := model.identity):
            log.warning(
                "the %s artifact was trained for %s, but the model is %s: its decisions may be wrong; train one for "
                "this model (vlroute collect, then vlroute train) and pass it as %s=",
                argument, trained_for, here, argument,
            )  # fmt: skip


def _open(store: Store | str | Path | None) -> Store | None:
    if not isinstance(store, str | Path):
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
