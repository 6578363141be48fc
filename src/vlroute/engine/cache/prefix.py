"""Cache of KV tokens in blocks: a prompt that begins as an earlier one skips the prefill of the shared blocks.

Blocks are found by chained hashes of tokens and media, as in automatic prefix caching of vLLM (Kwon et al., 2023). The
hashes are only a filter: the tokens of a block, and the block before it, are compared as well.

The states of recurrent layers cannot be cut to a shorter prompt. For models with such layers a prefix ends with a
snapshot: the tokens after its last whole block, and the states.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from vlroute.checks import BYTES

#: Tokens per block.
BLOCK = 16
#: Tensors of the recurrent layers after a prefix.
State: TypeAlias = tuple[torch.Tensor, ...]
MiB = 2**20


@dataclass(frozen=True, slots=True)
class Slot:
    """Token range `start` to `end` (exclusive) of one picture or video, with its digest; time stamps included."""

    start: int
    end: int
    digest: str

    @property
    def content(self) -> bytes:
        """What identifies it."""
        return f"{self.start} {self.end} {self.digest}".encode()


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
                content += slots[place].content
                place += 1
            before = hashlib.blake2b(before + content, digest_size=16).digest()
            found.append((before, content))
        return found

    def content(self, start: int, end: int) -> bytes:
        """What identifies the tokens `start` to `end` (exclusive), with the media that begin there."""
        media = (slot.content for slot in self.slots if start <= slot.start < end)
        return self.ids[start:end].tobytes() + b"".join(media)

    def cut(self, length: int) -> TokenPrefix:
        """The first `length` tokens."""
        return TokenPrefix(self.ids[:length], tuple(slot for slot in self.slots if slot.start < length))


@dataclass(slots=True, eq=False)
class Block:
    """Keys and values of one block, or of the tokens after the last block of a snapshot.

    Attributes:
        number: identifies the block.
        before: number of the block before it, 0 for none.
        content: see `TokenPrefix.content`.
        kv: `[layers, 2, heads, tokens, width]` with 16 tokens, fewer in a snapshot.
        state: states of the recurrent layers after the tokens; only a snapshot has them.
        after: hash of the block before a snapshot.
        users: number of leases that hold it.
    """

    number: int
    before: int
    content: bytes
    kv: torch.Tensor
    state: State | None = None
    after: bytes = b""
    users: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(one.numel() * one.element_size() for one in (self.kv, *(self.state or ())))


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Statistics of a `PrefixCache`.

    Attributes:
        prompts: prompts looked up.
        hits: prompts for which cached blocks were found.
        tokens: tokens of all prompts.
        tokens_reused: tokens whose prefill was skipped.
        evictions: blocks and snapshots removed to stay within the budget.
        items: blocks now in the cache, 16 tokens each, and snapshots.
        bytes: size of these in bytes.
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
    """Cached blocks, and perhaps a snapshot, at the start of a prompt. They stay in the cache until `release`."""

    blocks: list[Block] = field(default_factory=list)
    snapshot: Block | None = None
    release: Callable[[], None] = lambda: None

    @property
    def held(self) -> list[Block]:
        """The blocks and the snapshot."""
        return self.blocks if self.snapshot is None else [*self.blocks, self.snapshot]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return BLOCK * len(self.blocks) + (0 if self.snapshot is None else int(self.snapshot.kv.shape[3]))


def _snapshot_digest(after: bytes, content: bytes) -> bytes:
    """Key of a snapshot, which differs from that of any block."""
    return hashlib.blake2b(after + content, digest_size=16, person=b"snapshot").digest()


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
        self._snapshots: dict[bytes, list[bytes]] = {}  # their hashes, by the hash of the block before them
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

    def cached_tokens(self, owner: str, tokens: TokenPrefix, recurrent: bool = False) -> int:
        """Number of leading tokens of `tokens` in the cache. Does not change the order of use or the statistics."""
        with self._lock:
            blocks, snapshot, _ = self._longest(owner, tokens, recurrent)
            return Lease(blocks, snapshot).length

    def match(self, owner: str, tokens: TokenPrefix, recurrent: bool = False) -> Lease:
        """The longest cached prefix of a prompt. At least one token is left for the model.

        Args:
            owner: Identifies the model and the tenant.
            tokens: The prompt.
            recurrent: Whether the prefix has to end with a snapshot.

        Returns:
            The prefix; it has no tokens if there is none.
        """
        lease = Lease()
        lease.release = lambda: self._release(lease)
        with self._lock:
            self._take(lease, owner, tokens, recurrent)
            old = self._stats
            self._stats = replace(old, prompts=old.prompts + 1, tokens=old.tokens + len(tokens))
        return lease

    def extend(self, lease: Lease, owner: str, tokens: TokenPrefix, recurrent: bool = False) -> None:
        """Lengthen a lease of `match` by what was stored since then."""
        with self._lock:
            self._take(lease, owner, tokens, recurrent)

    def _take(self, lease: Lease, owner: str, tokens: TokenPrefix, recurrent: bool) -> None:
        """Give a lease the longest prefix, if that is longer than its own."""
        blocks, snapshot, digests = self._longest(owner, tokens, recurrent)
        had, found = lease.length, Lease(blocks, snapshot)
        self._use(digests)
        if found.length <= had:
            return
        for block in found.held:
            block.users += 1
        for block in lease.held:
            block.users -= 1
        lease.blocks, lease.snapshot = blocks, snapshot
        self._stats = replace(
            self._stats, hits=self._stats.hits + (not had), tokens_reused=self._stats.tokens_reused + found.length - had
        )

    def insert(
        self,
        owner: str,
        tokens: TokenPrefix,
        read: Callable[[int, int], torch.Tensor],
        state: Callable[[], State | None] | None = None,
    ) -> None:
        """Store the blocks of `tokens` that are missing.

        Args:
            owner: Identifies the model and the tenant.
            tokens: The prefix.
            read: Returns a copy of the KV of the tokens from its first argument to its second one (exclusive).
            state: Returns a copy of the states after `tokens`; stores a snapshot in addition.
        """
        blocks = tokens.blocks(owner)
        with self._lock:
            held: list[Block] = []  # none of these blocks may be evicted to make room for a later one
            digests = [digest for digest, _ in blocks]
            try:
                self._insert(blocks, read, held)
                if state is not None and len(held) == len(blocks):
                    start, after = BLOCK * len(blocks), digests[-1] if blocks else owner.encode()
                    content = tokens.content(start, len(tokens))
                    digest = _snapshot_digest(after, content)
                    if digest not in self._blocks:
                        before = held[-1].number if held else 0
                        kv = read(start, len(tokens))
                        snapshot = Block(next(self._numbers), before, content, kv, state(), after)
                        if self._store(digest, snapshot):
                            self._snapshots.setdefault(after, []).append(digest)
                    digests.append(digest)
            finally:
                self._use(digests[: len(held) + (len(digests) > len(blocks))])
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
                if not self._store(digest, block):
                    break
            block.users += 1
            held.append(block)

    def _store(self, digest: bytes, block: Block) -> bool:
        """Add a block if the budget allows it."""
        if not self._evict(self.budget - block.nbytes):
            return False
        self._blocks[digest] = block
        self._bytes += block.nbytes
        return True

    def _longest(
        self, owner: str, tokens: TokenPrefix, recurrent: bool
    ) -> tuple[list[Block], Block | None, list[bytes]]:
        """Blocks, snapshot and hashes of the longest prefix of `tokens`, which is shorter than they are."""
        usable = self._usable(owner, tokens)
        found, digests = self._found(usable), [digest for digest, _ in usable]
        if not recurrent:
            return found, None, digests[: len(found)]
        for count in range(len(found), -1, -1):
            after, start = digests[count - 1] if count else owner.encode(), BLOCK * count
            before, best = found[count - 1].number if count else 0, None
            for digest in self._snapshots.get(after, ()):
                one = self._blocks[digest]
                end = start + int(one.kv.shape[3])
                fits = end < len(tokens) and one.before == before and one.content == tokens.content(start, end)
                if fits and (best is None or one.kv.shape[3] > best[0].kv.shape[3]):
                    best = one, digest
            if best is not None:
                return found[:count], best[0], [*digests[:count], best[1]]
        return [], None, []

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

    def _use(self, digests: Sequence[bytes]) -> None:
        """Mark blocks as used, the first one last: a block is of no use without those before it."""
        for digest in reversed(digests):
            if digest in self._blocks:
                self._blocks.move_to_end(digest)

    def _release(self, lease: Lease) -> None:
        with self._lock:
            for block in lease.held:
                block.users -= 1
            lease.blocks, lease.snapshot = [], None
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
            block = self._blocks.pop(digest)
            if block.state is not None:
                others = self._snapshots[block.after]
                others.remove(digest)
                if not others:
                    del self._snapshots[block.after]
        self._bytes = left
        self._stats = replace(self._stats, evictions=self._stats.evictions + len(dropped))
        return left <= budget
