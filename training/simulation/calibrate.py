"""From measurements of a server to requests and a `Machine`. Nothing is fitted to the loads that are predicted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import get_args

import numpy as np

from training.simulation.work import Machine, Request, Slower, Stage, Work
from vlroute.decision.classifier import Prediction
from vlroute.modes import Mode

STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer as a client and the server's own times tell it, all in seconds; see `Request` for `front` and
    `seeing`."""

    mode: Mode
    tokens: int
    front: float
    seeing: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Crowd:
    """What clients got that ask again at once: answers a second, and mean seconds of each stage; `writing` over the
    seconds that so many tokens take on the idle server."""

    rate: float
    front: float
    seeing: float
    reading: float
    writing: float

    def mean(self, other: Crowd) -> Crowd:
        """Of two: the machine is not as fast before as after."""
        return Crowd(*((getattr(self, f.name) + getattr(other, f.name)) / 2 for f in fields(self)))


def requests_from(both: Iterable[tuple[Answered, Answered]], predicted: Iterable[Prediction]) -> list[Request]:
    """What was asked in both modes of an idle server, the way first that the router chose."""
    found = []
    for (routed, forced), expected in zip(both, predicted, strict=True):
        # the second way finds the picture known: only the first tells what seeing it takes
        works = {one.mode: Work(one.prefill, one.decode, one.tokens) for one in (routed, forced)}
        found.append(Request(works["instruct"], works["thinking"], routed.front, routed.seeing, expected))
    return found


@dataclass(frozen=True, slots=True)
class Writing:
    """Seconds of writing on the idle server: a start, and so much for each token. By Theil and Sen (1968), the median
    over all pairs of answers, whom a stall of the machine does not move."""

    start: float
    token: float

    @classmethod
    def of(cls, answers: Sequence[Answered]) -> Writing:
        tokens = np.array([one.tokens for one in answers], np.float64)
        seconds = np.array([one.decode for one in answers], np.float64)
        first, second = np.triu_indices(len(answers), 1)
        apart = tokens[first] != tokens[second]
        first, second = first[apart], second[apart]
        token = float(np.median((seconds[first] - seconds[second]) / (tokens[first] - tokens[second])))
        return cls(max(float(np.median(seconds - token * tokens)), 0.0), token)

    def seconds(self, tokens: int) -> float:
        return self.start + self.token * tokens


def crowd_of(rate: float, answers: Sequence[Answered], writing: Writing) -> Crowd:
    front, seeing, reading = (
        float(np.mean([getattr(one, name) for one in answers])) for name in ("front", "seeing", "prefill")
    )
    idle = sum(writing.seconds(one.tokens) for one in answers)
    return Crowd(rate, front, seeing, reading, sum(one.decode for one in answers) / idle)


def machine_of(crowds: Mapping[int, Crowd], idle: Crowd) -> Machine:
    """The machine on which so many clients got that; `idle`: what the requests to simulate got, one after the other.
    Between two sizes of crowd it is interpolated."""
    clients = sorted(crowds)
    counts = range(1, clients[-1] + 1)

    def times(stage: Stage) -> tuple[float, ...]:
        measured = [getattr(crowds[size], stage) / getattr(idle, stage) for size in clients]
        return tuple(float(one) for one in np.interp(counts, clients, measured))

    return Machine(slower=Slower(*map(times, STAGES)))
