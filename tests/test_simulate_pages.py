"""What the simulator's pages are made of: layouts by arithmetic, calibration, and what was measured beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from training.simulate_check import write
from training.simulation import sizes
from training.simulation.calibrate import Answered, Crowd, Writing, crowd_of, machine_of, requests_from
from training.simulation.checked import Shown, compared, interval, render
from training.simulation.choosing import ByShare
from training.simulation.quiet import Others
from training.simulation.run import drawn, poisson, simulate
from training.simulation.work import Machine, Request, Work

from vlroute.decision.classifier import Prediction

ROOT = Path(__file__).parents[1]
REQUESTS = [Request(Work(0.004, 0.001 * n, n), Work(0.004, 0.006 * n, 6 * n), 0.002, 0.004) for n in (1, 2, 3)]


def test_the_arithmetic_of_layouts(tmp_path: Path) -> None:
    # one token of one row: 3.44 GB of weights and 1324 x 114688 bytes, at 936 GB/s
    assert sizes.tokens_a_second(sizes.SMALL, 1, 1324) == pytest.approx(936e9 / (3.44e9 + 1324 * 114688))
    free = sizes.free_for_keys(sizes.SMALL)
    assert free / 2**30 == pytest.approx(10.8 - 3.962 - 1.5, abs=0.01)
    assert sizes.rows_at_once(sizes.SMALL, "instruct") == int(free / (1324 * 114688)) == 37
    assert sizes.rows_at_once(sizes.SMALL, "thinking") == int(free / (2624 * 114688)) == 19
    # 2 x 1.72e9 x 1024 is 41 % of what a picture takes; then the question
    assert sizes.prompt_seconds(sizes.SMALL) == pytest.approx((3.52256e12 / 0.41 + 0.344e12) / 71e12)
    rows = {"instruct": 1, "thinking": 1}
    alone = sizes.prompt_seconds(sizes.SMALL) + 200 / sizes.tokens_a_second(sizes.SMALL, 1, 1324)
    assert sizes.answers_a_second(sizes.SMALL, rows, thinking=0) == pytest.approx(1 / alone)  # type: ignore[arg-type]
    equal, different = sizes.pair_in_one(sizes.LARGE, True), sizes.pair_in_one(sizes.LARGE, False)
    assert different[0] - equal[0] == pytest.approx(0.814e9)
    assert equal[2] > different[2] > 0


def test_the_page_holds_what_was_computed(tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{sizes.BEGIN}\nyesterday\n{sizes.END}\nafter\n")
    sizes.main(page)
    written = page.read_text("utf-8")
    assert "yesterday" not in written
    assert written.startswith("before\n")
    assert written.endswith(f"{sizes.END}\nafter\n")
    committed = (ROOT / "docs/scaling.md").read_text("utf-8")
    assert sizes.render() in committed  # nobody typed a figure
    assert render(json.loads((ROOT / "docs/scaling_check.json").read_text("utf-8"))) in committed


def test_a_machine_is_what_crowds_showed() -> None:
    crowds = {1: Crowd(10.0, 1.0, 2.0, 4.0, 1.0), 3: Crowd(20.0, 3.0, 4.0, 4.0, 5.0)}
    slower = machine_of(crowds, crowds[1]).slower
    assert slower is not None
    assert slower.front == (1.0, 2.0, 3.0)
    assert slower.seeing == (1.0, 1.5, 2.0)
    assert slower.reading == (1.0, 1.0, 1.0)
    assert slower.writing == (1.0, 3.0, 5.0)
    assert crowds[1].mean(crowds[3]) == Crowd(15.0, 2.0, 3.0, 4.0, 3.0)


def test_what_was_asked_both_ways_becomes_requests() -> None:
    def answered(mode: str, tokens: int, seeing: float) -> Answered:
        return Answered(mode, tokens, 0.002, seeing, 0.005, 0.001 + 0.0009 * tokens)  # type: ignore[arg-type]

    expected = Prediction(0.5, 0.6, 2, 9, 1.0)
    both = [
        (answered("thinking", 9, 0.004), answered("instruct", 1, 0.0)),
        (answered("instruct", 3, 0.003), answered("thinking", 12, 0.0)),
    ]
    writing = Writing.of([one for pair in both for one in pair])
    assert (writing.start, writing.token) == pytest.approx((0.001, 0.0009))
    slow = [replace(one, decode=2 * one.decode) for pair in both for one in pair]
    crowd = crowd_of(5.0, slow, writing)
    assert (crowd.rate, crowd.front, crowd.reading, crowd.writing) == pytest.approx((5.0, 0.002, 0.005, 2.0))
    requests = requests_from(both, [expected, expected])
    assert requests[0].instruct.prefill == 0.005
    assert [(one.instruct.tokens, one.thinking.tokens, one.seeing) for one in requests] == [
        (1, 9, 0.004), (3, 12, 0.003),
    ]  # fmt: skip
    assert requests[1].predicted == expected


def test_what_was_measured_beside_what_was_predicted(tmp_path: Path) -> None:
    machine, count = Machine(), 2000
    asked = drawn(REQUESTS, count, 99)
    real = simulate(machine, poisson(20.0, count, 98), asked, lambda number: ByShare(0.5), warm_up=0)
    shown = Shown(real.arrived, real.seconds, np.arange(count) % 2 == 0, 0, 20.0, count / 20, 0.05)
    found = compared(0.5, shown, machine, REQUESTS, lambda number: ByShare(0.5, number))
    for name in ("p50", "p95"):
        assert abs(found[name]["predicted"] / found[name]["measured"] - 1) < 0.15  # of the same machine
        assert found[name]["interval"][0] <= found[name]["measured"] <= found[name]["interval"][1]
        assert found[name]["runs"][0] <= found[name]["predicted"] <= found[name]["runs"][1]
    found["p95"]["measured"] *= 2
    page = tmp_path / "page.md"
    page.write_text("before\n")
    all = {"where": "here", "capacity": 80.0, "full": 32, "singles": 3, "loads": [found]}
    for _ in range(2):
        write(all, page)
    lines = page.read_text("utf-8").splitlines()
    assert [line.count("**") for line in lines if line.startswith("| ") and "p95" in line] == [2]  # a miss is bold
    assert [line.count("**") for line in lines if line.startswith("| ") and "p50" in line] == [0]


def test_intervals_hold_the_quantile_and_know_neighbours() -> None:
    chance = np.random.default_rng(0)
    at = np.arange(0, 100, 0.1)
    alone = interval(at, chance.exponential(1.0, 1000), 0.5, draws=200)
    assert alone[0] < np.log(2) < alone[1]
    together = interval(at, np.repeat(chance.exponential(1.0, 100), 10), 0.5, draws=200)
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


def test_others_are_those_that_are_not_ours() -> None:
    mine = Others([psutil.Process()])
    everyone = Others([])
    sum(i * i for i in range(3_000_000))
    assert everyone.since() > mine.since()
