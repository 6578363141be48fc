"""`vlroute doctor`: what is fine, what is missing, what is broken, each with what to do."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import ROOT
from vlroute.cli.app import app
from vlroute.cli.doctor import EXTRAS, Finding, examine
from vlroute.decision.artifact import weights_path
from vlroute.files import shipped
from vlroute.store import Store


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installation of this tree says of itself; that of the environment may be older."""
    folder = tmp_path_factory.mktemp("installed")
    code = f"from hatchling.build import prepare_metadata_for_build_wheel as p; p({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(autouse=True)
def _as_installed(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setenv("PYTHONPATH", str(installed))


def found(section: str, what: str | None = None, **options: Any) -> list[Finding]:
    return [one for one in examine(**options) if one.section == section and what in (None, one.what)]


def test_the_pocket_pair_is_fine() -> None:
    findings = list(examine())
    assert not [one for one in findings if one.state == "problem"]
    assert all(one.advice for one in findings if one.state != "fine")
    by_name = {(one.section, one.what): one.found for one in findings}
    assert "equal" in by_name["model", "towers"]
    assert "3600 records" in by_name["router", "calibration set"]
    assert by_name["packages", "torch"]
    assert [one.what for one in findings if one.section == "extras"] == [*EXTRAS]


def test_two_towers_are_told_apart(other_tower: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    pair = tmp_path / "model"
    shutil.copytree(folders["instruct"], pair / "instruct")
    shutil.copytree(other_tower, pair / "thinking")
    assert "different" in found("model", "towers", model=str(pair))[0].found
    (note,) = found("router", "artifact", model=str(pair))
    assert (note.state, "vlroute train" in note.advice) == ("note", True)


def test_a_pair_that_is_not_here_is_no_problem_yet() -> None:
    assert {one.state for one in found("model", model="Qwen/Qwen3-VL-2B")} == {"note"}
    assert "not known yet" in found("router", "vision probe", model="a/b", router=shipped("pocket/router"))[0].found


def test_a_pair_that_is_not_here_and_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for one in found("model", model="Qwen/Qwen3-VL-2B"):
        assert (one.state, "HF_HUB_OFFLINE" in one.advice) == ("problem", True)


@pytest.mark.parametrize(("damage", "says"), [("config.json", "model type"), ("tokenizer.json", "tokenizer.json")])
def test_a_checkpoint_of_another_kind(damage: str, says: str, tmp_path: Path, folders: dict[str, Path]) -> None:
    for mode, folder in folders.items():
        shutil.copytree(folder, tmp_path / mode)
    file = tmp_path / "thinking" / damage
    if damage == "config.json":
        file.write_text(file.read_text("utf-8").replace('"qwen3_vl"', '"llama"'), encoding="utf-8")
    else:
        file.unlink()
    fine, problem, *_ = found("model", model=str(tmp_path))
    assert (fine.state, problem.state) == ("fine", "problem")
    assert says in problem.found


def test_a_cache_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlroute.cli.doctor.LITTLE_DISK", 2**60)
    (hub,) = found("caches")
    assert (hub.state, "HF_HOME" in hub.advice) == ("note", True)


def test_broken_parts_are_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    router = tmp_path / "router"
    shutil.copytree(shipped("pocket/router"), router)
    with weights_path(router).open("r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff")
    (problem,) = found("router", router=router)
    assert problem.state == "problem"
    assert "damaged" in problem.found
    pair = tmp_path / "model"
    shutil.copytree(folders["instruct"], pair / "instruct")
    (pair / "thinking").mkdir()
    assert [one.state for one in found("model", model=str(pair))] == ["fine", "problem"]
    (tmp_path / "answers.db").write_bytes(b"no database" * 100)
    (problem,) = found("store", store=str(tmp_path / "answers.db"))
    assert (problem.state, "--store" in problem.advice) == ("problem", True)


def test_a_router_of_another_model(tmp_path: Path, folders: dict[str, Path]) -> None:
    prior = str(shipped("qwen3-vl-2b/router"))
    (note,) = found("router", "trained for", model="pocket", router=prior)
    assert note.state == "note"
    assert note.found.startswith("another model: Qwen/Qwen3-VL-2B; this one is pocket (fingerprint ")
    for mode, folder in folders.items():  # a folder may be a copy of any model
        shutil.copytree(folder, tmp_path / "mine" / mode)
    (fine,) = found("router", "trained for", model=str(tmp_path / "mine"), router=prior)
    assert fine.state == "fine"
    assert fine.found.startswith("Qwen/Qwen3-VL-2B; this model is mine (fingerprint ")


def test_the_store(tmp_path: Path) -> None:
    where = tmp_path / "answers.db"
    assert found("store", store=str(where))[0].state == "note"
    assert not where.exists()
    sqlite3.connect(where).close()
    found("store", store=str(where))
    assert not where.read_bytes()  # looking makes no tables
    Store(where).close()
    assert found("store", store=str(where))[0].found.startswith("0 answers")


def run(*arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which some packages are not installed."""
    argv = ["vlroute", *arguments]
    code = f"{BLOCKED.format(names=without)}\nsys.argv = {argv!r}\nfrom vlroute.cli import run; run()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


#: Neither their files nor their metadata are found.
BLOCKED = """
import importlib.metadata as metadata, sys
real = metadata.version
def version(name):
    if name.lower() in {names}: raise metadata.PackageNotFoundError(name)
    return real(name)
class Blocker:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {names}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
metadata.version = version
sys.meta_path.insert(0, Blocker)
"""


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "vlroute.cli.doctor.examine", lambda *_: [Finding("a", "b", "c"), Finding("a", "d", "e", "note")]
    )
    shown = CliRunner().invoke(app, ["doctor"])
    assert (shown.exit_code, shown.stdout.split()) == (0, ["a", "✓", "b", "c", "•", "d", "e"])
    monkeypatch.setattr("vlroute.cli.doctor.examine", lambda *_: [Finding("a", "b", "[c]", "problem", "do d")])
    shown = CliRunner().invoke(app, ["doctor"])
    assert (shown.exit_code, shown.stdout.split()) == (1, ["a", "✗", "b", "[c]", "→", "do", "d"])


def test_what_is_not_installed_is_said_with_the_line_that_brings_it() -> None:
    done = run("doctor", "--json", without=("gradio", "accelerate"))
    assert done.returncode == 1, done.stderr
    listed = {(one["section"], one["what"]): one for one in json.loads(done.stdout)}
    assert listed["extras", "ui"]["advice"] == "pip install 'vlroute[ui]'"
    assert listed["extras", "serve"]["state"] == "fine"
    assert listed["packages", "accelerate"]["state"] == "problem"
    assert "pip install 'accelerate" in listed["packages", "accelerate"]["advice"]


@pytest.mark.parametrize("lost", ["torch", "numpy", "safetensors", "huggingface_hub", "packaging", "PIL", "sqlalchemy"])
def test_a_broken_installation_is_no_traceback(lost: str, tmp_path: Path) -> None:
    (tmp_path / "answers.db").touch()
    done = run("doctor", "--json", "--store", str(tmp_path / "answers.db"), without=(lost, "torch"))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    problems = [one for one in json.loads(done.stdout) if one["state"] == "problem"]
    assert all(one["advice"] for one in problems)
    assert any(lost in one["found"] or lost == one["what"] for one in problems)


def test_other_commands_of_a_broken_installation_point_here() -> None:
    done = run("route", "x", without=("numpy",))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "numpy" in done.stderr
    assert "vlroute doctor" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "lost", "extra"),
    [
        (("serve", "--port", "0"), "uvicorn", "serve"),
        (("serve", "--port", "0"), "fastapi", "serve"),
        (("ui", "--port", "0"), "gradio", "ui"),
        (("train", "x.jsonl", "--out", "y"), "sklearn", "train"),
        (("curves", "x.jsonl", "--out", "y"), "matplotlib", "train"),
        (("export", "x.jsonl", "--store", "y.db"), "sqlalchemy", "store"),
        (("feedback", "x", "--wrong", "--store", "y.db"), "sqlalchemy", "store"),
    ],
)
def test_a_command_without_its_extra_is_one_line(arguments: tuple[str, ...], lost: str, extra: str) -> None:
    done = run(*arguments, without=(lost, "torch"))
    assert done.returncode == 2, done.stderr
    assert f"pip install 'vlroute[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
