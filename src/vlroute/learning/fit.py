"""Records in, `ComplexityClassifier` out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from vlroute.decision.classifier import ComplexityClassifier, Heads
from vlroute.decision.features import RequestEncoder
from vlroute.decision.latency import LatencyModel
from vlroute.decision.text_encoder import TextEncoder
from vlroute.learning.assumptions import latencies
from vlroute.learning.base_learners import LengthHead, fit_length
from vlroute.learning.folds import Design, folds_of
from vlroute.learning.model_selection import INNER_FOLDS, Choice, choose
from vlroute.records import Record
from vlroute.types import MODES

LEAST = 20  # records


def fit_classifier(
    records: Sequence[Record], *, seed: int = 0, text: TextEncoder | None = None, only: str | None = None
) -> ComplexityClassifier:
    """Learn vocabulary, members, heads and calibration; how the candidates compared stands in the card.

    `text`: what embeds prompts and captions; none: words only. Deterministic: equal records, order and seed give equal
    weights. Everything is chosen, and the calibration is fitted, on predictions for records the members had not seen
    (`INNER_FOLDS` folds). Texts may come again there, as they may in use: keeping them apart would calibrate for
    strange texts only, which on prompts made from templates measurably shifts the probabilities.
    `only`: a candidate that is not to compete, where these folds cannot tell: records filled into few wordings flatter
    what remembers them. ValueError for fewer than 20 records.
    """
    if len(records) < LEAST:
        raise ValueError(f"{len(records)} records are too few to learn from: at least {LEAST} are needed")
    encoder = RequestEncoder.fit([(record.prompt, record.caption) for record in records], text)
    design = Design(encoder, records)
    fold = folds_of(records, INNER_FOLDS, seed, together="record")[design.owner]
    choice = choose(design, fold, only)
    heads = _joined(choice, design, [fit_length(design, fold, mode) for mode in MODES])
    if not heads.weights[encoder.crossed_columns].any():  # no head wants crosses: leave them out of the artifact
        heads = replace(heads, weights=np.delete(heads.weights, encoder.crossed_columns, axis=0))
        encoder = encoder.without_crosses()
    if not heads.reads_embedding:
        heads = replace(heads, embedded=heads.embedded[:0])
        encoder = encoder.with_text(None)
    card = {"candidates": [asdict(one) for one in choice.comparisons]}
    return ComplexityClassifier(encoder, heads, measure_latency(records), card)


def _joined(choice: Choice, design: Design, length: Sequence[LengthHead]) -> Heads:
    """The chosen members, each fitted on all records, as one: what is linear in all of them adds up."""
    weights = np.zeros((design.matrix.shape[1], 4))
    embedded, bias, blend = np.zeros((design.embedding.shape[1], 2)), np.zeros(4), np.zeros((2, 2))
    weights[:, 2:] = np.column_stack([head[0] for head in length])
    bias[2:] = [head[1] for head in length]
    neighbours, forest = None, None
    for member, share, sigmoid in zip(choice.members, choice.shares, choice.platt, strict=True):
        slope, fitted = share * sigmoid[:, 0], member.fitted()
        bias[:2] += share * sigmoid[:, 1]
        if fitted.weights is not None:
            weights[:, :2] += fitted.weights * slope
        if fitted.embedded is not None:
            embedded += fitted.embedded * slope
        if fitted.bias is not None:
            bias[:2] += fitted.bias * slope
        if fitted.neighbours is not None:
            neighbours, blend[0] = fitted.neighbours, slope
        if fitted.forest is not None:
            forest, blend[1] = fitted.forest, slope
    return Heads(
        weights=weights.astype(np.float32),
        embedded=embedded.astype(np.float32),
        bias=bias.astype(np.float32),
        calibration=np.asarray(choice.calibration, dtype=np.float32),
        log_tokens=np.asarray([head[2] for head in length], dtype=np.float32),
        blend=blend.astype(np.float32),
        neighbours=neighbours,
        forest=forest,
    )


def measure_latency(records: Sequence[Record]) -> LatencyModel:
    """Seconds per token and of prefill, estimated from the records; see `assumptions`."""
    found = latencies(records)
    return LatencyModel({mode: found[mode][1] for mode in MODES}, {mode: found[mode][0] for mode in MODES})
