"""How well the classifier ranks public per-sample sets of other pairs: `python -m training.bench.public_sets FOLDER`

Five folds, equal texts kept together, out of fold; `--seeds` ways of splitting them, averaged. Sets and encoders that
are not run keep their figures.
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from training.page import argument_parser, figures, publish
from vlroute.decision.text_encoder import STATIC
from vlroute.learning import train_router

SETS = ("gsm8k", "mmmu_pro", "mathvista", "math_v")
FIGURES = (
    "area over random", "gain AUC", "ECE instruct", "ECE thinking", "area of the longest prompts", "area of the oracle",
)  # fmt: skip


def measure(path: Path, encoder: str, seeds: int) -> dict[str, Any]:
    """The figures of one set, each as value, low and high end."""
    with tempfile.TemporaryDirectory(prefix="vlroute-public-") as folder:
        result = train_router([path], folder, seeds=seeds, encoder=encoder, console=Console())
    return {
        "records": result.records,
        "seeds": seeds,
        "date": datetime.date.today().isoformat(),
        "covers": result.covers,
        "figures": {name: [result.figures[name].value, *(result.figures[name].interval or ())] for name in FIGURES},
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, help="with the sets as NAME.jsonl.gz")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--encoder", default=STATIC)
    parser.add_argument("--name", help="of the encoder in the table, if it is a folder")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    found = figures("public_sets", options.out)
    for name in options.sets:
        measured = measure(options.folder / f"{name}.jsonl.gz", options.encoder, options.seeds)
        found[f"{name}, {options.name or options.encoder}"] = measured
        publish("public_sets", found, options.out)


if __name__ == "__main__":
    main()
