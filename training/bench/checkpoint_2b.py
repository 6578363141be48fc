"""Two checkpoints of the 2B pair's shape with random weights, for measurements that do not need trained ones.

Token ids, chat template, processors, limits and configuration are those of the real pair. The real vocabulary is not
available here, so text is tokenized by bytes, except the words of the template.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLProcessor,
)

from training.pocket.checkpoint import fast_tokenizer, qwen_config, qwen_processor
from vlroute import Mode
from vlroute.types import MODES

Case = Literal["equal", "different"]
CASES: tuple[Case, ...] = ("equal", "different")
Sizes = dict[str, tuple[int, ...]]

FIRST_SPECIAL = 151643  # ids below are bytes, words and fillers
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
ADDED = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
TEMPLATE_WORDS = {"ĊĊ": 271, "user": 872, "system": 8948, "assistant": 77091}  # at their real ids
WORD = r"[A-Za-z]+|\n+|[\s\S]"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a checkpoint; the defaults are those of the 2B pair. `mrope`: parts of half a head for t, h, w."""

    tower_depth: int = 24
    tower_width: int = 1024
    tower_heads: int = 16
    tower_mlp: int = 4096
    deepstack: tuple[int, ...] = (5, 11, 17)
    layers: int = 28
    width: int = 2048
    heads: int = 16
    key_value_heads: int = 8
    head_dim: int = 128
    mlp: int = 6144
    mrope: tuple[int, int, int] = (24, 20, 20)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, in the byte-level order of the real vocabulary, so a line break has its real id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(letters)} | TEMPLATE_WORDS
    taken = set(vocabulary.values())
    vocabulary |= {f"<filler {i}>": i for i in range(FIRST_SPECIAL) if i not in taken}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(WORD), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return fast_tokenizer(tokenizer, SPECIAL, ADDED, 262144)


def build_processor(mode: Mode) -> Qwen3VLProcessor:
    """The real processors with the real patch and pixel limits, and the chat template of the mode's edition."""
    return qwen_processor(build_tokenizer(), mode, 16, (65536, 16777216), (4096, 25165824))


def build_config(shape: Shape) -> Qwen3VLConfig:
    text = {
        "vocab_size": 151936, "hidden_size": shape.width, "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads, "head_dim": shape.head_dim, "max_position_embeddings": 262144,
    }  # fmt: skip
    vision = {
        "depth": shape.tower_depth, "hidden_size": shape.tower_width, "intermediate_size": shape.tower_mlp,
        "num_heads": shape.tower_heads, "patch_size": 16, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(shape.deepstack),
    }  # fmt: skip
    kind: dict[str, Any] = {"dtype": "bfloat16", "architectures": ["Qwen3VLForConditionalGeneration"]}
    return qwen_config(build_tokenizer(), text, vision, shape.mrope, 5e6, **kind)


def tensor_sizes(config: Any) -> dict[str, Sizes]:
    """Names and sizes of the tensors of the "language" model and the "tower"; no weights are allocated."""
    with torch.device("meta"):
        state = AutoModelForImageTextToText.from_config(config).state_dict()
    parts: dict[str, Sizes] = {"language": {}, "tower": {}}
    for name, tensor in state.items():
        if name != "lm_head.weight":  # tied: it is the embedding
            parts["tower" if ".visual." in name else "language"][name] = tuple(tensor.shape)
    return parts


def draw(sizes: Sizes, seed: int, device: str) -> dict[str, torch.Tensor]:
    """Norms one, biases zero, all else normal; drawn in bfloat16 to save memory."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, size in sizes.items():
        tensor = torch.empty(size, dtype=torch.bfloat16, device=device)
        if name.endswith("bias"):
            tensor.zero_()
        elif tensor.dim() == 1:
            tensor.fill_(1)
        else:
            tensor.normal_(0, 0.02, generator=generator)
        tensors[name] = tensor.cpu()
    return tensors


def holds(file: Path, label: str) -> bool:
    try:
        with safe_open(file, framework="pt") as tensors:
            return bool((tensors.metadata() or {}).get("drawn") == label)
    except (OSError, SafetensorError):
        return False


class PairWriter:
    """Writes both checkpoints below a folder: `prepare`, then `write` for each case. Complete weight files are kept.

    Each checkpoint has two weight files, language model and tower. Equal towers are one file with two names, so that
    there are at most four weight files on the disk. `device` draws the weights: a GPU does so in seconds, a CPU in a
    minute. Weights that are there already are kept, whichever device has drawn them.
    """

    FILES: ClassVar[dict[str, str]] = {
        "language": "model-00001-of-00002.safetensors",
        "tower": "model-00002-of-00002.safetensors",
    }

    def __init__(self, folder: Path, shape: Shape, device: str = "cpu") -> None:
        self.folder, self.shape, self.parts, self.device = folder, shape, tensor_sizes(build_config(shape)), device

    def part_bytes(self, part: str) -> int:
        return 2 * sum(math.prod(size) for size in self.parts[part].values())

    def missing_bytes(self) -> int:
        """Additional disk space in bytes that writing all cases needs."""
        whole = 2 * (self.part_bytes("language") + self.part_bytes("tower"))
        there = {file.stat().st_ino: file.stat().st_size for file in self.folder.glob("*/*.safetensors")}
        return max(0, whole - sum(there.values()))

    def prepare(self) -> None:
        """Write everything but the weights. OSError if the free disk space is less than 105 % of what is needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = self.missing_bytes() * 1.05, shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"the two checkpoints need {needed / 1e9:.1f} GB more on the disk of {self.folder}, which has "
                f"{free / 1e9:.1f} GB free; make room, or name a folder on another disk with --folder"
            )
        for mode in MODES:
            self._write_surroundings(mode)

    def write(self, case: Case) -> Iterator[str]:
        """Write the missing weights of `case`; yields the name of each part before it is written."""
        for mode in MODES:
            yield f"{mode}: language model"
            self._write_part(mode, "language", seed=1 + MODES.index(mode))
            yield f"{mode}: tower"
            if mode == "thinking" and case == "equal":
                self._share_tower()
            else:
                self._write_part(mode, "tower", seed=11 + MODES.index(mode))

    def _write_surroundings(self, mode: Mode) -> None:
        folder = self.folder / mode
        build_processor(mode).save_pretrained(folder)
        build_config(self.shape).save_pretrained(folder)
        GenerationConfig(do_sample=False, pad_token_id=151643, eos_token_id=151645).save_pretrained(folder)
        index: dict[str, Any] = {
            "metadata": {"total_size": sum(map(self.part_bytes, self.FILES))},
            "weight_map": {name: file for part, file in self.FILES.items() for name in self.parts[part]},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _write_part(self, mode: Mode, part: str, seed: int) -> None:
        file = self.folder / mode / self.FILES[part]
        label = f"{part} with seed {seed}: {self.shape}"
        if holds(file, label):
            return
        file.unlink(missing_ok=True)  # it may be a hard link to the other tower
        partial = file.with_suffix(".partial")
        save_file(draw(self.parts[part], seed, self.device), partial, metadata={"format": "pt", "drawn": label})
        partial.replace(file)

    def _share_tower(self) -> None:
        first, second = (self.folder / mode / self.FILES["tower"] for mode in MODES)
        if second.exists() and second.samefile(first):
            return
        second.unlink(missing_ok=True)
        try:
            os.link(first, second)
        except OSError:  # a file system without hard links
            shutil.copyfile(first, second)
