"""A request as numbers: prompt words | its letters | caption words | crossed words | plain numbers, and embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.decision.encoder import Columns, Floats, LexicalEncoder, terms_of, tokenise
from vlroute.decision.grams import GramEncoder
from vlroute.decision.text_encoder import TextEncoder

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
