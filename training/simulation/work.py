"""What requests cost, and how fast a replica works: values that are measured, not fitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.errors import InputError
from vlroute.learning.records import Outcome, Record
from vlroute.modes import Mode

Stage = Literal["front", "seeing", "reading", "writing"]


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
    needed. `predicted`: what the router expects of it; None where modes go by share. ValueError for less than 0.
    """

    instruct: Work
    thinking: Work
    front: float = 0.0
    seeing: float = 0.0
    predicted: Prediction | None = None

    def __post_init__(self) -> None:
        if not min(self.front, self.seeing) >= 0:
            raise ValueError(f"seconds must be 0 or more, not {self.front} and {self.seeing}")

    def work(self, mode: Mode) -> Work:
        return self.instruct if mode == "instruct" else self.thinking


@dataclass(frozen=True, slots=True)
class Slower:
    """How many times longer each stage takes than on the idle replica, `[k - 1]` with k requests inside; measured, as
    of a flow-equivalent server (Chandy, Herzog and Woo 1975). Beyond the last it grows with the requests.

    ValueError unless all are as long, and over 0.
    """

    front: tuple[float, ...]
    seeing: tuple[float, ...]
    reading: tuple[float, ...]
    writing: tuple[float, ...]

    def __post_init__(self) -> None:
        each = (self.front, self.seeing, self.reading, self.writing)
        if not self.front or len({*map(len, each)}) > 1 or not min(map(min, each)) > 0:
            raise ValueError(f"each stage must be so many times slower for as many requests, and over 0: {self}")

    def of(self, stage: Stage, inside: int) -> float:
        times: tuple[float, ...] = getattr(self, stage)
        return times[inside - 1] if inside <= len(times) else times[-1] * inside / len(times)


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica.

    `growth[k - 1]`: how many times longer a token of k rows takes than one of a single row; more rows go on along the
    last slope. `cores`: seconds of work that can be done in a second, at most one by each thing at work: 1 on one GPU.
    `slower`: measured, in place of these two. `rows` a mode, `inside` in all, as of `vlroute serve`. ValueError for
    what makes no machine.
    """

    growth: tuple[float, ...] = (1.0,)
    cores: float = 1.0
    slower: Slower | None = None
    rows: int = 8
    inside: int = 80

    def __post_init__(self) -> None:
        if not self.growth or not min(*self.growth, self.cores) > 0 or self.rows < 1 or self.inside < 1:
            raise ValueError(f"growth and cores must be over 0, rows and inside at least 1: {self}")

    def times(self, stage: Stage, active: int, inside: int, rows: int = 1) -> float:
        """How many times longer than on the idle replica: `active` things at work, requests `inside`, `rows` that write
        together."""
        if self.slower:
            return self.slower.of(stage, inside)
        shared = max(active / self.cores, 1.0)
        return shared * self._growth(rows) if stage == "writing" else shared

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
