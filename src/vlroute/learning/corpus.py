"""The texts of the records, read once. Features of any part of them are then made from counts of terms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.features import (
    DENSE_WEIGHT,
    MAX_DEVIATION,
    MAX_GRAMS,
    MAX_TERMS,
    MIN_CAPTION_COVERAGE,
    MIN_GRAM_TEXTS,
    MIN_TERM_TEXTS,
    GramEncoder,
    LexicalEncoder,
    RequestEncoder,
    plain_numbers,
    terms_of,
    tokenize,
)
from vlroute.decision.hashed_terms import Grams
from vlroute.decision.text_encoder import Floats, TextEncoder
from vlroute.learning.folds import strata_of
from vlroute.records import Record, outcomes
from vlroute.types import MODES

Values = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Columns of the plain numbers that describe the caption.
CAPTION_NUMBERS = [5, 6]


@dataclass(frozen=True, slots=True)
class Columns:
    """Vocabulary of one kind of text.

    Attributes:
        kept: Columns of the counts, ascending.
        idf: Their inverse document frequencies, float32.
    """

    kept: Indices
    idf: Floats


class Counts:
    """How often each term occurs in each text.

    Args:
        texts: Columns of the terms of each text, and how often each occurs.
        width: Number of columns.
        min_texts: A term of a vocabulary occurs in this many of its texts.
        most: Maximum size of a vocabulary.
    """

    def __init__(
        self, texts: Iterable[tuple[Sequence[int] | Indices, Indices | None]], width: int, min_texts: int, most: int
    ) -> None:
        columns, counts, starts = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)], [0]
        for found, often in texts:
            columns.append(np.asarray(found, np.int32))
            counts.append(np.ones(len(found), np.float32) if often is None else often.astype(np.float32))
            starts.append(starts[-1] + len(found))
        self.matrix = sparse.csr_matrix(
            (np.concatenate(counts), np.concatenate(columns), starts), (len(starts) - 1, width)
        )
        self.matrix.sum_duplicates()
        self.min_texts, self.most = min_texts, most

    def fit(self, rows: Indices, texts: int) -> Columns:
        """Choose the vocabulary of these rows, as the encoders in `decision.features` do; `texts` of them have text."""
        frequency = np.bincount(self.matrix[rows].indices, minlength=self.matrix.shape[1])
        often = np.flatnonzero(frequency >= self.min_texts)
        kept = np.sort(often[np.argsort(-frequency[often], kind="stable")[: self.most]])
        return Columns(kept, (np.log((1 + texts) / (1 + frequency[kept])) + 1).astype(np.float32))

    def of(self, rows: Indices, columns: Columns) -> sparse.csr_matrix:
        """Return the counts of the vocabulary in these rows."""
        place = np.full(self.matrix.shape[1], -1, np.int32)
        place[columns.kept] = np.arange(len(columns.kept), dtype=np.int32)
        found = self.matrix[rows]
        new = place[found.indices]
        known = new >= 0
        starts = np.concatenate([[0], np.cumsum(known)])[found.indptr]
        return sparse.csr_matrix((found.data[known], new[known], starts), (len(rows), len(columns.kept)))


def _tfidf(counts: sparse.csr_matrix, idf: Floats) -> sparse.csr_matrix:
    """Unit vectors."""
    values = (1 + np.log(counts.data)) * idf[counts.indices]
    found = sparse.csr_matrix((values, counts.indices, counts.indptr), counts.shape)
    lengths = np.sqrt(found.multiply(found).sum(axis=1)).A1 if counts.nnz else np.zeros(counts.shape[0])
    found.data /= np.repeat(lengths, np.diff(found.indptr)).astype(np.float32)
    return found


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What `RequestEncoder.fit` learns from some of the records.

    Attributes:
        prompt: Words of prompts.
        grams: Character n-grams of prompts.
        caption: Words of captions.
        center: Means of the plain numbers.
        scale: Their standard deviations.
    """

    prompt: Columns
    grams: Columns
    caption: Columns
    center: Floats
    scale: Floats


@dataclass(frozen=True, slots=True)
class Terms:
    """Names of the columns of a corpus.

    Attributes:
        prompt: Terms of prompts.
        grams: N-grams of prompts.
        caption: Terms of captions.
    """

    prompt: tuple[str, ...]
    grams: Grams
    caption: tuple[str, ...]

    def encoder(self, vocabulary: Vocabulary, text: TextEncoder | None) -> RequestEncoder:
        """Return the encoder of requests with this vocabulary."""
        prompt, caption = (
            LexicalEncoder([terms[column] for column in columns.kept.tolist()], columns.idf)
            for terms, columns in ((self.prompt, vocabulary.prompt), (self.caption, vocabulary.caption))
        )
        grams = GramEncoder(self.grams[vocabulary.grams.kept], vocabulary.grams.idf)
        return RequestEncoder(prompt, grams, caption, vocabulary.center, vocabulary.scale, text)


class Rows:
    """A matrix whose rows are requests with and without their captions; what both have in common is stored once.

    Args:
        prompt: Features of the prompts, float32 `[n, p]`.
        caption: Features of the captions, float32 `[captioned rows, c]`.
        plain: Plain numbers of the rows, float32 `[m, d]`.
        given: First row of each prompt, `[n]`.
        captioned: Whether a row has a caption, `[m]`.
    """

    def __init__(
        self,
        prompt: sparse.csr_matrix | Floats,
        caption: sparse.csr_matrix | Floats,
        plain: Floats,
        given: Indices,
        captioned: Mask,
    ) -> None:
        self.prompt, self.caption, self.plain = prompt, caption, plain
        self.given, self.captioned = given, np.flatnonzero(captioned)
        self.owner = np.repeat(np.arange(len(given)), np.diff(np.append(given, len(captioned))))
        self.ends = [prompt.shape[1], prompt.shape[1] + caption.shape[1]]
        self.shape = (len(captioned), self.ends[1] + plain.shape[1])

    def __matmul__(self, weights: Floats) -> Floats:
        prompt, caption, plain = np.split(weights, self.ends)
        product: Floats = (self.prompt @ prompt)[self.owner]
        product[self.captioned] += self.caption @ caption
        return product + self.plain @ plain

    def adjoint(self, values: Floats) -> Floats:
        """Return the product of the transposed matrix and `values`, `[columns, k]`."""
        prompt = self.prompt.T @ np.add.reduceat(values, self.given)
        return np.concatenate([prompt, self.caption.T @ values[self.captioned], self.plain.T @ values])


@dataclass(frozen=True, slots=True)
class Design:
    """Features and labels of some records.

    A record with a caption has two rows, with and without its caption, with half the weight each, so that the heads
    learn both conditions.

    Attributes:
        words: TF-IDF of words and characters, and plain numbers, `[m, width]`.
        embedding: Embeddings of prompt and caption, `[m, embedding width]`; width 0 without a text encoder.
        owner: Record of each row, `[m]`.
        given: Row of each record with its caption, if it has one, `[n]`.
        captioned: Whether the row has a caption, `[m]`.
        coverage: Share of the used tokens of the row that the vocabulary contains, `[m]`.
        right: How right both modes were, 0 to 1, `[m, 2]`.
        tokens: Tokens that both modes generated, NaN if unknown, `[m, 2]`.
        weight: Weight of each row, `[m]`.
        before: Calibrated logits of the router from which the training starts, `[m, 2]`; None without one.
    """

    words: Rows
    embedding: Rows
    owner: Indices
    given: Indices
    captioned: Mask
    coverage: Values
    right: Values
    tokens: Values
    weight: Values
    before: Values | None


class _Words:
    """Counts of the words of one kind of text.

    Args:
        tokens: Tokens of each text; none for a missing text.
        terms: The terms that enough texts contain.
    """

    def __init__(self, tokens: Sequence[Sequence[str]], terms: LexicalEncoder) -> None:
        found = ((terms.find(terms_of(one)), None) for one in tokens)
        self.counts = Counts(found, terms.width, MIN_TERM_TEXTS, MAX_TERMS)
        self.present = np.asarray([bool(one) for one in tokens])
        self._tokens = np.asarray([" " not in term for term in terms.terms], bool)
        self._numbers = np.asarray([term[0].isdigit() for term in terms.terms], bool) & self._tokens
        self._expected = np.asarray([sum(not token[0].isdigit() for token in one) for one in tokens], float)

    def fit(self, rows: Indices) -> Columns:
        return self.counts.fit(rows, int(self.present[rows].sum()))

    def encode(self, rows: Indices, columns: Columns) -> tuple[sparse.csr_matrix, Values]:
        """Unit vectors, and what `LexicalEncoder.count_known` returns for each text, `[2, n]`."""
        counts = self.counts.of(rows, columns)
        known, numbers = (counts @ kind[columns.kept].astype(float) for kind in (self._tokens, self._numbers))
        return _tfidf(counts, columns.idf), np.asarray([known, numbers + self._expected[rows]])


class Corpus:
    """The records as numbers; their texts are read once. Other processes can share the arrays.

    Args:
        records: The labeled records.
        text: Embeds prompts and captions; None: no embeddings.
        start: The router from which the training starts.

    Attributes:
        terms: Names of the columns.
        right: How right both modes were, 0 to 1, `[n, 2]`.
        tokens: Tokens that both modes generated, NaN if unknown, `[n, 2]`.
        strata: What is distributed evenly over folds, see `strata_of`, `[n]`.
    """

    def __init__(
        self, records: Sequence[Record], text: TextEncoder | None = None, start: ComplexityClassifier | None = None
    ) -> None:
        prompts, captions = [record.prompt for record in records], [record.caption or "" for record in records]
        tokens, caption_tokens = [tokenize(one) for one in prompts], [tokenize(one) for one in captions]
        words = LexicalEncoder.fit(map(terms_of, tokens), max_terms=None)
        caption_words = LexicalEncoder.fit((terms_of(one) for one in caption_tokens if one), max_terms=None)
        grams = GramEncoder.fit(prompts, max_grams=None)
        self.terms = Terms(words.terms, grams.grams, caption_words.terms)
        self._prompt, self._caption = _Words(tokens, words), _Words(caption_tokens, caption_words)
        self._grams = Counts(map(grams.find, prompts), grams.width, MIN_GRAM_TEXTS, MAX_GRAMS)
        self._plain = np.asarray(
            [
                plain_numbers(record.prompt, ours, theirs, record.tools)
                for record, ours, theirs in zip(records, tokens, caption_tokens, strict=True)
            ],
            np.float32,
        )
        nothing = np.zeros((len(records), 0), np.float32)
        self._embedded = [text.encode(one) if text else nothing for one in (prompts, captions)]
        both = [outcomes(records, mode) for mode in MODES]
        self.right = np.asarray([[float(one.correct) for one in mode] for mode in both]).T
        counts = [[np.nan if one.tokens is None else one.tokens for one in mode] for mode in both]
        self.tokens = np.asarray(counts, float).T
        self.strata = strata_of(records)
        self._before = self._before_coverage = None
        if start is not None:
            found = [
                [start.logits(one.prompt, caption, one.tools) for caption in (one.caption, None)] for one in records
            ]
            self._before = np.asarray([[logits for logits, _ in both] for both in found])
            self._before_coverage = np.asarray([[coverage for _, coverage in both] for both in found])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "terms": None}  # other processes need only the numbers

    def fit(self, rows: Indices) -> Vocabulary:
        """Learn vocabularies and scales from the records with these indices, without labels."""
        bare, full = self._plain_rows(rows)
        plain = np.concatenate([bare, full[self._caption.present[rows]]]).astype(float)
        spread = plain.std(axis=0)
        return Vocabulary(
            self._prompt.fit(rows),
            self._grams.fit(rows, len(rows)),
            self._caption.fit(rows),
            plain.mean(axis=0).astype(np.float32),
            np.where(spread > 1e-6, spread, 1.0).astype(np.float32),
        )

    def design(self, vocabulary: Vocabulary, rows: Indices) -> Design:
        """Compute the features of the records with these indices, as `RequestEncoder.encode` does."""
        words, known = self._prompt.encode(rows, vocabulary.prompt)
        caption_words, caption_known = self._caption.encode(rows, vocabulary.caption)
        grams = _tfidf(self._grams.of(rows, vocabulary.grams), vocabulary.grams.idf)
        used = (caption_known[0] > 0) & (caption_known[0] >= MIN_CAPTION_COVERAGE * caption_known[1])
        given = np.cumsum(1 + used) - 1 - used
        owner = np.repeat(np.arange(len(rows)), 1 + used)
        captioned = np.zeros(len(owner), bool)
        captioned[given] = used
        without, full = self._plain_rows(rows)
        plain = np.where(captioned[:, None], full[owner], without[owner])
        deviations = ((plain - vocabulary.center) / vocabulary.scale).clip(-MAX_DEVIATION, MAX_DEVIATION)
        seen, counted = known[:, owner] + caption_known[:, owner] * captioned
        coverage = np.divide(seen, counted, out=np.zeros(len(owner)), where=counted > 0)
        before = None
        if self._before is not None and self._before_coverage is not None:
            bare = np.ones(len(owner), int)
            bare[given] = 0
            before = self._before[rows[owner], bare]
            coverage = np.maximum(coverage, self._before_coverage[rows[owner], bare])
        prompt, caption = (one[rows] for one in self._embedded)
        return Design(
            words=Rows(
                sparse.hstack([words, grams], format="csr"),
                caption_words[used],
                deviations * np.float32(DENSE_WEIGHT),
                given,
                captioned,
            ),
            embedding=Rows(prompt, caption[used], np.zeros((len(owner), 0), np.float32), given, captioned),
            owner=owner,
            given=given,
            captioned=captioned,
            coverage=coverage,
            right=self.right[rows][owner],
            tokens=self.tokens[rows][owner],
            weight=1.0 / np.bincount(owner)[owner],
            before=before,
        )

    def _plain_rows(self, rows: Indices) -> tuple[Floats, Floats]:
        """Plain numbers without and with captions."""
        full = self._plain[rows]
        bare = full.copy()
        bare[:, CAPTION_NUMBERS] = 0
        return bare, full
