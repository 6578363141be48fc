"""Discrete-event simulation of replicas that answer requests: arrivals, routing decisions, seconds of each answer.

A replica prefills one request at a time and generates the answers of each mode as one batch. Whatever runs at the same
time shares the machine equally (processor sharing, Kleinrock 1967).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlroute import ComplexityClassifier, InputError, LatencyModel, Mode, Outcome, Policy, Prediction, Record
from vlroute.types import MODES

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Work:
    """Seconds of prefill and of decoding `tokens`, for one mode on an idle replica."""

    prefill: float
    decode: float
    tokens: int = 0

    def __post_init__(self) -> None:
        if not min(self.prefill, self.decode, self.tokens) >= 0:
            raise ValueError(f"seconds and tokens must be 0 or more, not {self}")


@dataclass(frozen=True, slots=True)
class Request:
    """What each mode costs for one request. `predicted`: the classifier's prediction, if a router decides."""

    instruct: Work
    thinking: Work
    predicted: Prediction | None = None

    def work(self, mode: Mode) -> Work:
        return self.instruct if mode == "instruct" else self.thinking


def requests_from(records: Iterable[Record], classifier: ComplexityClassifier | None = None) -> list[Request]:
    """One request for each record.

    Args:
        records: Labeled records with tokens and seconds of both modes.
        classifier: If given, its predictions are added.

    Returns:
        The requests, in the order of the records.

    Raises:
        InputError: If tokens or seconds of a record are missing.
    """

    def work(record: Record, mode: Mode) -> Work:
        outcome: Outcome = getattr(record, mode)
        if outcome.tokens is None or outcome.seconds is None or outcome.prefill_seconds is None:
            raise InputError(f"record {record.id!r} lacks tokens, seconds or prefill_seconds of {mode}")
        return Work(outcome.prefill_seconds, max(outcome.seconds - outcome.prefill_seconds, 0.0), outcome.tokens)

    predict = classifier.predict if classifier else lambda prompt, caption: None
    return [Request(work(one, "instruct"), work(one, "thinking"), predict(one.prompt, one.caption)) for one in records]


class Decider(Protocol):
    """Decides the mode of the requests of one replica. The replica sets `now`, the simulated time, before each call."""

    now: float

    def decide(self, request: Request, queue: Mapping[Mode, float]) -> Mode:
        """Return the mode. `queue`: expected seconds until a sequence of each mode is free."""

    def observe(self, mode: Mode, tokens: int, prefill: float, decode: float) -> None:
        """Learn from a finished answer: number of tokens, seconds of prefill and of decoding."""


class ShareDecider:
    """Chooses Thinking at random for a given share of requests, independently of load."""

    def __init__(self, share: float, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"the thinking share must lie in 0..1, not {share:g}")
        self.now = 0.0
        self._share, self._random = share, np.random.default_rng([seed, 3])

    def decide(self, request: Request, queue: Mapping[Mode, float]) -> Mode:
        return "thinking" if self._random.random() < self._share else "instruct"

    def observe(self, mode: Mode, tokens: int, prefill: float, decode: float) -> None:
        pass


class RouterDecider:
    """The router's policy, with a latency model that learns from the simulated answers.

    Args:
        policy: The decision rule.
        latency: Initial state of the latency model; it is copied, so each replica learns its own.
        follow_load: Add the expected wait for a free sequence to the prefill seconds of each mode. With endpoints the
            router does so implicitly, because waiting there is part of the time to the first token.
    """

    def __init__(self, policy: Policy, latency: LatencyModel, follow_load: bool = False) -> None:
        start = latency.to_dict()
        self.now = 0.0
        self._policy, self._follow_load = policy, follow_load
        self._latency = LatencyModel(start["per_token"], start["prefill"], clock=lambda: self.now)

    def decide(self, request: Request, queue: Mapping[Mode, float]) -> Mode:
        if request.predicted is None:
            raise ValueError("a router decides on predictions: pass its classifier to requests_from")
        latency = self._latency
        if self._follow_load and any(queue.values()):
            current = latency.to_dict()
            latency = LatencyModel(
                current["per_token"], {mode: current["prefill"][mode] + queue[mode] for mode in MODES}
            )
        return self._policy.decide(request.predicted, latency).mode

    def observe(self, mode: Mode, tokens: int, prefill: float, decode: float) -> None:
        self._latency.observe(mode, tokens, prefill, decode)


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings of one replica.

    Attributes:
        max_num_seqs: Answers of each mode that are generated as one batch.
        max_waiting: Requests that may wait beyond these; more are refused (HTTP 429).
        sequence_cost: Share of a token's seconds that each further sequence adds to a step of the batch.
    """

    max_num_seqs: int = 8
    max_waiting: int = 64
    sequence_cost: float = 0.05

    def __post_init__(self) -> None:
        if not (self.max_num_seqs >= 1 and self.max_waiting >= 0 and self.sequence_cost >= 0):
            raise ValueError(f"sequences must be at least 1, waiting requests and sequence cost 0 or more: {self}")

    @property
    def capacity(self) -> int:
        return 2 * self.max_num_seqs + self.max_waiting


@dataclass(slots=True, eq=False)
class Job:
    """A request in a replica. `left`: seconds that its prefill or decoding still needs on an idle replica."""

    request: Request
    arrived: float
    number: int = 0
    mode: Mode = "instruct"
    left: float = 0.0
    admitted: float = 0.0
    decoding: float = 0.0
    ended: float = 0.0

    @property
    def done(self) -> bool:
        return self.left <= 1e-9  # rounding errors; simulated times of a day differ by at least 1e-11 s


@dataclass(slots=True)
class Replica:
    """One replica. `next_end` is the time of the next event, `advance` moves the simulated time to it."""

    limits: Limits
    decider: Decider
    now: float = 0.0
    busy: float = 0.0
    size: int = 0
    waiting: dict[Mode, deque[Job]] = field(default_factory=lambda: {mode: deque() for mode in MODES})
    admitted: deque[Job] = field(default_factory=deque)
    """Jobs that hold a sequence and wait for their prefill."""
    prefill: list[Job] = field(default_factory=list)
    """At most one job."""
    batch: dict[Mode, list[Job]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    _used: dict[Mode, int] = field(default_factory=lambda: dict.fromkeys(MODES, 0))
    _seconds: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(MODES, 0.0))
    """Moving average of how long an answer holds its sequence."""

    def arrive(self, job: Job) -> list[Job]:
        """Decide the mode of `job` and add it; returns jobs that ended at once. Call `advance` first."""
        full = self.limits.max_num_seqs
        queue = {
            mode: (len(self.waiting[mode]) + 1) * self._seconds[mode] / full if self._used[mode] >= full else 0.0
            for mode in MODES
        }
        self.decider.now = self.now
        job.mode = self.decider.decide(job.request, queue)
        self.waiting[job.mode].append(job)
        self.size += 1
        return self._schedule()

    def next_end(self) -> float:
        """Time when the next prefill or answer ends; infinite if the replica is idle."""
        left = (min(job.left for job in jobs) / speed for jobs, speed in self._running())
        return self.now + min(left, default=math.inf)

    def advance(self, until: float) -> list[Job]:
        """Move the time to `until`, at most `next_end()`; returns the jobs that ended."""
        seconds, self.now = until - self.now, until
        running = self._running()
        self.busy += seconds if running else 0.0
        for jobs, speed in running:
            for job in jobs:
                job.left -= seconds * speed
        return self._schedule()

    def _running(self) -> list[tuple[list[Job], float]]:
        """Jobs that proceed together, with their speed relative to an idle replica."""
        running = [jobs for jobs in (self.prefill, *self.batch.values()) if jobs]
        return [(jobs, 1 / len(running) / (1 + self.limits.sequence_cost * (len(jobs) - 1))) for jobs in running]

    def _schedule(self) -> list[Job]:
        """Move jobs to their next phase until none can move; returns those that ended."""
        ended: list[Job] = []
        while True:
            if self.prefill and self.prefill[0].done:
                job = self.prefill.pop()
                job.left, job.decoding = job.request.work(job.mode).decode, self.now
                self.batch[job.mode].append(job)
            for mode, jobs in self.batch.items():
                for job in [job for job in jobs if job.done]:
                    jobs.remove(job)
                    self._end(job)
                    ended.append(job)
                while self.waiting[mode] and self._used[mode] < self.limits.max_num_seqs:
                    job = self.waiting[mode].popleft()
                    job.left, job.admitted = job.request.work(mode).prefill, self.now
                    self._used[mode] += 1
                    self.admitted.append(job)
            if self.prefill or not self.admitted:
                return ended
            self.prefill.append(self.admitted.popleft())

    def _end(self, job: Job) -> None:
        job.ended = self.decider.now = self.now
        self.size -= 1
        self._used[job.mode] -= 1
        self._seconds[job.mode] += 0.1 * (self.now - job.admitted - self._seconds[job.mode])
        tokens = job.request.work(job.mode).tokens
        self.decider.observe(job.mode, tokens, job.decoding - job.admitted, self.now - job.decoding)


@dataclass(frozen=True, slots=True)
class Result:
    """Results of one simulation, without the warm-up.

    Attributes:
        seconds: `[n]`, seconds of each answer in order of arrival.
        refused: Number of refused requests (HTTP 429).
        thinking: Share of answers in Thinking.
        busy: Share of time in which a replica works, mean of the replicas.
    """

    seconds: Times
    refused: int
    thinking: float
    busy: float

    def quantile(self, share: float) -> float:
        """Quantile of the seconds; NaN if nothing was answered."""
        return float(np.quantile(self.seconds, share)) if self.seconds.size else math.nan


def poisson(rate: float, count: int, seed: int = 0) -> Times:
    """`[count]` arrival times of a Poisson process with `rate` requests a second.

    Raises:
        ValueError: If the rate is not a finite number above 0.
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"the rate must be over 0 requests a second, not {rate}")
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


def sample(requests: Sequence[Request], count: int, seed: int = 0) -> list[Request]:
    """`count` requests, drawn with replacement."""
    if not requests:
        raise ValueError("there are no records to draw requests from")
    return [requests[i] for i in np.random.default_rng([seed, 1]).integers(len(requests), size=count)]


def simulate(
    limits: Limits,
    arrivals: Sequence[float] | Times,
    requests: Sequence[Request],
    decider: Callable[[int], Decider],
    replicas: int = 1,
    seed: int = 0,
    warm_up: float = 0.1,
) -> Result:
    """Simulate all requests.

    Each request has a random home replica, as conversations do that stay where their pictures are cached. If that is
    full, the request moves on as in `vlroute cluster`.

    Args:
        limits: Settings of each replica.
        arrivals: `[n]` arrival times in seconds that never decrease.
        requests: `[n]` requests.
        decider: Makes the decider of the replica with the given number.
        replicas: Number of replicas.
        seed: Seed of the home replicas.
        warm_up: Share of arrivals, from the first on, that is left out of the result.

    Returns:
        Seconds, refusals and shares.

    Raises:
        ValueError: If there is no replica, or the arrivals decrease or are not as many as the requests.
    """
    if replicas < 1:
        raise ValueError(f"there must be at least 1 replica, not {replicas}")
    if len(arrivals) != len(requests) or np.any(np.diff(arrivals) < 0):
        raise ValueError(f"{len(requests)} requests need as many arrival times that never decrease")
    homes = np.random.default_rng([seed, 2]).integers(replicas, size=len(requests))
    machines = [Replica(limits, decider(number)) for number in range(replicas)]
    first = int(warm_up * len(arrivals))
    ended: list[Job] = []
    refused = 0
    ends: list[tuple[float, int]] = []  # a heap; entries that are no longer a replica's next end are skipped

    def watch(number: int) -> None:
        if (at := machines[number].next_end()) < math.inf:
            heapq.heappush(ends, (at, number))

    def end_until(until: float) -> None:
        while ends and ends[0][0] <= until:
            at, number = heapq.heappop(ends)
            if at == machines[number].next_end():
                ended.extend(machines[number].advance(at))
                watch(number)

    for number, (arrival, request) in enumerate(zip(map(float, arrivals), requests, strict=True)):
        end_until(arrival)
        place = _place(machines, int(homes[number]))
        if machines[place].size >= limits.capacity:
            refused += number >= first
            continue
        ended += machines[place].advance(arrival)
        ended += machines[place].arrive(Job(request, arrival, number))
        watch(place)
    end_until(math.inf)
    now = max((one.now for one in machines), default=0.0)
    kept = sorted((job for job in ended if job.number >= first), key=lambda job: job.number)
    return Result(
        np.array([job.ended - job.arrived for job in kept], np.float64),
        refused,
        sum(job.mode == "thinking" for job in kept) / max(len(kept), 1),
        sum(one.busy for one in machines) / (now * replicas) if now else 0.0,
    )


def _place(machines: Sequence[Replica], home: int) -> int:
    """The first replica from `home` on with a free sequence; else `home`, if a request may wait there; else the one
    with the fewest requests."""
    limits = machines[home].limits
    for step in range(len(machines)):
        number = (home + step) % len(machines)
        if machines[number].size < 2 * limits.max_num_seqs:
            return number
    if machines[home].size < limits.capacity:
        return home
    return min(range(len(machines)), key=lambda number: machines[number].size)


def replicas_needed(
    limits: Limits,
    arrivals: Sequence[float] | Times,
    requests: Sequence[Request],
    decider: Callable[[int], Decider],
    p95: float,
    most: int = 256,
    seed: int = 0,
) -> int | None:
    """The smallest number of replicas that refuses no request and answers 95 % within `p95` seconds.

    Args:
        limits: Settings of each replica.
        arrivals: `[n]` arrival times in seconds.
        requests: `[n]` requests.
        decider: Makes the decider of a replica.
        p95: Seconds.
        most: The largest number to try.
        seed: Seed of the home replicas.

    Returns:
        The number, found by doubling and bisection; None if `most` are not enough.

    Raises:
        ValueError: If `p95` is not above 0.
    """
    if not p95 > 0:
        raise ValueError(f"the p95 to keep must be over 0 seconds, not {p95:g}")

    def enough(replicas: int) -> bool:
        result = simulate(limits, arrivals, requests, decider, replicas, seed)
        return not result.refused and result.quantile(0.95) <= p95

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
