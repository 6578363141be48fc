"""The two ways to a router: checkpoints in this process, or endpoints elsewhere."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vlroute.checks import refused
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.decision.target import Preset, Target
from vlroute.decision.vision_probe import probe_of
from vlroute.engine.checkpoint_files import check_folders
from vlroute.engine.settings import SETTINGS, UNSUPPORTED
from vlroute.errors import ArtefactError, SettingsError
from vlroute.judge import CaptionSource, MediaCaptioner
from vlroute.media import DEFAULT_LIMITS, Limits
from vlroute.pair_names import resolve_pair

if TYPE_CHECKING:
    from vlroute.engine.endpoint import Endpoint
    from vlroute.engine.prefix_cache import PrefixCache
    from vlroute.engine.vision_cache import VisionCache
    from vlroute.store import Store

Made = TypeVar("Made", bound="Sources")
#: Arguments of `from_pretrained` about what this process loads.
_LOADING = ("device", "dtype", "attn_implementation", "quantization", "rows", "vision_cache", "prefix_cache")


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
        captioner: MediaCaptioner | CaptionSource | None = None,
        limits: Limits = DEFAULT_LIMITS,
        device: Any = None,
        dtype: Any = None,
        attn_implementation: str | None = None,
        quantization: Any = None,
        generation: Mapping[str, Any] | None = None,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
        store: Store | str | Path | None = None,
        rows: int = 1,
        **settings: Any,
    ) -> Made:
        """A router over a pair of checkpoints; without any name over the embedded pocket pair.

        Args:
            name: "Qwen/Qwen3-VL-2B" stands for "…-Instruct" and "…-Thinking"; or a folder with `instruct/`, `thinking/`
                and optionally `router/`; or a .json file of endpoints, see `from_endpoints`.
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
            generation: the same per mode: `{"thinking": {"max_new_tokens": 4096}}`. docs/engine.md lists all settings.
            vision_cache, prefix_cache: with budgets of your own (see docs/conversations.md). Routers may share a vision
                cache.
            store: where answers are remembered for `feedback`: a `Store`, a file, or a postgresql:// URL.
            rows: maximum number of answers in each mode that share forward passes; 1: each answer is generated alone.

        Raises:
            ValueError: a name together with `instruct=`/`thinking=`, or only one of these two.
            CheckpointError: the name does not stand for a pair, or a folder is missing, incomplete or damaged. `load`
                checks what only the loaded tokenizers and weights show.
            SettingsError: an argument has a wrong type or is out of range. This check does not import torch.
            ArtefactError: the router artefact or its probe cannot be used, or "probe" was asked for and there is none.
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
                raise ArtefactError("endpoints give no vision features for the probe; pass captioner='instruct'")
            from vlroute.engine.endpoint_file import read_endpoints

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
            rows=rows,
        )

    @classmethod
    def from_endpoints(
        cls: type[Made],
        instruct: Endpoint | tuple[str, str],
        thinking: Endpoint | tuple[str, str],
        *,
        router: str | Path | None = None,
        policy: Policy | Target | Preset | None = None,
        captioner: MediaCaptioner | Literal["instruct"] | None = None,
        limits: Limits = DEFAULT_LIMITS,
        generation: Mapping[str, Any] | None = None,
        store: Store | str | Path | None = None,
        **settings: Any,
    ) -> Made:
        """A router over two OpenAI-compatible servers: vLLM, SGLang, llama-server, `vlroute serve`, …; brings no torch.

        Args:
            instruct, thinking: (base URL with /v1, the model's name there), or an `Endpoint` for keys, headers and
                deadlines; see docs/endpoints.md.
            others: as of `from_pretrained`. Only what is set is sent; else the servers' own settings hold.
        """
        from vlroute.engine.remote import RemoteEngine

        loading = {name: settings.pop(name) for name in _LOADING if name in settings}
        if loading.pop("rows", 1) not in (None, 1) or any(value is not None for value in loading.values()):
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
