"""Arrivals through replicas: seconds of each answer, who was refused, how busy the machines were."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.simulation.replica import Job, Replica
from training.simulation.work import Machine, Work


@dataclass(frozen=True, slots=True)
class Outcome:
    """`seconds` `[n]`: arrival to last token of each answer, in the order of arrival, warm-up left out. `refused`: told
    to come again (429). `thinking`: share of the answers. `busy`: part of the cores in use in the mean."""

    seconds: NDArray[np.float64]
    refused: int
    thinking: float
    busy: float

    def quantile(self, share: float) -> float:
        """NaN where nothing was answered."""
        return float(np.quantile(self.seconds, share)) if self.seconds.size else math.nan


def poisson(rate: float, count: int, seed: int = 0) -> NDArray[np.float64]:
    """`[count]` times of arrival, `rate` a second in the mean. ValueError for a rate that is not over 0."""
    if not rate > 0:
        raise ValueError(f"the rate must be over 0 requests a second, not {rate}")
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def drawn(works: Sequence[Work], count: int, seed: int = 0) -> list[Work]:
    """So many, with replacement. ValueError for none to draw from."""
    if not works:
        raise ValueError("there are no records to draw requests from")
    return [works[i] for i in np.random.default_rng([seed, 1]).integers(len(works), size=count)]


def simulate(
    machine: Machine,
    arrivals: Sequence[float] | NDArray[np.float64],
    works: Sequence[Work],
    replicas: int = 1,
    seed: int = 0,
    warm_up: float = 0.1,
    advance: Callable[[int], None] = lambda answered: None,
) -> Outcome:
    """Requests arrive at rising times; each goes to a replica by chance, as conversations do that are kept together,
    or where that one is full to the emptiest. The first `warm_up` share of arrivals does not count.
    """
    chance = np.random.default_rng([seed, 2])
    machines = [Replica(machine) for _ in range(replicas)]
    first = int(warm_up * len(arrivals))
    order: dict[Job, int] = {}
    seconds = np.full(len(arrivals), np.nan)
    thinking = refused = 0
    now, coming = 0.0, 0

    def pass_time(span: float) -> None:
        nonlocal thinking
        for one in machines:
            for job in one.advance(span):
                index = order.pop(job)
                if index >= first:
                    seconds[index] = now - job.arrived
                    thinking += job.work.mode == "thinking"
                advance(1)

    while coming < len(arrivals) or order:
        wait = min(one.until_next() for one in machines)
        arrival = float(arrivals[coming]) - now if coming < len(arrivals) else math.inf
        span = min(wait, arrival)
        now += span
        pass_time(span)
        if arrival <= wait:
            job = Job(works[coming], now)
            place = machines[int(chance.integers(replicas))]
            if place.inside >= machine.inside:
                place = min(machines, key=lambda one: one.inside)
            if place.inside >= machine.inside:
                refused += coming >= first
                advance(1)
            else:
                order[job] = coming
                place.arrive(job)
            coming += 1
    answered = seconds[~np.isnan(seconds)]
    busy = sum(one.busy for one in machines) / (now * replicas) if now else 0.0
    return Outcome(answered, refused, thinking / max(answered.size, 1), busy)


def saturated(machine: Machine, works: Sequence[Work], clients: int) -> float:
    """Answers a second when so many clients ask again at once, until every one of `works` was asked."""
    one, now, answered = Replica(machine), 0.0, 0
    coming = iter(works)
    for _, work in zip(range(clients), coming, strict=False):
        one.arrive(Job(work, now))
    while one.inside:
        span = one.until_next()
        now += span
        for _ in one.advance(span):
            answered += 1
            following = next(coming, None)
            if following is None:  # from here on not all clients are there
                return answered / now
            one.arrive(Job(following, now))
    return answered / now


def replicas_needed(
    machine: Machine,
    arrivals: Sequence[float] | NDArray[np.float64],
    works: Sequence[Work],
    p95: float,
    most: int = 256,
    seed: int = 0,
) -> int | None:
    """The fewest replicas with which nobody is refused and 95 % of the answers take at most `p95` seconds; None if
    `most` are too few. Found by doubling, then halving."""

    def enough(replicas: int) -> bool:
        found = simulate(machine, arrivals, works, replicas, seed)
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
