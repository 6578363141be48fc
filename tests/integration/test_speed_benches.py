"""Benchmarks of decisions and retraining, with few requests and records."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path

from training.bench.decision import (
    DecisionTime,
    FirstDecision,
    deciding,
    draw_requests,
    embedding_first,
    first_decision,
    page_data,
    time_decisions,
)
from training.bench.retraining import Trained, draw_records, train_once
from training.page import POCKET, in_own_process, render

from vlroute import ComplexityClassifier
from vlroute.records import outcomes, read_records, write_records
from vlroute.types import MODES

MiB = 2**20
SHIPPED = POCKET / "router"
HELD = Trained(records=10_000, seconds=100.0, peak=1000 * MiB, artifact=2_000_000, area=3.0)


def decision_page(times: list[DecisionTime], firsts: list[FirstDecision], where: str) -> str:
    return render("decision_speed.md", **page_data(times, firsts, where))


def test_decisions_are_timed_with_and_without_another_encoder_on_the_same_requests() -> None:
    embedded = []
    plain = deciding(ComplexityClassifier.load(SHIPPED))
    ways = {("pocket", False): plain, ("pocket", True): embedding_first(plain, embedded.append)}
    alone, both = time_decisions(ways, 150, 10)
    assert (alone.minilm, both.minilm) == (False, True)
    assert alone.requests == both.requests == 150
    assert 0 < alone.median <= alone.p99 < 1000
    assert embedded == draw_requests(160)
    assert len(set(embedded)) == 160


def test_the_first_decision_of_a_process() -> None:
    found = first_decision(SHIPPED, "pocket", starts=2)
    assert 0.02 < found.median <= found.most < 60


def test_the_page_of_decisions_says_what_falls_short() -> None:
    times = [DecisionTime("a", False, 2000, 0.5, 1.0), DecisionTime("b", False, 2000, 1.0, 2.0),
             DecisionTime("a", True, 2000, 10.5, 20.0), DecisionTime("b", True, 2000, 11.0, 21.0)]  # fmt: skip
    page = decision_page(times, [FirstDecision("a", 5, 0.3, 0.4), FirstDecision("b", 5, 1.2, 1.3)], "here")
    assert "| `a` | 2000 | 0.50 | 1.00 | 10.50 | 20.00 | 21.0× |" in page
    assert "| `b` | 2000 | 1.00 | 2.00 | 11.00 | 21.00 | **11.0×** |" in page
    assert "| `a` | 5 | 0.30 | 0.40 |" in page
    assert "| `b` | 5 | **1.20** | 1.30 |" in page
    assert "| `a` | 2000 | 0.50 | 1.00 | – | – | – |" in decision_page(times[:1], [], "here")


def test_drawn_records_are_the_same_again_and_of_all_kinds(tmp_path: Path) -> None:
    records = list(draw_records(600))
    assert list(draw_records(50)) == records[:50]
    assert list(draw_records(50, seed=1)) != records[:50]
    assert len({(one.prompt, one.caption) for one in records}) > 590
    assert {one.language for one in records} == {"en", "zh"}
    assert 350 < sum(one.caption is not None for one in records) < 450
    assert all(0 < sum(one.correct for one in outcomes(records, mode)) < 600 for mode in MODES)
    write_records(tmp_path / "r.jsonl", records)
    assert list(read_records(tmp_path / "r.jsonl")) == records


def test_one_training_is_measured_in_its_own_process(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", draw_records(60))
    found = in_own_process(train_once, tmp_path / "r.jsonl")
    assert found.records == 60
    assert found.seconds > 0.1
    assert 50 * MiB < found.peak < 4096 * MiB
    assert found.artifact > 1000


def test_the_page_on_retraining_says_what_falls_short() -> None:
    small = dataclasses.replace(HELD, seconds=20.0)
    large = dataclasses.replace(HELD, records=100_000, seconds=300.0, peak=4000 * MiB, area=None)
    found = {str(one.records): {"where": "here", "trained": asdict(one)} for one in (large, small)}
    page = render("retraining.md", data=found)
    assert "| 10,000 | 20.0 | 1,000 | 2.00 | 1.00 | 2.0 | 3.00 |" in page
    assert "| 100,000 | 300.0 | 4,000 | 3.00 | 1.50 | 2.0 | – |" in page
    assert page.count("Measured on: here") == 1
    slow = {"10000": {"where": "here", "trained": asdict(dataclasses.replace(HELD, seconds=26, peak=1025 * MiB))}}
    assert "| 10,000 | **26.0** | **1,025** |" in render("retraining.md", data=slow)
    heavy = {"100000": {"where": "here", "trained": asdict(dataclasses.replace(large, peak=4097 * MiB))}}
    assert "| 100,000 | 300.0 | **4,097** |" in render("retraining.md", data=heavy)
