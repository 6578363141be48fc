"""The service behind the API and the page: loading, admission, deadlines and shutdown of one router."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import closing, suppress
from contextvars import copy_context
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, get_args

from vlroute.conversations import Conversations
from vlroute.decision.selector import ModeSelector
from vlroute.engine.settings import response_format
from vlroute.errors import (
    ArtifactError,
    CheckpointError,
    LimitError,
    ModeUnavailableError,
    StoreError,
    VLRouteError,
)
from vlroute.fair_share import Flow
from vlroute.inputs.decoding import DecodingCancelledError, MediaBudget, PixelPool, decoding
from vlroute.inputs.media import FrameSampling, Limits
from vlroute.inputs.messages import Conversation
from vlroute.inputs.tools import Tools
from vlroute.lazy_model import PREPARING_THREADS
from vlroute.learned import LearningEvent, LearningHistory
from vlroute.pipeline import EitherEvent, RequestOptions
from vlroute.router import Router
from vlroute.serving.admission import FairQueue, FairThreads, Ticket
from vlroute.serving.choices import ChoiceEvent, Choices, Item, joined, without_prompt
from vlroute.serving.errors import APIError, known_error
from vlroute.serving.fetch import Preparation
from vlroute.serving.freed_memory import BYTES_PER_PIXEL, FreedMemory
from vlroute.serving.key_limits import KeyLimiter
from vlroute.serving.keys import APIKey, APIKeys, no_valid_key, session_key_name, session_login
from vlroute.serving.metrics import Metrics
from vlroute.serving.model_names import model_names
from vlroute.serving.request_log import RequestRecord, current_request, write
from vlroute.serving.settings import ServerSettings
from vlroute.serving.telemetry import telemetry_from_environment
from vlroute.serving.wrong_keys import WrongKeys
from vlroute.steps import Steps, start
from vlroute.store import Store
from vlroute.stream import AsyncStream
from vlroute.types import MODES, Answer, Decision, Event, Events, Finished, Mode

log = logging.getLogger("vlroute")
State = Literal["loading", "ready", "failed", "shutting down"]
CANCEL_SECONDS = 20.0  # until cancelled answers have ended
CLEANING_SECONDS = 600.0  # between two deletions of expired responses
FOLLOW_SECONDS = 5.0  # between two looks at which artifact is in use
RETRY_SECONDS = 1.0  # until the next attempt to load
#: Number of threads that check formats and tools, and number of those that use the store.
BACKGROUND_THREADS = 2
LOWEST_PRIORITY = 19  # of threads, on Linux
SMOOTHING = 0.1  # weight of the latest answer in the mean seconds from which Retry-After is computed
T = TypeVar("T")


class Service:
    """A router with a limited number of admitted requests. Thread-safe.

    At most `2 · max_num_seqs` requests are fetched, decoded and answered; `max_waiting` further ones wait for one of
    these places. API keys, or client addresses if there are no keys, share both, see `FairQueue`. Decoding stops before
    the next picture or frame, and generation within one token, when the client disconnects or the deadline passes.

    Args:
        router: Answers the requests.
        settings: Limits and keys.
        on_failure: Called with the error if the models cannot be loaded.

    Attributes:
        models: See `model_names`.
        conversations: Stored responses; None if the router has no store.
        history: What `vlroute learn` did with the store; None if the router has no store.
        freed_memory: Counts the memory of requests that have ended.
        draining: Whether the server shuts down, so that no request is admitted. A signal handler may set it.
        hurry: Whether the shutdown does not wait for unfinished answers. A signal handler may set it.

    Raises:
        InputError: The key file cannot be used.
    """

    def __init__(self, router: Router, settings: ServerSettings, on_failure: Callable[[BaseException], Any]) -> None:
        self.router, self.settings, self.metrics = router, settings, Metrics()
        self.telemetry = telemetry_from_environment()
        self.max_admitted = settings.max_admitted
        self.keys = APIKeys(settings.api_keys, settings.key_file, router.store is not None)
        self.limiter, self.wrong_keys = KeyLimiter(router.store), WrongKeys()
        self.ready = self.draining = self.hurry = False
        self.failure: BaseException | None = None
        self._on_failure = on_failure
        self._loader: threading.Thread | None = None
        threads = PREPARING_THREADS
        if router.blocks:
            threads = self.max_admitted + 2 * settings.max_num_seqs + threads
        # one thread is left for other flows
        self._pool = FairThreads(threads, None, self._too_many, "vlroute-answer", per_flow=threads - 1)
        if not router.blocks:
            # a thread inherits the priority of the one that starts it, which may be that of the models
            started = threading.Barrier(threads)
            for number in range(threads):
                self._pool.submit(started.wait, Flow(str(number)))
        self._admitted: Counter[threading.Event] = Counter()  # number of answers of each request
        self._queue = FairQueue(2 * settings.max_num_seqs, self.max_admitted, self._too_many)
        most, per_flow = settings.max_decoding, max(settings.max_decoding - 1, 1)
        self._decoding = FairThreads(most, None, self._too_many, "vlroute-decode", per_flow, _run_behind)
        self._checking, self._storing = (
            FairThreads(BACKGROUND_THREADS, limit, _too_many_in_background, f"vlroute-{name}")
            # connections limit how many requests wait for the store, and refusing one would cost more than its work
            for name, limit in (("check", self.max_admitted), ("store", None))
        )
        self._pixels = PixelPool(settings.max_media_pixels, settings.limits.max_total_pixels)
        self.freed_memory = FreedMemory()
        self._lock = threading.Lock()
        self._mean_seconds = 1.0
        self.models = model_names(router)
        self.conversations: Conversations | None = None
        self.history: LearningHistory | None = None
        if router.store is not None:
            self.conversations = Conversations(router.store, timedelta(days=settings.retention_days))
            self.metrics.watch_store(router.store)
            self.history = LearningHistory(router.store, settings.learned_folder)
            self.metrics.watch_learner(self.history)
        self.metrics.watch_caches(self._caches)
        if router.shadow is not None:
            self.metrics.watch_shadow(router.shadow)
        self.metrics.running.set_function(lambda: self._admitted.total())
        waiting = (self._queue, self._checking.queue, self._storing.queue)
        self.metrics.queued.set_function(lambda: sum(queue.waiting for queue in waiting))
        for state in get_args(State):
            self.metrics.state.labels(state.replace(" ", "_")).set_function(partial(self._is_in, state))
        for mode in MODES:
            self.metrics.waiting.labels(mode).set_function(partial(self._waiting, mode))

    @property
    def selector(self) -> ModeSelector:
        """See `Router.selector`."""
        return self.router.selector

    @property
    def limits(self) -> Limits:
        """Limits of the media in a request."""
        return self.settings.limits

    @property
    def store(self) -> Store | None:
        """See `Router.store`."""
        return self.router.store

    def sampling(self) -> FrameSampling:
        """See `Router.sampling`."""
        return self.router.sampling()

    @property
    def state(self) -> State:
        """Whether requests are accepted ("ready"), and if not, why."""
        if self.draining:
            return "shutting down"
        return "ready" if self.ready else "failed" if self.failure is not None else "loading"

    def begin(self) -> None:
        """Start loading the models in a thread. Later calls do nothing.

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
                exclude_from_gc()
                self.ready, self.failure = True, None
                return
            except BaseException as error:
                first, self.failure = self.failure is None, error
                if first and not self.draining:
                    self._on_failure(error)
                if not isinstance(error, ModeUnavailableError):
                    return
            time.sleep(RETRY_SECONDS)

    def key_of(self, authorization: str | None, address: str) -> APIKey | None:
        """The key of a request.

        Args:
            authorization: The Authorization header.
            address: Address of the client.

        Returns:
            The key; None if the server needs no key.

        Raises:
            APIError: 401 for a missing or wrong key, 429 for too many wrong ones.
        """
        try:
            return self.keys.of(authorization)
        except APIError as error:
            raise (self.wrong_keys.count(address) if authorization else None) or error from None

    def log_in(self, key: str, address: str) -> APIKey | None:
        """The key with which a visitor of the page logs in.

        Args:
            key: What the visitor sends.
            address: Address of the visitor.

        Returns:
            The key; None if it is wrong.

        Raises:
            APIError: 429 after too many wrong keys.
        """
        found = self.keys.find(key)
        if found is None and (refusal := self.wrong_keys.count(address)) is not None:
            raise refusal
        return found

    async def answer(
        self,
        prepare: Preparation,
        options: RequestOptions,
        arrived: float,
        keep: Callable[[Answer], Any] | None = None,
    ) -> Answer:
        """Answer one request. Cancelling this coroutine cancels the answer.

        Args:
            prepare: Makes the conversation.
            options: Options of the request.
            arrived: `time.perf_counter()` when the request arrived.
            keep: Called with the complete answer before it is returned, in the thread that answers.

        Returns:
            The complete answer.

        Raises:
            APIError: 429 if too many requests are admitted, 503 if the server is not ready or shuts down, 504 if the
                deadline passed.
            InputError: Raised by `prepare`.
        """
        record = current_request()
        flow = options.flow or Flow(options.namespace)
        place, conversation = await self._begin(prepare, flow, arrived)
        options = replace(options, cancel=place.cancel, id=record.answer_id())

        def work() -> Steps[Answer]:
            answer = yield from self.router.pipeline.answer(conversation(), options)
            self.limiter.spent(options.namespace, answer.usage)
            self._observe(answer, time.perf_counter() - arrived, record, keep)
            return answer

        alarm = asyncio.get_running_loop().call_later(self._seconds_left(arrived), place.cancel.set)
        record.begin_answer()
        future = start(work(), _FlowExecutor(self._pool, flow))
        future.add_done_callback(lambda _: self._release(place, record))
        try:
            return await asyncio.wrap_future(future)
        finally:
            alarm.cancel()
            place.cancel.set()

    async def stream(
        self,
        prepare: Preparation,
        options: RequestOptions,
        arrived: float,
        keep: Callable[[Answer], Any] | None = None,
    ) -> AsyncStream[Event]:
        """Start to answer one request.

        Args:
            prepare: Makes the conversation.
            options: Options of the request.
            arrived: `time.perf_counter()` when the request arrived.
            keep: See `answer`; it is called before the last event.

        Returns:
            The events of the answer. Reading them raises APIError 504 after the deadline or 503 if the server shuts
            down.

        Raises:
            APIError: See `answer`.
            InputError: Raised by `prepare`.
        """
        record = current_request()
        flow = options.flow or Flow(options.namespace)
        place, conversation = await self._begin(prepare, flow, arrived)
        options = replace(options, cancel=place.cancel, id=record.answer_id())

        def work(emit: Callable[[Event], None]) -> Steps[None]:
            def observed(event: Event) -> None:
                if isinstance(event, Finished):
                    self.limiter.spent(options.namespace, event.answer.usage)
                    self._observe(event.answer, time.perf_counter() - arrived, record, keep)
                emit(event)

            yield from self.router.pipeline.answer(conversation(), options, observed)

        record.begin_answer()
        stream = AsyncStream[Event](_FlowExecutor(self._pool, flow), work, place.cancel, self._seconds_left(arrived))
        stream.ended.add_done_callback(lambda _: self._release(place, record))
        return stream

    async def choices(
        self, prepare: Preparation, options: RequestOptions, arrived: float, count: int
    ) -> AsyncStream[Item]:
        """Start to answer one request several times. Each answer counts as an admitted request.

        Args:
            prepare: Makes the conversation.
            options: Options of the request.
            arrived: `time.perf_counter()` when the request arrived.
            count: Number of answers.

        Returns:
            See `Choices`. Reading raises the errors that `stream` describes.

        Raises:
            APIError: See `answer`.
            InputError: Raised by `prepare`.
        """
        flow, record = options.flow or Flow(options.namespace), current_request()
        place, conversation = await self._begin(prepare, flow, arrived, count)
        options = replace(options, cancel=place.cancel, id=record.answer_id())
        answers: dict[int, Answer] = {}
        counting = threading.Lock()

        def finished(index: int, answer: Answer) -> None:
            counted, seconds = without_prompt(answer) if index else answer, time.perf_counter() - arrived
            self.limiter.spent(options.namespace, counted.usage)
            with counting:
                answers[index], first_token = answer, record.first_token_seconds
                record.answered(joined(answers), seconds)
                if index:  # the first token is that of the first answer
                    record.first_token_seconds = first_token
            self.metrics.answered(counted, seconds, None if index else record.first_token_seconds)
            self._check_complete(answer, seconds)

        executor = _FlowExecutor(self._pool, flow)
        work = Choices(self.router.pipeline, conversation, options, count, executor, finished).work
        record.begin_answer()
        stream = AsyncStream[Item](executor, work, place.cancel, self._seconds_left(arrived))
        stream.ended.add_done_callback(lambda _: self._release(place, record))
        return stream

    async def answers(self, prepare: Preparation, options: RequestOptions, arrived: float, count: int) -> list[Answer]:
        """The complete answers of `choices`, which has the same arguments and errors.

        Cancelling this coroutine cancels the answers.
        """
        stream, answers = await self.choices(prepare, options, arrived, count), dict[int, Answer]()
        try:
            while not isinstance(item := await stream.next(), Finished):
                if isinstance(item, ChoiceEvent) and isinstance(item.event, Finished):
                    answers[item.index] = item.event.answer
        finally:
            stream.close()
        return [answers[index] for index in sorted(answers)]

    def stream_turn(self, prepare: Callable[[], Conversation], options: RequestOptions) -> Events:
        """`Router.stream_turn` with admission, limits and deadline, for the page; logged as a request."""
        record = RequestRecord(
            path="page", route="page", key=session_key_name(options.namespace), model=options.mode or "auto",
            on_end=self.request_ended,
        )  # fmt: skip
        try:
            key = self._visitor_key(options.namespace)
            if key is not None:
                options = replace(options, flow=key.flow)
                self.limiter.enter(key, self.limiter.used_today(key))
            try:
                yield from self._stream_turn(prepare, replace(options, id=record.answer_id()), record)
            finally:
                if key is not None:
                    self.limiter.leave(key)
        except GeneratorExit:
            if record.answer is None:
                self._note_left(record)
            raise
        except Exception as error:
            known = known_error(error)
            record.failed(known.status, known.code)
            self.metrics.refused(known.status, known.code)
            raise
        finally:
            record.end()

    def _note_left(self, record: RequestRecord) -> None:
        """Note that a visitor left, or stopped the answer, before it was finished."""
        record.disconnected = True
        record.failed(499, "client_left")
        self.metrics.refused(499, "client_left")

    def _visitor_key(self, namespace: str) -> APIKey | None:
        """The key of a visitor of the page; None if the server has no keys. APIError 401 if it is no longer valid."""
        login = session_login(namespace)
        if login is None:
            return None
        key = self.keys.logged_in(login)
        if key is None:
            raise no_valid_key()
        return key

    def _stream_turn(
        self, prepare: Callable[[], Conversation], options: RequestOptions, record: RequestRecord
    ) -> Events:
        def count(event: Event) -> None:
            if isinstance(event, Finished):
                self.limiter.spent(options.namespace, event.answer.usage)

        arrived = time.perf_counter()
        stop = options.cancel or threading.Event()
        place = self._enter(options.flow or Flow(options.namespace), arrived, stop=stop)
        cancel = place.cancel
        try:
            place.ticket.place.result(self.settings.deadline)
        except BaseException as error:
            self._release(place)
            raise self._late() if isinstance(error, TimeoutError) else error from None
        alarm = threading.Timer(self.settings.deadline, cancel.set)
        alarm.daemon = True
        alarm.start()
        try:
            decode = partial(self._decode, prepare, place)
            try:
                conversation = self._decoding.call(decode, place.ticket.flow, self._seconds_left(arrived))
            except (TimeoutError, DecodingCancelledError):
                if stop.is_set():
                    self._note_left(record)
                    return
                raise shutting_down() if self._seconds_left(arrived) else self._late() from None
            with closing(self.router.pipeline.stream(conversation, replace(options, cancel=cancel), count)) as events:
                for event in events:
                    if isinstance(event, Finished):
                        self._observe(event.answer, time.perf_counter() - arrived, record)
                    yield event
        finally:
            alarm.cancel()
            self._release(place)

    def request_ended(self, record: RequestRecord) -> None:
        """Count and log a request that has ended, and export its telemetry."""
        self.metrics.ended(record)
        if self.telemetry is not None:
            self.telemetry.export(record)
        write(record)

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """See `Router.decide_on`."""
        return self.router.decide_on(conversation, options)

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None, key: str = "") -> None:
        """See `Router.feedback`. APIError 400 if the server stores no answers."""
        if self.router.store is None:
            raise APIError(400, "this server stores no answers; start it with --store FILE", "no_store")
        self.router.feedback(answer_id, correct=correct, comment=comment, key=key)
        self.metrics.feedback.inc()

    async def check(self, work: Callable[[], T], flow: Flow, arrived: float) -> T:
        """Check a format or tools in another thread, for one request of a flow at a time. It can take seconds.

        Args:
            work: Checks them.
            flow: Flow of the request.
            arrived: `time.perf_counter()` when the request arrived.

        Returns:
            What `work` returns. Its errors are passed on.

        Raises:
            APIError: See `answer`.
        """
        self.begin()  # the start-up of a mounted application is not run
        with self._lock:
            self._check_ready()
        return await self._in_background(self._checking, work, flow, arrived)

    async def use_store(self, work: Callable[[], T], flow: Flow, arrived: float) -> T:
        """Read or change the store in another thread, for one request of a flow at a time. Needs no models.

        Args:
            work: Uses the store.
            flow: Flow of the request.
            arrived: `time.perf_counter()` when the request arrived.

        Returns:
            What `work` returns. Its errors are passed on.

        Raises:
            APIError: 504 if the deadline passed.
        """
        return await self._in_background(self._storing, work, flow, arrived)

    async def _in_background(self, threads: FairThreads, work: Callable[[], T], flow: Flow, arrived: float) -> T:
        try:
            return await threads.run(work, flow, self._seconds_left(arrived))
        except TimeoutError:
            raise self._late() from None

    async def read_options(self, body: AskedBody, namespace: str, flow: Flow, arrived: float) -> RequestOptions:
        """The options of a request, read as `check` does if it has a format.

        Args:
            body: The request.
            namespace: Namespace of the caller's caches.
            flow: Flow of the request.
            arrived: `time.perf_counter()` when it arrived.

        Returns:
            The options.

        Raises:
            APIError: See `answer`; also for fields that are invalid.
        """
        read = partial(body.options, self.settings, namespace, self.models)
        options = await self.check(read, flow, arrived) if body.has_format else read()
        return replace(options, flow=flow)

    async def read_tools(
        self, body: AskedBody, options: RequestOptions, arrived: float, *, answered: bool = True
    ) -> Tools | None:
        """The tools of a request, read as `check` does.

        Args:
            body: The request.
            options: Its options.
            arrived: `time.perf_counter()` when it arrived.
            answered: Whether an answer follows, so that what it needs is checked.

        Returns:
            The tools.

        Raises:
            APIError: See `answer`.
            InputError: A tool is invalid or not supported, or the tools are too long.
        """
        if not body.tools:
            return body.offered_tools()

        def work() -> Tools | None:
            length = len(json.dumps(body.tools, ensure_ascii=False))  # also of tools that may not be called
            if length > self.settings.max_prompt:
                raise LimitError(f"{length} characters of tools, over the limit of {self.settings.max_prompt}")
            tools = body.offered_tools()
            if tools is not None and answered:
                self.router.pipeline.check_tools(tools, response_format(options.generation))
            return tools

        return await self.check(work, options.flow or Flow(options.namespace), arrived)

    async def with_conversation(
        self, prepare: Preparation, work: Callable[[Conversation], T], flow: Flow, arrived: float
    ) -> T:
        """The result of `work` for the conversation of a request that is not answered.

        Args:
            prepare: Makes the conversation.
            work: Called in a thread.
            flow: Flow of the request.
            arrived: `time.perf_counter()` when the request arrived.

        Returns:
            What `work` returns. Errors are those of `answer`.
        """
        place, conversation = await self._begin(prepare, flow, arrived)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                _FlowExecutor(self._pool, flow), lambda: work(conversation())
            )
        finally:
            place.cancel.set()
            self._release(place)

    async def remove_expired(self) -> None:
        """Delete expired responses and old counts of tokens at intervals, until cancelled."""
        while self.conversations is not None and self.limiter.tokens is not None:
            try:
                removed = await asyncio.to_thread(self.conversations.remove_expired)
                log.debug("%d expired responses were deleted", removed)
                await asyncio.to_thread(self.limiter.tokens.remove_old)
            except StoreError as error:
                log.error("expired responses and counts of tokens could not be deleted: %s", error)
            await asyncio.sleep(CLEANING_SECONDS)

    async def follow_learner(self) -> None:
        """Use the artifact that `vlroute learn` has put in use, until cancelled."""
        used, warned, failure = "", False, ""
        while self.history is not None:
            try:
                latest = await asyncio.to_thread(self.history.latest)
                if latest is not None and latest.artifact != used:
                    if not warned:
                        await asyncio.to_thread(self._warn_of_another_artifact, self.history, latest)
                        warned = True
                    await asyncio.to_thread(self.router.use, latest.artifact)
                    used = latest.artifact
                    log.info("the router artifact %s (%s) is in use", used, latest.fingerprint)
                failure = ""
            except VLRouteError as error:  # tried again: the store may come back, and the files may arrive later
                if str(error) != failure:
                    failure = str(error)
                    log.error(
                        "the learned router artifact cannot be used: %s. If the artifacts are in another folder on "
                        "this machine, pass --learned-folder", error,
                    )  # fmt: skip
            await asyncio.sleep(FOLLOW_SECONDS)

    def _warn_of_another_artifact(self, history: LearningHistory, latest: LearningEvent) -> None:
        """Warn if the router was created with an artifact that does not belong to the learning on its store."""
        given = self.selector.classifier
        if given is not None and given.fingerprint not in history.fingerprints():
            log.warning(
                "the router artifact of this server (%s) is not used, because learning on its store began with another "
                "one: %s (%s) is in use. To begin again with the artifact of this server, run vlroute learn --restart "
                "with it as --router",
                given.fingerprint, latest.artifact, latest.fingerprint,
            )  # fmt: skip

    async def finish(self, seconds: float) -> None:
        """Admit no more requests, give the admitted ones `seconds` to finish, and cancel the rest."""
        self.draining = True
        until = time.monotonic() + seconds
        while self._admitted and time.monotonic() < until and not self.hurry:
            await asyncio.sleep(0.02)
        with self._lock:
            for cancel in self._admitted:
                cancel.set()
        background = (self._decoding, self._checking, self._storing)
        for queue in (self._queue, *(threads.queue for threads in background)):
            queue.close(shutting_down)
        until = time.monotonic() + CANCEL_SECONDS  # the threads of the pool are needed until the last answer has ended
        while self._admitted and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def drain(self, seconds: float) -> None:
        """Like `finish`; then close the router."""
        await self.finish(seconds)
        for pool in (self._decoding, self._checking, self._storing, self._pool):
            await asyncio.to_thread(pool.shutdown)
        self.router.close()
        if self.telemetry is not None:
            await asyncio.to_thread(self.telemetry.close)

    async def _admit(self, flow: Flow, arrived: float, count: int = 1) -> _Place:
        """Wait until a request for this number of answers may be worked on. Raises the APIErrors of `answer`."""
        place = self._enter(flow, arrived, count)
        if (ready := place.ticket.place).done() and ready.exception() is None:
            return place
        try:
            # not `wait_for`, which ignores a cancellation if the place is given at the same time
            async with asyncio.timeout(self._seconds_left(arrived)):
                await asyncio.wrap_future(ready)
        except BaseException as error:
            self._release(place)
            if isinstance(error, TimeoutError):
                raise self._late() from None
            raise
        return place

    def _enter(self, flow: Flow, arrived: float, count: int = 1, stop: threading.Event | None = None) -> _Place:
        self.begin()  # the start-up of a mounted application is not run
        with self._lock:
            self._check_ready()
            place = _Place(self._queue.enter(flow, count), arrived, self._pixels, stop)
            self._admitted[place.cancel] = count
        return place

    def _check_ready(self) -> None:
        """APIError 503 if requests are not accepted."""
        if self.draining:
            raise shutting_down()
        if self.failure is not None:
            raise APIError(503, failure_reason(self.failure), "failed")
        if not self.ready:
            raise APIError(503, "the models are being loaded", "loading", headers={"Retry-After": "5"})

    def _too_many(self) -> APIError:
        wait = math.ceil(self._mean_seconds * len(self._queue) / (2 * self.settings.max_num_seqs))
        return APIError(
            429, f"{len(self._queue)} requests are already being answered or waiting; try again later",
            "too_many_requests", headers={"Retry-After": str(min(max(wait, 1), 60))},
        )  # fmt: skip

    def _late(self) -> APIError:
        return APIError(
            504, f"not answered within {self.settings.deadline:g} s; ask for fewer tokens or less reasoning",
            "deadline_exceeded",
        )  # fmt: skip

    async def _begin(
        self, prepare: Preparation, flow: Flow, arrived: float, count: int = 1
    ) -> tuple[_Place, Callable[[], Conversation]]:
        """`_admit`, then `_prepared`."""
        place = await self._admit(flow, arrived, count)
        try:
            return place, await self._prepared(prepare, place)
        except BaseException:
            self._release(place)
            raise

    async def _prepared(self, prepare: Preparation, place: _Place) -> Callable[[], Conversation]:
        """What makes the conversation in the thread that answers: media are fetched and decoded before."""
        flow = place.ticket.flow
        try:
            async with asyncio.timeout(self._seconds_left(place.arrived)):
                await prepare.fetch(flow)
                if not prepare.decodes:  # a thread of its own would take longer than the work
                    return prepare
                # the thread may need until its next picture or frame after this coroutine was cancelled
                decode = partial(self._decode, prepare, place)
                conversation = await self._decoding.run(decode, flow, self._seconds_left(place.arrived))
        except BaseException as error:
            place.cancel.set()
            if isinstance(error, TimeoutError):
                raise self._late() from None
            if isinstance(error, DecodingCancelledError):
                raise shutting_down() from None
            raise
        return lambda: conversation

    def _decode(self, prepare: Callable[[], Conversation], place: _Place) -> Conversation:
        with decoding(place.media):
            return prepare()

    def _release(self, place: _Place, record: RequestRecord | None = None) -> None:
        self.freed_memory.add(place.media.release() * BYTES_PER_PIXEL)
        self._queue.leave(place.ticket)
        with self._lock:
            del self._admitted[place.cancel]
        if record is not None:
            record.end_answer()

    def _seconds_left(self, arrived: float) -> float:
        return max(self.settings.deadline - (time.perf_counter() - arrived), 0.0)

    def _observe(
        self, answer: Answer, seconds: float, record: RequestRecord, keep: Callable[[Answer], Any] | None = None
    ) -> None:
        """Count an answer that took `seconds`, and keep it if it was not cancelled.

        APIError 504 or 503 if the deadline or a shutdown cut it off.
        """
        record.answered(answer, seconds)
        self.metrics.answered(answer, seconds, record.first_token_seconds)
        if answer.finish_reason != "cancelled" and keep is not None:
            keep(answer)
        self._check_complete(answer, seconds)

    def _check_complete(self, answer: Answer, seconds: float) -> None:
        """Update the mean duration. APIError 504 or 503 if the deadline or a shutdown cut the answer off."""
        if answer.finish_reason != "cancelled":
            with self._lock:
                self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)
        elif seconds >= self.settings.deadline:
            raise self._late()
        elif self.draining:
            raise shutting_down()
        elif self.router.closed:  # the client does not get an answer that was cut off as if it were complete
            raise APIError(503, "the server ended the answer; try again", "cancelled", headers={"Retry-After": "5"})

    def _caches(self) -> dict[str, Any] | None:
        if not self.ready or self.router.closed or self.router.remote is not None:
            return None
        return {"vision": self.router.cache.stats(), "prefix": self.router.prefixes.stats()}

    def _is_in(self, state: State) -> bool:
        return self.state == state

    def _waiting(self, mode: Mode) -> int:
        scheduler = self.router.scheduler
        return scheduler.waiting().get(mode, 0) if scheduler else 0


class AskedBody(Protocol):
    """A request with options and tools, in the form of any API."""

    tools: list[dict[str, Any]] | None

    @property
    def has_format(self) -> bool:
        """Whether a field constrains the form of the answer. Checking it can take a second."""

    def options(self, settings: ServerSettings, namespace: str, names: Mapping[str, Mode | None]) -> RequestOptions:
        """Convert the fields to options for the router. APIError if they are invalid."""

    def offered_tools(self) -> Tools | None:
        """The tools that the model may call. InputError if they are invalid."""


class _Place:
    """One admitted request.

    Args:
        ticket: Its place in the queue.
        arrived: `time.perf_counter()` when it arrived.
        pixels: The pixels of the process.
        stop: Ends the decoding of its pictures and videos when set.

    Attributes:
        cancel: Ends its work early.
        media: Its pictures and videos.
    """

    def __init__(self, ticket: Ticket, arrived: float, pixels: PixelPool, stop: threading.Event | None = None) -> None:
        self.ticket, self.arrived, self.cancel = ticket, arrived, threading.Event()
        self.media = MediaBudget(pixels, ticket.flow.name, EitherEvent(self.cancel, stop).is_set)


class _FlowExecutor(Executor):
    """Runs work of a flow in threads, with the context of this thread: log lines contain the id of the request."""

    def __init__(self, threads: FairThreads, flow: Flow) -> None:
        self._threads, self._flow, self._context = threads, flow, copy_context()
        self._record = current_request()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """See `Executor.submit`."""
        run = self._context.copy().run  # a context can be entered by one thread at a time
        work = partial(run, fn, *args, **kwargs)
        return self._threads.submit(partial(self._record.in_thread, work), self._flow)


def _run_behind() -> None:
    """Let this thread use a core only while no other thread needs it, where the system has priorities of threads."""
    if sys.platform == "linux":
        with suppress(OSError):  # a filter of system calls
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)


def _too_many_in_background() -> APIError:
    return APIError(
        429, "too many formats and tools are already being checked; try again later",
        "too_many_requests", headers={"Retry-After": "1"},
    )  # fmt: skip


def shutting_down() -> APIError:
    """The error for a request during the shutdown."""
    return APIError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "5"})


def exclude_from_gc() -> None:
    """Exclude all objects that exist now from garbage collection: modules, models and their libraries.

    A full collection would visit half a million objects every few hundred requests, and no request is answered
    meanwhile. For processes that only serve.
    """
    gc.collect()  # frozen garbage would never be freed
    gc.freeze()


def log_failure(error: BaseException) -> None:
    """Log why the models could not be loaded, with a traceback only for errors of other packages."""
    unexpected = None if isinstance(error, VLRouteError) else error
    log.error("the models could not be loaded: %s", error, exc_info=unexpected)


def failure_reason(error: BaseException) -> str:
    """The reason why the models could not be loaded, without paths and addresses."""
    match error:
        case CheckpointError():
            reason = "a checkpoint is missing, damaged or of the wrong kind"
        case ArtifactError():
            reason = "the router artifact cannot be used"
        case ModeUnavailableError():
            reason = "no replica could be started"
        case MemoryError():
            reason = "there is not enough memory"
        case _:
            reason = type(error).__name__
    return f"the models could not be loaded: {reason}; see the server's log"
