"""The corpus gives the same features as the encoder that decides on single requests."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from tests.synthetic_records import draw_records
from vlroute.decision.features import RequestEncoder
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.learning.corpus import Corpus
from vlroute.learning.fit import fit_heads, predictions
from vlroute.records import Record


def mixed_records() -> list[Record]:
    """With and without captions, tools, numbers, unknown words and repeated texts."""
    _, records = draw_records(240)
    changed = []
    for index, record in enumerate(records):
        if index % 5 == 0:
            record = dataclasses.replace(record, caption=None, tools="offered")
        if index % 7 == 0:
            record = dataclasses.replace(record, prompt=f"{record.prompt} {index} add add 3.5 Straße", tools="result")
        if index % 11 == 0:
            record = dataclasses.replace(record, caption=f"unseen{chr(97 + index % 26)} words here {index}")
        changed.append(record)
    return changed


def requests_of(records: list[Record]) -> list[tuple[str, str | None, str]]:
    return [(record.prompt, record.caption, record.tools) for record in records]


def test_vocabulary_and_scales_equal_those_of_the_encoder() -> None:
    records = mixed_records()
    corpus, rows = Corpus(records), np.arange(0, 240, 2)
    found = corpus.terms.encoder(corpus.fit(rows), None)
    expected = RequestEncoder.fit(requests_of([records[i] for i in rows]))
    assert found.prompt.terms == expected.prompt.terms
    assert found.caption.terms == expected.caption.terms
    np.testing.assert_array_equal(found.grams.grams, expected.grams.grams)
    for part in ("prompt", "caption", "grams"):
        np.testing.assert_allclose(getattr(found, part).idf, getattr(expected, part).idf, rtol=1e-6)
    np.testing.assert_allclose(found.center, expected.center, rtol=1e-5)
    np.testing.assert_allclose(found.scale, expected.scale, rtol=1e-5)


@pytest.mark.parametrize("left_out", [False, True])
def test_rows_equal_the_features_of_the_encoder(left_out: bool) -> None:
    records, text = mixed_records(), load_text_encoder(STATIC)
    corpus, rows = Corpus(records, text), np.arange(0, 240, 2)
    encoder = RequestEncoder.fit(requests_of([records[i] for i in rows]), text)
    asked = rows + left_out
    design = corpus.design(corpus.fit(rows), asked)
    rng = np.random.default_rng(0)
    words = rng.normal(size=(encoder.width, 2)).astype(np.float32)
    embedded = rng.normal(size=(encoder.embedding_width, 2)).astype(np.float32)
    expected, captioned, coverage = [], [], []
    for prompt, caption, tools in requests_of([records[i] for i in asked]):
        both = [encoder.encode(prompt, caption, tools)]
        if both[0].captioned:
            both.append(encoder.encode(prompt, None, tools))
        expected += [[f.values @ words[f.columns], f.embedding @ embedded] for f in both]
        captioned += [f.captioned for f in both]
        coverage += [f.coverage for f in both]
    assert design.captioned.tolist() == captioned
    assert {True, False} == set(captioned)
    np.testing.assert_allclose(design.coverage, coverage)
    found = np.stack([design.words @ words, design.embedding @ embedded], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_adjoint_is_the_transposed_matrix() -> None:
    corpus = Corpus(mixed_records(), load_text_encoder(STATIC))
    design = corpus.design(corpus.fit(np.arange(100)), np.arange(100, 200))
    for matrix in (design.words, design.embedding):
        whole = matrix @ np.eye(matrix.shape[1], dtype=np.float32)
        values = np.random.default_rng(0).normal(size=(matrix.shape[0], 3)).astype(np.float32)
        np.testing.assert_allclose(matrix.adjoint(values), whole.T @ values, atol=1e-4)


def test_predictions_of_rows_equal_those_of_single_requests() -> None:
    records, text = mixed_records(), load_text_encoder(STATIC)
    corpus = Corpus(records, text)
    fitted = fit_heads(corpus, np.arange(160), (40, 90))
    classifier = fitted.classifier(corpus, records, text)
    design = pickle.loads(pickle.dumps(corpus)).design(fitted.vocabulary, np.arange(160, 240))  # as in a worker
    rows = predictions(fitted, design)
    for position, record in enumerate(records[160:]):
        single = classifier.predict(record.prompt, record.caption, record.tools)
        found = rows[design.given[position]]
        for name in ("p_instruct", "p_thinking", "coverage"):
            assert getattr(found, name) == pytest.approx(getattr(single, name), abs=1e-5)
        assert found.tokens_thinking == pytest.approx(single.tokens_thinking, rel=1e-4)
