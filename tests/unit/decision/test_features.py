"""Text to vector: what counts as a token, equality with scikit-learn, what is known, nothing heavy loaded."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from vlroute.decision.features import DENSE, MAX_END_CHARS, LexicalEncoder, RequestEncoder, terms_of, tokenise

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


def analyse(text: str) -> list[str]:
    return terms_of(tokenise(text))


def fitted() -> LexicalEncoder:
    return LexicalEncoder.fit(map(analyse, TEXTS), min_texts=1)


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
    assert tokenise(text) == tokens


def test_pairs_follow_the_single_tokens() -> None:
    assert terms_of(["圆", "形", "2"]) == ["圆", "形", "2", "圆 形", "形 2"]


def test_of_a_long_text_both_ends_are_read() -> None:
    tokens = tokenise("first " + "x " * 3 * MAX_END_CHARS + " last")
    assert tokens[0] == "first"
    assert tokens[-1] == "last"
    assert len(tokens) <= MAX_END_CHARS + 2


@pytest.mark.parametrize("min_texts", [1, 2])
def test_equals_scikit_learn(min_texts: int) -> None:
    reference = TfidfVectorizer(analyzer=analyse, sublinear_tf=True, min_df=min_texts)
    expected = reference.fit_transform(TEXTS).toarray()
    encoder = LexicalEncoder.fit(map(analyse, TEXTS), min_texts=min_texts)
    assert list(encoder.terms) == list(reference.get_feature_names_out())
    np.testing.assert_allclose([encoder.encode(text) for text in TEXTS], expected, atol=1e-6)
    new = "add circles and add 圆形 unheard of"
    np.testing.assert_allclose(encoder.encode(new), reference.transform([new]).toarray()[0], atol=1e-6)


def test_the_most_frequent_terms_are_kept() -> None:
    encoder = LexicalEncoder.fit([["a", "b"], ["a", "c"], ["a", "b"], ["d"]], min_texts=1, max_terms=2)
    assert encoder.terms == ("a", "b")


def test_unknown_text_is_the_zero_vector_and_not_known() -> None:
    encoder = fitted()
    assert not encoder.encode("quantum flux").any()
    assert encoder.known_share("quantum flux") == 0
    assert encoder.known_share("") == 0


def test_known_share_counts_words_but_not_new_numbers() -> None:
    encoder = fitted()
    assert encoder.known_share("add quantum") == 0.5
    assert encoder.known_share("add 77 numbers") == 1
    assert encoder.known_share("add 12 quantum") == pytest.approx(2 / 3)


@given(st.text(max_size=60))
def test_any_text_has_length_one_or_zero(text: str) -> None:
    length = float(np.linalg.norm(fitted().encode(text)))
    assert length == pytest.approx(1, abs=1e-5) or length == 0


def test_damaged_vocabularies_are_refused() -> None:
    with pytest.raises(ValueError, match="idf has shape"):
        LexicalEncoder(["a", "b"], np.ones(3, np.float32))
    with pytest.raises(ValueError, match="twice"):
        LexicalEncoder(["a", "a"], np.ones(2, np.float32))


REQUESTS: list[tuple[str, str | None]] = [("Add the numbers.", "three numbers"), ("Read it.", "a sign")] * 6


def dense(encoder: RequestEncoder, prompt: str, caption: str | None) -> np.ndarray:
    features = encoder.encode(prompt, caption)
    vector = np.zeros(encoder.width, np.float32)
    vector[features.columns] = features.values
    return vector


def test_prompt_and_caption_have_their_own_columns_and_crosses_join_them() -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    as_prompt, as_caption = dense(encoder, "numbers", None), dense(encoder, "", "numbers")
    words = slice(0, encoder.crossed_columns.start)
    assert as_prompt[words].any()
    assert as_caption[words].any()
    assert not (as_prompt[words] * as_caption[words]).any()
    assert "add|three" in encoder.crossed.terms
    assert dense(encoder, "Add the numbers.", "three numbers")[encoder.crossed_columns].any()
    assert not dense(encoder, "Add the numbers.", None)[encoder.crossed_columns].any()


@pytest.mark.parametrize("caption", [None, "", "  \n", "eine ganz fremde Beschreibung"])
def test_no_caption_and_an_unintelligible_one_are_the_same(caption: str | None) -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    features = encoder.encode("Add the numbers.", caption)
    assert not features.captioned
    assert features.known == 1
    np.testing.assert_array_equal(dense(encoder, "Add the numbers.", caption), dense(encoder, "Add the numbers.", None))


def test_columns_are_distinct_and_within_the_width() -> None:
    encoder = RequestEncoder.fit(REQUESTS)
    columns = encoder.encode("Add the numbers 1 2 3", "three numbers three").columns
    assert len(set(columns.tolist())) == len(columns)
    assert columns.max() == encoder.width - 1
    assert encoder.encode("", None).values.shape == (len(DENSE),)


def test_decision_loads_no_training_or_model_library() -> None:
    code = (
        "import sys, vlroute.decision.classifier, vlroute.decision.policy, vlroute.decision.captions\n"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'joblib', 'scipy', 'PIL') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
