"""Records what the scheduler does: calls of the models, and the scores of each request, however it is batched."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from vlroute.engine.local import scheduler
from vlroute.engine.local.engine import LocalEngine
from vlroute.engine.local.forward import Chunk, Decoder
from vlroute.engine.local.generation import Generation, GenerationRequest
from vlroute.engine.local.scheduler import Scheduler
from vlroute.engine.local.vision import Pixels
from vlroute.inputs.messages import parse
from vlroute.steps import run


@dataclass(slots=True)
class Calls:
    """Calls of models of all routers, in order.

    `towers`: number of items of each run of a tower. `prompts`: chunks of each forward pass that reads prompts.
    `steps`: number of rows of each decode step, up to the last one that is used. `threads`: which threads called.
    """

    towers: list[int] = field(default_factory=list)
    prompts: list[list[Chunk]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.towers or self.prompts or self.steps)


@contextmanager
def model_calls() -> Iterator[Calls]:
    """Counts independently of the statistics of caches and scheduler."""
    calls, encode, read, step = Calls(), scheduler.encode, scheduler.read, Decoder.__call__

    def encoding(*args: Any) -> Any:
        pixels: Sequence[Pixels] = args[-1]
        calls.towers.append(len(pixels))
        calls.threads.add(threading.get_ident())
        return encode(*args)

    def reading(*args: Any, **options: Any) -> Any:
        calls.prompts.append([*args[-1]])
        calls.threads.add(threading.get_ident())
        return read(*args, **options)

    def decoding(decoder: Decoder, ids: Sequence[int], *args: Any) -> Any:
        calls.steps.append(len(ids))
        calls.threads.add(threading.get_ident())
        return step(decoder, ids, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "encode", encoding)
        patch.setattr(scheduler, "read", reading)
        patch.setattr(Decoder, "__call__", decoding)
        yield calls


class Recorder:
    """Scores of the latest answer that was asked for in this thread, `[vocabulary]` for each of its tokens."""

    def __init__(self) -> None:
        self._scores: defaultdict[int, dict[int, torch.Tensor]] = defaultdict(dict)
        self._mine = threading.local()

    def asked(self, request: GenerationRequest) -> None:
        self._mine.request = request  # kept, so that no other request gets its id

    def chosen(self, answers: Sequence[Generation], logits: torch.Tensor) -> None:
        for one, row in zip(answers, logits, strict=True):
            self._scores[id(one.request)][len(one.ids) - one.sampler.prompt_length] = row.clone()

    def scores(self) -> list[torch.Tensor]:
        found = self._scores.pop(id(self._mine.request))
        return [found[i] for i in range(len(found))]

    def first(self) -> torch.Tensor:
        return self.scores()[0]


@contextmanager
def recorded() -> Iterator[Recorder]:
    recorder, generate, sample = Recorder(), Scheduler.generate, scheduler._Lane.sample

    def asking(asked: Scheduler, request: GenerationRequest) -> Any:
        recorder.asked(request)
        return generate(asked, request)

    def choosing(lane: Any, answers: Sequence[Generation], logits: torch.Tensor) -> None:
        recorder.chosen(answers, logits)
        sample(lane, answers, logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "generate", asking)
        patch.setattr(scheduler._Lane, "sample", choosing)
        yield recorder


@contextmanager
def held(engine: LocalEngine) -> Iterator[threading.Event]:
    """The scheduler is busy with one step of a Thinking answer until the event is set, so that requests collect."""
    release, busy, cancel = threading.Event(), threading.Event(), threading.Event()

    def block(channel: str, piece: str) -> None:
        busy.set()
        assert release.wait(20)
        cancel.set()

    def answer() -> None:
        with engine.request(parse("Hello?")) as request:
            run(request.answer("thinking", {"max_new_tokens": 4, "answer_reserve": 0}, block, cancel))

    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(answer)
        try:
            assert busy.wait(20)
            yield release
        finally:
            release.set()
            answering.result(20)
