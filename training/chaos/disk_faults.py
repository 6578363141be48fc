"""Let calls of the disk fail while components write: errors are public, and nothing acknowledged is lost.

The disk is that of `training.chaos.faulty_disk`. In each round it works at first, then has a fault, and then works
again: the next write succeeds. In the end its power is cut.
"""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from training.chaos.faulty_disk import FaultyDisk
from training.chaos.kills import COMPONENTS, Component
from vlroute.chat import read_chat
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import InputError, VLRouteError
from vlroute.files import make_folder
from vlroute.records import Skipped, read_records

#: Acknowledged and refused writes before, during and after a fault.
BEFORE, DURING, AFTER = 2, 12, (1, 2)

KINDS: dict[str, Callable[[FaultyDisk, random.Random], None]] = {
    "write fails": lambda disk, rng: disk.fail("write", share=rng.uniform(0.02, 0.3)),
    "short writes": lambda disk, rng: disk.shorten(share=rng.uniform(0.1, 0.5)),
    "fsync fails": lambda disk, rng: disk.fail("fsync", share=rng.uniform(0.05, 0.5)),
    "fsync fails, data dropped": lambda disk, rng: disk.fail("fsync", share=rng.uniform(0.05, 0.5), drops=True),
    "rename fails": lambda disk, rng: disk.fail("rename", share=rng.uniform(0.1, 0.7)),
    "create fails": lambda disk, rng: disk.fail("create", share=rng.uniform(0.1, 0.7), error=errno.ENOSPC),
    "full disk": lambda disk, rng: disk.fill(room=rng.randrange(2**14)),
    "read-only disk": lambda disk, rng: disk.set_read_only(),
}


def _read_records(folder: Path) -> None:
    """Read records as `vlroute train` does. If the disk also fails to remove half a line, it is the last one."""
    skipped = Skipped()
    list(read_records(folder / "records.jsonl", skipped=skipped))
    if skipped.count > 1:
        raise InputError(str(skipped))


#: Read a folder without changing it, as another process may do at any time.
READERS: dict[str, Callable[[Path], object]] = {
    "router artifact": ComplexityClassifier.load,
    "records": _read_records,
    "chat": lambda folder: read_chat(folder / "chat"),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One component and one kind of fault."""

    component: Component
    kind: str

    @property
    def name(self) -> str:
        return f"{self.component.name}, {self.kind}"


#: SQLite renames nothing, and trusts in a second fsync if the first one failed. A cache is not synchronized.
WITHOUT = {
    "records": ("rename fails",),
    "answers and feedback": ("rename fails", "create fails", "fsync fails, data dropped"),
    "responses": ("rename fails", "create fails", "fsync fails, data dropped"),
    "disk tier of the vision cache": ("fsync fails", "fsync fails, data dropped"),
}
CASES = [Case(one, kind) for one in COMPONENTS for kind in KINDS if kind not in WITHOUT.get(one.name, ())]


@dataclass(slots=True)
class Faulty:
    """What happened in the rounds of one case.

    Attributes:
        component: The component.
        kind: The kind of fault.
        rounds: Number of rounds.
        failed: Number of calls of the disk that failed or were shortened.
        acknowledged: Number of acknowledged writes.
        refused: Number of writes that ended in a public error or an OSError.
        untyped: Number of those that ended in another way.
        lost: Number of acknowledged writes that are lost.
        unreadable: Number of times that the files could not be read.
        errors: The errors of the last two, the first ones.
    """

    component: str
    kind: str
    rounds: int = 0
    failed: int = 0
    acknowledged: int = 0
    refused: int = 0
    untyped: int = 0
    lost: int = 0
    unreadable: int = 0
    errors: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Count a write that did not end as it must."""
        self.untyped += 1
        self._note(text)

    def check(self, read: Callable[[], object]) -> None:
        """Count an error that was raised while the files were read."""
        try:
            read()
        except Exception as error:
            self.unreadable += 1
            self._note(f"{type(error).__name__}: {error}")

    def _note(self, text: str) -> None:
        self.errors = [*self.errors, text[:200]][:3]


class _Enough(BaseException):
    """Ends the work of a component."""


def run(case: Case, rounds: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> Faulty:
    """Give the disk this fault `rounds` times. RuntimeError if FUSE is missing."""
    result, rng = Faulty(case.component.name, case.kind), random.Random(f"{case.name} {seed}")
    mount = Path(tempfile.mkdtemp(prefix="vlroute-disk-"))
    try:
        with FaultyDisk(mount, seed) as disk:
            for _ in range(rounds):
                folder = mount / "folder"
                make_folder(folder)
                _round(case, folder, disk, rng, result)
                shutil.rmtree(folder)
                result.rounds += 1
                advance()
    finally:
        mount.rmdir()
    return result


def _round(case: Case, folder: Path, disk: FaultyDisk, rng: random.Random, result: Faulty) -> None:
    component, acknowledged = case.component, list[str]()

    def lost() -> None:
        result.lost += component.lost(folder, acknowledged)

    refused = _write(component, folder, acknowledged, BEFORE, result)
    KINDS[case.kind](disk, rng)
    refused += _write(component, folder, acknowledged, DURING, result)
    result.failed += disk.heal()
    result.refused += refused
    if read := READERS.get(component.name):
        result.check(partial(read, folder))
    if _write(component, folder, acknowledged, rng.choice(AFTER), result):
        result.fault("a write still failed after the end of the fault")
    result.check(lost)
    disk.cut_power()
    result.check(lost)
    result.acknowledged += len(acknowledged)


def _write(component: Component, folder: Path, acknowledged: list[str], count: int, result: Faulty) -> int:
    """Let the component work until `count` writes were acknowledged or refused. Returns how many were refused."""
    done = refused = 0

    def acknowledge(word: str) -> None:
        nonlocal done
        acknowledged.append(word)
        done += 1
        if done == count:
            raise _Enough

    while done < count:
        try:
            component.work(folder, acknowledge)
        except _Enough:
            break
        except (VLRouteError, OSError):
            refused += 1
            done += 1
        except Exception as error:
            result.fault(f"{type(error).__name__}: {error}")
            done += 1
    return refused
