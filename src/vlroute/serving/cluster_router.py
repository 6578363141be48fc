"""The router inside an ingress: decides where words suffice, and has replicas do the rest."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from vlroute.answer import Answer, AnswerDelta, Decided, Event, Finished, ThinkingDelta, Timing, Usage
from vlroute.answering import Wish
from vlroute.decision.policy import Decision
from vlroute.messages import Conversation
from vlroute.router import Router
from vlroute.serving.cluster_affinity import affinity
from vlroute.serving.cluster_calls import Calls, GaveUp, ReplicaLost, ReplicasFailed
from vlroute.serving.cluster_replica import Asked

if TYPE_CHECKING:
    from vlroute.engine.local import LocalEngine

Made = TypeVar("Made")
TRIES = 4  # replicas that may die under one request
READY_SECONDS = 5.0
STATS_SECONDS = 5.0  # between two looks at the replicas' caches


class ClusterRouter(Router):
    """A `Router` that loads no checkpoint. Made by `from_pretrained`, then told its replicas by `reach`. Thread-safe.

    What it cannot do: whatever needs the pair in this process (`pair`, `ask`, `stream`, chats). ValueError.
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

    def decide_on(self, conversation: Conversation, wish: Wish) -> Decision:
        """As of `Router`. Where a caption has to be made, the replica that will answer makes it.

        ReplicaLost if no replica could.
        """
        if (decision := self._settled(conversation, wish)) is not None:
            return decision
        key, asked = affinity(conversation, wish.namespace), replace(wish, cancel=None)
        made: Decision = self._tried(lambda: self._calls.call("decide", key, conversation, asked))
        return made

    def answer_turn(
        self, conversation: Conversation, wish: Wish, emit: Callable[[Event], Any] = lambda event: None
    ) -> Answer:
        """As of `Router`. A replica that dies is replaced by another as long as nobody has seen a piece of its answer.

        ReplicaLost if none could answer, or one died in the middle of a stream.
        """
        # the service says so of itself where it hands on no pieces: then all of them can be written again
        streamed = bool(getattr(emit, "deltas", True))
        decision = self._settled(conversation, wish) if wish.mode or len(conversation.messages) == 1 else None
        asked = Asked(conversation, replace(wish, cancel=None), decision, streamed)
        key, cancel = affinity(conversation, wish.namespace), wish.cancel or threading.Event()
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
            answer = self._cancelled(seen.decided or self._guess(conversation, wish, emit))
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

    def _settled(self, conversation: Conversation, wish: Wish) -> Decision | None:
        """The decision, where it hangs on nothing that only a replica knows: a caption of its pictures."""
        if wish.mode is None and wish.caption is None and (conversation.pictures or conversation.videos):
            return None
        return self.judge.decide(conversation, wish.caption, wish.mode, wish.price)

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
            self.judge.observe(answer.decision.mode, used.completion_tokens, timing.prefill, timing.decode, read)

    def _guess(self, conversation: Conversation, wish: Wish, emit: Callable[[Event], Any]) -> Decided:
        """For whoever left before there was a decision: every answer has one."""
        decided = Decided(self.judge.decide(conversation, wish.caption, wish.mode, wish.price))
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
