"""The fair queue of requests, and the count of wrong keys."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from vlroute.fair_share import FairShare, Flow
from vlroute.serving.admission import FairQueue, FairThreads, Ticket
from vlroute.serving.connections import address_group
from vlroute.serving.errors import APIError
from vlroute.serving.wrong_keys import ADDRESSES, FREE, WrongKeys

HEAVY, LIGHT = Flow("heavy"), Flow("light")


class FullError(Exception):
    """A request is refused."""


def queue(places: int, most: int | None, **options: Any) -> FairQueue:
    return FairQueue(places, most, FullError, **options)


def placed(tickets: list[Ticket]) -> int:
    return sum(one.placed for one in tickets)


def test_a_flow_alone_has_all_places_and_the_whole_queue() -> None:
    one = queue(4, 6)
    tickets = [one.enter(HEAVY) for _ in range(6)]
    assert [ticket.place.done() for ticket in tickets] == [True] * 4 + [False] * 2
    with pytest.raises(FullError):
        one.enter(HEAVY)
    one.leave(tickets[0])
    assert (tickets[4].place.done(), tickets[5].place.done(), len(one), one.waiting) == (True, False, 5, 1)


def test_another_flow_is_placed_at_once_and_replaces_the_last_waiting_request() -> None:
    one = queue(4, 6)
    heavy = [one.enter(HEAVY) for _ in range(6)]
    light = [one.enter(LIGHT) for _ in range(2)]
    assert placed(light) == 2  # its share of 4 places
    for replaced in heavy[4:]:
        with pytest.raises(FullError):
            replaced.place.result(0)
    with pytest.raises(FullError):  # nothing is left to replace
        one.enter(LIGHT)
    for ticket in (*heavy, *light):
        one.leave(ticket)
    assert (len(one), one.waiting) == (0, 0)


def test_a_flow_without_requests_is_never_kept_out_by_full_places() -> None:
    one = queue(2, 2)
    assert placed([one.enter(HEAVY) for _ in range(2)]) == 2
    assert one.enter(LIGHT).placed
    with pytest.raises(FullError):
        one.enter(LIGHT)


def test_free_places_go_to_flows_in_proportion_to_their_weights() -> None:
    one, flows = queue(4, None, per_flow=4), [Flow("one", 1.0), Flow("three", 3.0)]
    tickets = [one.enter(flow) for _ in range(40) for flow in flows]
    got, chance = Counter[str](), random.Random(0)
    for _ in range(40):
        ended = chance.choice([ticket for ticket in tickets if ticket.placed])
        got[ended.flow.name] += 1
        one.leave(ended)
    assert 26 <= got["three"] <= 34


def test_one_flow_leaves_places_that_are_never_exceeded() -> None:
    one = queue(2, None, per_flow=1)
    heavy = [one.enter(HEAVY) for _ in range(3)]
    light = [one.enter(LIGHT) for _ in range(2)]
    assert (placed(heavy), placed(light)) == (1, 1)
    one.leave(light[0])
    assert (placed(heavy), placed(light)) == (1, 1)


def test_closing_refuses_those_that_wait() -> None:
    one = queue(1, None)
    first, second = one.enter(HEAVY), one.enter(HEAVY)
    one.close(lambda: APIError(503, "closing", "closing"))
    with pytest.raises(APIError):
        second.place.result(0)
    with pytest.raises(APIError):
        one.enter(LIGHT)
    one.leave(second)
    one.leave(first)
    assert len(one) == 0


def test_threads_leave_nothing_behind() -> None:
    one, most = queue(3, 12), list[int]()

    def use(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(150):
            try:
                ticket = one.enter(Flow(chance.choice("abc"), chance.choice([0.5, 1.0, 2.0])))
            except FullError:
                continue
            if chance.random() < 0.8:
                with suppress(FullError):
                    ticket.place.result(5)
            most.append(len(one))
            one.leave(ticket)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (len(one), one.waiting) == (0, 0)
    assert max(most) <= 15


def test_idle_flows_get_no_credit_and_are_forgotten() -> None:
    shares = FairShare()
    for _ in range(10):
        shares.charge(HEAVY, 5)
    assert (shares.received(HEAVY), shares.received(LIGHT)) == (50, 0)
    shares.charge(Flow("double", 2.0), 5)
    assert shares.received(Flow("double", 2.0)) == 2.5
    shares.advance([HEAVY])
    assert shares.received(LIGHT) == 50
    assert not shares._received


def test_wrong_keys_wait_longer_each_time() -> None:
    now = 0.0
    wrong = WrongKeys(lambda: now)
    assert [wrong.count("192.0.2.1") for _ in range(FREE)] == [None] * FREE
    waits = []
    for _ in range(9):
        error = wrong.count("192.0.2.1")
        assert error is not None
        assert error.headers is not None
        waits.append(int(error.headers["Retry-After"]))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert wrong.count("192.0.2.2") is None
    now = 61.0
    assert wrong.count("192.0.2.1") is None


def test_wrong_keys_need_bounded_memory() -> None:
    wrong = WrongKeys()
    began = time.perf_counter()
    for number in range(ADDRESSES + 500):
        wrong.count(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(wrong) == ADDRESSES
    assert time.perf_counter() - began < 5


def test_addresses_of_one_customer_count_together() -> None:
    assert address_group("2001:db8::1") == address_group("2001:db8::ffff:2") != address_group("2001:db8:0:1::1")
    assert address_group("::ffff:192.0.2.1") == "192.0.2.1"
    assert address_group("testclient") == "testclient"


def test_work_of_a_flow_does_not_wait_behind_that_of_another_one() -> None:
    threads, order, go = FairThreads(2, None, FullError, "test", per_flow=1), list[str](), threading.Event()
    first = threads.submit(lambda: go.wait(10), HEAVY)
    more = [threads.submit(lambda: order.append("heavy"), HEAVY) for _ in range(10)]
    assert threads.submit(lambda: order.append("light") or "done", LIGHT).result(10) == "done"
    assert order == ["light"]
    go.set()
    for one in (first, *more):
        one.result(10)
    assert order == ["light"] + ["heavy"] * 10
    threads.shutdown()


def test_work_that_fails_leaves_its_thread_to_others() -> None:
    threads = FairThreads(1, None, FullError, "test")
    failed = [threads.submit(lambda: 1 // 0, HEAVY) for _ in range(3)]
    assert all(isinstance(one.exception(10), ZeroDivisionError) for one in failed)
    assert threads.submit(lambda: 1, HEAVY).result(10) == 1
    threads.shutdown()


def test_cancelled_work_is_not_run() -> None:
    threads, go, ran = FairThreads(1, None, FullError, "test"), threading.Event(), list[int]()
    first, second = threads.submit(lambda: go.wait(10), HEAVY), threads.submit(lambda: ran.append(1), HEAVY)
    assert second.cancel()
    go.set()
    first.result(10)
    assert threads.submit(lambda: 1, HEAVY).result(10) == 1
    assert not ran
    threads.shutdown()


def test_after_the_shutdown_work_runs_in_the_thread_of_the_caller() -> None:
    threads = FairThreads(1, None, FullError, "test")
    threads.shutdown()
    assert threads.submit(threading.get_ident, HEAVY).result(0) == threading.get_ident()
