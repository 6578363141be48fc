"""Tiny checkpoints of every family with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from training.pocket.checkpoint import build_processor, qwen_config, save_checkpoint
from transformers import AutoModelForImageTextToText, Qwen3_5Config, Qwen3_5MoeConfig, Qwen3VLConfig, Qwen3VLMoeConfig

from vlroute.types import MODES

TEXT = {
    "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "max_position_embeddings": 4096, "num_hidden_layers": 3,
}  # fmt: skip
#: Grouped value heads; and two layers with attention, so that their number differs from that of the layers.
RECURRENT = {
    "num_hidden_layers": 5, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
VISION = {
    "depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 4, "patch_size": 12,
    "num_position_embeddings": 64,
}  # fmt: skip
#: Class of the config, the text model and the parts of half a head that are rotated, for each family.
SHAPES: dict[str, tuple[type[Any], dict[str, Any], tuple[int, int, int]]] = {
    "qwen3_vl": (Qwen3VLConfig, TEXT, (6, 5, 5)),
    "qwen3_vl_moe": (Qwen3VLMoeConfig, {**TEXT, **EXPERTS}, (6, 5, 5)),
    "qwen3_5": (Qwen3_5Config, {**TEXT, **RECURRENT}, (2, 1, 1)),
    "qwen3_5_moe": (
        Qwen3_5MoeConfig, {**TEXT, **RECURRENT, **EXPERTS, "shared_expert_intermediate_size": 32}, (2, 1, 1),
    ),
}  # fmt: skip
PAIRS, HYBRIDS = ("qwen3_vl", "qwen3_vl_moe"), ("qwen3_5", "qwen3_5_moe")


def write_tiny(family: str, folder: Path, **changes: Any) -> Path:
    """Write a checkpoint of a hybrid, or a folder with both checkpoints of a pair.

    Args:
        family: A key of `SHAPES`.
        folder: Where.
        **changes: Settings of the text model.

    Returns:
        The folder.
    """
    kind, text, mrope = SHAPES[family]
    for part in ("hybrid",) if family in HYBRIDS else MODES:
        tokenizer = build_processor(part).tokenizer
        text = {**text, "vocab_size": -(-len(tokenizer) // 16) * 16, **changes}
        vision = VISION if family in HYBRIDS else {**VISION, "deepstack_visual_indexes": [0]}
        torch.manual_seed(1 if part == "thinking" else 0)
        model = AutoModelForImageTextToText.from_config(qwen_config(tokenizer, text, vision, mrope, 1e5, kind))
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than usual, so that the scores of tokens differ
                torch.nn.init.normal_(parameter, std=0.15)
        save_checkpoint(model, part, folder if part == "hybrid" else folder / part)
    return folder
