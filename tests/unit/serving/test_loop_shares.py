"""`LoopShares` around small ASGI applications: which request continues when, and which CPU time counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from vlroute.serving import loop_shares
from vlroute.serving.bodies import PIECE
from vlroute.serving.keys import APIKeys
from vlroute.serving.loop_shares import PAUSE_BESIDE_MODELS, LoopShares
from vlroute.serving.request_log import RequestLog, current_request

FIRST, SECOND = "the-first-key-of-the-tests", "the-second-key-of-the-tests"
Application = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


def busy(seconds: float) -> None:
    """Use so much CPU time."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def shares(app: Application) -> LoopShares:
    return LoopShares(app, APIKeys([FIRST, SECOND]), PAUSE_BESIDE_MODELS)


def logged(app: Application) -> RequestLog:
    """With a record for each request."""
    return RequestLog(app, lambda *error: None, lambda record: None)


async def ask(app: Application, key: str | None = FIRST, path: str = "/v1/models", **scope: Any) -> list[Message]:
    """Send a request without a body; returns the response."""
    sent = list[Message]()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    await app(
        {
            "type": "http", "method": "GET", "scheme": "http", "path": path, "headers": headers,
            "client": ("192.0.2.1", 1), **scope,
        },
        receive, send,
    )  # fmt: skip
    return sent


async def respond(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def receive_with_turn(scope: Scope, receive: Receive) -> Message:
    """Wait for a turn, then for a piece of the body, as `RequestGuard` does."""
    await scope["state"]["body_turn"]()
    message: Message = await receive()
    return message


def test_a_single_request_does_not_wait_for_those_of_a_flood() -> None:
    order = list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])
        busy(0.002)
        await respond(send)

    async def main() -> None:
        one = shares(app)
        await ask(one, SECOND, "other")  # so that the loop is known to be shared
        flood = [asyncio.create_task(ask(one, FIRST, "flood")) for _ in range(40)]
        await asyncio.sleep(0)
        await ask(one, SECOND, "other")
        await asyncio.gather(*flood)

    asyncio.run(main())
    assert order.index("other", 1) <= 3
    assert order.count("flood") == 40


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the calls of `asyncio.sleep`, which `LoopShares` uses for its pauses."""
    called, sleep = list[float](), asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds:
            called.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)
    return called


async def waiting_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers "answered" and "silent" when the request is canceled, and everything else after 10 ms of CPU time."""
    if scope["path"] in ("answered", "silent"):
        if scope["path"] == "answered":
            current_request().begin_answer()
        await asyncio.Event().wait()
    busy(0.01)
    await respond(send)


async def beside(other: str | None, together: bool) -> None:
    """Send six requests of one key while another key has one with this path, or none."""
    one = logged(shares(waiting_app))
    waiting = asyncio.create_task(ask(one, SECOND, other)) if other else None
    await asyncio.sleep(0)
    if together:
        await asyncio.gather(*(ask(one, FIRST) for _ in range(6)))
    else:
        for _ in range(6):
            await ask(one, FIRST)
    if waiting:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def test_requests_that_queue_pause_while_a_model_answers_others(pauses: list[float]) -> None:
    asyncio.run(beside("answered", together=True))
    assert len(pauses) >= 3  # the first one has nothing to pay, and the last one of a queue does not pause
    assert sum(pauses) > 3 * PAUSE_BESIDE_MODELS * 0.008


@pytest.mark.parametrize(("other", "together"), [
    (None, True),
    ("silent", True),  # a request that costs nothing, such as one whose body does not arrive
    ("answered", False),  # a client that asks one request at a time
])  # fmt: skip
def test_nothing_else_makes_requests_pause(pauses: list[float], other: str | None, together: bool) -> None:
    asyncio.run(beside(other, together))
    assert not pauses


def test_two_queues_get_equal_shares() -> None:
    order = list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])
        busy(0.004 if scope["path"] == "long" else 0.001)
        await respond(send)

    async def main() -> None:
        one = shares(app)
        await asyncio.gather(
            *(ask(one, FIRST, "long") for _ in range(40)), *(ask(one, SECOND, "short") for _ in range(160))
        )

    asyncio.run(main())
    first = order[: len(order) // 2]
    long, short = 4 * first.count("long"), first.count("short")
    assert short < 2 * long < 4 * short, (long, short)


def test_bodies_arrive_whole_in_pieces_and_pause() -> None:
    body = bytes(range(256)) * 512 + b"end"
    pieces, ended = list[bytes](), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "long":
            current_request().begin_answer()
            await ended.wait()
        else:
            more = True
            while more:
                message = await receive_with_turn(scope, receive)
                pieces.append(message["body"])
                more = message["more_body"]
                busy(0.005)
            assert (await receive())["type"] == "http.disconnect"
        await respond(send)

    async def main() -> float:
        one = shares(app)
        arriving = [
            {"type": "http.request", "body": body[:100_000], "more_body": True},
            {"type": "http.request", "body": b"", "more_body": True},
            {"type": "http.request", "body": body[100_000:], "more_body": False},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Message:
            return arriving.pop(0)

        async def send(message: Message) -> None:
            pass

        waiting = asyncio.create_task(ask(logged(one), SECOND, "long"))
        await asyncio.sleep(0)
        began = time.perf_counter()
        await one({"type": "http", "path": "/", "headers": [], "client": ("192.0.2.1", 1)}, receive, send)
        seconds = time.perf_counter() - began
        ended.set()
        await waiting
        return seconds

    seconds = asyncio.run(main())
    assert b"".join(pieces) == body
    assert max(map(len, pieces)) == PIECE
    assert seconds > (1 + PAUSE_BESIDE_MODELS) * 0.005 * (len(pieces) - 1)


def test_a_flow_is_a_key() -> None:
    first = flow(FIRST, "/v1/models", "192.0.2.1")
    assert flow(FIRST, "/v1/models", "192.0.2.9") == first
    assert all(flow(key, "/v1/models", "192.0.2.1") != first for key in (SECOND, None, "a-wrong-key"))


def test_without_a_valid_key_a_flow_is_an_address() -> None:
    address = flow(None, "/v1/models", "192.0.2.1")
    assert flow("a-wrong-key", "/", "192.0.2.1") == address
    assert flow(None, "/v1/models", "192.0.2.2") != address
    assert flow(None, "/health", "192.0.2.1") != address
    assert flow(None, "/v1/models", "2001:db8::1") == flow(None, "/v1/models", "2001:db8::2")


def flow(key: str | None, path: str, client: str) -> str:
    """Name of the flow of a request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async def main() -> str:
        one = shares(app)
        await ask(one, key, path, client=(client, 1))
        (name,) = one._flows
        return name

    return asyncio.run(main())


def test_threads_count_and_streams_do_not() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            busy(0.05)
            await send({"type": "http.response.body", "body": b""})
        else:
            await asyncio.to_thread(current_request().in_thread, lambda: busy(0.05))
            await respond(send)

    async def main() -> list[float]:
        inner, waits = shares(app), list[float]()
        one = logged(inner)
        for path in ("stream", "threads"):
            await ask(one, FIRST, path)
            (requests,) = inner._flows.values()
            waits.append(requests.pause_until - asyncio.get_running_loop().time())
        return waits

    stream, threads = asyncio.run(main())
    assert stream < 0.02
    assert threads > 0.1


def test_a_step_of_another_request_does_not_count() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "child":  # as `StreamingResponse` does
            await asyncio.create_task(respond(send))
        elif scope["path"] == "error":
            busy(0.02)
            raise LookupError
        else:
            busy(0.05)
            await respond(send)

    async def main() -> dict[str, float]:
        one = shares(app)
        await asyncio.gather(ask(one, FIRST, "child"), ask(one, SECOND, "other"))
        with pytest.raises(LookupError):
            await ask(one, None, "error")
        return {name: one._used.received(state.flow) for name, state in one._flows.items()}

    child, other, error = asyncio.run(main()).values()
    assert child < 0.02 < 0.045 < other
    assert error - max(child, other) < 0.04  # it begins with what the others have used


def test_a_flow_gets_no_credit_for_the_time_when_it_was_idle() -> None:
    order = list[str]()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])
        busy(0.001)
        await respond(send)

    async def main() -> None:
        one = shares(app)
        for _ in range(100):
            await ask(one, FIRST, "before")
        order.clear()
        for path, key in (("old", FIRST), ("new", SECOND)):
            for _ in range(60):
                tasks.append(asyncio.create_task(ask(one, key, path)))
        await asyncio.gather(*tasks)

    tasks = list[asyncio.Task[Any]]()
    asyncio.run(main())
    old = order[:60].count("old")
    assert 15 < old < 45, old


def test_a_weight_that_changes_counts_at_once() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        busy(0.02)
        await respond(send)

    async def main() -> tuple[float, float]:
        keys, used = APIKeys([FIRST]), list[float]()
        one = LoopShares(app, keys)
        for weight in (1.0, 10.0):
            keys._keys = tuple(replace(key, weight=weight) for key in keys._keys)
            before = sum(one._used.received(state.flow) for state in one._flows.values())
            await ask(one, FIRST)
            used.append(sum(one._used.received(state.flow) for state in one._flows.values()) - before)
        return used[0], used[1]

    first, second = asyncio.run(main())
    assert second < first / 3


def test_a_response_without_end_does_not_make_others_pause() -> None:
    closable, ended = list[int](), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "heartbeat":
            scope["state"]["may_be_closed"]()
            await ended.wait()
        await respond(send)

    async def main() -> None:
        one = shares(app)
        state = {"may_be_closed": lambda: closable.append(1)}
        waiting = asyncio.create_task(ask(one, SECOND, "heartbeat", state=state))
        await asyncio.sleep(0)
        assert not one._open
        ended.set()
        await waiting
        assert not any(state.requests for state in one._flows.values())

    asyncio.run(main())
    assert closable == [1]


def test_a_flow_alone_lets_other_tasks_run_between_the_pieces_of_a_body() -> None:
    ran = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive_with_turn(scope, receive))["more_body"]:
            pass
        await respond(send)

    async def count() -> None:
        nonlocal ran
        while True:
            ran += 1
            await asyncio.sleep(0)

    async def main() -> None:
        one, counting = shares(app), asyncio.create_task(count())
        body = [{"type": "http.request", "body": bytes(64 * PIECE), "more_body": False}]

        async def receive() -> Message:
            return body.pop(0)

        async def send(message: Message) -> None:
            pass

        await one({"type": "http", "path": "/", "headers": [], "client": ("192.0.2.1", 1)}, receive, send)
        counting.cancel()

    asyncio.run(main())
    assert ran >= 63


def test_errors_and_cancellations_leave_the_turn_to_others() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "error":
            raise LookupError
        if scope["path"] == "long":
            await asyncio.sleep(60)
        await respond(send)

    async def main() -> None:
        one = shares(app)
        waiting = asyncio.create_task(ask(one, SECOND, "long"))
        await asyncio.sleep(0)
        for _ in range(3):
            with pytest.raises(LookupError):
                await ask(one, FIRST, "error")
            tasks = [asyncio.create_task(ask(one, FIRST, "long")) for _ in range(3)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*tasks, return_exceptions=True)
            )
        assert [message["type"] for message in await ask(one, FIRST)] == ["http.response.start", "http.response.body"]
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
        assert [(len(one.requests), one.waiting) for one in one._flows.values()] == [(0, 0)] * 2

    asyncio.run(main())


def test_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async def main() -> tuple[int, int]:
        one = shares(app)
        for number in range(200):
            await ask(one, None, client=(f"192.0.2.{number}", 1))
            await asyncio.sleep(0.001)
        return len(one._flows), len(one._used._received)

    monkeypatch.setattr(loop_shares, "_MANY", 10)
    assert max(asyncio.run(main())) <= 20
