"""Write `models/pocket/README.md`, the pair's model card, from the figures of `training.pocket.evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from training.page import POCKET, argument_parser, render
from training.pocket.evaluate import BEFORE, CURVES, FIGURES, FORMS, POINTS, RANGES, required
from training.pocket.phases import PHASES
from training.pocket.proof import fingerprint
from vlroute import InputError
from vlroute.files import replace_file
from vlroute.pocket.tasks import LEVELS, TASKS, UNKNOWN
from vlroute.types import MODES


def files_of(pair: Path) -> dict[str, Any]:
    """Sizes in MiB of models and router, millions of parameters of a model, tensors of the tower that differ."""
    models = [load_file(pair / mode / "model.safetensors") for mode in MODES]
    sizes = {
        name: sum(file.stat().st_size for file in (pair / name).rglob("*") if file.is_file()) / 2**20
        for name in (*MODES, "router")
    }
    parameters = max(sum(one.numel() for one in model.values()) for model in models) / 1e6
    differ = sum(not one.equal(models[1][name]) for name, one in models[0].items() if ".visual." in name)
    return {"sizes": sizes, "parameters": parameters, "differ": differ}


def card(figures: dict[str, Any], pair: Path) -> str:
    """The text of the card. InputError if the figures are those of another pair."""
    if figures["pair"] != (found := fingerprint(*(pair / mode for mode in MODES))[:16]):
        raise InputError(
            f"the figures are of the pair {figures['pair']}, but {pair} has the pair {found}: run "
            "training.pocket.evaluate first"
        )
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


def main() -> None:
    parser = argument_parser(__doc__, POCKET / "README.md", "the card")
    parser.add_argument("--model", type=Path, default=POCKET, help="folder of the pair")
    options = parser.parse_args()
    replace_file(options.out, card(json.loads(FIGURES.read_text("utf-8")), options.model).encode())


if __name__ == "__main__":
    main()
