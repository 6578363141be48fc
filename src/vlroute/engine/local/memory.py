"""Divides the memory of the device between running answers, cached prefixes and vision features."""

from __future__ import annotations

import logging
import os

import torch

from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.cache.vision import VisionCache
from vlroute.engine.local.checkpoint import ModelPair
from vlroute.engine.local.slots import FIRST_LENGTH, KVSlots, slots_for

log = logging.getLogger("vlroute")

#: Share of the free memory that is used by default: of a GPU after loading, and of the RAM.
GPU_SHARE, RAM_SHARE = 0.85, 0.25
#: Of this, the part for vision features; keys and values get the rest.
VISION_PART = 0.08


def ram() -> int:
    """RAM of this machine in bytes; in a container, its limit if that is lower."""
    # where the system does not say (Windows), 8 GiB
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8 * 2**30
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                total = min(total, int(file.read()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def available(device: torch.device) -> tuple[int, int]:
    """Free and total memory of a device in bytes."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 0
    return min(free, ram()), ram()


class Memory:
    """Budgets of a loaded pair: `kv` bytes for running answers and cached prefixes together.

    Running answers come first: what their slots take is no longer available to cached prefixes, unless the prefix cache
    has a budget of its own.
    """

    def __init__(self, pair: ModelPair, prefixes: PrefixCache, vision: VisionCache, share: float | None = None) -> None:
        """Compute the budgets and set those of the caches that have none of their own.

        Args:
            pair: The loaded checkpoints.
            prefixes: Cache of KV tokens.
            vision: Cache of vision features.
            share: Share of the memory of a GPU that is free now, or of the RAM.
        """
        self.device = device = pair.instruct.device
        #: Number of parameters of one checkpoint.
        self.parameters = sum(one.numel() for one in pair.instruct.model.parameters())
        if device.type == "cuda":
            free, what = torch.cuda.mem_get_info(device)[0], "free GPU memory"
            share = GPU_SHARE if share is None else share
        else:
            free, what = ram(), "RAM"
            share = RAM_SHARE if share is None else share
        self._prefixes = prefixes
        total = int(share * free)
        if vision.follows_memory:
            vision.budget = int(VISION_PART * total)
        self.kv = total - min(vision.budget, int(VISION_PART * total))
        if prefixes.follows_memory:
            prefixes.limit(self.kv)
        config = pair.instruct.model.config
        token = slots_for(config.text_config, pair.instruct.model.dtype, torch.device("cpu"), 1).token_bytes
        layers = 1 + len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        row = layers * config.vision_config.out_hidden_size * pair.instruct.model.dtype.itemsize
        log.info(
            "memory: %.1f GiB (%.0f %% of the %s): keys and values of %s tokens, vision features of %s tokens",
            total / 2**30, 100 * share, what, f"{self.kv // token:,}", f"{vision.budget // row:,}",
        )  # fmt: skip

    def reserve(self, slots: int) -> None:
        """Leave `slots` bytes to running answers."""
        if self._prefixes.follows_memory:
            self._prefixes.limit(self.kv - slots)

    def longest(self, slots: KVSlots) -> int:
        """Number of tokens of the longest conversation for which there is memory, if no other one runs."""
        length = 0
        while slots.bytes_of(1, (larger := max(2 * length, FIRST_LENGTH))) <= self.kv:
            length = larger
        return max(0, length - 1)  # one place is for the next token
