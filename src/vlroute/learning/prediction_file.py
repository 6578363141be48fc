"""Read the file of out-of-fold predictions that `vlroute train --oof` writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from vlroute.checks import shown
from vlroute.errors import InputError
from vlroute.learning.folds import Together
from vlroute.learning.metrics import Values
from vlroute.learning.seen import training_digest
from vlroute.records import MOST_TOKENS, Record, Skipped, reading
from vlroute.types import MODES


@dataclass(frozen=True, slots=True)
class PredictionFile:
    """What a file of out-of-fold predictions contains.

    Attributes:
        p: p_instruct and p_thinking, `[2, n]`, in the order of the records.
        folds: Number of folds; None if an earlier version wrote the file.
        together: What shared a fold; None likewise.
        tokens: Expected tokens of both modes, `[2, n]`; None likewise.
    """

    p: Values
    folds: int | None
    together: Together | None
    tokens: Values | None


def read_oof(path: str | Path, records: Sequence[Record], *, skipped: Skipped | None = None) -> PredictionFile:
    """Read the predictions that `train_router(oof=…)` wrote.

    Args:
        path: The file.
        records: The records to find. Lines for other records are ignored.
        skipped: Collects lines that cannot be used; these are left out, and as many records may lack a line and get
            NaN. Without it, such a line raises.

    Returns:
        The predictions, and how the folds were made.

    Raises:
        InputError: The file cannot be read, a record has no line, a record is not the one of the training, or the lines
            are from different trainings. Without `skipped`, also if a line is not
            `{"id": …, "p_instruct": …, "p_thinking": …}` with probabilities, or repeats an id; the error names file and
            line.
    """
    path = Path(path)
    found: dict[str, _PredictionLine] = {}
    broken = 0
    with reading(path, "the file that vlroute train --oof wrote"):
        lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            try:
                name, prediction = _prediction(json.loads(line.decode("utf-8-sig")))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: {error}") from error
            if name in found:
                raise InputError(f"{path}:{number}: id {name!r} was already used")
        except InputError as error:
            if skipped is None:
                raise
            broken += 1
            skipped.add(error)
            continue
        found[name] = prediction
    if not found:
        why = f" ({skipped})" if skipped is not None and skipped.count else ""
        raise InputError(f"{path}: no out-of-fold predictions; expected the file that vlroute train --oof wrote{why}")
    missing = [record.id for record in records if record.id not in found]
    if len(missing) > broken:
        raise InputError(
            f"{path}: no prediction for {len(missing)} of {len(records)} records, the first {missing[0]!r}; "
            "give the records that the router was trained from"
        )
    others = [
        record.id
        for record in records
        if record.id in found and found[record.id].record not in (None, training_digest(record))
    ]
    if others:
        raise InputError(
            f"{path}: {len(others)} of {len(records)} records have another request or other outcomes than in the "
            f"training, the first {others[0]!r}; give the records that the router was trained from, or train again"
        )
    if len(settings := {one.training for one in found.values()}) > 1:
        several = "; ".join(sorted(settings))
        raise InputError(f"{path}: the lines are from different trainings ({several}); pass the file of one training")
    first = next(iter(found.values()))
    nothing = (math.nan, math.nan)
    mine = [found.get(record.id) for record in records]
    p = np.asarray([nothing if one is None else one.p for one in mine]).reshape(-1, 2).T
    tokens = None
    if first.tokens is not None:
        known = [nothing if one is None or one.tokens is None else one.tokens for one in mine]
        tokens = np.asarray(known).reshape(-1, 2).T
    return PredictionFile(p, first.folds, first.together, tokens)


@dataclass(frozen=True, slots=True)
class _PredictionLine:
    """A line of a file of out-of-fold predictions. Fields that an earlier version did not write are None."""

    p: tuple[float, float]
    folds: int | None
    together: Together | None
    tokens: tuple[float, float] | None
    record: str | None

    @property
    def training(self) -> str:
        """The settings that are equal in all lines of one training, in words."""
        folds, together = self.folds or "unknown", self.together or "unknown"
        return f"folds: {folds}, together: {together}, expected tokens: {'no' if self.tokens is None else 'yes'}"


def _prediction(row: Any) -> tuple[str, _PredictionLine]:
    """The id, and the other values of a line."""
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise InputError("expected a JSON object with a string 'id'")
    for name in ("p_instruct", "p_thinking"):
        p = row.get(name)
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise InputError(f"{name!r} must be a number 0 to 1, not {p!r}")
    folds, together = row.get("folds"), row.get("together")
    if folds is not None and not (type(folds) is int and folds >= 2):
        raise InputError(f"'folds' must be a whole number, at least 2, not {folds!r}")
    if together is not None and together not in get_args(Together):
        raise InputError(f"'together' must be 'text' or 'record', not {together!r}")
    short, long = (row.get(f"tokens_{mode}") for mode in MODES)
    tokens: tuple[Any, Any] | None = None
    if (short, long) != (None, None):
        for one in (short, long):
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 <= one <= MOST_TOKENS:
                raise InputError(
                    f"'tokens_instruct' and 'tokens_thinking' must both be numbers from 0 to {MOST_TOKENS}, not "
                    f"{shown(short)} and {shown(long)}"
                )
        tokens = short, long
    record = row.get("record")
    if record is not None and not isinstance(record, str):
        raise InputError(f"'record' must be a string, not {shown(record)}")
    p = float(row["p_instruct"]), float(row["p_thinking"])
    return row["id"], _PredictionLine(p, folds, together, tokens, record)
