"""Embeddings of the texts of the records, computed once for all folds and seeds."""

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
class EmbeddedTexts:
    """A `TextEncoder` that looks up the embeddings of known texts; it can be sent to other processes.

    Attributes:
        name: As of the text encoder.
        fingerprint: As of the text encoder.
        width: As of the text encoder.
        vectors: Embeddings by text.
        revision: As of the text encoder.
    """

    name: str
    fingerprint: str
    width: int
    vectors: Mapping[str, Floats]
    revision: str | None = None

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return embeddings, float32 `[n, width]`, zeros for an empty text; KeyError for an unknown text."""
        return np.stack([self.vectors[text] for text in texts])


def embed_texts(
    records: Iterable[Record], encoder: TextEncoder, *, cache: str | Path | None = None, console: Console | None = None
) -> EmbeddedTexts:
    """Embed every distinct prompt and caption.

    Args:
        records: The records.
        encoder: The text encoder.
        cache: A folder that stores the embeddings for the next run. It is read with joblib's `Memory`, which loads
            pickles: use only a folder of your own. None: nothing is stored.
        console: Where the progress is shown.

    Returns:
        The embeddings.
    """
    texts = list(dict.fromkeys(text for record in records for text in (record.prompt, record.caption or "") if text))
    embed = joblib.Memory(cache, verbose=0).cache(_embed, ignore=["encoder"])
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    vectors: dict[str, Floats] = {"": np.zeros(encoder.width, np.float32)}
    for chunk in track(chunks, "embedding texts", console=console, transient=True):
        vectors.update(zip(chunk, embed(encoder, encoder.fingerprint, chunk), strict=True))
    return EmbeddedTexts(encoder.name, encoder.fingerprint, encoder.width, vectors, encoder.revision)


def _embed(encoder: TextEncoder, fingerprint: str, texts: list[str]) -> Floats:
    return encoder.encode(texts)
