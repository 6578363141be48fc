"""Write `models/pocket/README.md`, the pair's model card, from freshly measured records: no number by hand.

python -m training.pocket.label --count 1260 --seed card --out training/pocket/measured.jsonl.gz
python -m training.pocket.card training/pocket/measured.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from training.pocket.stages import STAGES
from vlroute.decision.wilson import share_interval
from vlroute.pocket.tasks import FAMILIES, LEVELS
from vlroute.records import Record, read_records
from vlroute.types import MODES, Mode

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
TEXT = Path(__file__).with_name("card.md")

Picked = list[Record]


def accuracy(records: Picked, mode: Mode) -> float:
    return 100 * float(np.mean([getattr(r, mode).correct for r in records]))


def interval(records: Picked, mode: Mode) -> str:
    bounds = share_interval(np.array([float(getattr(r, mode).correct) for r in records]))
    return f"{100 * bounds[0]:.0f}–{100 * bounds[1]:.0f}" if bounds else "undefined"


def mean(records: Picked, mode: Mode, field: str) -> float:
    return float(np.mean([getattr(getattr(r, mode), field) for r in records]))


def row(name: str, grade: str, records: Picked) -> str:
    cells = [name, grade, str(len(records))]
    cells += [f"{accuracy(records, mode):.1f} ({interval(records, mode)})" for mode in MODES]
    cells += [f"{mean(records, mode, 'seconds'):.3f}" for mode in MODES]
    cells += [f"{mean(records, mode, 'tokens'):.0f}" for mode in MODES]
    return "| " + " | ".join(cells) + " |"


def table(records: Picked) -> str:
    lines = [
        "| family | grade | pictures | Instruct % | Thinking % | Instruct s | Thinking s | Instruct tokens "
        "| Thinking tokens |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for family in FAMILIES:
        of_family = [r for r in records if r.family == family]
        lines.append(row(f"**{family}**", "all", of_family))
        grades = sorted({r.grade for r in of_family}, key=lambda g: (LEVELS.index(g.split(":")[0]), g))
        lines += [row(family, grade, [r for r in of_family if r.grade == grade]) for grade in grades]
    lines.append(row("**all**", "all", records))
    return "\n".join(lines)


def level(records: Picked, family: str, name: str) -> Picked:
    return [r for r in records if r.family == family and r.grade.startswith(name)]


def requirements(records: Picked) -> Iterable[tuple[str, float, float]]:
    """What the pair must show: (sentence, measured, least)."""
    of: Callable[[str], Picked] = lambda family: [r for r in records if r.family == family]  # noqa: E731
    yield "Instruct on ocr, %", accuracy(of("ocr"), "instruct"), 90
    yield "Instruct on count, %", accuracy(of("count"), "instruct"), 95
    for family, least in (("math", 90), ("gui", 90), ("hop", 90), ("video", 80)):
        yield f"Thinking on {family}, %", accuracy(of(family), "thinking"), least
    for family in ("math", "gui", "hop"):
        hard = level(records, family, "hard")
        yield (
            f"{family}, hard: Thinking above Instruct, points",
            accuracy(hard, "thinking") - accuracy(hard, "instruct"),
            25,
        )
    for family in FAMILIES:
        easy = level(records, family, "easy")
        yield (
            f"{family}, easy: Instruct above Thinking, points",
            accuracy(easy, "instruct") - accuracy(easy, "thinking"),
            -3,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    options = parser.parse_args()
    records = list(read_records(options.records))
    checks = list(requirements(records))
    lines = ["| requirement | measured | at least | met |", "|---|--:|--:|---|"]
    lines += [
        f"| {name} | {got:.1f} | {least} | {'yes' if got >= least else '**no**'} |" for name, got, least in checks
    ]
    steps = ", ".join(f"{stage.name} {stage.steps}" for stage in STAGES.values())
    config = json.loads((POCKET / "instruct" / "config.json").read_text(encoding="utf-8"))
    sizes = {mode: (POCKET / mode / "model.safetensors").stat().st_size / 2**20 for mode in MODES}
    card = TEXT.read_text(encoding="utf-8").format(
        table=table(records), requirements="\n".join(lines), pictures=len(records), steps=steps,
        machine=f"{platform.machine()}, CPU, float32", transformers=config["transformers_version"],
        size=" and ".join(f"{mode} {mib:.1f} MiB" for mode, mib in sizes.items()),
    )  # fmt: skip
    (POCKET / "README.md").write_text(card, encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
