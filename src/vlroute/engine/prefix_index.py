"""Which kept readings begin as a prompt does, found without looking at each: chained hashes of blocks of tokens.

As in vLLM's automatic prefix caching (Kwon et al. 2023): equal hashes of a block mean equal tokens up to its end, and
equal fillings of the slots that begin before it. Only a filter: whoever asks compares what is found token by token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlroute.engine.prefix_cache import Reading

BLOCK = 16
#: Of readings that share as many blocks, so many are compared, the latest first: they differ by less than a block.
MOST = 32


class PrefixIndex:
    """Numbers of readings by the hashes of their blocks; no beginning shorter than a block. Not thread-safe."""

    def __init__(self) -> None:
        self._holding: dict[bytes, dict[int, None]] = {}  # in the order of adding
        self._ending: dict[bytes, dict[int, None]] = {}

    def add(self, number: int, owner: str, reading: Reading) -> None:
        hashes = chain(owner, reading)
        for one in hashes:
            self._holding.setdefault(one, {})[number] = None
        if hashes:
            self._ending.setdefault(hashes[-1], {})[number] = None

    def remove(self, number: int, owner: str, reading: Reading) -> None:
        hashes = chain(owner, reading)
        for one in hashes:
            _drop(self._holding, one, number)
        if hashes:
            _drop(self._ending, hashes[-1], number)

    def sharing(self, owner: str, reading: Reading) -> list[int]:
        """Those that have the most blocks in common with `reading`."""
        for one in reversed(chain(owner, reading)):
            if found := self._holding.get(one):
                return [*islice(reversed(found), MOST)]
        return []

    def within(self, owner: str, reading: Reading) -> Iterator[int]:
        """Those whose last whole block is one of `reading`."""
        for one in chain(owner, reading):
            yield from [*self._ending.get(one, ())]


def chain(owner: str, reading: Reading) -> list[bytes]:
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
