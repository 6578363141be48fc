"""Text to vector by its letters: runs of two to four characters, whatever the language, in plain numpy."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.encoder import Columns, Floats, lowered

Grams = NDArray[np.uint64]

#: Of a longer text only so many characters at either end are read.
MAX_END_CHARS = 1000
FIT_CHUNK = 2000  # texts whose grams are held at the same time while learning
_BLANKS = re.compile(r"[\s\0]+")


def plain(text: str) -> str:
    """Lower-cased, in one Unicode form, every stretch of white space one blank; of a long text both ends."""
    return _BLANKS.sub(" ", lowered(text, MAX_END_CHARS))


def grams_of(text: str) -> Grams:
    """Every run of 2, 3 and 4 UTF-16 units of the plain text as one number, in order, repeats included.

    A unit has 16 bits, so four of them fill a number and nothing has to be hashed.
    """
    units = np.frombuffer(plain(text).encode("utf-16-le", "surrogatepass"), np.uint16).astype(np.uint64)
    found, runs = [], units
    for length in (1, 2, 3):
        runs = runs[:-1] | (units[length:] << np.uint64(16 * length))
        found.append(runs)
    return np.concatenate(found)


class GramEncoder:
    """A vocabulary of grams with their idf: text in, unit vector out.

    Weights as in `LexicalEncoder`; the same as scikit-learn's `TfidfVectorizer(analyzer="char", ngram_range=(2, 4),
    sublinear_tf=True)` on the normalised text, which a test proves.
    """

    def __init__(self, grams: Grams, idf: Floats) -> None:
        """`grams`: ascending, in column order. `idf`: float32 `[len(grams)]`. ValueError if they don't fit."""
        if idf.shape != grams.shape or grams.ndim != 1 or not bool((grams[1:] > grams[:-1]).all()):
            raise ValueError("grams must be distinct and ascending, with one idf each")
        self.grams, self.idf = grams.astype(np.uint64), idf

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_texts: int = 3, max_grams: int = 30_000) -> GramEncoder:
        """Keep the grams that occur in at least `min_texts` texts, the most frequent `max_grams`."""
        grams, frequency, n = np.zeros(0, np.uint64), np.zeros(0, np.int64), 0
        held: list[Grams] = []

        def merge() -> None:
            nonlocal grams, frequency
            if held:
                fresh, counts = np.unique(np.concatenate(held), return_counts=True)
                both, place = np.unique(np.concatenate([grams, fresh]), return_inverse=True)
                weights = np.concatenate([frequency, counts])
                grams, frequency = both, np.bincount(place, weights, len(both)).astype(np.int64)
                held.clear()

        for text in texts:
            held.append(np.unique(grams_of(text)))
            n += 1
            if len(held) == FIT_CHUNK:
                merge()
        merge()
        often = np.flatnonzero(frequency >= min_texts)
        kept = np.sort(often[np.argsort(-frequency[often], kind="stable")[:max_grams]])
        idf = np.log((1 + n) / (1 + frequency[kept])) + 1
        return cls(grams[kept], idf.astype(np.float32))

    @property
    def width(self) -> int:
        return len(self.grams)

    def encode(self, text: str) -> tuple[Columns, Floats]:
        """The non-zero columns, ascending, and their values: int64 `[k]`, float32 `[k]`; k may be 0."""
        present, counts = np.unique(grams_of(text), return_counts=True)
        columns = np.searchsorted(self.grams, present)
        columns[columns == self.width] = 0
        known = self.grams[columns] == present if self.width else np.zeros(len(present), bool)
        columns = columns[known]
        values = (1 + np.log(counts[known])) * self.idf[columns]
        length = np.sqrt(values @ values)
        return columns, (values / length if length else values).astype(np.float32)
