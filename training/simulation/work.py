"""What requests cost: drawn from measured records, each request as one of them was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vlroute.errors import InputError
from vlroute.learning.records import Outcome, Record
from vlroute.modes import MODES, Mode


@dataclass(frozen=True, slots=True)
class Work:
    """One request on an idle replica: seconds before it needs a row (parsing, caption, decision), seconds of reading
    its prompt in a row, and tokens written after the first."""

    mode: Mode
    before: float
    prefill: float
    tokens: int

    def __post_init__(self) -> None:
        if min(self.before, self.prefill, self.tokens) < 0:
            raise ValueError(f"seconds and tokens must be 0 or more, not {self}")


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica. `steps[k - 1]`: seconds of one token for k rows of a mode together, alone on the machine; more rows
    go on along the last slope. `cores`: how many things proceed at full speed at the same time (prompts being read,
    modes that write); more of them share. `rows` a mode, and `inside` in all, as of `vlroute serve`."""

    steps: tuple[float, ...]
    cores: float = 1.0
    rows: int = 8
    inside: int = 80

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) <= 0 or self.cores <= 0 or self.rows < 1 or self.inside < 1:
            raise ValueError(f"steps and cores must be over 0, rows and inside at least 1: {self}")

    def step(self, rows: int) -> float:
        """Seconds until each of so many rows has one token more."""
        known = len(self.steps)
        if rows <= known:
            return self.steps[rows - 1]
        slope = self.steps[-1] - self.steps[-2] if known > 1 else self.steps[-1]
        return self.steps[-1] + slope * (rows - known)


def works(records: Iterable[Record], modes: Sequence[Mode]) -> list[Work]:
    """What each record's request costs in the mode chosen for it. InputError where tokens or seconds are missing."""
    return [_work(record.id, mode, _outcome(record, mode)) for record, mode in zip(records, modes, strict=True)]


def per_token(records: Sequence[Record]) -> float:
    """Median seconds of a token after the first. InputError where no record tells."""
    found = [
        (outcome.seconds - outcome.prefill_seconds) / (outcome.tokens - 1)
        for record in records
        for outcome in (_outcome(record, mode) for mode in MODES)
        if outcome.seconds and outcome.prefill_seconds is not None and outcome.tokens and outcome.tokens > 1
    ]
    if not found:
        raise InputError("no record holds tokens, seconds and prefill_seconds: collect some with vlroute collect")
    return float(np.median(found))


def _outcome(record: Record, mode: Mode) -> Outcome:
    return record.instruct if mode == "instruct" else record.thinking


def _work(id: str, mode: Mode, outcome: Outcome) -> Work:
    if outcome.tokens is None or outcome.prefill_seconds is None:
        raise InputError(f"record {id!r} lacks tokens or prefill_seconds of {mode}: collect it with vlroute collect")
    return Work(mode, 0.0, outcome.prefill_seconds, max(outcome.tokens - 1, 0))
