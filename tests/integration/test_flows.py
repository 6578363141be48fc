"""Flows of requests share the slots and the time of the scheduler, and no answer depends on it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import task
from tests.recording import model_calls
from tests.serving import until
from vlroute import Router
from vlroute.engine.local.engine import LocalEngine
from vlroute.engine.local.scheduler import Scheduler
from vlroute.engine.protocol import OnPiece, Reply
from vlroute.fair_share import Flow
from vlroute.inputs.messages import Conversation, parse
from vlroute.steps import Steps, run, start
from vlroute.types import MODES, Mode

GREEDY = {"do_sample": False, "max_new_tokens": 60}
ENDLESS = {"do_sample": False, "max_new_tokens": 4000, "eos_token_id": -1}
FLOWS = [Flow("heavy"), Flow("light"), Flow("double", 2.0)]
QUESTIONS = [parse(one.prompt, one.frames) for one in (task("math"), task("ocr"), task("gui"))]


def answering(
    engine: LocalEngine,
    flow: Flow,
    conversation: Conversation,
    mode: Mode = "instruct",
    settings: dict[str, Any] = GREEDY,
    on_piece: OnPiece | None = None,
    cancel: threading.Event | None = None,
) -> Steps[Reply]:
    with engine.request(conversation, flow.name, flow) as request:
        return (yield from request.answer(mode, settings, on_piece, cancel))


@pytest.fixture
def engine(router: Router) -> Iterator[LocalEngine]:
    made = LocalEngine(router.pair, max_num_seqs=4)
    yield made
    made.close()


def ask(pool: ThreadPoolExecutor, *args: Any) -> Future[Reply]:
    return start(answering(*args), pool)


def slots(engine: LocalEngine) -> list[int]:
    """The slots of each answer that runs, that of the light flow first."""
    running = [one for lane in engine.scheduler._lanes.values() for one in lane.running]
    return [one.slot for one in sorted(running, key=lambda one: one.request.flow.name != "light")]


def test_answers_of_several_flows_equal_single_ones(router: Router) -> None:
    alone = LocalEngine(router.pair)
    expected = {
        (index, mode): run(answering(alone, FLOWS[0], one, mode))
        for index, one in enumerate(QUESTIONS)
        for mode in MODES
    }
    alone.close()
    crowded = LocalEngine(router.pair, max_num_seqs=2)
    chance = random.Random(1)
    jobs = [(chance.choice([0, 0, 0, 1, 2]), index, mode) for index, mode in [*expected] * 3]
    with ThreadPoolExecutor(4) as pool:
        replies = [ask(pool, crowded, FLOWS[flow], QUESTIONS[index], mode) for flow, index, mode in jobs]
        for (_, index, mode), reply in zip(jobs, replies, strict=True):
            found = reply.result(60)
            assert (found.text, found.thinking) == (expected[index, mode].text, expected[index, mode].thinking)
    crowded.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_flow_takes_a_slot_from_one_with_more(engine: LocalEngine, mode: Mode) -> None:
    expected, cancel = run(answering(engine, FLOWS[1], QUESTIONS[0], mode)), threading.Event()
    settings = ENDLESS | {"max_new_tokens": 120}
    with ThreadPoolExecutor(4) as pool:
        heavy = [ask(pool, engine, FLOWS[0], one, mode, settings) for one in [*QUESTIONS, *QUESTIONS]]
        until(lambda: len(slots(engine)) == 4 and engine.scheduler.waiting()[mode] == 2)
        light = ask(pool, engine, FLOWS[1], QUESTIONS[0], mode, GREEDY, None, cancel)
        found = light.result(60)
        assert not any(one.done() for one in heavy)
        assert (found.text, found.thinking) == (expected.text, expected.thinking)
        replies = [one.result(60) for one in heavy]  # also the one that was interrupted
    for first, second in zip(replies[:3], replies[3:], strict=True):
        assert first.completion_tokens == 120
        assert (first.text, first.thinking) == (second.text, second.thinking)


def test_an_answer_beside_many_is_decoded_alone_in_some_steps(engine: LocalEngine) -> None:
    cancel, begun = threading.Event(), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        heavy = [ask(pool, engine, FLOWS[0], one, "instruct", ENDLESS, None, cancel) for one in QUESTIONS]
        until(lambda: len(slots(engine)) == 3)
        settings = ENDLESS | {"max_new_tokens": 40}
        light = ask(pool, engine, FLOWS[1], QUESTIONS[0], "instruct", settings, lambda *_: begun.set())
        assert begun.wait(30)
        with model_calls() as calls:
            light.result(60)
        assert calls.steps.count(1) >= 5  # its slot is the first one, so a step for it has one row
        assert max(calls.steps) == 4  # the others go on
        cancel.set()
        for one in heavy:
            one.result(30)


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch) -> list[Mode]:
    """The modes of the rounds that run while a round of the other mode pauses."""
    modes: list[Mode] = []
    original = Scheduler._round

    def record(self: Scheduler, lanes: Any) -> bool:
        if self._paused is not None:
            assert self._paused not in lanes
            modes.extend(lane.checkpoint.mode for lane in lanes)
        return original(self, lanes)

    monkeypatch.setattr(Scheduler, "_round", record)
    return modes


def test_a_round_pauses_for_the_other_mode(router: Router, nested: list[Mode]) -> None:
    engine, settings = LocalEngine(router.pair, max_num_seqs=16), ENDLESS | {"max_new_tokens": 300}
    expected = [run(answering(engine, FLOWS[0], one, "thinking", settings)) for one in QUESTIONS]
    short = [run(answering(engine, FLOWS[1], one, "instruct")) for one in QUESTIONS]
    assert not nested
    with ThreadPoolExecutor(8) as pool:
        heavy = [ask(pool, engine, FLOWS[0], one, "thinking", settings) for one in QUESTIONS * 4]
        until(lambda: len(slots(engine)) == 12)
        while not heavy[0].done():
            for one, wanted in zip(QUESTIONS, short, strict=True):
                assert run(answering(engine, FLOWS[1], one)).text == wanted.text
        for i, one in enumerate(heavy):
            reply, wanted = one.result(60), expected[i % len(expected)]
            assert (reply.thinking, reply.text) == (wanted.thinking, wanted.text)
    engine.close()
    assert nested.count("instruct") >= 10


def test_a_failure_while_a_round_pauses_ends_all_answers(
    router: Router, nested: list[Mode], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(router.pair, max_num_seqs=16)
    original = Scheduler._admit

    def fail(self: Scheduler, lane: Any) -> bool:
        if self._paused is not None:
            raise OSError("no reason")
        return original(self, lane)

    with ThreadPoolExecutor(8) as pool:
        heavy = [ask(pool, engine, FLOWS[0], one, "thinking", ENDLESS) for one in QUESTIONS * 4]
        until(lambda: len(slots(engine)) == 12)
        monkeypatch.setattr(Scheduler, "_admit", fail)
        light = list[Future[Reply]]()
        while not heavy[0].done():  # one of them comes during a step
            light.append(ask(pool, engine, FLOWS[1], QUESTIONS[0]))
            light[-1].exception(60)
        monkeypatch.undo()
        for one in [*heavy, light[-1]]:
            with pytest.raises(OSError, match="no reason"):
                one.result(60)
        assert run(answering(engine, FLOWS[1], QUESTIONS[0])).text  # the engine goes on
    engine.close()


def test_memory_is_short_while_a_round_pauses(
    router: Router, nested: list[Mode], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step is left for a round in which answers of either mode may be interrupted."""
    engine, settings, short = LocalEngine(router.pair, max_num_seqs=16), ENDLESS | {"max_new_tokens": 200}, list[int]()
    expected = [run(answering(engine, FLOWS[0], one, "thinking", settings)) for one in QUESTIONS]
    alone = run(answering(engine, FLOWS[1], QUESTIONS[0])).text
    decode, grow = Scheduler._decode, Scheduler._grow
    decoding = False

    def note(self: Scheduler, lane: Any) -> Any:
        nonlocal decoding
        decoding = True
        try:
            return decode(self, lane)
        finally:
            decoding = False

    def refuse(self: Scheduler, lane: Any, sequences: int, tokens: int) -> bool:
        if decoding and self._paused is not None:
            short.append(tokens)
            return False
        return grow(self, lane, sequences, tokens)

    monkeypatch.setattr(Scheduler, "_decode", note)
    monkeypatch.setattr(Scheduler, "_grow", refuse)
    with ThreadPoolExecutor(8) as pool:
        heavy = [ask(pool, engine, FLOWS[0], one, "thinking", settings) for one in QUESTIONS * 4]
        until(lambda: len(slots(engine)) == 12)
        while not heavy[0].done():
            assert run(answering(engine, FLOWS[1], QUESTIONS[0])).text == alone
        for i, one in enumerate(heavy):
            assert one.result(60).thinking == expected[i % len(expected)].thinking
    engine.close()
    assert short


def test_closing_while_a_round_pauses(router: Router, nested: list[Mode], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = LocalEngine(router.pair, max_num_seqs=16)
    original, closed = Scheduler._run_others, threading.Event()

    def close(self: Scheduler, lane: Any) -> None:
        if len(lane.running) == 12 and not closed.is_set():
            self._end_thread()
            closed.set()
        original(self, lane)

    monkeypatch.setattr(Scheduler, "_run_others", close)
    with ThreadPoolExecutor(12) as pool:
        heavy = [ask(pool, engine, FLOWS[0], one, "thinking", ENDLESS) for one in QUESTIONS * 4]
        assert closed.wait(60)
        for one in heavy:
            assert one.result(60).finish_reason == "cancelled"
    engine.close()
