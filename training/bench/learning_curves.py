"""How well a router ranks that was trained on few records: `python -m training.bench.learning_curves FOLDER`

`FOLDER` holds the public sets as NAME.jsonl.gz. Of each set, `--draws` times so many records are drawn for training;
the rest is the test, without records whose text is in training. `--minilm` is the folder of all-MiniLM-L6-v2 or its
name on the hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from training.bench.stages import debiased_ece
from training.page import argument_parser, publish, step
from vlroute import Record, read_records
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.learning import area_over_random
from vlroute.learning.corpus import Corpus
from vlroute.learning.embeddings import EmbeddedTexts, embed_texts
from vlroute.learning.fit import fit_heads, predictions
from vlroute.learning.folds import group_of
from vlroute.learning.intervals import area_influence

BINS = 10
Values = NDArray[np.float64]
Indices = NDArray[np.int64]

SETS = ("gsm8k", "mmmu_pro", "mathvista", "math_v")
SIZES = (50, 100, 200, 400, 600)
ROUTER, BASELINES = "vlroute", ("TF-IDF heads", "MiniLM heads", "static heads")


def draw(records: Sequence[Record], size: int, seed: int) -> tuple[Indices, Indices]:
    """Training and test records; smaller draws of the same seed are parts of larger ones."""
    order = np.random.default_rng(seed).permutation(len(records))
    texts = {group_of(records[index]) for index in order[:size]}
    return order[:size], np.asarray([index for index in order[size:] if group_of(records[index]) not in texts])


def plain_heads(train: Any, test: Any, right: Values) -> Values:
    """Predicted gain of two logistic regressions with scikit-learn's defaults."""
    found = []
    for labels in right.T >= 0.5:
        if labels.all() or not labels.any():
            found.append(np.full(test.shape[0], float(labels[0])))
            continue
        found.append(LogisticRegression(max_iter=1000).fit(train, labels).predict_proba(test)[:, 1])
    return np.asarray(found[1] - found[0])


def squared_error(probabilities: Values, correct: Values) -> float:
    """Squared calibration error in bins of equal size, without the part that is chance (Kumar and others 2019)."""
    found = 0.0
    for rows in np.array_split(np.argsort(probabilities), BINS):
        observed = correct[rows].mean()
        chance = observed * (1 - observed) / (len(rows) - 1)
        found += len(rows) / len(correct) * ((probabilities[rows].mean() - observed) ** 2 - chance)
    return float(found)


def gains(
    records: Sequence[Record], corpus: Corpus, embedded: dict[str, Values], train: Indices, test: Indices
) -> tuple[dict[str, Values], list[list[float]]]:
    """Predicted gain of the test records by every router; ECE and `squared_error` of ours, each for both modes."""
    fitted = fit_heads(corpus, train, (40, 90))
    design = corpus.design(fitted.vocabulary, test)
    rows = predictions(fitted, design)
    p = np.asarray([(rows[at].p_instruct, rows[at].p_thinking) for at in design.given])
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    texts = [f"{record.prompt} {record.caption or ''}" for record in records]
    right = corpus.right[train]
    found = {
        ROUTER: p[:, 1] - p[:, 0],
        "TF-IDF heads": plain_heads(
            words.fit_transform([texts[i] for i in train]), words.transform([texts[i] for i in test]), right
        ),
    }
    for name, vectors in embedded.items():
        found[f"{name} heads"] = plain_heads(vectors[train], vectors[test], right)
    return found, [
        [error(one, labels) for one, labels in zip(p.T, corpus.right[test].T, strict=True)]
        for error in (debiased_ece, squared_error)
    ]


def vectors_of(records: Sequence[Record], text: EmbeddedTexts) -> Values:
    """Embeddings of prompt and caption, `[n, 2 width]`."""
    parts = ([record.prompt for record in records], [record.caption or "" for record in records])
    return np.hstack([text.encode(part) for part in parts]).astype(np.float64)


def measure(records: Sequence[Record], minilm: str, draws: int, cache: Path | None) -> dict[str, Any]:
    """Areas of every router by size, `[draws]`, and how far ours is above each baseline with the standard error.

    The error covers the draws, and the sampling of the test records, most of which all draws share.
    """
    static = embed_texts(records, load_text_encoder(STATIC))
    other = embed_texts(records, load_text_encoder(minilm), cache=cache)
    embedded = {"MiniLM": vectors_of(records, other), "static": vectors_of(records, static)}
    corpus = Corpus(records, static)
    found: dict[str, Any] = {}
    for size in SIZES:
        areas: dict[str, list[float]] = {name: [] for name in (ROUTER, *BASELINES)}
        sampling: dict[str, list[float]] = {name: [] for name in BASELINES}
        calibration = []
        for seed in range(draws):
            train, test = draw(records, size, seed)
            scores, errors = gains(records, corpus, embedded, train, test)
            calibration.append(errors)
            right = corpus.right[test].T
            influence = {name: 100 * area_influence(one, right[1] - right[0]) for name, one in scores.items()}
            for name, one in scores.items():
                areas[name].append(area_over_random(one, *right))
            for name in BASELINES:
                sampling[name].append(float((influence[ROUTER] - influence[name]).var() / len(test)))
        ahead = {}
        for name in BASELINES:
            difference = np.asarray(areas[ROUTER]) - areas[name]
            error = np.sqrt(difference.var(ddof=1) / draws + np.mean(sampling[name]))
            ahead[name] = [float(difference.mean()), float(error)]
        found[str(size)] = {
            "areas": areas,
            "ahead": ahead,
            "ece": np.mean([one[0] for one in calibration], axis=0).tolist(),
            "rms": np.sqrt(np.mean([one[1] for one in calibration], axis=0).clip(0)).tolist(),
        }
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minilm", required=True)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder for the embeddings")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name in SETS:
        records = list(read_records(options.folder / f"{name}.jsonl.gz"))
        found[name] = measure(records, options.minilm, options.draws, options.cache)
        step(name)
    publish("learning_curves", {"draws": options.draws, "sizes": list(SIZES), "sets": found}, options.out)


if __name__ == "__main__":
    main()
