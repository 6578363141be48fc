"""Files of a trained router: `router.json`, the readable card, and `weights.safetensors`. They contain no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from vlroute.errors import ArtifactError
from vlroute.files import replace_file

SCHEMA = 4
CARD_FILE = "router.json"
WEIGHTS_FILE = "weights.safetensors"
REPORT_FILE = "report.md"
REMEDY = "copy the whole folder again, or train the router again with 'vlroute train'"

Arrays = dict[str, NDArray[Any]]
DTYPES = (np.float32, np.float16, np.uint64, np.int64, np.int32)

#: Names of schema 3 and their names today.
_RENAMED_KEYS = {"pair": "model", "pace": "latency", "candidates": "model_selection"}
_RENAMED_ARRAYS = {"centre": "center", "calibration_set.known": "calibration_set.coverage"}
#: Arrays of schema 3 without effect where no removed learner is in use.
_UNUSED = ("blend", "idf_crossed")
_REMOVED_LEARNERS = ("neighbours.", "forest.")


def artifact_files(folder: Path) -> list[Path]:
    """Return all files that can belong to a router: its own, its report and its vision probe. Some may not exist."""
    names = (CARD_FILE, WEIGHTS_FILE)
    return [folder / name for name in (*names, REPORT_FILE)] + [folder / "probe" / name for name in names]


def write_artifact(folder: str | Path, card: Mapping[str, Any], arrays: Arrays) -> None:
    """Write both files into `folder`.

    The card is written last and contains the SHA-256 of the weights, so that `read_artifact` detects an interrupted
    write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    head = {"schema": SCHEMA, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps({**head, **card}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    replace_file(folder / WEIGHTS_FILE, weights)
    replace_file(folder / CARD_FILE, text.encode())


def read_artifact(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """Read the card and the arrays.

    Args:
        folder: The folder of the artifact. Schema 3 is read, too.

    Returns:
        The card without schema and checksum, and the arrays by name.

    Raises:
        ArtifactError: Files are missing, damaged, not finite or of another schema.
    """
    folder = Path(folder)
    try:
        card = json.loads(_read(folder / CARD_FILE))
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD_FILE} is not valid JSON ({error}); {REMEDY}") from error
    schema = card.pop("schema", None) if isinstance(card, dict) else None
    if schema not in (3, SCHEMA):
        raise ArtifactError(
            f"{folder / CARD_FILE} has schema {schema!r}; this version of vlroute reads 3 and {SCHEMA}. Train "
            "the router again with 'vlroute train', or install the version of vlroute that wrote it"
        )
    weights = _read(folder / WEIGHTS_FILE)
    if hashlib.sha256(weights).hexdigest() != card.pop("weights_sha256", None):
        raise ArtifactError(f"{folder / WEIGHTS_FILE} is damaged or belongs to another {CARD_FILE}; {REMEDY}")
    try:
        arrays: Arrays = load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder / WEIGHTS_FILE} is not a safetensors file ({error}); {REMEDY}") from error
    for name, array in arrays.items():
        if array.dtype not in DTYPES or not bool(np.isfinite(array).all()):
            raise ArtifactError(f"{folder / WEIGHTS_FILE}: {name!r} is {array.dtype} or not finite; {REMEDY}")
    return _from_schema_3(folder, card, arrays) if schema == 3 else (card, arrays)


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path} ({error.strerror}); {REMEDY}") from error
