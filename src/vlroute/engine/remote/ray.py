"""Replicas of a pair on Ray Serve: an engine whose requests go to the replica that has their caches."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from vlroute.engine.protocol import OnPiece, Reply, Trial, empty_reply
from vlroute.errors import ModeUnavailableError
from vlroute.fair_share import Flow
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation
from vlroute.inputs.tools import Tools
from vlroute.steps import Steps, immediate
from vlroute.structured import ResponseFormat
from vlroute.types import Mode, Stage

log = logging.getLogger("vlroute")
T = TypeVar("T")
#: Time for a replica with the caches of a request to have a free place, before another replica is tried.
PATIENCE_SECONDS = 0.1
POLL_SECONDS = 0.05  # between two checks whether a request was cancelled
READY_SECONDS = 5.0  # for the answer of the first replica
STATS_SECONDS = 5.0  # between two readings of the replicas' caches
ATTEMPTS = 4  # replicas that may fail during one request


class AffinityRouter(ConsistentHashRouter):
    """Ray's consistent hashing, which continues with the next replica if one is full, but with more patience.

    On another replica a picture has to be encoded again. Therefore a busy replica has more time than Ray's 0.1 s to
    report the length of its queue, and a full one has `PATIENCE_SECONDS` to get a free place. Without that, a client
    that sends its next request at once would be sent away because of its previous request, whose place Ray has not
    freed yet.
    """

    queue_len_response_deadline_s = 2.0
    max_queue_len_response_deadline_s = 10.0

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Order the replicas. Ray asks again, at growing intervals, until one of them accepts the request.

        Args:
            candidate_replicas: All replicas.
            pending_request: The request.

        Returns:
            Groups of one replica each; a group is tried if those before it are full.
        """
        ring: list[list[Any]] = await super().choose_replicas(candidate_replicas, pending_request)
        if pending_request is None or time.time() - pending_request.created_at >= PATIENCE_SECONDS:
            return ring
        return ring[:1]

    @property
    def max_num_routing_tasks(self) -> int:
        """Ray allows two per replica, so that requests would wait behind those that wait for a free place."""
        return int(self.max_num_routing_tasks_cap)


def affinity_key(conversation: Conversation, namespace: str) -> str:
    """The key by which requests are assigned to replicas.

    Args:
        conversation: The conversation.
        namespace: Namespace of its caches.

    Returns:
        64 hexadecimal digits. They are equal for all turns of a conversation and for all conversations that begin with
        the same picture or video, and differ between namespaces.
    """
    first = next(message for message in conversation.messages if message.role == "user")
    digest = next((part.digest for part in first.parts if isinstance(part, Picture | Video)), None)
    framed = f"vlroute affinity {len(namespace)}:{namespace} {digest or conversation.key}"
    return hashlib.sha256(framed.encode()).hexdigest()


class ReplicaLostError(ModeUnavailableError):
    """The replica died, or none could be reached; another one may answer."""


class ReplicasFailedError(ReplicaLostError):
    """No replica can be started; Ray does not try again until the next deployment."""


class _CancelledError(Exception):
    """The caller cancelled a request that a replica works on."""


class RayEngine:
    """An engine over the replicas of one Ray Serve deployment, see `vlroute.serving.cluster.replica`. Thread-safe.

    Args:
        handle: Ray's handle of the deployment.
        seconds: Time limit of a call that produces no stream.
    """

    remote = False
    stages: ClassVar[tuple[Stage, ...]] = ()  # a judge would have to run in the process of the replica
    shared_prompt = False
    fingerprint = scheduler = None

    def __init__(self, handle: Any, seconds: float) -> None:
        self._handle, self._seconds = handle, seconds
        self._loop = asyncio.new_event_loop()
        self._closed = threading.Event()
        self._caches: dict[str, SimpleNamespace] = {}
        self.tower: str | None = None
        threading.Thread(target=self._loop.run_forever, name="vlroute-calls", daemon=True).start()

    def check_tools(self, tools: Tools, response: ResponseFormat | None) -> None:
        """See `protocol.Engine`: the replicas check tools themselves."""

    def wait(self) -> None:
        """Wait for the first replica, then start to poll the caches of all replicas.

        Raises:
            ReplicasFailedError: Ray has stopped trying to start a replica.
        """
        while not self._closed.is_set():
            try:
                self.tower = self.call("tower", "", seconds=READY_SECONDS)
                break
            except ReplicasFailedError:
                raise
            except (ReplicaLostError, TimeoutError):
                self._closed.wait(0.1)
        threading.Thread(target=self._poll_caches, name="vlroute-caches", daemon=True).start()

    def request(
        self, conversation: Conversation, namespace: str = "", flow: Flow | None = None
    ) -> AbstractContextManager[RayRequest]:
        """See `protocol.Engine`. Replicas share their slots among namespaces."""
        return nullcontext(RayRequest(self, conversation, namespace))

    def close(self) -> None:
        """See `protocol.Engine`."""
        self._closed.set()
        self._loop.call_soon_threadsafe(self._loop.stop)

    @property
    def vision(self) -> Any:
        """Has a method `stats`: sums over the vision caches of all replicas, some seconds old."""
        return SimpleNamespace(stats=lambda: self._caches.get("vision"))

    @property
    def prefixes(self) -> Any:
        """Has a method `stats`: sums over the prefix caches of all replicas, some seconds old."""
        return SimpleNamespace(stats=lambda: self._caches.get("prefix"))

    def call(self, method: str, key: str, *args: Any, seconds: float | None = None) -> Any:
        """Call a method of one replica.

        Args:
            method: Its name.
            key: See `affinity_key`.
            *args: Its arguments.
            seconds: Time limit; by default that of the engine.

        Returns:
            What the method returns.

        Raises:
            TimeoutError: The time limit passed.
            ReplicaLostError: The replica died. Errors of the method itself are raised unchanged.
        """

        async def run() -> Any:
            return await self._handle.options(session_id=key, method_name=method).remote(*args)

        limited = asyncio.wait_for(run(), seconds or self._seconds)
        try:
            return self._begin(limited).result()
        except (RayError, RayServeException) as error:
            raise _converted(error) from error

    def stream(self, method: str, key: str, cancel: threading.Event | None, *args: Any) -> Iterator[Any]:
        """The items that a generator method of one replica yields. Arguments and errors as of `call`."""
        items: SimpleQueue[Any] = SimpleQueue()
        reading = self._begin(self._read(method, key, args, items))
        try:
            while True:
                if cancel is not None and cancel.is_set():
                    raise _CancelledError
                try:
                    item = items.get(timeout=POLL_SECONDS)
                except Empty:
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            reading.cancel()

    def _begin(self, calling: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a call outside of the context of the HTTP request.

        In that context, Ray gives all calls for one request the same id, and of two calls with one id that wait for a
        replica at the same time, it would forget one.
        """
        return Context().run(asyncio.run_coroutine_threadsafe, calling, self._loop)

    async def _read(self, method: str, key: str, args: tuple[Any, ...], items: SimpleQueue[Any]) -> None:
        handle = self._handle.options(session_id=key, method_name=method, stream=True)
        response: AsyncIterator[Any] = handle.remote(*args)
        try:
            async for item in response:
                items.put(item)
            items.put(None)
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[attr-defined]
            raise
        except (RayError, RayServeException) as error:
            items.put(_converted(error))
        except BaseException as error:
            items.put(error)

    def _poll_caches(self) -> None:
        while not self._closed.is_set():
            try:
                replicas = self._handle.broadcast("stats").results(timeout_s=STATS_SECONDS)
                caches = [replica["caches"] for replica in replicas]
                self._caches = {name: _sums([one[name] for one in caches]) for name in ("vision", "prefix")}
            except (TimeoutError, RayError, RayServeException):
                pass  # a full replica answers when it has a free place; older sums are better than none
            self._closed.wait(STATS_SECONDS)


class RayRequest:
    """One conversation to answer by a replica: see `protocol.EngineRequest`.

    A replica that dies is replaced by another one until a piece of the answer was passed on.
    """

    def __init__(self, engine: RayEngine, conversation: Conversation, namespace: str) -> None:
        self.engine, self.namespace, self.tower = engine, namespace, engine.tower
        self._key = affinity_key(conversation, namespace)
        self._args = conversation, namespace
        self._media = [part for message in conversation.messages for part in message.parts if not isinstance(part, str)]
        self._encoded = 0

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """Nothing is checked here: the replica raises SettingsError before it generates."""

    def caption(self, item: Picture | Video, prompt: str) -> Steps[str]:
        """See `protocol.EngineRequest`."""
        return immediate(lambda: self._counted("caption", self._media.index(item), prompt))

    def pooled(self, item: Picture | Video) -> Steps[NDArray[np.float32]]:
        """See `protocol.EngineRequest`."""
        return immediate(lambda: self._counted("pooled", self._media.index(item)))

    def prepare(self, modes: Sequence[Mode]) -> None:
        """See `protocol.EngineRequest`: a replica prepares what its answer needs."""

    def uncached_tokens(self) -> dict[Mode, int] | None:
        """See `protocol.EngineRequest`. Unknown if no replica answers in time."""
        try:
            counts: dict[Mode, int] | None = self._call("uncached_tokens")
        except ModeUnavailableError:
            return None
        return counts

    def prompt_tokens(self, mode: Mode) -> int:
        """See `protocol.EngineRequest`. ModeUnavailableError if no replica answers in time."""
        return int(self._call("prompt_tokens", mode))

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece | None = None,
        cancel: threading.Event | None = None,
        trial: Trial | None = None,
    ) -> Steps[Reply]:
        """See `protocol.EngineRequest`. Nothing is held back for `trial`, whose judge is not called."""
        return immediate(lambda: self._answer(mode, settings, on_piece, cancel))

    def _answer(
        self, mode: Mode, settings: Mapping[str, Any], on_piece: OnPiece | None, cancel: threading.Event | None
    ) -> Reply:
        begun = False

        def attempt() -> Reply:
            nonlocal begun
            wants_pieces = on_piece is not None
            for item in self.engine.stream("answer", self._key, cancel, *self._args, mode, settings, wants_pieces):
                if isinstance(item, Reply):
                    return item
                if on_piece is not None:
                    begun = True
                    on_piece(*item)
            raise ReplicaLostError("the replica ended before its answer did")

        try:
            reply = _retried(attempt, lambda: not begun)
        except _CancelledError:
            return empty_reply("cancelled", self._encoded)
        except ReplicaLostError as error:
            error.begun = True  # the other mode runs on the same replicas
            raise
        self._encoded += reply.encoded or 0  # a replica counts for each call alone
        return replace(reply, encoded=self._encoded)

    def _call(self, method: str, *args: Any) -> Any:
        try:
            return _retried(lambda: self.engine.call(method, self._key, *self._args, *args))
        except TimeoutError as error:
            raise ModeUnavailableError("no replica answered in time") from error

    def _counted(self, method: str, *args: Any) -> Any:
        result, encoded = self._call(method, *args)
        self._encoded += encoded
        return result


def _retried(attempt: Callable[[], T], again: Callable[[], bool] = lambda: True) -> T:
    """The result of `attempt`, which is repeated if a replica died and `again` allows it."""
    for _ in range(ATTEMPTS - 1):
        try:
            return attempt()
        except ReplicaLostError:
            if not again():
                raise
    return attempt()


def _converted(error: Exception) -> BaseException:
    """The error of this project that corresponds to one of Ray."""
    if isinstance(error, RayTaskError):
        cause: BaseException = error.cause
        return cause
    if isinstance(error, DeploymentUnavailableError):
        return ReplicasFailedError("no replica could be started; see `serve status` and the logs of the replicas")
    log.warning("a call to a replica failed: %s: %s", type(error).__name__, str(error).partition("\n")[0])
    return ReplicaLostError(f"the replica of this request died ({type(error).__name__})")


def _sums(stats: list[dict[str, int]]) -> SimpleNamespace:
    total: Counter[str] = Counter()
    for one in stats:
        total.update(one)
    return SimpleNamespace(**total)
