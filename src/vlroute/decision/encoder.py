"""Text to vector: TF-IDF over words, numbers and Chinese characters, in plain Python and numpy."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Columns = NDArray[np.int64]

#: Of a longer text only so many characters at either end are read: instructions stand around a paste.
MAX_END_CHARS = 10_000

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:\.\d+)?|(?:(?![{_CJK}])[^\W\d_])+")


def lowered(text: str, end_chars: int) -> str:
    """Lower-cased, in one Unicode form; of a longer text only `end_chars` characters at either end."""
    if len(text) > 2 * end_chars:
        text = f"{text[:end_chars]}\n{text[-end_chars:]}"
    return unicodedata.normalize("NFKC", text).lower()


def tokenise(text: str) -> list[str]:
    """The tokens of `text` in order: lower-cased words, each number as one token, single CJK characters."""
    return _TOKEN.findall(lowered(text, MAX_END_CHARS))


def terms_of(tokens: Sequence[str]) -> list[str]:
    """The tokens, then each neighbouring pair; pairs of CJK characters serve as words of Chinese."""
    return [*tokens, *(f"{left} {right}" for left, right in pairwise(tokens))]


class LexicalEncoder:
    """A vocabulary of terms with their idf: terms in, unit vector out.

    A term weighs `(1 + ln count) * idf` with `idf = ln((1 + n) / (1 + df)) + 1` over the n training texts;
    the vector is scaled to length 1. The same as scikit-learn's `TfidfVectorizer(sublinear_tf=True)`, which a
    test proves.
    """

    def __init__(self, terms: Sequence[str], idf: Floats) -> None:
        """`terms`: distinct, in column order. `idf`: float32 `[len(terms)]`. ValueError if they don't fit."""
        if idf.shape != (len(terms),):
            raise ValueError(f"idf has shape {list(idf.shape)}, expected [{len(terms)}]")
        self.terms = tuple(terms)
        self.idf = idf
        self._column = {term: column for column, term in enumerate(self.terms)}
        if len(self._column) != len(self.terms):
            raise ValueError("a term stands in the vocabulary twice")
        self._idf: list[float] = idf.tolist()  # plain floats: reading single items of an array is slow

    @classmethod
    def fit(cls, texts: Iterable[Sequence[str]], *, min_texts: int = 2, max_terms: int = 50_000) -> LexicalEncoder:
        """Learn from each text's terms: keep those in at least `min_texts`, the most frequent `max_terms`."""
        frequency: Counter[str] = Counter()
        n = 0
        for terms in texts:
            frequency.update(set(terms))
            n += 1
        often = [(term, df) for term, df in frequency.items() if df >= min_texts]
        kept = sorted(sorted(often, key=lambda item: (-item[1], item[0]))[:max_terms])
        idf = [math.log((1 + n) / (1 + df)) + 1 for _, df in kept]
        return cls([term for term, _ in kept], np.asarray(idf, dtype=np.float32))

    @property
    def width(self) -> int:
        return len(self.terms)

    def encode_terms(self, terms: Iterable[str]) -> tuple[Columns, Floats]:
        """The non-zero columns, ascending, and their values: int64 `[k]`, float32 `[k]`; k may be 0."""
        counts = Counter([column for term in terms if (column := self._column.get(term)) is not None])
        columns = sorted(counts)
        values = [(1 + math.log(counts[column])) * self._idf[column] for column in columns]
        length = math.sqrt(sum(value * value for value in values))
        return np.asarray(columns, np.int64), np.asarray([value / length for value in values], np.float32)

    def encode(self, text: str) -> Floats:
        """The whole vector, float32 `[width]`, of length 1; all zeros if nothing is known."""
        vector = np.zeros(self.width, dtype=np.float32)
        columns, values = self.encode_terms(terms_of(tokenise(text)))
        vector[columns] = values
        return vector

    def count_known(self, tokens: Iterable[str]) -> tuple[int, int]:
        """(tokens seen in training, tokens counted). Unseen numbers do not count: no data holds them all."""
        known = unknown = 0
        for token in tokens:
            if token in self._column:
                known += 1
            elif not token[0].isdigit():
                unknown += 1
        return known, known + unknown

    def known_share(self, text: str) -> float:
        """Share of the counted tokens that training has seen, 0 to 1; 0 for a text without any."""
        known, counted = self.count_known(tokenise(text))
        return known / counted if counted else 0.0
