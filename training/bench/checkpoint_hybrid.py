"""A checkpoint of the shape of Qwen3.5-0.8B with random weights, for measurements that do not need trained ones.

Token ids, chat template, processors, limits and configuration are those of the real checkpoint. The real vocabulary is
not available here, so text is tokenized by bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3_5Config

from training.bench.checkpoint_2b import ADDED, SPECIAL, Sizes, draw, holds, tensor_sizes
from training.pocket.checkpoint import byte_level_bpe, fast_tokenizer, qwen_config, qwen_processor

FIRST_SPECIAL = 248044  # ids below are bytes and fillers


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a checkpoint; the defaults are those of Qwen3.5-0.8B. `mrope`: parts of half the rotated width."""

    tower_depth: int = 12
    tower_width: int = 768
    tower_heads: int = 12
    tower_mlp: int = 3072
    layers: int = 24
    width: int = 1024
    heads: int = 8
    key_value_heads: int = 2
    head_dim: int = 256
    mlp: int = 3584
    linear_heads: int = 16
    linear_width: int = 128
    mrope: tuple[int, int, int] = (11, 11, 10)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; special tokens have their real ids."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {f"<filler {i}>": i for i in range(len(vocabulary), FIRST_SPECIAL)}
    return fast_tokenizer(byte_level_bpe(vocabulary), SPECIAL, ADDED, 262144)


def build_config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Qwen3_5Config:
    text = {
        "vocab_size": 248320, "hidden_size": shape.width, "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads, "head_dim": shape.head_dim, "max_position_embeddings": 262144,
        "linear_num_key_heads": shape.linear_heads, "linear_num_value_heads": shape.linear_heads,
        "linear_key_head_dim": shape.linear_width, "linear_value_head_dim": shape.linear_width,
    }  # fmt: skip
    vision = {
        "depth": shape.tower_depth, "hidden_size": shape.tower_width, "intermediate_size": shape.tower_mlp,
        "num_heads": shape.tower_heads, "patch_size": 16, "num_position_embeddings": 2304,
    }  # fmt: skip
    kind: dict[str, Any] = {"dtype": "bfloat16", "architectures": ["Qwen3_5ForConditionalGeneration"]}
    config: Qwen3_5Config = qwen_config(tokenizer, text, vision, shape.mrope, 1e7, Qwen3_5Config, **kind)
    return config


class HybridWriter:
    """Writes the checkpoint into a folder; weights that are complete are kept."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder, self.shape, self.tokenizer = folder, shape, build_tokenizer()
        self.config = build_config(shape, self.tokenizer)
        parts = tensor_sizes(self.config)
        self.tensors: Sizes = parts["language"] | parts["tower"]

    def write(self) -> None:
        """Write everything that is missing. OSError if the disk has too little space."""
        file, label = self.folder / "model.safetensors", f"hybrid: {self.shape}"
        if holds(file, label):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        qwen_processor(self.tokenizer, "hybrid", 16, (65536, 16777216), (4096, 25165824)).save_pretrained(self.folder)
        self.config.save_pretrained(self.folder)
        GenerationConfig(do_sample=False, pad_token_id=248044, eos_token_id=248046).save_pretrained(self.folder)
        partial = file.with_suffix(".partial")
        save_file(draw(self.tensors, 1, "cpu"), partial, metadata={"format": "pt", "drawn": label})
        partial.replace(file)
