"""One at a time, in the order of asking."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager

import pytest

from tests.serving import until
from vlroute.engine.local.lock import PriorityLock


def test_first_come_first_served_but_for_those_ahead() -> None:
    turn, came, served = PriorityLock(), list[str](), list[str]()

    def take(name: str, way: AbstractContextManager[None]) -> None:
        came.append(name)
        with way:
            served.append(name)

    threads = []
    with turn:
        for name in ("a", "b", "ahead c", "d", "ahead e"):
            way = turn.ahead() if "ahead" in name else turn
            threads.append(threading.Thread(target=take, args=(name, way)))
            threads[-1].start()
            until(lambda: len(came) == len(threads) and len(turn._line) + len(turn._ahead) == len(threads))
        assert served == []
    for thread in threads:
        thread.join(5)
    assert served == ["ahead c", "ahead e", "a", "b", "d"]


def test_never_two_at_once() -> None:
    turn, inside, most = PriorityLock(), 0, 0

    def take(number: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            with turn.ahead() if number % 2 else turn:
                inside += 1
                time.sleep(0.0005)  # others run meanwhile, and would come in if they could
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (inside, most) == (0, 1)


def test_an_error_hands_it_on() -> None:
    turn = PriorityLock()
    for way in (turn, turn.ahead()):
        with pytest.raises(ValueError, match="mine"), way:
            raise ValueError("mine")
    with turn:
        pass
