"""What the simulator's pages are made of: layouts by arithmetic, calibration, and what was measured beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from training.simulate_check import write
from training.simulation import sizes
from training.simulation.calibrate import Answered, Crowd, fit, named, request_from, simulated, slower
from training.simulation.checked import Round, compared, interval, render
from training.simulation.choosing import ByShare
from training.simulation.measured import Seen
from training.simulation.quiet import Others
from training.simulation.run import drawn, poisson, simulate
from training.simulation.work import STAGES, Machine, Request, Stage, Work

from vlroute.decision.classifier import Prediction
from vlroute.modes import MODES, Mode

ROOT = Path(__file__).parents[1]
REQUESTS = [Request(Work(0.004, 0.001 * n, n), Work(0.004, 0.006 * n, 6 * n), 0.002, 0.004) for n in (1, 2, 3)]
TASKS = drawn(REQUESTS, 1000)


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


def answered(mode: Mode, tokens: int, seeing: float = 0.004, line: float = 0.0) -> Answered:
    return Answered(mode, tokens, 0.002, seeing, 0.005, 0.001 + 0.0009 * tokens, line)


def seen(mode: Mode, spent: float) -> Seen:
    return Seen(mode, 1, 0.0, 0.0, 0.0, spent, 0.0, spent)


def test_what_was_asked_both_ways_becomes_a_request() -> None:
    expected = Prediction(0.5, 0.6, 2, 9, 1.0)
    first = answered("thinking", 9, 0.004, 0.001), answered("instruct", 1, 0.004)
    last = answered("instruct", 1, 0.006), answered("thinking", 9, 0.006, 0.001)
    request = request_from([first, last], expected)
    assert (request.instruct.prefill, request.instruct.decode) == pytest.approx((0.005, 0.0019))
    assert (request.thinking.tokens, request.thinking.decode) == (9, pytest.approx(0.0091))
    assert (request.front, request.seeing) == pytest.approx((0.0025, 0.005))  # what nobody accounts for comes first
    assert (request.predicted, request.mode) == (expected, None)
    crowd = [replace(answered("thinking", 9), decode=0.0182), replace(answered("instruct", 1), front=0.01)]
    assert slower([(one, request) for one in crowd]) == pytest.approx(
        {"front": 2.4, "seeing": 0.8, "reading": 1.0, "writing": (0.0182 + 0.0019) / (0.0091 + 0.0019)}
    )


def test_a_machine_is_found_by_how_crowds_slow_each_other() -> None:
    growth = (1.0, *(1.4 + 0.1 * k for k in range(7)))
    weights: dict[Stage, float] = {"front": 3.0, "writing": 1.5}
    hidden = Machine(growth, (1.0, 1.4), weights, {"seeing": 0.9, "reading": 0.6}, 0.3)
    crowds = []
    for size in (2, 8):
        for modes in (MODES, MODES[:1], MODES[1:]):
            asked = [named(one, modes[i % len(modes)]) for i, one in enumerate(drawn(REQUESTS, 60, size))]
            crowds.append(Crowd(f"{size}, {modes}", size, asked, simulated(hidden, asked, size)))
    fitted = fit(crowds, most=12)
    assert fitted.off < 0.04
    last = crowds[-1]
    assert fitted.measured[last.name] == last.measured
    assert fitted.simulated[last.name] == simulated(fitted.machine, last.requests, last.clients)
    arrivals, load = poisson(35.0, 1500), drawn(REQUESTS, 1500)
    true, found = (
        simulate(machine, arrivals, load, lambda number: ByShare(0.5)) for machine in (hidden, fitted.machine)
    )
    assert true.busy > 0.4
    for quantile in (0.5, 0.95):
        assert found.quantile(quantile) == pytest.approx(true.quantile(quantile), rel=0.08)


def test_what_was_measured_beside_what_was_predicted(tmp_path: Path) -> None:
    machine, count, rate = Machine(), 1000, 20.0
    rounds = []
    for number in range(2):
        arrivals = poisson(rate, count, number)
        asked = [named(one, "thinking") for one in TASKS]
        real = simulate(machine, arrivals, asked, lambda number: ByShare(0), warm_up=0)
        answers: list[Seen | None] = [seen("thinking", spent) for spent in real.seconds]
        answers[-1] = None
        rounds.append(Round(arrivals, answers, 0.05))
    assert len(rounds[0].kept) == 899
    found = compared(0.5, 2 * rate, rounds, machine, TASKS, lambda: ByShare(1.0))
    assert (found["rate"], found["thinking"]) == (rate, {"measured": 1.0, "predicted": 1.0})
    assert found["refused"]["measured"] == pytest.approx(0.001)
    for name in ("p50", "p95"):
        value = found[name]
        assert value["predicted"] == pytest.approx(value["measured"], rel=0.01)  # the same machine and arrivals
        assert value["by_rate"] == pytest.approx(value["measured"], rel=0.15)
        assert value["interval"][0] <= value["measured"] <= value["interval"][1]
        assert value["runs"][0] <= value["by_rate"] <= value["runs"][1]
    found["p95"]["measured"] *= 2
    page = tmp_path / "page.md"
    page.write_text("before\n")
    slowed = {"2": dict.fromkeys(STAGES, 2.0)}
    fitted = {"machine": asdict(replace(machine, growth=(1.0,) * 8)), "off": 0.05}
    fitted |= {"measured": slowed, "simulated": slowed}
    all = {"where": "here", "capacity": 80.0, "crowd": 120, "tasks": 3, "loads": [found], "fitted": fitted}
    for _ in range(2):
        write(all, page)
    lines = page.read_text("utf-8").splitlines()
    assert [line.count("**") for line in lines if line.startswith("| ") and "p95" in line] == [4]  # misses are bold
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
