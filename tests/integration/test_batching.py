"""Answers written together: the same as alone, in any company; seeds, stops, cancelling and errors are one's own."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import media
from tests.serving import until
from vlroute import Answer, Router
from vlroute.engine.local.reasoning import StopText
from vlroute.engine.local.scheduler import RunningBatch, Scheduler
from vlroute.pocket import Task, draw_task
from vlroute.types import MODES, Mode

TASKS = ("ocr", "count", "math", "gui", "hop", "video")
TASKS = [
    draw_task(random.Random(seed), TASKS[seed % 6], ("easy", "hard")[seed % 2], ("en", "zh")[seed // 6 % 2])
    for seed in range(24)
]
HOT = {"do_sample": True, "temperature": 9.0, "top_k": 0, "top_p": 1.0}


@pytest.fixture(scope="module")
def together() -> Iterator[Router]:
    router = Router.from_pretrained(max_num_seqs=5).load()
    yield router
    router.close()


#: Goes on for long: at this heat the end token is as rare as any.
LONG = {**HOT, "temperature": 1e3, "max_new_tokens": 2000}


def ask(router: Router, task: Task, mode: Mode | None, **settings: Any) -> Answer:
    return router.ask(task.prompt, **media(task), mode=mode, **settings)


def crowd(router: Router, *asked: Any, **settings: Any) -> list[Answer]:
    """All of TASKS at once, in both modes."""
    jobs = [(task, mode) for task in TASKS for mode in MODES]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda job: ask(router, *job, **settings), jobs))


def said(answer: Answer) -> tuple[str, str, str, int]:
    return answer.text, answer.thinking, answer.finish_reason, answer.usage.completion_tokens


def test_pictures_and_prompts_are_read_one_at_a_time(together: Router) -> None:
    """Many threads at it would take Python's interpreter from each other: see `PriorityLock`."""
    reading, most, read = list[int](), 0, 0

    def reads(kwargs: dict[str, Any]) -> bool:
        return "inputs_embeds" not in kwargs or kwargs["inputs_embeds"].shape[1] > 1  # else it writes

    def begins(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        nonlocal most, read
        if reads(kwargs):
            reading.append(1)
            most, read = max(most, len(reading)), read + 1

    def ends(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if reads(kwargs):
            reading.pop()

    parts = {part for mode in MODES for body in [together.pair[mode].model.model]
             for part in (body.visual, body.language_model)}  # fmt: skip
    hooks = [part.register_forward_pre_hook(begins, with_kwargs=True) for part in parts]
    hooks += [part.register_forward_hook(ends, with_kwargs=True) for part in parts]
    together.cache.clear()
    try:
        crowd(together, max_new_tokens=3)
    finally:
        for hook in hooks:
            hook.remove()
    assert most == 1
    assert read > 2 * len(TASKS)


def test_who_left_before_its_turn_is_not_read_for(together: Router) -> None:
    cancel, answers = threading.Event(), list[Answer]()
    lock = together.pair.instruct.lock
    with lock:
        thread = threading.Thread(target=lambda: answers.append(together.ask("Hello?", mode="instruct", cancel=cancel)))
        thread.start()
        until(lambda: lock._ahead)
        cancel.set()
    thread.join(10)
    assert (answers[0].finish_reason, answers[0].usage.completion_tokens) == ("cancelled", 0)
    assert together.ask("Hello?", mode="instruct").finish_reason != "cancelled"


@pytest.mark.parametrize("settings", [{}, {**HOT, "seed": 7}, {"max_new_tokens": 5}, {"thinking_budget": 9}])
def test_the_same_as_alone(router: Router, together: Router, settings: dict[str, Any]) -> None:
    alone = [said(ask(router, task, mode, **settings)) for task in TASKS for mode in MODES]
    assert [said(answer) for answer in crowd(together, **settings)] == alone


def test_rows_are_really_shared(together: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    step = RunningBatch.step

    def counting(batch: RunningBatch) -> Any:
        widths.append(len(batch.seqs))
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", counting)
    crowd(together)
    assert max(widths) == 5  # never above what was asked for
    assert sum(width > 1 for width in widths) > len(widths) / 2


def test_turns_of_conversations_written_together(router: Router, together: Router) -> None:
    def talk(one: Router, seed: int) -> list[Any]:
        chat, turns = one.chat(), []
        for n, task in enumerate(TASKS[seed : seed + 3]):
            answer = chat.send(task.prompt, **media(task), mode=MODES[(seed + n) % 2])
            turns.append(said(answer))
        return turns

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: talk(together, seed), range(16))) == [talk(router, s) for s in range(16)]


def test_a_seed_fixes_the_draws(router: Router) -> None:
    def draws(seed: int) -> str:
        return ask(router, TASKS[2], "thinking", **HOT, seed=seed).thinking

    assert draws(1) == draws(1)
    assert len({draws(seed) for seed in range(6)}) > 1


def test_seeded_greedy_is_greedy(router: Router) -> None:
    assert said(ask(router, TASKS[2], "thinking", seed=1)) == said(ask(router, TASKS[2], "thinking"))


def test_frequency_penalty_counts(router: Router) -> None:
    plain, damped = (ask(router, TASKS[1], "thinking", frequency_penalty=p, max_new_tokens=60) for p in (0.0, 50.0))

    def most(answer: Answer) -> int:
        ids = router.pair.thinking.tokenizer(answer.thinking, add_special_tokens=False)["input_ids"]
        return max(map(ids.count, ids))

    assert most(damped) < most(plain)


@pytest.mark.parametrize("where", ["alone", "together"])
def test_a_stop_string_ends_the_answer_and_no_thought(router: Router, together: Router, where: str) -> None:
    one = router if where == "alone" else together
    answers = [(task, ask(router, task, "thinking")) for task in TASKS]
    task, whole = next((t, a) for t, a in answers if len(set(a.text)) == 2 and a.text[0] in a.thinking)
    assert whole.text[1] in whole.thinking
    stopped = ask(one, task, "thinking", stop=["never", whole.text[1]])
    assert stopped.text == whole.text.partition(whole.text[1])[0]
    assert stopped.thinking == whole.thinking
    assert stopped.finish_reason == "stop"
    assert ask(one, task, "thinking", stop=[whole.text + "!"]).text == whole.text  # held back, then handed out


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1), st.randoms())
def test_stop_text_however_it_is_cut(text: str, stops: list[str], chance: random.Random) -> None:
    stop, said, left = StopText(stops), "", text
    while left:
        size = chance.randint(1, 4)
        said, left = said + stop.push(left[:size]), left[size:]
    said += stop.flush()
    # the first stop string that is complete ends the text
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(one) for one in stops)]
    if ends:
        begun = min(text.find(one) for one in stops if text.find(one) >= 0)
        assert text.startswith(said)
        assert len(said) <= ends[0]
        assert len(said) >= begun or begun > ends[0]
        assert stop.found
    else:
        assert said == text
        assert not stop.found


@pytest.mark.parametrize("bad", [[""], "now", [3]])
def test_bad_stops_are_refused(router: Router, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="stop"):
        ask(router, TASKS[0], "instruct", stop=bad)


def test_cancel_ends_one_row_within_a_token(together: Router) -> None:
    cancel, pieces = threading.Event(), list[str]()

    def stop_after_three(event: Any) -> None:
        pieces.append(event)
        if len(pieces) == 4:  # the decision and three pieces
            cancel.set()

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(ask, together, task, "thinking") for task in TASKS[2:5]]
        for event in together.stream(TASKS[4].prompt, **media(TASKS[4]), mode="thinking", cancel=cancel, **LONG):
            stop_after_three(event)
        assert len(pieces) < 300
        assert event.answer.finish_reason == "cancelled"
        assert all(other.result().finish_reason == "stop" for other in others)


def test_cancelled_while_waiting_for_a_row(router: Router) -> None:
    scheduler = Scheduler(1)
    one = Router.from_pretrained(max_num_seqs=2).load()
    object.__setattr__(one._local, "scheduler", scheduler)
    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(ask, one, TASKS[2], "thinking", **LONG)
        while not scheduler._workers:
            time.sleep(0.001)
        cancel = threading.Event()
        waiting = pool.submit(ask, one, TASKS[0], "thinking", cancel=cancel)
        while not scheduler.waiting()["thinking"]:
            assert not writing.done()
            time.sleep(0.001)
        cancel.set()
        assert waiting.result(5).finish_reason == "cancelled"
        assert one.prefixes.stats().items == 0  # nothing was read, nothing is kept
        assert ask(one, TASKS[0], "instruct").finish_reason == "stop"  # the other mode waits for nobody
        one.close()
        assert writing.result(5).finish_reason in ("cancelled", "stop", "length")
    with pytest.raises(RuntimeError, match="closed"):
        ask(one, TASKS[0], "thinking")


def test_a_closed_router_answers_in_neither_mode() -> None:
    one = Router.from_pretrained(max_num_seqs=2).load()
    one.close()
    for mode in MODES:
        with pytest.raises(RuntimeError, match="closed"):
            ask(one, TASKS[0], mode)


def test_an_error_in_a_step_reaches_all_its_rows_and_no_later_one(
    together: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: RunningBatch) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "step", fail)
        with pytest.raises(MemoryError, match="no room"):
            ask(together, TASKS[0], "thinking")
    assert ask(together, TASKS[0], "thinking").finish_reason == "stop"


def test_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Scheduler(0)
