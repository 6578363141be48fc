"""Fitting a classifier: selection of the base learner, calibration, determinism, what the artifact keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic_records import draw_records
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import InputError
from vlroute.learning.corpus import Corpus
from vlroute.learning.fit import by_condition, fit_classifier


def test_training_is_deterministic() -> None:
    _, records = draw_records(120)
    one, other = fit_classifier(records), fit_classifier(records)
    for name in ("weights", "bias", "calibration", "log_tokens"):
        np.testing.assert_array_equal(getattr(one.heads, name), getattr(other.heads, name))
    assert one.encoder.prompt.terms == other.encoder.prompt.terms


@pytest.mark.parametrize("learner", ["words", "embedding", "words + embedding"])
def test_the_saved_artifact_predicts_the_same(tmp_path: Path, learner: str) -> None:
    """It keeps the text encoder only if the heads use it."""
    _, records = draw_records(200)
    classifier = fit_classifier(records, text=load_text_encoder(STATIC), learner=learner)
    classifier.save(tmp_path)
    loaded = ComplexityClassifier.load(tmp_path)
    assert (loaded.encoder.text is not None) == (learner != "words")
    for record in records[:20]:
        ours, again = (c.predict(record.prompt, record.caption) for c in (classifier, loaded))
        assert again.p_instruct == pytest.approx(ours.p_instruct, abs=1e-3)
        assert again.p_thinking == pytest.approx(ours.p_thinking, abs=1e-3)
    spread = np.std([classifier.predict(r.prompt, r.caption).gain for r in records])
    assert spread > 0.01


def test_the_learners_are_compared_and_the_default_is_kept_on_few_records() -> None:
    _, records = draw_records(100)
    card = fit_classifier(records, text=load_text_encoder(STATIC)).card["model_selection"]
    assert [one["name"] for one in card] == ["words", "embedding", "words + embedding"]
    assert [one["name"] for one in card if one["chosen"]] == ["words + embedding"]


def test_only_one_learner_is_considered_if_named() -> None:
    _, records = draw_records(100)
    classifier = fit_classifier(records, text=load_text_encoder(STATIC), learner="embedding")
    assert [one["name"] for one in classifier.card["model_selection"]] == ["embedding"]
    assert not classifier.heads.weights[:, :2].any()
    with pytest.raises(InputError, match="no learner 'trees'"):
        fit_classifier(records, learner="trees")


def test_each_condition_gets_its_own_calibration() -> None:
    """Raw logits that are right with captions and twice too bold without: the slopes must be 1 and 1/2."""
    _, records = draw_records(8000)
    rng = np.random.default_rng(0)
    corpus, rows = Corpus(records), np.arange(len(records))
    design = corpus.design(corpus.fit(rows), rows)
    truth = rng.choice([-2.0, 0.5, 2.0], len(records))
    right = rng.random(len(records)) < 1 / (1 + np.exp(-truth))
    bold = np.where(design.captioned, 1, 2) * truth[design.owner]
    design = dataclasses.replace(design, right=np.column_stack([right, right])[design.owner].astype(float))
    without, with_caption = by_condition(design, np.column_stack([bold, bold]))[0]
    assert with_caption[0] == pytest.approx(1, abs=0.1)
    assert without[0] == pytest.approx(with_caption[0] / 2, abs=0.01)
