"""Which kept readings begin as a prompt does, found without looking at each: chained hashes of blocks of tokens.

As in vLLM's automatic prefix caching (Kwon et al. 2023): equal hashes of a block mean equal tokens up to its end, and
equal fillings of the slots that begin before it. Only a filter: whoever asks compares what is found token by token.
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
#: Of readings that share as many blocks, so many are compared, the latest first: they differ by less than a block.
MOST = 32


class PrefixIndex:
    """Numbers of readings by the hashes of their blocks; no beginning shorter than a block. Not thread-safe."""

    def __init__(self) -> None:
        self._holding: dict[bytes, dict[int, None]] = {}  # in the order of adding
        self._ending: dict[bytes, dict[int, None]] = {}

    def add(self, number: int, owner: str, reading: TokenPrefix) -> None:
        hashes = chain(owner, reading)
        for one in hashes:
            self._holding.setdefault(one, {})[number] = None
        if hashes:
            self._ending.setdefault(hashes[-1], {})[number] = None

    def remove(self, number: int, owner: str, reading: TokenPrefix) -> None:
        hashes = chain(owner, reading)
        for one in hashes:
            _drop(self._holding, one, number)
        if hashes:
            _drop(self._ending, hashes[-1], number)

    def sharing(self, owner: str, reading: TokenPrefix) -> list[int]:
        """Those that have the most blocks in common with `reading`."""
        for one in reversed(chain(owner, reading)):
            if found := self._holding.get(one):
                return [*islice(reversed(found), MOST)]
        return []

    def within(self, owner: str, reading: TokenPrefix) -> Iterator[int]:
        """Those whose last whole block is one of `reading`."""
        for one in chain(owner, reading):
            yield from [*self._ending.get(one, ())]


def chain(owner: str, reading: TokenPrefix) -> list[bytes]:
    """A hash for each whole block, over everything up to its end."""
    ids, slots, place = reading.ids, reading.slots, 0
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


def _drop(index: dict[bytes, dict[int, None]], key: bytes, number: int) -> None:
    index[key].pop(number)
    if not index[key]:
        del index[key]


MiB = 2**20
Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Tokens `start` up to `end` are filled by the picture or video of this digest; a video's stamps lie within."""

    start: int
    end: int
    digest: str


@dataclass(frozen=True, slots=True)
class TokenPrefix:
    """A sequence of tokens as a model reads it: ids `[length]` and what fills its slots, in order."""

    ids: NDArray[np.int64]
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def extended(self, ids: Sequence[int]) -> TokenPrefix:
        """With more text behind it."""
        return TokenPrefix(np.concatenate([self.ids, np.asarray(ids, dtype=np.int64)]), self.slots)

    def head(self, length: int) -> TokenPrefix:
        return TokenPrefix(self.ids[:length], tuple(slot for slot in self.slots if slot.end <= length))

    def common(self, other: TokenPrefix) -> int:
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
    reading: TokenPrefix
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

    def known(self, owner: str, reading: TokenPrefix) -> int:
        """How many tokens of `reading` need not be read again. Changes nothing."""
        with self._lock:
            return self._best(owner, reading)[0]

    def take(self, owner: str, reading: TokenPrefix) -> tuple[int, DynamicCache | None]:
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

    def put(self, owner: str, reading: TokenPrefix, cache: DynamicCache) -> None:
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

    def _best(self, owner: str, reading: TokenPrefix) -> tuple[int, int | None]:
        """Longest usable beginning and its entry. At least one token is left to read: a model must be asked anew."""
        asked = reading.head(len(reading) - 1)
        best: tuple[int, int | None] = (0, None)
        for number in self._index.sharing(owner, asked):
            if (length := self._entries[number].reading.common(asked)) > best[0]:
                best = (length, number)
        return best
