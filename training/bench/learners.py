"""Whether learners beside the linear heads improve the ranking: `python -m training.bench.learners FOLDER`

`FOLDER` holds the public sets as NAME.jsonl.gz; the records of the pocket pair are those of this repository. Nearest
neighbors, boosted trees and crossed features were removed from vlroute because of this measurement; they are
implemented here, so that it can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer

from training.page import ROOT, argument_parser, publish, step
from vlroute import Record, read_records
from vlroute.decision.features import tokenize
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.learning import area_over_random, headroom_captured
from vlroute.learning.base_learners import fit_right
from vlroute.learning.corpus import Corpus, Design
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.evaluate import learned_part
from vlroute.learning.fit import INNER_FOLDS, STRENGTHS, by_condition
from vlroute.learning.folds import folds_of, group_of
from vlroute.learning.intervals import Interval, Sampling, area_influence, auc_influence
from vlroute.learning.linear import Matrix, calibrate

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]
Logits = tuple[Values, Values]

SETS = ("gsm8k", "mmmu_pro", "mathvista", "math_v")
FOLDS = 5
ERRORS = 2.0  # standard errors by which a learner must be ahead of the linear heads to be selected
REMOVED = {
    "all": (),
    "without neighbors": ("neighbors",),
    "without trees": ("trees",),
    "without crosses": ("crosses",),
    "linear heads only": ("neighbors", "trees", "crosses"),
}
WAYS = ("selected", "averaged")
DIFFERENCES = ("area", "AUC", "accuracy")


@dataclass(frozen=True, slots=True)
class Data:
    """Training and test rows of one fold, with their records, and the inner fold of each training row."""

    train: Design
    test: Design
    records: tuple[Sequence[Record], Sequence[Record]]
    fold: NDArray[np.int64]

    def by_fold(self, fit: Callable[[Mask, Design, Mask], Values]) -> Logits:
        """Logits of the training rows, out of inner folds, and of the test rows."""
        unseen = np.zeros(self.train.right.shape)
        for number in range(INNER_FOLDS):
            unseen[self.fold == number] = fit(self.fold != number, self.train, self.fold == number)
        return unseen, fit(self.fold >= 0, self.test, self.test.weight > 0)


class Crossed:
    """The features over words, followed by those over pairs of words, as a `linear.Matrix`."""

    def __init__(self, design: Design, pairs: sparse.csr_matrix) -> None:
        self._words, self._pairs = design.words, pairs.astype(np.float32)
        self.shape = (pairs.shape[0], design.words.shape[1] + pairs.shape[1])

    def __matmul__(self, weights: Any) -> Any:
        width = self._words.shape[1]
        return self._words @ weights[:width] + self._pairs @ weights[width:]

    def adjoint(self, values: Any) -> Any:
        return np.concatenate([self._words.adjoint(values), self._pairs.T @ values])


def words(data: Data, *, crossed: bool = False) -> Logits:
    """Logistic heads over words, characters and plain numbers; with `crossed` also over pairs of words."""
    train: Matrix = data.train.words
    test: Matrix = data.test.words
    if crossed:
        captioned = int(data.train.captioned.sum())
        vectorizer = TfidfVectorizer(
            analyzer=lambda terms: terms, sublinear_tf=True, min_df=max(5, captioned // 200), max_features=10_000
        )
        pairs = [_crosses(*one) for one in zip((data.train, data.test), data.records, strict=True)]
        vectorizer.fit([terms for terms in pairs[0] if terms])
        train, test = (
            Crossed(design, vectorizer.transform(terms))
            for design, terms in zip((data.train, data.test), pairs, strict=True)
        )
    return _heads(train, test, data)


def _heads(train: Any, test: Any, data: Data) -> Logits:
    heads = fit_right(train, data.train.right, data.train.weight, data.fold, STRENGTHS)
    return heads.unseen, test @ heads.weights.astype(np.float32) + heads.bias


def _crosses(design: Design, records: Sequence[Record]) -> list[list[str]]:
    """Pairs of the first 24 distinct tokens of prompt and caption, of each row."""
    rows = []
    for owner, captioned in zip(design.owner, design.captioned, strict=True):
        record = records[owner]
        texts = (record.prompt, (record.caption or "") if captioned else "")
        prompt, caption = (list(dict.fromkeys(tokenize(text)))[:24] for text in texts)
        rows.append([f"{one}|{other}" for one in prompt for other in caption])
    return rows


def embedding(data: Data) -> Logits:
    """Logistic heads over the embeddings of prompt and caption."""
    return _heads(data.train.embedding, data.test.embedding, data)


def _vectors(design: Design) -> Values:
    """The embeddings as one array."""
    return np.asarray(design.embedding @ np.eye(design.embedding.shape[1], dtype=np.float32), float)


def neighbors(data: Data) -> Logits:
    """The 50 nearest records by the cosine of their embeddings (Cover and Hart 1967), nearer ones with more weight."""
    vectors = {id(design): _vectors(design) for design in (data.train, data.test)}

    def fit(rows: Mask, other: Design, asked: Mask) -> Values:
        given = data.train.given[rows[data.train.given]]
        right = data.train.right[given]
        cosine = vectors[id(other)][asked] @ vectors[id(data.train)][given].T
        nearest = np.argsort(-cosine, axis=1)[:, :50]
        near = np.take_along_axis(cosine, nearest, axis=1)
        weight = np.exp(8 * (near - near[:, :1]))
        total = np.einsum("mk,mkh->mh", weight, right[nearest]) + 2 * right.mean(axis=0)
        share = (total / (weight.sum(axis=1, keepdims=True) + 2)).clip(1e-3, 1 - 1e-3)
        return np.asarray(np.log(share / (1 - share)))

    return data.by_fold(fit)


def trees(data: Data) -> Logits:
    """Gradient boosting over plain numbers and embedding (Friedman 2001)."""
    columns = [np.hstack([d.words.plain, _vectors(d)]) for d in (data.train, data.test)]
    once = np.zeros(len(data.train.owner), bool)
    first, captioned = data.train.given.copy(), np.flatnonzero(data.train.captioned[data.train.given])
    first[captioned[1::2]] += 1  # every second captioned record without its caption: rows of equal weight are faster
    once[first] = True

    def fit(rows: Mask, other: Design, asked: Mask) -> Values:
        found = []
        for right in data.train.right[rows & once].T:
            drawn = right > np.random.default_rng(0).random(len(right))
            model = HistGradientBoostingClassifier(
                max_iter=30, max_leaf_nodes=8, l2_regularization=10.0, max_features=0.3, max_bins=16,
                early_stopping=False, random_state=0,
            )  # fmt: skip
            model.fit(columns[0][rows & once], drawn)
            found.append(model.decision_function(columns[other is data.test][asked]))
        return np.column_stack(found)

    return data.by_fold(fit)


def fold_gains(train: Sequence[Record], test: Sequence[Record], seed: int, text: Any) -> dict[str, Values]:
    """Predicted gain of the `test` records by every way and variant, `[n]`."""
    corpus, size = Corpus([*train, *test], text), len(train)
    vocabulary = corpus.fit(np.arange(size))
    design = corpus.design(vocabulary, np.arange(size))
    fold = folds_of(train, INNER_FOLDS, seed, together="record")[design.owner]
    asked_rows = corpus.design(vocabulary, np.arange(size, size + len(test)))
    data = Data(design, asked_rows, (train, test), fold)
    learners = {one.__name__: one(data) for one in (words, embedding, neighbors, trees)}
    learners["crosses"] = words(data, crossed=True) if design.captioned.any() else learners["words"]
    calibrated = {}
    for name, (unseen, asked) in learners.items():
        sigmoids = calibrate(unseen, design.right, design.weight)
        calibrated[name] = tuple(logits * sigmoids[:, 0] + sigmoids[:, 1] for logits in (unseen, asked))

    def gain(shares: Mapping[str, float], *, asked: bool) -> Values:
        unseen, mixed = (np.asarray(sum(calibrated[name][i] * share for name, share in shares.items())) for i in (0, 1))
        rows = data.test if asked else design
        sigmoid = by_condition(design, unseen)[:, rows.captioned[rows.given].astype(int)]
        p = expit(sigmoid[..., 0] * (mixed if asked else unseen)[rows.given].T + sigmoid[..., 1])
        return np.asarray(p[1] - p[0])

    def best(candidates: Mapping[str, Mapping[str, float]], default: str) -> str:
        right, n = design.right[design.given].T, len(train)
        scores = {name: gain(shares, asked=False) for name, shares in candidates.items()}
        area = {name: area_over_random(score, *right) for name, score in scores.items()}
        influence = {name: area_influence(score, right[1] - right[0]) for name, score in scores.items()}
        error = {name: 100 * (one - influence[default]).std() / n**0.5 for name, one in influence.items()}
        ahead = [name for name in scores if area[name] - area[default] > ERRORS * error[name]]
        return max(ahead, key=lambda name: area[name], default=default)

    found = {}
    for variant, removed in REMOVED.items():
        kept = [name for name in ("crosses", "embedding", "neighbors", "trees") if name not in removed]
        alone = {name: {name: 1.0} for name in ("words", *kept)}
        lexical = best({name: alone[name] for name in ("words", "crosses") if name in alone}, "words")
        rest = {name: 1.0 for name in kept if name != "crosses"}
        candidates = {**alone, "linear": {lexical: 2 / 3, "embedding": 1 / 3}}
        candidates["stack"] = {name: share / (2 + len(rest)) for name, share in ({lexical: 2.0} | rest).items()}
        found[f"selected, {variant}"] = gain(candidates[best(candidates, "linear")], asked=True)
        first = "crosses" if "crosses" in kept else "words"
        average = {name: share / (2 + len(rest)) for name, share in ({first: 2.0} | rest).items()}
        found[f"averaged, {variant}"] = gain(average, asked=True)
    return found


def gains_of(records: Sequence[Record], seeds: int, text: Any, memory: joblib.Memory) -> dict[str, Values]:
    """Out-of-fold predicted gains, `[seeds, n]`."""
    found: dict[str, Values] = {}
    one_fold = memory.cache(fold_gains, ignore=["text"])
    for seed in range(seeds):
        fold = folds_of(records, FOLDS, seed, together="text")
        for number in range(FOLDS):
            train = [record for record, at in zip(records, fold, strict=True) if at != number]
            test = [record for record, at in zip(records, fold, strict=True) if at == number]
            for name, values in one_fold(train, test, seed, text).items():
                found.setdefault(name, np.zeros((seeds, len(records))))[seed, fold == number] = values
    return found


def figures_of(records: Sequence[Record], gains: Mapping[str, Values]) -> dict[str, dict[str, list[float]]]:
    """Metrics of every variant, and its paired differences from "all": `[value, low, high]`."""
    right = np.asarray([(float(r.instruct.correct), float(r.thinking.correct)) for r in records]).T
    gain, n = right[1] - right[0], len(records)
    sampling = Sampling(n, [group_of(record) for record in records], FOLDS)
    influences: dict[str, dict[str, Values]] = {}
    found: dict[str, dict[str, list[float]]] = {}
    for name, scores in gains.items():
        sent = (scores > 0).mean(axis=0)
        routed = right[0] + sent * gain
        influences[name] = {
            "area": 100 * n / (n + 1) * np.mean([area_influence(seed, gain) for seed in scores], axis=0),
            "AUC": np.mean([auc_influence(seed, gain) for seed in scores], axis=0),
            "accuracy": 100 * routed,
        }
        headroom = headroom_captured(*(float(one.mean()) for one in (routed, *right, right.max(axis=0))))
        bounds = sampling.headroom(routed, *right, learned=learned_part(sent, gain))
        found[name] = {
            "area": _row(float(influences[name]["area"].mean()), sampling.area(scores, gain)),
            "AUC": _row(float(influences[name]["AUC"].mean()), sampling.gain_auc(scores, gain)),
            "headroom": _row(headroom, bounds),
        }
        base = influences[f"{name.split(', ')[0]}, all"]
        for figure, values in influences[name].items():
            difference = values - base[figure]
            bounds = sampling.mean(difference, learned=difference)
            found[name][f"{figure} − all"] = _row(float(difference.mean()), bounds)
    return found


def _row(value: float | None, interval: Interval | None) -> list[float]:
    return [] if value is None else [float(value), *(interval or ())]


def pooled(sets: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> dict[str, dict[str, list[float]]]:
    """Mean differences over the sets, which are independent of each other: `[value, low, high]`."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in next(iter(sets.values())):
        found[name] = {}
        for figure in (f"{one} − all" for one in DIFFERENCES):
            rows = np.asarray([one[name][figure] for one in sets.values()])
            mean, half = rows[:, 0].mean(), np.sqrt(((rows[:, 2] - rows[:, 1]) ** 2).sum()) / 2 / len(rows)
            found[name][figure] = [float(mean), float(mean - half), float(mean + half)]
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1800, help="records of a set; of more, so many are drawn")
    parser.add_argument("--cache", type=Path, help="folder for finished folds, so that a stopped run can continue")
    options = parser.parse_args()
    memory = joblib.Memory(options.cache, verbose=0)
    paths = {"pocket": ROOT / "training/pocket/records.jsonl.gz"}
    paths |= {name: options.folder / f"{name}.jsonl.gz" for name in SETS}
    sets, counts = {}, {}
    for name, path in paths.items():
        records = list(read_records(path))
        chosen = np.random.default_rng(0).permutation(len(records))[: options.limit]
        records = [records[at] for at in np.sort(chosen)]
        text = embed_texts(records, load_text_encoder(STATIC))
        sets[name], counts[name] = figures_of(records, gains_of(records, options.seeds, text, memory)), len(records)
        step(name)
    publish(
        "learners",
        {"folds": FOLDS, "seeds": options.seeds, "records": counts, "sets": sets, "pooled": pooled(sets)},
        options.out,
    )


if __name__ == "__main__":
    main()
