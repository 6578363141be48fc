"""`vlroute train` once, in a process of its own: `python -m training.bench.retraining_once RECORDS`

Imports nothing but what training imports, so that the peak of memory is training's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console

from vlroute.learning.train import train


@dataclass(frozen=True, slots=True)
class Trained:
    """`seconds`: of the whole command but Python's start. `peak`: most bytes resident, worker processes
    included.

    `artefact`: bytes of the folder. `area`: area over random, out of fold, in points.
    """

    records: int
    seconds: float
    peak: int
    artefact: int
    area: float | None


def train_once(records: Path) -> Trained:
    with _Peak() as peak, tempfile.TemporaryDirectory(prefix="vlroute-retraining-") as temporary:
        start = time.perf_counter()
        evaluation = train([records], temporary, console=Console(quiet=True))
        seconds = time.perf_counter() - start
        artefact = sum(path.stat().st_size for path in Path(temporary).rglob("*") if path.is_file())
    area = evaluation.figures["area over random"].value
    return Trained(evaluation.records, seconds, peak.bytes, artefact, area)


class _Peak:
    """Most bytes of this process and its children together, pages that they share counted once, every second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(1):
            total = 0
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # gone in the meantime
                    total += process.memory_full_info().pss
            self.bytes = max(self.bytes, total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    print(json.dumps(asdict(train_once(parser.parse_args().records))))


if __name__ == "__main__":
    main()
