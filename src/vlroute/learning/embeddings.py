"""Each text of the records embedded once, however many folds and seeds learn from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from rich.console import Console
from rich.progress import track

from vlroute.decision.text_encoder import Floats, TextEncoder
from vlroute.records import Record

CHUNK = 512  # texts embedded and cached together


@dataclass(frozen=True, slots=True)
class Remembered:
    """A text encoder that looks up what it has embedded: cheap to hand to other processes. KeyError for other texts."""

    name: str
    fingerprint: str
    width: int
    vectors: Mapping[str, Floats]

    def encode(self, texts: Sequence[str]) -> Floats:
        """float32 `[n, width]`; zeros for an empty text."""
        return np.stack([self.vectors[text] for text in texts])


def remember(
    records: Iterable[Record], encoder: TextEncoder, *, cache: str | Path | None = None, console: Console | None = None
) -> Remembered:
    """Embed every distinct prompt and caption of `records`.

    `cache`: a folder that keeps the vectors for the next run (joblib's `Memory`, which reads pickles: only a folder of
    one's own). Without it nothing is written.
    """
    texts = list(dict.fromkeys(text for record in records for text in (record.prompt, record.caption or "") if text))
    memory = joblib.Memory(cache, verbose=0)
    embed = memory.cache(_embed, ignore=["encoder"])
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    vectors: dict[str, Floats] = {"": np.zeros(encoder.width, np.float32)}
    for chunk in track(chunks, "embedding texts", console=console, transient=True):
        vectors.update(zip(chunk, embed(encoder, encoder.fingerprint, chunk), strict=True))
    return Remembered(encoder.name, encoder.fingerprint, encoder.width, vectors)


def _embed(encoder: TextEncoder, fingerprint: str, texts: list[str]) -> Floats:
    return encoder.encode(texts)
