"""Seconds of a decision alone, no model loaded: `python -m training.bench.decision [--router FOLDER] [--minilm FOLDER]`

One core. Warm decisions over prompts with captions, in the same run with all-MiniLM-L6-v2 as text encoder if its
folder is given (a few minutes); and the first decision of a fresh process. Writes decision_speed.json and
decision_speed.md in docs/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.decision_page import FirstDecision, render
from training.bench.decision_time import REQUESTS, DecisionTime
from training.bench.measure import in_own_process
from training.bench.page import PAGES, ROOT, hardware, versions
from vlroute.files import replace_file
from vlroute.learning.train import train

SHIPPED = ROOT / "models" / "pocket" / "router"
STARTS = 5
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
FIRST = """
import sys
from vlroute import Router
Router.from_pretrained(router=sys.argv[1]).decide("What is the sum of the numbers?", caption="three numbers")
"""


def first_decision(router: Path, name: str, starts: int = STARTS) -> FirstDecision:
    """Fresh processes that import vlroute and decide once, from start to exit. RuntimeError if one fails."""
    seconds = []
    for _ in range(1 + starts):  # the first finds the files not yet in the system's memory
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", FIRST, str(router)], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"{router}: its first decision failed: {done.stderr.strip().splitlines()[-1]}")
    return FirstDecision(name, starts, statistics.median(seconds[1:]), max(seconds[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--router", nargs="+", type=Path, default=[SHIPPED], help="folders of router artefacts")
    parser.add_argument("--records", nargs="+", type=Path, default=[], help="train a router on these, and time it too")
    parser.add_argument("--minilm", type=Path, help="folder with all-MiniLM-L6-v2: config, vocabulary, weights")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--out", type=Path, default=PAGES / "decision_speed.md", help="where the page goes")
    options = parser.parse_args()
    os.environ.update(ONE_CORE)  # for the processes that measure: before they import numpy
    where = f"{hardware()}; load average before the start {os.getloadavg()[0]:.1f}; {versions()}"
    columns = (SpinnerColumn(), TextColumn("{task.description}: {task.fields[step]}"), TimeElapsedColumn())
    with tempfile.TemporaryDirectory(prefix="vlroute-decision-") as temporary:
        names = {folder: os.path.relpath(folder.resolve(), ROOT) for folder in options.router}
        if options.records:
            train(options.records, temporary, folds=2, seeds=1, console=Console(stderr=True))
            names[Path(temporary)] = "trained on " + ", ".join(path.name for path in options.records)
        with Progress(*columns) as progress:
            task = progress.add_task("decisions", total=None, step="")
            arguments = [*map(str, names), "--requests", str(options.requests)]
            arguments += ["--minilm", str(options.minilm)] if options.minilm else []
            found = in_own_process(
                "training.bench.decision_time", arguments, lambda step: progress.update(task, step=step)
            )
            progress.update(task, step="fresh processes")
            firsts = [first_decision(folder, name) for folder, name in names.items()]
    times = [DecisionTime(**{**one, "router": names[Path(one["router"])]}) for one in found["times"]]
    data = {"where": where, "times": [asdict(one) for one in times], "firsts": [asdict(one) for one in firsts]}
    replace_file(options.out.with_suffix(".json"), (json.dumps(data, ensure_ascii=False, indent=1) + "\n").encode())
    replace_file(options.out, render(times, firsts, where).encode())


if __name__ == "__main__":
    main()
