"""Files read within a bound, and written so that a killed process leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def read_at_most(file: str | Path, most: int) -> bytes:
    """At most `most` bytes, and one more where there are more: enough for whoever checks to refuse it. OSError."""
    with open(file, "rb") as stream:
        return stream.read(most + 1)


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
