"""The simulator against a real server: `python -m training.simulate_check` (a quarter of an hour, on a quiet machine)

`vlroute serve` with the pocket pair runs in a process of its own. Tasks are asked one by one, both ways, before and
after all else; in between, in several rounds, by three loads that arrive by chance and by crowds of clients that ask
again at once. Crowds say how much whoever works at the same time slows the others; with that, each load is predicted.
Figures go to docs/scaling_check.json, from there to a section of docs/scaling.md. Waits up to five minutes until
nothing else is at work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.measure import ROOT
from training.bench.page import hardware, put_section, versions
from training.bench.server import serving, tasks
from training.simulation.calibrate import Crowd, amid, fit, named, request_from, slower
from training.simulation.checked import Round, compared, render
from training.simulation.choosing import ByRouter
from training.simulation.measured import BothWays, Seen, both_ways, crowd, load
from training.simulation.quiet import Others, wait_for_quiet
from training.simulation.run import poisson
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.files import replace_file
from vlroute.modes import MODES
from vlroute.pocket import Task
from vlroute.shipped import shipped

OUT, PAGE = ROOT / "docs" / "scaling_check.json", ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by training.simulate_check -->", "<!-- end of what training.simulate_check wrote -->"
LOADS = (0.25, 0.5, 0.7)  # parts of the capacity
#: Clients at once, and what they ask: Instruct mostly reads, Thinking mostly writes.
CROWDS = [(size, model) for size in (2, 4, 8, 16) for model in ("auto", *MODES)]
WARM, CROWD, SEED = 40, 120, "check"  # tasks
ROUNDS, LOAD_SECONDS = 2, 50.0

Crowds = dict[tuple[int, str], list[list[tuple[int, Seen]]]]


@dataclass(slots=True)
class Measured:
    """All that was seen of the server. `alone`: every task both ways, first and last; `crowds`: by size and model, each
    round's number of the task and answer; `loads`: by part, each round."""

    tasks: list[Task]
    capacity: float = 0.0
    alone: list[list[BothWays]] = field(default_factory=list)
    crowds: Crowds = field(default_factory=lambda: defaultdict(list))
    loads: dict[float, list[Round]] = field(default_factory=lambda: defaultdict(list))


def measure(seconds: float, rounds: int, wait: float) -> Measured:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    keys = [f"simulate-check-{number:06d}" for number in range(6 + (1 + rounds) * len(CROWDS) + rounds * len(LOADS))]
    with Progress(*columns) as progress, serving(keys) as (port, server):
        key, step = iter(keys), progress.add_task("waiting until the machine is quiet", total=None)
        wait_for_quiet(wait)
        others = Others([psutil.Process(), server])

        def alone(asked: list[Task], seed: int) -> list[BothWays]:
            return asyncio.run(both_ways(port, asked, (next(key), next(key)), seed))

        def crowds(asked: list[Task]) -> Crowds:
            return {kind: [asyncio.run(crowd(port, *kind, asked, next(key)))] for kind in CROWDS}

        progress.update(step, description="warming up")
        alone(tasks(WARM, "warm"), 0)
        progress.update(step, description="crowds, for the capacity")
        found = crowds(tasks(CROWD, SEED))
        capacity = max(_rate(size, one) for (size, model), [one] in found.items() if model == "auto")
        seen = Measured(tasks(max(round(max(LOADS) * capacity * seconds), CROWD), SEED), capacity)
        progress.update(step, description=f"{len(seen.tasks)} tasks, one by one")
        seen.alone.append(alone(seen.tasks, 1))
        for number in range(rounds):
            for part in LOADS:
                progress.update(step, description=f"round {number + 1} of {rounds}: a load of {part:.0%}")
                arrivals = poisson(part * capacity, round(part * capacity * seconds), 10 * number + LOADS.index(part))
                others.since()
                answers = asyncio.run(load(port, arrivals, seen.tasks[: len(arrivals)], next(key)))
                seen.loads[part].append(Round(arrivals, answers, others.since()))
            progress.update(step, description=f"round {number + 1} of {rounds}: crowds")
            for kind, once in crowds(seen.tasks[:CROWD]).items():
                seen.crowds[kind] += once
        progress.update(step, description=f"{len(seen.tasks)} tasks, once more")
        seen.alone.append(alone(seen.tasks, 2))
    return seen


def predict(seen: Measured) -> dict[str, Any]:
    """What was measured beside what is predicted, ready for JSON."""
    classifier = ComplexityClassifier.load(shipped("pocket/router"))
    requests = [
        request_from(asked, classifier.predict(task.prompt, asked[0][0].caption))
        for task, *asked in zip(seen.tasks, *seen.alone, strict=True)
    ]
    crowds = [
        Crowd(
            f"{size}, {model}", size, [named(requests[i], answer.mode) for i, answer in sorted(found[0])],
            slower([(answer, requests[i]) for one in found for i, answer in one[amid(CROWD, size)]]),
        )
        for (size, model), found in seen.crowds.items()
    ]  # fmt: skip
    fitted = fit(crowds)
    choosing = ByRouter(Policy(), classifier.pace)
    loads = [
        compared(part, seen.capacity, rounds, fitted.machine, requests, choosing.again)
        for part, rounds in seen.loads.items()
    ]
    return {
        "where": f"{hardware()}; {versions()}", "tasks": len(requests), "crowd": CROWD, "capacity": seen.capacity,
        "fitted": asdict(fitted), "loads": loads,
    }  # fmt: skip


def _rate(size: int, found: Sequence[tuple[int, Seen]]) -> float:
    """Answers a second, by Little's law: so many were inside for so long each."""
    kept = found[amid(len(found), size)]
    return size * len(kept) / sum(answer.spent for _, answer in kept)


def write(found: dict[str, Any], page: Path) -> None:
    """The section of `page` between the markers."""
    put_section(page, BEGIN, END, render(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=LOAD_SECONDS, help="of each load in each round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--wait", type=float, default=300.0, help="seconds at most until the machine is quiet")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # two threads a model would contend for two cores
    found = predict(measure(options.seconds, options.rounds, options.wait))
    replace_file(options.out, (json.dumps(found, indent=1) + "\n").encode())
    write(found, options.page)


if __name__ == "__main__":
    main()
