"""One replica of the cluster: the pair in a process of its own, its caches, and the way its events leave it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlroute.answer import AnswerDelta, Event, Finished, ThinkingDelta
from vlroute.answering import Wish
from vlroute.decision.policy import Decision
from vlroute.judge import Judge
from vlroute.messages import Conversation
from vlroute.pair_names import resolve_pair
from vlroute.router import Router
from vlroute.serving.cluster_settings import ClusterSettings
from vlroute.serving.collection import spare_what_is_loaded
from vlroute.serving.running import Emit, Running


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it travels from the ingress to a replica."""

    conversation: Conversation
    wish: Wish
    """Without `cancel`: whoever gives up cancels the call."""
    decision: Decision | None = None
    """Made by the ingress already; None: the replica decides."""
    deltas: bool = True
    """Whether each piece is wanted; else the first only, which tells how long it took."""


class PairReplica:
    """Answers by a router of its own. Ray calls `reconfigure` first, and again with each new router artefact."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.router: Router | None = None
        self._artefact: str | None = None
        self._running: set[threading.Event] = set()
        self._pool = ThreadPoolExecutor(settings.ongoing + 2, thread_name_prefix="vlroute-answer")

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Load the pair, or decide by another artefact from the next request on. ArtefactError, CheckpointError."""
        folder = config["router"]
        if self.router is None:
            wanted = self.settings
            self.router = Router.from_pretrained(
                wanted.pair, router=folder, policy=wanted.policy, store=wanted.store, device=wanted.device,
                rows=wanted.rows, generation=wanted.generation,
            ).load()  # fmt: skip
            spare_what_is_loaded()
        else:
            take_up(self.router, self.settings.pair, folder)
        self._artefact = folder

    async def answer(self, asked: Asked) -> AsyncIterator[Event]:
        """The events of one answer; closing or cancelling it ends the writing within one token."""
        cancel = threading.Event()
        self._running.add(cancel)

        def work(emit: Emit) -> None:
            answering = self._router._answering
            if asked.decision is not None:
                answering = replace(answering, judge=_Settled(answering.judge, asked.decision))
            wish, thin = replace(asked.wish, cancel=cancel), _Thinned(emit)
            answering.answer(asked.conversation, wish, in_turns=True, emit=emit if asked.deltas else thin)

        def ended() -> None:
            self._running.discard(cancel)

        # the ingress keeps the deadline; here it only ends what an ingress that died has left behind
        running = Running(self._pool, work, cancel, ended, self.settings.server.deadline)
        try:
            event: Event | None = None
            while not isinstance(event, Finished):
                event = await running.next()
                yield event
        finally:
            running.close()

    async def decide(self, conversation: Conversation, wish: Wish) -> Decision:
        """See `Router.decide_on`; captions are made here."""
        work = self._pool.submit(self._router.decide_on, conversation, wish)
        return await asyncio.wrap_future(work)

    async def stats(self) -> dict[str, Any]:
        """Process id, artefact, requests being answered, and what the caches did, by name; plain numbers."""
        router = self._router
        caches = {"vision": asdict(router.cache.stats()), "prefix": asdict(router.prefixes.stats())}
        return {"pid": os.getpid(), "router": self._artefact, "running": len(self._running), "caches": caches}

    @property
    def _router(self) -> Router:
        if self.router is None:
            raise RuntimeError("a replica answers after `reconfigure` only")
        return self.router


def take_up(router: Router, pair: str | None, folder: str | None) -> None:
    """Decide by the artefact in `folder` from the next request on; without one by the pair's own, if it has one.
    ArtefactError, and no change, if it cannot be used."""
    found = folder or resolve_pair(pair, None, None, None)[2]
    if found is None:
        router.judge.use(None, None)
    else:
        router.use(found)


class _Settled(Judge):
    """The judge of one request that is decided; the pace that it shows is learnt all the same."""

    def __init__(self, judge: Judge, decision: Decision) -> None:
        self._judge, self._decision = judge, decision

    def caption(self, *_: Any) -> str | None:
        return self._decision.caption

    def decide(self, *_: Any) -> Decision:
        return self._decision

    def observe(self, *measured: Any) -> None:
        self._judge.observe(*measured)


class _Thinned:
    """Hands on all events but deltas after the first."""

    def __init__(self, emit: Emit) -> None:
        self.emit, self.begun = emit, False

    def __call__(self, event: Event) -> None:
        if isinstance(event, ThinkingDelta | AnswerDelta):
            if self.begun:
                return
            self.begun = True
        self.emit(event)
