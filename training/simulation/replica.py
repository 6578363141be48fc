"""One replica as `vlroute serve` works: pictures and prompts one after the other, rows of two modes beside them.

Whatever is at work proceeds at the same time, by processor sharing (Kleinrock 1967).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from training.simulation.choosing import Choosing
from training.simulation.work import Machine, Request, Stage
from vlroute.modes import MODES, Mode


@dataclass(slots=True, eq=False)
class Job:
    """One request under way. `left`: seconds of the stage it is in, were the replica idle. `*_at`: when seeing began,
    when it stood in line for a row, when reading and writing began, and when the last token was written; the wait for
    its turn is part of seeing and of reading."""

    request: Request
    arrived: float
    stage: Stage = "front"
    left: float = 0.0
    in_turn: float = 0.0
    """Seconds of its stage for which it needs a turn."""
    mode: Mode = "instruct"
    seeing_at: float = 0.0
    lined_at: float = 0.0
    reading_at: float = 0.0
    writing_at: float = 0.0
    written_at: float = 0.0


@dataclass(slots=True)
class Replica:
    """Event by event: `next_at` says when something ends if nothing arrives, `advance` lets time pass until then."""

    machine: Machine
    choosing: Choosing
    now: float = 0.0
    beside: list[Job] = field(default_factory=list)
    """Who is in front, or at what comes before its turn."""
    turn: Job | None = None
    """Who sees or reads: one at a time."""
    to_see: deque[Job] = field(default_factory=deque)
    to_read: deque[Job] = field(default_factory=deque)
    """These come first: they were seen already."""
    line: dict[Mode, deque[Job]] = field(default_factory=lambda: {mode: deque() for mode in MODES})
    writing: dict[Mode, list[Job]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    busy: float = 0.0
    """Seconds in which anything was at work."""
    _row_seconds: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(MODES, 0.0))
    """Moving average of how long an answer keeps its row."""
    _working: list[tuple[list[Job], float]] = field(default_factory=list)
    """Jobs that go on together, each alone or the rows of one mode, and how fast, 1 being as on the idle replica."""

    @property
    def inside(self) -> int:
        rows = sum(len(self.line[mode]) + len(self.writing[mode]) for mode in MODES)
        return len(self.beside) + len(self.to_see) + len(self.to_read) + (self.turn is not None) + rows

    def arrive(self, job: Job) -> list[Job]:
        """Jobs that end with it, as of `advance`, which comes first: to the time of its arrival."""
        job.left = job.request.front
        self.beside.append(job)
        return self._settle()

    def next_at(self) -> float:
        """When anything ends next; infinite if idle."""
        return self.now + min(
            (min(job.left for job in jobs) / share for jobs, share in self._working), default=math.inf
        )

    def advance(self, until: float) -> list[Job]:
        """Jobs that are answered by then; `until` is at most `next_at()`."""
        seconds = until - self.now
        self.now = until
        self.busy += seconds if self._working else 0.0
        for jobs, share in self._working:
            for job in jobs:
                job.left -= seconds * share
        return self._settle()

    def _shared(self) -> list[tuple[list[Job], float]]:
        things: list[tuple[Stage, list[Job]]] = [(job.stage, [job]) for job in self.beside]
        things += [(self.turn.stage, [self.turn])] if self.turn else []
        things += [("writing", rows) for rows in self.writing.values() if rows]
        shares = self.machine.shares([(stage, len(jobs)) for stage, jobs in things])
        return [(jobs, share) for (_, jobs), share in zip(things, shares, strict=True)]

    def _taken(self, mode: Mode) -> int:
        reading = [*self.beside, *self.to_read, *([self.turn] if self.turn else [])]
        return len(self.writing[mode]) + sum(job.stage == "reading" and job.mode == mode for job in reading)

    def _queue(self) -> dict[Mode, float]:
        """Seconds until a row is free: who waits already, times how long a row is kept, over the rows."""
        return {
            mode: (len(self.line[mode]) + 1) * self._row_seconds[mode] / self.machine.rows
            if self._taken(mode) >= self.machine.rows else 0.0
            for mode in MODES
        }  # fmt: skip

    def _settle(self) -> list[Job]:
        """Move on whoever is done with its stage; a free row goes to the first in line."""
        ended: list[Job] = []
        moved = True
        while moved:
            moved = False
            for job in _done(self.beside):
                moved = True
                if job.stage == "front":
                    job.seeing_at = self.now
                    self._begin(job, "seeing", job.request.seeing)
                elif not job.in_turn:  # nothing to see: nobody is waited for
                    self._pass_on(job)
                else:
                    job.left = job.in_turn
                    (self.to_see if job.stage == "seeing" else self.to_read).append(job)
            if self.turn and _is_done(self.turn):
                self._pass_on(self.turn)
                self.turn = None
            for rows in self.writing.values():
                for job in _done(rows):
                    self._end(job)
                    ended.append(job)
                    moved = True
            for mode, line in self.line.items():
                for _ in range(min(len(line), self.machine.rows - self._taken(mode))):
                    moved, job = True, line.popleft()
                    job.reading_at = self.now
                    self._begin(job, "reading", job.request.work(mode).prefill)
            # only now: whoever was just seen may be to read at once
            if not moved and self.turn is None and (waiting := self.to_read or self.to_see):
                moved, self.turn = True, waiting.popleft()
        self._working = self._shared()
        return ended

    def _begin(self, job: Job, stage: Stage, seconds: float) -> None:
        """Of seeing or reading, what comes before its turn."""
        job.stage, job.in_turn = stage, seconds * self.machine.in_turn.get(stage, 1.0)
        job.left = seconds - job.in_turn
        self.beside.append(job)

    def _pass_on(self, job: Job) -> None:
        """From seeing to the line of its mode, from reading to the rows."""
        if job.stage == "seeing":
            job.lined_at = self.now
            self.choosing.now = self.now
            job.mode = job.request.mode or self.choosing.choose(job.request, self._queue())
            self.line[job.mode].append(job)
        else:
            job.stage, job.writing_at = "writing", self.now
            work, rows = job.request.work(job.mode), self.writing[job.mode]
            job.left = work.decode + (self.machine.join * work.decode / work.tokens if rows and work.tokens else 0.0)
            rows.append(job)

    def _end(self, job: Job) -> None:
        job.written_at = self.now
        kept = self.now - job.reading_at
        self._row_seconds[job.mode] += 0.1 * (kept - self._row_seconds[job.mode])
        tokens = job.request.work(job.mode).tokens
        self.choosing.now = self.now
        self.choosing.observe(job.mode, tokens, job.writing_at - job.reading_at, self.now - job.writing_at)


def _is_done(job: Job) -> bool:
    """What rounding leaves counts as done, or it would never end: times of a day differ by 1e-11 s at least."""
    return job.left <= 1e-9


def _done(jobs: list[Job]) -> list[Job]:
    """Takes those with nothing left out of `jobs`."""
    done = [*filter(_is_done, jobs)]
    for job in done:
        jobs.remove(job)
    return done
