"""ASGI middleware: divides the time of the event loop among keys and addresses."""

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
from vlroute.serving.request_log import POLLED, RequestRecord, current_request

#: Length of a pause, as a multiple of the CPU time that the flow has used.
PAUSE = 0.5
#: The same if models run in this process. They need the same cores, and Python runs one thread at a time. With 6, a key
#: with 60 concurrent requests for answers of one word gets about as many answers a second as a key with one.
PAUSE_BESIDE_MODELS = 6.0
#: Maximum pause in seconds. Only the pause for a single costly request can be longer.
LONGEST_PAUSE = 0.1
#: Turns are used until only one flow has had requests for this time, in seconds. A client that sends one request after
#: another has none for short times.
SHARED_SECONDS = 1.0
_MANY = 1024  # number of flows from which those without requests are forgotten


@dataclass(slots=True)
class _FlowState:
    """The requests of a flow.

    Attributes:
        flow: The flow.
        turn: Lock of the request that may continue.
        requests: The requests, without those whose response has no end.
        waiting: Number of those that wait for a turn or pause. One in its body counts twice, because its pieces queue.
        pause_until: Time of the event loop until which the flow should pause.
        mean_seconds: Mean CPU time of a request; the last ones count most.
    """

    flow: Flow
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    requests: dict[int, RequestRecord] = field(default_factory=dict)
    waiting: int = 0
    pause_until: float = 0.0
    mean_seconds: float = 0.0

    @property
    def answered(self) -> bool:
        """Whether a model answers a request of the flow."""
        return any(one.answering for one in self.requests.values())


class LoopShares:
    """Delays requests of busy keys and addresses in favor of others.

    The event loop takes events in the order of their arrival. So a client that sends many short requests, or large
    bodies, would delay all others. Here, a flow is an API key, or an address without one, and in each round of the loop
    one request of each flow begins, or one piece of its bodies is read. While a model answers another flow, a flow
    whose requests queue pauses after each of them, and between the pieces of a body. If the requests of both queue,
    only the flow that has used more CPU time, relative to its weight, pauses.

    What counts is the CPU time of a request before its response begins: that of its task, and of the threads that parse
    large bodies and prepare and finish answers. The time of the models does not count, nor what is sent while they
    answer: the schedulers of the models share their time.

    Args:
        app: The wrapped application.
        keys: The accepted keys.
        pause: Length of pauses, see `PAUSE`.
    """

    def __init__(self, app: ASGIApp, keys: APIKeys, pause: float = PAUSE) -> None:
        self.app, self.keys, self.pause = app, keys, pause
        self._flows: dict[str, _FlowState] = {}
        self._open: dict[str, _FlowState] = {}  # those with requests
        self._used = FairShare()  # of CPU time in seconds
        self._last: _FlowState | None = None  # the flow that had the last turn
        self._shared_until = 0.0  # time of the event loop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when it is its turn."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        mine, used = self._state(scope), _CPUTime()
        record, started, complete = current_request(), False, False
        content, at = b"", 0  # what has arrived of the body, and how much of it was passed on
        charged = spent = 0.0  # CPU time of this request

        def charge(more: float = 0.0) -> None:
            nonlocal charged, spent
            spent += used.take() + more
            self._charge(mine, spent - charged)
            charged = spent

        async def body_turn() -> None:
            if at and not (complete and at >= len(content)):
                charge()
                await self._turn(mine, in_body=True)

        async def receive_piece() -> Message:
            nonlocal content, at, complete
            if at >= len(content):
                message = await receive()
                if message["type"] != "http.request":
                    return message
                content, at, complete = message.get("body", b""), 0, not message.get("more_body", False)
            piece, at = content[at : at + PIECE], at + PIECE
            more = at < len(content) or not complete
            if at >= len(content):
                content = b""  # the scope of a request lives longer than its body
            return {"type": "http.request", "body": piece, "more_body": more}

        async def counting_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                charge()
            await send(message)

        def end() -> None:
            if mine.requests.pop(id(record), None) is not None and not mine.requests:
                del self._open[mine.flow.name]

        may_be_closed = state.get("may_be_closed", lambda: None)

        def has_no_end() -> None:
            end()
            may_be_closed()

        state["body_turn"], state["may_be_closed"] = body_turn, has_no_end
        self._open[mine.flow.name] = mine
        mine.requests[id(record)] = record
        try:
            await self._turn(mine)
            self._charge(mine, charged := mine.mean_seconds)  # now, so that the next one of the flow pauses
            await used.of(self.app(scope, receive_piece, counting_send))
        finally:
            end()
            content = b""
            if started:
                used.take()  # what was sent does not count
            charge(record.thread_seconds)
            mine.mean_seconds += 0.1 * (spent - mine.mean_seconds)

    def _state(self, scope: Scope) -> _FlowState:
        """The state of the flow to which a request belongs."""
        address = f"address {address_group((scope.get('client') or ('',))[0])}"
        flow = Flow(address)
        if route_path(scope) in POLLED:
            flow = Flow(f"{address}, polled")  # so that a flood does not delay the health checks of the same address
        elif self.keys.required and (authorization := authorization_of(Headers(scope=scope))):
            with suppress(APIError):  # of a wrong key, which the endpoints refuse
                key = scope["state"]["api_key"] = self.keys.of(authorization)
                flow = flow if key is None else key.flow
        if len(self._flows) >= _MANY:
            now = asyncio.get_running_loop().time()
            self._flows = {name: one for name, one in self._flows.items() if one.requests or one.pause_until > now}
            self._used.keep(self._flows)
        found = self._flows.setdefault(flow.name, _FlowState(flow))
        found.flow = flow  # the weight may have changed
        return found

    def _charge(self, mine: _FlowState, seconds: float) -> None:
        """Count CPU time that a flow has used."""
        self._used.charge(mine.flow, seconds)
        now, pause = asyncio.get_running_loop().time(), self.pause * seconds
        # limits the pause for CPU time that was used while no other flow had requests
        mine.pause_until = now + min(max(mine.pause_until - now, 0.0) + pause, max(pause, LONGEST_PAUSE))

    async def _turn(self, mine: _FlowState, in_body: bool = False) -> None:
        """Wait until a request of a flow may continue. Its next one may continue in the next round of the loop."""
        loop = asyncio.get_running_loop()
        others = [one for one in self._open.values() if one is not mine]
        self._used.advance([mine.flow, *(one.flow for one in others if one.waiting)])
        if others or mine is not self._last:
            self._last, self._shared_until = mine, loop.time() + SHARED_SECONDS
        elif loop.time() > self._shared_until:
            mine.pause_until = 0.0
            if in_body:
                await asyncio.sleep(0)
            return
        mine.waiting += 1 + in_body
        try:
            await mine.turn.acquire()
            try:
                seconds = mine.pause_until - loop.time()
                if seconds > 0 and mine.waiting > 1 and self._gives_way(mine):
                    await asyncio.sleep(seconds)
            finally:
                loop.call_soon(mine.turn.release)
        finally:
            mine.waiting -= 1 + in_body

    def _gives_way(self, mine: _FlowState) -> bool:
        """Whether a flow must pause: a model answers another flow, or the requests of one that has used less queue."""
        used = self._used.received(mine.flow)
        others = [one for one in self._open.values() if one is not mine]
        return any(self._used.received(one.flow) < used if one.waiting > 1 else one.answered for one in others)


class _CPUTime:
    """Measures the CPU time of the steps of a coroutine in seconds, without that of tasks that it starts."""

    def __init__(self) -> None:
        self._used = 0.0
        self._began: float | None = None  # when the running step began

    def take(self) -> float:
        """What was used since the last call."""
        self._add()
        used, self._used = self._used, 0.0
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
                value = None  # an error must not refer to itself through this frame
                self._add()
                self._began = None
            try:
                step, value = work.send, (yield awaited)
            except BaseException as error:
                step, value = work.throw, error

    def _add(self) -> None:
        if self._began is not None:
            now = time.thread_time()
            self._used, self._began = self._used + now - self._began, now
