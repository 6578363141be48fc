"""Quantized checkpoints: what they need, and which ones cannot be loaded.

Imports neither torch nor transformers, so that a missing package is reported before anything is downloaded or loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from vlroute.checks import shown
from vlroute.errors import CheckpointError, SettingsError

#: Titles of the kinds of quantization, by `quant_method` in config.json.
TITLES = {
    "awq": "AWQ", "gptq": "GPTQ", "fp8": "FP8", "mxfp8": "MXFP8", "auto-round": "AutoRound", "hqq": "HQQ",
    "modelopt": "ModelOpt",
}  # fmt: skip
#: Packages that transformers needs for a kind, in addition to those of vlroute.
PACKAGES = {
    "awq": ("gptqmodel",),
    "gptq": ("gptqmodel>=1.4.3", "optimum>=1.24"),
    "compressed-tensors": ("compressed-tensors>=0.15",),
    "bitsandbytes": ("bitsandbytes>=0.47",),
    "torchao": ("torchao>=0.15",),
    "auto-round": ("auto-round>=0.5",),
    "hqq": ("hqq>=0.2.1",),
}
#: Kinds whose packages are those of the extra `quantize`.
EXTRA = ("bitsandbytes", "torchao")
#: Kinds that only GPUs compute with.
FP8 = ("fp8", "mxfp8")
#: A file of llama.cpp, or a hub ID by its customary ending; llama.cpp appends the quantization after a colon.
GGUF = re.compile(r".*[-_./]gguf(?::[\w.-]*)?/?", re.IGNORECASE | re.DOTALL)


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a checkpoint is quantized.

    Args:
        config: The content of config.json.

    Returns:
        The quantization config of the model or of its language model; None if the checkpoint is not quantized.
    """
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(found := part.get("quantization_config"), dict) and found:
            return found
    return None


def method_of(quantization: Mapping[str, Any]) -> str:
    """The kind of a quantization config, as transformers names it; "" if it does not say."""
    if quantization.get("load_in_4bit") or quantization.get("load_in_8bit"):
        return "bitsandbytes"  # configs of old releases name no method
    return str(quantization.get("quant_method") or "")


def title_of(quantization: Mapping[str, Any]) -> str:
    """The kind of a quantization config for people."""
    method = method_of(quantization)
    return TITLES.get(method, method) or "a method that its config.json does not name"


def is_dequantized(quantization: Mapping[str, Any], device: str) -> bool:
    """Whether the weights are converted to the dtype of the model while they are loaded.

    FP8 weights are for devices that cannot compute with them. Those of compressed-tensors always are: it would convert
    them when the whole model of transformers is first called, which does not happen here.

    Args:
        quantization: The quantization config of the checkpoint.
        device: The device of the model.

    Returns:
        Whether they are.
    """
    method = method_of(quantization)
    return method == "compressed-tensors" or (method in FP8 and device.partition(":")[0] in ("cpu", "mps"))


def check_quantization(name: str, config: Mapping[str, Any], quantization: Any = None) -> None:
    """Check what config.json and the installed packages tell about a quantized checkpoint.

    Args:
        name: The checkpoint in error messages.
        config: The content of config.json.
        quantization: The loading option of the user.

    Raises:
        SettingsError: The option was passed for a checkpoint that already is quantized.
        CheckpointError: A package is missing.
    """
    if (found := quantization_of(config)) is None:
        return
    title, method = title_of(found), method_of(found)
    if quantization is not None:
        raise SettingsError(
            f"quantization={shown(quantization)} cannot be used: {name} already is quantized ({title}); leave it out, "
            "or pass a checkpoint that is not quantized"
        )
    if missing := [one for one in PACKAGES.get(method, ()) if not _is_installed(one)]:
        install = "'vlroute[quantize]'" if method in EXTRA else " ".join(f"'{one}'" for one in missing)
        noun = "package" if len(missing) == 1 else "packages"
        raise CheckpointError(
            f"{name} is quantized with {title}, which needs the {noun} {' and '.join(missing)}; pip install {install}, "
            "or pass a checkpoint that is not quantized"
        )


def _is_installed(requirement: str) -> bool:
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def refuse_gguf(source: str | Path) -> None:
    """CheckpointError for a GGUF file, and for a hub ID that by its name contains such files."""
    if GGUF.fullmatch(str(source)):
        raise gguf_error(repr(str(source)))


def is_gguf_folder(folder: Path) -> bool:
    """Whether the only weights of a folder are GGUF files."""
    return any(folder.glob("*.gguf")) and not any(folder.glob("*.safetensors"))


def gguf_error(name: str) -> CheckpointError:
    """The error for weights in the format GGUF, from which transformers loads no model with a vision tower."""
    return CheckpointError(
        f"{name} is a checkpoint in the format GGUF of llama.cpp, which cannot be loaded in this process; serve it "
        "with llama.cpp and pass its endpoints (docs/how-to/endpoints.md), or pass the safetensors checkpoint from "
        "which it was converted"
    )
