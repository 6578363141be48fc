"""`vlroute probe`: a probe from a collected data set, in a user's hands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import media
from vlroute import Router
from vlroute.cli.app import app
from vlroute.decision.captions import PROBE_FOLDER, probe_of
from vlroute.errors import InputError
from vlroute.files import shipped
from vlroute.learning.trial import draw_evenly
from vlroute.records import Outcome, Record, write_records

COUNT = 120


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.jsonl`, its pictures, `records.jsonl` as collecting gives them, and a router without probe.

    One row has two pictures, one a record without a caption, one no record.
    """
    folder = tmp_path_factory.mktemp("collected")
    rows, records = [], []
    for number, task in enumerate(draw_evenly(COUNT, "probe command")):
        names = [f"{number}-{index}.png" for index in range(len(task.frames))]
        for name, frame in zip(names, task.frames, strict=True):
            frame.save(folder / name)
        pictured = {"video": names} if task.is_video else {"images": names * (2 if number == 0 else 1)}
        rows.append({"id": f"row-{number}", "prompt": task.prompt, **pictured})
        caption = None if number == 1 else task.caption
        records.append(Record(f"row-{number}", task.prompt, caption, Outcome(True), Outcome(True)))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_records(folder / "records.jsonl", records[:-1])
    shutil.copytree(shipped("pocket/router"), folder / "router", ignore=shutil.ignore_patterns(PROBE_FOLDER))
    return folder


def command(collected: Path, *more: str) -> list[str]:
    records, router = str(collected / "records.jsonl"), str(collected / "router")
    return ["probe", str(collected / "data.jsonl"), "--records", records, "--router", router, *more]


def test_a_router_gets_a_probe_of_its_own_pictures(collected: Path) -> None:
    done = CliRunner().invoke(app, command(collected), catch_exceptions=False)
    assert done.exit_code == 0
    assert "3 rows skipped" in done.output
    assert "2 pictures and videos" in done.output
    probe = probe_of(collected / "router")
    assert probe is not None
    assert probe.card["data"]["file"] == "records.jsonl"
    router = Router.from_pretrained(router=collected / "router", captioner="probe").load()
    fresh = list(draw_evenly(24, "fresh pictures"))
    said = [set((router.decide(task.prompt, **media(task)).caption or "").split(", ")) for task in fresh]
    meant = [set(task.caption.split()) for task in fresh]  # from so few pictures it learns words, not whole captions
    assert sum(bool(words & other) for words, other in zip(said, meant, strict=True)) >= 16


def test_without_records_of_the_rows_it_says_so(collected: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records.jsonl", [Record("other", "What?", "a cat", Outcome(True), Outcome(True))])
    with pytest.raises(InputError, match=r"no row of .*data.jsonl can be used; .*:1: there is no record"):
        CliRunner().invoke(
            app, command(collected, "--records", str(tmp_path / "records.jsonl")), catch_exceptions=False
        )
