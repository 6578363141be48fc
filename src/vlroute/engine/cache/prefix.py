"""Cache of KV tokens in blocks: a prompt that begins as an earlier one skips the prefill of the shared blocks.

Blocks are found by chained hashes of tokens and media, as in automatic prefix caching of vLLM (Kwon et al., 2023). The
hashes are only a filter: the tokens of a block, and the block before it, are compared as well.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vlroute.checks import BYTES

#: Tokens per block.
BLOCK = 16
MiB = 2**20


@dataclass(frozen=True, slots=True)
class Slot:
    """Token range `start` to `end` (exclusive) of one picture or video, with its digest; time stamps included."""

    start: int
    end: int
    digest: str


@dataclass(frozen=True, slots=True)
class TokenPrefix:
    """Token ids, `[length]`, and the media in their slots, in order."""

    ids: NDArray[np.int64]
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def extended(self, ids: Sequence[int]) -> TokenPrefix:
        """With text tokens appended."""
        return TokenPrefix(np.concatenate([self.ids, np.asarray(ids, dtype=np.int64)]), self.slots)

    def blocks(self, owner: str) -> list[tuple[bytes, bytes]]:
        """Hash and content of each whole block. The hash covers `owner` and everything up to the end of the block."""
        slots, place = self.slots, 0
        before, found = owner.encode(), []
        for start in range(0, len(self.ids) - BLOCK + 1, BLOCK):
            content = self.ids[start : start + BLOCK].tobytes()
            while place < len(slots) and slots[place].start < start + BLOCK:
                slot = slots[place]
                content += f"{slot.start} {slot.end} {slot.digest}".encode()
                place += 1
            before = hashlib.blake2b(before + content, digest_size=16).digest()
            found.append((before, content))
        return found


@dataclass(slots=True, eq=False)
class Block:
    """Keys and values of one block, `[layers, 2, heads, 16, width]`.

    `before`: number of the block before it, 0 for none. `users`: leases that hold it.
    """

    number: int
    before: int
    content: bytes
    kv: torch.Tensor
    users: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(self.kv.numel() * self.kv.element_size())


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Statistics of a `PrefixCache`.

    Attributes:
        prompts: prompts looked up.
        hits: prompts for which cached blocks were found.
        tokens: tokens of all prompts.
        tokens_reused: tokens whose prefill was skipped.
        evictions: blocks removed to stay within the budget.
        items: blocks now in the cache, 16 tokens each.
        bytes: size of these blocks in bytes.
    """

    prompts: int = 0
    hits: int = 0
    tokens: int = 0
    tokens_reused: int = 0
    evictions: int = 0
    items: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Lease:
    """Cached blocks at the start of a prompt. They stay in the cache until `release`."""

    blocks: list[Block] = field(default_factory=list)
    release: Callable[[], None] = lambda: None

    @property
    def length(self) -> int:
        """Number of tokens."""
        return BLOCK * len(self.blocks)


class PrefixCache:
    """LRU cache of KV tokens with one budget for all conversations and both modes. Thread-safe.

    `owner` identifies the checkpoint and the tenant; blocks serve only prompts of the same owner.
    """

    def __init__(self, budget: int | None = None) -> None:
        """Create an empty cache.

        Args:
            budget: maximum size in bytes; 0 turns the cache off. None: the share of the device's memory that the
                running answers leave, see `memory=` of `Router.from_pretrained`.

        Raises:
            SettingsError: `budget` is not a whole number of at least 0.
        """
        #: Whether the budget follows the memory of the device.
        self.follows_memory = budget is None
        self.budget = 256 * MiB if budget is None else BYTES.read("budget (bytes)", budget)
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # least recently used first
        self._numbers = itertools.count(1)
        self._bytes = 0
        self._stats = PrefixStats()
        self._lock = threading.Lock()

    def stats(self) -> PrefixStats:
        """Statistics since the cache was created."""
        with self._lock:
            return replace(self._stats, items=len(self._blocks), bytes=self._bytes)

    def clear(self) -> None:
        """Remove all blocks that no request uses."""
        with self._lock:
            evictions = self._stats.evictions
            self._evict(0)
            self._stats = replace(self._stats, evictions=evictions)

    def limit(self, budget: int) -> None:
        """Change the budget; blocks beyond it are removed unless requests use them."""
        with self._lock:
            self.budget = max(budget, 0)
            self._evict(self.budget)

    def cached_tokens(self, owner: str, tokens: TokenPrefix) -> int:
        """Number of leading tokens of `tokens` in the cache. Does not change the order of use or the statistics."""
        with self._lock:
            return BLOCK * len(self._found(self._usable(owner, tokens)))

    def match(self, owner: str, tokens: TokenPrefix) -> Lease:
        """The longest cached prefix of a prompt. At least one token is left for the model."""
        usable = self._usable(owner, tokens)
        with self._lock:
            found = self._found(usable)
            self._use(usable[: len(found)])
            for block in found:
                block.users += 1
            old, length = self._stats, BLOCK * len(found)
            self._stats = replace(
                old, prompts=old.prompts + 1, hits=old.hits + bool(found), tokens=old.tokens + len(tokens),
                tokens_reused=old.tokens_reused + length,
            )  # fmt: skip
        return Lease(found, lambda: self._release(found))

    def extend(self, lease: Lease, owner: str, tokens: TokenPrefix) -> None:
        """Add blocks to a lease of `match` that were stored since then."""
        usable = self._usable(owner, tokens)
        with self._lock:
            found = self._found(usable)[len(lease.blocks) :]
            for block in found:
                block.users += 1
            lease.blocks.extend(found)
            self._stats = replace(
                self._stats, hits=self._stats.hits + (bool(found) and len(lease.blocks) == len(found)),
                tokens_reused=self._stats.tokens_reused + BLOCK * len(found),
            )  # fmt: skip

    def insert(self, owner: str, tokens: TokenPrefix, read: Callable[[int, int], torch.Tensor]) -> None:
        """Store the blocks of `tokens` that are missing. `read(start, end)`: a copy of the KV of these tokens."""
        blocks = tokens.blocks(owner)
        with self._lock:
            held: list[Block] = []  # none of these blocks may be evicted to make room for a later one
            try:
                self._insert(blocks, read, held)
            finally:
                self._use(blocks[: len(held)])
                for block in held:
                    block.users -= 1

    def _insert(
        self, blocks: Sequence[tuple[bytes, bytes]], read: Callable[[int, int], torch.Tensor], held: list[Block]
    ) -> None:
        for i, (digest, content) in enumerate(blocks):
            block, before = self._blocks.get(digest), held[-1].number if held else 0
            if block is not None and (block.before, block.content) != (before, content):
                break  # another block with the same hash
            if block is None:
                block = Block(next(self._numbers), before, content, read(BLOCK * i, BLOCK * (i + 1)))
                if not self._evict(self.budget - block.nbytes):
                    break
                self._blocks[digest] = block
                self._bytes += block.nbytes
            block.users += 1
            held.append(block)

    def _usable(self, owner: str, tokens: TokenPrefix) -> list[tuple[bytes, bytes]]:
        return tokens.blocks(owner)[: (len(tokens) - 1) // BLOCK] if self._blocks else []

    def _found(self, blocks: Iterable[tuple[bytes, bytes]]) -> list[Block]:
        found: list[Block] = []
        for digest, content in blocks:
            block, before = self._blocks.get(digest), found[-1].number if found else 0
            if block is None or (block.before, block.content) != (before, content):
                break
            found.append(block)
        return found

    def _use(self, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        """Mark blocks as used, the first one last: a block is of no use without those before it."""
        for digest, _ in reversed(blocks):
            if digest in self._blocks:
                self._blocks.move_to_end(digest)

    def _release(self, blocks: list[Block]) -> None:
        with self._lock:
            for block in blocks:
                block.users -= 1
            blocks.clear()
            self._evict(self.budget)

    def _evict(self, budget: int) -> bool:
        """Remove blocks, least recently used first, until their size is at most `budget`. The caller holds the lock."""
        left, dropped = self._bytes, []
        for digest, block in self._blocks.items():
            if left <= max(budget, 0):
                break
            if not block.users:
                dropped.append(digest)
                left -= block.nbytes
        for digest in dropped:
            del self._blocks[digest]
        self._bytes = left
        self._stats = replace(self._stats, evictions=self._stats.evictions + len(dropped))
        return left <= budget
