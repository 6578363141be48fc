"""The router from which a training starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import InputError
from vlroute.files import shipped
from vlroute.learning.seen import seen_records
from vlroute.records import Record


def load_start(folder: Path) -> ComplexityClassifier:
    """Load the router from which a training starts.

    Args:
        folder: Folder of its artifact.

    Returns:
        The router. It may have another text encoder than the new one.

    Raises:
        InputError: It was itself started from another one.
        ArtifactError: Its files cannot be used.
    """
    classifier = ComplexityClassifier.load(folder)
    if classifier.start is not None:
        raise InputError(
            f"{folder} was itself started from {classifier.start.name!r}; start from that router, with the records of "
            "both trainings"
        )
    return classifier


def refuse_same_files(classifier: ComplexityClassifier, source: str | Path, data: Iterable[dict[str, Any]]) -> None:
    """Raise an error if a router was trained on one of these files.

    Its logits for these records would be better than for other requests, and so would all figures of the new router.

    Args:
        classifier: The router from which a training starts.
        source: Its name or folder.
        data: Name and SHA-256 of the files of records.

    Raises:
        InputError: It was trained on one of them.
    """
    provenance = classifier.card.get("provenance")
    known = provenance.get("data", []) if isinstance(provenance, dict) else []
    hashes = {one.get("sha256") for one in known if isinstance(one, dict)}
    if same := [one["file"] for one in data if one["sha256"] in hashes]:
        raise InputError(f"{source} was trained on {', '.join(same)}: pass only new records, or train without --from")


def refuse_same_records(classifier: ComplexityClassifier, source: str | Path, records: Sequence[Record]) -> None:
    """Raise an error if a router was trained on some of these records, see `refuse_same_files`.

    Args:
        classifier: The router from which a training starts.
        source: Its name or folder.
        records: The records.

    Raises:
        InputError: It was trained on some of them, as far as its artifact has hashes of its records.
    """
    if seen := seen_records(classifier, records):
        raise InputError(
            f"{source} was trained on {len(seen)} of these {len(records)} records, such as {seen[0].id!r}: pass only "
            "new records, or train on all of them without --from"
        )


def start_warnings(classifier: ComplexityClassifier, source: str | Path, folder: Path) -> list[str]:
    """Warn if a router does not recognize all of its training records, so that some of the new ones may be among them.

    Args:
        classifier: The router from which a training starts.
        source: Its name or folder.
        folder: The folder of its artifact.

    Returns:
        At most one sentence without a full stop; none for the routers of this package, whose records nobody else has.
    """
    hashes = classifier.record_hashes
    if (hashes is not None and hashes.complete) or folder.resolve().is_relative_to(shipped("").resolve()):
        return []
    return [
        f"{source} does not recognize all records that it was trained on, so it is unknown whether all of these "
        "records are new to it. If some are not, the figures of this training are too good: pass only new records, or "
        "train on the records of both trainings without --from"
    ]
