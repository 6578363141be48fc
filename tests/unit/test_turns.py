"""A lock that threads get in turn."""

from __future__ import annotations

import threading
import time

import pytest

from vlroute.turns import Turns


def test_first_come_first_served() -> None:
    turns, order, threads = Turns(), list[int](), list[threading.Thread]()

    def work(number: int) -> None:
        with turns.turn(30):
            order.append(number)

    with turns.turn(1):
        for number in range(8):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(turns._queue) < number + 2:  # noqa: SLF001
                time.sleep(0.001)
    for thread in threads:
        thread.join(30)
    assert order == [*range(8)]


def test_a_thread_that_waits_too_long_or_fails_stops_nobody() -> None:
    turns = Turns()
    with turns.turn(1), pytest.raises(TimeoutError, match="for 0 s"), turns.turn(0):
        pass
    with pytest.raises(KeyError), turns.turn(1):
        raise KeyError
    with turns.turn(1):
        pass
