"""Disk tier of the vision cache, with a budget in bytes. A damaged file counts as a miss."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from vlroute.checks import BYTES, refused
from vlroute.engine.cache.features import VisionFeatures
from vlroute.errors import OutputError
from vlroute.files import DRAFT, make_folder, replace_file, sweep_drafts

log = logging.getLogger("vlroute")
KEY = re.compile(r"[0-9a-f]{64}")
HEAD = 64  # hex characters of the checksum before the safetensors bytes


class DiskTier:
    """A folder of vision features that survives the process. Thread-safe; several processes may share a folder.

    Each file has the name of its key and contains a SHA-256 checksum and safetensors data. Files are replaced
    atomically. When the folder exceeds `budget` bytes, the least recently used files are removed. If the disk is full
    or not writable, a warning is logged and the answer is not affected.
    """

    def __init__(self, folder: str | Path, budget: int = 2**30) -> None:
        """Open the folder, or create it.

        Args:
            folder: where the files are stored.
            budget: maximum size of all files in bytes, at least 1.

        Raises:
            SettingsError: `folder` is not a path or `budget` is not a whole number of at least 1.
            OutputError: the folder cannot be created.
        """
        if not isinstance(folder, str | Path):
            raise refused("folder", folder, "a folder")
        self.folder, self.budget = Path(folder), replace(BYTES, low=1).read("budget (bytes)", budget)
        try:
            make_folder(self.folder, private=True)
            sweep_drafts(self.folder)
        except (OSError, ValueError) as error:  # ValueError: a null character
            raise OutputError(f"the folder {str(folder)!r} cannot be created: {error}") from error
        self._lock = threading.Lock()

    def get(self, key: str) -> VisionFeatures | None:
        """The features on the CPU; None if there is no file. A damaged file is removed and counts as none."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # the disk may be read-only
            os.utime(path)
        try:
            return _unpack(data)
        except (ValueError, KeyError, SafetensorError) as error:
            log.warning("removing a damaged file of vision features: %s", error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    def put(self, key: str, features: VisionFeatures) -> None:
        """Store the features; a write error is logged, not raised."""
        data = _pack(features)
        if len(data) > self.budget:
            return
        try:
            replace_file(self._path(key), data, durable=False, private=True)  # a partial file fails its checksum
            with self._lock:
                self._shrink()
        except OSError as error:
            log.warning("cannot store vision features on disk: %s", error.strerror or type(error).__name__)

    def nbytes(self) -> int:
        """Total size of the files in bytes."""
        return sum(size for _, size, _ in self._files())

    def _path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"a key is 64 hex characters, not {key[:80]!r}")
        return self.folder / f"{key}.features"

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        # drafts of other processes, or of one that was killed, take room too
        for path in (*self.folder.glob("*.features"), *self.folder.glob(f"*{DRAFT}")):
            try:
                state = path.stat()
            except OSError:  # another process removed it
                continue
            found.append((state.st_mtime, state.st_size, path))
        return sorted(found)

    def _shrink(self) -> None:
        sweep_drafts(self.folder)
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.budget:
                break
            if path.suffix == DRAFT:  # it may still be written
                continue
            path.unlink(missing_ok=True)
            total -= size


def _pack(features: VisionFeatures) -> bytes:
    tensors = {"merged": features.merged, **{f"deepstack.{i}": layer for i, layer in enumerate(features.deepstack)}}
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
                {"grid": json.dumps(features.grid), "rows": str(features.merged.shape[0])})  # fmt: skip
    return hashlib.sha256(data).hexdigest().encode() + data


def _unpack(data: bytes) -> VisionFeatures:
    """The inverse of `_pack`; ValueError for other data."""
    body = data[HEAD:]
    if hashlib.sha256(body).hexdigest().encode() != data[:HEAD]:
        raise ValueError("the checksum does not match")
    length = int.from_bytes(body[:8], "little")
    grid = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["grid"])
    tensors = load(body)
    layers = tuple(tensors[f"deepstack.{i}"] for i in range(len(tensors) - 1))
    t, h, w = grid
    return VisionFeatures((t, h, w), tensors["merged"], layers)
