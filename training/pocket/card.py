"""Write README.md, the model card of the pocket pair or the pocket hybrid, from the figures of their evaluation.

    python -m training.pocket.card
    python -m training.pocket.card --model models/pocket-hybrid

The card of the hybrid compares it with the pair.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from training.page import POCKET, render
from training.pocket import hybrid
from training.pocket.evaluate import BEFORE, CURVES, FIGURES, FORMS, HYBRID_FIGURES, POINTS, RANGES, required
from training.pocket.phases import PHASES
from training.pocket.proof import fingerprint, folders
from vlroute import InputError
from vlroute.engine.local.checkpoint_files import is_hybrid
from vlroute.files import replace_file
from vlroute.pocket.tasks import LEVELS, TASKS, UNKNOWN
from vlroute.types import MODES

#: The rows of the comparison with the pair: for each heading, a section of the figures, the attribute that names a row,
#: and which rows.
COMPARED: tuple[tuple[str, str, str, Callable[[dict[str, Any]], bool]], ...] = (
    ("clean pictures", "old", "task", lambda row: row["part"] == "all"),
    ("pictures of any severity", "severity", "task", lambda row: row["part"] == "all"),
    ("form of the request", "forms", "part", lambda row: "language" not in row),
    ("without a picture", "text", "task", lambda row: True),
    ("outside the drawn tasks", "unknown", "task", lambda row: row["part"] == "all"),
    ("unseen fonts and colors", "fonts", "task", lambda row: row["task"] != "all"),
    ("tools", "tools", "task", lambda row: True),
)
#: Points that the hybrid may lie below the pair.
MOST_BELOW = 3.0


def mebibytes(folder: Path) -> float:
    """The size of a folder. Pages are left out, because this card is one of them."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.suffix != ".md") / 2**20


def files_of(pair: Path) -> dict[str, Any]:
    """Sizes in MiB of models and router, millions of parameters of a model, tensors of the tower that differ."""
    models = [load_file(pair / mode / "model.safetensors") for mode in MODES]
    sizes = {name: mebibytes(pair / name) for name in (*MODES, "router")}
    parameters = max(sum(one.numel() for one in model.values()) for model in models) / 1e6
    differ = sum(not one.equal(models[1][name]) for name, one in models[0].items() if ".visual." in name)
    return {"sizes": sizes, "parameters": parameters, "differ": differ}


def check(figures: dict[str, Any], model: Path) -> None:
    """InputError if the figures are those of another model."""
    if figures["pair"] != (found := fingerprint(*folders(model).values())[:16]):
        raise InputError(
            f"the figures are of the model {figures['pair']}, but {model} has the model {found}: run "
            "training.pocket.evaluate first"
        )


def card(figures: dict[str, Any], pair: Path) -> str:
    """The text of the pair's card. InputError if the figures are those of another pair."""
    check(figures, pair)
    files, config = files_of(pair), json.loads((pair / MODES[0] / "config.json").read_text("utf-8"))
    requirements = [
        *figures["requirements"],
        required("both models and the router, MiB", sum(files["sizes"].values()), 20.0, least=False),
        required("parameters of a model, millions", files["parameters"], 2.5, least=False),
        required("tensors of the tower that differ between the models", files["differ"], 0.0, least=False),
    ]
    return render(
        "pocket_card.md", **{**figures, "requirements": requirements}, files=files, config=config, modes=MODES,
        tasks=TASKS, levels=LEVELS, ranges=RANGES, points_drawn=POINTS, curves=CURVES, former=BEFORE, form_names=FORMS,
        fixed=UNKNOWN, phases=PHASES.values(),
    )  # fmt: skip


def _by_name(
    rows: list[dict[str, Any]], by: str, wanted: Callable[[dict[str, Any]], bool]
) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row[by], row["mode"]): row for row in rows if wanted(row)}


def compared(figures: dict[str, Any], pair: dict[str, Any]) -> list[dict[str, Any]]:
    """Each row of the comparison: what is compared, and for each mode both shares and their difference in points."""
    rows = []
    for heading, section, by, wanted in COMPARED:
        ours, theirs = [_by_name(some[section], by, wanted) for some in (figures, pair)]
        for name in dict.fromkeys(name for name, _ in ours):
            modes = dict[str, Any]()
            for mode in MODES:
                hybrid_row, pair_row = ours[name, mode], theirs[name, mode]
                points = round(100 * (hybrid_row["share"] - pair_row["share"]), 2)
                modes[mode] = {
                    "hybrid": hybrid_row, "pair": pair_row, "points": points, "within": points >= -MOST_BELOW,
                }  # fmt: skip
            rows.append({"heading": heading, "name": name, **modes})
    return rows


def hybrid_card(figures: dict[str, Any], pair: dict[str, Any], folder: Path) -> str:
    """The text of the hybrid's card. InputError if the figures are those of another model."""
    check(figures, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    weights = load_file(folder / "model.safetensors")
    sizes = {"all": mebibytes(folder), "router": mebibytes(folder / "router")}
    return render(
        "hybrid_card.md", **figures, rows=compared(figures, pair), pair_requests=pair["requests"], config=config,
        sizes=sizes, parameters=sum(one.numel() for one in weights.values()) / 1e6, phases=hybrid.PHASES, modes=MODES,
        fixed=UNKNOWN, most_below=MOST_BELOW,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of the pair or of the hybrid")
    options = parser.parse_args()
    pair = json.loads(FIGURES.read_text("utf-8"))
    if is_hybrid(options.model):
        text = hybrid_card(json.loads(HYBRID_FIGURES.read_text("utf-8")), pair, options.model)
    else:
        text = card(pair, options.model)
    replace_file(options.model / "README.md", text.encode())


if __name__ == "__main__":
    main()
