"""Outputs that collide with an input or with each other, and files that are not what a command expects."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.integration.test_edges_training import QUICK, cli, rows, written
from vlroute import Router
from vlroute.cli.app import app
from vlroute.errors import OutputError, StoreError
from vlroute.store import Store


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records.jsonl, a router R learned from them, and a store answers.db."""
    folder = tmp_path_factory.mktemp("trained")
    code, output = cli("train", written(folder / "records.jsonl", rows()), "--out", folder / "R", *QUICK)
    assert code == 0, output
    Store(folder / "answers.db").close()
    (folder / "link.db").symlink_to("answers.db")
    (folder / "hard.jsonl").hardlink_to(folder / "records.jsonl")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


COLLIDING = [
    "export answers.db --store answers.db",
    "export sub/../answers.db --store {folder}/answers.db",
    "export link.db --store answers.db",
    "export answers.db --store sqlite:///answers.db",
    "export answers.db --store sqlite:///{folder}/answers.db",
    "train records.jsonl --out new --oof new/router.json",
    "train records.jsonl --out new --oof new/../new/report.md",
    "train records.jsonl --out new --oof new",
    "train records.jsonl --out new --oof records.jsonl",
    "train records.jsonl --out new --oof hard.jsonl",
    "eval records.jsonl --router R --json R/router.json",
    "eval records.jsonl --router R --out R/weights.safetensors",
    "eval records.jsonl --router R --out R/report.md",
    "eval records.jsonl --router R --out same.md --json same.md",
    "eval records.jsonl --router R --out same.md --json ./same.md",
    "curves records.jsonl --oof new/curves.html --out new",
    "collect records.jsonl --out new.jsonl --answers new.jsonl",
    "collect records.jsonl --out new.jsonl --answers new.settings.json",
    "collect records.jsonl --out new.jsonl --answers new.jsonl/deep",
    "collect records.jsonl --out new.jsonl --router R --answers R/router.json",
    "collect records.jsonl --out records.jsonl",
    "probe R/probe/router.json --records records.jsonl --router R",
]


@pytest.mark.parametrize("line", COLLIDING)
def test_an_output_never_replaces_an_input_or_another_output(
    line: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    before = contents(trained)
    code, output = cli(*line.format(folder=trained).split())
    assert code not in (0, None)
    assert "cannot write" in output
    assert contents(trained) == before


def test_files_beside_an_artifact_are_written(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    for _ in range(2):  # an earlier report may be replaced
        code, output = cli("eval", "records.jsonl", "--router", "R", "--out", "R/eval.md", "--json", "R/eval.json")
        assert code == 0, output
    assert cli("export", "out.jsonl", "--store", "answers.db")[0] == 0


def test_collect_ends_with_1_where_it_cannot_write_and_with_2_for_a_wrong_limit(trained: Path) -> None:
    source = trained / "records.jsonl"
    assert cli("collect", source, "--out", "/proc/vlroute/x.jsonl")[0] == 1
    for limit in (0, -1):
        code, output = cli("collect", source, "--out", trained / "limited.jsonl", "--limit", limit)
        assert code == 2
        assert "limit" in output
        assert not (trained / "limited.jsonl").exists()


HUGE = {
    "tokens": "1" + "0" * 400,
    "seconds": "1e308",
    "prefill_seconds": "1" + "0" * 400,
    "chars": "1" + "0" * 400,
}


@pytest.mark.parametrize("name", HUGE)
def test_implausible_values_are_skipped_with_their_line(name: str, tmp_path: Path) -> None:
    good = rows()
    odd = {**good[3], "id": "odd", "thinking": {"correct": 1, name: 0}}
    line = json.dumps(odd).replace(f'"{name}": 0', f'"{name}": {HUGE[name]}')
    code, output = cli("train", written(tmp_path / "r.jsonl", [*good, line]), "--out", tmp_path / "R", *QUICK)
    assert code == 0, output
    assert f"r.jsonl:{len(good) + 1}:" in output
    assert repr(name) in output


@pytest.mark.parametrize("name", ["id", "prompt", "caption", "topic"])
def test_text_that_no_file_can_hold_is_skipped_with_its_line(name: str, tmp_path: Path) -> None:
    good = rows()
    odd = {**good[3], "id": "odd", name: "half \ud800"}
    records = written(tmp_path / "r.jsonl", [odd, *good])
    code, output = cli("train", records, "--out", tmp_path / "R", "--oof", tmp_path / "oof.jsonl", *QUICK)
    assert code == 0, output
    assert "r.jsonl:1:" in output
    assert len((tmp_path / "oof.jsonl").read_text("utf-8").splitlines()) == len(good)


def test_a_file_without_predictions_is_named(trained: Path) -> None:
    records = trained / "records.jsonl"
    for strict in ([], ["--strict"]):
        code, output = cli("curves", records, "--oof", records, "--out", trained / "c", *strict)
        assert code != 0
        assert "records.jsonl" in output
    code, output = cli("curves", records, "--oof", records, "--out", trained / "c")
    assert "out-of-fold" in output


def test_equal_prompts_without_captions_are_not_told_apart_by_captions(tmp_path: Path) -> None:
    equal = [{**row, "prompt": "Look."} for row in rows()]
    records = written(tmp_path / "r.jsonl", equal)
    _, output = cli("train", records, "--out", tmp_path / "R", "--together", "record", *QUICK)
    assert "All prompts are equal" in output
    assert "only captions" not in output


@pytest.mark.parametrize("rating", [["--wrong", "--correct"], ["--correct", "--wrong"], []])
def test_feedback_needs_one_rating(rating: list[str], trained: Path) -> None:
    code, output = cli("feedback", "0" * 32, *rating, "--store", trained / "answers.db")
    assert code != 0
    assert "--correct" in output
    assert "--wrong" in output


def test_another_programs_database_is_no_store(tmp_path: Path) -> None:
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    before = file.read_bytes()
    code, output = cli("ask", "What is this?", "--store", file)
    assert code != 0
    assert "other.db" in output
    with pytest.raises(StoreError, match="other"):
        Store(f"sqlite:///{file}")
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["other.db"]
    sqlite3.connect(tmp_path / "empty.db").close()
    (tmp_path / "empty.db").touch()
    Store(tmp_path / "empty.db").close()


def test_warnings_and_progress_are_not_on_stdout(tmp_path: Path) -> None:
    records = written(tmp_path / "r.jsonl", [*rows(), "torn"])
    for line in (
        ["train", records, "--out", tmp_path / "R", "--oof", tmp_path / "oof.jsonl", *QUICK],
        ["curves", records, "--out", tmp_path / "c", "--oof", tmp_path / "oof.jsonl"],
    ):
        result = CliRunner().invoke(app, [str(one) for one in line])
        assert result.exit_code == 0, result.output
        assert "skipped" not in result.stdout
        assert "warning:" not in result.stdout
        assert "1 line was skipped" in " ".join(result.stderr.split())


def test_a_conversation_is_not_begun_where_it_cannot_be_saved(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for place in ("/proc/vlroute", tmp_path / "file"):
        result = CliRunner().invoke(app, ["chat", "--save", str(place)], input="What is this?\n")
        assert result.exit_code != 0
        assert isinstance(result.exception, OutputError)
        assert not result.stdout
    assert (tmp_path / "file").read_text() == "kept"


def test_a_chat_goes_on_after_a_save_that_failed(tmp_path: Path) -> None:
    typed = f"/save /proc/vlroute\n/save\nWhat is this?\n/save {tmp_path / 'kept'}\n"
    result = CliRunner().invoke(app, ["chat", "--json", "--max-new-tokens", "2"], input=typed)
    assert len(result.stdout.splitlines()) == 1
    assert "Errno" not in result.stderr
    assert "cannot write" in result.stderr
    assert "is not a command" not in result.stderr
    assert (tmp_path / "kept" / "chat.json").is_file()


@pytest.mark.parametrize(
    "line",
    [
        "train records.jsonl --out ?",
        "train records.jsonl --out=?",
        "train records.jsonl --out new --cache ?",
        "curves records.jsonl --out ?",
        "collect records.jsonl --out ?",
        "eval records.jsonl --router ?",
        "export ? --store answers.db",
        "export new.jsonl --store ?",
        "chat --save ?",
        "ask Hello --store ?",
        "ask Hello --image ?",
    ],
)
def test_an_empty_path_is_refused(line: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    before = contents(trained)
    code, _ = cli(*(part.replace("?", "") for part in line.split()))
    assert code != 0
    assert contents(trained) == before


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("probe nope.jsonl --records captioned.jsonl --router R", "nope.jsonl"),
        ("collect nope.jsonl --out new.jsonl", "nope.jsonl"),
        ("collect records.jsonl --out mapped.jsonl --map prompt=nope", "nope"),
    ],
)
def test_a_source_that_cannot_be_used_is_noticed_before_the_pair_is_loaded(
    line: str, why: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(Router, "load", lambda self: pytest.fail("loaded"))
    written(trained / "captioned.jsonl", [{**row, "caption": "a lamp"} for row in rows()])
    code, output = cli(*line.split())
    assert code != 0
    assert why in output
    assert "loaded" not in output
