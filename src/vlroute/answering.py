"""From a checked conversation to an answer: caption, decide, see, generate, observe; one direction, nothing twice."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vlroute.answer import Answer, AnswerDelta, Decided, Event, Events, Finished, ThinkingDelta, Timing, Usage, new_id
from vlroute.decision.policy import Decision
from vlroute.errors import ModeUnavailable, VLRouteError
from vlroute.judge import Judge
from vlroute.messages import Conversation
from vlroute.modes import MODES, Mode, other

if TYPE_CHECKING:
    from vlroute.engine.protocol import Asked, Engine
    from vlroute.store import Store

log = logging.getLogger("vlroute")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants of one request beside its words and pictures; see `Router.ask`."""

    caption: str | None = None
    mode: Mode | None = None
    price: float | None = None
    cancel: threading.Event | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""
    """Whose request it is: nothing cached for another namespace serves it, nor shows in its seconds."""


@dataclass(frozen=True, slots=True)
class Answering:
    """What answers, and the judge who chooses the mode. Thread-safe.

    `generation` holds settings for both modes, or per mode under its name.
    """

    engine: Engine
    judge: Judge
    generation: Mapping[str, Any]
    store: Store | None = None

    def answer(
        self,
        conversation: Conversation,
        wish: Wish,
        in_turns: bool = False,
        emit: Callable[[Event], Any] = lambda event: None,
    ) -> Answer:
        """`in_turns`: what was read in earlier turns is not read again, and counts in the decision."""
        began, id = time.perf_counter(), new_id()
        with self.engine.request(conversation, in_turns, wish.namespace) as request:
            caption = _caption(self.judge, conversation, wish, request)
            captioned = time.perf_counter()
            # before the first answer neither mode has less to read than the other
            weighed = in_turns and wish.mode is None and len(conversation.messages) > 1
            unread = request.unread() if weighed else None
            decision = self.judge.decide(conversation, caption, wish.mode, wish.price, unread)
            decided = time.perf_counter()
            emit(Decided(decision, id))

            def on_piece(channel: str, piece: str) -> None:
                emit(ThinkingDelta(piece) if channel == "thinking" else AnswerDelta(piece))

            try:
                reply = request.answer(decision.mode, self._settings(decision.mode, wish), on_piece, wish.cancel)
            except ModeUnavailable as error:
                if decision.forced or error.begun:
                    raise
                decision = _fallen_back(decision, error)
                emit(Decided(decision, id))
                reply = request.answer(decision.mode, self._settings(decision.mode, wish), on_piece, wish.cancel)
        if reply.finish_reason != "cancelled":
            read = reply.prompt_tokens - reply.cached_tokens
            self.judge.observe(
                decision.mode, reply.completion_tokens, reply.prefill_seconds, reply.decode_seconds, read
            )
        answer = Answer(
            reply.text, reply.thinking, decision, reply.finish_reason,
            Usage(
                reply.prompt_tokens, reply.vision_tokens, reply.completion_tokens, reply.thinking_tokens,
                reply.cached_tokens, reply.encoded,
            ),
            Timing(
                caption=captioned - began, decide=decided - captioned, vision=reply.vision_seconds,
                prefill=reply.prefill_seconds, decode=reply.decode_seconds, total=time.perf_counter() - began,
            ),
            id=id,
        )  # fmt: skip
        self._keep(answer, conversation)
        emit(Finished(answer))
        return answer

    def stream(self, conversation: Conversation, wish: Wish, in_turns: bool = False) -> Events:
        """The events of `answer`, made in a thread of its own; closing the iterator cancels it."""
        events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        cancel = wish.cancel or threading.Event()
        wish = replace(wish, cancel=cancel)

        def work() -> None:
            try:
                self.answer(conversation, wish, in_turns, events.put)
            except BaseException as error:  # handed to the thread that reads the events
                events.put(error)
            events.put(None)

        worker = threading.Thread(target=work, name="vlroute-stream", daemon=True)
        worker.start()
        try:
            while (event := events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            cancel.set()
            worker.join()

    def _keep(self, answer: Answer, conversation: Conversation) -> None:
        """Before the answer is handed out, so that feedback finds it; a store that fails costs no answer."""
        if self.store is None or answer.finish_reason == "cancelled":
            return
        try:
            self.store.record(answer, conversation, id=answer.id)
        except VLRouteError as error:
            log.error("the answer %s is not stored: %s", answer.id, error)

    def _settings(self, mode: Mode, wish: Wish) -> dict[str, Any]:
        both = {key: value for key, value in self.generation.items() if key not in MODES}
        return {**both, **self.generation.get(mode, {}), **wish.generation}


def _fallen_back(decision: Decision, error: ModeUnavailable) -> Decision:
    log.warning("%s answers instead of %s: %s", other(decision.mode), decision.mode, error)
    reason = f"{decision.reason}; but {error}, so {other(decision.mode)} answers"
    return replace(decision, mode=other(decision.mode), reason=reason, fallback=True)


def _caption(judge: Judge, conversation: Conversation, wish: Wish, request: Asked | None) -> str | None:
    """The caller's, else the captioner's; none where the mode is forced and nothing hangs on it."""
    if wish.caption is not None or wish.mode is not None:
        return wish.caption
    try:
        return judge.caption(conversation, request)
    except ModeUnavailable as error:  # who captions is down: whoever answers need not be
        log.warning("no caption: %s", error)
        return None


def decide(judge: Judge, engine: Engine | None, conversation: Conversation, wish: Wish) -> Decision:
    """The decision alone; a captioner that needs the models runs only where they are at hand."""
    named = engine.request(conversation, False, wish.namespace) if engine else nullcontext()
    with named as request:
        caption = _caption(judge, conversation, wish, request)
        return judge.decide(conversation, caption, wish.mode, wish.price)
