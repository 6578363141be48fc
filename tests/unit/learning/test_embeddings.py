"""Embeddings of records: each text once, and cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.synthetic_records import draw_records
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.learning.embeddings import embed_texts


def test_every_text_is_embedded_once_and_cached(tmp_path: Path) -> None:
    _, records = draw_records(60)
    encoder = load_text_encoder(STATIC)
    asked: list[str] = []

    class Counting:
        name, fingerprint, width, revision = encoder.name, encoder.fingerprint, encoder.width, encoder.revision

        def encode(self, texts: list[str]) -> np.ndarray:
            asked.extend(texts)
            return encoder.encode(texts)

    first = embed_texts(records, Counting(), cache=tmp_path)
    assert len(asked) == len(set(asked)) == len(first.vectors) - 1
    again = embed_texts(records, Counting(), cache=tmp_path)
    assert len(asked) == len(first.vectors) - 1
    np.testing.assert_array_equal(again.encode([records[0].prompt]), encoder.encode([records[0].prompt]))
