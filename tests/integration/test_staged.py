"""Requests that are decided at later stages: what is answered, what is reused, and what the decision records."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import PICTURES, task
from tests.recording import model_calls
from tests.stages import certain
from tests.tiny import write_tiny
from vlroute import Answer, Policy, Router, Target
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.files import shipped
from vlroute.types import Decided, Event, Finished, Stage

pytestmark = pytest.mark.float32
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 60}
ALL: tuple[Stage, ...] = ("prompt", "prefill", "answer")


@pytest.fixture
def made(router: Router) -> Iterator[Any]:
    """Routers over the loaded pocket pair with other artifacts."""
    before = router.selector
    fingerprint, width = router.identity.fingerprint, router.pair.instruct.model.config.text_config.hidden_size

    def make(policy: Any = None, **p: tuple[float, float]) -> Router:
        from vlroute.decision.selector import ModeSelector

        own = certain(ComplexityClassifier.load(shipped("pocket/router")), fingerprint or "", width, **p)
        router.selector = ModeSelector(own, policy or Policy(price=0.001, stages=ALL), probe=before.probe,
                                       available=("prefill", "answer"))  # fmt: skip
        router.selector.check_evidence(fingerprint)
        router.forget()
        return router

    yield make
    router.selector = before
    router.forget()


HOP = task("hop")
ASKED: dict[str, Any] = {"prompt": HOP.prompt, "images": HOP.frames[0], **GREEDY}


def events_of(router: Router, **settings: Any) -> tuple[list[Event], Answer]:
    events = [*router.stream(**{**ASKED, **settings})]
    last = events[-1]
    assert isinstance(last, Finished)
    return events, last.answer


INSTRUCT, THINKING = (0.99, 0.01), (0.01, 0.99)


@pytest.mark.parametrize(
    ("p", "stage", "mode"),
    [
        ({"prefill": INSTRUCT}, "prefill", "instruct"), ({"prefill": THINKING}, "prefill", "thinking"),
        ({"answer": INSTRUCT}, "answer", "instruct"), ({"answer": THINKING}, "answer", "thinking"),
        ({"prefill": INSTRUCT, "both": THINKING}, "answer", "thinking"),
        ({"prefill": THINKING, "both": INSTRUCT}, "answer", "instruct"),
    ],
)  # fmt: skip
def test_the_answer_is_that_of_the_chosen_mode(made: Any, p: Any, stage: Stage, mode: Any) -> None:
    router = made(**p)
    forced = {each: router.ask(**ASKED, mode=each) for each in ("instruct", "thinking")}
    router.forget()
    with model_calls() as calls:
        events, answer = events_of(router)
    decision = answer.decision
    assert (decision.stage, decision.mode, decision.forced, decision.later_stages) == (stage, mode, False, ())
    assert (answer.text, answer.thinking) == (forced[mode].text, forced[mode].thinking)
    # one decision, before any text; the joined pieces are the answer
    decided = [event for event in events if isinstance(event, Decided)]
    assert decided == [events[0]]
    assert decided[0].decision == decision
    assert "".join(e.text for e in events if type(e).__name__ == "AnswerDelta") == answer.text
    assert "".join(e.text for e in events if type(e).__name__ == "ThinkingDelta") == answer.thinking
    # the tower runs once, and the tokens are those of the answer
    assert calls.towers == [1]
    assert answer.usage.completion_tokens == forced[mode].usage.completion_tokens
    assert answer.usage.encoded == 1
    # stages in order, with the seconds until each
    names = [one.stage for one in decision.stages]
    assert names == [one for one in ALL if one in names]
    assert names[-1] == stage
    seconds = [one.seconds for one in decision.stages]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert seconds[-1] < answer.timing.total
    timing = answer.timing
    if mode == "thinking":  # what Instruct did in vain has served the decision, and is not part of a record
        assert timing.decide >= seconds[-1] - seconds[0] - timing.vision - 0.005
    parts = timing.caption + timing.decide + timing.vision + timing.prefill + timing.decode
    assert parts <= timing.total


@pytest.mark.parametrize("ask", ["ask", "aask", "ask_many", "chat"])
def test_all_ways_of_asking_pass_the_stages(made: Any, ask: str) -> None:
    import asyncio

    router = made(answer=THINKING)
    if ask == "ask":
        answer = router.ask(**ASKED)
    elif ask == "aask":
        answer = asyncio.run(router.aask(**ASKED))
    elif ask == "ask_many":
        (answer,) = router.ask_many([ASKED])
    else:
        answer = router.chat().send(**ASKED)
    assert (answer.decision.stage, answer.decision.mode) == ("answer", "thinking")
    assert [one.stage for one in answer.decision.stages] == ["prompt", "answer"]


def test_a_decision_without_an_answer_names_the_stages_that_may_change_it(made: Any) -> None:
    router = made(prefill=INSTRUCT, both=INSTRUCT)
    decision = router.decide(HOP.prompt, HOP.frames[0])
    assert decision.stage == "prompt"
    assert decision.later_stages == ("prefill", "answer")
    assert decision.as_dict()["later_stages"] == ("prefill", "answer")
    assert router.decide(HOP.prompt, HOP.frames[0], mode="thinking").later_stages == ()


def test_a_forced_mode_passes_no_stage(made: Any) -> None:
    router = made(prefill=THINKING, both=THINKING)
    answer = router.ask(**ASKED, mode="instruct")
    assert (answer.decision.mode, answer.decision.stage, answer.decision.forced) == ("instruct", "prompt", True)


@pytest.mark.parametrize("policy", [Policy(price=0.001, stages=("prompt",)), Target(preset="fast", stages=("prompt",))])
def test_stages_that_the_policy_leaves_out_are_not_passed(made: Any, policy: Any) -> None:
    router = made(policy, prefill=THINKING, answer=THINKING, both=THINKING)
    assert router.ask(**ASKED).decision.stage == "prompt"


def test_by_default_the_recommended_stages_are_used(made: Any) -> None:
    router = made(Policy(price=0.001), answer=THINKING)
    assert router.ask(**ASKED).decision.stage == "prompt"
    own = router.selector.classifier
    own.stages = replace(own.stages, recommended=("prompt", "answer"))
    router.selector.use(own, router.selector.probe)
    assert router.ask(**ASKED).decision.stage == "answer"


def test_text_is_held_back_for_a_limited_time(made: Any) -> None:
    router = made(Policy(price=0.001, stages=ALL, decide_within=0.0), answer=INSTRUCT)
    long = {**GREEDY, "suppress_tokens": [2, 8], "max_new_tokens": 30}
    events, answer = events_of(router, **long)
    assert answer.decision.stage == "answer"
    kinds = [type(event).__name__ for event in events]
    assert kinds.count("AnswerDelta") > 5  # it was not held until its end
    _, other = events_of(made(Policy(price=0.001, stages=ALL, decide_within=60.0), answer=INSTRUCT), **long)
    assert other.text == answer.text
    assert other.decision.stages[-1].seconds > answer.decision.stages[-1].seconds


def test_a_request_that_is_cancelled_before_its_decision(made: Any) -> None:
    router = made(answer=THINKING)
    cancel = threading.Event()
    cancel.set()
    events, answer = events_of(router, cancel=cancel)
    assert (answer.finish_reason, answer.text) == ("cancelled", "")
    assert [type(event).__name__ for event in events] == ["Decided", "Finished"]


def test_evidence_of_other_checkpoints_is_refused(made: Any, router: Router, caplog: pytest.LogCaptureFixture) -> None:
    made(answer=THINKING)
    own = router.selector.classifier
    assert own is not None
    assert own.stages is not None
    own.stages = replace(own.stages, source=replace(own.stages.source, fingerprint="0" * 64))
    with caplog.at_level(logging.WARNING, "vlroute"):
        router.use(own)
    assert "evidence of other checkpoints" in caplog.text
    assert router.ask(**ASKED).decision.stage == "prompt"


def test_targets_hold_with_stages(made: Any, router: Router) -> None:
    made(Target(preset="balanced", stages=ALL), answer=THINKING)
    point = router.operating_point()
    assert point.price == router.selector.policy.price
    curve = router.selector.curve()
    assert type(curve).__name__ == "StagedCurve"
    limit = float(np.median(curve.seconds))
    within = router.operating_point(Target(max_mean_seconds=limit, stages=ALL))
    assert within.mean_seconds <= limit + 1e-9


def test_another_artifact_may_come_during_a_request(made: Any, router: Router) -> None:
    made(prefill=INSTRUCT, both=THINKING)
    old = router.selector.classifier
    assert old is not None
    assert old.stages is not None
    width = old.stages.source.width
    artifact = ComplexityClassifier.load(shipped("pocket/router"))
    new = certain(artifact, old.stages.source.fingerprint, width, prefill=INSTRUCT)
    predict = old.predict

    def replaced(*request: Any) -> Any:
        router.use(new)
        return predict(*request)

    old.predict = replaced  # type: ignore[method-assign]
    assert router.ask(**ASKED).decision.stage == "answer"  # with the artifact with which it began
    for _ in range(2):
        assert [one.stage for one in router.ask(**ASKED).decision.stages] == ["prompt", "prefill"]


def test_a_staged_answer_is_the_same_after_saving_its_chat(made: Any, tmp_path: Path) -> None:
    router = made(answer=THINKING)
    chat = router.chat()
    chat.send(**ASKED)
    assert router.resume(chat.save(tmp_path / "chat")).history == chat.history


def test_a_target_brings_its_own_stages(made: Any, router: Router) -> None:
    made(Policy(price=0.001, stages=("prompt",)), answer=THINKING)
    with_stages, without = (
        router.operating_point(Target(preset="balanced", stages=stages)) for stages in (ALL, ("prompt",))
    )
    assert with_stages.accuracy != without.accuracy


def test_stages_that_cannot_be_used_are_named(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "vlroute"):
        made(Policy(stages=ALL), answer=THINKING)
        assert "the stage prefill is not used: the router artifact was not trained for it" in caplog.text
        artifact = shipped("pocket/router")
        with Router.from_endpoints(("http://127.0.0.1:9/v1", "a"), ("http://127.0.0.1:9/v1", "b"),
                                   router=artifact, policy=Policy(stages=ALL)) as remote:  # fmt: skip
            assert remote.decide("How many circles?", caption="circles").later_stages in ((), ("answer",))
    assert "the stage prefill is not used: this engine gives no evidence for it" in caplog.text
    assert "the stage answer is not used" not in caplog.text


def test_many_requests_at_once_are_each_decided_alone(made: Any) -> None:
    router = made(prefill=INSTRUCT, both=THINKING)
    asked = [{"prompt": f"How many {what}?", "images": PICTURES[i % 4], **GREEDY} for i, what in enumerate(
        ["circles", "squares", "letters", "numbers", "buttons", "lamps", "arrows", "dots"])]  # fmt: skip
    together = router.ask_many(asked)
    router.forget()
    alone = [router.ask(**one) for one in asked]
    for one, other in zip(together, alone, strict=True):
        assert (one.text, one.thinking, one.decision.stage) == (other.text, other.thinking, other.decision.stage)


def test_on_a_hybrid_thinking_continues_the_prompt_that_instruct_has_read(tmp_path: Path) -> None:
    with Router.from_pretrained(write_tiny("qwen3_5", tmp_path), policy=Policy(price=0.001, stages=ALL)) as router:
        router.load()
        width = router.pair.instruct.model.config.text_config.hidden_size
        own = certain(
            ComplexityClassifier.load(shipped("pocket/router")),
            router.identity.fingerprint or "",
            width,
            prefill=THINKING,
        )
        own.card.pop("model", None)
        router.use(own)
        prompt = "Explain each step of this drawing. " * 20
        answer = router.ask(prompt, PICTURES[0], caption="a drawing", **GREEDY)
        assert (answer.decision.mode, answer.decision.stage) == ("thinking", "prefill")
        assert answer.usage.prompt_tokens is not None
        assert 0 < answer.usage.prompt_tokens - answer.usage.cached_tokens < 12  # the marker of the mode only


def test_without_later_stages_no_weights_are_read_to_name_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlroute.lazy_model.identify", lambda *_: pytest.fail("the weights were read"))
    pair = [shipped(f"pocket/{mode}") for mode in ("instruct", "thinking")]
    assert Router(*pair).decide("How many circles?").stage == "prompt"
