"""Hashed vocabularies: the same predictions, and no words in the artifact."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts import weights_of
from tests.conftest import ROOT
from vlroute import ComplexityClassifier
from vlroute.decision.artifact import CARD_FILE, read_artifact
from vlroute.decision.classifier import Start
from vlroute.decision.features import GramEncoder, LexicalEncoder, grams_of
from vlroute.decision.hashed_terms import hash_grams, hash_terms
from vlroute.errors import ArtifactError
from vlroute.model_card import vocabulary_of

ROUTERS = [ROOT / "models" / name / "router" for name in ("pocket", "qwen3-vl-2b")]
SALT = bytes(range(8))
_PARTS = ("prompt", "caption")


@pytest.fixture(scope="module", params=ROUTERS, ids=lambda folder: folder.parent.name)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ComplexityClassifier, ComplexityClassifier, Path]:
    """A shipped classifier, its copy with a hashed vocabulary, saved and loaded, and the folder of the copy."""
    folder = tmp_path_factory.mktemp("hashed")
    plain = ComplexityClassifier.load(request.param)
    plain.with_hashed_vocabulary().save(folder)
    return plain, ComplexityClassifier.load(folder), folder


def test_predictions_are_equal_up_to_rounding(pair: tuple[ComplexityClassifier, ComplexityClassifier, Path]) -> None:
    plain, hashed, _ = pair
    rng = random.Random(0)
    words = [term for term in plain.encoder.prompt.terms if " " not in term]
    seen = [term for term in plain.encoder.caption.terms if " " not in term]
    others = ["zorblax", "ünïcode", "数学", "7.25", "\ud800"]
    for length in [0, 1, 2, 5, 30, 200] * 10:
        prompt = " ".join(rng.choices([*words, *others], k=length))
        caption = rng.choice([None, " ".join(rng.choices([*seen, *others[:1]], k=4))]) if seen else None
        ours, theirs = plain.predict(prompt, caption), hashed.predict(prompt, caption)
        assert theirs.coverage == ours.coverage
        assert theirs.p_instruct == pytest.approx(ours.p_instruct, abs=1e-6)
        assert theirs.p_thinking == pytest.approx(ours.p_thinking, abs=1e-6)
        assert theirs.tokens_thinking == pytest.approx(ours.tokens_thinking, rel=1e-5)


def test_the_artifact_contains_no_words_and_not_their_order(
    pair: tuple[ComplexityClassifier, ComplexityClassifier, Path],
) -> None:
    plain, hashed, folder = pair
    card, arrays = read_artifact(folder)
    assert "vocabulary" not in card  # earlier versions, which would take hashes for words, refuse the artifact
    assert all(re.fullmatch("[0-9a-f]{16}", key) for part in _PARTS for key in card["hashed_vocabulary"][part])
    assert {*card} - {"hashed_vocabulary"} == {*plain.card, "latency", "text_encoder", "stages", "dense"}
    assert not np.isin(arrays["grams"], plain.encoder.grams.grams).any()
    keys = hash_terms(plain.encoder.prompt.terms, hashed.encoder.salt or b"")
    place = {key: column for column, key in enumerate(keys)}
    former = [place[term] for term in hashed.encoder.prompt.terms]
    assert abs(np.corrcoef(former, np.arange(len(former)))[0, 1]) < 0.1


def test_the_copy_of_a_copy_is_the_copy(pair: tuple[ComplexityClassifier, ComplexityClassifier, Path]) -> None:
    plain, hashed, _ = pair
    assert hashed.with_hashed_vocabulary() is hashed
    again = plain.with_hashed_vocabulary()
    assert (again.fingerprint, again.encoder.prompt.terms) == (hashed.fingerprint, hashed.encoder.prompt.terms)


def test_hashes_depend_on_the_salt_and_are_one_way() -> None:
    terms = ["alpha", "beta", "alpha beta", "数"]
    assert hash_terms(terms, SALT) == hash_terms(terms, SALT) != hash_terms(terms, bytes(8))
    assert len(set(hash_terms(terms, SALT))) == len(terms)
    grams = np.unique(grams_of("the quick brown fox jumps over the lazy dog, 敏捷的棕色狐狸"))
    hashes = hash_grams(grams, SALT)
    assert len(np.unique(hashes)) == len(grams)
    assert not np.isin(hash_grams(grams, bytes(8)), hashes).any()
    flipped = hash_grams(grams ^ np.uint64(1), SALT) ^ hashes  # one bit of the input changes half of the output
    assert 28 < np.mean([int(one).bit_count() for one in flipped]) < 36


def test_encoders_of_empty_texts() -> None:
    words, _ = LexicalEncoder(["a", "b"], np.ones(2, np.float32)).hashed(SALT)
    assert words.encode([])[0].size == 0
    assert words.count_known(["a", "c", "7"]) == (1, 2)
    grams, order = GramEncoder(np.zeros(0, np.uint64), np.zeros(0, np.float32)).hashed(SALT)
    assert order.size == grams.encode("text")[0].size == 0


def test_the_router_from_which_a_training_started_is_hashed_as_well(tmp_path: Path) -> None:
    first, second = (ComplexityClassifier.load(folder) for folder in ROUTERS)
    start = Start(second, np.asarray([0.5, 0.7], np.float32), "qwen3-vl-2b")
    plain = ComplexityClassifier(first.encoder, first.heads, first.latency, start=start)
    hashed = plain.with_hashed_vocabulary()
    hashed.save(tmp_path)
    assert '"vocabulary"' not in (tmp_path / CARD_FILE).read_text("utf-8")
    loaded = ComplexityClassifier.load(tmp_path)
    for prompt in ("Add the numbers.", "Solve the equation 3x = 7 and explain.", "数学"):
        ours, theirs = plain.predict(prompt, "two numbers"), loaded.predict(prompt, "two numbers")
        assert theirs.gain == pytest.approx(ours.gain, abs=1e-6)
        assert theirs.coverage == ours.coverage
    assert vocabulary_of(plain).prompt == first.encoder.prompt.width + second.encoder.prompt.width
    assert vocabulary_of(hashed).hashed


@pytest.mark.parametrize("salt", ["", "00", "zz" * 8, "00" * 9, 7, None])
def test_a_wrong_salt_is_refused(
    pair: tuple[ComplexityClassifier, ComplexityClassifier, Path], tmp_path: Path, salt: object
) -> None:
    *_, folder = pair
    card = json.loads((folder / CARD_FILE).read_text("utf-8"))
    card["hashed_vocabulary"]["salt"] = salt
    (tmp_path / CARD_FILE).write_text(json.dumps(card), "utf-8")
    (tmp_path / weights_of(folder).name).write_bytes(weights_of(folder).read_bytes())
    with pytest.raises(ArtifactError, match="do not fit"):
        ComplexityClassifier.load(tmp_path)
