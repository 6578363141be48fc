"""The simulator on cases worked by hand, and against the formulas of queueing theory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training.simulation import sizes
from training.simulation.run import drawn, poisson, replicas_needed, saturated, simulate
from training.simulation.work import Machine, Work, per_token, works

from vlroute.errors import InputError
from vlroute.learning.records import Outcome, Record
from vlroute.modes import Mode

ROOT = Path(__file__).parents[1]


def reading(seconds: float, mode: Mode = "instruct") -> Work:
    return Work(mode, 0.0, seconds, 0)


def seconds(machine: Machine, arrivals: list[float], jobs: list[Work]) -> list[float]:
    return simulate(machine, arrivals, jobs, warm_up=0).seconds.round(9).tolist()


def test_one_row_is_a_line_first_come_first_served() -> None:
    one = Machine((0.1,), cores=9, rows=1)
    jobs = [reading(1.0), reading(1.0), Work("instruct", 0.0, 0.5, 5)]
    assert seconds(one, [0.0, 0.25, 0.5], jobs) == [1.0, 1.75, 2.5]


def test_before_a_row_is_needed_nobody_waits_for_one() -> None:
    one = Machine((0.1,), cores=9, rows=1)
    assert seconds(one, [0.0, 0.0], [Work("instruct", 1.0, 1.0, 0)] * 2) == [2.0, 3.0]


def test_rows_share_a_step() -> None:
    two = Machine((0.1, 0.15), cores=9, rows=2)
    # both write 10 tokens in steps of 0.15 until the first is done; the third then takes its row
    jobs = [Work("thinking", 0.0, 0.0, tokens) for tokens in (10, 20, 10)]
    assert seconds(two, [0.0, 0.0, 0.0], jobs) == [1.5, 3.0, 3.0]
    # alone it writes the rest faster
    assert seconds(two, [0.0, 0.0], jobs[:2]) == [1.5, 2.5]


def test_modes_have_rows_of_their_own_and_share_the_machine() -> None:
    jobs = [Work("thinking", 0.0, 0.0, 10), Work("instruct", 0.0, 0.0, 5)]
    assert seconds(Machine((0.1,), cores=2, rows=1), [0.0, 0.0], jobs) == [1.0, 0.5]
    # on one core each goes at half speed until the shorter one is done
    assert seconds(Machine((0.1,), cores=1, rows=1), [0.0, 0.0], jobs) == [1.5, 1.0]


def test_steps_beyond_those_measured() -> None:
    assert [Machine((1.0, 1.5)).step(k) for k in (1, 2, 4)] == [1.0, 1.5, 2.5]
    assert Machine((1.0,)).step(3) == 3.0


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_chance_arrivals_wait_as_the_formulas_say(load: float) -> None:
    count = 40_000
    arrivals = poisson(load, count, seed=3)
    constant = simulate(Machine((1.0,), rows=1, inside=10**6), arrivals, [reading(1.0)] * count)
    assert constant.seconds.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)  # M/D/1
    assert constant.busy == pytest.approx(load, rel=0.03)
    sizes = np.random.default_rng(4).exponential(1.0, count)
    shared = simulate(Machine((1.0,), rows=10**6, inside=10**6), arrivals, [reading(float(size)) for size in sizes])
    assert shared.seconds.mean() == pytest.approx(1 / (1 - load), rel=0.06)  # M/M/1, processor sharing


def test_full_replicas_spill_and_then_refuse() -> None:
    one = Machine((1.0,), rows=1, inside=2)
    jobs = [reading(10.0)] * 5
    assert simulate(one, [0.0] * 5, jobs, 1, warm_up=0).refused == 3
    assert simulate(one, [0.0] * 5, jobs, 2, warm_up=0).refused == 1
    assert simulate(one, [0.0] * 5, jobs, 3, warm_up=0).refused == 0


def test_thinking_share_and_replicas_needed() -> None:
    jobs = drawn([reading(0.5), reading(0.5, "thinking")], 2000, seed=1)
    found = simulate(Machine((0.1,), rows=8), poisson(1.0, 2000), jobs)
    assert found.thinking == pytest.approx(0.5, abs=0.05)
    needed = [replicas_needed(Machine((0.1,)), poisson(rate, 1000), jobs[:1000], 2.0) for rate in (1.0, 4.0, 16.0)]
    assert None not in needed
    assert needed == sorted(needed)  # type: ignore[type-var]
    assert needed[0] <= 2 < needed[2]
    assert needed[2] >= 8  # each brings half a second of work a request: 16 a second fill eight machines
    assert replicas_needed(Machine((0.1,)), poisson(1.0, 500), jobs[:500], 0.4) is None  # faster than one alone


def test_clients_that_ask_again_at_once() -> None:
    assert saturated(Machine((0.1,), cores=1, rows=8), [reading(0.5)] * 200, 4) == pytest.approx(2.0, rel=0.02)
    assert saturated(Machine((0.1,), cores=2, rows=8), [reading(0.5)] * 200, 4) == pytest.approx(4.0, rel=0.02)
    assert saturated(Machine((0.1,), cores=2, rows=8), [reading(0.5)] * 200, 1) == pytest.approx(2.0, rel=0.02)


def test_records_become_work() -> None:
    outcome = Outcome(True, 11, 1.2, 0.2)
    record = Record("a", "?", None, outcome, Outcome(True, 21, 2.2, 0.2))
    assert per_token([record]) == pytest.approx(0.1)
    assert works([record, record], ["instruct", "thinking"]) == [
        Work("instruct", 0.0, 0.2, 10), Work("thinking", 0.0, 0.2, 20),
    ]  # fmt: skip
    with pytest.raises(InputError, match="lacks tokens"):
        works([Record("b", "?", None, Outcome(True), outcome)], ["instruct"])
    with pytest.raises(InputError, match="no record holds"):
        per_token([])


def test_what_makes_no_machine() -> None:
    for wrong in ({"steps": ()}, {"steps": (0.0,)}, {"steps": (1.0,), "cores": 0}, {"steps": (1.0,), "rows": 0}):
        with pytest.raises(ValueError, match="must be over 0"):
            Machine(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate must be"):
        poisson(0.0, 5)


def test_the_command() -> None:
    records = ROOT / "training/pocket/records.jsonl.gz"
    asked = [sys.executable, "-m", "training.simulate"]
    done = subprocess.run(
        [*asked, str(records), "--rate", "20", "--p95", "1", "--share", "1", "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["thinking"] == 1.0
    assert 0 < found["p50"] < found["p95"]
    for wrong, said in (
        (["nowhere.jsonl", "--rate", "1"], "nowhere.jsonl"),
        ([str(records), "--rate", "0"], "the rate must be over 0"),
        ([str(records), "--rate", "1", "--share", "2"], "--share must lie in 0..1"),
        ([str(records), "--rate", "1", "--router", "nowhere"], "nowhere"),
    ):
        done = subprocess.run([*asked, *wrong], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr


def test_the_arithmetic_of_layouts(tmp_path: Path) -> None:
    # one token of one row: 3.44 GB of weights and 1324 x 114688 bytes, at 936 GB/s
    assert sizes.tokens_a_second(sizes.SMALL, 1, 1324) == pytest.approx(936e9 / (3.44e9 + 1324 * 114688))
    free, rows, _ = sizes.two_servers(sizes.SMALL)["instruct"]
    assert free / 2**30 == pytest.approx(10.8 - 3.962 - 1.5, abs=0.01)
    assert rows == int(free / (1324 * 114688)) == 37
    equal, different = sizes.pair_in_one(sizes.LARGE, True), sizes.pair_in_one(sizes.LARGE, False)
    assert different[0] - equal[0] == pytest.approx(0.814e9)
    assert equal[2] > different[2] > 0
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{sizes.BEGIN}\nyesterday\n{sizes.END}\nafter\n")
    sizes.main(page)
    assert "yesterday" not in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith(f"{sizes.END}\nafter\n")
    committed = (ROOT / "docs/scaling.md").read_text("utf-8")
    assert sizes.render() in committed  # nobody typed a figure
