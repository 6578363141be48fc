"""The comparison of routers: jobs without test labels, scripts that continue, differences that are paired."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from training.bench.routers import OURS, PublicSet, figures_of, pooled, run_script, set_files
from training.page import render

from vlroute.records import Outcome, Record

COUNT = 60


@pytest.fixture
def drawn(tmp_path: Path) -> PublicSet:
    """The strong answer is better for long prompts; every text occurs twice."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(COUNT):
        long = number // 2 % 2 == 1
        prompt = f"add {number // 2} {'and then explain every step ' * long}"
        right = [bool(rng.random() < share) for share in ((0.2, 0.9) if long else (0.9, 0.5))]
        records.append(Record(str(number), prompt, None, Outcome(right[0]), Outcome(right[1]), topic=str(long)))
    files = {}
    for name in ("static", "MiniLM"):
        files[name] = tmp_path / f"{name}.npy"
        np.save(files[name], rng.normal(size=(COUNT, 4)).astype(np.float32))
    return PublicSet("drawn", records, files)


def test_a_job_has_no_test_labels_and_keeps_equal_texts_together(drawn: PublicSet) -> None:
    job = drawn.job(0)
    assert sorted(at for split in job["splits"] for at in split["test"]) == list(range(COUNT))
    for split in job["splits"]:
        assert len(split["right"]) == len(split["train"]) == COUNT - len(split["test"])
        prompts = job["requests"]["prompts"]
        assert not {prompts[at] for at in split["train"]} & {prompts[at] for at in split["test"]}
    assert job["splits"] != drawn.job(1)["splits"]


def test_a_script_continues_after_its_last_complete_line(drawn: PublicSet, tmp_path: Path) -> None:
    job = drawn.job(0)
    found, version = run_script("references", job, tmp_path)
    assert version
    assert len(found["longest prompt"]) == len(job["splits"])
    for split, part in zip(job["splits"], found["longest prompt"], strict=True):
        assert part["scores"] == [len(drawn.records[at].prompt) for at in split["test"]]
    (results,) = (tmp_path / "results").glob("*.jsonl")
    whole = results.read_text("utf-8")
    lines = whole.splitlines(keepends=True)
    marked = json.loads(lines[0]) | {"decision_ms": -1.0}
    results.write_text("".join([json.dumps(marked) + "\n", *lines[1:-4], lines[-4][:20]]), "utf-8")
    again, _ = run_script("references", job, tmp_path)
    assert again[marked["learner"]][0]["decision_ms"] == -1.0  # read, not measured again
    for name, parts in again.items():
        if name != "random":
            assert [part["scores"] for part in parts] == [part["scores"] for part in found[name]]


def test_differences_are_paired_with_our_router(drawn: PublicSet) -> None:
    length = np.asarray([float(len(record.prompt)) for record in drawn.records])
    scores = {
        OURS: np.stack([length, length]),
        "same": np.stack([2 * length, 2 * length]),
        "none": np.zeros((2, COUNT)),
    }
    found = figures_of(drawn, scores)
    assert found["same"]["difference"] == [0, 0, 0]
    value, low, high = found["none"]["difference"]
    assert low < value < high < 0
    assert value == pytest.approx(-found[OURS]["area"][0])
    assert found["none"]["area"][0] == pytest.approx(0)


def test_sets_are_averaged_as_independent_ones() -> None:
    assert pooled([[1.0, 0.0, 2.0], [3.0, 2.0, 4.0]]) == pytest.approx([2, 2 - 2**0.5 / 2, 2 + 2**0.5 / 2])


def test_missing_sets_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"missing: .*gsm8k\.jsonl\.gz.*NAME\.jsonl\.gz"):
        set_files(tmp_path, ["gsm8k"])


def test_the_page_says_what_is_better_and_what_is_not() -> None:
    def router(difference: list[float], ms: float) -> dict[str, object]:
        figures = {"area": [3.0, 2.0, 4.0], "difference": difference}
        return {"decision_ms": ms, "training_ms": 2000.0, "mean": figures, "sets": {"gsm8k": figures}}

    routers = {
        "vlroute": router([0, 0, 0], 0.1),
        "worse": router([-1.0, -2.0, -0.5], 0.1),
        "better": router([1.0, 0.5, 2.0], 0.1),
        "same, MiniLM": router([0.1, -0.5, 0.7], 0.1),
    }
    data = {
        "where": "here", "folds": 5, "seeds": 3, "timed": "gsm8k", "embedding_ms": {"static": 0.1, "MiniLM": 9.9},
        "sets": {"gsm8k": {"records": 1319, "topics": 1}}, "versions": {"vlroute": "1"}, "routers": routers,
    }  # fmt: skip
    page = render("routers.md", data=data, **data)
    assert "* Worse than `vlroute`: worse.\n" in page
    assert "* No significant difference: same, MiniLM.\n" in page
    assert "* Better than `vlroute`: better.\n" in page
    assert "| worse | 3.00 (2.00 – 4.00) | **-1.00 (-2.00 – -0.50)** | 10 | 2.00 |" in page
    assert "| same, MiniLM | 3.00 (2.00 – 4.00) | +0.10 (-0.50 – +0.70) | 0.1 | 2.00 |" in page
    assert "gsm8k: 1,319 requests, 1 topic.\n" in page
