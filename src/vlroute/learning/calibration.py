"""The records on which a router resolves targets, with their predictions and outcomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vlroute.decision.classifier import Prediction
from vlroute.decision.evidence import Passed
from vlroute.decision.tradeoff import CalibrationSet, Values
from vlroute.learning.corpus import Indices
from vlroute.records import Record

#: Maximum number of records in an artifact.
MAX_CALIBRATION = 4096


def calibration_set(
    records: Sequence[Record],
    predictions: Sequence[Prediction],
    rows: Indices | None = None,
    later: Mapping[Passed, Values] | None = None,
    limit: int | None = MAX_CALIBRATION,
) -> CalibrationSet:
    """Return records with their predictions and outcomes.

    Args:
        records: The records.
        predictions: Predictions of models that had not seen them.
        rows: Indices of the records to use, such as those with evidence; None: all.
        later: Probabilities of these records at later stages, see `CalibrationSet`.
        limit: Of more records, a random sample of this number is used.

    Returns:
        Predictions and outcomes. Missing numbers of tokens are replaced by the predicted ones.
    """
    rng = np.random.default_rng(0)
    rows = np.arange(len(records)) if rows is None else rows
    places = np.sort(rng.permutation(len(rows))[:limit])
    kept = [(predictions[i], records[i].instruct, records[i].thinking) for i in rows[places].tolist()]
    expected = [(p.tokens_instruct, p.tokens_thinking) for p, _, _ in kept]
    generated = [
        tuple(count if o.tokens is None else o.tokens for o, count in zip(both, counts, strict=True))
        for (_, *both), counts in zip(kept, expected, strict=True)
    ]
    return CalibrationSet(
        p=np.asarray([(p.p_instruct, p.p_thinking) for p, _, _ in kept], np.float32),
        expected=np.asarray(expected, np.float32),
        right=np.asarray([(float(i.correct), float(t.correct)) for _, i, t in kept], np.float32),
        tokens=np.asarray(generated, np.float32),
        coverage=np.asarray([p.coverage for p, _, _ in kept], np.float32),
        later={passed: p[places].astype(np.float32) for passed, p in (later or {}).items()},
    )
