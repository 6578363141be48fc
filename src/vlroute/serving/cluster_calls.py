"""Calls from threads to replicas: given up when the caller leaves, and told apart by what went wrong."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from vlroute.errors import ModeUnavailable

log = logging.getLogger("vlroute")
GLANCE_SECONDS = 0.05  # how often a waiting thread looks whether its caller has left


class GaveUp(Exception):
    """The caller left while a replica was at work."""


class ReplicaLost(ModeUnavailable):
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
