"""One replica as `vlroute serve` works: rows of two modes, and stages that slow each other down.

Whatever is at work proceeds at the same time: by processor sharing (Kleinrock 1967), or as slowly as was measured.
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
    """One request under way. `left`: seconds of the stage it is in, were the replica idle. `*_at`: when
    reading and writing began, and when the last token was written."""

    request: Request
    arrived: float
    left: float = 0.0
    mode: Mode = "instruct"
    reading_at: float = 0.0
    writing_at: float = 0.0
    written_at: float = 0.0


@dataclass(slots=True)
class Replica:
    """Event by event: `next_at` says when something ends if nothing arrives, `advance` lets time pass until then."""

    machine: Machine
    choosing: Choosing
    now: float = 0.0
    front: list[Job] = field(default_factory=list)
    seeing: list[Job] = field(default_factory=list)
    line: dict[Mode, deque[Job]] = field(default_factory=lambda: {mode: deque() for mode in MODES})
    reading: list[Job] = field(default_factory=list)
    writing: dict[Mode, list[Job]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    busy: float = 0.0
    """Seconds in which anything was at work."""
    _row_seconds: dict[Mode, float] = field(default_factory=lambda: dict.fromkeys(MODES, 0.0))
    """Moving average of how long an answer keeps its row."""

    @property
    def inside(self) -> int:
        taken = sum(self._taken(mode) + len(self.line[mode]) for mode in MODES)
        return len(self.front) + len(self.seeing) + taken

    def arrive(self, job: Job) -> list[Job]:
        """Jobs that end with it, as of `advance`, which comes first: to the time of its arrival."""
        job.left = job.request.front
        self.front.append(job)
        return self._settle()

    def next_at(self) -> float:
        """When anything ends next; infinite if idle."""
        return self.now + min(
            (min(job.left for job in jobs) * times for jobs, times in self._at_work()), default=math.inf
        )

    def advance(self, until: float) -> list[Job]:
        """Jobs that are answered by then; `until` is at most `next_at()`."""
        seconds, working = until - self.now, self._at_work()
        self.now = until
        self.busy += seconds if working else 0.0
        for jobs, times in working:
            for job in jobs:
                job.left -= seconds / times
        return self._settle()

    def _at_work(self) -> list[tuple[list[Job], float]]:
        """Jobs of each stage that is at work, and how many times longer than on the idle replica it takes now."""
        writers = [rows for rows in self.writing.values() if rows]
        alone: tuple[tuple[Stage, list[Job]], ...] = (
            ("front", self.front), ("seeing", self.seeing), ("reading", self.reading),
        )  # fmt: skip
        active = sum(len(jobs) for _, jobs in alone) + len(writers)
        found = [(jobs, self.machine.times(stage, active, self.inside)) for stage, jobs in alone if jobs]
        return found + [(rows, self.machine.times("writing", active, self.inside, len(rows))) for rows in writers]

    def _taken(self, mode: Mode) -> int:
        return len(self.writing[mode]) + sum(1 for job in self.reading if job.mode == mode)

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
        for job in _done(self.front):
            job.left = job.request.seeing
            self.seeing.append(job)
        for job in _done(self.seeing):
            job.mode = self.choosing.choose(job.request, self._queue())
            self.line[job.mode].append(job)
        moved = True
        while moved:
            moved = False
            for mode, line in self.line.items():
                for _ in range(min(len(line), self.machine.rows - self._taken(mode))):
                    job = line.popleft()
                    job.left, job.reading_at = job.request.work(mode).prefill, self.now
                    self.reading.append(job)
            for job in _done(self.reading):
                job.left, job.writing_at = job.request.work(job.mode).decode, self.now
                self.writing[job.mode].append(job)
                moved = True
            for rows in self.writing.values():
                for job in _done(rows):
                    self._end(job)
                    ended.append(job)
                    moved = True
        return ended

    def _end(self, job: Job) -> None:
        job.written_at = self.now
        kept = self.now - job.reading_at
        self._row_seconds[job.mode] += 0.1 * (kept - self._row_seconds[job.mode])
        tokens = job.request.work(job.mode).tokens
        self.choosing.observe(job.mode, tokens, job.writing_at - job.reading_at, self.now - job.writing_at)


def _done(jobs: list[Job]) -> list[Job]:
    """Takes those with nothing left out of `jobs`. What rounding leaves counts as done, or it would never end: times
    of a day differ by 1e-11 s at least."""
    done = [job for job in jobs if job.left <= 1e-9]
    for job in done:
        jobs.remove(job)
    return done
