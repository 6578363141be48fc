"""Files read within a bound, and written so that a killed process leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vlroute.errors import CheckpointError, InputError, OutputError


def read_at_most(file: str | Path, most: int) -> bytes:
    """At most `most` bytes, and one more where there are more: enough for whoever checks to refuse it. OSError."""
    with open(file, "rb") as stream:
        return stream.read(most + 1)


def check_outputs(*files: str | Path, inputs: Sequence[str | Path] = ()) -> None:
    """Check that these files can be written, before long work begins.

    Folders may be missing; the check leaves no files behind. `inputs`: files that are read and must not be overwritten.
    Raises an OutputError that names the file and the reason, or an InputError for an input and for two equal outputs.
    """
    checked: list[Path] = []
    for file in map(Path, files):
        made: list[Path] = []
        try:
            if file.exists() and not file.is_file():
                raise OutputError(f"cannot write {file}: it is {'a folder' if file.is_dir() else 'not a regular file'}")
            if any(_same(file, Path(one)) for one in inputs):
                raise InputError(f"cannot write {file}: it is also an input; choose another file")
            for one in checked:
                if any(_same(file, path) for path in (one, *one.parents)) or any(
                    _same(one, path) for path in file.parents
                ):
                    raise InputError(f"cannot write both {one} and {file}: give each output a name of its own")
            checked.append(file)
            for folder in reversed([one for one in file.parents if not one.exists()]):
                folder.mkdir()
                made.append(folder)
            draft = _draft(file)
            try:
                draft.write_bytes(b"\n")
            finally:
                draft.unlink(missing_ok=True)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror or error}; choose another place") from error
        finally:
            with suppress(OSError):  # another process may have created something there
                for folder in reversed(made):
                    folder.rmdir()


def _same(file: Path, other: Path) -> bool:
    """Whether both names are of one file, which need not exist yet: symbolic and hard links are followed."""
    return os.path.realpath(file) == os.path.realpath(other) or (
        file.exists() and other.exists() and file.samefile(other)
    )


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write aside, then rename. `durable` waits until the bytes are on the disk. OSError if the disk refuses."""
    draft = _draft(path)
    try:
        with draft.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _draft(path: Path) -> Path:
    """A unique temporary name next to `path`, because other processes may write the same file."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder of an embedded model.

    Args:
        name: for example "pocket/instruct" or "pocket/router".

    Returns:
        The folder.

    Raises:
        CheckpointError: this installation has no such model.
    """
    for models in (PACKAGE / "models", PACKAGE.parents[1] / "models"):
        if (models / name).is_dir():
            return models / name
    raise CheckpointError(f"this installation of vlroute has no embedded model {name!r}; reinstall vlroute")
