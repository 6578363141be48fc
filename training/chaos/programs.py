"""Kill `vlroute collect` and `vlroute train` at random points, start them again, and count what is lost.

Each run of a command is forked from a process that has imported everything (a fork server of multiprocessing) and has
no other threads, so that many runs take little time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from training.chaos.kills import Killed
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.learning.dataset import Example
from vlroute.learning.grading import exact
from vlroute.learning.trial import draw_evenly
from vlroute.records import Outcome, Record, read_records, write_records

#: Kills in one folder. An interrupted suite repeats those of the last folder.
IN_ONE_FOLDER = 10
#: A run that takes longer than this many seconds is stuck.
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.001
IMPORTED = [
    "vlroute.cli.app", "vlroute.router", "vlroute.engine.local.engine", "vlroute.engine.local.loading",
    "vlroute.learning.collect", "vlroute.learning.train", "vlroute.serving.app", "vlroute.serving.http_server",
    "vlroute.serving.ui.app", "training.chaos.programs",
]  # fmt: skip


@dataclass(slots=True)
class Session:
    """Kills of one program in one folder.

    Attributes:
        folder: An empty folder, the working folder of the program.
        left: Number of kills that are left.
        rng: Source of the random points.
        result: Counts of all kills of the program so far.
        advance: Called after each kill.
    """

    folder: Path
    left: int
    rng: random.Random
    result: Killed
    advance: Callable[[], object] = field(default=lambda: None)

    def killed(self, acknowledged: int = 0) -> None:
        """Count a kill, and what was acknowledged before it."""
        self.left -= 1
        self.result.kills += 1
        self.result.acknowledged += acknowledged
        self.advance()

    def lost(self, *what: str) -> None:
        """Count each of these as lost."""
        self.result.lost += len(what)
        self.result.errors = (*self.result.errors, *what)[:3]


@dataclass(frozen=True, slots=True)
class Program:
    """A program whose process is killed.

    Attributes:
        name: Its name in the table.
        session: Kills it in one folder.
    """

    name: str
    session: Callable[[Session], None]


def run(
    program: Program,
    kills: int,
    seed: int = 0,
    advance: Callable[[], object] = lambda: None,
    done: Mapping[str, Any] | None = None,
) -> Iterator[Killed]:
    """Kill `program` until it was killed `kills` times.

    Args:
        program: The program.
        kills: Number of kills.
        seed: Equal seeds give equal points in time.
        advance: Called after each kill.
        done: Fields of the result of an interrupted run, which is continued.

    Yields:
        The result so far, after each folder.
    """
    result = Killed(**(done or {"component": program.name}))
    while result.kills < kills:
        before, rng = result.kills, random.Random(f"{program.name} {seed} {result.kills}")
        with tempfile.TemporaryDirectory(prefix="vlroute-kill-", ignore_cleanup_errors=True) as folder:
            session = Session(Path(folder), min(IN_ONE_FOLDER, kills - before), rng, result, advance)
            try:
                program.session(session)
            except Exception as error:
                if result.kills == before:  # the fault is not that of a kill
                    raise
                result.unreadable += 1
                result.errors = (*result.errors, f"{type(error).__name__}: {error}"[:300])[:3]
        yield result


@contextmanager
def started(folder: Path, arguments: Sequence[str]) -> Iterator[BaseProcess]:
    """Run `vlroute` with these arguments in `folder`, and kill it at the end. Its output is in output.log."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=_command, args=(list(arguments), str(folder)), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _command(arguments: list[str], folder: str) -> None:
    """The process of a command."""
    from vlroute.cli.app import run as run_command

    os.chdir(folder)
    log = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    torch.set_num_threads(1)
    sys.argv = ["vlroute", *arguments]
    run_command(arguments)


def until(true: Callable[[], bool], process: BaseProcess | None = None, seconds: float = PATIENCE_SECONDS) -> bool:
    """Wait for a condition. Returns whether it holds: it does not if the process ends before. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not true():
        if process is not None and not process.is_alive():
            return true()
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened for {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return True


def _killed(session: Session, arguments: Sequence[str], begun: Callable[[], bool], longest: float) -> bool:
    """Run a command, and kill it at a random point of the `longest` seconds after it has `begun`.

    Returns:
        Whether it was killed; False: it had finished its work before.

    Raises:
        RuntimeError: It has failed.
    """
    with started(session.folder, arguments) as process:
        until(begun, process)
        process.join(session.rng.uniform(0, longest))
        if process.is_alive():
            process.kill()
        process.join()
    if process.exitcode != -signal.SIGKILL:
        _check(process, session.folder)
    return process.exitcode == -signal.SIGKILL


def _completed(session: Session, arguments: Sequence[str]) -> float:
    """Run a command to its end. Returns its seconds. RuntimeError if it fails, TimeoutError if it is stuck."""
    began = time.monotonic()
    with started(session.folder, arguments) as process:
        until(lambda: not process.is_alive())
        _check(process, session.folder)
    return time.monotonic() - began


def _check(process: BaseProcess, folder: Path) -> None:
    if process.exitcode:
        log = (folder / "output.log").read_text("utf-8", "replace")
        raise RuntimeError(f"vlroute ended with status {process.exitcode}: {' '.join(log.split())[-250:]}")


ROWS, ASKED, OUT = 40, "asked.log", "records.jsonl"
#: Longest time from the first new record to a kill, in seconds: about a dozen rows.
COLLECT_SECONDS = 1.0


def asked(text: str, example: Example) -> bool:
    """A grader that logs which rows the process asks."""
    with open(ASKED, "a", encoding="utf-8") as log:
        log.write(f"{os.getpid()} {example.id}\n")
    return exact(text, example)


def _collect(session: Session) -> None:
    """`vlroute collect`, continued after each kill, until all rows are recorded; then from the beginning.

    A row is acknowledged when the next one was asked: progress counts it from then on.
    """
    folder, out = session.folder, session.folder / OUT
    _write_rows(folder / "data.jsonl", session.rng.random().hex())
    arguments = ["collect", "data.jsonl", "--out", OUT, "--answers", "answers.jsonl"]
    arguments += ["--grader", "training.chaos.programs:asked"]
    beside = (folder / "answers.jsonl", folder / "records.evidence.jsonl")
    kills = counted = 0
    while True:
        before = _lines(out)
        done = session.left == 0
        if done:
            _completed(session, arguments)
        else:
            done = not _killed(session, arguments, lambda size=before: _lines(out) > size, COLLECT_SECONDS)  # type: ignore[misc]
        acknowledged, times = _asked(folder / ASKED)
        ids = [json.loads(line)["id"] for line in out.read_text("utf-8").splitlines(keepends=True) if line[-1] == "\n"]
        session.lost(*(f"{id} was acknowledged and is not there" for id in sorted(acknowledged - {*ids})))
        session.lost(*(f"{id} is there {count} times" for id, count in Counter(ids).items() if count > 1))
        if not done:
            kills += 1
            session.killed(len(acknowledged) - counted)
            counted = len(acknowledged)
            continue
        session.result.acknowledged += len(acknowledged) - counted
        session.lost(*(f"{row} is missing" for row in range(ROWS - len(list(read_records(out))))))
        for file in beside:
            found = {json.loads(line)["id"] for line in file.read_text("utf-8").splitlines()}
            session.lost(*(f"{id} is not in {file.name}" for id in ids if id not in found))
        again = sum(times.values()) - ROWS
        session.lost(*[f"{again} rows were asked again after {kills} kills"] * (again - kills))
        session.lost(*(f"{file.name} was left over" for file in folder.iterdir() if file.suffix in (".part", ".lock")))
        if not session.left:
            return
        for file in (out, *beside, folder / ASKED):
            file.unlink()
        kills = counted = 0


def _write_rows(file: Path, seed: str) -> None:
    """Write `ROWS` drawn tasks as a data set, with their pictures beside it."""
    rows = []
    for number, task in enumerate(draw_evenly(ROWS, seed)):
        names = [f"{number}-{index}.png" for index in range(len(task.frames))]
        for name, frame in zip(names, task.frames, strict=True):
            frame.save(file.with_name(name))
        media = {"video": names} if task.is_video else {"image": names[0]}
        rows.append(json.dumps({"id": f"row-{number}", "prompt": task.prompt, "answer": task.answer, **media}) + "\n")
    file.write_text("".join(rows), "utf-8")


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def _asked(log: Path) -> tuple[set[str], Counter[str]]:
    """The acknowledged rows, and how many processes asked each row."""
    runs: dict[str, list[str]] = {}
    for line in log.read_text("utf-8").splitlines():
        process, row = line.split()
        rows = runs.setdefault(process, [])
        if row not in rows[-1:]:
            rows.append(row)
    return {row for rows in runs.values() for row in rows[:-1]}, Counter(row for rows in runs.values() for row in rows)


def _train(session: Session) -> None:
    """`vlroute train`, which replaces a router by one from other records, in turn from two files.

    Every second kill is aimed at the moment of writing. A router is acknowledged when its run has ended.
    """
    folder, out = session.folder, session.folder / "router"
    texts, seconds = dict[str, tuple[float, float]](), 0.0
    options = ["--folds", "2", "--seeds", "1", "--encoder", "none", "--out"]
    for name in ("a", "b"):
        write_records(folder / f"{name}.jsonl", _records(session.rng))
        seconds = _completed(session, ["train", f"{name}.jsonl", *options, f"only-{name}"])
        texts[name] = _predicted(folder / f"only-{name}")
    current, number = "a", 0
    _completed(session, ["train", "a.jsonl", *options, "router"])
    while session.left:
        number += 1
        other = "b" if current == "a" else "a"
        arguments = ["train", f"{other}.jsonl", *options, "router"]
        if number % 6 == 0:
            _completed(session, arguments)
            session.result.acknowledged += 1
            if _predicted(out) != texts[other]:
                session.lost(f"the router of {other}.jsonl was acknowledged and is not there")
            names = sorted(file.name for file in out.iterdir() if not file.name.startswith("weights-"))
            if names != ["report.md", "router.json"]:
                session.lost(f"the folder of the router contains {names}")
            current = other
            continue
        before = _state(out)
        if number % 2:
            killed = _killed(session, arguments, lambda: True, seconds)
        else:
            killed = _killed(session, arguments, lambda state=before: _state(out) != state, 0.03)  # type: ignore[misc]
        found = [name for name, predicted in texts.items() if predicted == _predicted(out)]
        if not found or (not killed and found != [other]):
            session.lost(f"after {current} and {other}, the router is that of {found}")
        current = found[0] if found else current
        if killed:
            session.killed()
        else:
            session.result.acknowledged += 1


def _records(rng: random.Random) -> list[Record]:
    """Records from which another router is learned for each state of `rng`."""
    records = []
    for number in range(120):
        kind, count = rng.choice(("Add the numbers.", "Guess the number.", "Read the text.")), rng.randint(1, 4)
        right = [rng.random() < chance for chance in (1.1 - count / 4, 0.9)]
        instruct, thinking = Outcome(right[0], 6, 0.12, 0.1), Outcome(right[1], 60, 1.2, 0.1)
        records.append(Record(f"r{number}", f"{kind} {number % 50}", f"{count} numbers", instruct, thinking))
    return records


def _predicted(folder: Path) -> tuple[float, float]:
    found = ComplexityClassifier.load(folder).predict("Add the numbers.", "4 numbers")
    return found.p_instruct, found.p_thinking


def _state(folder: Path) -> dict[str, int]:
    """What changes when an artifact is about to be written: its lock file and its weights."""
    found = {}
    for file in (*folder.glob("*.lock"), *folder.glob("weights-*")):
        with suppress(FileNotFoundError):
            found[file.name] = file.stat().st_mtime_ns
    return found


COLLECT, TRAIN = Program("vlroute collect", _collect), Program("vlroute train", _train)
