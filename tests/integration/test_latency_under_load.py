"""The latency estimate reacts to load and recovers: no mode is locked out, and a slow machine stays slow."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlroute import Decision, LatencyModel, Policy, Router, Target
from vlroute.decision.classifier import Prediction
from vlroute.types import MODES, Mode, other

FOLDERS = {"instruct": "nowhere/instruct", "thinking": "nowhere/thinking"}  # deciding never opens a checkpoint
QUIET = {"instruct": (0.01, 40), "thinking": (0.01, 100)}  # seconds per token, tokens
PREFILL = 0.1


class Machine:
    """A virtual clock, and a machine whose answers take the given time."""

    def __init__(self, observe) -> None:
        self.now, self.observe = 1000.0, observe

    def answers(self, mode: Mode, count: int, slower: float = 1.0, every: float = 1.0) -> None:
        per_token, tokens = QUIET[mode]
        for _ in range(count):
            self.now += every
            self.observe(mode, tokens, PREFILL * slower, per_token * slower * tokens, 100)

    def idle(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(None)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def local_router(machine: Machine, **options) -> Router:
    router = Router.from_pretrained(**FOLDERS, router=Path("models/pocket/router").resolve(), **options)
    machine.observe = router.selector.observe
    machine.answers("instruct", 1000, every=5.0)  # the usual speed of this machine
    machine.answers("thinking", 1000, every=5.0)
    machine.answers("instruct", 20)
    return router


class Asked:
    """A request that thinks on the idle machine, but not if answers take ten times longer."""

    def __init__(self, router: Router) -> None:
        self.router = router
        decision = self.decide_at(0.0)
        assert decision.gain > 0.1
        self.price = decision.gain / (2 * (decision.seconds_thinking - decision.seconds_instruct))
        assert self.decide().mode == "thinking"

    def decide_at(self, price: float) -> Decision:
        return self.router.decide("Add the numbers.", caption="three numbers", price=price)

    def decide(self) -> Decision:
        return self.decide_at(self.price)


def until_it_thinks(asked: Asked, machine: Machine, most: int = 5000) -> int:
    """Requests without load, one per second, each answered in the chosen mode."""
    for count in range(most):
        mode = asked.decide().mode
        machine.answers(mode, 1)
        if mode == "thinking":
            return count
    raise AssertionError(f"{most} quiet requests without a thought")


@pytest.mark.parametrize("slow", MODES)
def test_after_a_busy_minute_thinking_is_chosen_again(machine: Machine, slow: Mode) -> None:
    asked = Asked(local_router(machine))
    machine.answers(slow, 40, slower=30, every=1.5)
    assert asked.decide().mode == "instruct"
    assert until_it_thinks(asked, machine) < 200
    chosen = []
    for _ in range(1000):
        chosen.append(asked.decide().mode)
        machine.answers(chosen[-1], 1)
    assert chosen.count("thinking") > 950


def test_a_fresh_router_is_not_spoilt_by_a_busy_start(machine: Machine) -> None:
    router = Router.from_pretrained(**FOLDERS, router=Path("models/pocket/router").resolve())
    machine.observe, asked = router.selector.observe, Asked(router)
    before = asked.decide()
    for _ in range(40):
        machine.idle(1.5)
        router.selector.observe("thinking", 100, 2.0, 40.0, 100)
    assert asked.decide().mode == "instruct"
    machine.idle(600)
    after = asked.decide()
    assert after.mode == "thinking"
    assert after.seconds_thinking < 1.5 * before.seconds_thinking


def test_busy_minutes_again_and_again_lock_nothing_out(machine: Machine) -> None:
    asked = Asked(local_router(machine))
    for _ in range(30):
        machine.answers("thinking", 40, slower=20, every=1.5)
        assert asked.decide().mode == "instruct"
        assert until_it_thinks(asked, machine, 1500)


def test_instruct_is_not_locked_out_either(machine: Machine) -> None:
    router = local_router(machine)
    asked = Asked(router)
    dear = 4 * asked.price  # now the gain is worth half of the extra seconds only
    assert asked.decide_at(dear).mode == "instruct"
    machine.answers("instruct", 40, slower=30, every=1.5)
    for _ in range(300):
        mode = asked.decide_at(dear).mode
        machine.answers(mode, 1)
    assert asked.decide_at(dear).mode == "instruct"


@pytest.mark.parametrize("every", [0.0, 1.5])
@pytest.mark.parametrize("slow", MODES)
def test_a_slowdown_of_one_mode_is_expected_of_the_other(machine: Machine, slow: Mode, every: float) -> None:
    asked = Asked(local_router(machine))
    before = asked.decide()
    machine.answers(slow, 40, slower=10, every=every)
    after = asked.decide()
    for mode in MODES:
        assert 5 < getattr(after, f"seconds_{mode}") / getattr(before, f"seconds_{mode}") < 11
    machine.answers(other(slow), 40, every=every)  # what the other mode itself shows counts more
    assert getattr(asked.decide(), f"seconds_{other(slow)}") < 1.6 * getattr(before, f"seconds_{other(slow)}")


def test_a_mode_that_was_never_observed_follows_the_other(machine: Machine) -> None:
    router = Router.from_pretrained(**FOLDERS, router=Path("models/pocket/router").resolve())
    before = router.decide("Add the numbers.", caption="three numbers")
    latency = before.seconds_instruct
    for _ in range(200):
        machine.idle(10)
        router.selector.observe("instruct", 10, 1.0, 1.0, 100)
    after = router.decide("Add the numbers.", caption="three numbers")
    slower = after.seconds_instruct / latency
    assert slower > 10
    assert after.seconds_thinking / before.seconds_thinking > slower / 4
    machine.idle(3600)
    assert router.decide("Add the numbers.", caption="three numbers").seconds_thinking > after.seconds_thinking / 2


def test_a_machine_that_is_always_slow_stays_known_as_slow(machine: Machine) -> None:
    asked = Asked(local_router(machine))
    before = asked.decide()
    for _ in range(100):
        machine.answers("instruct", 1, slower=10, every=20)
        machine.answers("thinking", 1, slower=10, every=20)
    for pause in (0, 60, 3600, 86400):
        machine.idle(pause)
        after = asked.decide()
        for mode in MODES:
            assert 6 < getattr(after, f"seconds_{mode}") / getattr(before, f"seconds_{mode}") < 11
    machine.answers("instruct", 1, slower=10)
    assert asked.decide().seconds_thinking > 6 * before.seconds_thinking


@pytest.mark.parametrize("mode", MODES)
def test_one_outlier_is_soon_forgotten(machine: Machine, mode: Mode) -> None:
    asked = Asked(local_router(machine))
    before = asked.decide()
    machine.answers(mode, 1, slower=1000)
    machine.idle(300)
    after = asked.decide()
    assert after.mode == "thinking"
    assert after.seconds_thinking < 1.3 * before.seconds_thinking


def test_the_first_answer_after_a_pause_does_not_bring_the_load_back(machine: Machine) -> None:
    asked = Asked(local_router(machine))
    before = asked.decide()
    machine.answers("thinking", 40, slower=10, every=1.5)
    machine.idle(600)
    machine.answers("thinking", 1)
    assert asked.decide().seconds_thinking < 1.5 * before.seconds_thinking


def test_answers_of_one_token_do_not_make_decoding_look_free(machine: Machine) -> None:
    router = local_router(machine)
    asked = Asked(router)
    before = asked.decide()
    for _ in range(200):
        machine.idle(1)
        router.selector.observe("instruct", 1, PREFILL, 0.0, 100)
    assert asked.decide().seconds_thinking == pytest.approx(before.seconds_thinking, rel=0.1)


def test_a_target_follows_the_latencies_back_while_nothing_is_answered(machine: Machine) -> None:
    router = local_router(machine, policy="balanced")
    seconds = router.operating_point().mean_seconds
    router = local_router(machine, policy=Target(max_mean_seconds=seconds))
    before = router.operating_point()
    machine.answers("thinking", 64, slower=10)
    busy = router.operating_point()
    assert busy.thinking_share < before.thinking_share
    machine.idle(600)
    after = router.operating_point()
    assert after.thinking_share > (before.thinking_share + busy.thinking_share) / 2
    assert after.price == router.selector.policy.price != busy.price


def test_endpoints_keep_queues_of_their_own(machine: Machine) -> None:
    pytest.importorskip("openai")
    router = Router.from_endpoints(
        ("http://127.0.0.1:9/v1", "a"), ("http://127.0.0.1:9/v1", "b"), router=Path("models/pocket/router").resolve()
    )
    try:
        machine.observe = router.selector.observe
        machine.answers("instruct", 200, every=30)
        machine.answers("thinking", 200, every=30)
        machine.answers("instruct", 20)
        asked = Asked(router)
        before = asked.decide()
        machine.answers("thinking", 40, slower=30, every=1.5)
        busy = asked.decide()
        assert busy.mode == "instruct"
        assert busy.seconds_instruct == pytest.approx(before.seconds_instruct, rel=0.2)
        machine.answers("instruct", 30)
        half = asked.decide().seconds_thinking - before.seconds_thinking
        assert half == pytest.approx((busy.seconds_thinking - before.seconds_thinking) / 2, rel=0.3)
        assert until_it_thinks(asked, machine) < 300
    finally:
        router.close()


def test_the_cost_of_reading_a_conversation_decays_too(machine: Machine) -> None:
    latency = LatencyModel(*(dict.fromkeys(MODES, seconds) for seconds in (0.01, PREFILL)))
    machine.observe = latency.observe
    machine.answers("instruct", 500, every=5.0)
    before = {mode: latency.expected(mode, 10, uncached_tokens=1000) for mode in MODES}
    assert before["thinking"] == pytest.approx(before["instruct"])  # never observed, but it is the same machine
    machine.answers("thinking", 40, slower=20, every=1.5)
    assert latency.expected("thinking", 10, uncached_tokens=1000) > 5 * before["thinking"]
    machine.answers("instruct", 300)
    assert latency.expected("thinking", 10, uncached_tokens=1000) < 1.5 * before["thinking"]


slow_spells = st.lists(
    st.tuples(st.sampled_from(MODES), st.integers(1, 60), st.floats(1, 100), st.floats(0, 10)), min_size=1, max_size=5
)


@settings(max_examples=25, deadline=None)
@given(slow_spells, st.sampled_from(MODES))
def test_whatever_load_there_was_quiet_answers_of_one_mode_free_both(spells, seen: Mode) -> None:
    machine = Machine(None)
    latency = LatencyModel(
        {mode: QUIET[mode][0] for mode in MODES}, dict.fromkeys(MODES, PREFILL), clock=lambda: machine.now
    )
    machine.observe = latency.observe
    for mode, count, slower, every in spells:
        machine.answers(mode, count, slower, every)
    machine.answers(seen, 1500, every=5.0)
    for mode in MODES:
        quiet = PREFILL + QUIET[mode][0] * 100
        assert 0.6 * quiet < latency.expected(mode, 100) < 1.6 * quiet


amount = st.floats(0, 1e308)
observed = st.lists(st.tuples(st.sampled_from(MODES), st.integers(0, 10), amount, amount, amount), max_size=20)


@settings(deadline=None)
@given(observed, amount, amount, amount, st.booleans())
def test_every_figure_stays_finite(answers, per_token: float, prefill: float, pause: float, shared: bool) -> None:
    machine = Machine(None)
    latency = LatencyModel({"thinking": per_token}, {"instruct": prefill}, shared=shared, clock=lambda: machine.now)
    for mode, tokens, first, rest, wait in answers:
        machine.idle(min(wait, 1e6))
        latency.observe(mode, tokens, first, rest, tokens)
    machine.idle(pause)
    for uncached_tokens in (None, {"instruct": 0, "thinking": 1000}):
        decision = Policy().decide(Prediction(0.2, 0.8, 10, 100, 1.0), latency, uncached_tokens=uncached_tokens)
        for name in ("seconds_instruct", "seconds_thinking", "threshold"):
            assert 0 <= getattr(decision, name) < math.inf
    json.dumps(latency.to_dict(), allow_nan=False)


def test_a_threshold_above_any_gain_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    router = Router.from_pretrained(**FOLDERS, router=Path("models/pocket/router").resolve())
    caplog.clear()  # of the warning that the artifact was trained for another model
    asked = {"prompt": "Add the numbers.", "caption": "three numbers"}
    with caplog.at_level(logging.WARNING, logger="vlroute"):
        router.decide(**asked)
        router.decide(**asked, mode="thinking", price=1000)
        assert not caplog.records
        assert router.decide(**asked, price=1000).threshold > 1
        router.decide(**asked, price=1000)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    another = Router.from_pretrained(**FOLDERS, router=Path("models/pocket/router").resolve())
    caplog.clear()
    another.decide(**asked, price=1000)
    assert len(caplog.records) == 1
