"""What retraining costs: seconds and memory of `vlroute train`, by records. `python -m training.bench.retraining`

Each size in a process of its own, from 10 000 to 100 000 drawn records (an hour or so on two cores). Figures go to
docs/benchmarks/retraining.json and to a section of docs/benchmarks/retraining.md; sizes that were not run keep
theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.drawn_records import draw_records
from training.bench.measure import in_own_process
from training.bench.page import PAGES, hardware, table, versions
from training.bench.retraining_once import Trained
from vlroute.files import replace_file
from vlroute.learning.records import write_records

SIZES = (10_000, 30_000, 100_000)
MiB, GiB = 2**20, 2**30
#: At `BAR_RECORDS` records, on two cores.
BAR_RECORDS, BAR_SECONDS, BAR_PEAK = 10_000, 120.0, 2 * GiB
BEGIN, END = "<!-- written by training.bench.retraining -->", "<!-- end of what training.bench.retraining wrote -->"

INTRODUCTION = """\
## What retraining costs

Written by `python -m training.bench.retraining` from `retraining.json`. `vlroute train` with its defaults (five
folds, one seed, the final model, the report), each size in a process of its own, on records drawn from the wordings
in `training/prior`: English and Chinese, two thirds with captions, names from a long tail. Which mode is right on them
is made up, so the area only says that something was learnt.
"""
READING = """\
Asked for at {bar} records: at most {seconds:.0f} s and {gib:.0f} GiB on two cores. What falls short is bold. *Peak*:
most memory resident at a time, worker processes included. *Linearity*: seconds a record, in parts of those at
{reference} records; 1 where time grows as the records do."""


def render(found: dict[str, Any]) -> str:
    """The section. `found`: by number of records, `trained` and `where` it was taken; what misses a bar is bold."""
    rows = [Trained(**one["trained"]) for one in sorted(found.values(), key=_records)]
    reference = next((one for one in rows if one.records == BAR_RECORDS), rows[0])
    each = reference.seconds / reference.records
    cells = []
    for one in rows:
        barred = one.records <= BAR_RECORDS
        cells.append(
            [
                f"{one.records:,}",
                _verdict(f"{one.seconds:.1f}", not barred or one.seconds <= BAR_SECONDS),
                _verdict(f"{one.peak / MiB:,.0f}", not barred or one.peak <= BAR_PEAK),
                f"{1e3 * one.seconds / one.records:.2f}",
                f"{one.seconds / one.records / each:.2f}",
                f"{one.artefact / 1e6:.1f}",
                "–" if one.area is None else f"{one.area:.2f}",
            ]
        )
    head = ["records", "seconds", "peak MiB", "ms a record", "linearity", "artefact, MB", "area over random"]
    reading = READING.format(
        bar=f"{BAR_RECORDS:,}", seconds=BAR_SECONDS, gib=BAR_PEAK / GiB, reference=f"{reference.records:,}"
    )
    places = dict.fromkeys(one["where"] for one in sorted(found.values(), key=_records))
    return "\n".join([INTRODUCTION, *table(head, cells), "", reading, "", *(f"* Taken on: {one}" for one in places)])


def put_section(page: str, section: str) -> str:
    """`page` with the section between its marks, replaced if it is there, else at the end."""
    marked = f"{BEGIN}\n{section}\n{END}"
    before, begin, rest = page.partition(BEGIN)
    if not begin:
        return f"{page.rstrip()}\n\n{marked}\n" if page.strip() else f"# Retraining\n\n{marked}\n"
    return before + marked + rest.partition(END)[2]


def _verdict(text: str, met: bool) -> str:
    return text if met else f"**{text}**"


def _records(one: dict[str, Any]) -> int:
    return int(one["trained"]["records"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="how many records; at least 50")
    parser.add_argument("--out", type=Path, default=PAGES / "retraining.md", help="the page with the section")
    options = parser.parse_args()
    data = options.out.with_suffix(".json")
    found = json.loads(data.read_text("utf-8")) if data.exists() else {}
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.fields[step]}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="vlroute-retraining-") as temporary, Progress(*columns) as progress:
        for size in options.sizes:
            task = progress.add_task(f"{size:,} records", total=None, step="drawing")
            records = Path(temporary) / f"{size}.jsonl"
            write_records(records, draw_records(size))
            learner = f"scikit-learn {metadata.version('scikit-learn')}"
            where = f"{hardware()}; load average before the start {os.getloadavg()[0]:.1f}; {learner}, {versions()}"
            progress.update(task, step="training")
            trained = in_own_process("training.bench.retraining_once", [str(records)], lambda step: None)
            found[str(size)] = {"where": where, "trained": asdict(Trained(**trained))}
            replace_file(data, (json.dumps(found, ensure_ascii=False, indent=1) + "\n").encode())
            page = options.out.read_text("utf-8") if options.out.exists() else ""
            replace_file(options.out, put_section(page, render(found)).encode())
            progress.update(task, total=1, completed=1, step="done")


if __name__ == "__main__":
    main()
