"""The simulator on cases worked by hand, and against the formulas of queueing theory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from training import simulate as command
from training.simulation.choosing import ByRouter, ByShare
from training.simulation.closed import asked_again
from training.simulation.run import drawn, poisson, replicas_needed, simulate
from training.simulation.work import Machine, Request, Work, requests_of

from vlroute.decision.classifier import Prediction
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Policy
from vlroute.errors import InputError
from vlroute.learning.records import Outcome, Record

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "training/pocket/records.jsonl.gz"
NOTHING = Work(0.0, 0.0)
ONE = 0.1  # seconds of a token
MANY = tuple(float(k) for k in range(1, 10))  # things at work do not slow each other


def writing(tokens: int, prefill: float = 0.0) -> Work:
    return Work(prefill, ONE * tokens, tokens)


def reading(seconds: float, front: float = 0.0) -> Request:
    """The same in both modes, without a token to write."""
    return Request(Work(seconds, 0.0), Work(seconds, 0.0), front)


def share(value: float) -> Callable[[int], ByShare]:
    return lambda number: ByShare(value, number)


def seconds(machine: Machine, arrivals: list[float], jobs: list[Request], thinking: float = 0.0) -> list[float]:
    return simulate(machine, arrivals, jobs, share(thinking), warm_up=0).seconds.round(9).tolist()


class InTurns:
    """Instruct, Thinking, Instruct, …"""

    def __init__(self) -> None:
        self.asked = 0
        self.seen: list[tuple[str, int, float, float]] = []

    def choose(self, request: Request, queue: object) -> str:
        self.asked += 1
        return "instruct" if self.asked % 2 else "thinking"

    def observe(self, mode: str, tokens: int, prefill: float, decode: float) -> None:
        self.seen.append((mode, tokens, round(prefill, 9), round(decode, 9)))


def test_one_row_is_a_line_first_come_first_served() -> None:
    one = Machine(speeds=MANY, rows=1)
    jobs = [reading(1.0), reading(1.0), Request(writing(5, 0.5), NOTHING)]
    assert seconds(one, [0.0, 0.25, 0.5], jobs) == [1.0, 1.75, 2.5]


def test_regular_arrivals_wait_exactly_what_is_left() -> None:
    # one comes every second and takes 1.5: each waits half a second longer than the one before
    found = seconds(Machine(rows=1), [float(i) for i in range(6)], [reading(1.5)] * 6)
    assert found == [1.5 + 0.5 * i for i in range(6)]
    assert seconds(Machine(rows=1), [2.0 * i for i in range(6)], [reading(1.5)] * 6) == [1.5] * 6


def test_before_a_row_is_needed_nobody_waits_for_one() -> None:
    one = Machine(speeds=MANY, rows=1)
    assert seconds(one, [0.0, 0.0], [reading(1.0, front=1.0)] * 2) == [2.0, 3.0]
    assert seconds(one, [0.0, 0.0], [Request(NOTHING, NOTHING, 0.5)] * 2) == [0.5, 0.5]


def test_one_at_a_time_sees_or_reads_and_who_was_seen_reads_first() -> None:
    many = Machine(speeds=MANY)
    job = Request(Work(1.0, 0.0), NOTHING, seeing=2.0)
    assert seconds(many, [0.0, 0.0], [job, job]) == [3.0, 6.0]
    # two that come while the first is seen: one has nothing to see, and reads before the other is seen
    assert seconds(many, [0.0, 0.5, 0.6], [job, reading(1.0), job]) == [4.0, 2.5, 6.4]
    half = Machine(speeds=MANY, in_turn={"seeing": 0.5})
    assert seconds(half, [0.0, 0.0], [Request(NOTHING, NOTHING, seeing=2.0)] * 2) == [2.0, 3.0]


def test_a_row_that_joins_others_waits_for_their_step() -> None:
    machine = Machine((1.0, 1.0), MANY, join=0.5)
    assert seconds(machine, [0.0, 0.5], [Request(writing(10), NOTHING)] * 2) == [1.0, 1.05]


def test_rows_share_a_step() -> None:
    two = Machine((1.0, 1.5), MANY, rows=2)
    # both write 10 tokens in steps of 0.15 until the first is done; the third then takes its row
    jobs = [Request(NOTHING, writing(tokens)) for tokens in (10, 20, 10)]
    assert seconds(two, [0.0, 0.0, 0.0], jobs, thinking=1) == [1.5, 3.0, 3.0]
    # alone it writes the rest faster
    assert seconds(two, [0.0, 0.0], jobs[:2], thinking=1) == [1.5, 2.5]


def test_modes_have_rows_of_their_own_and_share_the_machine() -> None:
    jobs = [Request(writing(5), NOTHING), Request(NOTHING, writing(10))]
    # one for both: each at half speed until the shorter one is done
    for speeds, expected in (((1.0, 2.0), [0.5, 1.0]), ((1.0,), [1.0, 1.5])):
        found = simulate(Machine(speeds=speeds, rows=1), [0.0, 0.0], jobs, lambda number: InTurns(), warm_up=0)
        assert found.seconds.round(9).tolist() == expected
        assert found.thinking == 0.5


def test_who_works_at_the_same_time_shares_the_machine() -> None:
    machine = Machine((1.0, 1.5), (1.0, 1.2), {"front": 3.0})
    assert machine.shares([]) == []
    assert machine.shares([("reading", 1)]) == [1.0]
    assert machine.shares([("reading", 1), ("seeing", 1)]) == [0.6, 0.6]
    assert machine.shares([("front", 1), ("seeing", 1)]) == pytest.approx([0.9, 0.3])
    assert machine.shares([("reading", 1)] * 4) == pytest.approx([0.3] * 4)  # the last speed holds for more
    assert machine.shares([("writing", 2), ("seeing", 1)]) == pytest.approx([0.4, 0.6])
    assert machine.shares([("writing", 4)]) == [1 / 2.5]  # steps beyond those known: along the last slope
    # no faster than alone, whatever its weight: what it leaves is for the other
    two = Machine(speeds=(1.0, 1.5), weights={"front": 9.0})
    assert two.shares([("seeing", 1), ("front", 1)]) == pytest.approx([0.5, 1.0])
    assert Machine().shares([("writing", 3)]) == [1 / 3]


def test_a_mode_that_is_asked_for_is_not_decided() -> None:
    jobs = [replace(Request(writing(5), writing(10)), mode=mode) for mode in ("instruct", "thinking")]
    assert seconds(Machine(speeds=MANY), [0.0, 10.0], jobs, thinking=1) == [0.5, 1.0]


def test_clients_who_ask_again_at_once() -> None:
    jobs = [replace(Request(writing(tokens), NOTHING), mode="instruct") for tokens in (10, 30, 10, 5)]
    ended = asked_again(Machine((1.0, 1.0), MANY), jobs, 2)
    # the second keeps its client for three seconds; the other one asks all the rest
    assert [(round(job.arrived, 9), round(job.written_at, 9)) for job in ended] == [
        (0.0, 1.0), (1.0, 2.0), (2.0, 2.5), (0.0, 3.0),
    ]  # fmt: skip
    assert len(asked_again(Machine(), [Request(NOTHING, NOTHING)] * 5, 2)) == 5
    with pytest.raises(ValueError, match="at least 1 client"):
        asked_again(Machine(), jobs, 0)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_chance_arrivals_wait_as_the_formulas_say(load: float) -> None:
    runs, count = 8, 3000
    lines, shared = [], []
    for seed in range(runs):
        arrivals = poisson(load, count, seed)
        line = simulate(Machine(rows=1, inside=10**6), arrivals, [reading(1.0)] * count, share(0))
        assert line.busy == pytest.approx(load, rel=0.05)
        lines.append(line.seconds.mean())
        sizes = np.random.default_rng(100 + seed).exponential(1.0, count)
        jobs = [Request(Work(0.0, float(size)), NOTHING) for size in sizes]
        every = simulate(Machine(rows=10**6, inside=10**6), arrivals, jobs, share(0))
        shared.append(every.seconds.mean())
    for found, formula in (
        (lines, 1 + load / (2 * (1 - load))),  # M/D/1: Pollaczek and Khinchine
        (shared, 1 / (1 - load)),  # M/M/1, processor sharing
    ):
        error = np.std(found, ddof=1) / np.sqrt(runs)
        assert error < 0.05 * formula
        assert abs(np.mean(found) - formula) < 4 * error


def test_full_replicas_spill_and_then_refuse() -> None:
    one = Machine(rows=1, inside=2)
    jobs = [reading(10.0)] * 5
    for replicas, refused in ((1, 3), (2, 1), (3, 0)):
        found = simulate(one, [0.0] * 5, jobs, share(0), replicas, warm_up=0)
        assert (found.refused, len(found.seconds)) == (refused, 5 - refused)
    # with rows for all of them nobody waits: who finds the home replica full goes on round the ring
    job = Request(writing(100), NOTHING)
    four = simulate(Machine((1.0,) * 2, MANY, rows=2, inside=80), [0.0] * 8, [job] * 8, share(0.0), 4, warm_up=0)
    assert max(four.seconds) <= 20.0


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_thinking_share(value: float) -> None:
    jobs = [Request(Work(0.1, 0.0), Work(0.3, 0.0))] * 2000
    found = simulate(Machine(), poisson(1.0, 2000), jobs, share(value))
    assert found.thinking == pytest.approx(value, abs=0.03 if 0 < value < 1 else 0)
    if value in (0.0, 1.0):
        assert min(found.seconds) == pytest.approx(0.3 if value else 0.1)


def predicted(gain: float) -> Request:
    """Gain, and 10 more tokens for it."""
    return Request(writing(10), writing(20), predicted=Prediction(0.4, 0.4 + gain, 10, 20, 1.0))


def test_the_router_decides_by_its_own_rule() -> None:
    pace = Pace({"instruct": 0.1, "thinking": 0.1}, {"instruct": 0.0, "thinking": 0.0})
    # a second more, at 0.2 a second
    choosing = ByRouter(Policy(price=0.2), pace)
    assert [choosing.choose(predicted(gain), {}) for gain in (0.15, 0.25)] == ["instruct", "thinking"]
    for _ in range(100):
        choosing.observe("thinking", 20, 0.0, 4.0)  # twice as slow as thought: the pace follows
    assert choosing.choose(predicted(0.25), {}) == "instruct"
    assert choosing.again().choose(predicted(0.25), {}) == "thinking"
    with pytest.raises(ValueError, match="decides on predictions"):
        choosing.choose(reading(1.0), {})


def test_the_price_rule_follows_load_if_told_to() -> None:
    pace = Pace({"instruct": 0.1, "thinking": 0.1}, {"instruct": 0.0, "thinking": 0.0})
    jobs, waits = [predicted(0.25)] * 600, {"instruct": 0.0, "thinking": 1.0}
    for queue, expected in ((False, "thinking"), (True, "instruct")):
        assert ByRouter(Policy(price=0.2), pace, queue).choose(jobs[0], waits) == expected
    machine = Machine(speeds=(1.0, 2.0), rows=1)
    blind, seeing = (
        simulate(machine, poisson(0.6, 600), jobs, lambda number, queue=queue: ByRouter(Policy(price=0.2), pace, queue))
        for queue in (False, True)
    )
    assert blind.thinking == 1.0
    assert 0.2 < seeing.thinking < 0.9
    assert seeing.quantile(0.95) < 0.5 * blind.quantile(0.95)


def test_what_a_replica_tells_of_its_answers() -> None:
    told = InTurns()
    machine = Machine(speeds=(1.0, 2.0))
    simulate(
        machine,
        [0.0, 5.0],
        [Request(writing(10, 0.5), NOTHING), Request(NOTHING, writing(3, 1.0))],
        lambda number: told,
    )
    assert told.seen == [("instruct", 10, 0.5, 1.0), ("thinking", 3, 1.0, 0.3)]


def test_replicas_needed_grow_with_load_and_fall_with_patience() -> None:
    jobs = drawn([reading(0.5)], 600)
    machine = Machine()
    needed = [replicas_needed(machine, poisson(rate, 600), jobs, share(0), 2.0) or 999 for rate in (1.0, 4.0, 16.0)]
    assert needed == sorted(needed)
    assert needed[0] <= 2
    assert 8 <= needed[2] < 999  # each brings half a second of work a request: 16 a second fill eight machines
    patient = [replicas_needed(machine, poisson(8.0, 600), jobs, share(0), p95) or 999 for p95 in (0.6, 1.0, 5.0)]
    assert patient == sorted(patient, reverse=True)
    assert replicas_needed(machine, poisson(1.0, 300), jobs[:300], share(0), 0.4) is None  # faster than one alone
    with pytest.raises(ValueError, match="p95 to keep must be over 0"):
        replicas_needed(machine, poisson(1.0, 300), jobs[:300], share(0), 0.0)


def test_records_become_requests() -> None:
    record = Record("a", "?", None, Outcome(True, 10, 1.2, 0.2), Outcome(True, 20, 2.2, 0.2))
    assert requests_of([record]) == [Request(Work(0.2, 1.0, 10), Work(0.2, 2.0, 20))]
    with pytest.raises(InputError, match="'b' lacks tokens, seconds or prefill_seconds of thinking"):
        requests_of([Record("b", "?", None, record.instruct, Outcome(True))])


def test_what_cannot_be_simulated() -> None:
    for steps in ((), (0.0,)):
        with pytest.raises(ValueError, match="must be over 0"):
            Machine(steps)
    for wrong in ({"speeds": ()}, {"speeds": (1.0, 0.0)}, {"weights": {"front": 0.0}}, {"inside": 0}, {"rows": 0}):
        with pytest.raises(ValueError, match="must be over 0"):
            Machine((1.0,), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from 0 to 1"):
        Machine(in_turn={"seeing": 2.0})
    with pytest.raises(ValueError, match="not sleeping"):
        Machine(weights={"sleeping": 1.0})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="rate must be"):
        poisson(0.0, 5)
    with pytest.raises(ValueError, match="must be 0 or more"):
        Work(-1.0, 0)
    with pytest.raises(ValueError, match="never fall"):
        simulate(Machine(), [1.0, 0.0], [reading(1.0)] * 2, share(0))
    with pytest.raises(ValueError, match="at least 1 replica"):
        simulate(Machine(), [0.0], [reading(1.0)], share(0), 0)


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[str, object]:
    monkeypatch.setattr(sys, "argv", ["simulate", *map(str, words), "--json"])
    command.main()
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = ("--records", RECORDS, "--requests", 500)
    found = told(capsys, monkeypatch, *said, "--rate", 20, "--p95", 1, "--share", 1)
    assert found["thinking"] == 1.0
    assert 0 < found["p50"] < found["p95"]  # type: ignore[operator]
    assert found["needed"] == 1
    routed = [
        told(capsys, monkeypatch, *said, "--rate", 5, "--router", ROOT / "models/pocket/router", "--price", price)
        for price in (0, 50)
    ]
    assert routed[0]["thinking"] > 0.3 > routed[1]["thinking"]  # type: ignore[operator]
    (tmp_path / "trace").write_text("\n".join(str(10 + i / 4) for i in range(200)))
    assert told(capsys, monkeypatch, *said[:2], "--trace", tmp_path / "trace")["rate"] == pytest.approx(4.0)
    machine = Machine((1.0, 1.5), (1.0, 1.2), {"front": 2.0}, {"reading": 0.5}, 0.2)
    (tmp_path / "check.json").write_text(json.dumps({"fitted": {"machine": asdict(machine)}}))
    assert command.machine_of(tmp_path / "check.json") == machine


def test_the_command_on_bad_input() -> None:
    """One clear line, and status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "training.simulate", "--records", "nowhere.jsonl", "--rate", "1"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: nowhere.jsonl")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "0"], "the rate must be over 0"),
        (["--rate", "1", "--share", "2"], "share must lie in 0..1"),
        (["--rate", "1", "--router", "nowhere"], "nowhere"),
        (["--rate", "1", "--replicas", "0"], "at least 1 replica"),
        (["--rate", "1", "--rows", "0"], "rows and inside at least 1"),
        (["--rate", "1", "--p95", "-1"], "p95 to keep must be over 0"),
        (["--rate", "1", "--follow-load"], "give --router, too"),
        (["--rate", "1", "--requests", "1"], "--requests must be at least 100"),
        (["--rate", "1", "--machine", "nowhere.json"], "simulate_check wrote"),
        (["--trace", "nowhere.txt"], "seconds of arrival"),
    ],
)
def test_what_the_command_refuses(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["simulate", "--records", str(RECORDS), *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    line = str(ended.value)
    assert line.startswith("error: ")
    assert said in line
    assert "\n" not in line
