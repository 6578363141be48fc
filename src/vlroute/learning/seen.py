"""Which records a router was trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.record_hashes import RecordHashes
from vlroute.records import Record, outcomes
from vlroute.types import MODES


def hash_training_records(
    classifier: ComplexityClassifier, records: Sequence[Record], before: ComplexityClassifier | None = None
) -> RecordHashes:
    """Hash the records that a router was trained on, for its artifact.

    Args:
        classifier: The router. Its weights give the salt, so that equal trainings write equal artifacts.
        records: Its records.
        before: The router from which its training started. Its records are included.

    Returns:
        The hashes.
    """
    known = None if before is None else before.record_hashes
    if known is not None:
        return known.and_those_of(RecordHashes.of(map(_key, records), known.salt))
    salt = np.asarray([int(classifier.fingerprint, 16)], np.uint64)
    return RecordHashes.of(map(_key, records), salt)


def seen_records(classifier: ComplexityClassifier, records: Sequence[Record]) -> list[Record]:
    """Return those of `records` that a router was trained on; none if its artifact has no hashes of its records."""
    if classifier.record_hashes is None:
        return []
    known = classifier.record_hashes.contain(map(_key, records))
    return [record for record, seen in zip(records, known.tolist(), strict=True) if seen]


def _key(record: Record) -> str:
    """What identifies a record, also after it was graded again.

    Ids and texts can be the same in different files with numbered rows and questions from a template; measured seconds
    are not. Besides, nobody can guess them, so that the hash of a record does not tell whether a text was in it.
    """
    measured = [
        [outcome.tokens, None if outcome.seconds is None else float(outcome.seconds)]
        for mode in MODES
        for outcome in outcomes([record], mode)
    ]
    return json.dumps([record.id, record.prompt, record.caption, measured])
