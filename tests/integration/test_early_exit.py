"""Trials of the answer during a thought: they change nothing but where the thought ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import torch

from tests.conftest import forget, media, task
from tests.forcing import STRONG, biased, end_id, token_ids
from tests.serving import until
from tests.tiny import write_tiny
from vlroute import Answer, Endpoint, Router
from vlroute.engine.local import scheduler
from vlroute.engine.local.early_exit import EVERY, MAX_TRIED, EarlyExit
from vlroute.engine.local.reasoning import CLOSING, OutputControl
from vlroute.engine.local.scheduler import Scheduler
from vlroute.errors import SettingsError
from vlroute.pocket import TASKS
from vlroute.types import AnswerDelta, Finished, ThinkingDelta

pytestmark = pytest.mark.float32
SOME = [task(kind, level) for kind in TASKS for level in ("easy", "hard")]
#: Each trial runs to its end. The answers of random weights are hardly ever equal.
ALWAYS_SURE = 1e-30
LONGEST = task("count", "hard")
LONG = {"do_sample": False, "max_new_tokens": 120, "answer_reserve": 0, "eos_token_id": -1, "close_loops": False}


def think(router: Router, one: Any, **settings: Any) -> Answer:
    return router.ask(one.prompt, **media(one), mode="thinking", do_sample=False, **settings)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    with Router.from_pretrained(write_tiny("qwen3_5", tmp_path_factory.mktemp("hybrid"))).load() as router:
        yield router


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each trial that begins: number of reasoning tokens before it."""
    begun, begin = list[int](), EarlyExit.begin

    def counted(exit: EarlyExit, control: OutputControl, constraint: Any) -> None:
        begun.append(control.count)
        begin(exit, control, constraint)

    monkeypatch.setattr(EarlyExit, "begin", counted)
    return begun


@pytest.mark.parametrize("confidence", [0.2, 0.9, 0.999])
def test_only_the_end_of_the_thought_changes(router: Router, confidence: float, trials: list[int]) -> None:
    """The answer is that of the model for a thought that was closed at the same place."""
    ended = 0
    for one in SOME:
        plain, ours = think(router, one), think(router, one, early_exit=confidence)
        if ours.closed is None:
            assert (ours.thinking, ours.text) == (plain.thinking, plain.text)
            assert ours.usage.completion_tokens == plain.usage.completion_tokens
            continue
        ended += 1
        assert ours.closed == "early"
        assert plain.thinking.startswith(ours.thinking)
        closing = len(token_ids(router, CLOSING))
        budgets = [ours.usage.thinking_tokens - n for n in range(closing + 1)]
        closed = [think(router, one, thinking_budget=budget) for budget in budgets]
        assert (ours.thinking, ours.text) in [(other.thinking, other.text) for other in closed]
    assert trials
    assert ended or confidence > 0.2


def test_a_hybrid_goes_on_as_without_trials(hybrid: Router, trials: list[int]) -> None:
    """The recurrent states after a trial are those before it."""
    for text in ("How many?", "What is in the picture?"):
        plain = hybrid.ask(text, mode="thinking", **LONG)
        trials.clear()
        ours = hybrid.ask(text, mode="thinking", early_exit=ALWAYS_SURE, **LONG)
        assert (ours.thinking, ours.text) == (plain.thinking, plain.text)
        assert ours.usage.completion_tokens == plain.usage.completion_tokens
        assert len(trials) > 2


def test_the_distance_of_trials_grows(hybrid: Router, trials: list[int]) -> None:
    hybrid.ask("How many?", mode="thinking", early_exit=1.0, **LONG | {"max_new_tokens": 400})
    distances = [after - before for before, after in pairwise(trials)]
    assert trials[0] == EVERY == distances[0]
    assert distances == sorted(distances)
    assert distances[-1] > 4 * EVERY


@pytest.mark.parametrize("which", ["pair", "hybrid"])
def test_trials_in_a_batch(which: str, router: Router, hybrid: Router, trials: list[int]) -> None:
    """Each answer is that which it would be alone, beside answers without trials and of Instruct."""
    one = router if which == "pair" else hybrid
    asked: list[dict[str, Any]] = [
        {"prompt": each.prompt, **media(each), "mode": mode, "do_sample": False, "max_new_tokens": 150,
         **({"early_exit": 0.5} if mode == "thinking" and i % 3 else {})}
        for i, each in enumerate(SOME) for mode in ("thinking", "instruct")
    ]  # fmt: skip
    alone = [one.ask(**each) for each in asked]
    forget(one)
    assert trials
    together = one.ask_many(asked)
    assert [(a.text, a.thinking, a.closed) for a in together] == [(a.text, a.thinking, a.closed) for a in alone]


def test_a_seeded_thought_draws_the_same_tokens(router: Router, trials: list[int]) -> None:
    for i, one in enumerate(SOME):
        plain, ours = (
            router.ask(one.prompt, **media(one), mode="thinking", seed=i, **settings)
            for settings in ({}, {"early_exit": 0.999})
        )
        assert plain.thinking.startswith(ours.thinking)
        if ours.closed is None:
            assert ours.text == plain.text
    assert trials


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"])
def test_an_interrupted_trial_is_made_again(
    family: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, trials: list[int]
) -> None:
    with Router.from_pretrained(write_tiny(family, tmp_path)).load() as router:
        scheduler, preempt, interrupted = router._local.scheduler, Scheduler._preempt, list[bool]()

        def counted(scheduler: Scheduler) -> None:
            before = [one for lane in scheduler._lanes.values() for one in lane.running if one.exit.running]
            preempt(scheduler)
            interrupted.append(any(not one.exit.running for one in before))

        asked = [
            {"prompt": f"How many {i} are there?", "mode": mode, **LONG,
             **({"early_exit": ALWAYS_SURE} if mode == "thinking" else {})}
            for i in range(5) for mode in ("thinking", "instruct")
        ]  # fmt: skip
        alone = [router.ask(**one) for one in asked]
        lane = next(iter(scheduler._lanes.values()))
        monkeypatch.setattr(Scheduler, "_preempt", counted)
        monkeypatch.setattr(scheduler.memory, "kv", lane.slots.bytes_of(4, 128) + lane.slots.bytes_of(1, 128))
        trials.clear()
        with ThreadPoolExecutor(len(asked)) as pool:
            together = [*pool.map(lambda one: router.ask(**one), asked)]
        assert interrupted
        assert [(one.text, one.thinking) for one in together] == [(one.text, one.thinking) for one in alone]


@pytest.mark.parametrize("which", ["pair", "hybrid"])
def test_the_next_turn_reads_no_token_of_a_trial(which: str, router: Router, hybrid: Router) -> None:
    """Also after an answer that was cancelled during a trial."""
    one = router if which == "pair" else hybrid
    first = {"prompt": LONGEST.prompt, **media(LONGEST), "mode": "thinking", **LONG, "early_exit": ALWAYS_SURE}
    began, cancel, push = threading.Event(), threading.Event(), EarlyExit.push

    def slow(exit: EarlyExit, *args: Any) -> bool:
        began.set()
        until(cancel.is_set)
        return push(exit, *args)

    forget(one)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(EarlyExit, "push", slow)
        asking = pool.submit(one.ask, **first, cancel=cancel)
        assert began.wait(20)
        cancel.set()
        answer = asking.result(20)
    assert answer.finish_reason == "cancelled"
    history = [
        {
            "role": "user",
            "content": [{"type": "image", "image": LONGEST.frames[0]}, {"type": "text", "text": LONGEST.prompt}],
        },
        {"role": "assistant", "content": one.ask(**first).text},
    ]
    again = {"prompt": "And now?", "history": history, "mode": "thinking", "do_sample": False, "max_new_tokens": 20}
    behind = one.ask(**again)
    forget(one)
    fresh = one.ask(**again)
    assert (behind.text, behind.thinking) == (fresh.text, fresh.thinking)


@pytest.mark.parametrize("where", ["most_probable", "push"])
def test_an_error_in_a_trial_changes_no_answer(router: Router, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor those of other requests in the same batch."""
    asked = [{"prompt": one.prompt, **media(one), "mode": "thinking", "do_sample": False} for one in SOME]
    plain = router.ask_many(asked)
    failed = list[int]()

    def failing(*_: Any) -> Any:
        failed.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(*((scheduler, where) if where == "most_probable" else (EarlyExit, where)), failing)
    ours = router.ask_many([{**one, "early_exit": 0.5} for one in asked])
    assert failed
    assert [(one.text, one.thinking, one.closed) for one in ours] == [(one.text, one.thinking, None) for one in plain]


def test_without_room_for_a_trial_there_is_none(
    tmp_path: Any, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer fits into the memory; a trial near its end would not."""
    with Router.from_pretrained(write_tiny("qwen3_vl", tmp_path)).load() as router:
        ask: dict[str, Any] = {"prompt": "How many?", "mode": "thinking", **LONG, "thinking_budget": 98}
        stop = router.ask(**{**ask, "max_new_tokens": 108}).text
        ask |= {"max_new_tokens": 1000, "stop": [stop]}
        plain = router.ask(**ask)
        assert 128 - (plain.usage.prompt_tokens or 0) < 96 + MAX_TRIED
        assert (plain.usage.prompt_tokens or 0) + plain.usage.completion_tokens < 128
        lanes = router._local.scheduler._lanes.values()
        monkeypatch.setattr(router._local.scheduler.memory, "kv", sum(one.slots.bytes_of(1, 128) for one in lanes))
        ours = router.ask(**ask, early_exit=ALWAYS_SURE)
        assert (ours.text, ours.thinking) == (plain.text, plain.thinking)
        assert trials


def test_tokens_of_trials_are_not_streamed(router: Router) -> None:
    events = [*router.stream(LONGEST.prompt, **media(LONGEST), mode="thinking", do_sample=False, early_exit=0.2)]
    assert isinstance(events[-1], Finished)
    answer = events[-1].answer
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == answer.thinking
    assert "".join(event.text for event in events if isinstance(event, AnswerDelta)) == answer.text


def test_no_trial_exceeds_the_limit_of_tokens(router: Router, trials: list[int]) -> None:
    """With fewer tokens left than a trial may take, there is none."""
    ends = dict.fromkeys([*token_ids(router, "</think>"), end_id(router)], -STRONG)
    with biased(router, "thinking", ends):
        answer = think(router, SOME[0], early_exit=1.0, max_new_tokens=MAX_TRIED + EVERY + 10, close_loops=False)
    assert answer.usage.completion_tokens <= MAX_TRIED + EVERY + 10
    assert len(trials) <= 1


def test_instruct_makes_no_trial(router: Router, trials: list[int]) -> None:
    plain, ours = (
        router.ask(LONGEST.prompt, **media(LONGEST), mode="instruct", do_sample=False, **settings)
        for settings in ({}, {"early_exit": 0.5})
    )
    assert (plain.text, plain.usage.completion_tokens) == (ours.text, ours.usage.completion_tokens)
    assert not trials


@pytest.mark.parametrize("wrong", [0, -0.1, 1.1, "0.9", True, float("nan")])
def test_other_values_are_refused(router: Router, wrong: Any) -> None:
    with pytest.raises(SettingsError, match="early_exit"):
        think(router, SOME[0], early_exit=wrong)


def test_endpoints_do_not_take_it() -> None:
    with pytest.raises(SettingsError, match="endpoints do not take the setting early_exit"):
        Router.from_endpoints(Endpoint("http://127.0.0.1:9/v1", "x", family="qwen3_5"), early_exit=0.9)
