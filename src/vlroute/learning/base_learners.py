"""Fitting one head at a time; every choice is made on rows the head has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from vlroute.decision.forest import Forest
from vlroute.decision.neighbours import Neighbours
from vlroute.learning.assumptions import mean_tokens
from vlroute.learning.folds import Design, Indices, Mask, Values
from vlroute.records import outcomes
from vlroute.types import Mode

#: Inverse strengths of the right/wrong heads' L2 penalty to choose from, ascending (one fit starts the next).
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
USUAL = STRENGTHS.index(0.3)
ERRORS = 2.0  # another strength must be better than the usual one by so many standard errors
#: Strengths of the token heads' L2 penalty to choose from.
PENALTIES = (1.0, 5.0, 25.0)
#: With fewer known lengths, all answers of a mode are assumed to have the same length.
MIN_LENGTHS = 20

Matrix = Any  # csr or float64 `[m, columns]`
LengthHead = tuple[Values, float, list[float]]


@dataclass(frozen=True, slots=True)
class RightHeads:
    """`weights` `[columns, 2]` and `bias` `[2]` of the heads "Instruct is right" and "Thinking is right", and their raw
    logits on rows they had not seen, `[m, 2]`."""

    weights: Values
    bias: Values
    unseen: Values


def fit_right(matrix: Matrix, right: Values, weight: Values, fold: Indices) -> RightHeads:
    """Logistic heads over `matrix` `[m, columns]`; `right` `[m, 2]`: how right both modes were, 0 to 1.

    Both get the same penalty: the usual one, or the one with the lowest squared error of the *gain* on unseen rows,
    after calibration, if that is lower by more than `ERRORS` standard errors. On a thousand records the best penalty is
    mostly chance. Nor is it the one of lowest log loss: weak penalties pay for each mode alone, but errors that both
    heads share cancel in the gain, and those that each makes alone do not. The error falls, then rises: weaker
    penalties, which take longest, are not tried once it has risen.
    """
    tests = list(tests_of(fold))
    paths = [[_logistic_path(matrix, own, weight, ~test, STRENGTHS) for own in right.T] for test in tests]
    unseen, errors = [], []
    for position in range(len(STRENGTHS)):
        logits = np.zeros(right.shape)
        for test, heads in zip(tests, paths, strict=True):
            for head, path in enumerate(heads):
                weights, start = next(path)
                logits[test, head] = matrix[test] @ weights + start
        unseen.append(logits)
        errors.append(weight * (_gain(logits, right, weight) - right[:, 1] + right[:, 0]) ** 2)
        if position > USUAL and errors[position].sum() > errors[position - 1].sum():
            break
    saved = errors[USUAL] - errors
    better = saved.sum(axis=1) > ERRORS * np.sqrt(len(right)) * saved.std(axis=1)
    best = int(np.argmax(np.where(better, saved.sum(axis=1), 0))) if better.any() else USUAL
    every_row = np.full(len(right), True)
    last = [list(_logistic_path(matrix, own, weight, every_row, STRENGTHS[: best + 1]))[-1] for own in right.T]
    bias = np.asarray([one[1] for one in last])
    return RightHeads(np.column_stack([one[0] for one in last]), bias, unseen[best])


def _gain(logits: Values, right: Values, weight: Values) -> Values:
    p = []
    for own, target in zip(logits.T, right.T, strict=True):
        slope, intercept = platt(own, target, weight)
        p.append(expit(slope * own + intercept))
    return np.asarray(p[1] - p[0])


def _logistic_path(
    matrix: Matrix,
    target: Values,
    weight: Values,
    rows: Mask,
    strengths: Sequence[float],
) -> Iterator[tuple[Values, float]]:
    """Weights and bias for each strength. A target between 0 and 1 counts in part as right, in part as wrong."""
    matrix, right, weight = matrix[rows], target[rows], weight[rows]
    wins, losses = np.flatnonzero(right > 0), np.flatnonzero(right < 1)
    if not len(wins) or not len(losses):  # always right or always wrong: only the add-one share can be learnt
        share = (float(right.sum()) + 1) / (len(right) + 2)
        for _ in strengths:
            yield np.zeros(matrix.shape[1]), float(np.log(share / (1 - share)))
        return
    matrix = matrix[np.concatenate([wins, losses])]
    labels = np.repeat([1, 0], [len(wins), len(losses)])
    weights = np.concatenate([(weight * right)[wins], (weight * (1 - right))[losses]])
    model = LogisticRegression(max_iter=500, tol=1e-3, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength).fit(matrix, labels, sample_weight=weights)
        yield model.coef_[0].copy(), float(model.intercept_[0])


def platt(logits: Values, target: Values, weight: Values) -> list[float]:
    """Slope and intercept of a sigmoid on the raw logit (Platt 1999). A head that misleads is flattened, not turned."""
    total = float(weight.sum())
    # Platt's targets: n+1 right of n+2, so that a perfect head does not become certain
    high, low = (weight @ target + 1) / (weight @ target + 2), 1 / (total - weight @ target + 2)
    soft = low + (high - low) * target
    parts = np.concatenate([weight * soft, weight * (1 - soft)])
    model = LogisticRegression(C=1e3, max_iter=500)
    model.fit(np.tile(logits, 2)[:, None], np.repeat([1, 0], len(logits)), sample_weight=parts)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope > 0:
        return [slope, intercept]
    share = (float(weight @ target) + 1) / (total + 2)
    return [0.0, float(np.log(share / (1 - share)))]


def fit_length(design: Design, fold: Indices, mode: Mode) -> LengthHead:
    """Weights, bias and (lowest, highest, smearing) ln tokens of one token head."""
    counts = [o.tokens for o in outcomes(design.records, mode)]
    known = np.asarray([count is not None for count in counts])[design.owner]
    target = np.log(np.maximum(np.asarray([count or 0 for count in counts], dtype=float), 1))[design.owner]
    nothing = np.zeros(design.matrix.shape[1])
    if known.sum() < MIN_LENGTHS:
        level = float(np.log(max(mean_tokens(design.records)[mode], 1.0)))
        return nothing, level, [level, level, 0.0]
    low, high = float(target[known].min()), float(target[known].max())
    if high - low < 1e-9:
        return nothing, low, [low, high, 0.0]
    unseen = np.zeros((len(PENALTIES), len(target)))
    for test in tests_of(fold):
        if not (~test & known).any():
            continue
        for row, penalty in zip(unseen, PENALTIES, strict=True):
            weights, bias = _ridge(design, target, ~test & known, penalty)
            row[test] = (design.uncrossed[test] @ weights + bias).clip(low, high)
    weight = design.weight * known
    best = int(np.argmin(((unseen - target) ** 2) @ weight))
    smearing = np.log((weight @ np.exp(target - unseen[best])) / weight.sum())
    weights, bias = _ridge(design, target, known, PENALTIES[best])
    return weights, bias, [low, high, float(smearing)]


def _ridge(design: Design, target: Values, rows: Mask, penalty: float) -> tuple[Values, float]:
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-3)
    model.fit(design.uncrossed[rows], target[rows], sample_weight=design.weight[rows])
    return model.coef_, float(model.intercept_)


def tests_of(fold: Indices) -> Iterator[Mask]:
    """Each fold in turn as the rows to predict."""
    for number in range(int(fold.max()) + 1):
        yield fold == number


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
