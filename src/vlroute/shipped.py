"""Where the embedded models lie: inside the installed package, or in `models/` of a source checkout."""

from __future__ import annotations

from pathlib import Path

from vlroute.errors import CheckpointError

PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder of an embedded model, such as "pocket/instruct" or "pocket/router".

    Raises:
        CheckpointError: this installation carries no such model.
    """
    for models in (PACKAGE / "models", PACKAGE.parents[1] / "models"):
        if (models / name).is_dir():
            return models / name
    raise CheckpointError(f"this installation of vlroute has no embedded model {name!r}; reinstall vlroute")
