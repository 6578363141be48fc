"""Cache of KV tokens: prompts that begin with a cached prefix skip its prefill.

Prefixes are found by chained hashes of token blocks, as in automatic prefix caching of vLLM (Kwon et al., 2023). The
hashes are only a filter: candidates are compared token by token.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from vlroute.checks import BYTES

BLOCK = 16
#: Maximum number of candidates with the same number of shared blocks that are compared, the latest first.
MAX_COMPARED = 32


class PrefixIndex:
    """Finds entries by the hashes of their token blocks. Not thread-safe."""

    def __init__(self) -> None:
        self._holding: dict[bytes, dict[int, None]] = {}  # in the order of adding
        self._ending: dict[bytes, dict[int, None]] = {}

    def add(self, number: int, owner: str, tokens: TokenPrefix) -> None:
        """Add the entry `number`."""
        hashes = block_hashes(owner, tokens)
        for block in hashes:
            self._holding.setdefault(block, {})[number] = None
        if hashes:
            self._ending.setdefault(hashes[-1], {})[number] = None

    def remove(self, number: int, owner: str, tokens: TokenPrefix) -> None:
        """Remove the entry `number`."""
        hashes = block_hashes(owner, tokens)
        for block in hashes:
            _remove(self._holding, block, number)
        if hashes:
            _remove(self._ending, hashes[-1], number)

    def sharing_most_blocks(self, owner: str, tokens: TokenPrefix) -> list[int]:
        """The entries that share the largest number of leading blocks with `tokens`."""
        for block in reversed(block_hashes(owner, tokens)):
            if found := self._holding.get(block):
                return [*islice(reversed(found), MAX_COMPARED)]
        return []

    def contained_in(self, owner: str, tokens: TokenPrefix) -> Iterator[int]:
        """The entries whose last whole block is a block of `tokens`."""
        for block in block_hashes(owner, tokens):
            yield from [*self._ending.get(block, ())]


def block_hashes(owner: str, tokens: TokenPrefix) -> list[bytes]:
    """One hash per whole block, over all tokens and media up to its end."""
    ids, slots, place = tokens.ids, tokens.slots, 0
    before, hashes = owner.encode(), []
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        digest = hashlib.blake2b(before, digest_size=16)
        digest.update(ids[start : start + BLOCK].tobytes())
        while place < len(slots) and slots[place].start < start + BLOCK:
            slot = slots[place]
            digest.update(f"{slot.start} {slot.end} {slot.digest}".encode())
            place += 1
        before = digest.digest()
        hashes.append(before)
    return hashes


def _remove(index: dict[bytes, dict[int, None]], key: bytes, number: int) -> None:
    index[key].pop(number)
    if not index[key]:
        del index[key]


MiB = 2**20
Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]


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

    def head(self, length: int) -> TokenPrefix:
        """The first `length` tokens."""
        return TokenPrefix(self.ids[:length], tuple(slot for slot in self.slots if slot.end <= length))

    def common(self, other: TokenPrefix) -> int:
        """Length of the common prefix. It never ends within a slot, because features cannot be divided."""
        shorter = min(len(self), len(other))
        differs = np.flatnonzero(self.ids[:shorter] != other.ids[:shorter])
        length = int(differs[0]) if len(differs) else shorter
        for mine, others in itertools.zip_longest(self.slots, other.slots):
            start = min(slot.start for slot in (mine, others) if slot is not None)
            if start >= length:
                break
            if mine != others or mine.end > length:
                return start
        return length


@dataclass(frozen=True, slots=True)
class _Entry:
    owner: str
    tokens: TokenPrefix
    layers: Layers

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """Statistics of a `PrefixCache`.

    Attributes:
        prompts: prompts looked up.
        hits: prompts for which a cached prefix was found.
        tokens: tokens of all prompts.
        tokens_reused: tokens whose prefill was skipped.
        evictions: entries removed to stay within the budget.
        items: entries now in the cache.
        bytes: size of these entries in bytes.
    """

    prompts: int = 0
    hits: int = 0
    tokens: int = 0
    tokens_reused: int = 0
    evictions: int = 0
    items: int = 0
    bytes: int = 0


class PrefixCache:
    """LRU cache of KV tokens with one budget for all conversations and both modes. Thread-safe.

    `owner` identifies the checkpoint and the tenant; entries serve only prompts of the same owner. Prefixes shorter
    than one block of 16 tokens are not found.
    """

    def __init__(self, budget: int = 256 * MiB) -> None:
        """Create an empty cache.

        Args:
            budget: maximum size in bytes; 0 turns the cache off.

        Raises:
            SettingsError: `budget` is not a whole number of at least 0.
        """
        self.budget = BYTES.read("budget (bytes)", budget)
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._index = PrefixIndex()
        self._numbers = itertools.count()
        self._bytes = 0
        self._stats = PrefixStats()
        self._lock = threading.Lock()

    def stats(self) -> PrefixStats:
        """Statistics since the cache was created."""
        with self._lock:
            return replace(self._stats, items=len(self._entries), bytes=self._bytes)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()
            self._index = PrefixIndex()
            self._bytes = 0

    def cached_tokens(self, owner: str, tokens: TokenPrefix) -> int:
        """Number of leading tokens of `tokens` in the cache. Does not change the order of use or the statistics."""
        with self._lock:
            return self._best(owner, tokens)[0]

    def match(self, owner: str, tokens: TokenPrefix) -> tuple[int, DynamicCache | None]:
        """The longest cached prefix of `tokens`: its length, and a copy of its KV cache that may be continued."""
        with self._lock:
            length, number = self._best(owner, tokens)
            hit = length > 0
            self._stats = replace(
                self._stats, prompts=self._stats.prompts + 1, hits=self._stats.hits + hit,
                tokens=self._stats.tokens + len(tokens), tokens_reused=self._stats.tokens_reused + length,
            )  # fmt: skip
            if number is None:
                return 0, None
            self._entries.move_to_end(number)
            layers = self._entries[number].layers
        cache = DynamicCache()
        for i, (keys, values) in enumerate(layers):
            cache.update(keys[..., :length, :], values[..., :length, :], i)
        return length, cache

    def insert(self, owner: str, tokens: TokenPrefix, cache: DynamicCache) -> None:
        """Store the KV cache of `tokens`; it replaces entries that are a prefix of it."""
        if not cache.get_seq_length():  # cancelled before the prefill
            return
        entry = _Entry(
            owner, tokens.head(cache.get_seq_length()), tuple((layer.keys, layer.values) for layer in cache.layers)
        )
        with self._lock:
            for number in self._index.contained_in(owner, entry.tokens):
                old = self._entries[number].tokens
                if old.common(entry.tokens) == len(old):
                    self._remove(number)
            if entry.nbytes > self.budget:
                return
            while self._bytes + entry.nbytes > self.budget:
                self._remove(next(iter(self._entries)))
                self._stats = replace(self._stats, evictions=self._stats.evictions + 1)
            number = next(self._numbers)
            self._entries[number] = entry
            self._index.add(number, owner, entry.tokens)
            self._bytes += entry.nbytes

    def _remove(self, number: int) -> None:
        entry = self._entries.pop(number)
        self._index.remove(number, entry.owner, entry.tokens)
        self._bytes -= entry.nbytes

    def _best(self, owner: str, tokens: TokenPrefix) -> tuple[int, int | None]:
        """Length of the longest usable prefix and its entry. At least one token is left for the model."""
        prompt = tokens.head(len(tokens) - 1)
        best: tuple[int, int | None] = (0, None)
        for number in self._index.sharing_most_blocks(owner, prompt):
            if (length := self._entries[number].tokens.common(prompt)) > best[0]:
                best = (length, number)
        return best
