"""Attack servers, kill processes, damage inputs and let disks fail: `python -m training.chaos`; `--long` for ten times.

Writes docs/benchmarks/chaos.md. An interrupted run continues: finished rows are kept in a file beside the figures.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from training.chaos import (
    bodies,
    config_files,
    disk_faults,
    disk_server,
    killed_servers,
    kills,
    memory,
    mutants,
    power_cuts,
    programs,
    server_attacks,
    under_load,
)
from training.chaos.faulty_disk import missing_part
from training.page import argument_parser, environment, figures, publish, write_json


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests of one kind; each is a row of a table.

    Attributes:
        run: Called with an item, a number, a seed, and what to call for each part of the number. Returns the row.
        items: Have names.
        short: The number of a short run.
        long: The number of a long run.
        counts: What the number counts.
        needs_fuse: Whether the suite needs FUSE.
        yields: Whether `run` also takes the row so far, if any, and yields the row again and again, because it takes
            long. An interrupted row is continued then.
    """

    run: Callable[..., Any]
    items: Sequence[Any]
    short: int
    long: int
    counts: str
    needs_fuse: bool = False
    yields: bool = False


PROGRAMS = (programs.COLLECT, programs.TRAIN, killed_servers.SERVE, killed_servers.CLUSTER)
SUITES = {
    "attacks": Suite(server_attacks.run, server_attacks.ATTACKS, 1, 1, "runs of each attack on a server"),
    "under_load": Suite(under_load.run, under_load.FAULTS, 8, 60, "seconds of load with each fault"),
    "requests": Suite(memory.run, memory.CHECKS, 100, 10_000, "requests; memory after floods is measured later"),
    "kills": Suite(kills.run, kills.COMPONENTS, 10, 170, "kills of each component"),
    "power_cuts": Suite(power_cuts.run, kills.COMPONENTS, 10, 100, "power cuts of each component", True),
    "disk_faults": Suite(disk_faults.run, disk_faults.CASES, 5, 50, "faults of each kind under each component", True),
    "server_faults": Suite(disk_server.run, disk_server.CASES, 3, 30, "faults of each kind under a server", True),
    "mutants": Suite(
        mutants.run, (*mutants.KINDS, *config_files.KINDS, *bodies.KINDS), 500, 5000, "damaged inputs of each kind"
    ),
    # the last: Ray's threads stay in this process, and other suites fork it
    "programs": Suite(programs.run, PROGRAMS, 10, 100, "kills of each command", yields=True),
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--long", action="store_true", help="a long run, of hours")
    parser.add_argument("--only", nargs="+", choices=SUITES, metavar="SUITE", help=f"some of: {', '.join(SUITES)}")
    parser.add_argument("--seed", type=int, default=0)
    for name, suite in SUITES.items():
        text = f"{suite.counts}; by default {suite.short}, or {suite.long} with --long"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=text)
    options = parser.parse_args()
    chosen = options.only or list(SUITES)
    if any(SUITES[name].needs_fuse for name in chosen) and (lacks := missing_part()):
        parser.error(f"{lacks}; or choose other suites with --only")
    counts = {"seed": options.seed}
    for name in chosen:
        given = getattr(options, name)
        counts[name] = given if given is not None else SUITES[name].long if options.long else SUITES[name].short
    logging.disable(logging.CRITICAL)  # damaged inputs are logged by thousands
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / f"chaos.{'-'.join(chosen)}.partial"
    data = _resumed(kept, counts)
    # with a file of its own, because a cluster redirects stdout
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stdout)) as progress, kills.one_thread():
        for name in chosen:
            for item in SUITES[name].items:
                task = progress.add_task(f"{name}: {item.name}", total=counts[name])
                suite, advance, row = SUITES[name], partial(progress.advance, task), data[name].get(item.name)
                began, before = time.monotonic(), data["seconds"].get(name, 0.0)
                if suite.yields:
                    rows = suite.run(item, counts[name], options.seed, advance, row)
                else:
                    rows = () if row else (suite.run(item, counts[name], options.seed, advance),)
                for found in rows:
                    data[name][item.name] = asdict(found)
                    data["seconds"][name] = before + time.monotonic() - began
                    write_json(kept, data)
                progress.update(task, completed=counts[name])
    earlier = figures("chaos", options.out)  # the rows of other suites, and those of the version before, are kept
    for shared, values in (
        ("counts", counts),
        ("seconds", data["seconds"]),
        ("where", dict.fromkeys(chosen, environment("pillow", "av", "sqlalchemy"))),
    ):
        data[shared] = earlier.get(shared, {}) | values
    page = publish("chaos", earlier | data, options.out)
    kept.unlink()
    print(page)


def _resumed(kept: Path, counts: dict[str, int]) -> dict[str, Any]:
    """The rows of an interrupted run with the same numbers."""
    if kept.exists() and (found := json.loads(kept.read_text("utf-8")))["counts"] == counts:
        return dict(found)
    return {"counts": counts, "seconds": {}, **{name: {} for name in counts if name != "seed"}}


if __name__ == "__main__":
    main()
