"""The benchmark on a GPU, with a tiny shape on a CPU."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from training.bench import gpu
from training.bench.figure import Figure, Report
from training.page import render

from vlroute.errors import SettingsError

SETUP = gpu.Setup(Path("nowhere"), "cpu", small=True)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of the small form."""
    out = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["gpu", "--small", "--out", str(out)])
        patch.setattr(gpu, "default_device", lambda: "cpu")
        gpu.main()
    assert (out / "gpu.md").read_text(encoding="utf-8").count("\n## ") == 7
    return json.loads((out / "gpu.json").read_text(encoding="utf-8"))


def rows(measured: dict[str, Any], part: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in measured["parts"][part]["rows"]}


def test_every_part_of_the_small_form_ends(measured: dict[str, Any]) -> None:
    names = ("speed", "parity", "faults", "memory", "two_towers", "int8")
    assert {name: part["state"] for name, part in measured["parts"].items()} == dict.fromkeys(names, "done")
    assert not [row for part in measured["parts"].values() for row in part["rows"] if "failed" in row["note"]]


def test_speed_has_all_figures(measured: dict[str, Any]) -> None:
    found = rows(measured, "speed")
    assert all(row["value"] is None or row["value"] > 0 for row in found.values())
    assert found["one token, batch 1, second pass, median"]["target"] == gpu.TOKEN_MS
    turn = found["first token of turns 2 to 4, at most 600 new tokens, 99th percentile"]
    assert turn["target"] == gpu.LATER_TURN_MS
    assert {"tower, 8 pictures of 256² in one call", "generate of transformers, batch 4"} <= found.keys()
    assert found["4 clients, greedy"]["target"] == gpu.ANSWERS_PER_SECOND


def test_memory_stays_within_the_setting(measured: dict[str, Any]) -> None:
    (held,) = (row for row in rows(measured, "memory").values() if row["target"])
    assert 0 < held["value"] <= held["target"]
    assert rows(measured, "two_towers")["load, two towers"]["note"] == "one tower kept: False"
    assert rows(measured, "two_towers")["weights"]["value"] > rows(measured, "memory")["weights"]["value"]


def test_answers_are_those_of_plain_transformers(measured: dict[str, Any]) -> None:
    found = {name: row for name, row in rows(measured, "parity").items() if "chunked" not in name}
    assert len(found) == 9
    assert all(row["met"] for row in found.values())


def test_chunked_prefill_is_that_of_plain_transformers(measured: dict[str, Any]) -> None:
    assert all(row["met"] for row in rows(measured, "parity").values())


def test_out_of_memory_concerns_one_request(measured: dict[str, Any]) -> None:
    found = rows(measured, "faults")
    assert all(found[name]["met"] for name in ("tower, raised", "prefill, raised", "decode, raised once"))


def test_out_of_memory_in_caches_concerns_one_request(measured: dict[str, Any]) -> None:
    assert all(row["met"] for row in rows(measured, "faults").values())


def test_small_figures_do_not_replace_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", "--small"])
    with pytest.raises(SystemExit, match="--out"):
        gpu.main()


def dies(setup: gpu.Setup, report: Report) -> None:
    """A part whose process ends in the middle."""
    report(Figure("first", 1.0))
    time.sleep(0.2)
    os._exit(3)


def test_a_process_that_ends_keeps_its_figures() -> None:
    found: list[Figure] = []
    assert gpu.run_in_process(dies, SETUP, 120, found.append) == "the process ended with exit code 3"
    assert found == [Figure("first", 1.0)]


def test_a_part_is_stopped_and_the_next_ones_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.run_in_process(dies, SETUP, 0.1, print) == "stopped after 0 s"
    part = gpu.Part("int8", "int8", dies, 1000, optional=True)
    data: dict[str, Any] = {
        "where": "here",
        "device": "a GPU",
        "cuda": "13",
        "small": False,
        "budget": 9.0,
        "parts": {},
    }
    page = gpu.measure(SETUP, [part], 9.0, tmp_path, data)
    assert "**skipped: the time budget is used up**" in page.read_text(encoding="utf-8")


def test_what_is_not_installed_and_what_is_missed() -> None:
    found: list[Figure] = []
    gpu.quantized(SETUP, found.append, "int9", "no_such_library", lambda: "int9")
    found += [
        Figure("rate", 3400.0, "tokens/s", 3500.0, at_least=True), Figure("token", 5.5, "ms", 6.0),
        Figure.of_error("broken", ValueError("a | b")), Figure.of_error("refused", SettingsError("no")),
    ]  # fmt: skip
    assert [one.met for one in found] == [None, False, True, False, None]
    part = {"title": "Part", "state": "done", "seconds": 1.0, "rows": [one.row() for one in found]}
    page = render("gpu.md", where="here", device="a GPU", cuda="13", small=False, budget=9.0, parts={"part": part})
    assert "| int9 | – |  |  | not installed: no_such_library |" in page
    assert "| rate | **3,400** | tokens/s | ≥ 3500 |  |" in page
    assert "| token | 5.5 | ms | ≤ 6 |  |" in page
    assert "| broken | **–** |  |  | failed: ValueError: a / b |" in page
    assert "| refused | – |  |  | cannot be used here: no |" in page
