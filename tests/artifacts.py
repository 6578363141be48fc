"""Files of router artifacts."""

from __future__ import annotations

from pathlib import Path


def weights_of(folder: Path) -> Path:
    """The only file of weights in a folder."""
    (file,) = folder.glob("weights*.safetensors")
    return file
