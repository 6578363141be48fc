"""Garbage collection that does not hold up a server."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

from vlroute.decision.selector import ModeSelector
from vlroute.errors import ArtifactError, CheckpointError, ModeUnavailableError, VLRouteError
from vlroute.inputs.media import FrameSampling, Limits
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.router import Router
from vlroute.serving.errors import APIError
from vlroute.serving.metrics import Metrics
from vlroute.serving.settings import ServerSettings
from vlroute.store import Store
from vlroute.types import MODES, Answer, AnswerDelta, Decision, Event, Events, Finished, Mode, ThinkingDelta


def spare_what_is_loaded() -> None:
    """Have Python's garbage collector leave alone all that is in memory now: modules, models and their libraries.

    It would look through half a million objects anew every few hundred requests, and nobody is answered meanwhile. For
    processes that do nothing but serve.
    """
    gc.collect()  # what is garbage now would stay for good
    gc.freeze()


Emit = Callable[[Event], None]


class Running:
    """Events of one request, read by `next` on the event loop that made it."""

    def __init__(
        self,
        pool: Executor,
        work: Callable[[Emit], Any],
        cancel: threading.Event,
        ended: Callable[[], None],
        left: float,
    ) -> None:
        """`work` runs in `pool`, then `ended` is called. `cancel` is set after `left` seconds or by `close`."""
        self._cancel = cancel
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        self._alarm = self._loop.call_later(max(left, 0), cancel.set)

        def over(future: Future[Any]) -> None:
            ended()
            error = None if future.cancelled() else future.exception()
            self._emit(error or RuntimeError("the work ended before its answer did"))  # after an answer nobody reads it

        self._future = pool.submit(work, self._emit)
        self._future.add_done_callback(over)

    async def next(self, timeout: float | None = None) -> Event:
        """The next event; raises what ended the work. TimeoutError if nothing comes in time."""
        event = await asyncio.wait_for(self._queue.get(), timeout)
        if isinstance(event, BaseException):
            raise event
        return cast(Event, event)

    def close(self) -> None:
        """Nobody reads on: writing ends within one token."""
        self._alarm.cancel()
        self._cancel.set()
        self._future.cancel()

    def _emit(self, event: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


log = logging.getLogger("vlroute")
State = Literal["loading", "ready", "failed", "shutting down"]
RETRY_SECONDS = 1.0  # until the next attempt to load
SMOOTHING = 0.1  # weight of the latest answer in the mean seconds that Retry-After is made of


class Service:
    """A router with a bounded number of requests inside. Thread-safe.

    At most `2 · max_num_seqs + max_waiting` are inside; the next is refused with 429. Generation
    stops within one token when the client disconnects or the deadline passes.
    """

    def __init__(self, router: Router, settings: ServerSettings) -> None:
        self.router, self.settings, self.metrics = router, settings, Metrics()
        self.metrics.watch_caches(self._caches)
        self.most = 2 * settings.max_num_seqs + settings.max_waiting
        self.ready = self.draining = False
        self.failure: BaseException | None = None
        self.on_failure: Callable[[BaseException], Any] = log_failure
        self._loader: threading.Thread | None = None
        self._pool = ThreadPoolExecutor(self.most + 2, thread_name_prefix="vlroute-answer")
        self._inside: set[threading.Event] = set()
        self._lock = threading.Lock()
        self._mean_seconds = 1.0
        for mode in MODES:
            self.metrics.waiting.labels(mode).set_function(partial(self._waiting, mode))
        self.metrics.running.set_function(lambda: len(self._inside))

    @property
    def selector(self) -> ModeSelector:
        return self.router.selector

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    def sampling(self) -> FrameSampling:
        """See `Router.sampling`."""
        return self.router.sampling()

    @property
    def store(self) -> Store | None:
        return self.router.store

    @property
    def state(self) -> State:
        if self.draining:
            return "shutting down"
        return "ready" if self.ready else "failed" if self.failure is not None else "loading"

    def begin(self) -> None:
        """Start loading both checkpoints in a thread. Later calls do nothing.

        Afterwards the state is "ready", or "failed" with `failure` set; then `on_failure` is called in that thread.
        Loading is retried only after a ModeUnavailableError, because a later deployment may start replicas. The
        thread is a daemon, so that the process can end without waiting for a download.
        """
        with self._lock:
            if self._loader is None:
                self._loader = threading.Thread(target=self._load, name="vlroute-load", daemon=True)
                self._loader.start()

    def _load(self) -> None:
        while not self.draining:  # closing the router while it loads is not a failure
            try:
                self.router.load()
                spare_what_is_loaded()
                self.ready, self.failure = True, None
                return
            except BaseException as error:
                first, self.failure = self.failure is None, error
                if first and not self.draining:
                    self.on_failure(error)
                if not isinstance(error, ModeUnavailableError):
                    return
            time.sleep(RETRY_SECONDS)

    def start(
        self, prepare: Callable[[], Conversation], options: RequestOptions, arrived: float, deltas: bool = True
    ) -> Running:
        """Begin to answer; `prepare` makes the conversation, in the thread that answers.

        `arrived`: `time.perf_counter()` when the request came in. Without `deltas` only decision and whole answer wake
        the event loop. Among the events may come an InputError of `prepare`, and APIError 504 past the deadline, 503
        when the server stops.

        APIError: 429 too many inside, 503 not ready.
        """
        cancel = self._enter()

        def work(emit: Emit) -> None:
            watch = _Watch(self, arrived, emit, deltas)
            self.router.answer_turn(prepare(), replace(options, cancel=cancel), watch)

        left = self.settings.deadline - (time.perf_counter() - arrived)
        return Running(self._pool, work, cancel, partial(self._leave, cancel), left)

    def stream_turn(self, conversation: Conversation, options: RequestOptions) -> Events:
        """`start` for threads, as of `Router.stream_turn`; for the page."""
        arrived, cancel = time.perf_counter(), self._enter()
        alarm = threading.Timer(self.settings.deadline, cancel.set)
        alarm.daemon = True
        alarm.start()
        watch = _Watch(self, arrived, lambda event: None)
        try:
            with closing(self.router.stream_turn(conversation, replace(options, cancel=cancel))) as events:
                for event in events:
                    watch(event)
                    yield event
        finally:
            alarm.cancel()
            self._leave(cancel)

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """See `Router.decide_on`."""
        return self.router.decide_on(conversation, options)

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        """See `Router.feedback`. APIError 400 where nothing is stored."""
        if self.router.store is None:
            raise APIError(400, "this server stores no answers; start it with --store FILE", "no_store")
        self.router.feedback(answer_id, correct=correct, comment=comment)
        self.metrics.feedback.inc()

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """What `work` gives, made in a thread of the same bounded number."""
        cancel = self._enter()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._leave(cancel)

    async def drain(self, seconds: float) -> None:
        """Let nobody in, give those inside so many seconds, then cancel them."""
        self.draining = True
        until = time.monotonic() + seconds
        while self._inside and time.monotonic() < until:
            await asyncio.sleep(0.02)
        with self._lock:
            for cancel in self._inside:
                cancel.set()
        await asyncio.to_thread(self._pool.shutdown, True)
        self.router.close()

    def _enter(self) -> threading.Event:
        self.begin()  # the start-up of a mounted application is not run
        cancel = threading.Event()
        with self._lock:
            if self.draining:
                raise self._stopping()
            if self.failure is not None:
                raise APIError(503, failure_reason(self.failure), "failed")
            if not self.ready:
                raise APIError(503, "the models are being loaded", "loading", headers={"Retry-After": "5"})
            if len(self._inside) >= self.most:
                wait = math.ceil(self._mean_seconds * len(self._inside) / (2 * self.settings.max_num_seqs))
                raise APIError(
                    429, f"{len(self._inside)} requests are being answered or wait already; try again later",
                    "too_many_requests", headers={"Retry-After": str(min(max(wait, 1), 60))},
                )  # fmt: skip
            self._inside.add(cancel)
        return cancel

    def _stopping(self) -> APIError:
        return APIError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "5"})

    def _leave(self, cancel: threading.Event) -> None:
        with self._lock:
            self._inside.discard(cancel)

    def observe(self, answer: Answer, seconds: float, first: float | None) -> None:
        """Count an answer that took `seconds`. APIError 504 or 503 if it was cut off by the deadline or a shutdown."""
        self.metrics.answered(answer, seconds, first)
        if answer.finish_reason != "cancelled":
            with self._lock:
                self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)
        elif seconds >= self.settings.deadline:
            raise APIError(
                504, f"not answered within {self.settings.deadline:g} s; ask for fewer tokens or less reasoning",
                "deadline_exceeded",
            )  # fmt: skip
        elif self.draining:
            raise self._stopping()

    def _caches(self) -> dict[str, Any] | None:
        if not self.ready or self.router.closed or self.router.remote is not None:
            return None
        return {"vision": self.router.cache.stats(), "prefix": self.router.prefixes.stats()}

    def _waiting(self, mode: Mode) -> int:
        scheduler = self.router.scheduler
        return scheduler.waiting().get(mode, 0) if scheduler else 0


def log_failure(error: BaseException) -> None:
    """Log why the models could not be loaded, with a traceback only for errors of other packages."""
    unexpected = None if isinstance(error, VLRouteError) else error
    log.error("the models could not be loaded: %s", error, exc_info=unexpected)


def failure_reason(error: BaseException) -> str:
    """The reason why the models could not be loaded, without paths and addresses."""
    match error:
        case CheckpointError():
            why = "a checkpoint is missing, damaged or of the wrong kind"
        case ArtifactError():
            why = "the router artifact cannot be used"
        case ModeUnavailableError():
            why = "no replica could be started"
        case MemoryError():
            why = "there is not enough memory"
        case _:
            why = type(error).__name__
    return f"the models could not be loaded: {why}; see the server's log"


class _Watch:
    """Hands events on and takes the times."""

    def __init__(self, service: Service, arrived: float, emit: Emit, deltas: bool = True) -> None:
        self.service, self.arrived, self.emit, self.deltas = service, arrived, emit, deltas
        self.first: float | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, ThinkingDelta | AnswerDelta):
            self.first = self.first or time.perf_counter() - self.arrived
            if not self.deltas:
                return
        if isinstance(event, Finished):
            self.service.observe(event.answer, time.perf_counter() - self.arrived, self.first)
        self.emit(event)
