"""Attack servers, kill processes and damage inputs: `python -m training.chaos`, or `--long` for ten times as many.

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

from training.chaos import kills, mutants, server
from training.page import argument_parser, environment, figures, publish, write_json

#: Numbers of kills of each component and of mutants of each kind of input.
SHORT, LONG = (17, 500), (170, 5000)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--long", action="store_true", help="1 000 kills and 5 000 mutants of each kind")
    parser.add_argument("--kills", type=int, help="kills of each component")
    parser.add_argument("--mutants", type=int, help="damaged inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    usual = LONG if options.long else SHORT
    counts = {
        "kills": usual[0] if options.kills is None else options.kills,
        "mutants": usual[1] if options.mutants is None else options.mutants,
        "seed": options.seed,
    }
    logging.disable(logging.CRITICAL)  # damaged inputs are logged by thousands
    warnings.simplefilter("ignore")
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "chaos.partial.json"
    data = _resumed(kept, counts)
    works: dict[str, tuple[Callable[..., Any], Sequence[Any]]] = {
        "kills": (kills.run, kills.COMPONENTS), "mutants": (mutants.run, mutants.KINDS),
    }  # fmt: skip
    with Progress() as progress, kills.one_thread():
        for name, (run, items) in works.items():
            for item in items:
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
    return {"counts": counts, "kills": {}, "mutants": {}}


if __name__ == "__main__":
    main()
