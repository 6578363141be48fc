"""Records in, `ComplexityClassifier` out. The only place of the library that needs scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from vlroute.decision.classifier import ComplexityClassifier, Heads
from vlroute.decision.features import RequestEncoder
from vlroute.decision.pace import MODES, Mode, Pace
from vlroute.learning.records import Outcome, Record

Values = NDArray[np.float64]
Indices = NDArray[np.int64]

#: Inverse strengths of the right/wrong heads' L2 penalty to choose from, ascending (one fit starts the next).
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: Strengths of the token heads' L2 penalty to choose from.
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
#: A condition (with or without caption) with fewer examples is calibrated together with the other.
MIN_CALIBRATION = 50
#: Where no record says how much a mode writes. An assumption.
ASSUMED_TOKENS: dict[Mode, float] = {"instruct": 60.0, "thinking": 600.0}
INNER_FOLDS = 4


def outcomes(records: Sequence[Record], mode: Mode) -> list[Outcome]:
    return [getattr(record, mode) for record in records]


def folds_of(records: Sequence[Record], folds: int, seed: int) -> Indices:
    """The fold of each record, int64 `[n]`, 0 … folds - 1.

    Records with the same prompt and caption share a fold, as near-copies in training and test would flatter the
    result. Sets, and within them which mode is right, are spread evenly.
    """
    rng = np.random.default_rng(seed)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault((record.prompt.strip(), record.caption), []).append(index)
    strata: dict[tuple[str, bool, bool], list[list[int]]] = {}
    for members in groups.values():
        first = records[members[0]]
        stratum = (first.set, first.instruct.correct >= 0.5, first.thinking.correct >= 0.5)
        strata.setdefault(stratum, []).append(members)
    fold = np.zeros(len(records), dtype=np.int64)
    position = 0
    for stratum in sorted(strata):
        for chosen in rng.permutation(len(strata[stratum])):
            fold[strata[stratum][chosen]] = position % folds
            position += 1
    return fold


@dataclass
class Design:
    """The training matrix: a captioned record counts half with, half without its caption, any other once.

    So the heads learn both conditions. `matrix`: csr `[m, width]`; `owner`: row -> record; `captioned`: row -> whether
    its caption is there; `weight`: row -> 1/2 or 1.
    """

    encoder: RequestEncoder
    records: Sequence[Record]
    matrix: sparse.csr_matrix = field(init=False)
    owner: Indices = field(init=False)
    captioned: NDArray[np.bool_] = field(init=False)
    weight: Values = field(init=False)

    def __post_init__(self) -> None:
        rows = [
            (index, caption)
            for index, record in enumerate(self.records)
            for caption in ((record.caption, None) if self.encoder.sees_caption(record.caption) else (None,))
        ]
        features = [self.encoder.encode(self.records[index].prompt, caption) for index, caption in rows]
        starts = np.cumsum([0, *(len(f.columns) for f in features)])
        columns = np.concatenate([f.columns for f in features])
        values = np.concatenate([f.values for f in features]).astype(np.float64)
        self.matrix = sparse.csr_matrix((values, columns, starts), shape=(len(rows), self.encoder.width))
        self.owner = np.asarray([index for index, _ in rows], dtype=np.int64)
        self.captioned = np.asarray([caption is not None for _, caption in rows])
        self.weight = 1.0 / np.bincount(self.owner)[self.owner]


def fit_classifier(records: Sequence[Record], *, seed: int = 0) -> ComplexityClassifier:
    """Learn vocabulary, heads and calibration. Deterministic: equal records, order and seed give equal weights.

    Penalties are chosen, and the calibration is fitted, on predictions for records the heads had not seen
    (`INNER_FOLDS` folds). ValueError for fewer than 20 records.
    """
    if len(records) < 20:
        raise ValueError(f"{len(records)} records are too few to learn from: at least 20 are needed")
    encoder = RequestEncoder.fit([(record.prompt, record.caption) for record in records])
    design = Design(encoder, records)
    fold = folds_of(records, INNER_FOLDS, seed)[design.owner]
    right = [_fit_right(design, fold, mode) for mode in MODES]
    length = [_fit_length(design, fold, mode) for mode in MODES]
    heads = Heads(
        weights=np.column_stack([head[0] for head in (*right, *length)]).astype(np.float32),
        bias=np.asarray([head[1] for head in (*right, *length)], dtype=np.float32),
        calibration=np.asarray([head[2] for head in right], dtype=np.float32),
        log_tokens=np.asarray([head[2] for head in length], dtype=np.float32),
    )
    return ComplexityClassifier(encoder, heads, measure_pace(records))


def measure_pace(records: Sequence[Record]) -> Pace:
    """Seconds per token and of prefill as the records show them; the assumed values where they say nothing.

    Decoding is what `seconds` leaves after `prefill_seconds`. Where prefill was not timed, a line is laid through
    (tokens, seconds): its slope is the time per token, its start the prefill.
    """
    per_token: dict[Mode, float] = {}
    prefill: dict[Mode, float] = {}
    for mode in MODES:
        timed = [o for o in outcomes(records, mode) if o.seconds is not None and o.tokens]
        if not timed:
            continue
        tokens = np.asarray([o.tokens for o in timed], dtype=float)
        seconds = np.asarray([o.seconds for o in timed], dtype=float)
        first = np.asarray([np.nan if o.prefill_seconds is None else o.prefill_seconds for o in timed])
        known = ~np.isnan(first)
        if known.any():
            per_token[mode] = max(0.0, float((seconds - first)[known].sum() / tokens[known].sum()))
            prefill[mode] = float(first[known].mean())
        else:
            spread = tokens.var()
            slope = float(((tokens - tokens.mean()) * seconds).mean() / spread) if spread else 0.0
            # neither part can be negative, whatever noise says
            per_token[mode] = min(max(0.0, slope), float(seconds.sum() / tokens.sum()))
            prefill[mode] = max(0.0, float(seconds.mean() - per_token[mode] * tokens.mean()))
    return Pace(per_token, prefill)


Head = tuple[Values, float, list[list[float]]]


def _fit_right(design: Design, fold: Indices, mode: Mode) -> Head:
    """Weights, bias and the calibration without and with caption of one right/wrong head."""
    target = np.asarray([float(o.correct) for o in outcomes(design.records, mode)])[design.owner]
    unseen = np.zeros((len(STRENGTHS), len(target)))
    for test in _tests(fold):
        for row, (weights, bias) in zip(unseen, _logistic_path(design, target, ~test, STRENGTHS), strict=True):
            row[test] = design.matrix[test] @ weights + bias
    losses = [float((design.weight * (np.logaddexp(0, row) - target * row)).sum()) for row in unseen]
    best = int(np.argmin(losses))
    *_, (weights, bias) = _logistic_path(design, target, np.full(len(target), True), STRENGTHS[: best + 1])
    logits = unseen[best]
    both = _platt(logits, target, design.weight)
    calibration = [
        _platt(logits[rows], target[rows], design.weight[rows]) if rows.sum() >= MIN_CALIBRATION else both
        for rows in (~design.captioned, design.captioned)
    ]
    return weights, bias, calibration


def _logistic_path(
    design: Design, target: Values, rows: NDArray[np.bool_], strengths: Sequence[float]
) -> Iterator[tuple[Values, float]]:
    """Weights and bias for each strength. A target between 0 and 1 counts in part as right, in part as wrong."""
    matrix, right, weight = design.matrix[rows], target[rows], design.weight[rows]
    weights = np.concatenate([weight * right, weight * (1 - right)])
    used = weights > 0
    labels = np.repeat([1, 0], len(right))[used]
    if len(set(labels.tolist())) < 2:  # always right or always wrong: only the add-one share can be learnt
        share = (float(right.sum()) + 1) / (len(right) + 2)
        for _ in strengths:
            yield np.zeros(matrix.shape[1]), float(np.log(share / (1 - share)))
        return
    stacked = sparse.vstack([matrix, matrix]).tocsr()[used]
    model = LogisticRegression(max_iter=500, tol=1e-3, warm_start=True)
    for strength in strengths:
        model.set_params(C=strength).fit(stacked, labels, sample_weight=weights[used])
        yield model.coef_[0].copy(), float(model.intercept_[0])


def _platt(logits: Values, target: Values, weight: Values) -> list[float]:
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


def _fit_length(design: Design, fold: Indices, mode: Mode) -> Head:
    """Weights, bias and (lowest, highest, smearing) ln tokens of one token head."""
    counts = [o.tokens for o in outcomes(design.records, mode)]
    known = np.asarray([count is not None for count in counts])[design.owner]
    target = np.log(np.maximum(np.asarray([count or 0 for count in counts], dtype=float), 1))[design.owner]
    nothing = np.zeros(design.matrix.shape[1])
    if not known.any():
        level = float(np.log(ASSUMED_TOKENS[mode]))
        return nothing, level, [[level, level, 0.0]][0]
    low, high = float(target[known].min()), float(target[known].max())
    if high - low < 1e-9:
        return nothing, low, [[low, high, 0.0]][0]
    unseen = np.zeros((len(PENALTIES), len(target)))
    for test in _tests(fold):
        for row, penalty in zip(unseen, PENALTIES, strict=True):
            weights, bias = _ridge(design, target, ~test & known, penalty)
            row[test] = (design.matrix[test] @ weights + bias).clip(low, high)
    weight = design.weight * known
    best = int(np.argmin(((unseen - target) ** 2) @ weight))
    smearing = np.log((weight @ np.exp(target - unseen[best])) / weight.sum())
    weights, bias = _ridge(design, target, known, PENALTIES[best])
    return weights, bias, [low, high, float(smearing)]


def _ridge(
    design: Design, target: Values, rows: NDArray[np.bool_], penalty: float
) -> tuple[Values, float]:
    model = Ridge(alpha=penalty, solver="sparse_cg", tol=1e-4)
    model.fit(design.matrix[rows], target[rows], sample_weight=design.weight[rows])
    return model.coef_, float(model.intercept_)


def _tests(fold: Indices) -> Iterator[NDArray[np.bool_]]:
    """Each fold in turn as the rows to predict."""
    for number in range(int(fold.max()) + 1):
        yield fold == number
