"""One replica of a cluster: an engine in a process of its own, with its caches."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlroute.engine.local.engine import LocalEngine, Request
from vlroute.engine.protocol import Piece, Reply
from vlroute.hub import resolve_pair
from vlroute.inputs.messages import Conversation
from vlroute.serving.service import exclude_from_gc
from vlroute.serving.settings import ClusterSettings
from vlroute.steps import Steps, immediate, start
from vlroute.stream import AsyncStream
from vlroute.types import Channel, Mode

T = TypeVar("T")
Item = tuple[Channel, Piece] | Reply


class Replica:
    """Answers the calls of `vlroute.engine.remote.ray.RayEngine`.

    Args:
        settings: Settings of the cluster.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        instruct, thinking, _ = resolve_pair(settings.model, None, None, None)
        self._engine = LocalEngine.load(instruct, thinking, {"device": settings.device}, settings.max_num_seqs)
        self._seconds = settings.server.deadline
        self._running: set[threading.Event] = set()
        self._pool = ThreadPoolExecutor(settings.ongoing + 2, thread_name_prefix="vlroute-answer")
        exclude_from_gc()

    async def answer(
        self,
        conversation: Conversation,
        namespace: str,
        mode: Mode,
        settings: Mapping[str, Any],
        wants_pieces: bool,
    ) -> AsyncIterator[Item]:
        """Answer a conversation. Closing or cancelling the iterator ends generation within one token.

        Args:
            conversation: The conversation.
            namespace: See `protocol.Engine.request`.
            mode: The mode that answers.
            settings: Generation settings.
            wants_pieces: Whether the pieces of the answer are wanted, or only the reply.

        Yields:
            Pieces of the answer with their channels, then the reply.
        """
        cancel = threading.Event()
        self._running.add(cancel)

        def work(put: Callable[[Item], None]) -> Steps[None]:
            on_piece = (lambda channel, piece: put((channel, piece))) if wants_pieces else None
            with self._engine.request(conversation, namespace) as request:
                put((yield from request.answer(mode, settings, on_piece, cancel)))

        # the ingress keeps the deadline; this one ends what an ingress that died has left behind
        items = AsyncStream[Item](self._pool, work, cancel, self._seconds)
        items.ended.add_done_callback(lambda _: self._running.discard(cancel))
        try:
            item: Item | None = None
            while not isinstance(item, Reply):
                item = await items.next()
                yield item
        finally:
            items.close()

    async def caption(self, conversation: Conversation, namespace: str, index: int, prompt: str) -> tuple[str, int]:
        """See `protocol.EngineRequest.caption`; `index` of the picture or video, and the number of encoded ones."""
        return await self._counted(
            conversation, namespace, lambda request: request.caption(_medium(conversation, index), prompt)
        )

    async def pooled(self, conversation: Conversation, namespace: str, index: int) -> tuple[NDArray[np.float32], int]:
        """See `protocol.EngineRequest.pooled`; `index` of the picture or video, and the number of encoded ones."""
        return await self._counted(
            conversation, namespace, lambda request: request.pooled(_medium(conversation, index))
        )

    async def uncached_tokens(self, conversation: Conversation, namespace: str) -> dict[Mode, int] | None:
        """See `protocol.EngineRequest.uncached_tokens`."""

        def count(request: Request) -> Steps[dict[Mode, int] | None]:
            return immediate(request.uncached_tokens)

        counts, _ = await self._counted(conversation, namespace, count)
        return counts

    async def prompt_tokens(self, conversation: Conversation, namespace: str, mode: Mode) -> int:
        """See `protocol.EngineRequest.prompt_tokens`."""

        def count(request: Request) -> Steps[int]:
            return immediate(partial(request.prompt_tokens, mode))

        return (await self._counted(conversation, namespace, count))[0]

    async def tower(self) -> str:
        """See `protocol.EngineRequest.tower`."""
        return self._engine.pair.instruct.tower

    async def stats(self) -> dict[str, Any]:
        """Process id, number of requests being answered, and the statistics of the caches by name."""
        caches = {"vision": asdict(self._engine.vision.stats()), "prefix": asdict(self._engine.prefixes.stats())}
        return {"pid": os.getpid(), "running": len(self._running), "caches": caches}

    async def _counted(
        self, conversation: Conversation, namespace: str, ask: Callable[[Request], Steps[T]]
    ) -> tuple[T, int]:
        """What `ask` returns for a request, and how many pictures and videos were encoded for it."""

        def work() -> Steps[tuple[T, int]]:
            with self._engine.request(conversation, namespace) as request:
                return (yield from ask(request)), request.encoded

        return await asyncio.wrap_future(start(work(), self._pool))


def _medium(conversation: Conversation, index: int) -> Any:
    return [part for message in conversation.messages for part in message.parts if not isinstance(part, str)][index]
