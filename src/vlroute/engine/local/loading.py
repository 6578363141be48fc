"""Loading options: device, dtype, attention, quantization. Checked without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from vlroute.checks import Number, Whole, refused
from vlroute.errors import SettingsError

# Quantizing the vision tower would change the features of both modes and save little memory: most weights belong to
# the language model.
KEEP = ["model.visual", "lm_head"]
QUANTIZATIONS = ("4bit", "8bit", "int8")


def quantization_config(quantization: str | Any) -> Any:
    """The transformers quantization config for a name.

    Args:
        quantization: one of `QUANTIZATIONS`, or a config, which is returned unchanged.

    Returns:
        The config.

    Raises:
        ValueError: an unknown name.
        ImportError: the library behind the name is missing.
    """
    if not isinstance(quantization, str):
        return quantization
    if quantization not in QUANTIZATIONS:
        names = ", ".join(QUANTIZATIONS)
        raise ValueError(f"unknown quantization {quantization!r}; expected one of {names} or a transformers config")
    if quantization in ("4bit", "8bit"):
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(
            load_in_4bit=quantization == "4bit",
            load_in_8bit=quantization == "8bit",
            llm_int8_skip_modules=KEEP,
        )
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEEP)


DEVICES = ("cpu", "cuda", "mps", "xpu")
DEVICE_WORDS = "'auto', 'cpu', 'cuda', 'cuda:1', an index of a CUDA device, 'mps', 'xpu', or a torch.device"
#: Accepted names of floating-point types, with their names in torch.
DTYPES = {
    "auto": "auto", "float32": "float32", "fp32": "float32", "float": "float32", "bfloat16": "bfloat16",
    "bf16": "bfloat16", "float16": "float16", "fp16": "float16", "half": "float16", "float64": "float64",
    "double": "float64",
}  # fmt: skip
DTYPE_WORDS = "'auto', 'bfloat16' ('bf16'), 'float16' ('fp16'), 'float32' ('fp32'), 'float64', or such a torch.dtype"
ATTENTIONS = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
#: Number of answers that are generated at the same time in each mode.
MAX_NUM_SEQS = Whole(1, 1024)
DEFAULT_NUM_SEQS = 32
#: How the decode step is compiled, see `Router.from_pretrained`.
CompileChoice = Literal["auto", "off", "max"]
#: Share of the memory that the engine uses.
MEMORY_SHARE = Number(0.0, 1.0, above=True)
OPTIONS = ("device", "dtype", "attn_implementation", "quantization", "memory", "compile")


def device_name(device: Any) -> str | None:
    """Name of a device in torch.

    Args:
        device: a name, a `torch.device`, the index of a CUDA device, or None.

    Returns:
        The name; None for None and "auto", which mean CUDA if available, else the CPU.

    Raises:
        SettingsError: not a device of torch. Whether this machine has it is checked when the pair is loaded.
    """
    if device is None or device == "auto":
        return None
    if type(device).__module__ == "torch" and type(device).__name__ == "device":
        return device_name(str(device))
    if isinstance(device, str):
        kind, colon, index = device.strip().lower().partition(":")
        if kind in DEVICES and (index.isascii() and index.isdigit() if colon else not index):
            number = int(index or 0)
            if kind != "cpu":
                return f"{kind}:{number}" if colon else kind
            if number == 0:
                return kind
        hint = "torch calls NVIDIA and AMD GPUs 'cuda'" if kind in ("gpu", "rocm", "hip", "nvidia", "amd") else ""
        raise refused("device", device, DEVICE_WORDS, hint)
    try:
        return f"cuda:{Whole().read('device', device)}"
    except SettingsError:
        raise refused("device", device, DEVICE_WORDS) from None


def dtype_name(dtype: Any) -> str | None:
    """Name of the dtype in torch, "auto" (as stored) or None (default of the device). SettingsError for others."""
    if dtype is None:
        return None
    is_torch = type(dtype).__module__ == "torch" and type(dtype).__name__ == "dtype"
    name = str(dtype).strip().lower().removeprefix("torch.") if is_torch or isinstance(dtype, str) else ""
    if name not in DTYPES:
        hint = "for 8 or 4 bits pass quantization=" if name in ("int8", "int4", "8bit", "4bit", "uint8", "fp8") else ""
        raise refused("dtype", dtype, DTYPE_WORDS, hint)
    return DTYPES[name]


def checked_loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `load_models`, without those that are None. SettingsError for a wrong option."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise SettingsError(f"unknown loading option {', '.join(unknown)}; expected some of {', '.join(OPTIONS)}")
    attention, quantization = options.get("attn_implementation"), options.get("quantization")
    if attention is not None and not (
        isinstance(attention, str) and (attention in ATTENTIONS or attention.count("/") == 1)
    ):
        accepts = f"one of {', '.join(ATTENTIONS)}, or a kernel of the hub such as 'kernels-community/flash-attn2'"
        raise refused("attn_implementation", attention, accepts)
    is_named = isinstance(quantization, str) and quantization in QUANTIZATIONS
    is_config = isinstance(quantization, Mapping) or hasattr(quantization, "quant_method")
    if not (quantization is None or is_named or is_config):
        raise refused(
            "quantization", quantization, f"one of {', '.join(QUANTIZATIONS)} or a transformers quantization config"
        )
    memory, compile = options.get("memory"), options.get("compile")
    if not (compile is None or compile in get_args(CompileChoice)):
        raise refused("compile", compile, f"one of {', '.join(get_args(CompileChoice))}")
    checked = {
        "memory": None if memory is None else MEMORY_SHARE.read("memory", memory), "compile": compile,
        "device": device_name(options.get("device")), "dtype": dtype_name(options.get("dtype")),
        "attn_implementation": attention, "quantization": quantization,
    }  # fmt: skip
    return {name: value for name, value in checked.items() if value is not None}
