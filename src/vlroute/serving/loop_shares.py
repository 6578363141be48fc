"""ASGI middleware: shares the event loop between keys and addresses, so that none takes it from the others."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Awaitable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlroute.fair_share import FairShare, Flow
from vlroute.serving.bodies import PIECE
from vlroute.serving.connections import address_group
from vlroute.serving.errors import APIError, route_path
from vlroute.serving.keys import APIKeys, authorization_of
from vlroute.serving.request_log import POLLED, current_request

#: A pause takes so many times the CPU time that a flow has used.
PAUSE = 0.5
#: The same if models run in this process. They need the same cores, and Python runs one thread at a time. With 6, two
#: keys that ask for answers of one word get equally many a second, although one has 60 requests at a time.
PAUSE_BESIDE_MODELS = 6.0
#: A pause for several requests is not longer, in seconds.
LONGEST_PAUSE = 0.1
#: Flows wait for each other until there was only one of them for so long, in seconds. A client that asks again when it
#: has its answer has no request in between.
SHARED_SECONDS = 1.0
_MANY = 1024  # flows; then those without a request are forgotten


@dataclass(slots=True)
class _Requests:
    """The requests of a flow.

    Attributes:
        flow: The flow.
        turn: Held by the request that may go on.
        open: Number of requests.
        waiting: Number of those that wait for a turn or pause.
        until: Time of the event loop until which the flow should pause.
        mean: Mean CPU time of a request in seconds; the last ones count most.
    """

    flow: Flow
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    open: int = 0
    waiting: int = 0
    until: float = 0.0
    mean: float = 0.0


class LoopShares:
    """Lets requests wait for those of other keys and addresses.

    The event loop takes events in the order of their arrival. So a client that sends many short requests, or large
    bodies, would delay all others. Here, a flow is an API key, or an address without one, and in each round of the loop
    one request of each flow begins, or one piece of its bodies is read. While another flow has requests, a flow whose
    requests queue pauses after each of them, as it does within a body. If those of the other one queue too, only the
    flow that has used more pauses.

    What counts is the CPU time of a request before its response begins, in this thread and in those that prepare and
    end answers. The time of the models does not count, nor that of a stream: the schedulers of the models share them.

    Args:
        app: The wrapped application.
        keys: The accepted keys.
        pause: How long pauses are, see `PAUSE`.
    """

    def __init__(self, app: ASGIApp, keys: APIKeys, pause: float = PAUSE) -> None:
        self.app, self.keys, self.pause = app, keys, pause
        self._flows: dict[str, _Requests] = {}
        self._used = FairShare()  # seconds
        self._last: _Requests | None = None  # those that had the last turn
        self._shared_until = 0.0  # time of the event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it is its turn."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        mine, used = self._requests(scope), _CPUTime()
        started = read = complete = False
        rest = b""  # of what the server has received
        charged = spent = 0.0  # CPU time of this request

        def charge(more: float = 0.0) -> None:
            nonlocal charged, spent
            spent += used.take() + more
            self._charge(mine, spent - charged)
            charged = spent

        async def fair_receive() -> Message:
            nonlocal read, complete, rest
            if read and (rest or not complete):
                charge()
                await self._turn(mine, in_body=True)
            if not rest:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                rest, complete = message.get("body", b""), not message.get("more_body", False)
            body, rest, read = rest[:PIECE], rest[PIECE:], True
            return {"type": "http.request", "body": body, "more_body": bool(rest) or not complete}

        async def counting_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                charge()
            await send(message)

        mine.open += 1
        try:
            await self._turn(mine)
            self._charge(mine, charged := mine.mean)  # now, so that the next one of the flow pauses
            await used.of(self.app(scope, fair_receive, counting_send))
        finally:
            if started:
                used.take()  # a stream does not count
            charge(current_request().thread_seconds)
            mine.open -= 1
            mine.mean += 0.1 * (spent - mine.mean)

    def _requests(self, scope: Scope) -> _Requests:
        """The requests of the flow of a request."""
        flow = Flow(address_group((scope.get("client") or ("",))[0]))
        if route_path(scope) in POLLED:
            flow = Flow(f"{flow.name}, polled")  # a client that floods must not make its server look dead
        elif self.keys.required and (authorization := authorization_of(Headers(scope=scope))):
            with suppress(APIError):  # of a wrong key, which the endpoints refuse
                key = scope.setdefault("state", {})["api_key"] = self.keys.of(authorization)
                flow = flow if key is None else key.flow
        if len(self._flows) >= _MANY:
            now = asyncio.get_running_loop().time()
            self._flows = {name: one for name, one in self._flows.items() if one.open or one.until > now}
        return self._flows.setdefault(flow.name, _Requests(flow))

    def _charge(self, mine: _Requests, seconds: float) -> None:
        """Count CPU time that a flow has used."""
        self._used.charge(mine.flow, seconds)
        now, pause = asyncio.get_running_loop().time(), self.pause * seconds
        # what was used while nobody had to wait for it is not paid later
        mine.until = now + min(max(mine.until - now, 0.0) + pause, max(pause, LONGEST_PAUSE))

    async def _turn(self, mine: _Requests, in_body: bool = False) -> None:
        """Wait until a request of a flow may go on. The next one of it may in the next round of the event loop."""
        loop = asyncio.get_running_loop()
        others = any(one.open for one in self._flows.values() if one is not mine)
        if others or mine is not self._last:
            self._last, self._shared_until = mine, loop.time() + SHARED_SECONDS
        elif loop.time() > self._shared_until:
            mine.until = 0.0
            return
        mine.waiting += 1
        try:
            await mine.turn.acquire()
        except BaseException:
            mine.waiting -= 1
            raise
        try:
            seconds = mine.until - loop.time()
            if seconds > 0 and (in_body or mine.waiting > 1) and self._gives_way(mine):
                await asyncio.sleep(seconds)
        finally:
            mine.waiting -= 1
            loop.call_soon(mine.turn.release)

    def _gives_way(self, mine: _Requests) -> bool:
        """Whether a flow whose requests queue pauses: another one's do not, or it has used less."""
        others = [one for one in self._flows.values() if one.open and one is not mine]
        self._used.advance(one.flow for one in (mine, *others))
        used = self._used.received(mine.flow)
        return any(one.waiting < 2 or self._used.received(one.flow) < used for one in others)


class _CPUTime:
    """Measures the CPU time of the steps of a coroutine in the thread of the event loop, in seconds."""

    def __init__(self) -> None:
        self._used, self._began = 0.0, time.thread_time()

    def take(self) -> float:
        """What was used since the last call."""
        now = time.thread_time()
        used, self._used, self._began = self._used + now - self._began, 0.0, now
        return used

    @types.coroutine
    def of(self, work: Awaitable[None]) -> Generator[Any, Any, None]:
        """Run the coroutine."""
        work = cast(Coroutine[Any, Any, None], work)
        step, value = work.send, None
        while True:
            self._began = time.thread_time()
            try:
                awaited = step(value)
            except StopIteration:
                return
            finally:
                self._used += time.thread_time() - self._began
            try:
                step, value = work.send, (yield awaited)
            except BaseException as error:
                step, value = work.throw, error
