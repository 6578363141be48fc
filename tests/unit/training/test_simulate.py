"""The simulator, compared with hand-computed cases and formulas of queueing theory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from training import scaling_page
from training import simulate as command
from training.simulation import (
    Limits,
    Request,
    RouterDecider,
    ShareDecider,
    Work,
    poisson,
    replicas_needed,
    requests_from,
    sample,
    simulate,
)

from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.errors import InputError
from vlroute.records import Outcome, Record

ROOT = Path(__file__).parents[3]
RECORDS = ROOT / "training/pocket/records.jsonl.gz"
NOTHING = Work(0.0, 0.0)
TOKEN = 0.1  # seconds
SHARED = 1.0  # sequence cost: sequences of a batch share the machine


def decoding(tokens: int, prefill: float = 0.0) -> Work:
    return Work(prefill, TOKEN * tokens, tokens)


def prefill(seconds: float) -> Request:
    """The same in both modes, without a token to generate."""
    return Request(Work(seconds, 0.0), Work(seconds, 0.0))


def share(value: float) -> Callable[[int], ShareDecider]:
    return lambda number: ShareDecider(value, number)


def seconds(limits: Limits, arrivals: list[float], requests: list[Request], thinking: float = 0.0) -> list[float]:
    return simulate(limits, arrivals, requests, share(thinking), warm_up=0).seconds.round(9).tolist()


class Alternating:
    """Instruct, Thinking, Instruct, …"""

    def __init__(self) -> None:
        self.now = 0.0
        self.decisions = 0
        self.seen: list[tuple[str, int, float, float]] = []

    def decide(self, request: Request, queue: object) -> str:
        self.decisions += 1
        return "instruct" if self.decisions % 2 else "thinking"

    def observe(self, mode: str, tokens: int, prefill: float, decode: float) -> None:
        self.seen.append((mode, tokens, round(prefill, 9), round(decode, 9)))


def test_one_sequence_serves_in_order_of_arrival() -> None:
    requests = [prefill(1.0), prefill(1.0), Request(decoding(5, 0.5), NOTHING)]
    assert seconds(Limits(1), [0.0, 0.25, 0.5], requests) == [1.0, 1.75, 2.5]


def test_regular_arrivals_wait_exactly_what_is_left() -> None:
    # one arrives every second and takes 1.5: each waits half a second longer than the one before
    found = seconds(Limits(1), [float(i) for i in range(6)], [prefill(1.5)] * 6)
    assert found == [1.5 + 0.5 * i for i in range(6)]
    assert seconds(Limits(1), [2.0 * i for i in range(6)], [prefill(1.5)] * 6) == [1.5] * 6


def test_one_prefill_at_a_time() -> None:
    assert seconds(Limits(), [0.0, 0.0, 0.5], [prefill(1.0)] * 3) == [1.0, 2.0, 2.5]
    # decoding goes on beside it, at half speed
    requests = [Request(decoding(10), NOTHING), prefill(1.0)]
    assert seconds(Limits(), [0.0, 0.5], requests) == [1.5, 1.5]


def test_sequences_of_a_mode_share_a_step() -> None:
    two = Limits(2, sequence_cost=0.5)
    # both generate 10 tokens in steps of 0.15 until the first ends; the third then takes its place
    requests = [Request(NOTHING, decoding(tokens)) for tokens in (10, 20, 10)]
    assert seconds(two, [0.0, 0.0, 0.0], requests, thinking=1) == [1.5, 3.0, 3.0]
    # alone it goes on faster
    assert seconds(two, [0.0, 0.0], requests[:2], thinking=1) == [1.5, 2.5]


def test_modes_have_batches_of_their_own_and_share_the_machine() -> None:
    requests = [Request(decoding(5), NOTHING), Request(NOTHING, decoding(10))]
    # each at half speed until the shorter one ends
    found = simulate(Limits(1), [0.0, 0.0], requests, lambda number: Alternating(), warm_up=0)
    assert found.seconds.round(9).tolist() == [1.0, 1.5]
    assert found.thinking == 0.5


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_poisson_arrivals_wait_as_the_formulas_say(load: float) -> None:
    runs, count = 8, 3000
    lines, shared = [], []
    for seed in range(runs):
        arrivals = poisson(load, count, seed)
        line = simulate(Limits(1, 10**6), arrivals, [prefill(1.0)] * count, share(0))
        assert line.busy == pytest.approx(load, rel=0.05)
        lines.append(line.seconds.mean())
        sizes = np.random.default_rng(100 + seed).exponential(1.0, count)
        requests = [Request(Work(0.0, float(size)), NOTHING) for size in sizes]
        every = simulate(Limits(10**6, 0, SHARED), arrivals, requests, share(0))
        shared.append(every.seconds.mean())
    for found, formula in (
        (lines, 1 + load / (2 * (1 - load))),  # M/D/1: Pollaczek and Khinchine
        (shared, 1 / (1 - load)),  # M/M/1, processor sharing
    ):
        error = np.std(found, ddof=1) / np.sqrt(runs)
        assert error < 0.05 * formula
        assert abs(np.mean(found) - formula) < 4 * error


def test_full_replicas_spill_and_then_refuse() -> None:
    one = Limits(1, 0)
    jobs = [prefill(10.0)] * 5
    for replicas, refused in ((1, 3), (2, 1), (3, 0)):
        found = simulate(one, [0.0] * 5, jobs, share(0), replicas, warm_up=0)
        assert (found.refused, len(found.seconds)) == (refused, 5 - refused)
    # a request that finds its home replica full moves on: with sequences for all of them none waits for long
    job = Request(decoding(100), NOTHING)
    four = simulate(Limits(2, 76, 0.0), [0.0] * 8, [job] * 8, share(0.0), 4, warm_up=0)
    assert max(four.seconds) <= 20.0


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_thinking_share(value: float) -> None:
    jobs = [Request(Work(0.1, 0.0), Work(0.3, 0.0))] * 2000
    found = simulate(Limits(), poisson(1.0, 2000), jobs, share(value))
    assert found.thinking == pytest.approx(value, abs=0.03 if 0 < value < 1 else 0)
    if value in (0.0, 1.0):
        assert min(found.seconds) == pytest.approx(0.3 if value else 0.1)


def predicted(gain: float) -> Request:
    """Gain, and 10 more tokens for it."""
    return Request(decoding(10), decoding(20), predicted=Prediction(0.4, 0.4 + gain, 10, 20, 1.0))


def test_the_router_decides_by_its_own_rule() -> None:
    latency = LatencyModel({"instruct": 0.1, "thinking": 0.1}, {"instruct": 0.0, "thinking": 0.0})
    # a second more, at 0.2 a second
    decider = RouterDecider(Policy(price=0.2), latency)
    assert [decider.decide(predicted(gain), {}) for gain in (0.15, 0.25)] == ["instruct", "thinking"]
    for _ in range(100):
        decider.observe("thinking", 20, 0.0, 4.0)  # twice as slow as assumed: the latency model follows
    assert decider.decide(predicted(0.25), {}) == "instruct"
    assert RouterDecider(Policy(price=0.2), latency).decide(predicted(0.25), {}) == "thinking"
    with pytest.raises(ValueError, match="predictions"):
        decider.decide(prefill(1.0), {})


def test_the_price_rule_follows_load_if_told_to() -> None:
    latency = LatencyModel({"instruct": 0.1, "thinking": 0.1}, {"instruct": 0.0, "thinking": 0.0})
    jobs, waits = [predicted(0.25)] * 600, {"instruct": 0.0, "thinking": 1.0}
    for queue, expected in ((False, "thinking"), (True, "instruct")):
        assert RouterDecider(Policy(price=0.2), latency, queue).decide(jobs[0], waits) == expected
    blind, seeing = (
        simulate(Limits(1), poisson(0.45, 600), jobs, lambda number, q=q: RouterDecider(Policy(price=0.2), latency, q))
        for q in (False, True)
    )
    assert blind.thinking == 1.0
    assert 0.2 < seeing.thinking < 0.9
    assert seeing.quantile(0.95) < 0.5 * blind.quantile(0.95)


def test_what_a_decider_observes() -> None:
    told = Alternating()
    simulate(
        Limits(),
        [0.0, 5.0],
        [Request(decoding(10, 0.5), NOTHING), Request(NOTHING, decoding(3, 1.0))],
        lambda number: told,
    )
    assert told.seen == [("instruct", 10, 0.5, 1.0), ("thinking", 3, 1.0, 0.3)]


def test_replicas_needed_grow_with_load_and_fall_with_p95() -> None:
    jobs = sample([prefill(0.5)], 600)
    machine = Limits()
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
    assert requests_from([record]) == [Request(Work(0.2, 1.0, 10), Work(0.2, 2.0, 20))]
    with pytest.raises(InputError, match="'b' lacks tokens, seconds or prefill_seconds of thinking"):
        requests_from([Record("b", "?", None, record.instruct, Outcome(True))])


def test_what_cannot_be_simulated() -> None:
    for wrong in ({"max_num_seqs": 0}, {"max_waiting": -1}, {"sequence_cost": -0.1}):
        with pytest.raises(ValueError, match="at least 1"):
            Limits(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rate must be"):
        poisson(0.0, 5)
    with pytest.raises(ValueError, match="must be 0 or more"):
        Work(-1.0, 0)
    with pytest.raises(ValueError, match="never decrease"):
        simulate(Limits(), [1.0, 0.0], [prefill(1.0)] * 2, share(0))
    with pytest.raises(ValueError, match="at least 1 replica"):
        simulate(Limits(), [0.0], [prefill(1.0)], share(0), 0)


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


def test_the_arithmetic_of_gpu_sizes() -> None:
    # one token of one sequence: 3.44 GB of weights and 1324 x 114688 bytes, at 936 GB/s
    small = scaling_page.SMALL
    assert scaling_page.tokens_per_second(small, 1, 1324) == pytest.approx(936e9 / (3.44e9 + 1324 * 114688))
    free = scaling_page.kv_bytes(small)
    assert free / 2**30 == pytest.approx(10.8 - 3.962 - 1.5, abs=0.01)
    assert scaling_page.sequences(small, "instruct") == int(free / (1324 * 114688)) == 37
    assert scaling_page.sequences(small, "thinking") == int(free / (2624 * 114688)) == 19
    # 2 x 1.72e9 x 1024 operations are 41 % of a picture's; then the question
    prompt = scaling_page.prompt_operations()
    assert prompt == pytest.approx(3.52256e12 / 0.41 + 0.344e12)
    counts = {"instruct": 1, "thinking": 1}
    alone = prompt / small.operations + 200 / scaling_page.tokens_per_second(small, 1, 1324)
    assert scaling_page.answers_per_second(small, counts, thinking=0) == pytest.approx(1 / alone)  # type: ignore[arg-type]
    equal, different = (scaling_page.pair_in_one(scaling_page.LARGE, shared) for shared in (True, False))
    assert different[0] - equal[0] == pytest.approx(0.814e9)
    assert equal[2] > different[2] > 0


def test_the_page_holds_what_was_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    page.write_text(
        "before\n<!-- sizes: written by training.scaling_page -->\nyesterday\n<!-- end of sizes -->\nafter\n"
    )
    monkeypatch.setattr(scaling_page, "REQUESTS", 100)
    monkeypatch.setattr(scaling_page, "RATES", (4.0,))
    scaling_page.main(page)
    written = page.read_text("utf-8")
    assert "yesterday" not in written
    assert written.startswith("before\n")
    assert "<!-- end of sizes -->\nafter\n" in written
    assert "| 4 |" in written
    assert scaling_page.sizes() in scaling_page.PAGE.read_text("utf-8")  # figures of the committed page are current


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
        (["--rate", "1", "--max-num-seqs", "0"], "at least 1"),
        (["--rate", "1", "--p95", "-1"], "p95 to keep must be over 0"),
        (["--rate", "1", "--follow-load"], "--router"),
        (["--rate", "1", "--requests", "1"], "--requests must be at least 100"),
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
