"""Arrivals through replicas: seconds of each answer, who was refused, how busy the machines were."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.choosing import Choosing
from training.simulation.replica import Job, Replica
from training.simulation.work import Machine, Request

Times = NDArray[np.float64]
#: Makes what decides on the replica of this number.
Chooses = Callable[[int], Choosing]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`arrived`, `seconds` `[n]`: when each request came and how long its answer took, in the order of arrival, warm-up
    and refused ones left out. `refused`: told to come again (429). `thinking`: share of the answers. `busy`: share of
    the time in which a machine was at work, mean of the machines."""

    arrived: Times
    seconds: Times
    refused: int
    thinking: float
    busy: float

    def quantile(self, share: float) -> float:
        """NaN where nothing was answered."""
        return float(np.quantile(self.seconds, share)) if self.seconds.size else math.nan


def poisson(rate: float, count: int, seed: int = 0) -> Times:
    """`[count]` times of arrival, `rate` a second in the mean. ValueError for a rate that is not over 0."""
    if not 0 < rate < math.inf:
        raise ValueError(f"the rate must be over 0 requests a second, not {rate}")
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def drawn(requests: Sequence[Request], count: int, seed: int = 0) -> list[Request]:
    """So many, with replacement. ValueError for none to draw from."""
    if not requests:
        raise ValueError("there are no records to draw requests from")
    return [requests[i] for i in np.random.default_rng([seed, 1]).integers(len(requests), size=count)]


def simulate(
    machine: Machine,
    arrivals: Sequence[float] | Times,
    requests: Sequence[Request],
    chooses: Chooses,
    replicas: int = 1,
    seed: int = 0,
    warm_up: float = 0.1,
    advance: Callable[[int], None] = lambda answered: None,
) -> Outcome:
    """Requests arrive at rising times; each goes to a replica by chance, as conversations do that are kept together,
    and on to another one as `vlroute cluster` sends it. The first `warm_up` share of arrivals does not count.
    ValueError for fewer than one replica, and for arrivals that fall or are not as many as requests.
    """
    if replicas < 1:
        raise ValueError(f"there must be at least 1 replica, not {replicas}")
    if len(arrivals) != len(requests) or np.any(np.diff(arrivals) < 0):
        raise ValueError(f"{len(requests)} requests need as many times of arrival that never fall")
    chance = np.random.default_rng([seed, 2])
    machines = [Replica(machine, chooses(number)) for number in range(replicas)]
    first = int(warm_up * len(arrivals))
    ended: list[tuple[int, Job]] = []
    order: dict[Job, int] = {}
    refused = 0
    ends: list[tuple[float, int]] = []  # a heap; an entry that is no longer a replica's next end is passed over

    def over(jobs: list[Job]) -> None:
        ended.extend((order.pop(job), job) for job in jobs)
        advance(len(jobs))

    def watch(number: int) -> None:
        if (at := machines[number].next_at()) < math.inf:
            heapq.heappush(ends, (at, number))

    def end_until(until: float) -> None:
        while ends and ends[0][0] <= until:
            at, number = heapq.heappop(ends)
            if at == machines[number].next_at():
                over(machines[number].advance(at))
                watch(number)

    for coming, (arrival, request) in enumerate(zip(map(float, arrivals), requests, strict=True)):
        end_until(arrival)
        number = _place(machines, int(chance.integers(replicas)))
        place = machines[number]
        if place.inside >= machine.inside:
            refused += coming >= first
            advance(1)
            continue
        job = Job(request, arrival)
        order[job] = coming
        over(place.advance(arrival))
        over(place.arrive(job))
        watch(number)
    end_until(math.inf)
    now = max((one.now for one in machines), default=0.0)
    kept = [job for index, job in sorted(ended, key=lambda one: one[0]) if index >= first]
    busy = sum(one.busy for one in machines) / (now * replicas) if now else 0.0
    thinking = sum(job.mode == "thinking" for job in kept) / max(len(kept), 1)
    arrived = np.array([job.arrived for job in kept], np.float64)
    return Outcome(arrived, np.array([job.written_at for job in kept], np.float64) - arrived, refused, thinking, busy)


def _place(machines: Sequence[Replica], home: int) -> int:
    """The first from `home` on, round the ring, with fewer inside than it has rows in both modes; else, all being full,
    `home` itself while one may wait there; else the emptiest."""
    most = machines[home].machine
    for step in range(len(machines)):
        number = (home + step) % len(machines)
        if machines[number].inside < min(2 * most.rows, most.inside):
            return number
    if machines[home].inside < most.inside:
        return home
    return min(range(len(machines)), key=lambda one: machines[one].inside)


def replicas_needed(
    machine: Machine,
    arrivals: Sequence[float] | Times,
    requests: Sequence[Request],
    chooses: Chooses,
    p95: float,
    most: int = 256,
    seed: int = 0,
    trying: Callable[[int], None] = lambda replicas: None,
) -> int | None:
    """The fewest replicas with which nobody is refused and 95 % of the answers take at most `p95` seconds; None if
    `most` are too few. Found by doubling, then halving. ValueError unless `p95` is over 0."""
    if not p95 > 0:
        raise ValueError(f"the p95 to keep must be over 0 seconds, not {p95:g}")

    def enough(replicas: int) -> bool:
        trying(replicas)
        found = simulate(machine, arrivals, requests, chooses, replicas, seed)
        return not found.refused and found.quantile(0.95) <= p95

    high = 1
    while not enough(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
