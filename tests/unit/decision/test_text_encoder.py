"""The shipped static encoder, and how any encoder is found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import ArtifactError
from vlroute.files import shipped

PARALLEL = Path(__file__).parents[2] / "parallel_prompts.jsonl"


def test_nothing_known_is_zero_and_all_else_has_length_one() -> None:
    vectors = load_text_encoder(STATIC).encode(["", "   ", "word"])
    assert not vectors[:2].any()
    assert np.linalg.norm(vectors[2]) == pytest.approx(1, abs=1e-6)


def test_the_same_meaning_is_nearer_than_another_across_languages() -> None:
    pairs = [json.loads(line) for line in PARALLEL.read_text("utf-8").splitlines()]
    encoder = load_text_encoder(STATIC)
    english, chinese = (encoder.encode([pair[language] for pair in pairs]) for language in ("en", "zh"))
    cosine = english @ chinese.T
    same, other = np.diag(cosine), (cosine.sum(axis=1) - np.diag(cosine)) / (len(pairs) - 1)
    assert (same > other).mean() > 0.9


def test_half_a_surrogate_pair_is_read_as_a_question_mark() -> None:
    encoder = load_text_encoder(STATIC)
    np.testing.assert_array_equal(encoder.encode(["how \ud800 many"]), encoder.encode(["how ? many"]))


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in shipped("encoder").rglob("*") if path.is_file()) <= 12 * 2**20


def test_reading_it_imports_no_torch() -> None:
    code = (
        "import sys\nfrom vlroute.decision.text_encoder import load_text_encoder\n"
        "load_text_encoder('static').encode(['a'])\n"
        "print({'torch', 'transformers', 'sentence_transformers', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("number", [float("nan"), 3e38])
def test_a_table_with_unusable_numbers_is_refused(tmp_path: Path, number: float) -> None:
    shutil.copytree(shipped("encoder"), tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("*/model.safetensors")
    table = load_file(file)["embedding.weight"].astype(np.float32)
    table[7, 3] = number
    save_file({"embedding.weight": table}, file)
    with pytest.raises(ArtifactError, match="not finite or beyond"):
        load_text_encoder(str(tmp_path))
    save_file({"embedding.weight": table[:7]}, file)
    with pytest.raises(ArtifactError, match="7 vectors for 40001 tokens"):
        load_text_encoder(str(tmp_path))


def test_a_tokenizer_that_fails_for_unknown_words_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]')
    Tokenizer(WordLevel({"word": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    save_file({"embedding.weight": np.ones((1, 4), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ArtifactError, match="UNK"):
        load_text_encoder(str(tmp_path))


@pytest.mark.parametrize("name", ["modules.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_with_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArtifactError, match=f"'{name}', which is not a regular file"):
        load_text_encoder(str(tmp_path))


def test_a_damaged_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.StaticEmbedding"}]')
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_text_encoder(str(tmp_path))
