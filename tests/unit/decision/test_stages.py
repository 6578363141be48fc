"""Later stages: heads on evidence, the value of information, staged curves, the decision of one request."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from vlroute import Policy, SettingsError, Target
from vlroute.decision.classifier import Prediction
from vlroute.decision.evidence import ANSWER_NUMBERS, EvidenceSource, StageHead, StageHeads, answer_numbers, columns
from vlroute.decision.information import StagedCurve, StagePlan, usable, wasted_seconds
from vlroute.decision.latency import LatencyModel
from vlroute.decision.staged import StagedDecision
from vlroute.decision.tradeoff import CalibrationSet, TradeoffCurve

LATENCY = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.1, "thinking": 0.1})
ANSWER, BOTH = ("answer",), ("prefill", "answer")


def revealing(n: int = 2000, seed: int = 0) -> CalibrationSet:
    """Records about which the prompt says nothing, the state a little, and the answer whether Instruct is right."""
    rng = np.random.default_rng(seed)
    instruct, thinking = (rng.random(n) < 0.6).astype(np.float32), (rng.random(n) < 0.8).astype(np.float32)
    p = np.tile(np.float32([0.6, 0.8]), (n, 1)) + rng.normal(0, 0.02, (n, 2)).astype(np.float32)
    state = p.copy()
    state[:, 0] = np.where(instruct, 0.67, 0.5)
    known = p.copy()
    known[:, 0] = np.where(instruct, 0.98, 0.02)
    tokens = np.tile(np.float32([5, 60]), (n, 1))
    later: dict[Any, Any] = {("prefill",): state, ANSWER: known, BOTH: known}
    right = np.column_stack([instruct, thinking])
    return CalibrationSet(p, tokens, right, tokens, np.ones(n, np.float32), later)


def plan(records: CalibrationSet, price: float, *stages: Any, shared: bool = False) -> StagePlan:
    return StagePlan(records, ("prompt", *stages), LATENCY, price, shared_prompt=shared)


def utility(records: CalibrationSet, found: StagePlan) -> float:
    course = found.course
    right = np.where(course.thinks, records.right[:, 1], records.right[:, 0])
    return float(right.mean() - found.price * course.seconds.mean())


@pytest.mark.parametrize("price", [0.05, 0.2, 0.35, 0.5])
def test_an_answer_that_reveals_itself_is_worth_its_seconds(price: float) -> None:
    records = revealing()
    alone, staged = plan(records, price), plan(records, price, "answer")
    assert (staged.course.stage == 1).all()
    assert utility(records, staged) > utility(records, alone) + 0.02
    # Thinking answers where Instruct is wrong, and the work of Instruct is then added to its seconds
    assert (staged.course.thinks == (records.right[:, 0] == 0)).all()
    assert staged.course.seconds == pytest.approx(np.where(staged.course.thinks, 0.1 + 0.6 + 0.15, 0.15))


def test_no_stage_is_passed_at_a_price_at_which_it_cannot_pay() -> None:
    records = revealing()
    assert not plan(records, 10.0, "prefill", "answer").course.stage.any()


def test_information_that_changes_no_decision_is_worth_nothing() -> None:
    records = revealing()
    same: dict[Any, Any] = {ANSWER: records.p}
    useless = CalibrationSet(records.p, records.expected, records.right, records.tokens, records.coverage, same)
    found = plan(useless, 0.01, "answer")
    assert found.course.thinks.all()
    assert not found.course.stage.any()
    assert not found.goes_on("prompt", 0.2)


def test_a_shared_prompt_makes_later_stages_cheaper() -> None:
    records = revealing()
    apart, shared = (plan(records, 0.2, "prefill", "answer", shared=one) for one in (False, True))
    assert shared.course.seconds.mean() < apart.course.seconds.mean()
    assert wasted_seconds("prefill", 0.15, LATENCY, False) == pytest.approx(0.1)
    assert wasted_seconds("prefill", 0.15, LATENCY, True) == 0
    assert wasted_seconds("answer", 0.15, LATENCY, True) == pytest.approx(0.05)
    assert wasted_seconds("answer", 0.15, LATENCY, False) == pytest.approx(0.15)


def test_without_a_later_stage_the_plan_is_the_policy() -> None:
    records = revealing()
    for price in (0.0, 0.1, 0.36, 0.5):
        course = plan(records, price).course
        point = TradeoffCurve(records, LATENCY).at(price)
        assert course.thinks.mean() == pytest.approx(point.thinking_share)
        assert course.seconds.mean() == pytest.approx(point.mean_seconds)


def test_low_coverage_is_decided_at_the_prompt() -> None:
    records = revealing(400)
    coverage = np.where(np.arange(400) % 2, 1.0, 0.0).astype(np.float32)
    mixed = CalibrationSet(records.p, records.expected, records.right, records.tokens, coverage, records.later)
    course = StagePlan(mixed, ("prompt", "answer"), LATENCY, 0.2, 0.3, "thinking").course
    assert (course.stage == (coverage > 0)).all()
    assert course.thinks[coverage == 0].all()


def test_a_staged_curve_meets_targets() -> None:
    records = revealing()
    base, staged = TradeoffCurve(records, LATENCY), StagedCurve(records, ("prompt", "answer"), LATENCY)
    for target in (Target(preset="balanced"), Target(max_mean_seconds=0.45), Target(preset="knee")):
        with_stages, without = target.resolve(staged), target.resolve(base)
        assert with_stages.accuracy > without.accuracy
        at = staged.at(with_stages.price)
        assert (at.accuracy, at.mean_seconds) == pytest.approx((with_stages.accuracy, with_stages.mean_seconds))
    assert staged.stage_shares.sum(axis=1) == pytest.approx(1.0)
    assert staged.count == base.count == 2000


def head(passed: tuple[str, ...], width: int = 3) -> StageHead:
    count = columns(passed, width)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    return StageHead(
        np.zeros(count, np.float32), np.ones(count, np.float32), rng.normal(size=(count, 2)).astype(np.float32),
        np.zeros(2, np.float32),
    )  # fmt: skip


def heads(*sets: tuple[str, ...]) -> StageHeads:
    return StageHeads(EvidenceSource("f" * 64, width=3), {one: head(one) for one in sets})  # type: ignore[misc]


def test_heads_are_the_same_after_writing_and_reading() -> None:
    own = heads(("prefill",), ANSWER, BOTH)
    again = StageHeads.load(own.as_card(), own.arrays())
    evidence: dict[Any, Any] = {"prefill": np.float32([1, 2, 3]), "answer": answer_numbers([-0.1, -2.0], [0.2, 0.9])}
    assert again.predict((0.6, 0.8), evidence) == own.predict((0.6, 0.8), evidence)
    assert again.source == own.source
    assert again.stages == BOTH
    with pytest.raises(ValueError, match="shape"):
        StageHeads(EvidenceSource("f", width=4), own.heads)


def test_only_stages_that_all_parts_know_are_used() -> None:
    records, every = revealing(50), heads(("prefill",), ANSWER, BOTH)
    wanted = ("prompt", "prefill", "answer")
    assert usable(records, every, wanted, BOTH) == wanted
    assert usable(records, every, wanted, ANSWER) == ("prompt", "answer")
    assert usable(records, every, ("prompt", "prefill"), BOTH) == ("prompt", "prefill")
    assert usable(records, None, wanted, BOTH) == usable(None, every, wanted, BOTH) == ("prompt",)
    assert usable(records, heads(("prefill",), ANSWER), wanted, BOTH) == ("prompt",)


def test_numbers_of_an_answer() -> None:
    found = answer_numbers([-0.5, -1.5], [0.1, 0.3])
    assert found.tolist() == pytest.approx([-1.0, -1.5, -2.0, -0.5, 0.2, 0.3, 0.1, math.log(3)])
    assert answer_numbers([], []).tolist() == [0.0] * len(ANSWER_NUMBERS)


def staged(found: StagePlan | None, own: StageHeads) -> StagedDecision:
    prediction = Prediction(0.6, 0.8, 5, 60, 1.0)
    policy = Policy(price=0.2)
    return StagedDecision(policy.decide(prediction, LATENCY), prediction, policy, LATENCY, own, found)


def test_a_request_passes_its_stages_in_order() -> None:
    records = revealing()
    weights = np.zeros((columns(ANSWER, 3), 2), np.float32)
    weights[2, 0] = 10.0  # the mean log-probability says whether Instruct is right
    answer = StageHead(np.zeros(10, np.float32), np.ones(10, np.float32), weights, np.float32([5, 1]))
    own = StageHeads(EvidenceSource("f", width=3), {ANSWER: answer})
    sure, unsure = (staged(plan(records, 0.2, "answer"), own) for _ in range(2))
    assert sure.goes_on
    assert sure.decision.later_stages == ("answer",)
    assert sure.decision.mode == "thinking"
    assert sure.judge("answer", answer_numbers([-0.01], [0.0]), 0.3) is True
    assert unsure.judge("answer", answer_numbers([-2.0], [1.0]), 0.4) is False
    for one, mode in ((sure, "instruct"), (unsure, "thinking")):
        decision = one.decision
        assert (decision.mode, decision.stage, decision.later_stages) == (mode, "answer", ())
        assert [passed.stage for passed in decision.stages] == ["prompt", "answer"]
        assert decision.gain == decision.p_thinking - decision.p_instruct
        # Thinking would now come after Instruct's whole answer
        assert decision.seconds_thinking == pytest.approx(0.1 + 0.6 + 0.15)
    assert unsure.decision.stages[1].seconds == 0.4


def test_the_automatic_budget_follows_the_gain_of_the_latest_stage() -> None:
    prediction, policy, own = Prediction(0.8, 0.7, 5, 60, 1.0), Policy(price=0.2), heads(ANSWER)
    decision = policy.decide(prediction, LATENCY)
    found = StagedDecision(
        decision, prediction, policy, LATENCY, own, plan(revealing(), 0.2, "answer"),
        budget=lambda gain: round(1000 * gain),
    )  # fmt: skip
    found.judge("answer", answer_numbers([-2.0], [1.0]), 0.3)
    assert found.decision.thinking_budget == round(1000 * found.decision.gain)


def test_later_stages_know_the_cached_tokens() -> None:
    latency = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.1, "thinking": 0.1})
    latency.observe("instruct", 5, 0.1, 0.05, 100)  # 1 ms for each token of the prompt
    prediction, policy = Prediction(0.6, 0.8, 5, 60, 1.0), Policy(price=0.2)
    left = {"instruct": 10, "thinking": 1000}
    decision = policy.decide(prediction, latency, uncached_tokens=left)  # type: ignore[arg-type]
    found = StagedDecision(
        decision, prediction, policy, latency, heads(ANSWER), plan(revealing(), 0.2, "answer"),
        uncached_tokens=left,  # type: ignore[arg-type]
    )  # fmt: skip
    found.judge("answer", answer_numbers([-2.0], [1.0]), 0.3)
    assert found.decision.seconds_instruct == pytest.approx(decision.seconds_instruct)
    assert found.decision.seconds_thinking > decision.seconds_thinking


def test_a_request_without_plan_is_decided_at_once() -> None:
    found = staged(None, heads(ANSWER))
    assert not found.goes_on
    assert found.decision.later_stages == ()
    assert [one.stage for one in found.decision.stages] == ["prompt"]


@pytest.mark.parametrize("stages", ["later", (), ("answer",), ("prompt", "later"), 3])
def test_unknown_stages_are_refused(stages: Any) -> None:
    for make in (lambda: Policy(stages=stages), lambda: Target(preset="fast", stages=stages)):
        with pytest.raises(SettingsError, match="stages"):
            make()


def test_stages_have_one_order() -> None:
    assert Policy(stages=("answer", "prompt")).stages == ("prompt", "answer")
    assert Target(preset="fast", stages=["prompt"]).stages == ("prompt",)  # type: ignore[arg-type]
    assert repr(Target(preset="fast", stages=("prompt",))) == "Target(preset='fast', stages=('prompt',))"


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_exploration_turns_the_last_decision_once(mode: Any) -> None:
    gain = 0.5 if mode == "thinking" else -0.5
    prediction = Prediction(0.5 - gain / 2, 0.5 + gain / 2, 5, 60, 1.0)
    for drawn in (True, False):
        decision = Policy().decide(prediction, LATENCY)
        assert decision.mode == mode
        staged = StagedDecision(decision, prediction, Policy(), LATENCY)
        staged.explore(0.05, drawn)
        assert staged.decision.mode == mode
        staged.settle()
        settled = staged.settle()  # after an error, the pipeline may settle again
        assert (settled.mode != mode) == settled.explored == drawn
        assert settled.propensity == pytest.approx(0.05 if drawn else 0.95)
        assert ("drawn for exploration" in settled.reason) == drawn


def test_exploration_does_not_turn_a_decision_without_evidence() -> None:
    prediction = Prediction(0.2, 0.8, 5, 60, 1.0)
    staged = StagedDecision(Policy().decide(prediction, LATENCY), prediction, Policy(), LATENCY)
    staged.explore(0.05, True)
    staged.without_evidence()  # Instruct's text is shown already
    settled = staged.settle()
    assert (settled.mode, settled.explored, settled.propensity) == ("instruct", False, 1.0)
