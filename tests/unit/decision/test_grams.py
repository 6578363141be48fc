"""Letters to vector: the same as scikit-learn's, in any language, at no great length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

import vlroute.decision.features as grams
from vlroute.decision.features import GramEncoder, grams_of, plain

TEXTS = [
    "Add the numbers 12 and 3.5.",
    "add the  NUMBERS shown",
    "图中有多少个圆形？",
    "数一数圆形。",
    "",
    "a",
    "Élan vital",
]


def dense(encoder: GramEncoder, text: str) -> np.ndarray:
    vector = np.zeros(encoder.width, np.float32)
    columns, values = encoder.encode(text)
    vector[columns] = values
    return vector


def test_every_run_of_two_to_four() -> None:
    found = [int(gram).to_bytes(8, "little").decode("utf-16-le").rstrip("\0") for gram in grams_of("Ab\n 图c")]
    assert found == ["ab", "b ", " 图", "图c", "ab ", "b 图", " 图c", "ab 图", "b 图c"]


@pytest.mark.parametrize("chunk", [2, 2000])
def test_it_is_tfidf_over_characters(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grams, "FIT_CHUNK", chunk)
    ours = GramEncoder.fit(TEXTS, min_texts=1)
    theirs = TfidfVectorizer(analyzer="char", preprocessor=plain, ngram_range=(2, 4), sublinear_tf=True)
    matrix = theirs.fit_transform(TEXTS).toarray()
    spelt = [int(gram).to_bytes(8, "little").decode("utf-16-le").rstrip("\0") for gram in ours.grams]
    order = [theirs.vocabulary_[gram] for gram in spelt]
    assert len(order) == matrix.shape[1]
    for text, row in zip(TEXTS, matrix, strict=True):
        np.testing.assert_allclose(dense(ours, text), row[order], atol=1e-6)


def test_rare_ones_go_and_the_most_frequent_stay() -> None:
    assert GramEncoder.fit(["abcd", "abcd", "xyz"], min_texts=2).width == 6
    assert GramEncoder.fit(["abcd", "abcd", "ab"], min_texts=1, max_grams=1).grams.tolist() == grams_of("ab").tolist()
    assert GramEncoder.fit([]).encode("text")[0].tolist() == []


def test_of_a_long_text_both_ends_are_read() -> None:
    encoder = GramEncoder.fit(["start", "end!"], min_texts=1)
    assert len(encoder.encode("start" + " " * 5 + "x" * 10**6 + "end!")[0]) == encoder.width
    assert len(grams_of("x" * 10**6)) < 3 * (2 * grams.MAX_GRAM_END_CHARS + 1)


@given(st.text())
def test_any_text_gives_a_unit_vector_or_nothing(text: str) -> None:
    vector = dense(GramEncoder.fit([*TEXTS, text], min_texts=1), text)
    assert np.isfinite(vector).all()
    assert float(vector @ vector) == pytest.approx(float(len(grams_of(text)) > 0), abs=1e-5)


def test_a_vocabulary_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        GramEncoder(np.asarray([2, 1], np.uint64), np.ones(2, np.float32))
