"""Which records a router was trained on."""

from __future__ import annotations

import hashlib
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

    Records without measured seconds have no hash, see `_key`.

    Args:
        classifier: The router. Its weights give the salt, so that equal trainings write equal artifacts.
        records: Its records.
        before: The router from which its training started. Its records are included, as far as it has their hashes.

    Returns:
        The hashes. They are complete if those of `before` are, and all records have a hash.
    """
    keys = [key for key in map(_key, records) if key is not None]
    complete = len(keys) == len(records)
    known = None if before is None else before.record_hashes
    if known is not None:
        return known.and_those_of(RecordHashes.of(keys, known.salt, complete=complete))
    salt = np.asarray([int(classifier.fingerprint, 16)], np.uint64)
    return RecordHashes.of(keys, salt, complete=complete and before is None)


def seen_records(classifier: ComplexityClassifier, records: Sequence[Record]) -> list[Record]:
    """Return those of `records` that a router was trained on, as far as its artifact has hashes of its records."""
    if classifier.record_hashes is None:
        return []
    keyed = [(record, key) for record in records if (key := _key(record)) is not None]
    known = classifier.record_hashes.contain(key for _, key in keyed)
    return [record for (record, _), seen in zip(keyed, known.tolist(), strict=True) if seen]


def training_digest(record: Record) -> str:
    """Hash what out-of-fold predictions depend on: the request, and how right and how long both answers were.

    Args:
        record: A record.

    Returns:
        16 hexadecimal digits. A record that was graded again, or that has only the same id, gets others.
    """
    labels = [[float(outcome.correct), outcome.tokens] for mode in MODES for outcome in outcomes([record], mode)]
    read = json.dumps([record.prompt, record.caption, record.tools, labels])
    return hashlib.sha256(read.encode()).hexdigest()[:16]


def _key(record: Record) -> str | None:
    """What identifies a record, also after it was graded again; None if no mode has measured seconds.

    Ids and texts can be the same in different files with numbered rows and questions from a template; measured seconds
    are not. Besides, nobody can guess them, so that the hash of a record does not tell whether a text was in it.
    """
    found = [outcome for mode in MODES for outcome in outcomes([record], mode)]
    if all(one.seconds is None for one in found):
        return None
    measured = [[one.tokens, None if one.seconds is None else float(one.seconds)] for one in found]
    return json.dumps([record.id, record.prompt, record.caption, measured])
