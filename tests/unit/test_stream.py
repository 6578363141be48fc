"""Items that other threads produce, read on an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vlroute.serving.sse import MAX_PAUSE_SECONDS, SECONDS_PER_STREAM, EventStream
from vlroute.steps import Steps
from vlroute.stream import AsyncStream

SOON = 0.05  # seconds


def stream(work: Callable[[Callable[[int], None]], Any]) -> AsyncStream[int]:
    def steps(put: Callable[[int], None]) -> Steps[None]:
        work(put)
        return
        yield

    return AsyncStream(ThreadPoolExecutor(1), steps, threading.Event())


def test_items_that_have_come_are_read_at_once_and_the_error_after_them() -> None:
    def work(put: Callable[[int], None]) -> None:
        for number in range(4):
            put(number)
        raise ValueError("too far")

    async def read() -> None:
        items = stream(work)
        first = await items.next()
        await items.pause(10)
        assert [first, *items.received()] == [0, 1, 2, 3]
        assert items.received() == []
        with pytest.raises(ValueError, match="too far"):
            await items.next()

    asyncio.run(read())


def test_streams_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EventStream, "running", 1)
    assert [EventStream.pause(), EventStream.pause()] == [0, 0]
    for running in (4, 400):
        monkeypatch.setattr(EventStream, "running", running)
        monkeypatch.setattr(EventStream, "_turn", time.monotonic())
        pauses = [EventStream.pause() for _ in range(running)]
        assert pauses[0] == pytest.approx(SECONDS_PER_STREAM, rel=0.3)
        assert pauses[-1] == pytest.approx(min(running * SECONDS_PER_STREAM, MAX_PAUSE_SECONDS), rel=0.3)


def test_a_pause_takes_its_time_while_the_work_goes_on_and_ends_with_it() -> None:
    goes_on = threading.Event()

    def work(put: Callable[[int], None]) -> None:
        put(1)
        goes_on.wait()
        put(2)

    async def read() -> None:
        items, began = stream(work), time.perf_counter()
        await items.pause(SOON)
        assert time.perf_counter() - began > 0.9 * SOON
        goes_on.set()
        await asyncio.wait_for(items.pause(1000), 10)
        await items.pause(1000)  # at once
        assert items.received() == [1, 2]

    asyncio.run(read())
