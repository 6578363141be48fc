"""The command as a user types it, in a process of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import task
from tests.synthetic_records import draw_records
from vlroute.learning.records import write_records


def vlroute(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from vlroute.cli import run; run()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_demo_shows_pictures_and_the_table() -> None:
    done = vlroute("demo", "--pictures", "18", "--show", "3", "--seed", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("p_instruct") == 3
    for row in ("always instruct", "always thinking", "routed", "oracle"):
        assert re.search(rf"{row}.*\d+\.\d%", done.stdout)
    for family in ("ocr", "count", "math", "gui", "hop", "video"):
        assert re.search(rf"{family} .* 3 .*\d%", done.stdout)
    assert "vlroute demo --pair Qwen/Qwen3-VL-2B" in done.stdout


def test_ask_answers_about_a_file(tmp_path: Path) -> None:
    some = task("ocr", "easy")
    some.frames[0].save(tmp_path / "x.png")
    done = vlroute("ask", some.prompt, "--image", "x.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == some.answer
    listed = vlroute("ask", some.prompt, "--image", "x.png", "--mode", "thinking", "--json", cwd=tmp_path)
    answer = json.loads(listed.stdout)
    assert answer["text"] == some.answer
    assert answer["decision"]["mode"] == "thinking"


def test_route_only_decides() -> None:
    done = vlroute("route", "Add the numbers.", "--caption", "three numbers", "--json")
    decision = json.loads(done.stdout)
    assert decision["mode"] == "thinking"
    assert decision["p_thinking"] > decision["p_instruct"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", "Read.", "--image", "missing.png"], "missing.png"),
        (["ask", " "], "prompt is empty"),
        (["route", "Read.", "--price", "-1"], "price"),
    ],
)
def test_errors_are_one_line(arguments: list[str], says: str) -> None:
    done = vlroute(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_train_and_curves(tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", draw_records(120)[1])
    few = ("--folds", "2", "--seeds", "1", "--together", "record")
    trained = vlroute("train", "records.jsonl", "--out", "router", "--oof", "oof.jsonl", *few, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "wrote router" in trained.stdout
    drawn = vlroute("curves", "records.jsonl", "--oof", "oof.jsonl", "--out", "curves", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    page = (tmp_path / "curves" / "curves.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    for preset in ("fast", "accurate"):
        done = vlroute("route", "What is the total?", "--caption", "two numbers", "--router", "router",
                       "--policy", preset, "--json", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (json.loads(done.stdout)["threshold"] == 0) == (preset == "accurate")


def test_records_that_cannot_be_used_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("{}\n", encoding="utf-8")
    for command in ("train", "curves"):
        done = vlroute(command, "records.jsonl", "--out", "out", cwd=tmp_path)
        assert done.returncode == 2
        assert "records.jsonl:1:" in done.stderr
