"""Which requests are worked on and which ones wait: a queue, and threads, that are fair to all flows of requests."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from vlroute.fair_share import FairShare, Flow

T = TypeVar("T")


class Ticket:
    """One request in a `FairQueue`.

    Args:
        flow: Its flow.
        size: Number of places that it takes.

    Attributes:
        place: Done when the request has a place. It has an exception if the request is refused while it waits.
        placed: Whether the request has a place.
    """

    def __init__(self, flow: Flow, size: int = 1) -> None:
        self.flow, self.size = flow, size
        self.place, self.placed = Future[None](), False
        self.place.set_running_or_notify_cancel()  # who waits for it cannot cancel it


class FairQueue:
    """Gives a limited number of places to the requests of several flows. Thread-safe.

    A free place goes to the flow that has fewest, relative to its weight; then to the one that got fewest so far. A
    flow with less than its share of the places does not wait for one: then more than `places` are given. If `most`
    requests have places or wait, a further one replaces the last waiting request of the flow with most requests, or is
    refused if its own flow has as many.

    Args:
        places: Number of places.
        most: Number of requests that have places or wait; None: no limit.
        refusal: Makes the error for a request that is refused.
        per_flow: Maximum number of places of one flow, if the places are never exceeded.
    """

    def __init__(
        self, places: int, most: int | None, refusal: Callable[[], Exception], per_flow: int | None = None
    ) -> None:
        self.places, self.most, self.per_flow = places, most, per_flow
        self._refusal = refusal
        self._lock = threading.Lock()
        self._shares = FairShare()  # of places
        self._placed: Counter[str] = Counter()  # number of places of each flow
        self._weights: dict[str, float] = {}  # of the flows with places
        self._waiting: dict[str, list[Ticket]] = {}
        self._closed: Callable[[], Exception] | None = None

    def __len__(self) -> int:
        return self._placed.total() + self.waiting

    @property
    def waiting(self) -> int:
        """Number of requests without a place."""
        return sum(ticket.size for tickets in [*self._waiting.values()] for ticket in [*tickets])

    def enter(self, flow: Flow, size: int = 1) -> Ticket:
        """Let a request wait for a place. `leave` must be called at its end.

        Args:
            flow: Its flow.
            size: Number of places that it takes, such as that of its answers.

        Returns:
            Its ticket.

        Raises:
            Exception: The result of `refusal`; `leave` must not be called then.
        """
        ticket, replaced = Ticket(flow, size), list[Ticket]()
        with self._lock:
            if self._closed is not None:
                raise self._closed()
            if self.most is not None and not self._make_room(ticket, self.most, replaced):
                raise self._refusal()
            self._waiting.setdefault(flow.name, []).append(ticket)
            placed = self._place()
        for one in replaced:
            one.place.set_exception(self._refusal())
        for one in placed:
            one.place.set_result(None)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """End a request, whether it has a place, waits, or was refused while it waited."""
        with self._lock:
            name = ticket.flow.name
            if ticket in self._waiting.get(name, ()):
                self._remove(ticket)
            elif ticket.placed:
                ticket.placed = False
                self._placed[name] -= ticket.size
                if not self._placed[name]:
                    del self._placed[name], self._weights[name]
            placed = self._place()
        for one in placed:
            one.place.set_result(None)

    def close(self, error: Callable[[], Exception]) -> None:
        """Refuse the requests that wait, and all further ones.

        Args:
            error: Makes the error for each of them.
        """
        with self._lock:
            self._closed = error
            waiting = [ticket for tickets in self._waiting.values() for ticket in tickets]
            self._waiting.clear()
        for ticket in waiting:
            ticket.place.set_exception(error())

    def _held(self, flow: Flow) -> int:
        """Number of requests of a flow, with and without a place."""
        return self._placed[flow.name] + sum(ticket.size for ticket in self._waiting.get(flow.name, ()))

    def _flows(self) -> dict[str, Flow]:
        """The flows whose requests wait."""
        return {name: tickets[0].flow for name, tickets in self._waiting.items()}

    def _make_room(self, newcomer: Ticket, most: int, replaced: list[Ticket]) -> bool:
        """Remove waiting requests, which are added to `replaced`, for a new one. False if it must be refused."""
        while len(self) + newcomer.size > most:
            ticket = self._last_of_heaviest(newcomer)
            if ticket is None:
                break
            self._remove(ticket)
            replaced.append(ticket)
        else:
            return True
        # a flow without any request is not kept out by those that fill the places
        if not self._held(newcomer.flow) and len(self) + newcomer.size <= most + self.places:
            return True
        for ticket in reversed(replaced):
            self._waiting.setdefault(ticket.flow.name, []).append(ticket)
        return False

    def _last_of_heaviest(self, newcomer: Ticket) -> Ticket | None:
        """The waiting request that a new one may replace."""
        heaviest = max(self._flows().values(), key=lambda flow: self._held(flow) / flow.weight, default=None)
        if heaviest is None:
            return None
        ticket, flow = self._waiting[heaviest.name][-1], newcomer.flow
        left, mine = self._held(heaviest) - ticket.size, self._held(flow) + newcomer.size
        return ticket if left / heaviest.weight >= mine / flow.weight else None

    def _remove(self, ticket: Ticket) -> None:
        tickets = self._waiting[ticket.flow.name]
        tickets.remove(ticket)
        if not tickets:
            del self._waiting[ticket.flow.name]

    def _place(self) -> list[Ticket]:
        """Take the requests that get a place out of the queue."""
        placed = []
        while self._waiting:
            flows = [*self._flows().values()]
            self._shares.advance(flows)
            if self.per_flow is not None:
                flows = [flow for flow in flows if self._placed[flow.name] < self.per_flow]
                if not flows or self._placed.total() >= self.places:
                    break
            flow = min(flows, key=lambda one: ((self._placed[one.name] + 1) / one.weight, self._shares.received(one)))
            if self._placed.total() >= self.places and not self._below_share(flow):
                break
            ticket = self._waiting[flow.name][0]
            self._remove(ticket)
            self._placed[flow.name] += ticket.size
            self._weights[flow.name] = flow.weight
            self._shares.charge(flow, ticket.size)
            ticket.placed = True
            placed.append(ticket)
        return placed

    def _below_share(self, flow: Flow) -> bool:
        """Whether a flow has less than its share of the places with one more."""
        total = sum({**self._weights, flow.name: flow.weight}.values())
        return self._placed[flow.name] + 1 <= self.places * flow.weight / total


class FairThreads:
    """Threads for work that can take seconds, shared fairly by several flows.

    Args:
        count: Number of threads.
        most: Maximum number of tasks that run or wait; None: no limit.
        refusal: Makes the error for further ones.
        name: Beginning of the names of the threads.
        per_flow: Maximum number of threads that one flow uses at a time.
        begin: Called at the start of each thread.
    """

    def __init__(
        self,
        count: int,
        most: int | None,
        refusal: Callable[[], Exception],
        name: str,
        per_flow: int = 1,
        begin: Callable[[], Any] | None = None,
    ) -> None:
        self.queue = FairQueue(count, most, refusal, per_flow)
        self._threads = ThreadPoolExecutor(count, name, begin)

    async def run(self, work: Callable[[], T], flow: Flow, seconds: float) -> T:
        """Wait for a thread and run work in it, in the context of the caller.

        If the coroutine is cancelled, work that has begun goes on, and keeps its thread.

        Args:
            work: The work.
            flow: Its flow.
            seconds: Maximum time to wait for a thread.

        Returns:
            What `work` returns. Its errors are passed on.

        Raises:
            TimeoutError: No thread was free in time.
            Exception: The result of `refusal`, if too many tasks run or wait.
        """
        ticket = self.queue.enter(flow)
        try:
            async with asyncio.timeout(seconds):
                await asyncio.wrap_future(ticket.place)
            running = self._threads.submit(copy_context().run, work)
        except BaseException:
            self.queue.leave(ticket)
            raise
        running.add_done_callback(lambda _: self.queue.leave(ticket))
        return await asyncio.wrap_future(running)

    def submit(self, work: Callable[[], T], flow: Flow) -> Future[T]:
        """Run work in a thread when one is free.

        Args:
            work: The work.
            flow: Its flow.

        Returns:
            A future with the result of `work`. If no thread can run it, as after `shutdown`, it runs in the thread that
            calls `submit`, or in the one whose work ends before it.

        Raises:
            Exception: The result of `refusal`, if too many tasks run or wait.
        """
        ticket, result = self.queue.enter(flow), Future[T]()
        todo = [result]  # an executor may have queued the work before it raises; then it must not run twice

        def run() -> None:
            try:
                future = todo.pop()
            except IndexError:
                return
            try:
                if future.set_running_or_notify_cancel():
                    future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
            finally:
                del future  # an error must not refer to itself through this frame
                self.queue.leave(ticket)

        def begin(place: Future[None]) -> None:
            if (refusal := place.exception()) is not None:
                todo.pop().set_exception(refusal)
                return
            try:
                self._threads.submit(run)
            except RuntimeError:
                run()

        ticket.place.add_done_callback(begin)
        return result

    def call(self, work: Callable[[], T], flow: Flow, seconds: float) -> T:
        """`run`, for the code of a thread.

        Args:
            work: The work.
            flow: Its flow.
            seconds: Maximum time to wait for a thread.

        Returns:
            What `work` returns. Its errors, and those of `run`, are passed on.
        """
        ticket = self.queue.enter(flow)
        try:
            ticket.place.result(seconds)
            running = self._threads.submit(copy_context().run, work)
        except BaseException:
            self.queue.leave(ticket)
            raise
        running.add_done_callback(lambda _: self.queue.leave(ticket))
        return running.result()

    def shutdown(self) -> None:
        """Wait until the work that has begun has ended. No further work is accepted."""
        self._threads.shutdown()
