"""`vlroute curves`: from labelled records and predictions for them to figures that people can read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlroute.errors import InputError
from vlroute.learning.cross_fit import Unseen
from vlroute.learning.curves import trade_offs
from vlroute.learning.curves_page import write_page
from vlroute.learning.design import Together
from vlroute.learning.evaluate import sampling_of, seconds_of
from vlroute.learning.fit import measure_pace
from vlroute.learning.labels import Language
from vlroute.learning.metrics import Values
from vlroute.learning.records import Record, Skipped, outcomes
from vlroute.modes import MODES


def write_curves(
    records: Sequence[Record],
    unseen: Unseen | Values,
    out: str | Path,
    *,
    language: Language = "en",
    folds: int = 5,
    together: Together = "text",
) -> list[Path]:
    """Write the figures and `curves.html` for `records` into the folder `out`; the paths written, the page last.

    `unseen`: predictions by models that had not seen the records, from `cross_fit` or `read_oof` (`[2, n]`).
    Those of several seeds are averaged. Seconds are as recorded; where only tokens are known, what they take at
    the records' own pace. `folds`, `together`: how the records were cut for predictions that come as an array;
    `Unseen` says it itself. InputError for no records, or predictions for another number.
    """
    p = _mean_over_seeds(unseen) if isinstance(unseen, Unseen) else unseen
    if not records or p.shape != (2, len(records)):
        raise InputError(f"need at least one record and two probabilities each, not {len(records)} and {p.shape}")
    sampling = sampling_of(records, unseen if isinstance(unseen, Unseen) else Unseen([], [], folds, together))
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    found = trade_offs(
        p[1] - p[0],
        right,
        seconds_of(records, measure_pace(records)),
        np.asarray([float(len(record.prompt)) for record in records]),
        [record.family for record in records],
        sampling=sampling,
    )
    measured = all(any(o.seconds is not None for o in outcomes(records, mode)) for mode in MODES)
    return write_page(Path(out), found, p, right, language=language, measured=measured, sampling=sampling)


def read_oof(path: str | Path, records: Sequence[Record], *, skipped: Skipped | None = None) -> Values:
    """p_instruct and p_thinking `[2, n]` in the order of `records`, from the file that `train(oof=…)` writes.

    Lines for other records are left out.

    Args:
        path: the file.
        records: those to find.
        skipped: collects lines that cannot be used. These lines are left out, and the same number of records may lack a
            line and get NaN. Without `skipped`, such lines raise.

    Raises:
        InputError: the file cannot be read, or a record has no line. Without `skipped`, also if a line is not `{"id":
            …, "p_instruct": …, "p_thinking": …}` with probabilities, or repeats an id; the error names file and line.
    """
    path = Path(path)
    found: dict[str, tuple[float, float]] = {}
    broken = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the file that retraining wrote") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            try:
                name, p = _prediction(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: {error}") from error
            if name in found:
                raise InputError(f"{path}:{number}: id {name!r} came before")
        except InputError as error:
            if skipped is None:
                raise
            broken += 1
            skipped.add(error)
            continue
        found[name] = p
    if not found:
        why = f" ({skipped})" if skipped is not None and skipped.count else ""
        raise InputError(f"{path}: no out-of-fold predictions; expected the file that vlroute train --oof wrote{why}")
    missing = [record.id for record in records if record.id not in found]
    if len(missing) > broken:
        raise InputError(
            f"{path}: no prediction for {len(missing)} of {len(records)} records, the first {missing[0]!r}; "
            "give the records that the router was trained from"
        )
    nothing = (math.nan, math.nan)
    return np.asarray([[found.get(record.id, nothing)[mode] for record in records] for mode in (0, 1)])


def _prediction(row: Any) -> tuple[str, tuple[float, float]]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise InputError("expected a JSON object with a string 'id'")
    for name in ("p_instruct", "p_thinking"):
        p = row.get(name)
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise InputError(f"{name!r} must be a number 0 to 1, not {p!r}")
    return row["id"], (float(row["p_instruct"]), float(row["p_thinking"]))


def _mean_over_seeds(unseen: Unseen) -> Values:
    p = np.asarray([[(one.p_instruct, one.p_thinking) for one in seed] for seed in unseen.given], dtype=float)
    return np.asarray(p.mean(axis=0).T)
