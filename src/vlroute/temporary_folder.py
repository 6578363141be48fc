"""Temporary folders that do not outlive a killed process for long: the next process removes them."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl


class TemporaryFolder:
    """A new folder, which only the owner can open, among those for temporary files.

    The folder is locked. The operating system releases the lock when the process ends, even if it is killed: folders of
    the same prefix without a lock were left by killed processes, and are removed first. Windows has no such locks;
    nothing is removed there.

    Args:
        prefix: The first characters of its name. No other program uses them.
    """

    def __init__(self, prefix: str) -> None:
        if sys.platform == "win32":
            self.path, self._descriptor = Path(tempfile.mkdtemp(prefix=prefix)), None
            return
        _sweep(prefix)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix))
            self._descriptor: int | None = _locked(self.path)
            if self._descriptor is not None:  # otherwise another process has just removed the folder
                break

    def remove(self) -> None:
        """Remove the folder with its content. A second call has no effect."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _sweep(prefix: str) -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if (descriptor := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _locked(folder: Path) -> int | None:
    """The descriptor of a folder, locked; None if a process has locked or removed it, or it has another owner."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            if found.st_uid == os.getuid() and os.path.samestat(found, folder.stat()):
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
    return None
