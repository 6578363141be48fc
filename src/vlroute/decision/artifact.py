"""A trained router on disk: `router.json` to read, `weights.safetensors` to compute with.

Nothing in it can run code.
"""

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

SCHEMA = 3
CARD_FILE = "router.json"
WEIGHTS_FILE = "weights.safetensors"
REPORT_FILE = "report.md"

Arrays = dict[str, NDArray[Any]]
#: float32, float16 to save room, and whole numbers as keys and places.
DTYPES = (np.float32, np.float16, np.uint64, np.int64, np.int32)


def artifact_files(folder: Path) -> list[Path]:
    """The files that belong to a router artifact: its own, its report's and its vision probe's. Some may be missing."""
    names = (CARD_FILE, WEIGHTS_FILE)
    return [folder / name for name in (*names, REPORT_FILE)] + [folder / "probe" / name for name in names]


def write_artifact(folder: str | Path, card: Mapping[str, Any], arrays: Arrays) -> None:
    """Write both files. The card comes last and holds the weights' SHA-256: a torn write is refused later."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    head = {"schema": SCHEMA, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps({**head, **card}, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    replace_file(folder / WEIGHTS_FILE, weights)
    replace_file(folder / CARD_FILE, text.encode())


def read_artifact(folder: str | Path) -> tuple[dict[str, Any], Arrays]:
    """The card and the arrays. ArtifactError if missing, damaged, not finite or of another schema."""
    folder = Path(folder)
    try:
        card = json.loads(_read(folder / CARD_FILE))
    except ValueError as error:
        raise ArtifactError(f"{folder / CARD_FILE} is no valid JSON ({error}); {REMEDY}") from error
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        found = card.get("schema") if isinstance(card, dict) else None
        raise ArtifactError(
            f"{folder / CARD_FILE} has schema {found!r}, this version of vlroute reads {SCHEMA}: "
            "retrain it with training/retrain.py, or install the version of vlroute that wrote it"
        )
    weights = _read(folder / WEIGHTS_FILE)
    del card["schema"]  # the head belongs to the files, not to what they hold: saved again it is written anew
    if hashlib.sha256(weights).hexdigest() != card.pop("weights_sha256", None):
        raise ArtifactError(f"{folder / WEIGHTS_FILE} is damaged or belongs to another {CARD_FILE}; {REMEDY}")
    try:
        arrays: Arrays = load_tensors(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder / WEIGHTS_FILE} is no safetensors file ({error}); {REMEDY}") from error
    for name, array in arrays.items():
        if array.dtype not in DTYPES or not bool(np.isfinite(array).all()):
            raise ArtifactError(f"{folder / WEIGHTS_FILE}: {name!r} is {array.dtype} or not finite; {REMEDY}")
    return card, arrays


REMEDY = "copy the whole folder again or retrain it with training/retrain.py"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path} ({error.strerror}); {REMEDY}") from error
