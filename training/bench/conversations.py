"""What conversations cost: speed of the second turn, memory over a thousand. `python -m training.bench.conversations`

Three parts, all or those named by --only: the pocket pair (a minute), the 2B shape with random weights (most of an
hour on two cores, 9 GB of disk), resident memory (five minutes). Writes conversations.json and conversations.md in
docs/benchmarks; parts that were not run keep theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.checkpoint_2b import PairWriter, Shape
from training.bench.conversations_page import Part, render
from training.bench.page import PAGES, hardware, versions
from training.bench.resident import soak_apart
from training.bench.second_turn import measure_apart
from vlroute.files import replace_file
from vlroute.shipped import shipped

SIDES = (448, 1024)
POCKET_REPEATS = 50
Report = Callable[[str], None]
Save = Callable[[list[Any]], None]


def run_pocket(folder: Path, report: Report, save: Save) -> None:
    save([asdict(measure_apart(shipped("pocket/instruct").parent, 96, "float32", POCKET_REPEATS, report))])


def run_2b(folder: Path, report: Report, save: Save) -> None:
    writer = PairWriter(folder, Shape())
    writer.prepare()
    for step in writer.write("equal"):
        report(f"writing {step}")
    rows: list[Any] = []
    for side in SIDES:
        measured = measure_apart(folder, side, "bfloat16", 1, lambda step, side=side: report(f"{side}²: {step}"))  # type: ignore[misc]
        rows.append(asdict(measured))
        save(rows)


def run_memory(folder: Path, report: Report, save: Save) -> None:
    save([asdict(soak_apart(report))])


PARTS: dict[Part, Callable[[Path, Report, Save], None]] = {
    "pocket": run_pocket,
    "2b": run_2b,
    "memory": run_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--folder", type=Path, help="keep the 2B checkpoints here, and use those that are here")
    parser.add_argument("--out", type=Path, default=PAGES / "conversations.md", help="where the page goes")
    options = parser.parse_args()
    data = options.out.with_suffix(".json")
    found = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.fields[step]}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="vlroute-2b-") as temporary, Progress(*columns) as progress:
        for part in options.only:
            task = progress.add_task(part, total=None, step="")
            where = f"{hardware()}; load average before the start {os.getloadavg()[0]:.1f}; {versions()}"

            def save(rows: list[Any], part: Part = part, where: str = where) -> None:
                found[part] = {"where": where, "rows": rows}
                replace_file(data, (json.dumps(found, indent=1) + "\n").encode())
                replace_file(options.out, render(found).encode())

            PARTS[part](
                (options.folder or Path(temporary)).resolve(),
                lambda step, task=task: progress.update(task, step=step),  # type: ignore[misc]
                save,
            )
            progress.update(task, total=1, completed=1, step="done")


if __name__ == "__main__":
    main()
