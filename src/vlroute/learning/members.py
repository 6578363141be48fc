"""Ways to learn who is right: each gives logits on records it had not seen, and can be fitted on all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from vlroute.decision.forest import Forest
from vlroute.decision.neighbours import Neighbours
from vlroute.learning.design import Design, Indices, Mask, Values
from vlroute.learning.heads import fit_right, tests_of

#: What neighbours and trees learn from: of more records so many, drawn at random. Time grows linearly with the records.
MAX_DRAWN = 4096
#: Small trees with a strong penalty: records are few and noisy.
BOOSTING = {
    "max_iter": 30, "learning_rate": 0.1, "max_leaf_nodes": 8, "l2_regularization": 10.0, "max_features": 0.3,
    "max_bins": 16, "early_stopping": False, "random_state": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fitted:
    """A member fitted on all records: linear heads over columns and embedding, or one of the others."""

    weights: Values | None = None
    embedded: Values | None = None
    bias: Values | None = None
    neighbours: Neighbours | None = None
    forest: Forest | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """`unseen`: raw logits `[m, 2]` of rows that the member had not seen; `fitted`: the member over all rows."""

    unseen: Values
    fitted: Callable[[], Fitted]


def words(design: Design, fold: Indices, *, crossed: bool = False) -> Member:
    """Logistic heads over words, letters and plain numbers; `crossed`: over crosses, too."""
    matrix = design.matrix if crossed else design.uncrossed
    heads = fit_right(matrix, design.right, design.weight, fold)
    return Member(heads.unseen, lambda: Fitted(weights=heads.weights, bias=heads.bias))


def embedding(design: Design, fold: Indices) -> Member:
    """Logistic heads over the embedding."""
    heads = fit_right(design.embedding.astype(np.float64), design.right, design.weight, fold)
    return Member(heads.unseen, lambda: Fitted(embedded=heads.weights, bias=heads.bias))


def neighbours(design: Design, fold: Indices) -> Member:
    """The nearest records by their embeddings (Cover and Hart 1967)."""
    right = design.right[design.given].astype(np.float32)
    keys = design.embedding[design.given]
    drawn = _drawn(len(keys))

    def among(chosen: Mask) -> Neighbours:
        return Neighbours(keys[chosen], right[chosen])

    unseen = np.zeros((len(design.owner), 2))
    for test in tests_of(fold):
        learnt = among(drawn & ~test[design.given])
        rows = np.flatnonzero(test)
        for start in range(0, len(rows), 1024):
            some = rows[start : start + 1024]
            unseen[some] = learnt.logits_many(design.embedding[some])
    half = Neighbours(keys[drawn].astype(np.float16), right[drawn])
    return Member(unseen, lambda: Fitted(neighbours=half))


def _drawn(n: int) -> Mask:
    mask = np.full(n, False)
    mask[np.random.default_rng(0).permutation(n)[:MAX_DRAWN]] = True
    return mask


def boosting(design: Design, fold: Indices) -> Member:
    """Gradient boosting over plain numbers and embedding (Friedman 2001, binned as in LightGBM)."""
    learnt = _each_once(design)
    unseen = np.zeros((len(design.owner), 2))
    for test in tests_of(fold):
        for head, model in enumerate(_boosted(design, learnt & ~test)):
            if isinstance(model, float):
                unseen[test, head] = model
            else:
                unseen[test, head] = model.decision_function(design.dense[test])
    return Member(unseen, lambda: Fitted(forest=_forest(_boosted(design, learnt))))


def _each_once(design: Design) -> Mask:
    """One row of each record drawn, every second captioned one without its caption: rows of equal weight.

    Trees over weighted rows take several times as long. A row without caption follows the same record's with it.
    """
    rows = np.full(len(design.owner), False)
    captioned = np.flatnonzero(design.captioned[design.given])
    first = design.given.copy()
    first[captioned[1::2]] += 1
    rows[first[_drawn(len(first))]] = True
    return rows


def _boosted(design: Design, rows: Mask) -> list[HistGradientBoostingClassifier | float]:
    """A model for each mode; the plain logit where a mode is always or never right.

    Between 0 and 1, right or wrong is drawn with that probability.
    """
    models: list[HistGradientBoostingClassifier | float] = []
    x, drawn = design.dense[rows], np.random.default_rng(0).random(int(rows.sum()))
    for share in design.right[rows].T:
        right = share > drawn
        if right.all() or not right.any():
            least = (float(share.sum()) + 1) / (len(share) + 2)
            models.append(float(np.log(least / (1 - least))))
            continue
        with threadpool_limits(1, "openmp"):  # with more, a pool of threads sorts each feature: ten times as long
            models.append(HistGradientBoostingClassifier(**BOOSTING).fit(x, right.astype(int)))
    return models


def _forest(models: list[HistGradientBoostingClassifier | float]) -> Forest:
    """The trees as arrays. scikit-learn has no public view of them; a test compares the outcome."""
    trees = [[] if isinstance(m, float) else [one[0].nodes for one in m._predictors] for m in models]
    shape = (2, max(1, *map(len, trees)), max([1, *(len(nodes) for some in trees for nodes in some)]))
    own = np.broadcast_to(np.arange(shape[2]), shape)
    feature, left, right = np.zeros(shape, np.int32), own.astype(np.int32), own.astype(np.int32)
    threshold, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    depth = 0
    for head, some in enumerate(trees):
        for tree, nodes in enumerate(some):
            leaf, n = nodes["is_leaf"].astype(bool), len(nodes)
            depth = max(depth, int(nodes["depth"].max()))
            feature[head, tree, :n] = np.where(leaf, 0, nodes["feature_idx"])
            threshold[head, tree, :n] = np.where(leaf, 0, nodes["num_threshold"])
            left[head, tree, :n] = np.where(leaf, own[0, 0, :n], nodes["left"])
            right[head, tree, :n] = np.where(leaf, own[0, 0, :n], nodes["right"])
            value[head, tree, :n] = np.where(leaf, nodes["value"], 0)
    base = [m if isinstance(m, float) else float(np.ravel(m._baseline_prediction)[0]) for m in models]
    return Forest(feature, threshold, left, right, value, np.asarray(base, np.float32), depth)
