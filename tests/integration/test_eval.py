"""`vlroute eval` as a user types it, on drawn records."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands import command
from tests.synthetic_records import draw_records
from vlroute import ComplexityClassifier, Policy
from vlroute.learning.assumptions import measure_latency
from vlroute.learning.evidence import evidence_file, read_evidence, write_evidence
from vlroute.learning.train import train_router
from vlroute.records import Outcome, Record, read_records, write_records

KINDS = {"numbers": "add or guess", "boxes": "hops"}


def with_topics(records: list[Record]) -> list[Record]:
    topics = [KINDS["boxes" if record.caption == "six boxes" else "numbers"] for record in records]
    return [dataclasses.replace(one, topic=topic) for one, topic in zip(records, topics, strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router trained on old.jsonl, and new.jsonl with records that it has not seen."""
    where = tmp_path_factory.mktemp("eval")
    write_records(where / "old.jsonl", draw_records(200, seed=1)[1])
    write_records(where / "new.jsonl", with_topics(draw_records(150, seed=2)[1]))
    train_router([where / "old.jsonl"], where / "router", folds=2, seeds=1, together="record")
    return where


def evaluated(folder: Path, *arguments: str) -> tuple[str, str, dict[str, Any]]:
    """What went to the terminal, the report, and its figures."""
    done = command("eval", *arguments, "--out", "reports/r.md", "--json", "reports/r.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    page = (folder / "reports" / "r.md").read_text("utf-8")
    return done.stdout + done.stderr, page, json.loads((folder / "reports" / "r.json").read_text("utf-8"))


def test_new_records_are_decided_as_the_router_decides_them_and_topics_add_up(folder: Path) -> None:
    shown, page, found = evaluated(folder, "new.jsonl", "--router", "router", "--price", "0.2")
    records = with_topics(draw_records(150, seed=2)[1])
    classifier, latency = ComplexityClassifier.load(folder / "router"), measure_latency(records)
    modes = [Policy(price=0.2).decide(classifier.predict(r.prompt, r.caption), latency).mode for r in records]
    accuracy = np.mean([float(getattr(r, mode).correct) for r, mode in zip(records, modes, strict=True)])
    seconds = np.mean([getattr(r, mode).seconds for r, mode in zip(records, modes, strict=True)])
    rows = {row["name"]: row for row in found["rows"]}
    assert 0 < modes.count("thinking") < len(modes)
    assert rows["routed"]["share"] == pytest.approx(modes.count("thinking") / 150)
    assert rows["routed"]["accuracy"] == pytest.approx(accuracy)
    assert rows["routed"]["seconds"] == pytest.approx(seconds)
    assert rows["always thinking"]["accuracy"] == pytest.approx(np.mean([r.thinking.correct for r in records]))
    bare = [Policy(price=0.2).decide(classifier.predict(r.prompt), latency).mode for r in records]
    assert rows["routed, captions withheld"]["share"] == pytest.approx(bare.count("thinking") / 150)
    assert f"| routed | {rows['routed']['share']:.1%} | {accuracy:.1%} |" in page
    assert page.startswith("# Router report: new records\n")
    assert "Seconds are measured" in page
    assert "150 records, new records" in shown
    assert "out of fold" not in shown + page
    assert found["warnings"] == []
    few = "Only 150 records: the figures are uncertain; a thousand records are better"
    assert found["advice"] == [few]
    assert f"> {few}.\n" in page
    assert shown.count("warning") == 1

    topics = found["topics"]
    assert list(topics) == ["add or guess", "hops"]  # the largest first
    assert sum(one["records"] for one in topics.values()) == 150
    routed = {name: next(row for row in one["rows"] if row["name"] == "routed") for name, one in topics.items()}
    whole = next(row for row in found["rows"] if row["name"] == "routed")
    counted = sum(routed[name]["accuracy"] * topics[name]["records"] for name in topics)
    assert counted == pytest.approx(whole["accuracy"] * 150)
    assert f"| hops | {topics['hops']['records']} |" in page
    assert "by topic" in shown


def test_a_file_that_the_router_was_trained_on_is_not_new(folder: Path) -> None:
    (folder / "copy.jsonl").write_bytes((folder / "old.jsonl").read_bytes())
    shown, page, found = evaluated(folder, "copy.jsonl", "--router", "router")
    assert "warning: copy.jsonl: not new" in shown
    assert "# Router report: not all new" in page
    assert "**copy.jsonl: not new." in page
    assert len(found["warnings"]) == 1


def test_a_router_that_hides_its_training_records_is_warned_of(folder: Path) -> None:
    classifier = ComplexityClassifier.load(folder / "router")
    classifier.card, classifier.record_hashes = {}, None
    classifier.save(folder / "silent")
    shown, page, _ = evaluated(folder, "new.jsonl", "--router", "silent")
    assert "unknown whether" in shown
    assert "# Router report: perhaps new" in page


def test_a_policy_becomes_a_price(folder: Path) -> None:
    shares = {}
    for preset in ("fast", "accurate"):
        _, page, found = evaluated(folder, "new.jsonl", "--router", "router", "--policy", preset)
        shares[preset] = next(row["share"] for row in found["rows"] if row["name"] == "routed")
        assert f"policy {preset}, price {found['policy']['price']:.4g}" in page
        assert (found["policy"]["price"] == 0) == (preset == "accurate")
    assert shares["fast"] < shares["accurate"]


def test_records_without_seconds_or_captions(folder: Path) -> None:
    rng = random.Random(0)
    bare = [
        Record(f"b{i}", "What is the total?", None, Outcome(rng.random() < 0.4, 5), Outcome(True)) for i in range(30)
    ]
    write_records(folder / "bare.jsonl.gz", bare)
    _, page, found = evaluated(folder, "bare.jsonl.gz", "--router", "router")
    assert "the records are not timed" in page
    assert found["seconds_measured"] is False
    assert "captions withheld" not in page
    assert found["topics"] == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["new.jsonl", "--router", "nowhere"], "nowhere"),
        (["missing.jsonl", "--router", "router"], "missing.jsonl"),
        (["empty.jsonl", "--router", "router"], "no usable records"),
        (["new.jsonl", "--router", "router", "--price", "0.1", "--policy", "fast"], "leave one out"),
        (["new.jsonl", "--router", "router", "--price", "-1"], "price must be"),
        (["new.jsonl", "--router", "uncalibrated", "--policy", "fast"], "calibration"),
    ],
)
def test_what_cannot_be_evaluated_ends_in_one_line(folder: Path, arguments: list[str], says: str) -> None:
    (folder / "empty.jsonl").write_text("\n", "utf-8")
    classifier = ComplexityClassifier.load(folder / "router")
    classifier.calibration = None
    classifier.save(folder / "uncalibrated")
    done = command("eval", *arguments, "--out", "never.md", cwd=folder)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "never.md").exists()


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """some.jsonl with records of the pocket pair, and their evidence."""
    where = tmp_path_factory.mktemp("stages")
    records = [*read_records("training/pocket/records.jsonl.gz")][:400]
    evidence = read_evidence(["training/pocket/records.jsonl.gz"])
    write_records(where / "some.jsonl", records)
    write_evidence(evidence_file(where / "some.jsonl"), [evidence[one.id] for one in records])
    return where


POCKET = str(Path("models/pocket/router").resolve())


def test_stages_are_compared_where_records_have_evidence(collected: Path) -> None:
    shown, page, found = evaluated(collected, "some.jsonl", "--router", POCKET, "--policy", "balanced")
    stages = [tuple(one["stages"]) for one in found["stages"]]
    assert stages == [("prompt",), ("prompt", "prefill"), ("prompt", "answer"), ("prompt", "prefill", "answer")]
    routed = next(row for row in found["rows"] if row["name"] == "routed")
    prompt, *later = found["stages"]
    assert prompt["accuracy"] == pytest.approx(routed["accuracy"])
    assert prompt["thinking_share"] == pytest.approx(routed["share"])
    assert all(one["interval"][0] < one["above"] < one["interval"][1] for one in later)
    assert all(sum(one["shares"]) == pytest.approx(1) for one in found["stages"])
    assert "stages, balanced, perhaps new" in shown  # an artifact of an earlier version has no hashes of its records
    assert "## Stages" in page
    assert "prompt, prefill, answer" in page


def test_what_is_missing_for_the_stages_is_said(collected: Path, tmp_path: Path) -> None:
    records = [*read_records(collected / "some.jsonl")]
    write_records(tmp_path / "bare.jsonl", records[:100])
    _, page, found = evaluated(tmp_path, "bare.jsonl", "--router", POCKET)
    assert (found["stages"], found["notes"]) == ([], [])  # this router recommends the stage prompt alone
    assert "## Stages" not in page
    of_others = [dataclasses.replace(one, fingerprint="0" * 64) for one in records]
    write_records(tmp_path / "other.jsonl", of_others)
    shutil.copy(evidence_file(collected / "some.jsonl"), evidence_file(tmp_path / "other.jsonl"))
    shown, page, found = evaluated(tmp_path, "other.jsonl", "--router", POCKET)
    assert not found["stages"]
    assert "come from other checkpoints" in " ".join(shown.split())
    assert "come from other checkpoints" in page
    write_records(tmp_path / "mixed.jsonl", [*records[:200], *of_others[200:]])
    shutil.copy(evidence_file(collected / "some.jsonl"), evidence_file(tmp_path / "mixed.jsonl"))
    _, _, found = evaluated(tmp_path, "mixed.jsonl", "--router", POCKET)
    assert found["notes"] == ["stages are compared on the 200 records with evidence of the router's model"]
    assert len(found["stages"]) == 4


def test_curves_draw_the_stages_of_a_router(collected: Path) -> None:
    command("train", "some.jsonl", "--out", "router", "--oof", "oof.jsonl", "--learner", "words", "--encoder", "none",
            "--seeds", "1", cwd=collected)  # fmt: skip
    done = command("curves", "some.jsonl", "--oof", "oof.jsonl", "--router", "router", "--out", "drawn", cwd=collected)
    assert done.returncode == 0, done.stderr
    assert (collected / "drawn" / "stages.png").stat().st_size > 10_000
    assert "prompt, prefill, answer" in (collected / "drawn" / "curves.html").read_text("utf-8")
    (collected / "some.evidence.jsonl").rename(collected / "gone")
    command("train", "some.jsonl", "--out", "plain", "--learner", "words", "--encoder", "none", "--seeds", "1",
            cwd=collected)  # fmt: skip
    done = command("curves", "some.jsonl", "--oof", "oof.jsonl", "--router", "plain", "--out", "other", cwd=collected)
    assert done.returncode == 2
    assert "no later stages" in done.stderr
