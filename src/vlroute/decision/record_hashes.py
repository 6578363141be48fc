"""Hashes of the records that a router was trained on, by which these records are recognized later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.hashed_terms import SALT_BYTES, hash_terms

#: Of more records, those with the smallest hashes are kept, a random sample: the hashes have at most 400 KB.
MOST_HASHES = 50_000


@dataclass(frozen=True, slots=True)
class RecordHashes:
    """Hashes of records.

    Attributes:
        salt: One number, uint64 `[1]`. Equal records have other hashes with another salt. A router that was trained
            from another one has the salt of the latter.
        hashes: Sorted, uint64 `[k]`, at most `MOST_HASHES`.
        complete: Whether these are the hashes of all records.

    Raises:
        ValueError: An array has another type or shape.
    """

    salt: NDArray[np.uint64]
    hashes: NDArray[np.uint64]
    complete: bool

    def __post_init__(self) -> None:
        if self.salt.shape != (1,) or self.hashes.ndim != 1 or {self.salt.dtype, self.hashes.dtype} != {np.dtype("u8")}:
            raise ValueError("the hashes of training records are not a salt and a list of 64-bit numbers")

    @classmethod
    def of(cls, keys: Iterable[str], salt: NDArray[np.uint64], *, complete: bool) -> RecordHashes:
        """Hash records.

        Args:
            keys: What identifies each record.
            salt: See above.
            complete: Whether these are the keys of all records.

        Returns:
            The hashes.
        """
        return cls._limited(salt, np.unique(_hashes(keys, salt)), complete)

    @classmethod
    def _limited(cls, salt: NDArray[np.uint64], hashes: NDArray[np.uint64], complete: bool) -> RecordHashes:
        return cls(salt, hashes[:MOST_HASHES], complete and len(hashes) <= MOST_HASHES)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> RecordHashes:
        """The inverse of `as_arrays`. Raises KeyError or ValueError."""
        complete = arrays.get("complete")
        return cls(arrays["salt"], arrays["hashes"], complete is not None and bool(complete.all()))

    def as_arrays(self) -> dict[str, NDArray[np.uint64]]:
        """The arrays of a router artifact."""
        return {"salt": self.salt, "hashes": self.hashes, "complete": np.asarray([self.complete], np.uint64)}

    def and_those_of(self, other: RecordHashes) -> RecordHashes:
        """Return the hashes of both. `other` must have the same salt."""
        return self._limited(self.salt, np.union1d(self.hashes, other.hashes), self.complete and other.complete)

    def contain(self, keys: Iterable[str]) -> NDArray[np.bool_]:
        """Tell which records are among these.

        Args:
            keys: What identifies each record, `[n]`.

        Returns:
            Whether each is, `[n]`. If the hashes are not complete, some records are not recognized.
        """
        return np.isin(_hashes(keys, self.salt), self.hashes)


def _hashes(keys: Iterable[str], salt: NDArray[np.uint64]) -> NDArray[np.uint64]:
    digits = hash_terms(keys, int(salt[0]).to_bytes(SALT_BYTES, "big"))
    return np.asarray([int(one, 16) for one in digits], np.uint64)
