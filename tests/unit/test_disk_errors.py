"""Errors of the disk: what was there before stays, the next call works, and nothing half-written is left."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlroute.chat import MEDIA, Turn, read_chat, write_chat
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.engine.cache.disk import DiskTier
from vlroute.engine.cache.features import VisionFeatures
from vlroute.errors import StoreError
from vlroute.file_lock import locked
from vlroute.files import make_folder, replace_file, shipped
from vlroute.inputs.messages import parse
from vlroute.records import Outcome, Record, append_lines, read_records, write_records
from vlroute.store import BUSY_SECONDS, Store
from vlroute.types import Answer, Decision, Timing, Usage

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes, as on a full disk: a write stores what fits, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Fsync:
    """Replaces `os.fsync`: notes what is synchronized, and fails in the calls with these numbers."""

    def __init__(self, patch: pytest.MonkeyPatch, *failing: int) -> None:
        self.failing, self.calls = failing, list[Path]()
        patch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        self.calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        if len(self.calls) - 1 in self.failing:
            raise OSError(errno.EIO, "Input/output error")


def record(number: int) -> Record:
    return Record(f"r{number}", "How many? 多少？" * 30, None, Outcome(True), Outcome(False))


def ids(file: Path) -> list[str]:
    return [one.id for one in read_records(file)]


def test_records_on_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    write_records(file, [record(1)], append=True)
    before = file.read_bytes()
    with full_disk(len(before) + 100), pytest.raises(OSError, match="File too large"):
        write_records(file, [record(2)], append=True)
    assert file.read_bytes() == before
    write_records(file, [record(3)], append=True)
    assert ids(file) == ["r1", "r3"]
    assert [*tmp_path.iterdir()] == [file]


def test_records_that_cannot_be_synchronized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines are removed: a later fsync could succeed without them, and the next lines would follow a gap."""
    file = tmp_path / "records.jsonl"
    write_records(file, [record(1)], append=True)
    with monkeypatch.context() as patch:
        Fsync(patch, 0)
        with pytest.raises(OSError, match="Input/output error"):
            write_records(file, [record(2)], append=True)
    assert ids(file) == ["r1"]


def test_the_name_of_a_records_file_is_durable_before_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "records.jsonl"
    fsync = Fsync(monkeypatch, 0)
    with pytest.raises(OSError, match="Input/output error"):
        append_lines(file, b"{}\n")
    assert file.read_bytes() == b""
    append_lines(file, b"{}\n")
    append_lines(file, b"{}\n")
    assert fsync.calls == [tmp_path, tmp_path, file, file]


def test_a_file_is_replaced_on_a_full_disk(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    replace_file(file, b"before")
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        replace_file(file, b"x" * 1000)
    assert [*tmp_path.iterdir()] == [file]
    assert file.read_bytes() == b"before"


def test_a_lock_on_a_full_disk(tmp_path: Path) -> None:
    with full_disk(0), locked(tmp_path / "file"):
        pass
    assert [*tmp_path.iterdir()] == []


def test_a_folder_whose_name_is_not_durable_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = Fsync(monkeypatch, 1)
    folder = tmp_path / "a" / "b"
    with pytest.raises(OSError, match="Input/output error"):
        make_folder(folder)
    make_folder(folder)
    assert fsync.calls == [tmp_path, tmp_path / "a", tmp_path / "a"]


def test_a_chat_synchronizes_pictures_of_an_earlier_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decision = Decision("instruct", "prompt", 0.4, 0.7, 0.3, 0.2, 1.0, 0.08, "gain", None)
    answer = Answer("red", "", decision, "stop", Usage(20, 4, 5, 0), Timing(0.5, 0.1, 0.1, 0.2, 0.3, 1.2))
    turns = (Turn(parse("Which color?", Image.new("RGB", (16, 16), "red")).messages[0], answer),)
    media = tmp_path / MEDIA
    media.mkdir()
    fsync = Fsync(monkeypatch, 1)
    with pytest.raises(OSError, match="Input/output error"):
        write_chat(tmp_path, None, turns)
    assert fsync.calls[1:] == [media]
    fsync = Fsync(monkeypatch)
    write_chat(tmp_path, None, turns)
    assert media in fsync.calls
    assert read_chat(tmp_path)[1][0].answer.text == "red"


def test_an_artifact_whose_old_weights_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = ComplexityClassifier.load(shipped("pocket/router"))
    classifier.save(tmp_path)
    classifier.heads.bias[:] += 1

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", read_only)
        classifier.save(tmp_path)
    assert (ComplexityClassifier.load(tmp_path).heads.bias == classifier.heads.bias).all()
    classifier.save(tmp_path)
    assert len([*tmp_path.glob("*.safetensors")]) == 1


def test_vision_features_on_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier, whole, damaged = DiskTier(tmp_path), "0" * 64, "1" * 64
    for key in (whole, damaged):
        tier.put(key, VisionFeatures((1, 4, 4), torch.ones(4, 8), ()))
    with (tmp_path / f"{damaged}.features").open("r+b") as file:
        file.write(b"?")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for module, name in ((os, "utime"), (Path, "unlink")):
        monkeypatch.setattr(module, name, read_only)
    found = tier.get(whole)
    assert found is not None
    assert torch.equal(found.merged, torch.ones(4, 8))
    assert tier.get(damaged) is None


def test_a_store_on_a_full_disk_is_refused_at_once(tmp_path: Path) -> None:
    """SQLite reports it by the same type of error as a lock, for which opening waits."""
    with Store(tmp_path / "answers.db"):
        pass
    began = time.monotonic()
    with full_disk(0), pytest.raises(StoreError, match=r"could not be opened: .*; free some space on its disk"):
        Store(tmp_path / "answers.db")
    assert time.monotonic() - began < BUSY_SECONDS / 2
    with Store(tmp_path / "answers.db") as store:
        assert store.count() == (0, 0)
