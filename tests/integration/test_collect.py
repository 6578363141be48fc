"""`collect_records` with the pocket pair: records, interrupted runs, rows that fail."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from rich.console import Console

from tests.commands import command
from tests.conftest import ROOT
from tests.integration.test_edges_training import cli
from tests.synthetic_records import draw_records
from vlroute import Router
from vlroute.cli.learn import parse_settings
from vlroute.errors import InputError, SettingsError
from vlroute.learning.collect import Collected, choose_examples, collect_records, run_settings
from vlroute.learning.dataset import Source
from vlroute.learning.grading import Agreement, Number, exact
from vlroute.pocket.tasks import draw_task
from vlroute.records import read_records, write_records

EXACT = "vlroute.learning.grading:exact"


def quiet() -> Console:
    return Console(file=io.StringIO(), width=120)


def write_data(folder: Path, count: int, kind: str | None = None) -> Path:
    """Drawn tasks as a user's JSON lines with pictures beside them; videos as lists of frames."""
    rng = random.Random(5)
    lines = []
    for number in range(count):
        task = draw_task(rng, kind or ("ocr", "count", "math")[number % 3], "easy", "en")
        names = [f"{number}-{index}.png" for index in range(len(task.frames))]
        for name, frame in zip(names, task.frames, strict=True):
            frame.save(folder / name)
        pictured = {"video": names} if task.is_video else {"image": names[0]}
        row = {"id": f"row-{number}", "prompt": task.prompt, "answer": task.answer, "topic": task.kind, **pictured}
        lines.append(json.dumps(row) + "\n")
    (folder / "data.jsonl").write_text("".join(lines))
    return folder / "data.jsonl"


def test_records_of_both_modes_with_their_report(router: Router, tmp_path: Path) -> None:
    data, out, console = write_data(tmp_path, 6), tmp_path / "out" / "records.jsonl", quiet()
    result = collect_records(router, data, out, answers=tmp_path / "answers.jsonl", console=console)
    assert result == Collected(recorded=6)
    records = list(read_records(out))
    assert [record.id for record in records] == [f"row-{number}" for number in range(6)]
    assert sum(float(record.instruct.correct) for record in records) >= 4  # easy tasks
    for record in records:
        assert record.caption
        for outcome in (record.instruct, record.thinking):
            assert (outcome.tokens or 0) > 0
            assert 0 < (outcome.prefill_seconds or 0) <= (outcome.seconds or 0)
    prefill = [[getattr(record, mode).prefill_seconds for record in records] for mode in ("instruct", "thinking")]
    assert sum(prefill[1]) > 0.3 * sum(prefill[0])  # the second mode sees its own picture: nothing is cached for it
    texts = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [one["id"] for one in texts] == [record.id for record in records]
    assert texts[0]["answers"].keys() == {"instruct", "thinking"}
    report = (tmp_path / "out" / "records.report.md").read_text("utf-8")
    for topic in ("ocr", "count", "math", "all"):
        assert f"| {topic} | " in report
    assert "6 recorded" in report
    assert "6 records" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_video_and_a_given_caption(router: Router, tmp_path: Path) -> None:
    data = write_data(tmp_path, 1, "video")
    row = {**json.loads(data.read_text()), "caption": "a lamp that flashes"}
    data.write_text(json.dumps(row))
    collect_records(router, data, tmp_path / "r.jsonl", console=quiet())
    (record,) = read_records(tmp_path / "r.jsonl")
    assert record.caption == "a lamp that flashes"


def test_bad_rows_are_reported_and_tried_again(router: Router, tmp_path: Path) -> None:
    data, out = write_data(tmp_path, 3), tmp_path / "r.jsonl"
    good = data.read_text().splitlines()
    missing = json.dumps({"prompt": "?", "image": "later.png", "answer": "1"})
    data.write_text("\n".join([good[0], missing, "no json", json.dumps({"prompt": "?"}), good[0], good[1]]))
    result = collect_records(router, data, out, console=quiet())
    assert (result.recorded, result.failed, result.skipped) == (2, 4, 0)
    for reason, why in zip(
        result.reasons, (r":2 .*later\.png", r"jsonl:3: ", "no gold answer", "the same row"), strict=True
    ):
        assert re.search(why, reason)
    assert "later.png" in (tmp_path / "r.report.md").read_text("utf-8")
    (tmp_path / "0-0.png").rename(tmp_path / "later.png")  # recorded rows do not need their pictures
    again = collect_records(router, data, out, console=quiet())
    assert (again.recorded, again.failed, again.skipped) == (1, 3, 2)
    assert len(list(read_records(out))) == 3


def test_it_stops_if_every_row_fails(router: Router, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"question": "?"}\n' * 100)
    with pytest.raises(InputError, match=r"all of the first 20 rows failed.*d\.jsonl:1: 'prompt' must be"):
        collect_records(router, tmp_path / "d.jsonl", tmp_path / "r.jsonl", console=quiet())
    (tmp_path / "d.jsonl").write_text("")
    with pytest.raises(InputError, match="contains no rows"):
        collect_records(router, tmp_path / "d.jsonl", tmp_path / "r.jsonl", console=quiet())


def test_rows_without_gold_are_labeled_by_agreement(router: Router, tmp_path: Path) -> None:
    data, out = write_data(tmp_path, 6), tmp_path / "r.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("\n".join(json.dumps({**row, "answer": None}) for row in rows[1:]) + "\n" + json.dumps(rows[0]))
    result = collect_records(router, data, out, agreement=Agreement(exact, 0.9, 0.1, 0.6), console=quiet())
    assert (result.recorded, result.without_gold) == (6, 5)
    *unlabelled, labelled = read_records(out)
    pairs = {(record.instruct.correct, record.thinking.correct) for record in unlabelled}
    assert pairs <= {(0.9, 0.9), (0.1, 0.6)}
    assert type(labelled.instruct.correct) is bool
    assert "assumed and not measured" in (tmp_path / "r.report.md").read_text("utf-8")


def test_an_answer_that_replaces_one_of_thinking(router: Router, tmp_path: Path) -> None:
    """Three tokens are too few to close a thought, so that Instruct answers in the column of Thinking, too."""
    data, few = write_data(tmp_path, 6), {"max_new_tokens": 3, "do_sample": False}
    result = collect_records(
        router, data, tmp_path / "gold.jsonl", generation=few, answers=tmp_path / "a.jsonl", console=quiet()
    )
    assert (result.recorded, result.rescued) == (6, 6)
    assert "In 6 of them Thinking left no answer" in (tmp_path / "gold.report.md").read_text("utf-8")
    right = [(record.instruct.correct, record.thinking.correct) for record in read_records(tmp_path / "gold.jsonl")]
    assert (True, True) in right
    assert {*right} <= {(True, True), (False, False)}  # what a user gets
    for line in (tmp_path / "a.jsonl").read_text().splitlines():
        texts = json.loads(line)
        assert texts["answers"]["thinking"] == texts["answers"]["instruct"] != ""
        assert texts["rescued"]
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("\n".join(json.dumps({**row, "answer": None}) for row in rows))
    agreement = Agreement(exact, 0.9, 0.1, 0.6)
    collect_records(router, data, tmp_path / "r.jsonl", agreement=agreement, generation=few, console=quiet())
    pairs = {(record.instruct.correct, record.thinking.correct) for record in read_records(tmp_path / "r.jsonl")}
    assert pairs == {(0.1, 0.1)}  # Instruct does not agree with itself


def test_a_grader_that_fails_and_one_out_of_range(router: Router, tmp_path: Path) -> None:
    data = write_data(tmp_path, 2)

    def broken(text: str, example: Any) -> float:
        raise RuntimeError("my grader is broken")

    with pytest.raises(InputError, match="my grader is broken"):
        collect_records(router, data, tmp_path / "a.jsonl", grader=broken, console=quiet())
    with pytest.raises(InputError, match="'correct' must be"):
        collect_records(router, data, tmp_path / "b.jsonl", grader=lambda *_: 7.0, console=quiet())


def test_settings_must_stay_the_same(router: Router, tmp_path: Path) -> None:
    data, out = write_data(tmp_path, 1), tmp_path / "r.jsonl"
    collect_records(router, data, out, grader=Number(0.1), generation={"do_sample": False}, console=quiet())
    collect_records(router, data, out, grader=Number(0.1), generation={"do_sample": False}, console=quiet())
    with pytest.raises(InputError, match=r"with grader 'Number\(tolerance=0\.1\)'"):
        collect_records(router, data, out, grader=Number(0.2), generation={"do_sample": False}, console=quiet())
    with pytest.raises(InputError, match="with generation"):
        collect_records(router, data, out, grader=Number(0.1), console=quiet())
    with pytest.raises(TypeError, match="unknown generation setting"):
        collect_records(router, data, tmp_path / "s.jsonl", generation={"temprature": 1}, console=quiet())
    (tmp_path / "mine.jsonl").write_text("")
    with pytest.raises(InputError, match="choose another file"):
        collect_records(router, data, tmp_path / "mine.jsonl", console=quiet())
    with pytest.raises(InputError, match=r"\.jsonl file"):
        collect_records(router, data, tmp_path / "r.jsonl.gz", console=quiet())


def test_a_run_with_the_former_names_of_settings_is_continued(router: Router, tmp_path: Path) -> None:
    data, out, settings = write_data(tmp_path, 2), tmp_path / "r.jsonl", tmp_path / "r.settings.json"
    collect_records(router, data, out, limit=1, console=quiet())
    old = json.loads(settings.read_text())
    old["pair"], old["judge"] = old.pop("model"), old.pop("grader").replace("grading:", "judges:")
    settings.write_text(json.dumps(old))
    assert collect_records(router, data, out, console=quiet()).recorded == 1


def test_limit_and_columns(router: Router, tmp_path: Path) -> None:
    data, out = write_data(tmp_path, 4), tmp_path / "r.jsonl"
    data.write_text(data.read_text().replace('"prompt"', '"question"'))
    columns = {"prompt": ["question"]}
    assert collect_records(router, data, out, columns=columns, limit=2, console=quiet()).recorded == 2
    more = collect_records(router, data, out, columns=columns, limit=3, console=quiet())
    assert (more.recorded, more.skipped) == (1, 2)


def test_only_the_chosen_rows_are_answered_and_an_interrupted_choice_is_continued(
    router: Router, tmp_path: Path
) -> None:
    data, out, seen = write_data(tmp_path, 9), tmp_path / "r.jsonl", list[str]()
    ids = [example.id for example in choose_examples(router, Source(str(data)), out, 3)]
    assert len(set(ids)) == 3

    def grader(text: str, example: Any) -> bool:
        seen.append(example.id)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return exact(text, example)

    with pytest.raises(KeyboardInterrupt):
        collect_records(router, data, out, choose=3, grader=grader, console=quiet())
    assert len(list(read_records(out))) == 1
    settings = tmp_path / "r.settings.json"
    settings.write_text(
        settings.read_text().replace(json.dumps(f"{__name__}:{grader.__qualname__}"), json.dumps(EXACT))
    )
    again = collect_records(router, data, out, choose=3, console=quiet())
    assert (again.recorded, again.skipped, again.failed) == (2, 1, 0)
    assert {record.id for record in read_records(out)} == set(ids)
    more = collect_records(router, data, out, choose=3, console=quiet())  # finished: three others
    assert (more.recorded, more.skipped) == (3, 0)
    assert len({record.id for record in read_records(out)}) == 6
    for count, note in ((3, "only 3 usable rows have no record yet"), (0, "no row is left to choose")):
        console = quiet()
        assert collect_records(router, data, out, choose=8, console=console).recorded == count
        said = console.file.getvalue()  # type: ignore[attr-defined]
        assert note in said
        assert "0/0" not in said
    with pytest.raises(SettingsError, match="choose"):
        collect_records(router, data, out, choose=0, console=quiet())


def test_chosen_rows_are_listed_without_loading_a_model(tmp_path: Path) -> None:
    data = write_data(tmp_path, 9)
    arguments = ["collect", str(data), "--out", "r.jsonl", "--choose", "4", "--list-chosen", "chosen.jsonl"]
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text("utf-8").splitlines()]
    assert len({row["id"] for row in rows}) == 4
    assert all(row["place"].startswith(str(data)) and row["prompt"] and row["image"] and row["topic"] for row in rows)
    assert not (tmp_path / "r.jsonl").exists()
    assert (tmp_path / "chosen.jsonl").stat().st_mode & 0o077 == 0
    code, output = cli("collect", data, "--out", tmp_path / "r.jsonl", "--list-chosen", tmp_path / "c.jsonl")
    assert code != 0
    assert "only with --choose" in output
    code, output = cli(*arguments[:-1], tmp_path / "chosen.csv")
    assert code != 0
    assert "must end in .jsonl" in output
    code, output = cli(*arguments, "--answers", tmp_path / "a.jsonl")
    assert code != 0
    assert "--answers has no effect" in output
    done = command(*arguments[:5], "20", *arguments[6:], cwd=tmp_path)
    assert "wrote chosen.jsonl: 9 rows" in done.stdout
    assert "only 9 usable rows have no record yet" in done.stderr


def test_the_estimate_for_a_width_says_on_which_records(tmp_path: Path) -> None:
    data = write_data(tmp_path, 1)
    out = tmp_path / "r.jsonl"
    _, records = draw_records(60)
    write_records(out, records)
    arguments = ["collect", data, "--out", out, "--choose", "1", "--list-chosen", tmp_path / "chosen.jsonl"]
    areas = {}
    for options, tested in (([], "texts that training has not seen"), (["--together", "record"], "new records whose")):
        code, output = cli(*arguments, "--width", "1", *options)
        assert code == 0, output
        found = re.search(
            rf"over random (\S+) .* with 60 records, on {tested}.*: a width of 1 points needs about \d+", output
        )
        assert found is not None, output
        areas[tested] = found[1]
        assert "--choose)" not in output
    assert len(set(areas.values())) == 2
    (tmp_path / "r.chosen.json").write_text(json.dumps([records[3].id, "another"]))
    code, output = cli(*arguments, "--width", "1e-9")
    assert code == 0
    assert "note: no estimate for --width: a width of 1e-09 is less than a hundredth" in output
    code, output = cli(*arguments, "--width", "1")
    assert "note: some of these records were chosen (--choose)" in output
    code, output = cli(*arguments, "--together", "record")
    assert code != 0
    assert "only with --width" in output


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_labeled_list_of_chosen_rows_gives_the_records_of_the_source(
    router: Router, tmp_path: Path, kind: str
) -> None:
    """The list is in another folder, and the source has other column names, no ids, and no answers."""
    own, lists = tmp_path / "own", tmp_path / "lists"
    own.mkdir()
    lists.mkdir()
    rows = [json.loads(line) for line in write_data(own, 6).read_text().splitlines()]
    gold = {row["image"]: row["answer"] for row in rows}
    asked = [
        {"question": row["prompt"], "picture": row["image"], "gold": None, "topic": row["topic"], "image": 7}
        for row in rows
    ]
    if kind == "jsonl":
        (own / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    elif kind == "csv":
        with (own / "q.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [*asked[0]])
            writer.writeheader()
            writer.writerows(asked)
    else:
        pictures = [{**row, "picture": {"bytes": (own / row["picture"]).read_bytes(), "path": None}} for row in asked]
        parquet.write_table(pyarrow.Table.from_pylist(pictures), own / "q.parquet")
    source, columns = f"{own}/q.{kind}", {"prompt": ["question"], "images": ["picture"], "answer": ["gold"]}
    mapped = ["--map", "prompt=question,images=picture,answer=gold", "--out", str(tmp_path / "r.jsonl")]
    chosen = lists / "chosen.jsonl"
    code, output = cli("collect", source, *mapped, "--choose", "3", "--list-chosen", chosen)
    assert code == 0, output
    listed = [json.loads(line) for line in chosen.read_text("utf-8").splitlines()]
    images = {row["id"]: row["picture"] for row in listed}
    assert len(images) == 3
    if kind != "parquet":
        assert all(image.startswith("../own/") for image in images.values())
    answers = {(own / name).read_bytes(): answer for name, answer in gold.items()}
    for row in listed:
        data = b64decode(row["picture"][37:]) if kind == "parquet" else (lists / row["picture"]).read_bytes()
        row["gold"] = answers[data]
    chosen.write_text("".join(json.dumps(row) + "\n" for row in listed))
    collect_records(router, chosen, tmp_path / "r.jsonl", columns=columns, console=quiet())
    records = {record.id: record for record in read_records(tmp_path / "r.jsonl")}
    assert {*records} == {*images}
    assert sum(float(record.instruct.correct) for record in records.values()) >= 2  # easy tasks: the picture was seen
    assert {record.topic for record in records.values()} <= {"ocr", "count", "math"}
    others = choose_examples(router, Source(source), tmp_path / "r.jsonl", 6, columns)
    assert len(others) == 3  # the records have the ids of the source


def test_rows_without_any_picture_cause_a_warning(router: Router, tmp_path: Path) -> None:
    data, console = write_data(tmp_path, 2), quiet()
    collect_records(router, data, tmp_path / "a.jsonl", console=console)
    assert "no row has a picture" not in console.file.getvalue()  # type: ignore[attr-defined]
    data.write_text(data.read_text().replace('"image"', '"img"'))
    collect_records(router, data, tmp_path / "b.jsonl", console=console)
    assert "no row has a picture or video" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_width_is_checked_before_questions_are_answered(tmp_path: Path) -> None:
    data = write_data(tmp_path, 2)
    for width in ("-3", "0", "nan", "inf"):
        code, output = cli("collect", data, "--out", tmp_path / "r.jsonl", "--width", width)
        assert code != 0
        assert "must be a positive number" in output
        assert not (tmp_path / "r.jsonl").exists()


def test_too_few_records_for_a_width_are_a_note(tmp_path: Path) -> None:
    done = command("collect", str(write_data(tmp_path, 2)), "--out", str(tmp_path / "r.jsonl"), "--width", "3")
    assert done.returncode == 0, done.stderr
    assert "2 new records" in done.stdout
    assert "note: no estimate for --width: 2 records are too few" in done.stderr


def test_an_interrupt_keeps_finished_rows(router: Router, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, done = write_data(tmp_path, 3), tmp_path / "r.jsonl", []

    def grader(text: str, example: Any) -> bool:
        done.append(example.id)
        if len(done) == 4:
            raise KeyboardInterrupt
        return exact(text, example)

    with pytest.raises(KeyboardInterrupt):
        collect_records(router, data, out, grader=grader, console=quiet())
    assert [record.id for record in read_records(out)] == ["row-0"]
    assert (tmp_path / "r.settings.json").is_file()


def test_each_row_is_written_before_the_next_one_is_asked(router: Router, tmp_path: Path) -> None:
    data, out, seen = write_data(tmp_path, 4), tmp_path / "r.jsonl", list[tuple[str, int]]()

    def grader(text: str, example: Any) -> bool:
        seen.append((example.id, sum(1 for _ in read_records(out)) if out.exists() else 0))
        return exact(text, example)

    collect_records(router, data, out, grader=grader, console=quiet())
    assert sorted(set(seen)) == [(f"row-{number}", number) for number in range(4)]


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    """After kill -9, the next run repeats no record and removes the incomplete line."""
    data, out = write_data(tmp_path, 30), tmp_path / "r.jsonl"
    arguments = [str(data), "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}  # the pocket pair is too small for threads
    run = subprocess.Popen(
        [sys.executable, "-m", "vlroute", "collect", *arguments],
        cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (out.exists() and out.read_bytes().count(b"\n") >= 4):
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    before = out.read_bytes()
    kept = before.count(b"\n")
    assert 4 <= kept < 30
    out.write_bytes(before + b'{"id": "row-29", "pro')
    done = command("collect", *arguments)
    assert done.returncode == 0, done.stderr
    assert f"{30 - kept} new records" in done.stdout
    assert out.read_bytes().startswith(before)
    records = list(read_records(out))
    assert [record.id for record in records] == [f"row-{number}" for number in range(30)]


def test_the_command_with_an_own_grader(tmp_path: Path) -> None:
    data = write_data(tmp_path, 1)
    grader = tmp_path / "mine.py"
    grader.write_text("def always(text, example):\n    return 0.25\n")
    arguments = [str(data), "--out", "r.jsonl", "--grader", "mine:always", "--set", "thinking.max_new_tokens=64"]
    done = command("collect", *arguments, cwd=tmp_path)
    assert "1 new records" in done.stdout
    (record,) = read_records(tmp_path / "r.jsonl")
    assert record.thinking.correct == 0.25


def test_the_command_line_refuses_wrong_values(tmp_path: Path) -> None:
    first = ["collect", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "r.jsonl")]
    for arguments, why in (
        ([], "none.jsonl"),
        (["--grader", "nosuch"], "nosuch"),
        (["--map", "x"], "map"),
        (["--set", "x"], "setting"),
        (["--grader", "regex", "--agreement"], "regex"),
        (["--agreement", "--agreement-shares", "0.9"], "0.9"),
    ):
        code, output = cli(*first, *arguments)
        assert code != 0
        assert why in output
        assert not (tmp_path / "r.jsonl").exists()


def test_generation_settings_on_the_command_line() -> None:
    found = parse_settings(["do_sample=false", "thinking.max_new_tokens=4096", "instruct.temperature=0.5"])
    assert found == {"do_sample": False, "thinking": {"max_new_tokens": 4096}, "instruct": {"temperature": 0.5}}
    with pytest.raises(InputError, match="name=value"):
        parse_settings(["thought.max_new_tokens=1"])


def test_the_source_with_a_split_is_kept_in_the_settings(router: Router, tmp_path: Path) -> None:
    source = Source("some/set", "test", "config")
    settings = run_settings(router, source, exact, None, None, {"do_sample": False})
    assert settings["source"] == {"name": "some/set", "split": "test", "config": "config"}
    assert settings["grader"] == "vlroute.learning.grading:exact"
    assert os.fspath(router.instruct) == settings["model"][0]
