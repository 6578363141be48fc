"""Hashes of the terms and character n-grams of a vocabulary, so that an artifact does not contain them as text.

A hash hides text from readers and from searches. It does not hide it from an attack: the salt is part of the artifact,
so whoever has the artifact can hash guesses, and all n-grams of up to four common characters can be tried in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Grams = NDArray[np.uint64]
#: Bytes of the hash of a term: two of a million different terms are equal with a probability of 3e-8.
TERM_BYTES = 8
SALT_BYTES = 8


def read_salt(text: str) -> bytes:
    """The salt in an artifact, as hexadecimal digits. Raises ValueError if it is none."""
    salt = bytes.fromhex(text)
    if len(salt) != SALT_BYTES:
        raise ValueError(f"the salt of the vocabulary has {len(salt)} bytes, expected {SALT_BYTES}")
    return salt


def hash_terms(terms: Iterable[str], salt: bytes) -> list[str]:
    """Hash terms with BLAKE2b.

    Args:
        terms: The terms.
        salt: `SALT_BYTES` bytes.

    Returns:
        16 hexadecimal digits for each term.
    """
    salted = hashlib.blake2b(digest_size=TERM_BYTES, salt=salt)
    hashes = []
    for term in terms:
        one = salted.copy()
        one.update(term.encode("utf-8", "surrogatepass"))
        hashes.append(one.hexdigest())
    return hashes


def hash_grams(grams: Grams, salt: bytes) -> Grams:
    """Hash n-grams, which are numbers of 64 bits, see `grams_of`.

    This is the construction of Davies and Meyer, `E(gram) xor gram`, with the mixing steps of SplitMix64 (Steele, Lea
    and Flood 2014) as E: a request has up to some thousand n-grams, for which BLAKE2b would take milliseconds. A
    cryptographic hash would not hide them better, because there are few n-grams.

    Args:
        grams: The n-grams, uint64 `[k]`.
        salt: `SALT_BYTES` bytes.

    Returns:
        Their hashes, uint64 `[k]`.
    """
    key = np.uint64(int.from_bytes(salt, "little"))
    mixed = grams ^ key
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) ^ grams
