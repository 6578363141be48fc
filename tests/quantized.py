"""Writes quantized copies of checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

#: Quantization configs as published checkpoints contain them, by kind.
CONFIGS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "fp8": {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [16, 16],
        "ignored_layers": ["lm_head", "model.visual"],
    },
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "ignore": ["re:.*visual.*", "lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16,
        }}},
    },
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "torchao": {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
    "auto-round": {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True},
    "hqq": {"quant_method": "hqq", "quant_config": {}},
}  # fmt: skip


def set_quantization(folder: Path, quantization: Any, part: str | None = None) -> None:
    """Write a quantization config into config.json, or into one of its parts."""
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    (config if part is None else config[part])["quantization_config"] = quantization
    file.write_text(json.dumps(config), "utf-8")


def write_quantized(source: Path, folder: Path, quantization: Any) -> Path:
    """Save a checkpoint as transformers quantizes it.

    Args:
        source: The checkpoint.
        folder: Where.
        quantization: A quantization config of transformers.

    Returns:
        The folder.
    """
    shutil.copytree(source, folder)
    (folder / "model.safetensors").unlink()
    model = AutoModelForImageTextToText.from_pretrained(
        source, dtype=torch.float32, quantization_config=quantization, device_map="cpu"
    )
    model.save_pretrained(folder)
    return folder


def write_fp8(source: Path, folder: Path, block: int = 16) -> Path:
    """Save a checkpoint in FP8 with a scale for each block of weights, as Qwen publishes it.

    Args:
        source: The checkpoint.
        folder: Where.
        block: Height and width of a block; it divides those of all weights.

    Returns:
        The folder.
    """
    shutil.copytree(source, folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if ".layers." in name and ".visual." not in name and name.endswith("proj.weight"):
            height, width = tensor.shape
            blocks = tensor.float().reshape(height // block, block, width // block, block)
            scale = blocks.abs().amax((1, 3)) / torch.finfo(torch.float8_e4m3fn).max
            tensors[f"{name}_scale_inv"] = scale
            blocks = blocks / scale[:, None, :, None]
            tensor = blocks.reshape(height, width).to(torch.float8_e4m3fn)
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    set_quantization(folder, {**CONFIGS["fp8"], "weight_block_size": [block, block]})
    return folder
