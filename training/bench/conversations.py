"""Cost of conversations: seconds of the second turn, memory of many turns. `python -m training.bench.conversations`

Three parts, all or those named by --only: the pocket pair (a minute), the 2B shape with random weights (most of an
hour on two cores, 9 GB of disk), and memory (five minutes). Parts that are not run keep their figures.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.bench.checkpoint_2b import PairWriter, Shape
from training.bench.memory import soak
from training.bench.second_turn import measure_second_turn
from training.page import POCKET, argument_parser, environment, figures, in_own_process, publish, step

PARTS = ("pocket", "2b", "memory")
SIDES = (448, 1024)
POCKET_REPEATS = 50


def measure(part: str, folder: Path) -> list[Any]:
    """The rows of one part. `folder`: where the 2B checkpoints are written."""
    if part == "memory":
        return [asdict(in_own_process(soak))]
    if part == "pocket":
        return [asdict(in_own_process(measure_second_turn, POCKET, 96, "float32", POCKET_REPEATS))]
    writer = PairWriter(folder, Shape())
    writer.prepare()
    for name in writer.write("equal"):
        step(f"writing {name}")
    return [asdict(in_own_process(measure_second_turn, folder, side, "bfloat16", 1)) for side in SIDES]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--folder", type=Path, help="keep the 2B checkpoints here, and use those that are here")
    options = parser.parse_args()
    found = figures("conversations", options.out)
    with tempfile.TemporaryDirectory(prefix="vlroute-2b-") as temporary:
        for part in options.only:
            step(f"part {part}")
            where = environment()
            rows = measure(part, (options.folder or Path(temporary)).resolve())
            found[part] = {"where": where, "rows": rows}
            publish("conversations", found, options.out)


if __name__ == "__main__":
    main()
