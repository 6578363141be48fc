"""Files of a trained router: `router.json`, the readable card, and its weights. They contain no code."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from vlroute.errors import ArtifactError
from vlroute.file_lock import locked
from vlroute.files import make_folder, read_regular, replace_file, sweep_drafts

SCHEMA = 5
CARD_FILE = "router.json"
#: The weights up to schema 4. Since then, their name contains the beginning of their SHA-256.
WEIGHTS_FILE = "weights.safetensors"
REPORT_FILE = "report.md"
REMEDY = "copy the whole folder again, or train the router again with 'vlroute train'"

Arrays = dict[str, NDArray[Any]]
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: Limits of what is read, in bytes. A card of 200,000 terms has 4 MB; the weights of a million records have 100 MB.
MAX_CARD_BYTES, MAX_WEIGHTS_BYTES = 32 * 2**20, 2**30
#: The largest absolute value of a weight. Sums of products with such weights are still finite in 32 bits.
LARGEST = 1e20
DTYPES = (np.float32, np.float16, np.uint64, np.int64, np.int32)

#: Names of schema 3 and their names today.
_RENAMED_KEYS = {"pair": "model", "pace": "latency", "candidates": "model_selection"}
_RENAMED_ARRAYS = {"centre": "center", "calibration_set.known": "calibration_set.coverage"}
#: Arrays of schema 3 without effect where no removed learner is in use.
_UNUSED = ("blend", "idf_crossed")
_REMOVED_LEARNERS = ("neighbours.", "forest.")


def artifact_files(folder: Path) -> list[Path]:
    """Return all files that can belong to a router: its own, its report and its vision probe. Some may not exist."""
    found = [one for part in (folder, folder / "probe") for one in (part / CARD_FILE, *_all_weights(part))]
    return [*found, folder / REPORT_FILE]


def weights_path(folder: Path) -> Path:
    """The file of weights that the card in `folder` names; it may not exist. Raises ArtifactError for a wrong card."""
    _, schema, digest = _card(folder)
    return _weights_file(folder, schema, digest)


def _weights_file(folder: Path, schema: int, digest: str) -> Path:
    """The file of the weights with this SHA-256."""
    return folder / (WEIGHTS_FILE if schema < 5 else f"weights-{digest[:16]}.safetensors")


def write_artifact(folder: str | Path, card: Mapping[str, Any], arrays: Arrays) -> None:
    """Replace the artifact in `folder` as a whole.

    The new weights get a name of their own, and the card, which contains their SHA-256, is replaced after that. If the
    process is killed, the folder contains either the old artifact or the new one. Old weights are removed at the end.

    Args:
        folder: The folder of the artifact; it is created.
        card: The card, without schema and checksum.
        arrays: The weights by name.

    Raises:
        OutputError: Another process is writing to the same folder.
        OSError: A file cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)
    weights = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    digest = hashlib.sha256(weights).hexdigest()
    head = {"schema": SCHEMA, "weights_sha256": digest}
    text = json.dumps({**head, **card}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    file = _weights_file(folder, SCHEMA, digest)
    with locked(folder / CARD_FILE):
        sweep_drafts(folder, CARD_FILE, REPORT_FILE, "weights-*.safetensors")
        replace_file(file, weights)
        replace_file(folder / CARD_FILE, text.encode())
        for other in _all_weights(folder):
            if other != file:
                with suppress(OSError):  # the new artifact is complete; the next call removes the old weights
                    other.unlink(missing_ok=True)


def write_report(folder: Path, report: str) -> None:
    """Replace the report of the artifact in `folder`.

    Args:
        folder: The folder of the artifact.
        report: Markdown.

    Raises:
        OutputError: Another process is writing to the same folder.
        OSError: The file cannot be written.
    """
    with locked(folder / CARD_FILE):  # so that the drafts of killed processes can be told from those in use
        replace_file(folder / REPORT_FILE, report.encode())


def _all_weights(folder: Path) -> list[Path]:
    return [folder / WEIGHTS_FILE, *folder.glob("weights-*.safetensors")]


def read_artifact(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """Read the card and the arrays.

    Args:
        folder: The folder of the artifact. Schemas 3 and 4 are read, too.

    Returns:
        The card without schema and checksum, and the arrays by name.

    Raises:
        ArtifactError: Files are missing, damaged, too large, of another schema, or contain too large numbers.
    """
    folder = Path(folder)
    missing = ""
    while True:
        card, schema, digest = _card(folder)
        file = _weights_file(folder, schema, digest)
        try:
            weights = _read(file, MAX_WEIGHTS_BYTES)
            break
        except ArtifactError:
            if digest == missing:
                raise
            missing = digest  # unless the artifact has been replaced since its card was read
    if hashlib.sha256(weights).hexdigest() != digest:
        raise ArtifactError(f"{file} is damaged or belongs to another {CARD_FILE}; {REMEDY}")
    try:
        arrays: Arrays = load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{file} is not a safetensors file ({error}); {REMEDY}") from error
    for name, array in arrays.items():
        if array.dtype not in DTYPES:
            raise ArtifactError(f"{file}: {name!r} has the type {array.dtype}; {REMEDY}")
        if not float(np.abs(array).max(initial=0)) <= LARGEST:  # NaN, too
            raise ArtifactError(f"{file}: a number in {name!r} is not finite or beyond ±{LARGEST:g}; {REMEDY}")
    return _from_schema_3(folder, card, arrays) if schema == 3 else (card, arrays)


def _card(folder: Path) -> tuple[dict[str, Any], int, str]:
    """The card without schema and checksum, the schema, and the checksum."""
    try:
        data = _read(folder / CARD_FILE, MAX_CARD_BYTES)
        card = json.loads(data, parse_float=_finite, parse_constant=_finite)
        if _ESCAPED_SURROGATE.search(data):
            json.dumps(card, ensure_ascii=False).encode()  # half of a surrogate pair could not be saved again
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / CARD_FILE} is not valid JSON ({error}); {REMEDY}") from error
    schema = card.pop("schema", None) if isinstance(card, dict) else None
    if schema not in (3, 4, SCHEMA):
        raise ArtifactError(
            f"{folder / CARD_FILE} has schema {schema!r}; this version of vlroute reads 3 to {SCHEMA}. Train "
            "the router again with 'vlroute train', or install the version of vlroute that wrote it"
        )
    digest = card.pop("weights_sha256", None)
    if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise ArtifactError(f"{folder / CARD_FILE} has no valid weights_sha256; {REMEDY}")
    return card, schema, digest


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _from_schema_3(folder: Path, card: dict[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Rename what schema 4 renames. Crossed features, nearest neighbors and trees are refused."""
    vocabulary = card.get("vocabulary")
    crossed = vocabulary.pop("crossed", None) if isinstance(vocabulary, dict) else None
    if crossed or any(name.startswith(_REMOVED_LEARNERS) for name in arrays):
        raise ArtifactError(
            f"{folder / CARD_FILE} uses crossed features, nearest neighbors or trees, which this version of vlroute "
            "does not support. Train the router again with 'vlroute train'"
        )
    card = {_RENAMED_KEYS.get(key, key): value for key, value in card.items()}
    return card, {_RENAMED_ARRAYS.get(name, name): array for name, array in arrays.items() if name not in _UNUSED}


def _read(path: Path, most: int) -> bytes:
    try:
        return read_regular(path, most)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ArtifactError(f"cannot read {path} ({why}); {REMEDY}") from error
