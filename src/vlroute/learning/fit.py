"""Records in, `ComplexityClassifier` out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlroute.decision.classifier import ComplexityClassifier, Heads
from vlroute.decision.features import RequestEncoder
from vlroute.decision.pace import Pace
from vlroute.learning.design import Design, folds_of
from vlroute.learning.heads import fit_length, fit_right
from vlroute.learning.records import Record, outcomes
from vlroute.modes import MODES, Mode

INNER_FOLDS = 4


def fit_classifier(records: Sequence[Record], *, seed: int = 0) -> ComplexityClassifier:
    """Learn vocabulary, heads and calibration. Deterministic: equal records, order and seed give equal weights.

    Penalties are chosen, and the calibration is fitted, on predictions for records the heads had not seen
    (`INNER_FOLDS` folds). Texts may come again there, as they may in use: keeping them apart would calibrate for
    strange texts only, which on prompts made from templates measurably shifts the probabilities.
    ValueError for fewer than 20 records.
    """
    if len(records) < 20:
        raise ValueError(f"{len(records)} records are too few to learn from: at least 20 are needed")
    encoder = RequestEncoder.fit([(record.prompt, record.caption) for record in records])
    design = Design(encoder, records)
    fold = folds_of(records, INNER_FOLDS, seed, together="record")[design.owner]
    right = [fit_right(design, fold, mode) for mode in MODES]
    length = [fit_length(design, fold, mode) for mode in MODES]
    weights = np.column_stack([head[0] for head in (*right, *length)]).astype(np.float32)
    if not weights[encoder.crossed_columns].any():  # no head wants crosses: leave them out of the artefact
        weights = np.delete(weights, encoder.crossed_columns, axis=0)
        encoder = encoder.without_crosses()
    heads = Heads(
        weights=weights,
        bias=np.asarray([head[1] for head in (*right, *length)], dtype=np.float32),
        calibration=np.asarray([head[2] for head in right], dtype=np.float32),
        log_tokens=np.asarray([head[2] for head in length], dtype=np.float32),
    )
    return ComplexityClassifier(encoder, heads, measure_pace(records))


def measure_pace(records: Sequence[Record]) -> Pace:
    """Seconds per token and of prefill as the records show them; the assumed values where they say nothing.

    Decoding is what `seconds` leaves after `prefill_seconds`. Where prefill was not timed, a line is laid
    through (tokens, seconds): its slope is the time per token, its start the prefill.
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
