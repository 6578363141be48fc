"""Locks between processes that write the same file."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlroute.errors import OutputError

if sys.platform != "win32":
    import fcntl

#: Seconds between two attempts.
RETRY = 0.02
BUSY = "{path} is being written by {holder}; wait until it ends, or choose another file"


@contextmanager
def locked(path: str | Path, wait: float = 30.0, *, busy: str = BUSY) -> Iterator[None]:
    """Let only one process, and in it only one thread, write `path`.

    The lock is a file beside `path`, with the ending `.lock`, which is removed at the end. The operating system
    releases the lock when the process ends, even if it is killed. Windows has no such locks; nothing is locked there.

    Args:
        path: The file that is written. Its folder exists.
        wait: Seconds to wait for another holder.
        busy: Message of the error; {path} and {holder} are replaced.

    Yields:
        While the lock is held.

    Raises:
        OutputError: Another process holds the lock. The error names it.
        OSError: The lock file cannot be created.
    """
    if sys.platform == "win32":
        yield
        return
    file = Path(f"{path}.lock")
    descriptor = _acquired(Path(path), file, time.monotonic() + wait, busy)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquired(path: Path, file: Path, deadline: float, busy: str) -> int:
    """The descriptor of the lock file, locked, with the holder as its content."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # the previous holder may have removed the file after it was opened here
            if _is_same(descriptor, file):
                content = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:200]}
                with suppress(OSError):  # a full disk: the lock holds without the name of its holder
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(content).encode(), 0)
                return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = _holder(descriptor)
                os.close(descriptor)
                raise OutputError(busy.format(path=path, holder=holder)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        time.sleep(RETRY)


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    """The holder of a lock in words."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']} ({found['command']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
