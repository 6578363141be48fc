"""Which replica a request belongs to: the one that holds its picture's features and what it read so far."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from vlroute.errors import ModeUnavailableError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.router import Router
from vlroute.serving.cluster.replica import ReplicaRequest
from vlroute.types import Answer, AnswerDelta, Decided, Decision, Event, Finished, ThinkingDelta, Timing, Usage

if TYPE_CHECKING:
    from vlroute.engine.local.engine import LocalEngine

PATIENCE_SECONDS = 0.1


class Affinity(ConsistentHashRouter):
    """Ray's ring, which goes on to the next replica where one is full; but patient with a busy one.

    Elsewhere the picture would have to be encoded anew. So a replica that computes has longer than Ray's tenth of a
    second to say how long its queue is, and one that is full has `PATIENCE_SECONDS` to get a place free: who asks
    again at once would else be sent away by its own answer, whose place Ray has not cleared yet.
    """

    queue_len_response_deadline_s = 2.0
    max_queue_len_response_deadline_s = 10.0

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """One replica after the other, each to be tried if those before it are full. Ray asks again, ever more slowly,
        until one is not."""
        ring: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or time.time() - pending_request.created_at >= PATIENCE_SECONDS:
            return ring
        return ring[:1]

    @property
    def max_num_routing_tasks(self) -> int:
        """Ray's two for each replica would have requests wait behind those that are patient."""
        return int(self.max_num_routing_tasks_cap)


def affinity(conversation: Conversation, namespace: str) -> str:
    """Equal for all turns of a conversation, however often it is sent anew, and for all that begin with the same
    picture or video; different for each namespace. SHA-256, 64 hex characters."""
    first = next(message for message in conversation.messages if message.role == "user")
    seen = next((part.digest for part in first.parts if isinstance(part, Picture | Video)), None)
    framed = f"vlroute affinity {len(namespace)}:{namespace} {seen or conversation.key}"
    return hashlib.sha256(framed.encode()).hexdigest()


log = logging.getLogger("vlroute")
GLANCE_SECONDS = 0.05  # how often a waiting thread looks whether its caller has left


class GaveUp(Exception):
    """The caller left while a replica was at work."""


class ReplicaLost(ModeUnavailableError):
    """The replica that was at it died, or none could be reached; another one may answer."""


class ReplicasFailed(ReplicaLost):
    """No replica can be started; Ray does not try again until the next deployment."""


class Calls:
    """An event loop in a thread of its own, on which all calls of one process to its replicas run. Thread-safe."""

    def __init__(self, handle: Any) -> None:
        """`handle`: of the deployment of replicas."""
        self.handle = handle
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vlroute-calls", daemon=True).start()

    def stream(self, method: str, key: str, cancel: threading.Event, *args: Any) -> Iterator[Any]:
        """What the generator `method` of the replica that `key` belongs to yields.

        Raises:
            GaveUp: `cancel` was set; the replica is told.
            ReplicaLost: it died.
            others: as the replica raised it.
        """
        arrived: SimpleQueue[Any] = SimpleQueue()
        reading = asyncio.run_coroutine_threadsafe(self._read(method, key, args, arrived), self._loop)
        try:
            while True:
                if cancel.is_set():
                    raise GaveUp
                try:
                    item = arrived.get(timeout=GLANCE_SECONDS)
                except Empty:
                    continue
                if isinstance(item, _Ended):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            reading.cancel()

    def call(self, method: str, key: str, *args: Any, timeout: float | None = None) -> Any:
        """What `method` of the replica that `key` belongs to gives. Errors as of `stream`; TimeoutError."""

        async def run() -> Any:
            return await self._options(key, stream=False, method_name=method).remote(*args)

        try:
            return asyncio.run_coroutine_threadsafe(asyncio.wait_for(run(), timeout), self._loop).result()
        except (RayError, RayServeException) as error:
            raise _known(error) from error

    def ask_all(self, method: str, timeout: float) -> list[Any]:
        """What `method` gives on every replica; in no order. ReplicaLost; TimeoutError, which a full replica causes,
        too: it answers when it has a place free."""
        try:
            found: list[Any] = self.handle.broadcast(method).results(timeout_s=timeout)
        except TimeoutError:
            raise
        except (RayError, RayServeException) as error:
            raise _known(error) from error
        return found

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _options(self, key: str, **options: Any) -> Any:
        return self.handle.options(session_id=key, **options)

    async def _read(self, method: str, key: str, args: tuple[Any, ...], arrived: SimpleQueue[Any]) -> None:
        response: AsyncIterator[Any] = self._options(key, stream=True, method_name=method).remote(*args)
        try:
            async for item in response:
                arrived.put(item)
            arrived.put(_Ended(None))
        except (RayError, RayServeException) as error:
            arrived.put(_Ended(_known(error)))
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[attr-defined]
            raise
        except BaseException as error:
            arrived.put(_Ended(error))


class _Ended:
    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _known(error: Exception) -> BaseException:
    """What Ray tells of `error`, in words of this project."""
    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        return cause
    if isinstance(error, DeploymentUnavailableError):
        return ReplicasFailed("no replica could be started; `serve status` and the replicas' logs say why")
    log.warning("a call to a replica failed: %s: %s", type(error).__name__, str(error).partition("\n")[0])
    return ReplicaLost(f"the replica that was at it is gone ({type(error).__name__})")


Made = TypeVar("Made")
TRIES = 4  # replicas that may die under one request
READY_SECONDS = 5.0
STATS_SECONDS = 5.0  # between two looks at the replicas' caches


class ClusterRouter(Router):
    """A `Router` that loads no checkpoint. Made by `from_pretrained`, then told its replicas by `reach`. Thread-safe.

    What it cannot do: whatever needs the pair in this process (`model`, `ask`, `stream`, chats). ValueError.
    """

    _calls: Calls

    def reach(self, calls: Calls) -> ClusterRouter:
        """Answer through these replicas from now on."""
        self._calls, self._caches, self._closed = calls, dict[str, SimpleNamespace](), threading.Event()
        return self

    def load(self) -> ClusterRouter:
        """Wait for the first replica, then poll the caches of the replicas. ReplicasFailed if Ray has stopped trying to
        start one."""
        while not self._closed.is_set():
            try:
                self._calls.call("stats", "", timeout=READY_SECONDS)
                break
            except ReplicasFailed:
                raise
            except (ReplicaLost, TimeoutError):
                self._closed.wait(0.1)
        threading.Thread(target=self._watch, name="vlroute-caches", daemon=True).start()
        return self

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """As of `Router`. Where a caption has to be made, the replica that will answer makes it.

        ReplicaLost if no replica could.
        """
        if (decision := self._settled(conversation, options)) is not None:
            return decision
        key, asked = affinity(conversation, options.namespace), replace(options, cancel=None)
        made: Decision = self._tried(lambda: self._calls.call("decide", key, conversation, asked))
        return made

    def answer_turn(
        self, conversation: Conversation, options: RequestOptions, emit: Callable[[Event], Any] = lambda event: None
    ) -> Answer:
        """As of `Router`. A replica that dies is replaced by another as long as nobody has seen a piece of its answer.

        ReplicaLost if none could answer, or one died in the middle of a stream.
        """
        # the service says so of itself where it hands on no pieces: then all of them can be written again
        streamed = bool(getattr(emit, "deltas", True))
        decision = self._settled(conversation, options) if options.mode or len(conversation.messages) == 1 else None
        asked = ReplicaRequest(conversation, replace(options, cancel=None), decision, streamed)
        key, cancel = affinity(conversation, options.namespace), options.cancel or threading.Event()
        seen = _Seen(emit, streamed)

        def attempt() -> Answer:
            for event in self._calls.stream("answer", key, cancel, asked):
                if isinstance(event, Finished):
                    self._observe(event.answer)
                    emit(event)
                    return event.answer
                seen(event)
            raise ReplicaLost("the replica ended before its answer did", seen.begun)

        try:
            return self._tried(attempt, lambda: not seen.begun)
        except GaveUp:
            answer = self._cancelled(seen.decided or self._guess(conversation, options, emit))
            emit(Finished(answer))
            return answer

    def close(self) -> None:
        """Nothing is answered afterwards."""
        self._closed.set()
        self._calls.close()

    @property
    def cache(self) -> Any:
        """`cache.stats()`: sums over the replicas, some seconds old."""
        return SimpleNamespace(stats=lambda: self._caches.get("vision"))

    @property
    def prefixes(self) -> Any:
        """As `cache`."""
        return SimpleNamespace(stats=lambda: self._caches.get("prefix"))

    @property
    def _local(self) -> LocalEngine:
        raise ValueError("this router answers through replicas: it holds no pair and no caches")

    def _settled(self, conversation: Conversation, options: RequestOptions) -> Decision | None:
        """The decision, where it hangs on nothing that only a replica knows: a caption of its pictures."""
        if options.mode is None and options.caption is None and (conversation.pictures or conversation.videos):
            return None
        return self.selector.decide(conversation, options.caption, options.mode, options.price)

    def _tried(self, attempt: Callable[[], Made], again: Callable[[], bool] = lambda: True) -> Made:
        for _ in range(TRIES - 1):
            try:
                return attempt()
            except ReplicaLost as error:
                if not again():
                    raise ReplicaLost(str(error), begun=True) from error
        return attempt()

    def _observe(self, answer: Answer) -> None:
        """Learn the replicas' pace, which the decisions made here go by."""
        if answer.finish_reason != "cancelled":
            timing, used = answer.timing, answer.usage
            read = None if used.prompt_tokens is None else used.prompt_tokens - used.cached_tokens
            self.selector.observe(answer.decision.mode, used.completion_tokens, timing.prefill, timing.decode, read)

    def _guess(self, conversation: Conversation, options: RequestOptions, emit: Callable[[Event], Any]) -> Decided:
        """For whoever left before there was a decision: every answer has one."""
        decided = Decided(self.selector.decide(conversation, options.caption, options.mode, options.price))
        emit(decided)
        return decided

    def _cancelled(self, decided: Decided) -> Answer:
        nothing, no_time = Usage(0, 0, 0, 0), Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        return Answer("", "", decided.decision, "cancelled", nothing, no_time, decided.id)

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                replicas = [one["caches"] for one in self._calls.ask_all("stats", STATS_SECONDS)]
                self._caches = {name: _summed([one[name] for one in replicas]) for name in ("vision", "prefix")}
            except (TimeoutError, ReplicaLost):
                pass  # older sums are better than none
            self._closed.wait(STATS_SECONDS)


class _Seen:
    """Hands events on and remembers what the caller knows by now."""

    def __init__(self, emit: Callable[[Event], Any], streamed: bool) -> None:
        self.emit, self.streamed = emit, streamed
        self.decided: Decided | None = None
        self.begun = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, Decided):
            self.decided = event
        elif isinstance(event, ThinkingDelta | AnswerDelta):
            self.begun = self.streamed
        self.emit(event)


def _summed(stats: list[dict[str, int]]) -> SimpleNamespace:
    total: Counter[str] = Counter()
    for one in stats:
        total.update(one)
    return SimpleNamespace(**total)
