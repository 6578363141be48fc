"""The engine over Ray's replicas, with a handle that stands in for Ray's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from PIL import Image
from ray.exceptions import ActorDiedError

from vlroute.engine.protocol import Reply
from vlroute.engine.remote.ray import RayEngine, RayRequest, ReplicaLostError, affinity_key
from vlroute.errors import ModeUnavailableError
from vlroute.inputs.messages import parse
from vlroute.steps import run

PICTURES = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
REPLY = Reply("2", "", "stop", 5, 0, 0, 1, 0, 0.0, 0.1, 0.1, encoded=1)


class Stream:
    """What a call of a generator method returns."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.cancelled = items, False

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            if item == "hang":
                await asyncio.sleep(60)
            yield item


class Handle:
    """Returns the results of a script, one per call; an exception is raised."""

    def __init__(self, *script: Any) -> None:
        self.script, self.stream = list(script), False

    def options(self, session_id: str, method_name: str, stream: bool = False) -> Handle:
        self.stream = stream
        return self

    def remote(self, *args: Any) -> Any:
        result = self.script.pop(0)
        return Stream(result) if self.stream else call(result)


async def call(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


@pytest.fixture
def request_of() -> Iterator[Callable[..., RayRequest]]:
    engines: list[RayEngine] = []

    def create(*script: Any) -> RayRequest:
        engines.append(RayEngine(Handle(*script), 10.0))
        with engines[-1].request(parse("How many?", PICTURES[:1])) as request:
            return request

    yield create
    for engine in engines:
        engine.close()


def died() -> ActorDiedError:
    return ActorDiedError()


def test_a_request_whose_replica_died_is_sent_again(request_of: Callable[..., RayRequest]) -> None:
    request = request_of([("answer", "2"), died()], [died()], [("answer", "2"), REPLY])
    assert run(request.answer("instruct", {})).text == "2"  # nobody has seen the first piece


def test_pieces_are_passed_on_and_prevent_a_second_attempt(request_of: Callable[..., RayRequest]) -> None:
    pieces: list[tuple[str, str]] = []
    request = request_of([died()], [("answer", "2"), REPLY])
    run(request.answer("instruct", {}, lambda *piece: pieces.append(piece)))
    assert pieces == [("answer", "2")]
    request = request_of([("answer", "2"), died()], [REPLY])
    with pytest.raises(ReplicaLostError) as lost:
        run(request.answer("instruct", {}, lambda *piece: None))
    assert lost.value.begun


def test_attempts_are_limited(request_of: Callable[..., RayRequest]) -> None:
    request = request_of(*([died()] for _ in range(9)), [REPLY])
    with pytest.raises(ReplicaLostError):
        run(request.answer("instruct", {}))


def test_a_cancelled_request_ends(request_of: Callable[..., RayRequest]) -> None:
    cancel = threading.Event()
    cancel.set()
    assert run(request_of(["hang"]).answer("thinking", {}, None, cancel)).finish_reason == "cancelled"


def test_errors_of_the_replica_are_raised_unchanged(request_of: Callable[..., RayRequest]) -> None:
    with pytest.raises(ValueError, match="wrong"):
        run(request_of([ValueError("wrong")]).answer("instruct", {}))


def test_without_a_replica_there_is_no_caption(request_of: Callable[..., RayRequest]) -> None:
    with pytest.raises(ModeUnavailableError):
        run(request_of(TimeoutError()).caption(parse("How many?", PICTURES[:1]).pictures[0], "What is it?"))
    assert request_of(TimeoutError()).uncached_tokens() is None


def test_pictures_encoded_for_a_caption_count(request_of: Callable[..., RayRequest]) -> None:
    request = request_of((np.ones(4), 1), ("a square", 0), {"instruct": 3, "thinking": 4}, [REPLY])
    picture = parse("How many?", PICTURES[:1]).pictures[0]
    assert run(request.pooled(picture)).tolist() == [1, 1, 1, 1]
    assert run(request.caption(picture, "What is it?")) == "a square"
    assert request.uncached_tokens() == {"instruct": 3, "thinking": 4}
    assert run(request.answer("instruct", {})).encoded == 2


def test_pictures_encoded_for_two_answers_are_counted_once_each(request_of: Callable[..., RayRequest]) -> None:
    """Instruct answers after Thinking left no answer; the replica counts for each call."""
    thought = replace(REPLY, text="", thinking="so", finish_reason="length")
    for second, total in ((0, 1), (1, 2)):
        request = request_of([thought], [replace(REPLY, encoded=second)])
        assert run(request.answer("thinking", {})).encoded == 1
        assert run(request.answer("instruct", {})).encoded == total


def test_the_key_is_that_of_the_conversation() -> None:
    first = parse("How many?", PICTURES[:1])
    later = parse([*first.messages, {"role": "assistant", "content": "A"}, {"role": "user", "content": "And B?"}])
    assert affinity_key(later, "") == affinity_key(first, "") == affinity_key(parse("Another?", PICTURES[:1]), "")
    conversations = [first, parse("Which?", PICTURES[1:]), parse("One?"), parse("Two?")]
    assert len({affinity_key(one, namespace) for one in conversations for namespace in ("", "a")}) == 8
