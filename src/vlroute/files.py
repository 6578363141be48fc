"""Writing a file so that a killed process leaves the old one or the new one, never half of one."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write aside, then rename. `durable` waits until the bytes are on the disk. OSError if the disk refuses."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # of its own: others may write the same file
    try:
        with draft.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
