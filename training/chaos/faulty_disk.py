"""A disk that can lose what was not synchronized, and whose calls can fail: a file system in memory, by FUSE.

A power cut is harsher than that of a usual disk: the name of a file is durable only after its folder was synchronized.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

BLOCK = 4096
#: So libfuse renames an open file that is removed.
REMOVED = ".fuse_hidden"
Call = Literal["create", "write", "fsync", "rename"]


def missing_part() -> str:
    """What this machine lacks for such a disk, and what to do; empty if nothing is missing."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing or not accessible; load the kernel module fuse and allow this user to use it"
    if not shutil.which("fusermount"):
        return "the program fusermount is missing; on Debian: apt install fuse3"
    try:
        import mfusepy  # noqa: F401
    except ImportError:
        return "the package mfusepy is missing; pip install 'vlroute[test]'"
    except OSError:
        return "the library libfuse is missing; on Debian: apt install fuse3"
    return ""


class FaultyDisk:
    """A disk, mounted in a folder by a process of its own.

    Args:
        folder: An empty folder.
        seed: Of the calls that fail, and of what survives a power cut.

    Raises:
        RuntimeError: FUSE is missing. The message says what to install.
    """

    def __init__(self, folder: Path, seed: object = 0) -> None:
        if lacks := missing_part():
            raise RuntimeError(f"cannot mount a file system in {folder}: {lacks}")
        arguments = [sys.executable, "-m", "training.chaos.faulty_disk", str(folder), str(seed)]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def fail(self, call: Call, share: float, error: int = errno.EIO, drops: bool = False) -> None:
        """Let a random share of these calls fail.

        Args:
            call: The kind of calls.
            share: The share, 0 to 1.
            error: The `errno`.
            drops: Whether a failed fsync drops the data, so that the next one succeeds without it, as Linux may do.
        """
        self._ask("fail", call, share, error, drops)

    def shorten(self, share: float) -> None:
        """Let a random share of all writes store only a part of their data, as POSIX allows."""
        self._ask("shorten", share)

    def fill(self, room: int = 0) -> None:
        """Leave room for so many more bytes."""
        self._ask("fill", room)

    def set_read_only(self) -> None:
        self._ask("set_read_only")

    def heal(self) -> int:
        """End all faults. Returns how many calls have failed or were shortened since the last time."""
        return int(self._ask("heal"))

    def cut_power(self, partly: bool = False) -> None:
        """Drop what was not synchronized, and mount again. No file on the disk may be open.

        Args:
            partly: Whether a random part of the blocks, sizes and names that were not synchronized survives.
        """
        self._ask("cut_power", partly)

    def __enter__(self) -> FaultyDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the process ends with its input
        if self._process.returncode:
            raise RuntimeError(f"the file system ended with the exit status {self._process.returncode}")

    def _ask(self, command: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the process of the file system has ended; its output says why")
        return json.loads(line)


@dataclass(eq=False, slots=True)
class File:
    """Content of a file, and what of it would survive a power cut."""

    mode: int
    modified: int
    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: set[int] = field(default_factory=set)  # numbers of blocks

    def write(self, data: bytes, offset: int) -> None:
        if offset > len(self.data):
            self.resize(offset)
        self.data[offset : offset + len(data)] = data
        self.unsynced.update(range(offset // BLOCK, (offset + len(data) - 1) // BLOCK + 1))

    def resize(self, size: int) -> None:
        self.unsynced.update(range(min(size, len(self.data)) // BLOCK, max(size, len(self.data)) // BLOCK + 1))
        self.data = self.data[:size].ljust(size, b"\0")

    def sync(self, survives: Callable[[], bool] = lambda: True) -> None:
        """Make unsynchronized blocks and the size durable, each if it `survives`."""
        size = len(self.data) if survives() else len(self.durable)
        kept = self.durable.ljust(len(self.data), b"\0")
        for block in sorted(self.unsynced):
            if survives():
                part = slice(block * BLOCK, (block + 1) * BLOCK)
                kept[part] = self.data[part].ljust(len(kept[part]), b"\0")
        self.durable = kept[:size]
        self.unsynced.clear()


@dataclass(eq=False, slots=True)
class Folder:
    """Names in a folder, and those that would survive a power cut."""

    mode: int
    modified: int
    names: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)

    def sync(self, survives: Callable[[], bool] = lambda: True) -> None:
        """Make changed names durable, each if it `survives`."""
        for name in sorted(self.names.keys() | self.durable.keys()):
            if self.names.get(name) is not self.durable.get(name) and survives():
                if name in self.names:
                    self.durable[name] = self.names[name]
                else:
                    del self.durable[name]


class Disk:
    """The file system, with the methods that mfusepy calls."""

    use_ns = True

    def __init__(self, seed: str) -> None:
        self.root = Folder(stat.S_IFDIR | 0o755, time.time_ns())
        self.opened: dict[int, File] = {}
        self.handles = itertools.count(1)
        self.rng = random.Random(seed)
        self.mounted = threading.Event()
        self.has_power = True
        self.failed = 0
        self.end_faults()

    def end_faults(self) -> None:
        self.failing: dict[str, tuple[float, int]] = {}
        self.short, self.read_only, self.drops = 0.0, False, False
        self.limit: int | None = None  # bytes

    def settle(self, partly: bool) -> None:
        """Drop what was not synchronized, or keep a random part of it."""

        def survives() -> bool:
            return partly and self.rng.random() < 0.5

        def visit(folder: Folder) -> None:
            folder.sync(survives)
            folder.durable = {name: one for name, one in folder.durable.items() if REMOVED not in name}
            folder.names = dict(folder.durable)
            for one in folder.names.values():
                if isinstance(one, Folder):
                    visit(one)
                else:
                    one.sync(survives)
                    one.data = bytearray(one.durable)

        visit(self.root)
        self.opened.clear()

    def used(self) -> int:
        """Bytes of all files, in whole blocks."""

        def files(folder: Folder) -> Iterator[File]:
            for one in folder.names.values():
                if isinstance(one, Folder):
                    yield from files(one)
                else:
                    yield one

        return sum(_rounded(len(file.data)) for file in {*files(self.root), *self.opened.values()})

    # operations of FUSE

    def init(self, path: str) -> None:
        self.mounted.set()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        one = self.opened[fh] if fh else self._find(path)
        return {
            "st_mode": one.mode, "st_nlink": 1, "st_size": len(one.data) if isinstance(one, File) else 0,
            "st_uid": os.getuid(), "st_gid": os.getgid(),
            "st_mtime": one.modified, "st_atime": one.modified, "st_ctime": one.modified,
        }  # fmt: skip

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *self._folder(path).names]

    def statfs(self, path: str) -> dict[str, int]:
        blocks = 2**30 // BLOCK if self.limit is None else self.limit // BLOCK
        free = max(0, blocks - self.used() // BLOCK)
        return {"f_bsize": BLOCK, "f_frsize": BLOCK, "f_blocks": blocks, "f_bfree": free, "f_bavail": free}

    def open(self, path: str, flags: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            self._change()
        file = self._find(path)
        assert isinstance(file, File)
        return self._handle(file)

    def create(self, path: str, mode: int, flags: int) -> int:
        self._change("create")
        file = File(stat.S_IFREG | mode & 0o7777, time.time_ns())
        self._put(path, file)
        return self._handle(file)

    def mkdir(self, path: str, mode: int) -> None:
        self._change("create")
        self._put(path, Folder(stat.S_IFDIR | mode & 0o7777, time.time_ns()))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self.opened[fh].data[offset : offset + size])

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._change("write")
        file = self.opened[fh]
        if self.limit is not None:
            own = _rounded(len(file.data))
            data = data[: max(0, own + max(0, self.limit - self.used()) - offset)]
            if not data:
                self._fail(errno.ENOSPC)
        if len(data) > 1 and self.rng.random() < self.short:
            data = data[: self.rng.randrange(1, len(data))]
            self.failed += 1
        file.write(data, offset)
        file.modified = time.time_ns()
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self._change("write")
        file = self.opened[fh] if fh else self._find(path)
        assert isinstance(file, File)
        file.resize(length)
        file.modified = time.time_ns()

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        file = self.opened[fh]
        try:
            self._change("fsync")
        except OSError:
            if self.drops:
                file.unsynced.clear()
            raise
        file.sync()

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        self._change("fsync")
        self._folder(path).sync()

    def rename(self, old: str, new: str) -> None:
        self._change("" if REMOVED in new else "rename")
        self._put(new, self._find(old))
        self._remove(old)

    def unlink(self, path: str) -> None:
        self._change()
        self._remove(path)

    def rmdir(self, path: str) -> None:
        self._change()
        if self._folder(path).names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._remove(path)

    def chmod(self, path: str, mode: int) -> None:
        self._change()
        one = self._find(path)
        one.mode = stat.S_IFMT(one.mode) | mode & 0o7777

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._change()

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> None:
        self._change()
        self._find(path).modified = times[1] if times else time.time_ns()

    def release(self, path: str, fh: int) -> None:
        self.opened.pop(fh, None)

    def _change(self, call: str = "") -> None:
        """Raise the error of a call that changes something, if it is to fail."""
        if not self.has_power:
            raise OSError(errno.EIO, "no power")
        if self.read_only:
            self._fail(errno.EROFS)
        share, error = self.failing.get(call, (0.0, 0))
        if share and self.rng.random() < share:
            self._fail(error)

    def _fail(self, error: int) -> None:
        self.failed += 1
        raise OSError(error, os.strerror(error))

    def _find(self, path: str) -> File | Folder:
        one: File | Folder = self.root
        for name in path.split("/"):
            if name:
                if not isinstance(one, Folder) or name not in one.names:
                    raise OSError(errno.ENOENT, "not found")
                one = one.names[name]
        return one

    def _folder(self, path: str) -> Folder:
        folder = self._find(path)
        assert isinstance(folder, Folder)
        return folder

    def _put(self, path: str, one: File | Folder) -> None:
        folder, _, name = path.rpartition("/")
        self._folder(folder).names[name] = one

    def _remove(self, path: str) -> None:
        folder, _, name = path.rpartition("/")
        del self._folder(folder).names[name]

    def _handle(self, file: File) -> int:
        handle = next(self.handles)
        self.opened[handle] = file
        return handle


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class _Commands:
    """Carries out the commands of `FaultyDisk`, in a thread beside FUSE."""

    def __init__(self, disk: Disk, folder: str) -> None:
        self.disk, self.folder = disk, folder
        self.partly = self.ended = False

    def listen(self) -> None:
        self.disk.mounted.wait()
        print("null", flush=True)
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            print(json.dumps(getattr(self, command)(*arguments)), flush=True)
        self.ended = True
        self._unmount("-z")
        os._exit(0)  # files may still be open

    def fail(self, call: str, share: float, error: int, drops: bool) -> None:
        self.disk.failing, self.disk.drops = {call: (share, error)}, drops

    def shorten(self, share: float) -> None:
        self.disk.short = share

    def fill(self, room: int) -> None:
        self.disk.limit = self.disk.used() + room

    def set_read_only(self) -> None:
        self.disk.read_only = True

    def heal(self) -> int:
        self.disk.end_faults()
        failed, self.disk.failed = self.disk.failed, 0
        return failed

    def cut_power(self, partly: bool) -> None:
        self.partly = partly
        self.disk.mounted.clear()
        self.disk.has_power = False  # the kernel writes pages back when it unmounts
        self._unmount()
        self.disk.mounted.wait()

    def _unmount(self, *options: str) -> None:
        subprocess.run(["fusermount", "-u", *options, self.folder], check=True)


def main(folder: str, seed: str) -> None:
    """Mount the disk until stdin is closed. Each power cut mounts it anew, which empties the cache of the kernel."""
    from mfusepy import FUSE

    disk = Disk(seed)
    commands = _Commands(disk, folder)
    threading.Thread(target=commands.listen, daemon=True).start()
    while not commands.ended:
        FUSE(disk, folder, foreground=True, nothreads=True)
        disk.settle(commands.partly)
        disk.has_power = True


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(*sys.argv[1:])
