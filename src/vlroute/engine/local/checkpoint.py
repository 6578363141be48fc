"""Loads a pair of checkpoints, or one with both modes, into this process; equal vision towers are loaded once."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.quantizers import AutoHfQuantizer
from transformers.utils import import_utils

from vlroute.checks import shown
from vlroute.engine.families import Family, known_families
from vlroute.engine.local.checkpoint_files import (
    INDEX,
    REMEDY,
    WEIGHTS,
    CheckpointFiles,
    check_distinct,
    check_kinds,
    check_sizes,
    check_switch,
    is_hybrid,
    local_folder,
    pair_fingerprint,
)
from vlroute.engine.local.loading import checked_loading, quantization_config
from vlroute.engine.local.out_of_memory import is_out_of_memory
from vlroute.engine.local.quantized import (
    FP8,
    check_quantization,
    gguf_error,
    is_dequantized,
    is_gguf_folder,
    method_of,
    title_of,
)
from vlroute.engine.settings import own_settings
from vlroute.errors import CheckpointError, SettingsError
from vlroute.model_loading import MODEL_LOADING
from vlroute.types import MODES, Mode

#: Raised when `engine.local.tower` computes other last bits.
TOWER_VERSION = 1
# settings that determine the output of a tower; names and versions in the config do not
SHAPE_KEYS = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "num_position_embeddings",
    "deepstack_visual_indexes",
)  # fmt: skip


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():  # transformers prefers a single file
        return [folder / WEIGHTS]
    names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / name for name in sorted(set(names))]


def tower_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the vision tower, one at a time, sorted by their name within the tower."""
    where: dict[str, tuple[Path, str]] = {}
    for file in _weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - a safe_open handle is not a mapping
                if "visual." in name:
                    where[name.split("visual.", 1)[1]] = (file, name)
    for short, (file, name) in sorted(where.items()):
        with safe_open(file, framework="pt") as tensors:
            yield short, tensors.get_tensor(name)


def tower_fingerprint(folder: str | Path) -> str:
    """SHA-256 of the tower's shape settings and all bytes of its weights in the files.

    Args:
        folder: the folder of the checkpoint.

    Returns:
        64 hex characters.

    Raises:
        CheckpointError: the folder contains no safetensors weights of a vision tower.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]
        digest.update(json.dumps({key: config.get(key) for key in SHAPE_KEYS}, sort_keys=True).encode())
        count = 0
        for name, tensor in tower_tensors(folder):
            header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
            digest.update(f"{len(header)}:{header}".encode())
            digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()).cast("B"))  # scales have no dimension
            count += 1
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the vision tower of {folder.name!r}: {error}; expected a checkpoint folder with config.json "
            "and safetensors weights"
        ) from error
    if not count:
        raise CheckpointError(f"{folder.name!r} contains no vision tower; expected one of {known_families()}")
    return digest.hexdigest()


log = logging.getLogger("vlroute")

#: Kinds of quantization after whose loading transformers reports missing tensors exactly.
COMPLETE = (*FP8, "bitsandbytes", "torchao", "compressed-tensors")
#: What to do about a quantized checkpoint that cannot be loaded.
INSTEAD = (
    "pass a checkpoint that is not quantized, or serve this one with vLLM and pass its endpoints "
    "(docs/how-to/endpoints.md)"
)
#: Files that are downloaded and checked before the weights.
SMALL_FILES = ["*.json", "*.jinja", "*.txt"]
CHECKPOINT_FILES = [*SMALL_FILES, "*.safetensors"]  # no pickle files: loading them could run code


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One loaded checkpoint; of a hybrid, the part of one mode.

    Attributes:
        mode: the mode that it answers.
        family: the family of its model.
        source: folder or hub id.
        model: the transformers model.
        processor: tokenizer, image processor and video processor.
        tower: fingerprint of the vision tower's weights, 64 hex characters.
        grid_key: hash of the processor settings that determine the number of tokens, 64 hex characters.
        vision_key: hash of everything that determines the bits of vision features: `tower`, `grid_key`, dtype, device,
            attention and versions, 64 hex characters. Modes share features exactly if their keys are equal.
        generation: the supported settings of its generation config.
        marker_ids: token ids of a prompt from the marker on; empty for a pair.
    """

    mode: Mode
    family: Family
    source: str
    model: Any
    processor: Any
    tower: str
    grid_key: str
    vision_key: str
    generation: Mapping[str, Any] = field(default_factory=dict)
    marker_ids: Sequence[int] = ()

    @property
    def owner(self) -> str:
        """Identifies the language model in the cache of KV tokens: both modes of a hybrid share it."""
        return self.family.model_type if self.family.hybrid else self.mode

    @property
    def template_options(self) -> dict[str, bool]:
        """Arguments of the chat template that choose the mode."""
        return {} if self.family.switch is None else {self.family.switch: self.mode == "thinking"}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `processor`."""
        return self.processor.tokenizer

    @property
    def merge_size(self) -> int:
        """Side of a merged vision token in patches."""
        return int(self.processor.image_processor.merge_size)

    @property
    def device(self) -> torch.device:
        """The device of `model`."""
        return torch.device(self.model.device)


@dataclass(frozen=True, slots=True)
class ModelPair:
    """The Instruct and the Thinking checkpoint, loaded.

    Attributes:
        instruct: the Instruct checkpoint.
        thinking: the Thinking checkpoint.
        load_seconds: duration of loading.
        fingerprint: identifies the weights of the pair, 64 hex characters.
    """

    instruct: Checkpoint
    thinking: Checkpoint
    load_seconds: float
    fingerprint: str

    def __getitem__(self, mode: Mode) -> Checkpoint:
        return self.instruct if mode == "instruct" else self.thinking

    @property
    def shared_tower(self) -> bool:
        """Whether both modes use one vision tower in memory."""
        return self.instruct.model.model.visual is self.thinking.model.model.visual

    def parameter_bytes(self) -> int:
        """Size of all weights in memory in bytes; shared ones count once."""
        unique = {p.data_ptr(): p.numel() * p.element_size() for mode in MODES for p in self[mode].model.parameters()}
        return sum(unique.values())

    def __str__(self) -> str:
        tower = "one tower for both modes" if self.shared_tower else "two different towers"
        return f"{self.instruct.source} + {self.thinking.source} on {self._where}: {tower}"

    @property
    def _where(self) -> str:
        return f"{self.instruct.device}, {str(self.instruct.model.dtype).removeprefix('torch.')}"


class HybridModel(ModelPair):
    """One checkpoint that answers in both modes, loaded. `instruct` and `thinking` are its modes."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"{self.instruct.source} on {self._where}: one model for both modes"


def checkpoint_folder(source: str | Path, patterns: Sequence[str] = CHECKPOINT_FILES) -> Path:
    """The local folder of a checkpoint. A hub id is downloaded if it is not in the local hub cache.

    Args:
        source: a folder or a hub id.
        patterns: which files to download.

    Returns:
        The folder.

    Raises:
        CheckpointError: `source` is neither a folder with a checkpoint nor a hub id that can be downloaded.
    """
    if (folder := local_folder(source)) is not None:
        if not (folder / "config.json").exists():
            if is_gguf_folder(folder):
                raise gguf_error(repr(str(source)))
            raise CheckpointError(f"{str(source)!r} is a folder without config.json; expected a checkpoint")
        return folder
    try:
        folder = Path(snapshot_download(str(source), allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"cannot find the checkpoint {str(source)!r}: there is no such folder, and the hub raised "
            f"{type(error).__name__}. Pass a folder or a hub id such as 'Qwen/Qwen3-VL-2B-Instruct'; without a "
            "network, copy the checkpoint to this machine first"
        ) from error
    if not (folder / "config.json").exists() and _offers_gguf(str(source)):
        raise gguf_error(repr(str(source)))
    return folder


def _offers_gguf(hub_id: str) -> bool:
    """Whether a repository of the hub contains GGUF files. They are not among the files that are downloaded."""
    try:
        return any(name.endswith(".gguf") for name in list_repo_files(hub_id))
    except Exception:  # without this answer of the hub, the error says that config.json is missing
        return False


def default_device() -> str:
    """CUDA if available, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> torch.dtype:
    """The dtype for `device`: bfloat16 on CUDA, in which Qwen3-VL was trained; float32 elsewhere."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def _check_device(device: str) -> None:
    """SettingsError if this machine has no such device."""
    kind, _, index = device.partition(":")
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()),
              "xpu": torch.xpu.device_count()}  # fmt: skip
    if int(index or 0) >= counts[kind]:
        here = ", ".join(
            f"{name}:{i}" if name in ("cuda", "xpu") else name for name, n in counts.items() for i in range(n)
        )
        raise SettingsError(f"device {device!r} does not exist on this machine; PyTorch finds {here}")


def load_processor(files: CheckpointFiles) -> Any:
    """Tokenizer and processors of a checkpoint. CheckpointError if they cannot be loaded."""
    try:
        return AutoProcessor.from_pretrained(files.folder)
    except Exception as error:  # for a damaged file, transformers and tokenizers raise many types of errors
        raise _unreadable(files, "tokenizer, chat template or processor", error) from error


def check_loadable(files: CheckpointFiles, options: Mapping[str, Any]) -> None:
    """Check before its weights are downloaded whether a checkpoint, if it is quantized, can be loaded here.

    Args:
        files: The files that are there already.
        options: Options of `from_pretrained` of transformers; "device_map" names the device.

    Raises:
        CheckpointError: A package is missing, or the device cannot be used for this kind of quantization.
        SettingsError: The options would quantize it again.
    """
    check_quantization(files.name, files.config, options.get("quantization_config"))
    if (found := files.quantization) is None:
        return
    device = options.get("device_map", "cpu")
    try:
        quantizer = AutoHfQuantizer.from_config(deepcopy(found))
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # transformers raises many types of errors
        raise _unloadable(files, device, error) from error
    if is_dequantized(found, device) or getattr(quantizer.quantization_config, "dequantize", False):
        log.warning(
            "%s is quantized with %s: on %s, its weights are converted to the dtype of the model and take as much "
            "memory as those of a checkpoint that is not quantized", files.name, title_of(found), device,
        )  # fmt: skip
    elif method_of(found) in FP8 and not import_utils.is_kernels_available():
        limits = [getattr(import_utils, f"KERNELS_{end}_VERSION", None) for end in ("MIN", "MAX")]
        versions = ",".join(f"{sign}{one}" for sign, one in zip((">=", "<"), limits, strict=True) if one)
        raise CheckpointError(
            f"{files.name} is quantized with {title_of(found)}, which needs the package kernels on {device}; pip "
            f"install 'kernels{versions}', or pass a checkpoint that is not quantized"
        )


def _set_dequantize(config: Any, device: str) -> None:
    """Ask transformers to convert weights, see `is_dequantized`.

    It converts FP8 by itself on a machine without a GPU, but not for `device="cpu"` on a machine with one.
    """
    for part in (config, config.get_text_config(decoder=True)):
        found = getattr(part, "quantization_config", None)
        if isinstance(found, dict) and is_dequantized(found, device):
            part.quantization_config = {**found, "dequantize": True}


def _load_model(files: CheckpointFiles, options: Mapping[str, Any], tower: torch.nn.Module | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(files.folder)
    except Exception as error:  # as above
        raise _unreadable(files, "config.json", error) from error
    if files.quantization is not None:
        options = {"device_map": "cpu", **options}  # without it, bitsandbytes takes the first GPU
        _set_dequantize(config, options["device_map"])
    whole = config.vision_config.to_dict()
    kind = getattr(transformers, files.family.model_class)
    if tower is not None:
        # the tensors of the tower in the files are ignored silently
        kind = type("_WithoutTower", (kind,), {"_keys_to_ignore_on_load_unexpected": (r"visual\.",)})
        config.vision_config.depth, config.vision_config.deepstack_visual_indexes = 0, []
    try:
        with MODEL_LOADING:
            model, report = kind.from_pretrained(files.folder, config=config, output_loading_info=True, **options)
    except Exception as error:  # as above
        if is_out_of_memory(error):
            raise  # the machine is at fault, not the checkpoint
        _check_options(config, options)
        if isinstance(error, ImportError) and (attention := options.get("attn_implementation")):
            raise _unusable("attn_implementation", attention, error) from error
        if files.quantization is not None:
            raise _unloadable(files, options["device_map"], error) from error
        if isinstance(error, ImportError):
            raise  # the checkpoint needs a package
        raise _unreadable(files, "weights", error) from error
    unread = sorted(key for key in report["unexpected_keys"] if "scale" in key)
    if files.quantization is not None and unread:
        raise CheckpointError(
            f"transformers {transformers.__version__} reads the {title_of(files.quantization)} weights of {files.name} "
            f"without their scales: {len(unread)} tensors have no place in the model, the first is {unread[0]!r}; "
            f"{INSTEAD}"
        )
    # other packages than these may fill tensors after loading
    if report["missing_keys"] and (files.quantization is None or method_of(files.quantization) in COMPLETE):
        absent = sorted(report["missing_keys"])
        remedy = REMEDY if files.quantization is None else f"{REMEDY}, or {INSTEAD}"
        raise CheckpointError(f"{files.name} lacks {len(absent)} tensors, the first is {absent[0]!r}; {remedy}")
    if tower is not None:
        model.model.visual = tower
        model.config.vision_config = type(config.vision_config).from_dict(whole)
    return model.eval()


def _check_options(config: Any, options: Mapping[str, Any]) -> None:
    """Called after loading has failed: SettingsError if attention or quantization cannot be used here."""
    name, value = "attn_implementation", options.get("attn_implementation")
    try:
        if value is not None:
            with torch.device("meta"):
                AutoModelForImageTextToText.from_config(config, attn_implementation=value)
        name, value = "quantization", options.get("quantization_config")
        if value is not None:
            AutoHfQuantizer.from_config(value).validate_environment(device_map=options.get("device_map"))
    except Exception as error:  # transformers raises many types of errors
        raise _unusable(name, value, error) from error


def _unusable(name: str, value: Any, error: Exception) -> SettingsError:
    why = " ".join(str(error).split())[:300]
    return SettingsError(f"{name}={shown(value)} cannot be used here ({type(error).__name__}: {why}); leave it out")


def _unloadable(files: CheckpointFiles, device: str, error: Exception) -> CheckpointError:
    """The error for a quantized checkpoint."""
    why = " ".join(str(error).split())[:300]
    return CheckpointError(
        f"{files.name} is quantized with {title_of(files.quantization or {})}, and transformers cannot load it on "
        f"{device} ({type(error).__name__}: {why}); {INSTEAD}"
    )


def _unreadable(files: CheckpointFiles, what: str, error: Exception) -> CheckpointError:
    why = " ".join(str(error).split())[:300]
    return CheckpointError(f"the {what} of {files.name} cannot be loaded ({type(error).__name__}: {why}); {REMEDY}")


def _grid_key(processor: Any) -> str:
    return _hash([processor.image_processor.to_dict(), processor.video_processor.to_dict()])


def _vision_key(tower: str, grid_key: str, model: Any) -> str:
    """Hash of everything that determines the bits of the features; features on disk may outlive a version."""
    attention = model.config._attn_implementation  # noqa: SLF001 (transformers has no public attribute)
    how = [str(model.dtype), model.device.type, str(attention)]
    return _hash([TOWER_VERSION, tower, grid_key, *how, torch.__version__, transformers.__version__])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _checked(
    instruct: str | Path, thinking: str | Path, options: Mapping[str, Any]
) -> tuple[dict[Mode, CheckpointFiles], dict[Mode, Any]]:
    """Files and processors of both checkpoints, checked to be a pair. Weights are downloaded last."""
    sources: dict[Mode, str | Path] = {"instruct": instruct, "thinking": thinking}
    files = {
        mode: CheckpointFiles.read(mode, source, checkpoint_folder(source, SMALL_FILES), weights=False)
        for mode, source in sources.items()
    }
    for one in files.values():
        check_loadable(one, options)
    check_sizes(files["instruct"], files["thinking"])
    processors = {mode: load_processor(one) for mode, one in files.items()}
    check_kinds(files, processors)
    files = {mode: CheckpointFiles.read(mode, source, checkpoint_folder(source)) for mode, source in sources.items()}
    check_distinct(files["instruct"], files["thinking"])
    return files, processors


def load_models(
    instruct: str | Path,
    thinking: str | Path,
    *,
    device: str | int | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    quantization: str | Any | None = None,
) -> ModelPair:
    """Load both modes into this process; equal towers are loaded once.

    Args:
        instruct: folder or hub id of the Instruct checkpoint.
        thinking: folder or hub id of the Thinking checkpoint; equal to `instruct` for one checkpoint with both modes.
        device: "cuda", "cuda:1", "cpu", "mps", "xpu", a `torch.device`, or the index of a CUDA device; by default, and
            with "auto", CUDA if available, else the CPU.
        dtype: a torch dtype or its name ("bfloat16", "bf16", "fp16", …), or "auto" for the dtype of the stored
            checkpoint; by default bfloat16 on CUDA, else float32.
        attn_implementation: as in transformers ("sdpa", "eager", "flash_attention_2").
        quantization: "4bit" or "8bit" (bitsandbytes), "int8" (torchao), or a transformers quantization
            config; not for checkpoints that already are quantized.

    Returns:
        The loaded pair, or a `HybridModel`.

    Raises:
        CheckpointError: a checkpoint cannot be found, is damaged, is of an unknown family, is quantized in a way that
            cannot be loaded here, or the two are not an Instruct and a Thinking checkpoint of one size.
        SettingsError: an invalid option, a device that this machine does not have, or an attention or quantization that
            this machine or the model does not support.
    """
    began = time.perf_counter()
    asked = checked_loading({
        "device": device, "dtype": dtype, "attn_implementation": attn_implementation, "quantization": quantization,
    })  # fmt: skip
    where = asked.pop("device", None) or default_device()
    _check_device(where)
    options: dict[str, Any] = {"dtype": asked.pop("dtype", default_dtype(where))}
    if where != "cpu" or quantization is not None:  # without it, bitsandbytes takes the first GPU
        options["device_map"] = where
    if quantization is not None:
        try:
            options["quantization_config"] = quantization_config(asked.pop("quantization"))
        except ImportError as error:
            raise _unusable("quantization", quantization, error) from error
    options |= asked
    if instruct == thinking and is_hybrid(instruct):
        loaded, fingerprint = _loaded_hybrid(instruct, options)
        kind: type[ModelPair] = HybridModel
    else:
        (loaded, fingerprint), kind = _loaded_pair(instruct, thinking, options), ModelPair
    models = kind(loaded["instruct"], loaded["thinking"], time.perf_counter() - began, fingerprint)
    log.info("loaded %s in %.1f s", models, models.load_seconds)
    if not models.shared_tower:
        log.warning("the two vision towers differ: the modes do not share vision features")
    return models


def _loaded_pair(
    instruct: str | Path, thinking: str | Path, options: Mapping[str, Any]
) -> tuple[dict[Mode, Checkpoint], str]:
    """Both checkpoints of a pair, and their common fingerprint."""
    files, processors = _checked(instruct, thinking, options)
    prints = {mode: tower_fingerprint(one.folder) for mode, one in files.items()}
    loaded: dict[Mode, Checkpoint] = {}
    for mode in MODES:
        twin = loaded.get("instruct")
        tower = twin.model.model.visual if twin and twin.tower == prints[mode] else None
        model = _load_model(files[mode], options, tower)
        loaded[mode] = _checkpoint(mode, files[mode], model, processors[mode], prints[mode])
    return loaded, pair_fingerprint(*(files[mode].fingerprint() for mode in MODES))


def _loaded_hybrid(source: str | Path, options: Mapping[str, Any]) -> tuple[dict[Mode, Checkpoint], str]:
    """Both modes of one checkpoint, and its fingerprint."""
    files = CheckpointFiles.read(None, source, checkpoint_folder(source, SMALL_FILES), weights=False)
    check_loadable(files, options)
    processor = load_processor(files)
    markers = check_switch(files, processor)
    files = CheckpointFiles.read(None, source, checkpoint_folder(source))
    tower, model = tower_fingerprint(files.folder), _load_model(files, options, None)
    loaded = {mode: _checkpoint(mode, files, model, processor, tower, markers[mode]) for mode in MODES}
    fingerprint = files.fingerprint()
    return loaded, pair_fingerprint(fingerprint, fingerprint)


def _checkpoint(
    mode: Mode, files: CheckpointFiles, model: Any, processor: Any, tower: str, marker_ids: Sequence[int] = ()
) -> Checkpoint:
    grid_key = _grid_key(processor)
    generation = own_settings(model.generation_config.to_diff_dict(), files.source)
    return Checkpoint(
        mode, files.family, files.source, model, processor, tower, grid_key, _vision_key(tower, grid_key, model),
        generation, marker_ids,
    )  # fmt: skip
