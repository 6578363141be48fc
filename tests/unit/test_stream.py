"""Items that other threads produce, read on an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

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
