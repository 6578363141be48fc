"""What requests cost, and how fast a replica works: values that are measured, not fitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.errors import InputError
from vlroute.learning.records import Outcome, Record
from vlroute.modes import Mode

Stage = Literal["front", "seeing", "reading", "writing"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, slots=True)
class Work:
    """What one mode does for a request on an idle replica: `prefill` seconds of reading in a row, then `decode` seconds
    of writing `tokens`. ValueError for less than 0."""

    prefill: float
    decode: float
    tokens: int = 0

    def __post_init__(self) -> None:
        if not min(self.prefill, self.decode, self.tokens) >= 0:
            raise ValueError(f"seconds and tokens must be 0 or more, not {self}")


@dataclass(frozen=True, slots=True)
class Request:
    """One request in both modes, on an idle replica.

    `front`: seconds of parsing, deciding and sending; `seeing`: seconds of tower and caption. Both before a row is
    needed. `predicted`: what the router expects of it; None where modes go by share. `mode`: asked for by name; None:
    to be decided. ValueError for less than 0.
    """

    instruct: Work
    thinking: Work
    front: float = 0.0
    seeing: float = 0.0
    predicted: Prediction | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        if not min(self.front, self.seeing) >= 0:
            raise ValueError(f"seconds must be 0 or more, not {self.front} and {self.seeing}")

    def work(self, mode: Mode) -> Work:
        return self.instruct if mode == "instruct" else self.thinking


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica.

    `speeds[k - 1]`: seconds of work that k things at work do in a second, each alone one at most; the last holds for
    more, too. One for all: a GPU, or threads that take turns. `weights`: shares of it by stage, if they are not equal.
    `in_turn`: parts of seeing and reading, the last ones, that are done by one request at a time; by default all.
    `growth[k - 1]`: how many times longer a token of k rows takes than one of a single row; more rows go on along the
    last slope. `join`: tokens' time that a row loses as it joins others, whose step it waits for. `rows` a mode,
    `inside` in all, as of `vlroute serve`. ValueError for what makes no machine.
    """

    growth: tuple[float, ...] = (1.0,)
    speeds: tuple[float, ...] = (1.0,)
    weights: Mapping[Stage, float] = field(default_factory=dict)
    in_turn: Mapping[Stage, float] = field(default_factory=dict)
    join: float = 0.0
    rows: int = 8
    inside: int = 80

    def __post_init__(self) -> None:
        positive = (*self.growth, *self.speeds, *self.weights.values())
        if not (self.growth and self.speeds and min(positive) > 0 and self.rows >= 1 and self.inside >= 1):
            raise ValueError(f"growth, speeds and weights must be over 0, rows and inside at least 1: {self}")
        if not all(0 <= part <= 1 for part in self.in_turn.values()):
            raise ValueError(f"what is done in turn is a part of a stage, from 0 to 1: {self}")
        if unknown := {*self.weights, *self.in_turn} - set(STAGES):
            raise ValueError(f"stages are {', '.join(STAGES)}, not {', '.join(sorted(unknown))}")

    def shares(self, at_work: Sequence[tuple[Stage, int]]) -> list[float]:
        """How fast each thing at work is, 1 being alone: a stage, and how many rows share its step (else 1)."""
        if not at_work:
            return []
        left = self.speeds[min(len(at_work), len(self.speeds)) - 1]
        weights = [self.weights.get(stage, 1.0) for stage, _ in at_work]
        unserved, found = sum(weights), [0.0] * len(at_work)
        # the weightiest first: what it cannot use, being no faster than alone, is for the others
        for i in sorted(range(len(at_work)), key=weights.__getitem__, reverse=True):
            share = min(1.0, left * weights[i] / unserved)
            left, unserved = left - share, unserved - weights[i]
            stage, rows = at_work[i]
            found[i] = share / self._growth(rows) if stage == "writing" else share
        return found

    def _growth(self, rows: int) -> float:
        known = len(self.growth)
        if rows <= known:
            return self.growth[rows - 1]
        slope = self.growth[-1] - self.growth[-2] if known > 1 else self.growth[-1]
        return self.growth[-1] + slope * (rows - known)


def requests_of(records: Iterable[Record], classifier: ComplexityClassifier | None = None) -> list[Request]:
    """Each record as a request, with what `classifier` predicts of it. InputError where tokens or seconds lack."""
    return [
        Request(
            _work(record, "instruct"), _work(record, "thinking"),
            predicted=classifier.predict(record.prompt, record.caption) if classifier else None,
        )
        for record in records
    ]  # fmt: skip


def _outcome(record: Record, mode: Mode) -> Outcome:
    return record.instruct if mode == "instruct" else record.thinking


def _work(record: Record, mode: Mode) -> Work:
    outcome = _outcome(record, mode)
    if outcome.tokens is None or outcome.seconds is None or outcome.prefill_seconds is None:
        raise InputError(
            f"record {record.id!r} lacks tokens, seconds or prefill_seconds of {mode}: collect it with vlroute collect"
        )
    return Work(outcome.prefill_seconds, max(outcome.seconds - outcome.prefill_seconds, 0.0), outcome.tokens)
