"""Temporary folders: those of running processes are kept, those of killed ones are removed by the next process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vlroute.temporary_folder import TemporaryFolder

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
HOLD = """
import sys, time
from vlroute.temporary_folder import TemporaryFolder
folder = TemporaryFolder("vlroute-test-")
(folder.path / "upload").write_text("private")
print(folder.path, flush=True)
time.sleep(60)
"""


def test_the_folder_of_a_killed_process_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "vlroute-test-file").touch()  # not a folder
    (tmp_path / "other").mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        first = TemporaryFolder("vlroute-test-")
        assert first.path.stat().st_mode & 0o777 == 0o700
        assert (theirs / "upload").exists()
        process.kill()
    second = TemporaryFolder("vlroute-test-")
    assert not theirs.exists()
    assert first.path.exists()
    for folder in (first, second, second):
        folder.remove()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "vlroute-test-file"]
