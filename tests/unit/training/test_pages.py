"""Pages of benchmarks are written from their figures; long measurements run side by side."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from training.page import committed_figures, lines_of, render, side_by_side

NAMES = ("gain AUC", "ECE instruct", "ECE thinking", "area of the longest prompts", "area of the oracle")


def test_public_sets_that_miss_their_target_are_bold() -> None:
    def one(area: float) -> dict[str, object]:
        figures = {"area over random": [area, 1, 4]} | {n: [0.5] for n in NAMES}
        return {"records": 1000, "seeds": 2, "covers": "", "figures": figures}

    figures = {"gsm8k, static": one(2.7), "gsm8k, other": one(2.7), "math_v, static": one(-0.1)}
    page = render("public_sets.md", data=figures)
    assert "| gsm8k | static | 1,000 | 2 | 2.70 (1.00 – 4.00) | 2.7 |" in page
    assert "| **2.70 (1.00 – 4.00)** | 3.3 |" in page
    assert "| **-0.10 (1.00 – 4.00)** | 0.0 |" in page


@pytest.mark.parametrize("figures", committed_figures(), ids=lambda path: path.stem)
def test_a_committed_page_is_that_of_its_figures(figures: Path) -> None:
    data = json.loads(figures.read_text("utf-8"))
    assert figures.with_suffix(".md").read_text("utf-8") == render(f"{figures.stem}.md", data=data, **data)


def test_work_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folders = [tmp_path / "1", tmp_path / "2"]
    side_by_side(os.mkdir, [(folder,) for folder in folders], lambda: 2, 2, "making folders")
    assert all(folder.is_dir() for folder in folders)
    with pytest.raises(SystemExit, match="making folders: a process failed"):
        side_by_side(os.mkdir, [(tmp_path / "3",), (folders[0],)], lambda: 2, 2, "making folders")


def test_lines_of_files_that_exist(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\ntorn", encoding="utf-8")
    assert lines_of([tmp_path / "a", tmp_path / "b"]) == 2
