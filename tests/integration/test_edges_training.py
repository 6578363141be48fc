"""The learning commands with poor, partial and broken records, and with outputs that cannot be written."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from vlroute import Router
from vlroute.cli.app import app
from vlroute.errors import InputError
from vlroute.learning.train import train_router

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"instruct": "nowhere/instruct", "thinking": "nowhere/thinking"}  # deciding never opens a checkpoint
QUICK = ["--folds", "2", "--seeds", "1", "--encoder", "none", "--learner", "words"]
Fill = Callable[[str, int], dict[str, Any]]
TOKENS = {"instruct": 5, "thinking": 60}


def rows(count: int = 80, fill: Fill = lambda mode, index: {}) -> list[dict[str, Any]]:
    """Thinking wins the sums, Instruct the guesses; `fill` adds what a mode's outcome holds beside `correct`."""
    made = []
    for index in range(count):
        kind, number = ("Add the numbers", index % 7) if index % 2 else ("Guess the name", index % 5)
        right = {"instruct": index % 2 == 0 or index % 12 == 1, "thinking": index % 2 == 1 or index % 12 == 0}
        outcome = {mode: {"correct": right[mode], **fill(mode, index)} for mode in right}
        made.append({"id": f"r{index}", "prompt": f"{kind} {number} {index}", **outcome})
    return made


def labelled(instruct: Callable[[int], float], thinking: Callable[[int], float], count: int = 80) -> list[dict]:
    return [
        {**row, "instruct": {"correct": instruct(i)}, "thinking": {"correct": thinking(i)}}
        for i, row in enumerate(rows(count))
    ]


def written(path: Path, lines: list[Any]) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, "utf-8")
    return path


def learn(folder: Path, lines: list[Any], **options: Any) -> str:
    """Train on these lines and return the output. The artifact is in `folder / "router"`."""
    output = io.StringIO()
    quick: dict[str, Any] = {"folds": 2, "seeds": 1, "encoder": None, "learner": "words"}
    train_router(
        [written(folder / "records.jsonl", lines)], folder / "router", console=Console(file=output, width=1000),
        **quick | options,
    )  # fmt: skip
    return output.getvalue()


def cli(*arguments: Any) -> tuple[int, str]:
    """Exit code and all output of `vlroute`, errors in its one line included."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    error = "" if result.exception is None or isinstance(result.exception, SystemExit) else str(result.exception)
    return result.exit_code, " ".join((result.output + error).split())


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "router" / "router.json").read_text("utf-8"))["provenance"]


def timed(mode: str, index: int) -> dict[str, Any]:
    return {"tokens": TOKENS[mode] + index % 3, "seconds": 0.1 + 0.01 * (TOKENS[mode] + index % 3)}


def only(*names: str, modes: tuple[str, ...] = ("instruct", "thinking"), first: int = 10**6) -> Fill:
    def fill(mode: str, index: int) -> dict[str, Any]:
        return {name: timed(mode, index)[name] for name in names} if mode in modes and index < first else {}

    return fill


PARTIAL: dict[str, tuple[Fill, tuple[float, float], tuple[float, float]]] = {
    # name: what is held, seconds to expect of Instruct and of Thinking
    "nothing": (only(), (0.7, 1.4), (1.1, 2.5)),
    "all": (only("tokens", "seconds"), (0.1, 0.25), (0.6, 0.85)),
    "tokens": (only("tokens"), (0.2, 0.6), (1.1, 2.0)),
    "seconds": (only("seconds"), (0.1, 0.25), (0.6, 0.85)),
    "seconds of Instruct": (only("tokens", "seconds", modes=("instruct",)), (0.1, 0.25), (0.5, 2.0)),
    "seconds of Thinking": (only("tokens", "seconds", modes=("thinking",)), (0.1, 0.6), (0.6, 0.85)),
    "five records": (only("tokens", "seconds", first=10), (0.1, 0.25), (0.6, 0.85)),
    "zero tokens": (lambda mode, index: {"tokens": 0, "seconds": 1.0}, (0.5, 2.0), (0.5, 2.0)),
}


@pytest.mark.parametrize("name", PARTIAL)
def test_with_partial_records_thinking_can_be_chosen_at_the_default_price(name: str, tmp_path: Path) -> None:
    fill, instruct, thinking = PARTIAL[name]
    output = learn(tmp_path, rows(fill=fill))
    router = Router.from_pretrained(**FOLDERS, router=tmp_path / "router")
    decision = router.decide("Add the numbers 3 7")
    assert instruct[0] <= decision.seconds_instruct <= instruct[1]
    assert thinking[0] <= decision.seconds_thinking <= thinking[1]
    assert decision.threshold < 0.3
    assert decision.mode == "thinking"
    report = (tmp_path / "router" / "report.md").read_text("utf-8")
    complete = name in ("all", "five records", "zero tokens")
    for text in (output, report):
        assert ("assumed" in text) != complete
    assert ("assumed" in provenance(tmp_path)) != complete


def test_assumptions_are_in_report_and_provenance(tmp_path: Path) -> None:
    learn(tmp_path, rows())
    report = (tmp_path / "router" / "report.md").read_text("utf-8")
    assumed = provenance(tmp_path)["assumed"]
    for mode, tokens in assumed["tokens of an answer"].items():
        assert f"{mode.capitalize()} {tokens:g}" in report
    prefill, per_token = assumed["prefill and seconds per token"]["thinking"]
    assert f"{prefill + per_token * assumed['tokens of an answer']['thinking']:.1f} s per answer" in report


def test_a_mode_without_requests_is_reported(tmp_path: Path) -> None:
    slow = learn(tmp_path, rows(fill=lambda mode, i: {"tokens": TOKENS[mode] * 20, "seconds": TOKENS[mode] * 1.0}))
    assert "default price" in slow
    assert "no record is routed to Thinking" in slow
    assert "no record is routed to Thinking" in (tmp_path / "router" / "report.md").read_text("utf-8")
    never = learn(tmp_path, labelled(lambda i: 1, lambda i: i % 4 == 0))
    assert "preset" in never.split("no record is routed to Thinking")[-2]
    always = learn(tmp_path, labelled(lambda i: 0, lambda i: 1))
    assert "no record is routed to Instruct" in always
    fine = learn(tmp_path, rows(240))
    assert "warning" not in fine


@pytest.mark.parametrize(
    ("labels", "output"),
    [
        (labelled(lambda i: 1, lambda i: i % 2), ["Instruct is right on every record"]),
        (labelled(lambda i: i % 2, lambda i: 0), ["Thinking is wrong on every record"]),
        (labelled(lambda i: 1, lambda i: 1), ["Instruct is right", "Thinking is right", "nothing to learn"]),
        (labelled(lambda i: 0, lambda i: 1), ["Instruct is wrong", "Thinking is right", "nothing to learn"]),
        (labelled(lambda i: 0.5, lambda i: i % 3 / 2), ["Instruct has the label 0.5"]),
        (labelled(lambda i: i % 2, lambda i: i % 2), ["Neither mode is better", "nothing to learn"]),
        (labelled(lambda i: i % 3 / 4, lambda i: i % 3 / 4 + 0.5), ["Thinking is always better", "nothing to learn"]),
        (labelled(lambda i: i % 2, lambda i: i % 4 == 1), ["Instruct is at least as good"]),
    ],
)  # fmt: skip
def test_labels_of_one_kind_are_named(tmp_path: Path, labels: list[dict], output: list[str]) -> None:
    found = learn(tmp_path, labels)
    report = (tmp_path / "router" / "report.md").read_text("utf-8")
    for text in output:
        assert text in found
        assert text in report


def test_noise_and_a_router_worse_than_one_mode_are_reported(tmp_path: Path) -> None:
    chance = random.Random(5)
    drawn = [(chance.random() < 0.4, chance.random() < 0.8) for _ in range(120)]
    found = learn(tmp_path, labelled(lambda i: drawn[i][0], lambda i: drawn[i][1], 120), price=0.3)
    assert "includes zero" in found
    share = sum(thinking for _, thinking in drawn) / len(drawn)
    (worse,) = [line for line in found.splitlines() if "less accurate than" in line]
    assert "always thinking" in worse
    assert f"{share:.1%}" in worse


def test_few_records_and_equal_prompts_are_named(tmp_path: Path) -> None:
    equal = [{**row, "prompt": "Look."} for row in rows()]
    with pytest.raises(InputError, match="--together record"):
        learn(tmp_path, equal)
    assert not (tmp_path / "router").exists()
    captioned = [{**row, "caption": f"{other['prompt']}, drawn"} for row, other in zip(equal, rows(), strict=True)]
    output = learn(tmp_path, captioned)
    assert "All prompts are equal" in output
    assert "--together record" in output
    output = learn(tmp_path, equal, together="record")
    assert "All prompts are equal" in output
    assert "--together record" not in output
    assert "Only 80 records" in output
    with pytest.raises(InputError, match="at least 50"):
        learn(tmp_path, rows(49))


BROKEN = [
    '{"id": "torn", "prompt": "Add',
    "[1]",
    '{"id": "r1", "prompt": "twice", "instruct": {"correct": 1}, "thinking": {"correct": 1}}',
    '{"id": "x", "prompt": null, "instruct": {"correct": 1}, "thinking": {"correct": 1}}',
    '{"id": "y", "prompt": "p", "instruct": {"correct": 2}, "thinking": {"correct": 1}}',
    '{"id": "z", "prompt": "p", "instruct": {"correct": NaN}, "thinking": {"correct": 1}}',
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records of which six lines are broken, and a router and its predictions learnt from them."""
    folder = tmp_path_factory.mktemp("mixed")
    good = rows()
    written(folder / "records.jsonl", [*good[:3], BROKEN[0], *good[3:], *BROKEN[1:]])
    code, output = cli(
        "train", folder / "records.jsonl", "--out", folder / "router", "--oof", folder / "oof.jsonl", *QUICK
    )
    assert code == 0, output
    (folder / "output.txt").write_text(output)
    return folder


def check_skipped(output: str, count: int = 6) -> None:
    assert f"{count} lines were skipped" in output
    assert "records.jsonl:4:" in output
    assert f"{count - 3} more" in output


def test_train_skips_and_counts_broken_lines(mixed: Path) -> None:
    check_skipped((mixed / "output.txt").read_text())
    assert provenance(mixed)["records"] == 80
    assert provenance(mixed)["skipped lines"] == 6
    assert "6 lines were skipped" in (mixed / "router" / "report.md").read_text("utf-8")


def test_eval_and_curves_skip_and_count_broken_lines(mixed: Path, tmp_path: Path) -> None:
    code, output = cli("eval", mixed / "records.jsonl", "--router", mixed / "router", "--json", tmp_path / "e.json")
    assert code == 0, output
    check_skipped(output)
    assert json.loads((tmp_path / "e.json").read_text())["skipped_lines"] == 6
    oof = (mixed / "oof.jsonl").read_text().splitlines()
    written(tmp_path / "oof.jsonl", [oof[0][:-5], *oof[1:]])
    code, output = cli("curves", mixed / "records.jsonl", "--oof", tmp_path / "oof.jsonl", "--out", tmp_path / "curves")
    assert code == 0, output
    check_skipped(output)
    assert "oof.jsonl:1:" in output
    written(tmp_path / "oof.jsonl", oof[1:])  # a missing prediction is still an error
    code, output = cli("curves", mixed / "records.jsonl", "--oof", tmp_path / "oof.jsonl", "--out", tmp_path / "curves")
    assert code != 0
    assert "no prediction for 1 of 80 records" in output


@pytest.mark.parametrize("command", ["train", "eval", "curves", "probe"])
def test_strict_makes_the_first_broken_line_fatal(command: str, mixed: Path, tmp_path: Path) -> None:
    out = ["--router", mixed / "router"] if command in ("eval", "probe") else ["--out", tmp_path / "out"]
    first = [mixed / "records.jsonl"]
    if command == "probe":
        first = [mixed / "records.jsonl", "--records", mixed / "records.jsonl"]
    code, output = cli(command, *first, *out, "--strict")
    assert code != 0
    assert "records.jsonl:4:" in output
    assert not (tmp_path / "out").exists()


def test_probe_counts_broken_lines_of_the_records(mixed: Path) -> None:
    code, output = cli(
        "probe", mixed / "records.jsonl", "--records", mixed / "records.jsonl", "--router", mixed / "router"
    )
    assert code != 0  # rows without pictures teach nothing
    check_skipped(output)


def test_collect_answers_rows_again_whose_records_are_broken(tmp_path: Path) -> None:
    source = written(
        tmp_path / "q.jsonl", [{"id": str(i), "prompt": f"What is {i}?", "answer": str(i)} for i in range(3)]
    )
    run = ["collect", source, "--out", tmp_path / "r.jsonl", "--set", "max_new_tokens=2"]
    assert cli(*run)[0] == 0
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    written(tmp_path / "r.jsonl", [lines[0], lines[1][:20], lines[2]])
    code, output = cli(*run, "--strict")
    assert code != 0
    assert "r.jsonl:2:" in output
    code, output = cli(*run)
    assert code == 0, output
    assert "1 line was skipped" in output
    kept = [line for line in (tmp_path / "r.jsonl").read_text().splitlines() if line.endswith("}")]
    assert sorted(json.loads(line)["id"] for line in kept) == ["0", "1", "2"]


def test_nothing_but_broken_lines_and_cut_files_are_errors(tmp_path: Path) -> None:
    for name in ("train", "curves"):
        code, output = cli(name, written(tmp_path / "records.jsonl", BROKEN[:2]), "--out", tmp_path / "out")
        assert code != 0
        assert "2 lines were skipped" in output
        assert "records.jsonl:1:" in output
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows()).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    code, output = cli("train", tmp_path / "cut.jsonl.gz", "--out", tmp_path / "out")
    assert code != 0
    assert "cut.jsonl.gz" in output


def bad_outputs(folder: Path) -> dict[str, Path]:
    (folder / "file").write_text("kept")
    (folder / "link").symlink_to(folder / "nowhere" / "deep")
    return {
        "a parent is a file": folder / "file" / "out" / "deep",
        "a parent is a device": Path("/dev/full/out"),
        "a system folder": Path("/proc/vlroute/out"),
        "a dangling link": folder / "link" / "out",
        "a name too long": folder / ("x" * 300) / "out",
    }


COMMANDS: dict[str, list[str]] = {
    "train": ["train", "{records}", "--out", "{out}"],
    "train --oof": ["train", "{records}", "--out", "{free}", "--oof", "{out}"],
    "train --cache": ["train", "{records}", "--out", "{free}", "--cache", "{out}"],
    "curves": ["curves", "{records}", "--out", "{out}"],
    "eval --out": ["eval", "{records}", "--router", "pocket", "--out", "{out}"],
    "eval --json": ["eval", "{records}", "--router", "pocket", "--json", "{out}"],
    "export": ["export", "{out}.jsonl", "--store", "{store}"],
    "collect": ["collect", "{records}", "--out", "{out}.jsonl"],
    "collect --answers": ["collect", "{records}", "--out", "{free}.jsonl", "--answers", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_cannot_be_written_fails_at_once(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: before the records are read, which do not even exist here, and before a model is loaded."""
    for name, out in bad_outputs(tmp_path).items():
        places = {
            "records": tmp_path / "records.jsonl", "out": out, "free": tmp_path / "free", "store": tmp_path / "a.db"
        }  # fmt: skip
        code, output = cli(*(part.format(**places) for part in COMMANDS[command]))
        assert code != 0, name
        assert "cannot write" in output, (name, output)
        assert str(out)[:20] in output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"], name
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("train --cache",)])
def test_an_output_path_that_is_taken_is_named(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if command in ("train", "curves"):
        out.write_text("kept")
    else:
        (tmp_path / "out").mkdir()
        (tmp_path / "out.jsonl").mkdir()
    places = {
        "records": tmp_path / "records.jsonl", "out": out, "free": tmp_path / "free", "store": tmp_path / "a.db"
    }  # fmt: skip
    code, output = cli(*(part.format(**places) for part in COMMANDS[command]))
    assert code != 0
    assert "cannot write" in output
    assert not (tmp_path / "a.db").exists()


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_a_device_and_an_input_are_never_replaced(option: str, mixed: Path) -> None:
    before = (mixed / "records.jsonl").read_bytes()
    for place in ("/dev/full", mixed / "records.jsonl"):
        code, output = cli("eval", mixed / "records.jsonl", "--router", mixed / "router", option, place)
        assert code != 0
        assert "cannot write" in output
    assert not Path("/dev/full").is_file()
    assert (mixed / "records.jsonl").read_bytes() == before


def test_probe_checks_its_output_before_the_pair_is_loaded(mixed: Path, tmp_path: Path) -> None:

    shutil.copytree(mixed / "router", tmp_path / "router")
    (tmp_path / "router" / "probe").write_text("in the way")
    code, output = cli("probe", "none.jsonl", "--records", "none.jsonl", "--router", tmp_path / "router")
    assert code != 0
    assert "cannot write" in output


def test_missing_folders_of_an_output_are_made(mixed: Path, tmp_path: Path) -> None:
    code, output = cli(
        "eval", mixed / "records.jsonl", "--router", mixed / "router", "--out", tmp_path / "a" / "b" / "page.md"
    )
    assert code == 0, output
    assert (tmp_path / "a" / "b" / "page.md").is_file()


@pytest.mark.parametrize(("script", "name"), [("retrain.py", "train"), ("collect.py", "collect")])
def test_the_scripts_are_the_commands(script: str, name: str) -> None:
    told = {"env": {**os.environ, "COLUMNS": "120"}, "capture_output": True, "text": True, "timeout": 120}
    first = [ROOT / "training" / script], ["-m", "vlroute", name]
    for arguments in (["--help"], ["none.jsonl", "--out", "/dev/full/out"]):
        ours, theirs = (subprocess.run([sys.executable, *start, *arguments], **told) for start in first)
        assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)
        assert "Traceback" not in ours.stderr
