"""The kill suite and the damaged inputs, in small numbers; `make chaos` takes more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training.chaos.faulty_disk import missing_part

from tests.conftest import lacking

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def test_nothing_acknowledged_is_lost_and_all_errors_are_public(tmp_path: Path) -> None:
    suites = ["kills", "mutants", *([] if missing_part() else ["power_cuts", "disk_faults"])]
    numbers = ["--kills", "2", "--mutants", "20", "--power-cuts", "1", "--disk-faults", "1", "--seed", "7"]
    done = subprocess.run(
        [sys.executable, "-m", "training.chaos", "--only", *suites, *numbers, "--out", str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "chaos.json").read_text("utf-8"))
    assert len(data["kills"]) >= 6
    for one in data["kills"].values():
        assert (one["kills"], one["lost"], one["unreadable"], one["errors"]) == (2, 0, 0, [])
        assert one["acknowledged"] > 0
    assert len(data["mutants"]) >= 10
    for one in data["mutants"].values():
        assert (one["untyped"], one["errors"]) == (0, [])
        assert one["refused"] > 0
        assert one["refused"] + one["accepted"] == one["mutants"] == 20
    for one in data.get("power_cuts", {}).values():
        assert (one["kills"], one["lost"], one["unreadable"], one["errors"]) == (1, 0, 0, [])
        assert one["acknowledged"] > 0
    for one in data.get("disk_faults", {}).values():
        assert (one["untyped"], one["lost"], one["unreadable"], one["errors"]) == (0, 0, 0, [])
        assert one["acknowledged"] > 0
    page = (tmp_path / "chaos.md").read_text("utf-8")
    assert page.count("holds") == sum(
        len(rows) for name, rows in data.items() if name not in ("counts", "seconds", "where")
    )
    assert "**fails**" not in page


#: In a process of its own, because it forks.
WITHOUT_FSYNC = """
import os
from dataclasses import replace
from unittest import mock
from training.chaos import kills, power_cuts

[records] = [one for one in kills.COMPONENTS if one.name == "records"]

def work(folder, acknowledge):
    with mock.patch.object(os, "fsync"):
        records.work(folder, acknowledge)

with kills.one_thread():
    found = power_cuts.run(replace(records, work=work), 2)
print(found.lost + found.unreadable)
"""


def test_a_power_cut_loses_what_was_not_synchronized() -> None:
    """The suite can fail: if `fsync` does nothing in the process that is killed, records are lost."""
    if not Path("/dev/fuse").exists():
        pytest.skip("this machine has no FUSE")
    if lacks := missing_part():
        lacking(lacks)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FSYNC], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
