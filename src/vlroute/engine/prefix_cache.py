"""Keys and values of what a mode has already read, so that a longer prompt with the same beginning reads on.

Entries are immutable and found by content: the tokens, and for each picture or video slot the digest of what fills it.
A fork of a conversation therefore shares all it has in common with its origin.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from vlroute.checks import BYTES
from vlroute.engine.prefix_index import PrefixIndex

MiB = 2**20
Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Tokens `start` up to `end` are filled by the picture or video of this digest; a video's stamps lie within."""

    start: int
    end: int
    digest: str


@dataclass(frozen=True, slots=True)
class Reading:
    """A sequence of tokens as a model reads it: ids `[length]` and what fills its slots, in order."""

    ids: NDArray[np.int64]
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def extended(self, ids: Sequence[int]) -> Reading:
        """With more text behind it."""
        return Reading(np.concatenate([self.ids, np.asarray(ids, dtype=np.int64)]), self.slots)

    def head(self, length: int) -> Reading:
        return Reading(self.ids[:length], tuple(slot for slot in self.slots if slot.end <= length))

    def common(self, other: Reading) -> int:
        """How many tokens both begin with; never ends within a slot, for features are fed whole."""
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
    reading: Reading
    layers: Layers

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self.layers for t in pair)


@dataclass(frozen=True, slots=True)
class PrefixStats:
    """`hits`: prompts that found a prefix; `tokens_reused` of `tokens` need not have been read again."""

    prompts: int = 0
    hits: int = 0
    tokens: int = 0
    tokens_reused: int = 0
    evictions: int = 0
    items: int = 0
    bytes: int = 0


class PrefixCache:
    """Least recently used prefixes within a budget of bytes over all conversations and both modes. Thread-safe.

    `owner` names whose prefixes may serve a prompt: the checkpoint that made them, and a tenant. A beginning of fewer
    than `prefix_index.BLOCK` tokens is not looked for, and the best one is found to within as many.
    """

    def __init__(self, budget: int = 256 * MiB) -> None:
        """`budget` in bytes; 0 keeps nothing. SettingsError for any other value."""
        self.budget = BYTES.read("budget (bytes)", budget)
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._index = PrefixIndex()
        self._numbers = itertools.count()
        self._bytes = 0
        self._stats = PrefixStats()
        self._lock = threading.Lock()

    def stats(self) -> PrefixStats:
        with self._lock:
            return replace(self._stats, items=len(self._entries), bytes=self._bytes)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._index = PrefixIndex()
            self._bytes = 0

    def known(self, owner: str, reading: Reading) -> int:
        """How many tokens of `reading` need not be read again. Changes nothing."""
        with self._lock:
            return self._best(owner, reading)[0]

    def take(self, owner: str, reading: Reading) -> tuple[int, DynamicCache | None]:
        """The longest kept beginning of `reading`: its length, and a cache of its own to continue from."""
        with self._lock:
            length, number = self._best(owner, reading)
            hit = length > 0
            self._stats = replace(
                self._stats, prompts=self._stats.prompts + 1, hits=self._stats.hits + hit,
                tokens=self._stats.tokens + len(reading), tokens_reused=self._stats.tokens_reused + length,
            )  # fmt: skip
            if number is None:
                return 0, None
            self._entries.move_to_end(number)
            layers = self._entries[number].layers
        cache = DynamicCache()
        for i, (keys, values) in enumerate(layers):
            cache.update(keys[..., :length, :], values[..., :length, :], i)
        return length, cache

    def put(self, owner: str, reading: Reading, cache: DynamicCache) -> None:
        """Keep what `cache` holds of `reading`; entries that are a beginning of it are dropped, it serves for them."""
        if not cache.get_seq_length():  # cancelled before a token of it was read
            return
        entry = _Entry(
            owner, reading.head(cache.get_seq_length()), tuple((layer.keys, layer.values) for layer in cache.layers)
        )
        with self._lock:
            for number in self._index.within(owner, entry.reading):
                old = self._entries[number].reading
                if old.common(entry.reading) == len(old):
                    self._drop(number)
            if entry.nbytes > self.budget:
                return
            while self._bytes + entry.nbytes > self.budget:
                self._drop(next(iter(self._entries)))
                self._stats = replace(self._stats, evictions=self._stats.evictions + 1)
            number = next(self._numbers)
            self._entries[number] = entry
            self._index.add(number, owner, entry.reading)
            self._bytes += entry.nbytes

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self._index.remove(number, entry.owner, entry.reading)
        self._bytes -= entry.nbytes

    def _best(self, owner: str, reading: Reading) -> tuple[int, int | None]:
        """Longest usable beginning and its entry. At least one token is left to read: a model must be asked anew."""
        asked = reading.head(len(reading) - 1)
        best: tuple[int, int | None] = (0, None)
        for number in self._index.sharing(owner, asked):
            if (length := self._entries[number].reading.common(asked)) > best[0]:
                best = (length, number)
        return best
