"""The simulator against a real server: `python -m training.simulate_check` (about seven minutes, on a quiet machine)

`vlroute serve` with the pocket pair runs in a process of its own. Before, between and after the loads so many clients
as `CROWDS` says ask again at once, which tells how much longer each stage takes for it. Each load, fresh pictures that
arrive by chance, is predicted from that and from its rate alone. Figures go to docs/scaling_check.json, from there to a
section of docs/scaling.md. Waits up to five minutes until nothing else is at work.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.measure import ROOT
from training.bench.page import hardware, put_section, versions
from training.bench.server import serving
from training.simulation.calibrate import Crowd, Writing, crowd_of, machine_of, requests_from
from training.simulation.checked import Shown, compared, render
from training.simulation.choosing import ByRouter
from training.simulation.measured import BothWays, Seen, both_ways, crowd, load
from training.simulation.quiet import Others, wait_for_quiet
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.files import replace_file
from vlroute.shipped import shipped

OUT, PAGE = ROOT / "docs" / "scaling_check.json", ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by training.simulate_check -->", "<!-- end of what training.simulate_check wrote -->"
LOADS = {0.25: 1.0, 0.5: 1.0, 0.7: 1.5}  # parts of the capacity, and times as long: the highest is the least sure
CROWDS = {1: 80, 2: 100, 4: 160, 8: 240, 16: 240, 32: 300, 64: 400}  # clients at once, and what they ask in all
FULL = 32  # clients that fill all rows: what they get is the capacity
WARM, SINGLE, LOAD_SECONDS = 40, 120, 60.0

Ladder = dict[int, tuple[float, list[Seen]]]


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was seen of the server: tasks asked both ways, crowds around each load, and the loads."""

    both: list[BothWays]
    ladders: list[Ladder]
    loads: list[Shown]


async def _ladder(port: int, seed: str) -> Ladder:
    return {size: await crowd(port, size, count, f"{seed} {size}") for size, count in CROWDS.items()}


async def _shown(port: int, asked: float, seconds: float, seed: str, others: Others) -> Shown:
    others.since()
    answers, refused = await load(port, asked, seconds, seed)
    column = partial(np.array, dtype=np.float64)
    return Shown(
        column([one.at for one in answers]), column([one.spent for one in answers]),
        np.array([one.mode == "thinking" for one in answers]), refused, asked, seconds, others.since(),
    )  # fmt: skip


def measure(seconds: float, wait: float) -> Measured:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as progress, serving() as (port, server):
        step = progress.add_task("waiting until the machine is quiet", total=None)
        wait_for_quiet(wait)
        others = Others([psutil.Process(), server])
        progress.update(step, description="crowds")
        asyncio.run(both_ways(port, WARM, "warm"))
        both = asyncio.run(both_ways(port, SINGLE, "first"))
        ladders, loads = [asyncio.run(_ladder(port, "first"))], []
        for part, longer in LOADS.items():
            progress.update(step, description=f"a load of {part:.0%}")
            asked = part * ladders[0][FULL][0]
            loads.append(asyncio.run(_shown(port, asked, longer * seconds, str(part), others)))
            progress.update(step, description="crowds")
            ladders.append(asyncio.run(_ladder(port, f"after {part}")))
        both += asyncio.run(both_ways(port, SINGLE, "last"))
    return Measured(both, ladders, loads)


def predict(seen: Measured) -> dict[str, Any]:
    """What was measured beside what is predicted, ready for JSON."""
    classifier = ComplexityClassifier.load(shipped("pocket/router"))
    expected = [classifier.predict(one.task.prompt, one.routed.caption) for one in seen.both]
    ways = [(one.routed, one.forced) for one in seen.both]
    requests, choosing = requests_from(ways, expected), ByRouter(Policy(), classifier.pace)
    writing = Writing.of([one for pair in ways for one in pair])
    crowds = [{size: crowd_of(*found, writing) for size, found in one.items()} for one in seen.ladders]
    around: list[dict[int, Crowd]] = [
        {size: before[size].mean(after[size]) for size in CROWDS} for before, after in pairwise(crowds)
    ]
    alone = crowd_of(0.0, [routed for routed, _ in ways], writing)
    machines = [machine_of(one, alone) for one in around]
    figures = [
        compared(part, shown, machine, requests, lambda number: choosing.again())
        for part, shown, machine in zip(LOADS, seen.loads, machines, strict=True)
    ]
    return {
        "where": f"{hardware()}; {versions()}", "singles": len(seen.both), "full": FULL,
        "capacity": seen.ladders[0][FULL][0], "crowds": [{k: asdict(v) for k, v in one.items()} for one in around],
        "machines": [asdict(one) for one in machines], "loads": figures,
    }  # fmt: skip


def write(found: dict[str, Any], page: Path) -> None:
    """The section of `page` between the markers."""
    put_section(page, BEGIN, END, render(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=LOAD_SECONDS, help="of each load; the highest half as long again"
    )
    parser.add_argument("--wait", type=float, default=300.0, help="seconds at most until the machine is quiet")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # two threads a model would contend for two cores
    found = predict(measure(options.seconds, options.wait))
    replace_file(options.out, (json.dumps(found, indent=1) + "\n").encode())
    write(found, options.page)


if __name__ == "__main__":
    main()
