"""Hashes of the records that a router was trained on, by which these records are recognized later."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.hashed_terms import SALT_BYTES, hash_terms

#: Of more records, those with the smallest hashes are kept, a random sample: the hashes have at most 400 KB.
MOST_HASHES = 50_000


@dataclass(frozen=True, slots=True)
class RecordHashes:
    """Hashes of records.

    Attributes:
        salt: One number, uint64 `[1]`. Equal records of other routers have other hashes.
        hashes: Sorted, uint64 `[k]`, at most `MOST_HASHES`.

    Raises:
        ValueError: An array has another type or shape.
    """

    salt: NDArray[np.uint64]
    hashes: NDArray[np.uint64]

    def __post_init__(self) -> None:
        if self.salt.shape != (1,) or self.hashes.ndim != 1 or {self.salt.dtype, self.hashes.dtype} != {np.dtype("u8")}:
            raise ValueError("the hashes of training records are not a salt and a list of 64-bit numbers")

    @classmethod
    def of(cls, keys: Iterable[str], salt: NDArray[np.uint64]) -> RecordHashes:
        """Hash records.

        Args:
            keys: What identifies each record.
            salt: See above.

        Returns:
            The hashes.
        """
        return cls(salt, np.unique(_hashes(keys, salt))[:MOST_HASHES])

    def and_those_of(self, other: RecordHashes) -> RecordHashes:
        """Return the hashes of both. `other` must have the same salt."""
        return RecordHashes(self.salt, np.union1d(self.hashes, other.hashes)[:MOST_HASHES])

    def contain(self, keys: Iterable[str]) -> NDArray[np.bool_]:
        """Tell which records are among these.

        Args:
            keys: What identifies each record, `[n]`.

        Returns:
            Whether each is, `[n]`. Of more than `MOST_HASHES` records, only the sample is recognized.
        """
        return np.isin(_hashes(keys, self.salt), self.hashes)

    @property
    def complete(self) -> bool:
        """Whether these are the hashes of all records."""
        return len(self.hashes) < MOST_HASHES


def _hashes(keys: Iterable[str], salt: NDArray[np.uint64]) -> NDArray[np.uint64]:
    digits = hash_terms(keys, int(salt[0]).to_bytes(SALT_BYTES, "big"))
    return np.asarray([int(one, 16) for one in digits], np.uint64)
