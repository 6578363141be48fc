"""`vlroute train` once, in a process of its own: `python -m training.bench.retraining_once RECORDS`

Imports nothing but what training imports, so that the peak of memory is training's.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from vlroute.learning.train import train

KIB = 1024


@dataclass(frozen=True, slots=True)
class Trained:
    """`seconds`: of the whole command but Python's start. `peak`: most bytes ever resident, worker processes included.

    `artefact`: bytes of the folder. `area`: area over random, out of fold, in points.
    """

    records: int
    seconds: float
    peak: int
    artefact: int
    area: float | None


def train_once(records: Path) -> Trained:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vlroute-retraining-") as temporary:
        evaluation = train([records], temporary, console=Console(quiet=True))
        seconds = time.perf_counter() - start
        artefact = sum(path.stat().st_size for path in Path(temporary).rglob("*") if path.is_file())
    area = evaluation.figures["area over random"].value
    return Trained(evaluation.records, seconds, _peak(), artefact, area)


def _peak() -> int:
    """Linux hands `ru_maxrss` down from the parent, however large that was: VmHWM is this process's own."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s+(\d+)", status.read_text("ascii", "replace"), re.MULTILINE)):
        own = int(found[1])
    return KIB * (own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    print(json.dumps(asdict(train_once(parser.parse_args().records))))


if __name__ == "__main__":
    main()
