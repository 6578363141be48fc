"""Features: tokens, equality with scikit-learn, coverage, captions; nothing heavy is loaded."""

from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from vlroute.decision.features import (
    DENSE,
    MAX_END_CHARS,
    MAX_GRAM_END_CHARS,
    GramEncoder,
    LexicalEncoder,
    RequestEncoder,
    grams_of,
    terms_of,
    tokenize,
)
from vlroute.types import ToolUse

TEXTS = [
    "Add the numbers 12 and 3.5, then add 12.",
    "add the NUMBERS shown",
    "图中有多少个圆形？",
    "数一数圆形。",
    "Count the circles 图中",
    "",
    "!!! ???",
    "Élan vital, naïve café; café",
]


def analyze(text: str) -> list[str]:
    return terms_of(tokenize(text))


def vector(encoder: LexicalEncoder, text: str) -> np.ndarray:
    found = np.zeros(encoder.width, np.float32)
    columns, values = encoder.encode(analyze(text))
    found[columns] = values
    return found


def fitted() -> LexicalEncoder:
    return LexicalEncoder.fit(map(analyze, TEXTS), min_texts=1)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Follow 4 arrows!", ["follow", "4", "arrows"]),
        ("3.14 and 1,000", ["3.14", "and", "1", "000"]),
        ("图中有2个圆", ["图", "中", "有", "2", "个", "圆"]),
        ("x图y", ["x", "图", "y"]),
        ("ABC", ["abc"]),
        ("don't_go", ["don", "t", "go"]),
        ("", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_pairs_follow_the_single_tokens() -> None:
    assert terms_of(["圆", "形", "2"]) == ["圆", "形", "2", "圆 形", "形 2"]


def test_of_a_long_text_both_ends_are_read() -> None:
    tokens = tokenize("first " + "x " * 3 * MAX_END_CHARS + " last")
    assert tokens[0] == "first"
    assert tokens[-1] == "last"
    assert len(tokens) <= MAX_END_CHARS + 2


@pytest.mark.parametrize("min_texts", [1, 2])
def test_equals_scikit_learn(min_texts: int) -> None:
    reference = TfidfVectorizer(analyzer=analyze, sublinear_tf=True, min_df=min_texts)
    expected = reference.fit_transform(TEXTS).toarray()
    encoder = LexicalEncoder.fit(map(analyze, TEXTS), min_texts=min_texts)
    assert list(encoder.terms) == list(reference.get_feature_names_out())
    np.testing.assert_allclose([vector(encoder, text) for text in TEXTS], expected, atol=1e-6)
    new = "add circles and add 圆形 unheard of"
    np.testing.assert_allclose(vector(encoder, new), reference.transform([new]).toarray()[0], atol=1e-6)


def test_the_most_frequent_terms_are_kept() -> None:
    encoder = LexicalEncoder.fit([["a", "b"], ["a", "c"], ["a", "b"], ["d"]], min_texts=1, max_terms=2)
    assert encoder.terms == ("a", "b")


def test_unknown_text_is_the_zero_vector() -> None:
    assert not vector(fitted(), "quantum flux").any()


@pytest.mark.parametrize(
    ("text", "known", "counted"),
    [("", 0, 0), ("quantum flux", 0, 2), ("add quantum", 1, 2), ("add 77 numbers", 2, 2), ("add 12 quantum", 2, 3)],
)
def test_known_words_are_counted_but_not_new_numbers(text: str, known: int, counted: int) -> None:
    assert fitted().count_known(tokenize(text)) == (known, counted)


@given(st.text(max_size=60))
def test_any_text_has_length_one_or_zero(text: str) -> None:
    length = float(np.linalg.norm(vector(fitted(), text)))
    assert length == pytest.approx(1, abs=1e-5) or length == 0


def test_damaged_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="idf has shape"):
        LexicalEncoder(["a", "b"], np.ones(3, np.float32))
    with pytest.raises(ValueError, match="twice"):
        LexicalEncoder(["a", "a"], np.ones(2, np.float32))


GRAM_TEXTS = [
    "Add the numbers 12 and 3.5.",
    "add the  NUMBERS shown",
    "图中有多少个圆形？",
    "数一数圆形。",
    "",
    "a",
    "Élan vital",
]


def normalized(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).lower())


def gram_vector(encoder: GramEncoder, text: str) -> np.ndarray:
    found = np.zeros(encoder.width, np.float32)
    columns, values = encoder.encode(text)
    found[columns] = values
    return found


def test_every_run_of_two_to_four() -> None:
    found = [int(gram).to_bytes(8, "little").decode("utf-16-le").rstrip("\0") for gram in grams_of("Ab\n 图c")]
    assert found == ["ab", "b ", " 图", "图c", "ab ", "b 图", " 图c", "ab 图", "b 图c"]


@pytest.mark.parametrize("chunk", [2, 2000])
def test_it_is_tfidf_over_characters(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlroute.decision.features.FIT_CHUNK", chunk)
    ours = GramEncoder.fit(GRAM_TEXTS, min_texts=1)
    theirs = TfidfVectorizer(analyzer="char", preprocessor=normalized, ngram_range=(2, 4), sublinear_tf=True)
    matrix = theirs.fit_transform(GRAM_TEXTS).toarray()
    spelt = [int(gram).to_bytes(8, "little").decode("utf-16-le").rstrip("\0") for gram in ours.grams]
    order = [theirs.vocabulary_[gram] for gram in spelt]
    assert len(order) == matrix.shape[1]
    for text, row in zip(GRAM_TEXTS, matrix, strict=True):
        np.testing.assert_allclose(gram_vector(ours, text), row[order], atol=1e-6)


def test_rare_ones_go_and_the_most_frequent_stay() -> None:
    assert GramEncoder.fit(["abcd", "abcd", "xyz"], min_texts=2).width == 6
    assert GramEncoder.fit(["abcd", "abcd", "ab"], min_texts=1, max_grams=1).grams.tolist() == grams_of("ab").tolist()
    assert GramEncoder.fit([]).encode("text")[0].tolist() == []


def test_n_grams_are_read_from_both_ends_of_a_long_text() -> None:
    encoder = GramEncoder.fit(["start", "end!"], min_texts=1)
    assert len(encoder.encode("start" + " " * 5 + "x" * 10**6 + "end!")[0]) == encoder.width
    assert len(grams_of("x" * 10**6)) < 3 * (2 * MAX_GRAM_END_CHARS + 1)


@given(st.text())
def test_n_grams_of_any_text_have_length_one_or_zero(text: str) -> None:
    found = gram_vector(GramEncoder.fit([*GRAM_TEXTS, text], min_texts=1), text)
    assert np.isfinite(found).all()
    assert float(found @ found) == pytest.approx(float(len(grams_of(text)) > 0), abs=1e-5)


def test_a_vocabulary_out_of_order_is_refused() -> None:
    with pytest.raises(ValueError, match="ascending"):
        GramEncoder(np.asarray([2, 1], np.uint64), np.ones(2, np.float32))


REQUESTS: list[tuple[str, str | None, ToolUse]] = [
    ("Add the numbers.", "three numbers", ""), ("Read it.", "a sign", "offered")
] * 6  # fmt: skip


def dense(encoder: RequestEncoder, prompt: str, caption: str | None, tools: ToolUse = "") -> np.ndarray:
    features = encoder.encode(prompt, caption, tools)
    vector = np.zeros(encoder.width, np.float32)
    vector[features.columns] = features.values
    return vector


def test_prompt_and_caption_have_their_own_columns() -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    as_prompt, as_caption = dense(encoder, "numbers", None), dense(encoder, "", "numbers")
    words = slice(0, encoder.width - len(DENSE))
    assert as_prompt[words].any()
    assert as_caption[words].any()
    assert not (as_prompt[words] * as_caption[words]).any()


@pytest.mark.parametrize("caption", [None, "", "  \n", "eine ganz fremde Beschreibung"])
def test_no_caption_and_an_unintelligible_one_are_the_same(caption: str | None) -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    features = encoder.encode("Add the numbers.", caption)
    assert not features.captioned
    assert features.coverage == 1
    np.testing.assert_array_equal(dense(encoder, "Add the numbers.", caption), dense(encoder, "Add the numbers.", None))


def test_tools_change_only_their_own_columns() -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    without, offered, result = (dense(encoder, "Read it.", "a sign", use) for use in get_args(ToolUse))
    (offers,) = np.flatnonzero(without != offered)
    (results,) = np.flatnonzero(offered != result)
    assert (offers, results) == (encoder.width - 2, encoder.width - 1)
    assert offered[offers] > without[offers]
    assert result[results] > offered[results]


def test_columns_are_distinct_and_within_the_width() -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    columns = encoder.encode("Add the numbers 1 2 3", "three numbers three").columns
    assert len(set(columns.tolist())) == len(columns)
    assert columns.max() == encoder.width - 1
    assert encoder.encode("", None).values.shape == (len(DENSE),)


def test_decision_loads_no_training_or_model_library() -> None:
    code = (
        "import sys, vlroute.decision.classifier, vlroute.decision.policy, vlroute.decision.captions\n"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'joblib', 'scipy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
