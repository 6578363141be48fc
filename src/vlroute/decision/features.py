"""Features of a request: TF-IDF of words and characters, plain numbers, and embeddings. Needs numpy only."""

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

from vlroute.decision.hashed_terms import Grams, hash_grams, hash_terms
from vlroute.decision.text_encoder import Floats, TextEncoder
from vlroute.types import ToolUse

Columns = NDArray[np.int64]

#: Words are read from this many characters at either end of a longer text: instructions stand before or after a paste.
MAX_END_CHARS = 10_000
#: The same for character n-grams.
MAX_GRAM_END_CHARS = 1000
FIT_CHUNK = 2000  # texts whose n-grams are held in memory while fitting
#: A term and an n-gram must occur in this many training texts; the most frequent ones are kept.
MIN_TERM_TEXTS, MAX_TERMS = 2, 50_000
MIN_GRAM_TEXTS, MAX_GRAMS = 3, 30_000

#: Meaning of the plain numbers, in column order.
DENSE = (
    "ln(1 + characters of the prompt)",
    "ln(1 + tokens of the prompt)",
    "ln(1 + numbers in the prompt)",
    "ln(1 + lines of the prompt)",
    "share of the prompt's first 1000 characters beyond Latin",
    "has a caption",
    "ln(1 + tokens of the caption)",
    "tools are offered",
    "the last message is the result of a tool",
)
LAST_LATIN = "\u024f"
#: Plain numbers are clipped at this many standard deviations from the training mean.
MAX_DEVIATION = 3.0
#: Smallest standard deviation of a plain number. Numbers that vary less in training get the deviation 1.
MIN_SCALE = 1e-9
#: Weight of one standard deviation of a plain number. At full weight the seven numbers outweigh the words, which
#: cost up to 0.3 points of area over random on the public sets.
DENSE_WEIGHT = 0.1
#: A caption with a smaller share of known tokens is treated as absent: it is probably in another language.
MIN_CAPTION_COVERAGE = 0.5

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_CJK}]|\d+(?:\.\d+)?|(?:(?![{_CJK}])[^\W\d_])+")
_BLANKS = re.compile(r"[\s\0]+")
_NO_EMBEDDING = np.zeros(0, np.float32)


def _normalize(text: str, end_chars: int) -> str:
    """Lower-cased text in Unicode form NFKC; a long text is reduced to `end_chars` characters at each end."""
    if len(text) > 2 * end_chars:
        text = f"{text[:end_chars]}\n{text[-end_chars:]}"
    return unicodedata.normalize("NFKC", text).lower()


def tokenize(text: str) -> list[str]:
    """Split a text into lower-cased words, numbers and single CJK characters, in order."""
    return _TOKEN.findall(_normalize(text, MAX_END_CHARS))


def terms_of(tokens: Sequence[str]) -> list[str]:
    """Return the tokens, followed by each pair of neighboring tokens; pairs of CJK characters are often words."""
    return [*tokens, *(f"{left} {right}" for left, right in pairwise(tokens))]


class LexicalEncoder:
    """TF-IDF of terms: a unit vector over a fixed vocabulary.

    A term weighs `(1 + ln count) * idf` with `idf = ln((1 + n) / (1 + df)) + 1` over the n training texts, and the
    vector is scaled to length 1. These are the values of scikit-learn's `TfidfVectorizer(sublinear_tf=True)`.

    Args:
        terms: Distinct terms in column order.
        idf: Inverse document frequencies, float32 `[len(terms)]`.
        salt: If the terms are hashed, see `hash_terms`, their salt.

    Raises:
        ValueError: The arguments do not fit each other.
    """

    def __init__(self, terms: Sequence[str], idf: Floats, salt: bytes | None = None) -> None:
        if idf.shape != (len(terms),):
            raise ValueError(f"idf has shape {list(idf.shape)}, expected [{len(terms)}]")
        if not bool((idf > 0).all()):
            raise ValueError("the idf of a term must be positive")
        if not set(map(type, terms)) <= {str}:
            raise ValueError("the terms of a vocabulary must be strings")
        self.terms = tuple(terms)
        self.idf, self.salt = idf, salt
        self._column = {term: column for column, term in enumerate(self.terms)}
        if len(self._column) != len(self.terms):
            raise ValueError("the vocabulary contains a term twice")
        self._idf: list[float] = idf.tolist()  # reading single items of a numpy array is slow

    @classmethod
    def fit(
        cls, texts: Iterable[Sequence[str]], *, min_texts: int = MIN_TERM_TEXTS, max_terms: int | None = MAX_TERMS
    ) -> LexicalEncoder:
        """Learn the vocabulary.

        Args:
            texts: The terms of each text.
            min_texts: A term must occur in this many texts.
            max_terms: Maximum size; the most frequent terms are kept. None: all.

        Returns:
            The fitted encoder.
        """
        frequency: Counter[str] = Counter()
        n = 0
        for terms in texts:
            frequency.update(set(terms))
            n += 1
        often = [(term, df) for term, df in frequency.items() if df >= min_texts]
        kept = sorted(sorted(often, key=lambda item: (-item[1], item[0]))[:max_terms])
        idf = [math.log((1 + n) / (1 + df)) + 1 for _, df in kept]
        return cls([term for term, _ in kept], np.asarray(idf, dtype=np.float32))

    def hashed(self, salt: bytes) -> tuple[LexicalEncoder, Columns]:
        """Hash the terms. The columns are sorted by hash: their order would reveal the alphabetical order of the terms.

        Args:
            salt: The salt.

        Returns:
            The encoder of the hashes, and for each of its columns the column in this encoder, `[width]`.
        """
        terms = hash_terms(self.terms, salt)
        order = np.asarray(sorted(range(len(terms)), key=terms.__getitem__), np.int64)
        return LexicalEncoder([terms[column] for column in order], self.idf[order], salt), order

    def _keys(self, terms: Iterable[str]) -> Iterable[str]:
        return terms if self.salt is None else hash_terms(terms, self.salt)

    @property
    def width(self) -> int:
        """Number of terms."""
        return len(self.terms)

    def find(self, terms: Iterable[str]) -> list[int]:
        """Return the columns of the known terms, in order and with repeats."""
        return [column for key in self._keys(terms) if (column := self._column.get(key)) is not None]

    def encode(self, terms: Iterable[str]) -> tuple[Columns, Floats]:
        """Return the non-zero columns, ascending, and their values: int64 `[k]`, float32 `[k]`; k may be 0."""
        counts = Counter(self.find(terms))
        columns = sorted(counts)
        values = [(1 + math.log(counts[column])) * self._idf[column] for column in columns]
        length = math.sqrt(sum(value * value for value in values))
        return np.asarray(columns, np.int64), np.asarray([value / length for value in values], np.float32)

    def count_known(self, tokens: Sequence[str]) -> tuple[int, int]:
        """Return the number of tokens seen in training, and of all tokens except unseen numbers.

        Unseen numbers are not counted, because no training data contains all numbers.
        """
        known = unknown = 0
        for token, key in zip(tokens, self._keys(tokens), strict=True):
            if key in self._column:
                known += 1
            elif not token[0].isdigit():
                unknown += 1
        return known, known + unknown


def grams_of(text: str) -> Grams:
    """Return every run of 2, 3 and 4 UTF-16 units of a normalized text as one number, uint64 `[k]`, with repeats.

    White space is collapsed first. A unit has 16 bits, so four of them fit into a number without hashing.
    """
    plain = _BLANKS.sub(" ", _normalize(text, MAX_GRAM_END_CHARS))
    units = np.frombuffer(plain.encode("utf-16-le", "surrogatepass"), np.uint16).astype(np.uint64)
    found, runs = [], units
    for length in (1, 2, 3):
        runs = runs[:-1] | (units[length:] << np.uint64(16 * length))
        found.append(runs)
    return np.concatenate(found)


class GramEncoder:
    """TF-IDF of character n-grams: a unit vector over a fixed vocabulary, for text in any language.

    These are the values of scikit-learn's `TfidfVectorizer(analyzer="char", ngram_range=(2, 4), sublinear_tf=True)` on
    the normalized text.

    Args:
        grams: N-grams as numbers, see `grams_of`; ascending, in column order.
        idf: Inverse document frequencies, float32 `[len(grams)]`.
        salt: If the n-grams are hashed, see `hash_grams`, their salt.

    Raises:
        ValueError: The arguments do not fit each other.
    """

    def __init__(self, grams: Grams, idf: Floats, salt: bytes | None = None) -> None:
        if idf.shape != grams.shape or grams.ndim != 1 or not bool((grams[1:] > grams[:-1]).all()):
            raise ValueError("n-grams must be distinct and ascending, with one idf for each")
        if not bool((idf > 0).all()):
            raise ValueError("the idf of an n-gram must be positive")
        self.grams, self.idf, self.salt = grams.astype(np.uint64), idf, salt

    @classmethod
    def fit(
        cls, texts: Iterable[str], *, min_texts: int = MIN_GRAM_TEXTS, max_grams: int | None = MAX_GRAMS
    ) -> GramEncoder:
        """Learn the vocabulary.

        Args:
            texts: The training texts.
            min_texts: An n-gram must occur in this many texts.
            max_grams: Maximum size; the most frequent n-grams are kept. None: all.

        Returns:
            The fitted encoder.
        """
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

    def hashed(self, salt: bytes) -> tuple[GramEncoder, Columns]:
        """Hash the n-grams. The columns are in ascending order of the hashes.

        Args:
            salt: The salt.

        Returns:
            The encoder of the hashes, and for each of its columns the column in this encoder, `[width]`.
        """
        grams = hash_grams(self.grams, salt)
        order = np.argsort(grams)
        return GramEncoder(grams[order], self.idf[order], salt), order

    @property
    def width(self) -> int:
        """Number of n-grams."""
        return len(self.grams)

    def find(self, text: str) -> tuple[Columns, Columns]:
        """Return the columns of the known n-grams, ascending, and how often each occurs."""
        grams = grams_of(text)
        present, counts = np.unique(grams if self.salt is None else hash_grams(grams, self.salt), return_counts=True)
        columns = np.searchsorted(self.grams, present)
        columns[columns == self.width] = 0
        known = self.grams[columns] == present if self.width else np.zeros(len(present), bool)
        return columns[known], counts[known]

    def encode(self, text: str) -> tuple[Columns, Floats]:
        """Return the non-zero columns, ascending, and their values: int64 `[k]`, float32 `[k]`; k may be 0."""
        columns, counts = self.find(text)
        values = (1 + np.log(counts)) * self.idf[columns]
        length = np.sqrt(values @ values)
        return columns, (values / length if length else values).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Features:
    """Features of one request.

    Attributes:
        columns: Distinct non-zero columns, int64 `[k]`.
        values: Their values, float32 `[k]`; the last ones are the plain numbers.
        coverage: Share of the used tokens that occurred in the training data, 0 to 1.
        captioned: Whether the caption is used.
        embedding: Unit vector of the prompt, then that of the caption (zeros without one): float32 `[2 * width]`;
            `[0]` without a text encoder.
    """

    columns: Columns
    values: Floats
    coverage: float
    captioned: bool
    embedding: Floats


class RequestEncoder:
    """Encodes prompt and caption separately: prompt words | prompt n-grams | caption words | plain numbers.

    A caption that is None, blank or consists mostly of unknown words is treated as absent.

    Args:
        prompt: Encodes the words of the prompt.
        grams: Encodes the characters of the prompt.
        caption: Encodes the words of the caption.
        center: Means of the plain numbers in training, float32 `[len(DENSE)]`.
        scale: Their standard deviations, positive, float32 `[len(DENSE)]`.
        text: Embeds prompt and caption; None: no embedding.

    Raises:
        ValueError: `center` or `scale` is wrong.
    """

    def __init__(
        self,
        prompt: LexicalEncoder,
        grams: GramEncoder,
        caption: LexicalEncoder,
        center: Floats,
        scale: Floats,
        text: TextEncoder | None = None,
    ) -> None:
        if center.shape != (len(DENSE),) or scale.shape != (len(DENSE),) or not bool((scale >= MIN_SCALE).all()):
            raise ValueError(f"center and scale must have shape [{len(DENSE)}], and scale must be at least {MIN_SCALE}")
        self.prompt, self.grams, self.caption = prompt, grams, caption
        self.center, self.scale, self.text = center, scale, text
        self._caption_start = prompt.width + grams.width
        self._dense_start = self._caption_start + caption.width
        self.width = self._dense_start + len(DENSE)
        self.embedding_width = 2 * text.width if text else 0

    @property
    def salt(self) -> bytes | None:
        """The salt of the vocabularies if they are hashed."""
        return self.prompt.salt

    @classmethod
    def fit(
        cls, requests: Sequence[tuple[str, str | None, ToolUse]], text: TextEncoder | None = None
    ) -> RequestEncoder:
        """Learn vocabularies and scales from (prompt, caption, tools), without labels."""
        tokens = [(tokenize(prompt), tokenize(caption or "")) for prompt, caption, _ in requests]
        plain = []
        for (prompt, _, tools), (ours, theirs) in zip(requests, tokens, strict=True):
            plain.append(plain_numbers(prompt, ours, [], tools))
            if theirs:
                plain.append(plain_numbers(prompt, ours, theirs, tools))
        spread = np.std(plain, axis=0)
        return cls(
            LexicalEncoder.fit(terms_of(ours) for ours, _ in tokens),
            GramEncoder.fit(prompt for prompt, _, _ in requests),
            LexicalEncoder.fit(terms_of(theirs) for _, theirs in tokens if theirs),
            np.mean(plain, axis=0).astype(np.float32),
            np.where(spread > 1e-6, spread, 1.0).astype(np.float32),
            text,
        )

    def with_text(self, text: TextEncoder | None) -> RequestEncoder:
        """Return a copy with another text encoder, or without one."""
        return RequestEncoder(self.prompt, self.grams, self.caption, self.center, self.scale, text)

    def hashed(self, salt: bytes) -> tuple[RequestEncoder, Columns]:
        """Hash the words and n-grams.

        Args:
            salt: The salt.

        Returns:
            The encoder of the hashes, and for each of its columns the column in this encoder, `[width]`.
        """
        prompt, words = self.prompt.hashed(salt)
        grams, runs = self.grams.hashed(salt)
        caption, seen = self.caption.hashed(salt)
        encoder = RequestEncoder(prompt, grams, caption, self.center, self.scale, self.text)
        rest = np.arange(self._dense_start, self.width, dtype=np.int64)
        return encoder, np.concatenate([words, self.prompt.width + runs, self._caption_start + seen, rest])

    def encode(
        self, prompt: str, caption: str | None = None, tools: ToolUse = "", embedded: Features | None = None
    ) -> Features:
        """Compute the features of one request.

        Args:
            prompt: Text of the request.
            caption: Text about the pictures, or None.
            tools: As in `Record`.
            embedded: Features of the same request by another encoder with the same text encoder, so that the texts are
                embedded once.

        Returns:
            The features.
        """
        tokens, caption_tokens = tokenize(prompt), tokenize(caption) if caption else []
        known, counted = self.prompt.count_known(tokens)
        caption_known, caption_counted = self.caption.count_known(caption_tokens)
        captioned = caption_known > 0 and caption_known >= MIN_CAPTION_COVERAGE * caption_counted
        if captioned:
            known, counted = known + caption_known, counted + caption_counted
        else:
            caption, caption_tokens = "", []
        plain = np.asarray(plain_numbers(prompt, tokens, caption_tokens, tools), np.float32)
        deviations = ((plain - self.center) / self.scale).clip(-MAX_DEVIATION, MAX_DEVIATION)
        parts = [
            (0, *self.prompt.encode(terms_of(tokens))),
            (self.prompt.width, *self.grams.encode(prompt)),
            (self._caption_start, *self.caption.encode(terms_of(caption_tokens))),
            (self._dense_start, np.arange(len(DENSE), dtype=np.int64), deviations * np.float32(DENSE_WEIGHT)),
        ]
        if embedded is not None and embedded.captioned == captioned:
            embedding = embedded.embedding
        else:
            embedding = self.text.encode((prompt, caption or "")).reshape(-1) if self.text else _NO_EMBEDDING
        return Features(
            np.concatenate([columns + start for start, columns, _ in parts]),
            np.concatenate([values for _, _, values in parts]),
            known / counted if counted else 0.0,
            captioned,
            embedding,
        )


def plain_numbers(prompt: str, tokens: Sequence[str], caption: Sequence[str], tools: ToolUse) -> list[float]:
    """Return the values of `DENSE`, before centering.

    Args:
        prompt: Text of the prompt.
        tokens: Its tokens.
        caption: Tokens of the caption; none if there is no caption.
        tools: As in `Record`.

    Returns:
        The plain numbers.
    """
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
        float(tools != ""),
        float(tools == "result"),
    ]
