"""The kill suite and the damaged inputs, in small numbers; `make chaos` takes more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def test_nothing_acknowledged_is_lost_and_all_errors_are_public(tmp_path: Path) -> None:
    numbers = ["--kills", "2", "--mutants", "20", "--seed", "7"]
    done = subprocess.run(
        [sys.executable, "-m", "training.chaos", *numbers, "--out", str(tmp_path)],
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
    page = (tmp_path / "chaos.md").read_text("utf-8")
    assert page.count("holds") == len(data["kills"]) + len(data["mutants"])
    assert "fails" not in page
