"""Neighbours and trees: what numpy computes at run time is what training learnt; who wins, and what is kept of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.synthetic_records import draw_records
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.forest import Forest
from vlroute.decision.neighbours import Neighbours
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import ArtifactError, InputError
from vlroute.learning import base_learners as members
from vlroute.learning import model_selection as candidates
from vlroute.learning.embeddings import remember
from vlroute.learning.fit import fit_classifier
from vlroute.learning.folds import Design, folds_of


@pytest.fixture(scope="module")
def design() -> Design:
    _, records = draw_records(300)
    return Design(fit_classifier(records).encoder.with_text(load_text_encoder(STATIC)), records)


def test_trees_in_numpy_are_those_of_scikit_learn(design: Design) -> None:
    models = members._boosted(design, np.full(len(design.owner), True))
    forest = members._forest(models)
    ours = np.stack([forest.logits(x) for x in design.dense])
    theirs = np.column_stack([model.decision_function(design.dense) for model in models])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert ours.std(axis=0).min() > 0.1


def test_neighbours_by_hand() -> None:
    """Two keys at right angles: the near one counts e^8 times the far one, the prior two means of 1/2."""
    found = Neighbours(np.eye(2, dtype=np.float32), np.asarray([[1, 0], [0, 1]], np.float32))
    near = (1 + 2 * 0.5) / (1 + np.exp(-8) + 2)
    logits = found.logits(np.asarray([1, 0], np.float32))
    assert logits[0] == pytest.approx(np.log(near / (1 - near)), abs=1e-4)
    assert logits[1] == pytest.approx(-logits[0], abs=1e-3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not belong together"):
        Neighbours(np.eye(2, dtype=np.float32), np.zeros((3, 2), np.float32))
    nodes, zeros = np.zeros((2, 1, 1), np.int32), np.zeros((2, 1, 1), np.float32)
    with pytest.raises(ValueError, match="a node that is not there"):
        Forest(nodes, zeros, nodes + 1, nodes, zeros, np.zeros(2, np.float32), 1)


@pytest.mark.parametrize("winner", ["words", "embedding", "neighbours", "boosting", "stack"])
def test_whoever_wins_is_saved_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, winner: str) -> None:
    """The artifact predicts what the members said together, and keeps the encoder only where it is read."""
    _, records = draw_records(200)
    best = candidates._best

    def chosen(design: Design, given: dict, logits: dict, incumbent: str) -> tuple:
        name = winner if winner in given else incumbent
        return name, best(design, given, logits, incumbent)[1]

    monkeypatch.setattr(candidates, "_best", chosen)
    text = load_text_encoder(STATIC)
    classifier = fit_classifier(records, text=text)
    classifier.save(tmp_path)
    loaded = ComplexityClassifier.load(tmp_path)
    assert (loaded.encoder.text is not None) == (winner != "words")
    assert (loaded.heads.neighbours is not None) == (winner in ("neighbours", "stack"))
    assert (loaded.heads.forest is not None) == (winner in ("boosting", "stack"))
    for record in records[:20]:
        ours, again = (c.predict(record.prompt, record.caption) for c in (classifier, loaded))
        assert again.p_instruct == pytest.approx(ours.p_instruct, abs=1e-3)
        assert again.p_thinking == pytest.approx(ours.p_thinking, abs=1e-3)
    spread = np.std([classifier.predict(r.prompt, r.caption).gain for r in records])
    assert spread > 0.01


def test_only_one_candidate_may_be_asked_for() -> None:
    _, records = draw_records(100)
    classifier = fit_classifier(records, text=load_text_encoder(STATIC), only="embedding")
    assert [one["name"] for one in classifier.card["candidates"]] == ["embedding"]
    assert not classifier.heads.weights[:, :2].any()
    with pytest.raises(InputError, match="no candidate 'trees'; these records allow: words"):
        fit_classifier(records, only="trees")


def test_another_encoder_under_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, records = draw_records(60)
    classifier = fit_classifier(records, text=load_text_encoder(STATIC))
    if classifier.encoder.text is None:
        classifier.encoder = classifier.encoder.with_text(load_text_encoder(STATIC))
    classifier.save(tmp_path)
    monkeypatch.setattr("vlroute.decision.text_encoder._fingerprint", lambda folder: "0" * 64)
    from vlroute.decision import text_encoder

    text_encoder._load_static.cache_clear()
    with pytest.raises(ArtifactError, match="another text encoder 'static'"):
        ComplexityClassifier.load(tmp_path)
    text_encoder._load_static.cache_clear()


def test_every_text_is_embedded_once_and_cached(tmp_path: Path) -> None:
    _, records = draw_records(60)
    encoder = load_text_encoder(STATIC)
    asked: list[str] = []

    class Counting:
        name, fingerprint, width = encoder.name, encoder.fingerprint, encoder.width

        def encode(self, texts: list[str]) -> np.ndarray:
            asked.extend(texts)
            return encoder.encode(texts)

    first = remember(records, Counting(), cache=tmp_path)
    assert len(asked) == len(set(asked)) == len(first.vectors) - 1
    again = remember(records, Counting(), cache=tmp_path)
    assert len(asked) == len(first.vectors) - 1
    np.testing.assert_array_equal(again.encode([records[0].prompt]), encoder.encode([records[0].prompt]))


def test_inner_folds_are_honest(design: Design) -> None:
    """Neighbours must not see a record's own outcome: on labels drawn by chance they know nothing."""
    rng = np.random.default_rng(0)
    design.right = rng.integers(0, 2, (len(design.records), 2)).astype(float)[design.owner]
    fold = folds_of(design.records, 4, 0, together="record")[design.owner]
    unseen = members.neighbours(design, fold).unseen[design.given]
    right = design.right[design.given]
    assert abs(np.corrcoef(unseen[:, 0], right[:, 0])[0, 1]) < 0.2
