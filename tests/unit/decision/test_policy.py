"""Gain against price, the invariants of a decision, and the latency model."""

from __future__ import annotations

import json
import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlroute.decision.classifier import Prediction
from vlroute.decision.latency import ASSUMED_PER_TOKEN, ASSUMED_PREFILL, LatencyModel
from vlroute.decision.policy import Policy
from vlroute.types import Decision, Mode

share = st.floats(0, 1)
amount = st.floats(0, 1e308)
predictions = st.builds(Prediction, share, share, amount, amount, share)
seconds = st.fixed_dictionaries({"instruct": amount, "thinking": amount})
latencies = st.builds(LatencyModel, seconds, seconds)
modes = st.sampled_from(["instruct", "thinking"])
SLOW = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.1, "thinking": 0.1})


def predict(p_instruct: float, p_thinking: float, coverage: float = 1.0) -> Prediction:
    """Thinking takes one second longer with the latencies `SLOW`."""
    return Prediction(p_instruct, p_thinking, 10, 110, coverage)


def test_thinks_when_the_gain_is_over_the_price_of_the_wait() -> None:
    decision = Policy(price=0.1).decide(predict(0.2, 0.82), SLOW)
    assert decision.mode == "thinking"
    assert decision.stage == "prompt"
    assert decision.seconds_instruct == pytest.approx(0.2)
    assert decision.seconds_thinking == pytest.approx(1.2)
    assert decision.threshold == pytest.approx(0.1)
    assert "+0.62 justifies 1 s" in decision.reason
    assert not decision.forced


@pytest.mark.parametrize(
    ("price", "p_instruct", "p_thinking", "mode", "reason"),
    [
        (0.1, 0.5, 0.55, "instruct", "does not justify"),
        (0.0, 0.5, 0.55, "thinking", " justifies "),
        (0.0, 0.5, 0.5, "instruct", "not help"),
        (0.0, 0.9, 0.5, "instruct", "not help"),
    ],
)
def test_price_and_gain(price: float, p_instruct: float, p_thinking: float, mode: str, reason: str) -> None:
    decision = Policy(price=price).decide(predict(p_instruct, p_thinking), SLOW)
    assert decision.mode == mode
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("p_thinking", "previous", "interval", "mode"),
    [
        (0.9, "instruct", (0.2, 0.6), "thinking"),
        (0.9, "instruct", (0.05, 0.7), "instruct"),  # the lower bound is not above the threshold of 0.1
        (0.9, "instruct", None, "instruct"),
        (0.5, "thinking", (-0.2, 0.05), "instruct"),
        (0.5, "thinking", (-0.1, 0.15), "thinking"),
        (0.5, "thinking", None, "thinking"),
        (0.9, "thinking", None, "thinking"),  # no change, so no bound is needed
        (0.5, "instruct", (0.2, 0.6), "instruct"),
    ],
)
def test_within_a_loop_of_tool_calls_only_the_whole_interval_changes_the_mode(
    p_thinking: float, previous: Mode, interval: tuple[float, float] | None, mode: str
) -> None:
    policy = Policy(price=0.1)
    decision = policy.decide(predict(0.5, p_thinking), SLOW, previous=previous, interval=interval, tools="result")
    free = policy.decide(predict(0.5, p_thinking), SLOW)
    assert (decision.mode, decision.previous, decision.tools) == (mode, previous, "result")
    assert (decision.gain, decision.threshold) == (free.gain, free.threshold)
    if decision.mode == free.mode:
        assert decision.reason == free.reason
    else:
        assert (
            f"{previous} is kept from the previous step of the loop of tool calls, because the interval of the gain is"
            in decision.reason
        )


def test_within_a_loop_a_forced_mode_is_obeyed() -> None:
    decision = Policy().decide(predict(0.9, 0.1), SLOW, forced="thinking", previous="instruct")
    assert (decision.mode, decision.forced, decision.previous) == ("thinking", True, "instruct")


def test_within_a_loop_low_coverage_does_not_change_the_mode() -> None:
    decision = Policy().decide(predict(0.9, 0.1, coverage=0.1), SLOW, previous="thinking")
    assert decision.mode == "thinking"


def test_thinking_that_is_faster_costs_nothing() -> None:
    decision = Policy(price=10).decide(Prediction(0.5, 0.6, 100, 10, 1.0), SLOW)
    assert (decision.mode, decision.threshold) == ("thinking", 0)
    assert "no longer" in decision.reason


def test_hopeless_for_both_is_not_sent_to_thinking() -> None:
    assert Policy(price=0.05).decide(predict(0.02, 0.04), SLOW).mode == "instruct"


@pytest.mark.parametrize("unsure", ["instruct", "thinking"])
def test_far_from_the_training_data_the_unsure_mode_answers(unsure: str) -> None:
    decision = Policy(min_coverage=0.3, fallback_mode=unsure).decide(predict(0.0, 1.0, coverage=0.2), SLOW)
    assert decision.mode == unsure
    assert "coverage 20%" in decision.reason
    assert Policy(min_coverage=0.2).decide(predict(0.0, 1.0, coverage=0.2), SLOW).mode == "thinking"


def test_forced_goes_over_everything_and_is_said() -> None:
    decision = Policy().decide(predict(0.9, 0.1, coverage=0), SLOW, "a cat", forced="thinking")
    assert (decision.mode, decision.forced, decision.caption) == ("thinking", True, "a cat")
    assert "requested" in decision.reason


@pytest.mark.parametrize(
    "wrong",
    [{"price": -1.0}, {"price": math.nan}, {"price": math.inf}, {"min_coverage": 1.5}, {"fallback_mode": "fast"}],
)
def test_wrong_policies_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        Policy(**wrong)


def test_a_wrong_forced_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        Policy().decide(predict(0.5, 0.5), SLOW, forced="fast")  # type: ignore[arg-type]


def check_always(decision: Decision) -> None:
    assert math.isfinite(decision.threshold)
    assert decision.threshold >= 0
    assert decision.gain == decision.p_thinking - decision.p_instruct
    json.dumps(decision.as_dict(), allow_nan=False)


@given(predictions, latencies, amount, share)
def test_invariants(prediction: Prediction, latency: LatencyModel, price: float, min_coverage: float) -> None:
    decision = Policy(price, min_coverage).decide(prediction, latency)
    check_always(decision)
    if prediction.coverage < min_coverage:
        assert decision.mode == "instruct"
    else:
        assert (decision.mode == "thinking") == (decision.gain > decision.threshold)
    if decision.gain <= 0:
        assert decision.mode == "instruct"


@given(predictions, latencies, amount, modes)
def test_forced_invariants(prediction: Prediction, latency: LatencyModel, price: float, forced: str) -> None:
    decision = Policy(price).decide(prediction, latency, forced=forced)
    check_always(decision)
    assert decision.mode == forced
    assert decision.forced


@given(predictions, latencies, amount, amount)
def test_a_higher_price_never_makes_it_think(
    prediction: Prediction, latency: LatencyModel, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if Policy(high).decide(prediction, latency).mode == "thinking":
        assert Policy(low).decide(prediction, latency).mode == "thinking"


def test_as_dict_holds_every_field() -> None:
    values = Policy().decide(predict(0.2, 0.9), SLOW, "a cat").as_dict()
    assert list(values) == list(Decision.__slots__)
    assert values["caption"] == "a cat"


def test_latency_starts_from_assumptions_and_follows_what_it_sees() -> None:
    latency = LatencyModel(clock=lambda: 0.0)
    assert latency.expected("thinking", 100) == pytest.approx(ASSUMED_PREFILL + 100 * ASSUMED_PER_TOKEN)
    latency.observe("thinking", 100, prefill_seconds=1.2, decode_seconds=12.0)
    assert latency.to_dict()["prefill"]["thinking"] == pytest.approx(0.9 * ASSUMED_PREFILL + 0.1 * 1.2)
    assert latency.to_dict()["per_token"]["thinking"] == pytest.approx(0.9 * ASSUMED_PER_TOKEN + 0.1 * 0.12)
    assert latency.expected("instruct", 0) == pytest.approx(0.9 * ASSUMED_PREFILL + 0.1 * 1.2)  # the same machine
    assert LatencyModel(shared=False).expected("instruct", 0) == ASSUMED_PREFILL
    for _ in range(200):
        latency.observe("thinking", 10, 0.5, 1.0)
    assert latency.expected("thinking", 20) == pytest.approx(2.5)


def test_an_answer_without_tokens_teaches_only_prefill() -> None:
    latency = LatencyModel()
    latency.observe("instruct", 0, 5.0, 0.0)
    assert latency.to_dict()["per_token"]["instruct"] == ASSUMED_PER_TOKEN
    assert latency.to_dict()["prefill"]["instruct"] > ASSUMED_PREFILL


def test_latency_survives_a_round_trip() -> None:
    latency = LatencyModel({"instruct": 0.01}, {"thinking": 2})
    assert LatencyModel.from_dict(json.loads(json.dumps(latency.to_dict()))).to_dict() == latency.to_dict()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatencyModel({"fast": 0.1}),
        lambda: LatencyModel({"instruct": -0.1}),
        lambda: LatencyModel(prefill={"instruct": math.nan}),
        lambda: LatencyModel({"instruct": "0.1"}),
        lambda: LatencyModel(weight=0),
        lambda: LatencyModel.from_dict({"per_token": {}}),
        lambda: LatencyModel.from_dict({"per_token": [], "prefill": {}}),
        lambda: LatencyModel().expected("instruct", math.nan),
        lambda: LatencyModel().expected("instruct", -1),
        lambda: LatencyModel().observe("instruct", -1, 0, 0),
        lambda: LatencyModel().observe("instruct", 1, math.inf, 0),
        lambda: LatencyModel().observe("fast", 1, 0, 0),
    ],
)
def test_wrong_latency_models_are_refused(make) -> None:
    with pytest.raises(ValueError, match=r"must be|expected|unknown mode|latency model has"):
        make()


def test_latency_loses_nothing_between_threads() -> None:
    latency = LatencyModel({"instruct": 0.0}, {"instruct": 0.0}, weight=0.01, clock=lambda: 0.0)
    threads = [
        threading.Thread(target=lambda: [latency.observe("instruct", 1, 1.0, 1.0) for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert latency.to_dict()["prefill"]["instruct"] == pytest.approx(1 - 0.99**2000)


def test_what_must_be_read_first_counts_by_the_observed_latency() -> None:
    latency = LatencyModel({"instruct": 0.01, "thinking": 0.01}, {"instruct": 0.1, "thinking": 0.1}, clock=lambda: 0.0)
    assert latency.expected("thinking", 10, uncached_tokens=500) == latency.expected(
        "thinking", 10
    )  # reading was not observed yet
    for mode in ("instruct", "thinking"):
        latency.observe(mode, 10, prefill_seconds=2.0, decode_seconds=0.1, uncached_tokens=1000)
    assert latency.expected("thinking", 10, uncached_tokens=500) == pytest.approx(1.0 + 0.1)
    stay, switch = (
        Policy(price=0.1).decide(
            predict(0.4, 0.6), latency, uncached_tokens={"instruct": 10, "thinking": uncached_tokens}
        )
        for uncached_tokens in (10, 2000)
    )
    assert (stay.mode, switch.mode) == ("thinking", "instruct")
    assert switch.seconds_thinking - stay.seconds_thinking == pytest.approx(0.002 * 1990)
    with pytest.raises(ValueError, match="tokens"):
        latency.observe("instruct", 1, 0.1, 0.1, uncached_tokens=-1)
