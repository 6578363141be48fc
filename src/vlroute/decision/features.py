"""Text to vector: TF-IDF over words, numbers and Chinese characters, in plain Python and numpy."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vlroute.decision.text_encoder import Floats, TextEncoder

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


Grams = NDArray[np.uint64]

#: Of a longer text only so many characters at either end are read.
MAX_GRAM_END_CHARS = 1000
FIT_CHUNK = 2000  # texts whose grams are held at the same time while learning
_BLANKS = re.compile(r"[\s\0]+")


def plain(text: str) -> str:
    """Lower-cased, in one Unicode form, every stretch of white space one blank; of a long text both ends."""
    return _BLANKS.sub(" ", lowered(text, MAX_GRAM_END_CHARS))


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


#: Meaning of the plain numbers, in column order.
DENSE = (
    "ln(1 + characters of the prompt)",
    "ln(1 + tokens of the prompt)",
    "ln(1 + numbers in the prompt)",
    "ln(1 + lines of the prompt)",
    "share of the prompt's first 1000 characters beyond Latin",
    "has a caption",
    "ln(1 + tokens of the caption)",
)
LAST_LATIN = "\u024f"
#: Plain numbers are cut off this many standard deviations from the training mean.
MAX_DEVIATION = 3.0
#: One deviation of a plain number weighs as much as a word that is a tenth of its text. At full weight seven of them
#: outweigh the words, which cost up to 0.3 points of area over random on the public sets.
DENSE_WEIGHT = 0.1
#: Only so many first distinct tokens of either text are crossed: a long caption stays cheap.
MAX_CROSSED = 24
#: A caption of which a smaller share of tokens is known is treated as absent: another captioner's language.
MIN_CAPTION_KNOWN = 0.5


_NO_EMBEDDING = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Features:
    """Non-zero `columns` (int64 `[k]`, distinct) and their `values` (float32 `[k]`).

    `known`: share of the tokens used that training has seen. `captioned`: whether the caption was used. `embedding`:
    of the prompt, then of the caption (zeros without one), each of length 1: float32 `[2 * width]`, or `[0]`.
    """

    columns: Columns
    values: Floats
    known: float
    captioned: bool
    embedding: Floats

    @property
    def dense(self) -> Floats:
        """What trees look at: the plain numbers, then the embedding."""
        return np.concatenate([self.values[-len(DENSE) :], self.embedding])


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt without its caption: tokens; columns and values of words and letters; tokens (known, counted)."""

    prompt: str
    tokens: list[str]
    columns: list[Columns]
    values: list[Floats]
    known: tuple[int, int]


class RequestEncoder:
    """Prompt and caption encoded apart and joined, with crosses: "add"|"three" tells what neither does alone.

    Crosses let linear heads learn that a caption matters for one kind of prompt and not for another. A caption that is
    None, blank or mostly unknown words is the condition "no caption".
    """

    def __init__(
        self,
        prompt: LexicalEncoder,
        grams: GramEncoder,
        caption: LexicalEncoder,
        crossed: LexicalEncoder,
        centre: Floats,
        scale: Floats,
        text: TextEncoder | None = None,
    ) -> None:
        """`centre`, `scale`: float32 `[len(DENSE)]`, mean and (positive) deviation of the plain numbers. `text`: embeds
        prompt and caption beside their words."""
        if centre.shape != (len(DENSE),) or scale.shape != (len(DENSE),) or not bool((scale > 0).all()):
            raise ValueError(f"centre and scale must have shape [{len(DENSE)}] and scale must be positive")
        self.prompt, self.grams, self.caption, self.crossed = prompt, grams, caption, crossed
        self.centre, self.scale, self.text = centre, scale, text
        self._grams_start = prompt.width
        self._caption_starts = self._grams_start + grams.width
        self._crossed_starts = self._caption_starts + caption.width
        self._dense_starts = self._crossed_starts + crossed.width
        self.width = self._dense_starts + len(DENSE)
        self.embedding_width = 2 * text.width if text else 0

    @classmethod
    def fit(cls, requests: Sequence[tuple[str, str | None]], text: TextEncoder | None = None) -> RequestEncoder:
        """Learn vocabularies and scales from (prompt, caption) pairs; no labels are involved."""
        tokens = [(tokenise(prompt), tokenise(caption or "")) for prompt, caption in requests]
        captioned = [(ours, theirs) for ours, theirs in tokens if theirs]
        plain = []
        for (prompt, _), (ours, theirs) in zip(requests, tokens, strict=True):
            plain.append(_plain_numbers(prompt, ours, []))
            if theirs:
                plain.append(_plain_numbers(prompt, ours, theirs))
        spread = np.std(plain, axis=0)
        return cls(
            LexicalEncoder.fit(terms_of(ours) for ours, _ in tokens),
            GramEncoder.fit(prompt for prompt, _ in requests),
            LexicalEncoder.fit(terms_of(theirs) for _, theirs in captioned),
            LexicalEncoder.fit(
                (_cross(ours, theirs) for ours, theirs in captioned),
                min_texts=max(5, len(captioned) // 200),
                max_terms=10_000,
            ),
            np.mean(plain, axis=0).astype(np.float32),
            np.where(spread > 1e-6, spread, 1.0).astype(np.float32),
            text,
        )

    @property
    def crossed_columns(self) -> slice:
        """Where the crosses lie."""
        return slice(self._crossed_starts, self._dense_starts)

    def without_crosses(self) -> RequestEncoder:
        """The same without the columns of the crosses."""
        nothing = LexicalEncoder([], np.zeros(0, np.float32))
        return RequestEncoder(self.prompt, self.grams, self.caption, nothing, self.centre, self.scale, self.text)

    def with_text(self, text: TextEncoder | None) -> RequestEncoder:
        """The same with another way to embed, or none."""
        return RequestEncoder(self.prompt, self.grams, self.caption, self.crossed, self.centre, self.scale, text)

    def encode(self, prompt: str, caption: str | None = None) -> Features:
        """The features of one request: `width` columns, and an embedding of `embedding_width`."""
        return self._join(self._read(prompt), caption)

    def encode_both(self, prompt: str, caption: str | None) -> list[Features]:
        """The features with and then without the caption; only the latter where it is none or not used."""
        read = self._read(prompt)
        found = [self._join(read, caption)]
        return [*found, self._join(read, None)] if found[0].captioned else found

    def _read(self, prompt: str) -> _Read:
        tokens = tokenise(prompt)
        columns, values = self.prompt.encode_terms(terms_of(tokens))
        gram_columns, gram_values = self.grams.encode(prompt)
        return _Read(
            prompt, tokens, [columns, gram_columns + self._grams_start], [values, gram_values],
            self.prompt.count_known(tokens),
        )  # fmt: skip

    def _join(self, read: _Read, caption: str | None) -> Features:
        all_columns, all_values = [*read.columns], [*read.values]
        known, counted = read.known
        theirs = tokenise(caption) if caption else []
        caption_known, caption_counted = self.caption.count_known(theirs)
        captioned = caption_known > 0 and caption_known >= MIN_CAPTION_KNOWN * caption_counted
        if captioned:
            known, counted = known + caption_known, counted + caption_counted
            columns, values = self.caption.encode_terms(terms_of(theirs))
            all_columns.append(columns + self._caption_starts)
            all_values.append(values)
            if self.crossed.width:
                columns, values = self.crossed.encode_terms(_cross(read.tokens, theirs))
                all_columns.append(columns + self._crossed_starts)
                all_values.append(values)
        plain = np.asarray(_plain_numbers(read.prompt, read.tokens, theirs if captioned else []), np.float32)
        all_columns.append(np.arange(self._dense_starts, self.width, dtype=np.int64))
        spread = ((plain - self.centre) / self.scale).clip(-MAX_DEVIATION, MAX_DEVIATION)
        all_values.append(spread * np.float32(DENSE_WEIGHT))
        return Features(
            np.concatenate(all_columns),
            np.concatenate(all_values),
            known / counted if counted else 0.0,
            captioned,
            self._embed(read.prompt, caption if captioned and caption else ""),
        )

    def _embed(self, *texts: str) -> Floats:
        return self.text.encode(texts).reshape(-1) if self.text else _NO_EMBEDDING


def _cross(prompt: Sequence[str], caption: Sequence[str]) -> list[str]:
    ours, theirs = (list(dict.fromkeys(tokens))[:MAX_CROSSED] for tokens in (prompt, caption))
    return [f"{a}|{b}" for a in ours for b in theirs]


def _plain_numbers(prompt: str, tokens: Sequence[str], caption: Sequence[str]) -> list[float]:
    """The values of `DENSE`, before centring."""
    numbers = sum(token[0].isdigit() for token in tokens)
    start = prompt[:1000]
    return [
        math.log1p(len(prompt)),
        math.log1p(len(tokens)),
        math.log1p(numbers),
        math.log1p(prompt.count("\n") + 1),
        sum(char > LAST_LATIN for char in start) / max(1, len(start)),
        float(bool(caption)),
        math.log1p(len(caption)),
    ]
