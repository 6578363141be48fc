"""The loop that runs the models: memory, waiting, errors and cancelling, and what a decode step costs."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import PICTURES, task
from tests.recording import held, model_calls, recorded
from tests.serving import until
from vlroute import Router
from vlroute.engine.cache.disk import DiskTier
from vlroute.engine.cache.vision import VisionCache
from vlroute.engine.local import engine as engine_module
from vlroute.engine.local import scheduler as scheduling
from vlroute.engine.local.engine import LocalEngine
from vlroute.engine.local.forward import Chunk, Decoder
from vlroute.engine.local.language import language_model
from vlroute.engine.local.sampling import BatchSampler
from vlroute.engine.local.scheduler import Scheduler, Work
from vlroute.engine.local.slots import KVSlots
from vlroute.engine.local.vision import prepare
from vlroute.engine.protocol import OnPiece, Reply, Trial
from vlroute.errors import LimitError, OutOfMemoryError, RouterClosedError, SettingsError
from vlroute.fair_share import DEFAULT_FLOW
from vlroute.inputs.media import Picture
from vlroute.inputs.messages import Conversation, parse
from vlroute.pipeline import RequestOptions
from vlroute.steps import Steps, run, start
from vlroute.types import MODES, Finished, Mode

pytestmark = pytest.mark.float32
GREEDY: dict[str, Any] = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 12}
#: Answers of a given length.
LONG: dict[str, Any] = {"do_sample": False, "eos_token_id": -1, "answer_reserve": 0, "max_new_tokens": 200}
ENDLESS: dict[str, Any] = {**LONG, "max_new_tokens": 30_000}
SEEDED: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 20, "seed": 3, "eos_token_id": -1,
                          "answer_reserve": 0, "max_new_tokens": 60}  # fmt: skip
QUESTIONS = [parse(f"How many {what}?", PICTURES[i % 4]) for i, what in enumerate(
    ["circles", "squares", "letters", "numbers", "buttons", "lamps", "arrows", "dots"])]  # fmt: skip
Start = Callable[..., Future[Reply]]


def answering(
    engine: LocalEngine,
    conversation: Conversation,
    mode: Mode = "instruct",
    settings: dict[str, Any] = GREEDY,
    on_piece: OnPiece | None = None,
    cancel: threading.Event | None = None,
    trial: Trial | None = None,
) -> Steps[Reply]:
    with engine.request(conversation) as request:
        return (yield from request.answer(mode, settings, on_piece, cancel, trial))


@pytest.fixture
def ask() -> Iterator[Start]:
    """Starts an answer. No thread waits for it, so that a test with an answer that never comes ends."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda *args, **options: start(answering(*args, **options), pool)


@contextmanager
def together(engine: LocalEngine, ask: Start, jobs: Sequence[tuple[Any, ...]]) -> Iterator[list[Future[Reply]]]:
    """Answers that begin when the block ends, however slowly they are asked; none runs before all of them wait."""
    for conversation, *_ in jobs:
        with engine.request(conversation) as request:
            run(request.features(engine.pair.instruct, conversation.pictures))
    with held(engine) as release:
        futures = [ask(engine, *job) for job in jobs]
        until(lambda: engine.scheduler._new.qsize() == len(jobs))
        yield futures
        release.set()


@pytest.fixture(scope="module")
def alone(router: Router) -> Callable[..., Reply]:
    """Answers one request at a time with an engine of its own, which has room for everything, each only once."""
    engine = LocalEngine(router.pair)
    answers: dict[tuple[Any, ...], tuple[Conversation, Reply]] = {}

    def answer(conversation: Conversation, mode: Mode = "instruct", settings: dict[str, Any] = GREEDY) -> Reply:
        key = id(conversation), mode, tuple(sorted(settings.items()))
        if key not in answers:  # the conversation is kept, so that no other one gets its id
            answers[key] = conversation, run(answering(engine, conversation, mode, settings))
        return answers[key][1]

    return answer


@pytest.fixture
def make(router: Router) -> Iterator[Callable[..., LocalEngine]]:
    engines: list[LocalEngine] = []

    def made(max_num_seqs: int = 32, tokens: int | None = None, compile: str = "auto") -> LocalEngine:
        """An engine with memory for the keys and values of `tokens` tokens."""
        engine = LocalEngine(router.pair, max_num_seqs=max_num_seqs, compile=compile)
        if tokens is not None:
            model = router.pair.instruct.model
            one = KVSlots(model.config.text_config, model.dtype, model.device, 1).token_bytes
            engine.scheduler.memory.kv = tokens * one
            engine.prefixes.limit(tokens * one)
        engines.append(engine)
        return engine

    yield made
    for engine in engines:
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()


def said(reply: Reply) -> tuple[str, str, str, int]:
    return reply.text, reply.thinking, reply.finish_reason, reply.completion_tokens


#: What torch raises on CUDA and on the CPU, and what Python raises.
OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


class Once:
    """Raises out of memory in the first call for which `when` is true; `always`: in each of them."""

    def __init__(
        self,
        real: Callable[..., Any],
        when: Callable[..., bool],
        always: bool = False,
        error: Exception = OUT_OF_MEMORY[0],
    ) -> None:
        self.real, self.when, self.always, self.error, self.raised = real, when, always, error, 0

    def __get__(self, owner: Any, kind: Any) -> Callable[..., Any]:
        return lambda *args, **options: self(owner, *args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if (self.always or not self.raised) and self.when(*args):
            self.raised += 1
            raise self.error
        return self.real(*args, **options)


# memory


@pytest.mark.parametrize("settings", [LONG, SEEDED], ids=["greedy", "seeded"])
def test_answers_that_are_interrupted_for_lack_of_memory_stay_the_same(
    make: Any, ask: Start, alone: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots of 4 x 128 tokens fit, those of 4 x 256 do not."""
    engine, interrupted, real = make(tokens=700), list[int](), Scheduler._preempt
    settings = settings | {"max_new_tokens": 100}

    def counted(scheduler: Scheduler) -> None:
        interrupted.append(1)
        real(scheduler)

    monkeypatch.setattr(Scheduler, "_preempt", counted)
    jobs = [(one, mode, settings) for one in QUESTIONS[:4] for mode in MODES]
    with together(engine, ask, jobs) as futures:
        pass
    assert [said(one.result(60)) for one in futures] == [said(alone(*job)) for job in jobs]
    assert interrupted
    assert engine.prefixes.stats().bytes <= engine.scheduler.memory.kv


def test_slots_and_prefixes_together_stay_within_the_memory(make: Any, ask: Start) -> None:
    engine, settings = make(tokens=1000), LONG | {"max_new_tokens": 100}
    for round_ in range(6):
        futures = [ask(engine, one, MODES[round_ % 2], settings) for one in QUESTIONS[: 2 + round_ % 3]]
        for one in futures:
            one.result(60)
        slots = sum(lane.slots.nbytes for lane in engine.scheduler._lanes.values())
        assert slots + engine.prefixes.stats().bytes <= engine.scheduler.memory.kv


def test_what_does_not_fit_alone_is_a_clear_error_and_others_go_on(make: Any, ask: Start, alone: Any) -> None:
    engine = make(tokens=128)
    large, growing = parse("word " * 300), QUESTIONS[0]
    with pytest.raises(LimitError, match=r"has 3\d\d tokens; the memory .* at most 127: .* raise memory="):
        ask(engine, large).result(20)
    with pytest.raises(LimitError, match=r"and its answer have 128 tokens; the memory .* holds at most 127"):
        ask(engine, growing, "thinking", LONG).result(20)
    assert said(ask(engine, growing).result(20)) == said(alone(growing))


@pytest.mark.parametrize("tokens", [0, 15, 127])
def test_memory_for_no_conversation_at_all_is_a_clear_error(make: Any, ask: Start, tokens: int) -> None:
    """Slots begin with 128 tokens."""
    with pytest.raises(LimitError, match=r"^the memory for keys and values is too small for any .* raise memory=$"):
        ask(make(tokens=tokens), parse("Hello?")).result(20)


def test_a_steady_stream_in_one_mode_does_not_starve_the_other(make: Any, ask: Start) -> None:
    """The slots of Instruct take the memory; Thinking gets its own although further Instruct requests keep coming."""
    engine, ended, rounds = make(tokens=600), threading.Event(), list[int]()
    settings = LONG | {"max_new_tokens": 60}

    def stream(conversation: Conversation) -> None:
        while not ended.is_set() and len(rounds) < 400:
            assert run(answering(engine, conversation, "instruct", settings)).finish_reason == "length"
            rounds.append(1)

    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream, one) for one in QUESTIONS[:4]]
        until(lambda: len(rounds) > 4)
        try:
            assert ask(engine, QUESTIONS[4], "thinking", GREEDY).result(20).completion_tokens
        finally:
            ended.set()
        for one in streams:
            one.result(20)
    assert len(rounds) < 400


def test_requests_wait_when_slots_run_out(make: Any, ask: Start, alone: Any) -> None:
    engine, settings = make(max_num_seqs=2), LONG | {"max_new_tokens": 80}
    with model_calls() as calls:
        with together(engine, ask, [(one, "instruct", settings) for one in QUESTIONS[:6]]) as futures:
            pass
        replies = [said(one.result(30)) for one in futures]
    assert max(calls.steps) == 2
    assert engine.scheduler.waiting() == {"instruct": 0, "thinking": 0}
    assert replies == [said(alone(one, "instruct", settings)) for one in QUESTIONS[:6]]


def test_requests_begin_in_the_order_in_which_they_came(make: Any, ask: Start) -> None:
    engine, begun, futures = make(max_num_seqs=1), list[int](), []
    cancel, writing = threading.Event(), threading.Event()
    first = ask(engine, QUESTIONS[0], "instruct", ENDLESS, lambda *_: writing.set(), cancel)
    assert writing.wait(20)  # otherwise a later one may get the slot
    for i, one in enumerate(QUESTIONS[1:5]):
        futures.append(ask(engine, one, "instruct", GREEDY, lambda *_, i=i: begun.append(i)))
        until(lambda i=i: engine.scheduler.waiting().get("instruct", 0) == i + 1)
    cancel.set()
    for one in (first, *futures):
        one.result(20)
    assert [*dict.fromkeys(begun)] == [0, 1, 2, 3]


# prompts in chunks


@pytest.mark.parametrize("chunk", [1, 7, 16, 50, 128])
@pytest.mark.parametrize("mode", MODES)
def test_a_long_prompt_in_chunks_gives_the_same_scores(
    make: Any, mode: Mode, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks may end within a picture."""
    video = (task("video", "hard").frames, tuple(range(8)))
    long = parse("Compare. " + "What is it? " * (5 if chunk == 1 else 40), PICTURES[:3], videos=video)
    with recorded() as recorder:
        whole = run(answering(make(), long, mode))
        expected = torch.stack(recorder.scores())
        monkeypatch.setattr(scheduling, "CHUNK", chunk)
        monkeypatch.setattr(scheduling, "CHUNK_ALONE", chunk)
        with model_calls() as calls:
            parts = run(answering(make(), long, mode))
        scores = torch.stack(recorder.scores())
    assert len(calls.prompts) == -(-whole.prompt_tokens // chunk)
    assert {one.length for chunks in calls.prompts[:-1] for one in chunks} <= {chunk}
    assert said(parts) == said(whole)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("company", [1, 2, 3, 5, 6])
def test_a_prompt_that_is_read_is_not_disturbed_by_decode_steps(
    make: Any, ask: Start, alone: Any, company: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "CHUNK", 16)
    engine, writing = make(), set[int]()
    long = [parse("What is it? " * 20 + str(i), PICTURES[i]) for i in range(2)]
    cancel = threading.Event()
    others = [
        ask(engine, one, "instruct", ENDLESS, lambda *_, i=i: writing.add(i), cancel)
        for i, one in enumerate(QUESTIONS[:company])
    ]
    until(lambda: len(writing) == company)
    settings = LONG | {"max_new_tokens": 40}
    read = [ask(engine, one, "instruct", settings) for one in long]
    replies = [said(one.result(60)) for one in read]
    cancel.set()
    assert replies == [said(alone(one, "instruct", settings)) for one in long]
    texts = [one.result(20) for one in others]
    for one, reply in zip(QUESTIONS, texts, strict=False):
        same = alone(one, "instruct", ENDLESS | {"max_new_tokens": reply.completion_tokens})
        assert reply.text == same.text


def test_a_cached_prefix_that_waits_for_its_turn_is_not_disturbed(
    make: Any, ask: Start, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, writing = make(), set[int]()
    long = [parse("What is it? " * 20 + str(i)) for i in range(4)]
    for one in long:
        run(answering(engine, one))  # their prefixes are cached now
    cancel = threading.Event()
    others = [
        ask(engine, one, "instruct", ENDLESS, lambda *_, i=i: writing.add(i), cancel)
        for i, one in enumerate(QUESTIONS[:5])
    ]
    until(lambda: len(writing) == 5)
    monkeypatch.setattr(scheduling, "CHUNK", 8)  # only one of them is read at a time
    settings = LONG | {"max_new_tokens": 40}
    replies = [one.result(60) for one in [ask(engine, one, "instruct", settings) for one in long]]
    cancel.set()
    assert min(one.cached_tokens for one in replies) >= 16
    assert [said(one) for one in replies] == [said(alone(one, "instruct", settings)) for one in long]
    for one in others:
        one.result(20)


# what a decode step costs


def test_decode_steps_have_few_shapes(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen, and CUDA graphs captured, for each shape: over random conversations there are few."""
    shapes: set[tuple[int, int, int]] = set()
    real = KVSlots.decoding

    def noted(slots: KVSlots, rows: int, cached: torch.Tensor, length: int, *rest: Any) -> torch.Tensor:
        mask = real(slots, rows, cached, length, *rest)
        shapes.add((mask.shape[0], mask.shape[2], mask.shape[3]))
        return mask

    monkeypatch.setattr(KVSlots, "decoding", noted)
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)
    engine, chance = make(compile="max"), random.Random(0)  # shapes as for CUDA graphs

    def conversation(seed: int) -> None:
        own = random.Random(seed)
        asked = parse("word " * own.randint(1, 150), own.choice([None, *PICTURES[:3]]))
        settings = LONG | {"max_new_tokens": own.randint(1, 120)}
        run(answering(engine, asked, own.choice(MODES), settings))

    left, most = 200, 0
    while left > 0:
        together = min(chance.randint(1, 32), left)
        with ThreadPoolExecutor(together) as pool:
            list(pool.map(conversation, range(left - together, left)))
        left, most = left - together, max(most, together)
    assert most > 16
    assert all(rows.bit_count() == 1 for rows, _, _ in shapes)
    assert {queries for _, queries, _ in shapes} == {1}
    assert 4 < len(shapes) <= 40


def test_a_decode_step_without_graphs_has_the_rows_and_keys_of_its_answers(
    make: Any, ask: Start, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When an answer ends, the last one takes its slot, so that no row is computed for nobody."""
    engine, decode, decoding = make(compile="off"), Scheduler._decode, KVSlots.decoding
    expected, computed = list[tuple[int, int]](), list[tuple[int, int]]()

    def counted(scheduler: Scheduler, lane: Any) -> Any:
        expected.append((len(lane.running), max(one.cached for one in lane.running) + 1))
        alike = not any(one.reads for one in lane.running)
        parts = decode(scheduler, lane)
        if not alike:  # slots that are read may lie between the others
            del expected[-1], computed[-1]
        return parts

    def noted(slots: KVSlots, rows: int, cached: torch.Tensor, length: int, *rest: Any) -> torch.Tensor:
        computed.append((rows, length))
        return decoding(slots, rows, cached, length, *rest)

    monkeypatch.setattr(Scheduler, "_decode", counted)
    monkeypatch.setattr(KVSlots, "decoding", noted)
    settings = [LONG | {"max_new_tokens": most} for most in (30, 90, 10, 50, 70)]
    jobs = [*zip(QUESTIONS, settings, strict=False)]
    with held(engine) as release:
        futures = [ask(engine, one, "instruct", how) for one, how in jobs]
        until(lambda: engine.scheduler._new.qsize() == 4)  # two of them have the same picture
        release.set()
        replies = [said(one.result(60)) for one in futures]
    assert computed == expected
    assert {rows for rows, _ in computed} == {1, 2, 3, 4, 5}
    assert replies == [said(alone(one, "instruct", how)) for one, how in jobs]


@pytest.mark.parametrize("together", [1, 3, 8])
def test_one_synchronization_with_the_device_in_each_decode_step(
    make: Any, ask: Start, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, counts, synchronized = make(), list[int](), list[str]()
    decode = Scheduler._decode
    for name in ("tolist", "item", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            if threading.current_thread().name == "vlroute-engine":
                synchronized.append(name)
            return real(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)

    def counting(scheduler: Scheduler, lane: Any) -> Any:
        before, writes = len(synchronized), any(not one.reads for one in lane.running)
        parts = decode(scheduler, lane)
        counts.append(len(synchronized) - before - writes)
        return parts

    monkeypatch.setattr(Scheduler, "_decode", counting)
    mixed = [LONG, SEEDED, LONG | {"presence_penalty": 1.0, "repetition_penalty": 1.2}, LONG | {"min_new_tokens": 50}]
    futures = [ask(engine, one, "instruct", mixed[i % 4]) for i, one in enumerate(QUESTIONS[:together])]
    for one in futures:
        one.result(60)
    assert len(counts) > 150
    assert {*counts} == {0}


@pytest.mark.parametrize("mode", MODES)
def test_the_decode_step_is_one_graph(router: Router, mode: Mode) -> None:
    """`torch.compile` traces it without a break: no value leaves the device within it."""
    model = router.pair[mode].model
    slots = KVSlots(model.config.text_config, model.dtype, model.device, 4)
    slots.resize([], 4, 128)
    slots.kv.normal_()
    decoder = Decoder(model, language_model(model), slots, "off")
    inputs = torch.tensor([[5, 6, 7, 8], [3, 0, 20, 127], [3, 0, 9, 127], [1, 1, 0, 1]], device=model.device)
    before = slots.kv.clone()
    with torch.no_grad():
        expected = decoder._forward(inputs, 128)
        written = slots.kv.clone()
        slots.kv.copy_(before)
        torch.compiler.reset()
        traced = torch.compile(decoder._forward, backend="eager", fullgraph=True)(inputs, 128)
    torch.testing.assert_close(traced, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(slots.kv, written, atol=1e-4, rtol=0)


def test_small_models_are_computed_by_one_thread_whatever_other_threads_set(make: Any, ask: Start) -> None:
    """The first use of torch in a thread replaces the number that was set in it before."""
    before, seen = torch.get_num_threads(), list[int]()

    def other() -> None:
        torch.set_num_threads(2)
        torch.ones(3).sum()

    def look(channel: str, piece: str) -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        seen.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        engine = make()
        ask(engine, QUESTIONS[0], "instruct", LONG | {"max_new_tokens": 5}, look).result(20)
        assert torch.get_num_threads() == 2  # for the threads of the program nothing changes
    finally:
        torch.set_num_threads(before)
    assert len(seen) >= 3
    assert {*seen} == {1}


# turns, and shares of the time


def an_answer(reads: bool) -> SimpleNamespace:
    return SimpleNamespace(reads=reads, request=SimpleNamespace(flow=DEFAULT_FLOW))


@pytest.mark.parametrize("possible", [
    [Work.ENCODE], [Work.READ], [Work.DECODE], [Work.ENCODE, Work.READ], [Work.ENCODE, Work.DECODE],
    [Work.READ, Work.DECODE], [Work.ENCODE, Work.READ, Work.DECODE],
], ids=lambda works: "+".join(work.name for work in works))  # fmt: skip
def test_the_kinds_of_work_of_a_mode_take_turns(make: Any, possible: list[Work]) -> None:
    engine = make()
    lane = engine.scheduler._lane(engine.pair.instruct)
    assert lane.next_work() is None
    if Work.ENCODE in possible:
        lane.encodings.append(SimpleNamespace())
    lane.running = [an_answer(reads=work is Work.READ) for work in possible if work is not Work.ENCODE]
    lane.served = frozenset({DEFAULT_FLOW.name})
    assert [lane.next_work() for _ in range(3 * len(possible))] == 3 * possible


def test_work_that_appears_between_does_not_change_the_turns(make: Any) -> None:
    """A stream of pictures, or of prompts, delays the running answers by one round each."""
    engine = make()
    lane = engine.scheduler._lane(engine.pair.instruct)
    lane.served = frozenset({DEFAULT_FLOW.name})
    prompt, answer = an_answer(reads=True), an_answer(reads=False)
    lane.running = [answer]
    assert [lane.next_work(), lane.next_work()] == [Work.DECODE, Work.DECODE]
    lane.running = [answer, prompt]
    assert [lane.next_work(), lane.next_work()] == [Work.READ, Work.DECODE]
    lane.encodings.append(SimpleNamespace())
    assert [lane.next_work(), lane.next_work(), lane.next_work()] == [Work.ENCODE, Work.READ, Work.DECODE]
    lane.running = [answer]
    assert [lane.next_work(), lane.next_work(), lane.next_work()] == [Work.ENCODE, Work.DECODE, Work.ENCODE]
    lane.encodings.clear()
    assert lane.next_work() is Work.DECODE


class Rounds:
    """Records the decode steps: the mode of each, and whether both modes had running answers.

    Replaces the clock of the scheduler: a decode step takes the seconds in `costs`, and nothing else takes time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **costs: float) -> None:
        self.steps: list[tuple[Mode, bool]] = []
        self.now, decode = 0.0, Scheduler._decode

        def timed(scheduler: Scheduler, lane: Any) -> Any:
            busy = [one for one in scheduler._lanes.values() if one.running]
            self.steps.append((lane.checkpoint.mode, len(busy) == 2))
            self.now += costs[lane.checkpoint.mode]
            return decode(scheduler, lane)

        monkeypatch.setattr(Scheduler, "_decode", timed)
        monkeypatch.setattr(scheduling, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def together(self) -> list[Mode]:
        return [mode for mode, both in self.steps if both]

    def longest(self, mode: Mode) -> int:
        """The largest number of steps of `mode` in a row while the other one had work."""
        return max(len([*group]) for step, group in groupby(self.steps) if step == (mode, True))


@pytest.mark.parametrize(("instruct", "thinking", "ratio"), [(1, 1, 3), (1, 4, 12), (4, 1, 3 / 4)])
def test_instruct_gets_three_times_the_time_of_thinking(
    make: Any, ask: Start, instruct: float, thinking: float, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds, not in steps: a step of many answers takes longer than one of few."""
    rounds, engine, cancel = Rounds(monkeypatch, instruct=instruct, thinking=thinking), make(), threading.Event()
    futures = [ask(engine, parse("How many?"), mode, ENDLESS, cancel=cancel) for mode in MODES]
    until(lambda: len(rounds.together()) > 300)
    cancel.set()
    for one in futures:
        assert one.result(20).completion_tokens > 20  # both go on
    steps = rounds.together()[:300]
    for count in range(50, 301, 50):
        share = [steps[:count].count(mode) for mode in MODES]
        assert share[0] == pytest.approx(ratio * share[1], abs=2 * max(ratio, 1))
    assert rounds.longest("instruct") <= max(ratio, 1) + 1
    assert rounds.longest("thinking") <= max(1 / ratio, 1) + 1


@pytest.mark.parametrize("mode", MODES)
def test_time_without_work_is_not_made_up_for(
    make: Any, ask: Start, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode that was alone for a long time goes on at its share when the other one gets work."""
    rounds, engine, cancel = Rounds(monkeypatch, instruct=1, thinking=1), make(), threading.Event()
    other: Mode = MODES[1 - MODES.index(mode)]
    first = ask(engine, parse("How many?"), mode, ENDLESS, cancel=cancel)
    until(lambda: len(rounds.steps) > 100)
    for _ in range(2):  # also when it comes again
        before = len(rounds.steps)
        ask(engine, parse("Hello?"), other, LONG | {"max_new_tokens": 60}).result(20)
        until(lambda before=before: len(rounds.steps) > before + 200)
    cancel.set()
    first.result(20)
    assert len(rounds.together()) > 100
    assert rounds.longest(other) <= 4  # the latest round of the other mode, and one more


def test_the_tower_counts_for_the_time_of_its_mode(make: Any, ask: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of pictures in one mode does not stop the answers of the other one."""
    rounds, engine, cancel = Rounds(monkeypatch, instruct=1, thinking=1), make(), threading.Event()
    encode, between = scheduling.encode, list[int]()

    def slow(*args: Any) -> Any:
        between.append(len(rounds.steps))
        rounds.now += 10
        return encode(*args)

    monkeypatch.setattr(scheduling, "encode", slow)
    first = ask(engine, parse("How many?"), "instruct", ENDLESS, cancel=cancel)
    until(lambda: len(rounds.steps) > 10)
    checkpoint = engine.pair.thinking
    with held(engine) as release:
        pixels = prepare(checkpoint.model, checkpoint.processor, [Picture(PICTURES[0])])
        monkeypatch.setattr(scheduling, "PATCHES", 1)  # one call for each
        futures = [engine.scheduler.encode(checkpoint, pixels) for _ in range(5)]
        release.set()
        for one in futures:
            one.result(20)
    cancel.set()
    first.result(20)
    waited = [after - before for before, after in pairwise(between)]
    assert len(waited) == 4
    assert min(waited) >= 29  # 10 seconds of the tower, and Instruct gets three times as much


# pictures: the answer is submitted before the tower has run


class SlowTower:
    """The tower waits for `go_on`; with `error` it fails then. `begun`: it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        real = scheduling.encode

        def encode(*args: Any) -> Any:
            self.begun.set()
            assert self.go_on.wait(20)
            if error is not None:
                raise error
            return real(*args)

        monkeypatch.setattr(scheduling, "encode", encode)


HISTORY = [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": "yes"}]


def in_use(engine: LocalEngine) -> tuple[int, int]:
    """Number of vision features and of prefix blocks that a request holds."""
    return len(engine.vision._pins), sum(block.users > 0 for block in engine.prefixes._blocks.values())


def test_a_failing_tower_ends_the_request_and_nothing_stays_in_use(
    make: Any, ask: Start, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked = make(), parse("What is it?", PICTURES[:2], history=HISTORY)
    run(answering(engine, parse("Hello?", history=HISTORY)))  # the prefix is cached now
    with monkeypatch.context() as patch:
        tower = SlowTower(patch, OSError("the tower failed"))
        futures = [ask(engine, asked)]
        try:
            assert tower.begun.wait(20)
            futures.append(ask(engine, asked))
            until(lambda: engine.prefixes.stats().prompts == 3)
            pins, blocks = in_use(engine)
            assert pins == 2
            assert blocks >= 3
        finally:
            tower.go_on.set()
        for one in futures:
            with pytest.raises(OSError, match="the tower failed"):
                one.result(20)
    assert in_use(engine) == (0, 0)
    assert said(ask(engine, asked).result(20)) == said(alone(asked))
    assert in_use(engine) == (0, 0)


@pytest.mark.parametrize("why", ["too long", "setting"])
def test_a_request_that_fails_before_the_tower_has_run_holds_nothing_afterwards(
    make: Any, ask: Start, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error does not wait for the tower; what the tower computed is cached."""
    engine, tower = make(), SlowTower(monkeypatch)
    run(answering(engine, parse("Hello?", history=HISTORY)))
    asked = parse("word " * (5000 if why == "too long" else 1), PICTURES[0], history=HISTORY)
    future = ask(engine, asked, "instruct", {} if why == "too long" else {"temperature": "warm"})
    try:
        assert tower.begun.wait(20)
        with pytest.raises(LimitError if why == "too long" else SettingsError):
            future.result(20)
        assert in_use(engine) == (1, 0)  # the tower still runs
    finally:
        tower.go_on.set()
    until(lambda: in_use(engine) == (0, 0))
    assert engine.vision.stats().items == 1
    assert ask(engine, parse("What is it?", PICTURES[0])).result(20).encoded == 0


@pytest.mark.parametrize("how", ["cancel", "interrupt", "close"])
def test_a_request_that_is_cancelled_while_its_picture_waits_generates_nothing(
    make: Any, ask: Start, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, asked, cancel = make(), parse("What is it?", PICTURES[0], history=HISTORY), threading.Event()
    run(answering(engine, parse("Hello?", history=HISTORY)))
    tower, pieces = SlowTower(monkeypatch), list[str]()
    steps = answering(engine, asked, "instruct", ENDLESS, lambda *piece: pieces.append(piece[1]), cancel)
    with model_calls() as calls:
        try:
            if how == "cancel":
                future = start(steps)
                cancel.set()
            else:
                next(steps)
                with pytest.raises(KeyboardInterrupt) if how == "interrupt" else nullcontext():
                    steps.throw(KeyboardInterrupt()) if how == "interrupt" else steps.close()
            assert tower.begun.wait(20)
        finally:
            tower.go_on.set()
        if how == "cancel":
            reply = future.result(20)
            assert (reply.finish_reason, reply.completion_tokens) == ("cancelled", 0)
        until(lambda: in_use(engine) == (0, 0))
        until(lambda: not any(lane.busy for lane in engine.scheduler._lanes.values()))
    assert not pieces
    assert not calls.prompts
    assert ask(engine, asked).result(20).encoded == 0


def test_a_prompt_is_built_before_the_tower_has_run(make: Any, ask: Start) -> None:
    """While the models are busy with another answer, the request does all that needs no model."""
    engine, told = make(), list[str]()
    with held(engine) as release:
        future = ask(engine, QUESTIONS[0], "instruct", GREEDY, lambda *piece: told.append(piece[1]))
        until(lambda: engine.prefixes.stats().prompts == 2)  # the prompt is looked up
        assert engine.scheduler.tower_calls == 0
        assert not future.done()
        release.set()
        assert future.result(20).encoded == 1
    assert told


@pytest.mark.parametrize("grids", ["new", "known", "mixed"])
def test_pixels_are_prepared_outside_the_thread_of_the_models(
    make: Any, ask: Start, grids: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, threads, prepared = make(), list[str](), engine_module.prepare

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return prepared(*args)

    if grids != "new":
        run(answering(engine, QUESTIONS[0]))
        engine.vision.clear()
        engine.prefixes.clear()
    monkeypatch.setattr(engine_module, "prepare", noted)
    question = parse("Compare.", PICTURES[:2]) if grids == "mixed" else QUESTIONS[0]
    ask(engine, question).result(20)
    assert threads
    assert "vlroute-engine" not in threads


def test_the_thread_of_the_models_does_not_wait_for_a_disk(
    router: Router, ask: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = list[tuple[str, str]]()
    for name in ("get", "put"):
        real = getattr(DiskTier, name)

        def noted(disk: DiskTier, *args: Any, name: str = name, real: Any = real) -> Any:
            threads.append((name, threading.current_thread().name))
            return real(disk, *args)

        monkeypatch.setattr(DiskTier, name, noted)
    for _ in range(2):  # the second time from the files
        engine = LocalEngine(router.pair, vision=VisionCache(disk=DiskTier(tmp_path)))
        try:
            together = [ask(engine, parse("Compare.", PICTURES[:2]), mode) for mode in MODES for _ in range(2)]
            for one in together:
                one.result(20)
            engine.vision.clear()  # the grids stay known
            engine.prefixes.clear()
            ask(engine, parse("Compare.", PICTURES[1:3])).result(20)
            with engine.request(QUESTIONS[3]) as request:
                run(request.pooled(QUESTIONS[3].pictures[0]))
                run(request.answer("instruct", GREEDY))
        finally:
            engine.close()
    assert {name for name, _ in threads} == {"get", "put"}
    assert "vlroute-engine" not in {thread for _, thread in threads}


# errors of one request


def test_an_error_in_a_callback_ends_only_its_answer(make: Any, ask: Start, alone: Any) -> None:
    engine = make()

    def fail(channel: str, piece: str) -> None:
        raise KeyError("listener")

    with held(engine) as release:
        others = [ask(engine, one, "instruct", LONG) for one in QUESTIONS[:3]]
        bad = ask(engine, QUESTIONS[3], "instruct", LONG, fail)
        release.set()
        with pytest.raises(KeyError, match="listener"):
            bad.result(20)
        replies = [said(one.result(20)) for one in others]
    assert replies == [said(alone(one, "instruct", LONG)) for one in QUESTIONS[:3]]


class Failing(threading.Event):
    """An event of a caller that raises while answers run."""

    def is_set(self) -> bool:
        raise OSError("no such event")


def test_a_cancel_event_that_raises_ends_only_its_answer(make: Any, ask: Start, alone: Any) -> None:
    engine = make()
    with held(engine) as release:
        others = [ask(engine, one, "instruct", LONG) for one in QUESTIONS[:3]]
        bad = ask(engine, QUESTIONS[3], "instruct", LONG, None, Failing())
        release.set()
        with pytest.raises(OSError, match="no such event"):
            bad.result(20)
        replies = [said(one.result(20)) for one in others]
    assert replies == [said(alone(one, "instruct", LONG)) for one in QUESTIONS[:3]]


@pytest.mark.parametrize("streamed", [False, True], ids=["aask", "astream"])
def test_asking_in_an_event_loop_from_a_callback_is_a_clear_error(
    router: Router, make: Any, ask: Start, streamed: bool
) -> None:
    async def read() -> None:
        async for _ in router.astream("Hello?", mode="instruct", **GREEDY):
            pass

    def again(channel: str, piece: str) -> None:
        asyncio.run(read() if streamed else router.aask("Hello?", mode="instruct", **GREEDY))

    with pytest.raises(RuntimeError, match=r"a callback of an answer cannot wait for another answer"):
        ask(make(), parse("How are you?"), "instruct", GREEDY, again).result(10)


@pytest.mark.parametrize("question", [parse("Hello?"), QUESTIONS[0]], ids=["text", "picture"])
def test_an_error_before_the_first_round_of_a_mode_ends_its_request(
    make: Any, ask: Start, question: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__init__", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(OutOfMemoryError, match="is not enough for this request"):
            ask(engine, question).result(20)
    assert ask(engine, question).result(20).finish_reason in ("stop", "length")


def test_an_exit_in_a_callback_ends_only_its_answer(make: Any, ask: Start) -> None:
    engine = make()

    def leave(channel: str, piece: str) -> None:
        raise SystemExit(3)

    assert isinstance(ask(engine, QUESTIONS[3], "instruct", LONG, leave).exception(20), SystemExit)
    assert ask(engine, QUESTIONS[3]).result(20).finish_reason in ("stop", "length")


def test_an_error_in_the_sampling_of_one_answer_ends_only_that_one(
    make: Any, ask: Start, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, real = make(), BatchSampler.__call__

    def fails(sampler: BatchSampler, logits: torch.Tensor) -> list[int]:
        if any(len(one.ids) > 60 and one.presence == 1.5 for one in sampler.samplers):
            raise RuntimeError("a device error")
        return real(sampler, logits)

    monkeypatch.setattr(BatchSampler, "__call__", fails)
    settings = [LONG, LONG, LONG | {"presence_penalty": 1.5}]
    futures = [ask(engine, one, "instruct", how) for one, how in zip(QUESTIONS, settings, strict=False)]
    with pytest.raises(RuntimeError, match="a device error"):
        futures[2].result(20)
    replies = [said(one.result(20)) for one in futures[:2]]
    assert replies == [said(alone(one, "instruct", LONG)) for one in QUESTIONS[:2]]


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_out_of_memory_in_the_tower(
    make: Any, ask: Start, alone: Any, always: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of several requests are then encoded one by one; a request fails only with its own."""
    engine = make()
    wide = parse("What is it?", PICTURES[5])  # the others are square

    def too_large(*args: Any) -> bool:
        return any(one.grid[1] != one.grid[2] for one in args[-1]) if always else len(args[-1]) > 1

    once = Once(scheduling.encode, too_large, always)
    monkeypatch.setattr(scheduling, "encode", once)
    with held(engine) as release:
        futures = [ask(engine, one) for one in (*QUESTIONS[:3], wide)]
        until(lambda: engine.scheduler._new.qsize() == 4)
        release.set()
        others = [said(one.result(20)) for one in futures[:3]]
        if always:
            with pytest.raises(OutOfMemoryError, match=r"memory of (cpu|cuda).*1 picture \(\d+ × \d+\).* GiB are free"):
                futures[3].result(20)
        else:
            futures[3].result(20)
    assert once.raised
    monkeypatch.undo()
    assert others == [said(alone(one)) for one in QUESTIONS[:3]]
    assert said(ask(engine, wide).result(20)) == said(alone(wide))


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
def test_out_of_memory_while_prompts_are_read(
    make: Any, ask: Start, alone: Any, always: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, long = make(), parse("word " * 300)

    def too_large(*args: Any) -> bool:
        chunks: list[Chunk] = args[-1]
        return any(one.length > 200 for one in chunks) if always else len(chunks) > 1

    for one in QUESTIONS[:3]:
        with engine.request(one) as request:
            run(request.features(engine.pair.instruct, one.pictures))
    once = Once(scheduling.read, too_large, always)
    monkeypatch.setattr(scheduling, "read", once)
    with held(engine) as release:
        futures = [ask(engine, one) for one in (*QUESTIONS[:3], long)]
        until(lambda: engine.scheduler._new.qsize() == 4)
        release.set()
        others = [said(one.result(20)) for one in futures[:3]]
        if always:
            with pytest.raises(OutOfMemoryError, match=r"memory of (cpu|cuda).*1500 characters.* GiB are free"):
                futures[3].result(20)
        else:
            assert said(futures[3].result(20)) == said(alone(long))
    assert once.raised
    assert others == [said(alone(one)) for one in QUESTIONS[:3]]
    monkeypatch.undo()
    assert said(ask(engine, long).result(20)) == said(alone(long))


@pytest.mark.parametrize(
    ("always", "error"), [(True, OUT_OF_MEMORY[0]), *((False, error) for error in OUT_OF_MEMORY)],
    ids=["always", "once", "once on the CPU", "once in Python"],
)  # fmt: skip
def test_out_of_memory_in_a_decode_step(
    make: Any, ask: Start, alone: Any, always: bool, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer answers are then generated at the same time; all of them stay the same."""
    engine = make()
    once = Once(Decoder.__call__, lambda decoder, ids, *_: len(ids) > 2, always, error)
    monkeypatch.setattr(Decoder, "__call__", once)
    settings = LONG | {"max_new_tokens": 40}
    with together(engine, ask, [(one, "instruct", settings) for one in QUESTIONS[:4]]) as futures:
        pass
    replies = [said(one.result(60)) for one in futures]
    assert replies == [said(alone(one, "instruct", settings)) for one in QUESTIONS[:4]]
    assert once.raised


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["CUDA", "CPU", "Python"])
def test_out_of_memory_for_a_single_answer_ends_it(
    make: Any, ask: Start, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", Once(Decoder.__call__, lambda *_: True, True, error))
        with pytest.raises(OutOfMemoryError, match=r"memory of (cpu|cuda).* GiB are free"):
            ask(engine, QUESTIONS[0], "instruct", LONG).result(20)
    assert ask(engine, QUESTIONS[0]).result(20).completion_tokens


@pytest.mark.parametrize("where", ["resize", "write", "read", "move"])
def test_out_of_memory_when_slots_are_copied_leaves_no_request_without_a_reply(
    make: Any, ask: Start, alone: Any, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Growth needs the old and the new slots; prefixes are copied to and from them."""
    monkeypatch.setattr(Scheduler, "_first_shape", lambda *_: (0, 0))  # on a GPU they would begin large and never grow
    engine = make()
    run(answering(engine, QUESTIONS[0], "instruct", LONG))  # its prefix is cached
    lengths = [140, 20, 60, 90]
    jobs = [(one, "instruct", LONG | {"max_new_tokens": n}) for one, n in zip(QUESTIONS, lengths, strict=False)]
    with together(engine, ask, jobs) as futures:
        holding = engine.scheduler._lanes[engine.pair.thinking.model].slots
        once = Once(getattr(KVSlots, where), lambda slots, *_: slots is not holding)
        monkeypatch.setattr(KVSlots, where, once)
    failed = 0
    for job, future in zip(jobs, futures, strict=True):
        error = future.exception(20)
        if error is None:
            assert said(future.result()) == said(alone(*job))
        else:
            assert isinstance(error, OutOfMemoryError)
            failed += 1
    assert once.raised
    assert failed <= (len(jobs) if where == "move" else 1)  # a move concerns all that share the step
    assert said(ask(engine, QUESTIONS[0]).result(20)) == said(alone(QUESTIONS[0]))


# cancelling


@pytest.mark.parametrize("when", ["waiting", "reading", "decoding"])
def test_cancel_ends_one_answer_at_once(
    make: Any, ask: Start, alone: Any, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduling, "CHUNK", 8)
    engine, pieces = make(max_num_seqs=1 if when == "waiting" else 4), list[str]()
    other = ask(engine, QUESTIONS[0], "instruct", LONG | {"max_new_tokens": 400})
    cancel = threading.Event()
    until(lambda: engine.scheduler._lanes and engine.scheduler._lanes[engine.pair.instruct.model].running)
    long = parse("word " * 300) if when == "reading" else QUESTIONS[1]
    with model_calls() as calls:
        mine = ask(engine, long, "instruct", ENDLESS, lambda *piece: pieces.append(piece[1]), cancel)
        if when == "waiting":
            until(lambda: engine.scheduler.waiting()["instruct"] == 1)
        elif when == "reading":
            until(lambda: calls.prompts)
        else:
            until(lambda: len(pieces) > 3)
        before = len(pieces)
        cancel.set()
        reply = mine.result(5)
    assert reply.finish_reason == "cancelled"
    if when == "decoding":
        assert reply.completion_tokens >= 3
        assert len(pieces) <= before + 3
    else:
        assert reply.completion_tokens == 0
        assert len(calls.prompts) < 30
    settings = LONG | {"max_new_tokens": 400}
    assert said(other.result(20)) == said(alone(QUESTIONS[0], "instruct", settings))


@pytest.mark.parametrize("how", ["interrupt", "close"])
def test_an_interrupt_ends_the_generation(make: Any, how: str) -> None:
    """Ctrl-C in the thread that waits, or steps that nobody runs any more: no answer goes on in the background."""
    engine, pieces = make(), list[str]()
    steps = answering(engine, parse("Hello?"), "instruct", ENDLESS, lambda *piece: pieces.append(piece[1]))
    next(steps)
    until(lambda: pieces)
    if how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            steps.throw(KeyboardInterrupt())
    else:
        steps.close()
    count = len(pieces)
    until(lambda: not engine.scheduler._lanes[engine.pair.instruct.model].running, 3)
    assert len(pieces) <= count + 3


@pytest.mark.parametrize("where", ["new", "taken over"])
def test_closing_ends_the_pictures_that_wait_for_the_tower(
    make: Any, ask: Start, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They end with an error, and the answers that run with "cancelled": nobody waits forever."""
    engine, tower = make(), SlowTower(monkeypatch)
    running = ask(engine, parse("Hello?"), "instruct", ENDLESS)
    until(lambda: engine.scheduler._lanes and engine.scheduler._lanes[engine.pair.instruct.model].running)
    if where == "taken over":
        monkeypatch.setattr(scheduling, "PATCHES", 1)  # one call of the tower for each
    futures = [ask(engine, QUESTIONS[0])]
    assert tower.begun.wait(20)
    futures += [ask(engine, one) for one in QUESTIONS[1:4]]
    until(lambda: engine.scheduler._new.qsize() == 3)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    until(lambda: engine.scheduler._new.qsize() == 4)
    tower.go_on.set()
    assert running.result(20).finish_reason == "cancelled"
    for one in futures:
        assert isinstance(one.exception(20), RouterClosedError)
    closing.join(20)
    assert in_use(engine) == (0, 0)


def test_closing_cancels_what_runs_and_what_waits(make: Any, ask: Start) -> None:
    engine = make(max_num_seqs=1)
    futures = [ask(engine, one, mode, ENDLESS) for one in QUESTIONS[:3] for mode in MODES]
    until(lambda: sum(engine.scheduler.waiting().values()) == 4)
    engine.close()
    assert {one.result(5).finish_reason for one in futures} == {"cancelled"}
    engine.close()
    with pytest.raises(RouterClosedError):
        ask(engine, QUESTIONS[0]).result(5)


def test_a_callback_may_close_the_engine(make: Any, ask: Start) -> None:
    engine = make()
    reply = ask(engine, QUESTIONS[0], "instruct", ENDLESS, lambda *_: engine.close()).result(10)
    assert reply.finish_reason == "cancelled"


# misuse


def test_asking_from_a_callback_is_a_clear_error(make: Any, ask: Start) -> None:
    engine = make()
    for question in (parse("Hello?"), QUESTIONS[0]):  # the second one needs the tower

        def again(channel: str, piece: str, question: Conversation = question) -> None:
            run(answering(engine, question))

        with pytest.raises(RuntimeError, match=r"a callback of an answer cannot wait for another answer"):
            ask(engine, parse("How are you?"), "instruct", GREEDY, again).result(10)
        assert ask(engine, QUESTIONS[1]).result(10).finish_reason in ("stop", "length")


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_reading_a_stream_in_a_callback_is_a_clear_error(router: Router, make: Any, ask: Start, begun: bool) -> None:
    """It would wait for events that the same thread generates."""
    stream = router.stream("Hello?", mode="instruct", **GREEDY)
    if begun:
        next(stream)

    def read(channel: str, piece: str) -> None:
        for _ in stream:
            pass

    try:
        with pytest.raises(RuntimeError, match=r"a callback of an answer cannot wait for another answer"):
            ask(make(), parse("How are you?"), "instruct", GREEDY, read).result(10)
        assert isinstance([*stream][-1], Finished)  # another thread may still read it
    finally:
        stream.close()


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_callback_may_close_a_stream(router: Router, begun: bool) -> None:
    """It does not wait for the thread of the stream, which might wait for the thread of the callback."""
    stream = router.stream("Hello?", mode="instruct", **ENDLESS)
    if begun:
        next(stream)
    options = RequestOptions(mode="instruct", generation=GREEDY)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(router.answer_turn, parse("How are you?"), options, lambda event: stream.close())
        assert asked.result(10).finish_reason in ("stop", "length")
    assert [*stream] == []


def test_a_fork_is_told_so() -> None:
    script = """
import asyncio, os, signal, sys, warnings
warnings.simplefilter("ignore")
from vlroute import Router
router = Router.from_pretrained()
calls = (
    lambda: router.ask("Hello?", mode="instruct"),
    lambda: router.ask_many([{"prompt": "Hello?", "mode": "instruct"}]),
    lambda: asyncio.run(router.aask("Hello?", mode="instruct")),
)
calls[0]()
for call in calls:
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            call()
        except RuntimeError as error:
            print(error, flush=True)
            os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
print(router.ask("Hello?", mode="instruct").finish_reason, flush=True)
router.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, timeout=180, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    *errors, reason = done.stdout.splitlines()
    assert len(errors) == 3
    assert all("fork" in error and "'spawn'" in error for error in errors)
    assert reason in ("stop", "length")


def test_one_thread_for_both_modes_and_none_before_the_first_request(make: Any, ask: Start) -> None:
    engine = make()
    assert engine.scheduler._thread is None
    for mode in MODES:
        ask(engine, QUESTIONS[0], mode).result(20)
    assert engine.scheduler._thread is not None
    engine.close()
    assert not engine.scheduler._thread.is_alive()
