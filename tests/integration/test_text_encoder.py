"""Text encoders compared with model2vec and sentence-transformers, which load torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import ArtifactError
from vlroute.files import shipped

TEXTS = ["How many red circles are there?", "图中有几个红色的圆？", "x² + ½ = 3", "Ⅳ ＡＢＣ", "a " * 2000]


def test_the_same_vectors_as_model2vec() -> None:
    from model2vec import StaticModel

    ours = load_text_encoder(STATIC).encode(TEXTS)
    theirs = StaticModel.from_pretrained(shipped("encoder"), normalize=True, max_length=None).encode(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)  # theirs is summed in float16


def test_the_same_vectors_as_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    encoder = load_text_encoder(STATIC)
    model = SentenceTransformer(str(shipped("encoder")), device="cpu").float()
    np.testing.assert_allclose(encoder.encode(TEXTS), model.encode(TEXTS), atol=1e-5)


def test_layers_after_the_table_are_not_skipped(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense

    static = SentenceTransformer(str(shipped("encoder")), device="cpu").float()
    narrowed = SentenceTransformer(modules=[static[0], Dense(128, 16)], device="cpu")
    narrowed.save(str(tmp_path))
    ours = load_text_encoder(str(tmp_path))
    assert ours.width == 16
    np.testing.assert_allclose(ours.encode(TEXTS), narrowed.encode(TEXTS, normalize_embeddings=True), atol=1e-5)
    assert not ours.encode(["", "  "]).any()
    assert ours.encode([]).shape == (0, 16)


def test_a_folder_saved_by_model2vec_or_sentence_transformers_is_read_alike(tmp_path: Path) -> None:
    from model2vec import StaticModel
    from sentence_transformers import SentenceTransformer

    StaticModel.from_pretrained(shipped("encoder")).save_pretrained(tmp_path / "model2vec")
    SentenceTransformer(str(shipped("encoder")), device="cpu").save(str(tmp_path / "sentence"))
    shipped_vectors = load_text_encoder(STATIC).encode(TEXTS)
    for kind in ("model2vec", "sentence"):
        saved = load_text_encoder(str(tmp_path / kind))
        np.testing.assert_allclose(saved.encode(TEXTS), shipped_vectors, atol=1e-6)


def test_an_unknown_name_says_what_to_do() -> None:
    with pytest.raises(ArtifactError, match=r"(?s)cannot be loaded.*'static'"):
        load_text_encoder("no/such/folder/anywhere")  # no hub id either: nothing is looked up


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "strange.Strange"}]')
    (tmp_path / "config_sentence_transformers.json").write_text("{}")
    (tmp_path / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Strange: pass\n")
    with pytest.raises(ArtifactError, match=r"'strange\.Strange'"):
        load_text_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_versions_that_run_code_of_a_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setattr("sentence_transformers.__version__", "5.7.0")
    with pytest.raises(ArtifactError, match=r"sentence-transformers 5\.7\.0 may run code of it: install version 6\.2"):
        load_text_encoder(str(tmp_path))
