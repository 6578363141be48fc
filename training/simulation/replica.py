"""One replica as `vlroute serve` works: rows of two modes, prompts read alone, all of it sharing the machine.

Processor sharing (Kleinrock 1967): with more at work than there are cores, each proceeds at the same part of its speed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from training.simulation.work import Machine, Work
from vlroute.modes import MODES, Mode


@dataclass(slots=True, eq=False)
class Job:
    """One request under way; `left`: seconds, or tokens once it writes."""

    work: Work
    arrived: float
    left: float = 0.0


@dataclass(slots=True)
class Replica:
    """Event by event: `until_next` says when something ends if nothing arrives, `advance` lets time pass."""

    machine: Machine
    before: list[Job] = field(default_factory=list)
    line: dict[Mode, deque[Job]] = field(default_factory=lambda: {mode: deque() for mode in MODES})
    reading: list[Job] = field(default_factory=list)
    writing: dict[Mode, list[Job]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    busy: float = 0.0
    """Seconds in which something was at work, weighted by the part of the cores in use."""

    @property
    def inside(self) -> int:
        waiting = sum(len(line) for line in self.line.values())
        return len(self.before) + waiting + len(self.reading) + sum(len(rows) for rows in self.writing.values())

    def arrive(self, job: Job) -> None:
        job.left = job.work.before
        self.before.append(job)
        self._settle()

    def until_next(self) -> float:
        """Seconds until the next end of anything; infinite if idle."""
        speed = self._speed()
        ends = [job.left / speed for job in (*self.before, *self.reading)]
        for rows in self.writing.values():
            if rows:
                ends.append(min(job.left for job in rows) * self.machine.step(len(rows)) / speed)
        return min(ends, default=math.inf)

    def advance(self, seconds: float) -> list[Job]:
        """Jobs that are answered after so many seconds, at most `until_next()`."""
        active, speed = self._active(), self._speed()
        self.busy += seconds * min(1.0, active / self.machine.cores)
        for job in (*self.before, *self.reading):
            job.left -= seconds * speed
        for rows in self.writing.values():
            if rows:
                written = seconds * speed / self.machine.step(len(rows))
                for job in rows:
                    job.left -= written
        return self._settle()

    def _active(self) -> int:
        return len(self.before) + len(self.reading) + sum(1 for rows in self.writing.values() if rows)

    def _speed(self) -> float:
        return min(1.0, self.machine.cores / max(self._active(), 1))

    def _settle(self) -> list[Job]:
        """Move on whoever is done with what it was at; a free row goes to the first in line."""
        ended: list[Job] = []
        for job in _done(self.before):
            self.line[job.work.mode].append(job)
        moved = True
        while moved:
            moved = False
            for mode, line in self.line.items():
                taken = len(self.writing[mode]) + sum(1 for job in self.reading if job.work.mode == mode)
                for _ in range(min(len(line), self.machine.rows - taken)):
                    job = line.popleft()
                    job.left = job.work.prefill
                    self.reading.append(job)
            for job in _done(self.reading):
                job.left = float(job.work.tokens)
                self.writing[job.work.mode].append(job)
                moved = True
            for rows in self.writing.values():
                finished = _done(rows)
                moved = moved or bool(finished)
                ended += finished
        return ended


def _done(jobs: list[Job]) -> list[Job]:
    """Takes those with nothing left out of `jobs`; rounding must not leave a job that never ends."""
    done = [job for job in jobs if job.left <= 1e-12]
    for job in done:
        jobs.remove(job)
    return done
