"""One replica of the cluster: the pair in a process of its own, its caches, and the way its events leave it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlroute.decision.selector import ModeSelector
from vlroute.hub import resolve_pair
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.router import Router
from vlroute.serving.service import Emit, Running, spare_what_is_loaded
from vlroute.serving.settings import ClusterSettings
from vlroute.types import AnswerDelta, Decision, Event, Finished, ThinkingDelta


@dataclass(frozen=True, slots=True)
class ReplicaRequest:
    """One request as it travels from the ingress to a replica."""

    conversation: Conversation
    options: RequestOptions
    """Without `cancel`: whoever gives up cancels the call."""
    decision: Decision | None = None
    """Made by the ingress already; None: the replica decides."""
    deltas: bool = True
    """Whether each piece is wanted; else the first only, which tells how long it took."""


class Replica:
    """Answers by a router of its own. Ray calls `reconfigure` first, and again with each new router artifact."""

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings
        self.router: Router | None = None
        self._artifact: str | None = None
        self._running: set[threading.Event] = set()
        self._pool = ThreadPoolExecutor(settings.ongoing + 2, thread_name_prefix="vlroute-answer")

    def reconfigure(self, config: Mapping[str, Any]) -> None:
        """Load the pair, or decide by another artifact from the next request on. ArtifactError, CheckpointError."""
        folder = config["router"]
        if self.router is None:
            wanted = self.settings
            self.router = Router.from_pretrained(
                wanted.model, router=folder, policy=wanted.policy, store=wanted.store, device=wanted.device,
                max_num_seqs=wanted.max_num_seqs, generation=wanted.generation,
            ).load()  # fmt: skip
            spare_what_is_loaded()
        else:
            take_up(self.router, self.settings.model, folder)
        self._artifact = folder

    async def answer(self, asked: ReplicaRequest) -> AsyncIterator[Event]:
        """The events of one answer; closing or cancelling it ends the writing within one token."""
        cancel = threading.Event()
        self._running.add(cancel)

        def work(emit: Emit) -> None:
            answering = self._router._answering
            if asked.decision is not None:
                answering = replace(answering, selector=_Settled(answering.selector, asked.decision))
            options, thin = replace(asked.options, cancel=cancel), _Thinned(emit)
            answering.answer(asked.conversation, options, in_turns=True, emit=emit if asked.deltas else thin)

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

    async def decide(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """See `Router.decide_on`; captions are made here."""
        work = self._pool.submit(self._router.decide_on, conversation, options)
        return await asyncio.wrap_future(work)

    async def stats(self) -> dict[str, Any]:
        """Process id, artifact, requests being answered, and what the caches did, by name; plain numbers."""
        router = self._router
        caches = {"vision": asdict(router.cache.stats()), "prefix": asdict(router.prefixes.stats())}
        return {"pid": os.getpid(), "router": self._artifact, "running": len(self._running), "caches": caches}

    @property
    def _router(self) -> Router:
        if self.router is None:
            raise RuntimeError("a replica answers after `reconfigure` only")
        return self.router


def take_up(router: Router, model: str | None, folder: str | None) -> None:
    """Decide by the artifact in `folder` from the next request on; without one by the pair's own, if it has one.
    ArtifactError, and no change, if it cannot be used."""
    found = folder or resolve_pair(model, None, None, None)[2]
    if found is None:
        router.selector.use(None, None)
    else:
        router.use(found)


class _Settled(ModeSelector):
    """The judge of one request that is decided; the pace that it shows is learnt all the same."""

    def __init__(self, selector: ModeSelector, decision: Decision) -> None:
        self._selector, self._decision = selector, decision

    def caption(self, *_: Any) -> str | None:
        return self._decision.caption

    def decide(self, *_: Any) -> Decision:
        return self._decision

    def observe(self, *measured: Any) -> None:
        self._selector.observe(*measured)


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
