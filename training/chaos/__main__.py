"""Attack servers, kill processes, damage inputs and let disks fail: `python -m training.chaos`; `--long` for ten times.

Writes docs/benchmarks/chaos.md. An interrupted run continues: finished rows are kept in a file beside the figures.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import Progress

from training.chaos import disk_faults, disk_server, kills, memory, mutants, power_cuts, server_attacks
from training.chaos.faulty_disk import missing_part
from training.page import argument_parser, environment, publish, write_json

#: Numbers for each component, kind of input, or kind of fault.
SHORT = {
    "attacks": 1,
    "kills": 17,
    "mutants": 500,
    "power_cuts": 10,
    "disk_faults": 5,
    "server_faults": 3,
    "requests": 500,
}
LONG = {
    "attacks": 1,
    "kills": 170,
    "mutants": 5000,
    "power_cuts": 100,
    "disk_faults": 50,
    "server_faults": 30,
    "requests": 10_000,
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--long", action="store_true", help="1 000 kills and 5 000 mutants of each kind")
    parser.add_argument("--attacks", type=int, choices=(0, 1), help="0: without the attacks on a server")
    parser.add_argument("--kills", type=int, help="kills of each component")
    parser.add_argument("--mutants", type=int, help="damaged inputs of each kind")
    parser.add_argument("--power-cuts", type=int, help="power cuts of each component; needs FUSE")
    parser.add_argument("--disk-faults", type=int, help="faults of each kind under each component; needs FUSE")
    parser.add_argument("--server-faults", type=int, help="faults of each kind under a server; needs FUSE")
    parser.add_argument("--requests", type=int, help="ordinary requests; the memory after floods is measured later")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    usual = LONG if options.long else SHORT
    given = {name: getattr(options, name) for name in usual}
    counts = {name: usual[name] if number is None else number for name, number in given.items()}
    counts["seed"] = options.seed
    if (counts["power_cuts"] or counts["disk_faults"] or counts["server_faults"]) and (lacks := missing_part()):
        parser.error(f"{lacks}; or pass --power-cuts 0 --disk-faults 0 --server-faults 0")
    logging.disable(logging.CRITICAL)  # damaged inputs are logged by thousands
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "chaos.partial.json"
    data = _resumed(kept, counts)
    works: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
        "attacks": (server_attacks.run, server_attacks.ATTACKS), "kills": (kills.run, kills.COMPONENTS),
        "mutants": (mutants.run, mutants.KINDS),
        "power_cuts": (power_cuts.run, kills.COMPONENTS), "disk_faults": (disk_faults.run, disk_faults.CASES),
        "server_faults": (disk_server.run, disk_server.CASES), "requests": (memory.run, memory.CHECKS),
    }  # fmt: skip
    with Progress() as progress, kills.one_thread():
        for name, (run, items) in works.items():
            for item in items if counts[name] else ():
                task = progress.add_task(f"{name}: {item.name}", total=counts[name])
                if item.name not in data[name]:
                    found = run(item, counts[name], options.seed, partial(progress.advance, task))
                    data[name][item.name] = asdict(found)
                    write_json(kept, data)
                progress.update(task, completed=counts[name])
    page = publish("chaos", {**data, "where": environment("pillow", "av", "sqlalchemy")}, options.out)
    kept.unlink()
    print(page)


def _resumed(kept: Path, counts: dict[str, int]) -> dict[str, Any]:
    """The rows of an interrupted run with the same numbers."""
    if kept.exists() and (found := json.loads(kept.read_text("utf-8")))["counts"] == counts:
        return dict(found)
    return {"counts": counts, **{name: {} for name in counts if name != "seed"}}


if __name__ == "__main__":
    main()
