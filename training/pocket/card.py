"""Write `models/pocket/README.md`, the pair's model card, from measured records.

python -m training.pocket.label --count 1260 --seed card --out training/pocket/measured.jsonl.gz
python -m training.pocket.card training/pocket/measured.jsonl.gz
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.page import POCKET, argument_parser, render
from training.pocket.phases import PHASES
from vlroute import Record, read_records
from vlroute.files import replace_file
from vlroute.pocket.tasks import LEVELS, TASKS
from vlroute.types import MODES


def row(records: Sequence[Record], task: str, level: str = "") -> dict[str, Any]:
    """The figures of one task, or of all, and of the levels that start with `level`."""
    some = [one for one in records if one.topic in (task, task or one.topic) and one.level.startswith(level)]
    modes: dict[str, Any] = {}
    for mode in MODES:
        outcomes = [getattr(one, mode) for one in some]
        means = {name: float(np.mean([getattr(one, name) for one in outcomes])) for name in ("seconds", "tokens")}
        modes[mode] = {"right": sum(one.correct for one in outcomes), **means}
    return {"task": task or "all", "level": level or "all", "pictures": len(some), **modes}


def rows(records: Sequence[Record]) -> Iterable[dict[str, Any]]:
    """Each task with its levels, then all."""
    for task in TASKS:
        levels = {one.level for one in records if one.topic == task}
        yield row(records, task)
        for level in sorted(levels, key=lambda name: (LEVELS.index(name.split(":")[0]), name)):
            yield row(records, task, level)
    yield row(records, "")


def requirements(records: Sequence[Record]) -> Iterable[dict[str, Any]]:
    """Accuracies, and their differences in points, that the pair must reach."""

    def accuracy(task: str, mode: str, level: str = "") -> float:
        one = row(records, task, level)
        return float(100 * one[mode]["right"] / one["pictures"])

    for task, mode, least in (
        ("ocr", "instruct", 90), ("count", "instruct", 95), ("math", "thinking", 90), ("gui", "thinking", 90),
        ("hop", "thinking", 90), ("video", "thinking", 80),
    ):  # fmt: skip
        yield {"name": f"{mode.title()} on {task}, %", "measured": accuracy(task, mode), "least": least}
    for task in ("math", "gui", "hop"):
        gain = accuracy(task, "thinking", "hard") - accuracy(task, "instruct", "hard")
        yield {"name": f"{task}, hard: Thinking above Instruct, points", "measured": gain, "least": 25}
    for task in TASKS:
        gain = accuracy(task, "instruct", "easy") - accuracy(task, "thinking", "easy")
        yield {"name": f"{task}, easy: Instruct above Thinking, points", "measured": gain, "least": -3}


def main() -> None:
    parser = argument_parser(__doc__, POCKET / "README.md", "the card")
    parser.add_argument("records", type=Path)
    options = parser.parse_args()
    records = list(read_records(options.records))
    config = json.loads((POCKET / "instruct" / "config.json").read_text(encoding="utf-8"))
    card = render(
        "pocket_card.md", rows=list(rows(records)), requirements=list(requirements(records)), pictures=len(records),
        phases=PHASES.values(), machine=platform.machine(), transformers=config["transformers_version"],
        sizes={mode: (POCKET / mode / "model.safetensors").stat().st_size / 2**20 for mode in MODES},
    )  # fmt: skip
    replace_file(options.out, card.encode())


if __name__ == "__main__":
    main()
