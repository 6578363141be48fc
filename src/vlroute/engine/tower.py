"""Fingerprints of vision towers, read from the checkpoint files: are two towers one and the same?

Whether the two towers of a published pair are equal is not documented, so both are hashed before the second
checkpoint is loaded; an equal tower then never enters memory twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from vlroute.engine.checkpoint_files import INDEX, WEIGHTS
from vlroute.errors import CheckpointError

# what decides the numbers a tower computes; names and versions in the config do not
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
    """The tower's tensors by their name within the tower, in order of that name, one at a time."""
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
    """SHA-256 (64 hex characters) over the tower's shape and every byte of its weights, as the files hold them.

    Raises:
        CheckpointError: the folder holds no safetensors weights of a vision tower.
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
            digest.update(memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B"))
            count += 1
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the vision tower of {folder.name!r}: {error}; expected a Qwen3-VL checkpoint folder "
            "with config.json and safetensors weights"
        ) from error
    if not count:
        raise CheckpointError(f"{folder.name!r} holds no vision tower; expected a Qwen3-VL checkpoint")
    return digest.hexdigest()
