"""Shares of the event loop, with applications that need time: who goes on when, and what a request counts for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
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
    """Use the processor."""
    began = time.thread_time()
    while time.thread_time() - began < seconds:
        pass


def shares(app: Application) -> LoopShares:
    return LoopShares(app, APIKeys([FIRST, SECOND]), PAUSE_BESIDE_MODELS)


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


def test_requests_that_queue_pause_while_others_have_one() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "long":
            await ended.wait()
        else:
            busy(0.01)
        await respond(send)

    async def main() -> tuple[float, float]:
        one, seconds = shares(app), list[float]()
        for others in (0, 1):
            ended.clear()
            waiting = [asyncio.create_task(ask(one, SECOND, "long")) for _ in range(others)]
            await asyncio.sleep(0)
            began = time.perf_counter()
            await asyncio.gather(*(ask(one, FIRST) for _ in range(6)))
            seconds.append(time.perf_counter() - began)
            ended.set()
            await asyncio.gather(*waiting)
        return seconds[0], seconds[1]

    alone, beside = asyncio.run(main())
    assert alone < 0.12, alone  # 6 × 10 ms
    assert beside > 0.18, beside  # the last one of a queue does not pause


def test_a_client_that_asks_one_request_at_a_time_does_not_pause() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "long":
            await ended.wait()
        else:
            busy(0.01)
        await respond(send)

    async def main() -> float:
        one = shares(app)
        waiting = asyncio.create_task(ask(one, SECOND, "long"))
        await asyncio.sleep(0)
        began = time.perf_counter()
        for _ in range(6):
            await ask(one, FIRST)
        seconds = time.perf_counter() - began
        ended.set()
        await waiting
        return seconds

    assert asyncio.run(main()) < 0.12


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
    assert 0.5 < long / short < 2, (long, short)


def test_bodies_arrive_whole_in_pieces_and_pause() -> None:
    body = bytes(range(256)) * 512 + b"end"
    pieces, ended = list[bytes](), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "long":
            await ended.wait()
        else:
            more = True
            while more:
                message = await receive()
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

        waiting = asyncio.create_task(ask(one, SECOND, "long"))
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


@pytest.mark.parametrize(("key", "path", "client", "same"), [
    (FIRST, "/v1/models", "192.0.2.9", True),
    (SECOND, "/v1/models", "192.0.2.1", False),
    (None, "/v1/models", "192.0.2.1", False),
    ("a-wrong-key", "/v1/models", "192.0.2.1", False),
])  # fmt: skip
def test_a_flow_is_a_key(key: str | None, path: str, client: str, same: bool) -> None:
    assert (flow(key, path, client) == flow(FIRST, "/v1/models", "192.0.2.1")) is same


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
            current_request().used_thread(0.05)
            await respond(send)

    async def main() -> list[float]:
        inner, waits = shares(app), list[float]()
        one = RequestLog(inner, lambda *error: None, lambda record: None)
        for path in ("stream", "threads"):
            await ask(one, FIRST, path)
            (requests,) = inner._flows.values()
            waits.append(requests.until - asyncio.get_running_loop().time())
        return waits

    stream, threads = asyncio.run(main())
    assert stream < 0.02
    assert threads > 0.1


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
        assert [(one.open, one.waiting) for one in one._flows.values()] == [(0, 0)] * 2

    asyncio.run(main())


def test_addresses_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async def main() -> int:
        one = shares(app)
        for number in range(200):
            await ask(one, None, client=(f"192.0.2.{number}", 1))
            await asyncio.sleep(0.001)
        return len(one._flows)

    monkeypatch.setattr(loop_shares, "_MANY", 10)
    assert asyncio.run(main()) <= 20
