"""Answers written together: the same as alone, in any company; seeds, stops, cancelling and errors are one's own."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import PICTURES, forget, media
from tests.recording import held, model_calls
from tests.serving import until
from vlroute import Answer, Router
from vlroute.engine.local import scheduler
from vlroute.engine.local.engine import LocalEngine
from vlroute.engine.local.forward import Decoder
from vlroute.engine.text import StopText
from vlroute.inputs.messages import parse
from vlroute.pocket import Task, draw_task
from vlroute.types import MODES, Mode

pytestmark = pytest.mark.float32
KINDS = ("ocr", "count", "math", "gui", "hop", "video")
TASKS = [
    draw_task(random.Random(seed), KINDS[seed % 6], ("easy", "hard")[seed % 2], ("en", "zh")[seed // 6 % 2])
    for seed in range(24)
]
#: Number of requests of the comparison of `ask`, `ask_many` and `aask`.
REQUESTS = int(os.environ.get("VLROUTE_REQUESTS", "24"))
HOT = {"do_sample": True, "temperature": 9.0, "top_k": 0, "top_p": 1.0}
#: Warm enough to draw other tokens than the best ones. Where the last bits of two scores decide, as at a high
#: temperature among hundreds of tokens, a batch may draw another token than a single answer.
WARM = {"do_sample": True, "temperature": 1.0, "top_k": 20, "top_p": 0.95, "max_new_tokens": 40}


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


def test_one_thread_runs_the_models_and_reads_prompts_together(together: Router) -> None:
    """Concurrent threads would contend for the GIL, and each would pay for a forward pass of its own."""
    forget(together)
    with model_calls() as calls:
        crowd(together, max_new_tokens=3)
    assert len(calls.threads) == 1
    assert sum(calls.towers) == len({digest for task in TASKS for digest in digests(task)})
    assert len(calls.towers) < sum(calls.towers)
    assert sum(map(len, calls.prompts)) >= 2 * len(TASKS)
    assert max(map(len, calls.prompts)) > 1


def digests(task: Task) -> list[str]:
    conversation = parse(task.prompt, **media(task))
    return [item.digest for item in (*conversation.pictures, *conversation.videos)]


def test_an_answer_cancelled_before_it_began_is_not_read(together: Router) -> None:
    cancel, answers = threading.Event(), list[Answer]()
    with held(together._local) as release, model_calls() as calls:
        thread = threading.Thread(target=lambda: answers.append(together.ask("Hello?", mode="instruct", cancel=cancel)))
        thread.start()
        until(lambda: not together.scheduler._new.empty())
        cancel.set()
        release.set()
        thread.join(10)
    assert (answers[0].finish_reason, answers[0].usage.completion_tokens) == ("cancelled", 0)
    assert not calls.prompts
    assert together.ask("Hello?", mode="instruct").finish_reason != "cancelled"


@pytest.mark.parametrize("settings", [{}, {**WARM, "seed": 7}, {"max_new_tokens": 5}, {"thinking_budget": 9}])
def test_the_same_as_alone(router: Router, together: Router, settings: dict[str, Any]) -> None:
    alone = [said(ask(router, task, mode, **settings)) for task in TASKS for mode in MODES]
    assert [said(answer) for answer in crowd(together, **settings)] == alone


def test_every_way_to_ask_gives_the_same_answers(router: Router, together: Router) -> None:
    """`ask`, `ask_many` and `aask`, in both modes, greedy and with a seed of each request's own."""
    settings = [{"do_sample": False}, WARM]
    requests: list[dict[str, Any]] = []
    for i in range(REQUESTS):
        task = draw_task(random.Random(i), KINDS[i % 6], ("easy", "hard")[i % 2], ("en", "zh")[i // 6 % 2])
        requests.append({"prompt": task.prompt, **media(task), "mode": MODES[i // 2 % 2], "seed": i, **settings[i % 2]})

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(together.aask(**request) for request in requests))

    alone = [said(router.ask(**request)) for request in requests]
    assert [said(answer) for answer in together.ask_many(requests)] == alone
    assert [said(answer) for answer in asyncio.run(all_at_once())] == alone


def test_decode_steps_are_really_shared(together: Router) -> None:
    with model_calls() as calls:
        crowd(together)
    assert max(calls.steps) == 5  # never above what was asked for
    assert sum(rows > 1 for rows in calls.steps) > len(calls.steps) / 2


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
        return ask(router, TASKS[2], "thinking", **HOT, seed=seed, max_new_tokens=40).thinking

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
        assert stop.found is not None
        assert text[len(said) :].startswith(stop.found)
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


def test_cancelled_while_waiting_for_a_slot() -> None:
    one = Router.from_pretrained(max_num_seqs=1).load()
    scheduler = one.scheduler
    assert scheduler is not None
    with ThreadPoolExecutor(2) as pool, model_calls() as calls:
        writing = pool.submit(ask, one, TASKS[2], "thinking", **LONG)
        until(lambda: calls.prompts)
        cancel = threading.Event()
        waiting = pool.submit(ask, one, TASKS[0], "thinking", cancel=cancel)
        until(lambda: scheduler.waiting()["thinking"])
        assert not writing.done()
        cancel.set()
        assert waiting.result(5).finish_reason == "cancelled"
        assert len(calls.prompts) == 1  # of the first answer
        assert ask(one, TASKS[0], "instruct").finish_reason == "stop"  # the other mode has slots of its own
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


@pytest.mark.parametrize("how", ["ask", "ask_many", "aask"])
def test_closing_cancels_answers_whatever_they_wait_for(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture is encoded for a caption, one for an answer, one answer is generated; three threads close at once."""
    begun, go_on, real = threading.Event(), threading.Event(), scheduler.encode

    def encode(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return real(*args)

    asking: list[Any] = []
    request_of = LocalEngine.request
    monkeypatch.setattr(LocalEngine, "request", lambda *args: asking.append(args) or request_of(*args))
    monkeypatch.setattr(scheduler, "encode", encode)
    one = Router.from_pretrained().load()
    requests: list[dict[str, Any]] = [
        {"prompt": "Read it.", "images": PICTURES[0], "mode": "thinking"},
        {"prompt": "Read it.", "images": PICTURES[1]},
        {"prompt": "Hello?", "mode": "instruct", **LONG, "max_new_tokens": 100_000, "eos_token_id": -1},
    ]

    async def together() -> list[Answer]:
        return await asyncio.gather(*(one.aask(**request) for request in requests))

    with ThreadPoolExecutor(8) as pool:
        if how == "ask":
            asked = pool.map(lambda request: one.ask(**request), requests)
        else:
            asked = pool.submit(one.ask_many, requests) if how == "ask_many" else pool.submit(asyncio.run, together())
        assert begun.wait(20)
        until(lambda: len(asking) == len(requests))
        closing = [pool.submit(one.close) for _ in range(3)]
        until(lambda: one.closed)
        go_on.set()
        answers = [*asked] if how == "ask" else asked.result(20)
        for each in closing:
            each.result(20)
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 3
    for answer in answers[:2]:
        assert (answer.text, answer.thinking, answer.usage.completion_tokens) == ("", "", 0)


def test_an_error_in_a_step_reaches_all_its_answers_and_no_later_one(
    together: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(decoder: Decoder, *_: Any) -> Any:
        raise RuntimeError("a broken step")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", fail)
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, together, task, "thinking") for task in TASKS[:3]]
            for one in asked:
                with pytest.raises(RuntimeError, match="a broken step"):
                    one.result(20)
    assert ask(together, TASKS[0], "thinking").finish_reason == "stop"


def test_at_least_one_answer_at_a_time(router: Router) -> None:
    with pytest.raises(ValueError, match="from 1 to 1024, not 0"):
        LocalEngine(router.pair, max_num_seqs=0)
