"""Reading with a size limit, writing atomically, and the files that are part of this package."""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vlroute.errors import CheckpointError, InputError, OutputError

#: Ending of temporary files, and seconds without a write after which such a file was left by a killed process.
DRAFT, DRAFT_SECONDS = ".part", 3600.0


def read_at_most(file: str | Path, most: int) -> bytes:
    """The first `most` + 1 bytes of a file. More than `most` bytes mean that the file is too large. Raises OSError."""
    with open(file, "rb") as stream:
        return stream.read(most + 1)


def read_regular(file: str | Path, most: int) -> bytes:
    """Read a whole regular file. Pipes and devices, which may have no end, are not opened; links are followed.

    Args:
        file: The file.
        most: The largest accepted size, in bytes.

    Returns:
        Its content.

    Raises:
        ValueError: It is not a regular file, or it is larger.
        OSError: It cannot be read.
    """
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    if status.st_size > most:
        raise ValueError(f"{status.st_size:,} bytes, more than the limit of {most:,}")
    with open(file, "rb") as stream:
        return stream.read(most)


def check_outputs(*files: str | Path, inputs: Sequence[str | Path] = ()) -> None:
    """Check that files can be written, before long work begins. The check leaves no files behind.

    Args:
        *files: The outputs. Their folders may be missing.
        inputs: Files that are read and must not be overwritten.

    Raises:
        OutputError: A file cannot be written.
        InputError: An output is also an input, or two outputs are the same file.
    """
    checked: list[Path] = []
    for file in map(Path, files):
        made: list[Path] = []
        try:
            if file.parts[:1] == ("-",):  # it would be mistaken for stdout
                raise OutputError(f"cannot write {file}: output goes to files only; pass the name of a file")
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
    """Whether both paths lead to the same file, which may be missing. Symbolic and hard links are followed."""
    return os.path.realpath(file) == os.path.realpath(other) or (
        file.exists() and other.exists() and file.samefile(other)
    )


def replace_file(path: Path, data: bytes, *, durable: bool = True, private: bool = False) -> None:
    """Write a file atomically: a killed process leaves the old file or the new one.

    Args:
        path: The file.
        data: Its new content.
        durable: Whether to wait until the data and the name of the file are on the disk.
        private: Whether only the owner may read a new file. An existing file keeps its mode.

    Raises:
        OSError: The file cannot be written.
    """
    draft = _draft(path)
    try:
        with open(draft, "wb", opener=opened_privately if private else None) as file:
            if private:
                with suppress(FileNotFoundError):
                    os.chmod(draft, path.stat().st_mode & 0o777)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):  # the disk may be read-only by now
            draft.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def make_folder(folder: Path, *, private: bool = False) -> None:
    """Create a folder with its missing parents, and wait until their names are on the disk.

    Args:
        folder: The folder, which may exist.
        private: Whether only the owner may open the new folders.

    Raises:
        OSError: A folder cannot be created.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
        try:
            sync_folder(one.parent)
        except OSError:
            with suppress(OSError):  # the next call would find the folder and not synchronize its name
                one.rmdir()
            raise
    folder.mkdir(exist_ok=True)  # raises an error if there is a file of this name


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk. Raises OSError."""
    if os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_drafts(folder: Path, *locked: str) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Args:
        folder: The folder; it may be missing.
        *locked: Names or patterns of files that are written only under a lock which the caller holds. Nobody is writing
            their temporary files. Those of other files are removed when they are `DRAFT_SECONDS` old.
    """
    unused = {draft for name in locked for draft in folder.glob(f"{name}.*{DRAFT}")}
    for draft in folder.glob(f"*{DRAFT}"):
        with suppress(OSError):
            if draft in unused or time.time() - draft.stat().st_mtime > DRAFT_SECONDS:
                draft.unlink()


def opened_privately(path: str, flags: int) -> int:
    """The `opener` of `open` for files that only their owner may read, if they are new."""
    return os.open(path, flags, 0o600)


def _draft(path: Path) -> Path:
    """A unique temporary name next to `path`, because other processes may write the same file."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{DRAFT}")


PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The folder of an embedded model.

    Args:
        name: For example "pocket/instruct" or "pocket/router".

    Returns:
        The folder.

    Raises:
        CheckpointError: This installation has no such model.
    """
    for models in (PACKAGE / "models", PACKAGE.parents[1] / "models"):
        if (models / name).is_dir():
            return models / name
    raise CheckpointError(f"this installation of vlroute has no embedded model {name!r}; reinstall vlroute")
