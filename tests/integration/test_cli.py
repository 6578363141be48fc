"""Commands as users type them, in a separate process where the test needs one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.commands import command
from tests.conftest import ROOT, task
from tests.synthetic_records import draw_records
from vlroute import __version__
from vlroute.cli.app import PANELS, app
from vlroute.records import write_records
from vlroute.store import Store

COMMANDS = [name for panel in PANELS.values() for name in panel]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_help_has_an_example_and_fits_80_columns(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert shown.exit_code == 0, shown.stderr
    assert re.search(rf"^ *vlroute {name}\b", shown.stdout, re.MULTILINE)
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_the_main_help_lists_commands_and_exit_codes() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    assert {line.split()[1] for line in shown.stdout.splitlines() if line.startswith("│ ")} >= {*COMMANDS}
    assert "Exit codes: 0" in shown.stdout
    assert CliRunner().invoke(app, ["--version"]).stdout == f"vlroute {__version__}\n"


def test_every_command_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"| `{name}`" not in page] == []


@pytest.mark.parametrize("arguments", ["['--help']", "['serve', '--help']", "['route', 'x', '--caption', 'y']"])
def test_what_needs_no_model_loads_no_torch(arguments: str) -> None:
    code = (
        f"import sys; sys.argv = ['vlroute', *{arguments}]\nfrom vlroute.cli.app import run\n"
        "try: run()\n"
        "finally: print([name for name in ('torch', 'transformers', 'gradio', 'fastapi') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("do", {"doctor"}),
        ("ask --pol", {"--policy"}),
        ("ask --mode ", {"auto", "instruct", "thinking"}),
        ("c", {"chat", "cluster", "collect", "config", "curves"}),
    ],
)
def test_completion(words: str, offered: set[str]) -> None:
    typed = f"vlroute {words}"
    env = {"_VLROUTE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    code = "import sys; sys.argv = ['vlroute']; from vlroute.cli.app import run; run()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **env})
    assert {*done.stdout.split()} == offered, done.stderr


def test_what_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Store(tmp_path / "answers.db").close()
    done = command("export", "file/records.jsonl", "--store", "answers.db", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "file/records.jsonl" in done.stderr


def test_serving_strangers_needs_keys() -> None:
    done = command("serve", "--host", "0.0.0.0", "--port", "0", VLROUTE_API_KEYS="")
    assert done.returncode == 2
    assert "set VLROUTE_API_KEYS" in done.stderr


def test_demo_shows_pictures_and_the_table() -> None:
    done = command("demo", "--pictures", "18", "--show", "3", "--seed", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("p_instruct") == 3
    assert re.search(r"1 · \w+, .*, severity 0\.\d\d", done.stdout)
    for case in ("routing matters", "thinking hurts"):
        panel = done.stdout.partition(case)[2].partition("╰")[0]
        assert (panel.count("right"), panel.count("wrong, expected")) == (2, 1)  # also in the title
    for row in ("always instruct", "always thinking", "routed", "oracle"):
        assert re.search(rf"{row}.*\d+\.\d%", done.stdout)
    for kind in ("ocr", "count", "math", "gui", "hop", "video"):
        assert re.search(rf"{kind} .* 3 .*\d%", done.stdout)
    assert "vlroute demo --model Qwen/Qwen3-VL-2B" in done.stdout


def test_demo_of_the_hybrid() -> None:
    done = command("demo", "--model", "pocket-hybrid", "--pictures", "6", "--show", "1")
    assert done.returncode == 0, done.stderr
    assert "pocket-hybrid" in done.stdout.partition("\n")[0]
    assert done.stdout.count("p_instruct") == 1
    assert re.search(r"routed.*\d+\.\d%", done.stdout)
    assert "Qwen/Qwen3-VL-2B" not in done.stdout


def test_ask_answers_about_a_file(tmp_path: Path) -> None:
    some = task("ocr", "easy")
    some.frames[0].save(tmp_path / "x.png")
    ask = [sys.executable, "-m", "vlroute", "ask", some.prompt, "--image", "x.png"]
    done = subprocess.run(ask, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == some.answer
    listed = command("ask", some.prompt, "--image", "x.png", "--mode", "thinking", "--json", cwd=tmp_path)
    answer = json.loads(listed.stdout)
    assert answer["text"] == some.answer
    assert answer["decision"]["mode"] == "thinking"


def test_route_only_decides() -> None:
    done = command("route", "Add the numbers.", "--caption", "three numbers", "--json")
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
    done = command(*arguments)
    assert done.returncode == 2
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_train_and_curves(tmp_path: Path) -> None:
    records = draw_records(120)[1]
    write_records(tmp_path / "records.jsonl", records)
    few = ("--folds", "2", "--seeds", "1", "--together", "record")
    trained = command("train", "records.jsonl", "--out", "router", "--oof", "oof.jsonl", *few, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "wrote router" in trained.stdout
    drawn = command("curves", "records.jsonl", "--oof", "oof.jsonl", "--price", "0.3", "--out", "curves", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    page = (tmp_path / "curves" / "curves.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "<td>price 0.3</td><td>in force</td>" in page
    assert "<td>knee, price" in page
    low, high = json.loads((tmp_path / "router/router.json").read_text())["metrics"]["figures"]["area over random"][
        "interval"
    ]
    assert f"({low:.3f} – {high:.3f})" in page  # the file of the predictions says how the folds were made
    drawn = command("curves", "records.jsonl", *few, "--price", "0.3", "--out", "trained", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert page == (tmp_path / "trained" / "curves.html").read_text(encoding="utf-8")  # presets and their prices, too
    for preset in ("fast", "accurate"):
        done = command("route", "What is the total?", "--caption", "two numbers", "--router", "router",
                       "--policy", preset, "--json", cwd=tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (json.loads(done.stdout)["threshold"] == 0) == (preset == "accurate")


def test_options_that_predictions_of_a_file_exclude(tmp_path: Path) -> None:
    records = draw_records(60)[1]
    write_records(tmp_path / "records.jsonl", records)
    tokens = {"tokens_instruct": 5, "tokens_thinking": 50.5}
    lines = [{"id": record.id, "p_instruct": 0.5, "p_thinking": 0.5, **tokens} for record in records]

    def curves(*options: str, **settings: object) -> tuple[int, str]:
        (tmp_path / "oof.jsonl").write_text("".join(json.dumps(line | settings) + "\n" for line in lines))
        done = command("curves", "records.jsonl", "--oof", "oof.jsonl", "--out", "curves", *options, cwd=tmp_path)
        return done.returncode, done.stderr

    for option, wanted in (("--folds", "7"), ("--together", "text"), ("--seeds", "1"), ("--encoder", "static")):
        code, says = curves(option, wanted, folds=5, together="record")
        assert code == 2
        assert option in says
    assert curves("--folds", "5", "--together", "record", folds=5, together="record") == (0, "")
    code, says = curves("--folds", "3")
    assert code == 0
    assert "--folds 3 --together text" in says
    assert curves("--folds", "3", "--together", "text") == (0, "")
    lines = [{"id": record.id, "p_instruct": 0.5, "p_thinking": 0.5} for record in records]
    code, says = curves(folds=5, together="record")
    assert code == 0
    assert "oof.jsonl contains no expected tokens" in says


def test_records_that_cannot_be_used_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text("{}\n", encoding="utf-8")
    for name in ("train", "curves"):
        done = command(name, "records.jsonl", "--out", "out", cwd=tmp_path)
        assert done.returncode == 2
        assert "records.jsonl:1:" in done.stderr
