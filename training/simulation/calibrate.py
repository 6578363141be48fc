"""From measurements of a server to requests and a `Machine`. Nothing is fitted to the loads that are predicted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from training.simulation.closed import asked_again
from training.simulation.work import STAGES, Machine, Request, Stage, Work
from vlroute.decision.classifier import Prediction
from vlroute.modes import MODES, Mode

Slower = dict[Stage, float]
Array = NDArray[np.float64]
#: Where the search begins, and within what: speed of two and more things at work; how much longer a second row makes
#: a step, and each further one; weights of front and writing beside seeing and reading; what of these is done in turn;
#: steps that a row loses as it joins others.
START = (1.2, 0.4, 0.3, 2.0, 1.0, 0.8, 0.7, 0.5)
LEAST = (0.5, 0.0, 0.0, 0.2, 0.2, 0.1, 0.1, 0.0)
MOST = (2.0, 3.0, 1.0, 20.0, 5.0, 1.0, 1.0, 4.0)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer as a client and the server's own times tell it, all in seconds; see `Request` for `front` and
    `seeing`. `line`: what no stage accounts for, the wait for a row above all."""

    mode: Mode
    tokens: int
    front: float
    seeing: float
    prefill: float
    decode: float
    line: float = 0.0


def request_from(asked: Iterable[tuple[Answered, Answered]], predicted: Prediction) -> Request:
    """A request that was asked in both modes of an idle server, perhaps several times: the mean of each stage."""
    answers = [one for pair in asked for one in pair]
    works = {}
    for mode in MODES:
        same = [one for one in answers if one.mode == mode]
        works[mode] = Work(_mean(same, "prefill"), _mean(same, "decode"), same[0].tokens)
    front = _mean(answers, "front") + _mean(answers, "line")
    return Request(works["instruct"], works["thinking"], front, _mean(answers, "seeing"), predicted)


def slower(answers: Sequence[tuple[Answered, Request]]) -> Slower:
    """How many times longer each stage took than for the same requests one after the other."""
    idle = [Answered(one.mode, 0, request.front, request.seeing, *_seconds(request.work(one.mode)))
            for one, request in answers]  # fmt: skip
    return {
        stage: _sum([one for one, _ in answers], name) / _sum(idle, name)
        for stage, name in zip(STAGES, ("front", "seeing", "prefill", "decode"), strict=True)
    }


def amid(count: int, clients: int) -> slice:
    """Of so many answers in the order of their end those of the time in which all clients were at it."""
    return slice(min(2 * clients, count // 4), count - clients)


def simulated(machine: Machine, requests: Sequence[Request], clients: int) -> Slower:
    """`slower` of a crowd on `machine`. Requests must name their mode."""
    jobs = asked_again(machine, requests, clients)[amid(len(requests), clients)]
    answers = [
        Answered(
            job.mode, 0, job.seeing_at - job.arrived, job.lined_at - job.seeing_at, job.writing_at - job.reading_at,
            job.written_at - job.writing_at,
        )
        for job in jobs
    ]  # fmt: skip
    return slower([(answer, job.request) for answer, job in zip(answers, jobs, strict=True)])


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many clients that asked `requests`, each naming its mode, and how much slower each stage was `measured`."""

    name: str
    clients: int
    requests: Sequence[Request]
    measured: Slower


@dataclass(frozen=True, slots=True)
class Fitted:
    """The machine, how many times longer each stage took by name of the crowd, measured and simulated on it, and the
    root mean square of the differences of their logarithms."""

    machine: Machine
    measured: dict[str, Slower]
    simulated: dict[str, Slower]
    off: float


def fit(crowds: Sequence[Crowd], most: int | None = None) -> Fitted:
    """The machine on which these crowds are slowed most nearly as measured: by least squares of the logarithms. `most`:
    tries; None: until none is better."""

    def found(values: Array) -> dict[str, Slower]:
        machine = _machine(values)
        return {crowd.name: simulated(machine, crowd.requests, crowd.clients) for crowd in crowds}

    measured = {crowd.name: crowd.measured for crowd in crowds}

    def off(values: Array) -> Array:
        return np.array([
            np.log(slowed[stage] / measured[name][stage])
            for name, slowed in found(values).items() for stage in STAGES
        ])  # fmt: skip

    # steps wide enough to see past the jumps that a discrete simulation makes
    best = least_squares(off, START, bounds=(LEAST, MOST), diff_step=0.03, max_nfev=most)
    error = float(np.sqrt(np.mean(best.fun**2)))
    return Fitted(_machine(best.x), measured, found(best.x), error)


def named(request: Request, mode: Mode) -> Request:
    """Asked for in this mode, whatever a router would say."""
    return replace(request, mode=mode)


def _machine(values: Array) -> Machine:
    speed, second, further, front, writing, see, read, join = map(float, values)
    growth = (1.0, *(1.0 + second + further * k for k in range(7)))
    weights: dict[Stage, float] = {"front": front, "writing": writing}
    return Machine(growth, (1.0, speed), weights, {"seeing": see, "reading": read}, join)


def _seconds(work: Work) -> tuple[float, float]:
    return work.prefill, work.decode


def _mean(answers: Sequence[Answered], name: str) -> float:
    return _sum(answers, name) / len(answers)


def _sum(answers: Sequence[Answered], name: str) -> float:
    return float(sum(getattr(one, name) for one in answers))
