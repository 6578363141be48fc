"""Files: whole replacement, permissions, drafts of killed processes, and locks between processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vlroute.errors import OutputError
from vlroute.file_lock import locked
from vlroute.files import DRAFT_SECONDS, check_outputs, make_folder, replace_file, sweep_drafts
from vlroute.records import append_lines

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions and locks of POSIX")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def test_private_files_and_folders(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", private=True)
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)
    file = tmp_path / "a" / "file"
    replace_file(file, b"1", private=True)
    assert mode(file) == 0o600
    file.chmod(0o640)  # the choice of the owner
    replace_file(file, b"2", private=True)
    assert (mode(file), file.read_bytes()) == (0o640, b"2")


@pytest.mark.parametrize("name", ["-", "-/report.md"])
def test_a_dash_is_no_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="pass the name of a file"):
        check_outputs(name)
    check_outputs(tmp_path / "-")  # its path is meant


def test_other_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        replace_file(tmp_path / "report.md", b"1")
        make_folder(tmp_path / "figures")
    finally:
        os.umask(before)
    assert (mode(tmp_path / "report.md"), mode(tmp_path / "figures")) == (0o644, 0o755)


def test_a_draft_is_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(mode(one) for one in tmp_path.glob("*.part")))
    replace_file(tmp_path / "chat.json", b"1", private=True)
    assert seen == [0o600]  # the second call is for the folder, in which the draft is already renamed


def test_the_folder_is_synchronized_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    replace_file(tmp_path / "file", b"1")
    assert synced[-1] == (str(tmp_path), True)
    assert len(synced) == 2


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    old, new, other = (tmp_path / name for name in ("a.1.part", "a.2.part", "a.jsonl"))
    for file in (old, new, other):
        file.write_bytes(b"1")
    for file in (old, other):
        os.utime(file, (0, time.time() - DRAFT_SECONDS - 10))
    sweep_drafts(tmp_path)
    assert not old.exists()
    assert new.exists()  # another process may be writing it
    assert other.exists()


def test_drafts_of_a_locked_file_are_removed_at_once(tmp_path: Path) -> None:
    names = ("router.json.1.part", "weights-1.safetensors.2.part", "report.md.3.part", "router.json")
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    sweep_drafts(tmp_path, "router.json", "weights-*.safetensors")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.md.3.part", "router.json"]


HOLD = """
import sys, time
from vlroute.file_lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_error_names_the_holder_and_a_killed_holder_is_none(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with run(HOLD, file) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=f"records.jsonl is being written by process {holder.pid} on "):  # noqa: SIM117
            with locked(file, wait=0.1):
                pass
        holder.kill()
    with locked(file, wait=0.1):
        assert file.with_name("records.jsonl.lock").exists()
    assert [*tmp_path.iterdir()] == []


def test_threads_of_one_process_wait_for_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path / "file"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


APPEND = """
import sys
from pathlib import Path
from vlroute.records import append_lines
for i in range(100):
    append_lines(Path(sys.argv[1]), b'{"writer": %s, "line": %d}\\n' % (sys.argv[2].encode(), i))
    print(i, flush=True)
"""


def test_no_acknowledged_line_of_several_writers_is_lost(tmp_path: Path) -> None:
    """One writer is killed in the middle; each line that it acknowledged is there."""
    file = tmp_path / "records.jsonl"
    writers = [run(APPEND, file, writer) for writer in range(3)]
    assert writers[0].stdout is not None
    acknowledged = [writers[0].stdout.readline() for _ in range(30)]
    writers[0].kill()
    acknowledged += writers[0].stdout.readlines()
    for writer in writers[1:]:
        writer.communicate(timeout=60)
    writers[0].wait()
    append_lines(file, b"")  # removes an incomplete last line
    lines = file.read_text().splitlines()
    for writer, count in ((0, len([line for line in acknowledged if line.endswith("\n")])), (1, 100), (2, 100)):
        assert [f'{{"writer": {writer}, "line": {i}}}' in lines for i in range(count)] == [True] * count
    assert len(lines) == len(set(lines))
    assert mode(file) == 0o600
