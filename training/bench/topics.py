"""Would the topic of a request improve the router? `python -m training.bench.topics FOLDER`

Adds an effect of the topic to the gain that the router predicts: the mean residual of the training records of the
topic, shrunken by empirical Bayes. The topic of a test record is the true one, one predicted from its words, or, as a
control, one of shuffled labels. Effects and predictors see the training folds only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from training.bench.routers import pooled, set_files
from training.page import argument_parser, environment, publish, step
from vlroute import Record, read_records
from vlroute.decision.text_encoder import load_text_encoder
from vlroute.files import shipped
from vlroute.learning import area_over_random
from vlroute.learning.assumptions import mean_tokens
from vlroute.learning.corpus import Corpus
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.fit import fit_heads, predictions
from vlroute.learning.folds import folds_of, group_of, stratified_folds
from vlroute.learning.intervals import Sampling, area_influence
from vlroute.types import MODES

Values = NDArray[np.float64]
SETS = ("mmmu_pro", "mathvista", "math_v")  # those with topics
FOLDS, INNER_FOLDS = 5, 4
WITHOUT, TRUE, PREDICTED, SHUFFLED, ALONE = (
    "without topics", "with the true topic", "with the predicted topic", "with shuffled topics",
    "the predicted topic alone",
)  # fmt: skip


def shrunken(residuals: Values, topics: Sequence[str], names: Sequence[str]) -> Values:
    """Mean residual of each topic, times the share of the variance that is not noise (DerSimonian and Laird, 1986)."""
    labels = np.asarray(topics)
    groups = [residuals[labels == name] for name in names]
    counts = np.asarray([len(one) for one in groups], dtype=float)
    means = np.asarray([one.mean() if len(one) else 0.0 for one in groups])
    noise = residuals.var() / np.maximum(counts, 1)
    weight = 1 / noise
    spread = float(weight @ (means - weight @ means / weight.sum()) ** 2)
    between = max(0.0, (spread - (len(names) - 1)) / (weight.sum() - weight @ weight / weight.sum()))
    return np.where(counts > 0, means * between / (between + noise), 0.0)


def scores_of(records: Sequence[Record], corpus: Corpus, seed: int) -> tuple[dict[str, Values], float]:
    """Predicted gains out of fold, `[n]` each, and the share of topics that are predicted correctly."""
    tokens = [mean_tokens(records)[mode] for mode in MODES]
    right = np.asarray([(float(r.instruct.correct), float(r.thinking.correct)) for r in records])
    topics, texts = [r.topic or "" for r in records], [f"{r.prompt}\n{r.caption or ''}" for r in records]
    fold = folds_of(records, FOLDS, seed, together="text")
    found = {name: np.zeros(len(records)) for name in (WITHOUT, TRUE, PREDICTED, SHUFFLED, ALONE)}
    hits = 0

    def probabilities(train: Any, test: Any) -> Values:
        """Probability that each mode is right, for the records `test`, with their captions, `[test, 2]`."""
        fitted = fit_heads(corpus, train, tokens, seed=seed)
        design = corpus.design(fitted.vocabulary, test)
        rows = predictions(fitted, design)
        return np.asarray([(rows[own].p_instruct, rows[own].p_thinking) for own in design.given.tolist()])

    for number in range(FOLDS):
        train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        inner = stratified_folds(corpus.strata[train], INNER_FOLDS, seed)
        unseen = np.zeros((len(train), 2))
        for part in range(INNER_FOLDS):
            unseen[inner == part] = probabilities(train[inner != part], train[inner == part])
        residuals = right[train] - unseen
        residuals = residuals[:, 1] - residuals[:, 0]
        gains = right[train] @ (-1.0, 1.0)
        own = [topics[i] for i in train]
        names = sorted(set(own))
        place = {name: i for i, name in enumerate(names)}
        predictor = make_pipeline(
            TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2), LogisticRegression(C=10, max_iter=300)
        )
        share = predictor.fit([texts[i] for i in train], own).predict_proba([texts[i] for i in test])
        hits += sum(names[one] == topics[i] for one, i in zip(share.argmax(1), test, strict=True))
        true = np.zeros_like(share)
        for row, i in enumerate(test):
            if topics[i] in place:  # an unknown topic has no effect
                true[row, place[topics[i]]] = 1
        shuffled = np.random.default_rng(seed).permutation(own).tolist()
        effects = shrunken(residuals, own, names)
        base = probabilities(train, test) @ (-1.0, 1.0)
        found[WITHOUT][test] = base
        found[TRUE][test] = base + true @ effects
        found[PREDICTED][test] = base + share @ effects
        found[SHUFFLED][test] = base + share @ shrunken(residuals, shuffled, names)
        found[ALONE][test] = share @ shrunken(gains, own, names)
    return found, hits / len(records)


def compare(records: Sequence[Record], seeds: int, cache: Path) -> dict[str, Any]:
    """The figures of one set: area, and its paired difference from the router without topics, `[value, low, high]`."""
    corpus = Corpus(records, embed_texts(records, load_text_encoder(str(shipped("encoder"))), cache=cache))
    runs, hits = zip(*(scores_of(records, corpus, seed) for seed in range(seeds)), strict=True)
    right = np.asarray([(float(r.instruct.correct), float(r.thinking.correct)) for r in records]).T
    gain, n = right[1] - right[0], len(records)
    sampling = Sampling(n, [group_of(record) for record in records], FOLDS)
    rows: dict[str, Any] = {}
    influence = {
        name: 100 * n / (n + 1) * np.mean([area_influence(run[name], gain) for run in runs], axis=0) for name in runs[0]
    }
    for name in runs[0]:
        seen = np.stack([run[name] for run in runs])
        area = float(np.mean([area_over_random(one, *right) for one in seen]))
        difference = influence[name] - influence[WITHOUT]
        interval = sampling.mean(difference, learned=difference) or (0.0, 0.0)
        rows[name] = {
            "area": [area, *(sampling.area(seen, gain) or (area, area))],
            "difference": [float(difference.mean()), *interval],
        }
    return {
        "records": n, "topics": len({record.topic for record in records}), "predicted": float(np.mean(hits)),
        "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, help="with the sets as NAME.jsonl.gz")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--seeds", type=int, default=3, help="ways to split the records")
    parser.add_argument("--cache", type=Path, default=Path("runs/topics"), help="folder for embeddings")
    options = parser.parse_args()
    found = {}
    for name, path in set_files(options.folder, options.sets).items():
        step(name)
        found[name] = compare(list(read_records(path)), options.seeds, options.cache)
    mean = {
        row: {figure: pooled([one["rows"][row][figure] for one in found.values()]) for figure in ("area", "difference")}
        for row in next(iter(found.values()))["rows"]
    }
    data = {"where": environment("scikit-learn"), "seeds": options.seeds, "folds": FOLDS, "sets": found, "mean": mean}
    publish("topics", data, options.out)


if __name__ == "__main__":
    main()
