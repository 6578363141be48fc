"""A request as one sparse vector: prompt words | caption words | crossed words | a few plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.decision.encoder import Columns, Floats, LexicalEncoder, terms_of, tokenise

#: Meaning of the plain numbers, in column order.
DENSE = (
    "ln(1 + characters of the prompt)",
    "ln(1 + tokens of the prompt)",
    "ln(1 + numbers in the prompt)",
    "ln(1 + lines of the prompt)",
    "share of characters beyond Latin in the prompt",
    "has a caption",
    "ln(1 + tokens of the caption)",
)
#: Plain numbers are cut off this many standard deviations from the training mean.
MAX_DEVIATION = 3.0
#: Only this many first distinct tokens of either text are crossed, so that a long caption stays cheap.
MAX_CROSSED = 24


@dataclass(frozen=True, slots=True)
class Features:
    """Non-zero `columns` (int64 `[k]`, distinct), their `values` (float32 `[k]`), share of tokens `known`."""

    columns: Columns
    values: Floats
    known: float


class RequestEncoder:
    """Prompt and caption encoded apart and joined, with crosses: "add"|"three" tells what neither does alone.

    Crosses let linear heads learn that a caption matters for one kind of prompt and not for another
    (docs/decision.md). A caption of None, "" or blanks is the condition "no caption". If training saw no
    caption at all, captions are ignored: nothing is known about them.
    """

    def __init__(
        self,
        prompt: LexicalEncoder,
        caption: LexicalEncoder,
        crossed: LexicalEncoder,
        centre: Floats,
        scale: Floats,
    ) -> None:
        """`centre`, `scale`: float32 `[len(DENSE)]`, mean and (positive) deviation of the plain numbers."""
        if centre.shape != (len(DENSE),) or scale.shape != (len(DENSE),) or not bool((scale > 0).all()):
            raise ValueError(f"centre and scale must have shape [{len(DENSE)}] and scale must be positive")
        self.prompt, self.caption, self.crossed = prompt, caption, crossed
        self.centre, self.scale = centre, scale
        widths = (prompt.width, caption.width, crossed.width, len(DENSE))
        self._offsets = [sum(widths[:i]) for i in range(len(widths))]
        self.width = sum(widths)
        self._dense_columns = np.arange(self.width - len(DENSE), self.width, dtype=np.int64)

    @classmethod
    def fit(cls, requests: Sequence[tuple[str, str | None]]) -> RequestEncoder:
        """Learn vocabularies and scales from (prompt, caption) pairs; no labels are involved."""
        tokens = [(tokenise(prompt), tokenise(caption or "")) for prompt, caption in requests]
        captioned = [(p, c) for p, c in tokens if c]
        plain = np.asarray(
            [_plain_numbers(request[0], p, c) for request, both in zip(requests, tokens, strict=True)
             for p, c in {(tuple(both[0]), tuple(both[1])), (tuple(both[0]), ())}],
            dtype=np.float64,
        )  # fmt: skip
        spread = plain.std(axis=0)
        return cls(
            LexicalEncoder.fit(terms_of(p) for p, _ in tokens),
            LexicalEncoder.fit(terms_of(c) for _, c in captioned),
            LexicalEncoder.fit(
                (_cross(p, c) for p, c in captioned),
                min_texts=max(5, len(captioned) // 200),
                max_terms=10_000,
            ),
            plain.mean(axis=0).astype(np.float32),
            np.where(spread > 1e-6, spread, 1.0).astype(np.float32),
        )

    def sees_caption(self, caption: str | None) -> bool:
        """Whether this caption counts as one: not blank, and captions were part of training."""
        return bool(self.caption.width and caption and caption.strip())

    def encode(self, prompt: str, caption: str | None = None) -> Features:
        """The features of one request, `width` columns wide."""
        ours = tokenise(prompt)
        theirs = tokenise(caption) if caption and self.sees_caption(caption) else []
        blocks = [self.prompt.encode_terms(terms_of(ours))]
        known, counted = self.prompt.count_known(ours)
        if theirs:
            blocks.append(self.caption.encode_terms(terms_of(theirs)))
            blocks.append(self.crossed.encode_terms(_cross(ours, theirs)))
            more_known, more_counted = self.caption.count_known(theirs)
            known, counted = known + more_known, counted + more_counted
        plain = (np.asarray(_plain_numbers(prompt, ours, theirs), np.float32) - self.centre) / self.scale
        columns = [part + offset for (part, _), offset in zip(blocks, self._offsets, strict=False)]
        values = [part for _, part in blocks]
        return Features(
            np.concatenate([*columns, self._dense_columns]),
            np.concatenate([*values, plain.clip(-MAX_DEVIATION, MAX_DEVIATION)]),
            known / counted if counted else 0.0,
        )


def _cross(prompt: Sequence[str], caption: Sequence[str]) -> list[str]:
    ours, theirs = (list(dict.fromkeys(tokens))[:MAX_CROSSED] for tokens in (prompt, caption))
    return [f"{a}|{b}" for a in ours for b in theirs]


def _plain_numbers(prompt: str, tokens: Sequence[str], caption: Sequence[str]) -> list[float]:
    numbers = sum(token[0].isdigit() for token in tokens)
    return [
        math.log1p(len(prompt)),
        math.log1p(len(tokens)),
        math.log1p(numbers),
        math.log1p(prompt.count("\n") + 1),
        _share(ord(char) > 0x24F for char in prompt[:1000]),
        float(bool(caption)),
        math.log1p(len(caption)),
    ]


def _share(flags: Iterable[bool]) -> float:
    seen = list(flags)
    return sum(seen) / len(seen) if seen else 0.0
