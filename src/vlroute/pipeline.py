"""The way of one request: caption, decide, answer, store; and the stream of its events."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from vlroute.checks import refused
from vlroute.decision.policy import PRICE
from vlroute.decision.selector import ModeSelector
from vlroute.engine.settings import checked, combined
from vlroute.errors import ModeUnavailableError, VLRouteError
from vlroute.hub import LazyModel
from vlroute.inputs.limits import DEFAULT_LIMITS, Limits
from vlroute.inputs.messages import Conversation, parse
from vlroute.types import (
    MODES,
    Answer,
    AnswerDelta,
    Channel,
    Decided,
    Decision,
    Event,
    Events,
    Finished,
    Mode,
    ThinkingDelta,
    Timing,
    Usage,
    forced_mode,
    new_id,
    other,
)

if TYPE_CHECKING:
    from vlroute.engine.protocol import Engine, EngineRequest
    from vlroute.store import Store

log = logging.getLogger("vlroute")

#: Maximum time that the end of the program waits for a cancelled stream.
EXIT_SECONDS = 10.0
#: Produces an answer; its argument is called with each event.
Work = Callable[[Callable[[Event], Any]], Any]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of one request, besides its messages; see `Router.ask`.

    Attributes:
        caption: Description of the media, instead of the captioner's.
        mode: Forces a mode; "auto" becomes None.
        price: Replaces the price of the policy.
        cancel: Cancels the answer once it is set.
        generation: Generation settings.
        namespace: Tenant of the request. Entries that were cached for another namespace are not used, so that they do
            not show in response times either.

    Raises:
        InputError: The mode, price, caption or cancel event is invalid.
        SettingsError: A generation setting is invalid.
    """

    caption: str | None = None
    mode: Mode | None = None
    price: float | None = None
    cancel: threading.Event | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    namespace: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", forced_mode(self.mode))
        if not isinstance(self.caption, str | None):
            raise refused("caption", self.caption, "a string")
        if self.price is not None:
            object.__setattr__(self, "price", PRICE.read("price", self.price))
        if isinstance(self.cancel, type) or not (self.cancel is None or hasattr(self.cancel, "is_set")):
            raise refused("cancel", self.cancel, "a threading.Event")
        object.__setattr__(self, "generation", checked(self.generation))


class Stream(Generator[Event, None, None]):
    """The events of one answer. A separate thread produces them; it starts when the first event is requested.

    Any thread may read or close the stream. Closing cancels the answer and waits until its thread has ended. A stream
    that is garbage-collected before its end is cancelled without waiting.

    Args:
        work: Produces the answer; None if `_begin` is overridden.
        cancel: An event that no other stream uses. Setting it ends `work` early.
    """

    def __init__(self, work: Work | None, cancel: threading.Event) -> None:
        self._work, self._cancel = work, cancel
        self._events: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        self._worker: threading.Thread | None = None
        self._starting = threading.Lock()
        self._ended = False

    def _begin(self) -> Work:
        """Called by the thread that requests the first event."""
        assert self._work is not None
        return self._work

    def send(self, value: None) -> Event:
        """The next event; see `Generator.send`. The first call starts the work."""
        if self._ended:
            raise StopIteration
        try:
            with self._starting:
                if self._worker is None:
                    work = partial(_make_events, self._begin(), self._events.put)
                    if self._ended:  # another thread has closed the stream
                        raise StopIteration
                    worker = threading.Thread(target=work, name="vlroute-stream", daemon=True)
                    _running[worker] = self._cancel
                    worker.start()
                    self._worker = worker
            event = self._events.get()
        except BaseException:
            self.close()
            raise
        if event is not None and not isinstance(event, BaseException):
            return event
        self._ended = True
        self._events.put(None)  # for another thread that reads
        raise StopIteration if event is None else event

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Event:
        """Close the stream and raise the error; see `Generator.throw`."""
        self.close()
        raise typ

    def close(self) -> None:
        """Cancel the work and wait for its thread."""
        self._drop()
        if self._worker is not None:
            self._worker.join()

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        """Cancel the rest of the answer without waiting."""
        if self._worker is not None and not self._ended:
            self._cancel.set()
        self._ended = True
        self._events.put(None)  # for another thread that reads


def _make_events(work: Work, put: Callable[[Event | BaseException | None], None]) -> None:
    """Not a method: a thread with a reference to its stream would prevent garbage collection of the stream."""
    try:
        work(put)
    except BaseException as error:  # handed to the thread that reads the events
        put(error)
    put(None)
    del _running[threading.current_thread()]


#: Threads that produce the events of streams, and the event that cancels each.
_running: dict[threading.Thread, threading.Event] = {}


@atexit.register
def _end_streams() -> None:
    """Cancel streams that are open when the program ends.

    Otherwise the interpreter stops their threads inside torch, which aborts the process.
    """
    threads = [*_running.items()]
    for _, cancel in threads:
        cancel.set()
    for thread, _ in threads:
        thread.join(EXIT_SECONDS)


class EitherEvent(threading.Event):
    """An event that is set as soon as one of `events` is set."""

    def __init__(self, *events: threading.Event | None) -> None:
        super().__init__()
        self._events = [event for event in events if event is not None]

    def is_set(self) -> bool:
        """Whether one of the events is set."""
        return any(event.is_set() for event in self._events)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Decides and answers requests with one model. Thread-safe.

    Attributes:
        model: Answers the requests.
        selector: Chooses the mode.
        generation: Settings for both modes, or per mode under its name, as `checked_per_mode` returns them.
        limits: What a request may contain.
        store: Receives each answer, if given.
    """

    model: LazyModel
    selector: ModeSelector
    generation: Mapping[str, Any]
    limits: Limits = DEFAULT_LIMITS
    store: Store | None = None

    def parse(
        self, prompt: str | Sequence[Any], images: Any, videos: Any, history: Sequence[Any] | None
    ) -> Conversation:
        """Check and load the messages of a request; see `Router.ask`."""
        return parse(prompt, images, videos, history, self.limits, self.model.sampling)

    def decide(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """Decide without answering. The model is not loaded; a captioner that needs it runs only if it is loaded.

        Args:
            conversation: The messages.
            options: Mode, caption, price and others.

        Returns:
            The decision.

        Raises:
            RouterClosedError: The router was closed.
        """
        self.model.check_open()
        engine = self.model.engine
        with engine.request(conversation, False, options.namespace) if engine else nullcontext() as request:
            caption = self._caption(conversation, options, request)
            return self.selector.decide(conversation, caption, options.mode, options.price)

    def answer(
        self,
        conversation: Conversation,
        options: RequestOptions,
        in_turns: bool = False,
        emit: Callable[[Event], Any] | None = None,
    ) -> Answer:
        """Decide, answer and store.

        Args:
            conversation: The messages.
            options: Mode, caption, price, generation settings and others.
            in_turns: Whether the conversation has several turns: tokens of earlier turns are then taken from a cache,
                and the number of uncached tokens counts in the decision.
            emit: Called with each event, in this thread.

        Returns:
            The answer, which `emit` has received too.

        Raises:
            RouterClosedError: The router was closed.
            ModeUnavailableError: The mode cannot answer, and the other one cannot replace it.
        """
        engine = self.model.load()
        began, id = time.perf_counter(), new_id()
        try:
            answer = self._answer(engine, conversation, options, in_turns, emit, began, id)
        except BaseException as error:
            log.debug("request %s failed after %.3f s: %s", id, time.perf_counter() - began, type(error).__name__)
            raise
        decision, usage = answer.decision, answer.usage
        log.debug(
            "request %s: %s (stage %s, gain %+.3f, threshold %.3f), %s, %s prompt + %d completion tokens, %.3f s",
            id, decision.mode, decision.stage, decision.gain, decision.threshold, answer.finish_reason,
            usage.prompt_tokens, usage.completion_tokens, answer.timing.total,
        )  # fmt: skip
        if emit is not None:
            emit(Finished(answer))
        return answer

    def stream(self, conversation: Conversation, options: RequestOptions, in_turns: bool = False) -> Events:
        """The events of `answer`, which runs in a thread of its own. The model is loaded before this returns."""
        self.model.load()
        closed = threading.Event()
        options = replace(options, cancel=EitherEvent(closed, options.cancel))
        return Stream(partial(self.answer, conversation, options, in_turns), closed)

    def _answer(
        self,
        engine: Engine,
        conversation: Conversation,
        options: RequestOptions,
        in_turns: bool,
        emit: Callable[[Event], Any] | None,
        began: float,
        id: str,
    ) -> Answer:
        cancel = EitherEvent(options.cancel, self.model.closed)
        with engine.request(conversation, in_turns, options.namespace) as request:
            settings = {mode: self._settings(mode, options) for mode in MODES}
            for mode in MODES if options.mode is None else (options.mode,):
                request.check(mode, settings[mode])
            caption = self._caption(conversation, options, request)
            captioned = time.perf_counter()
            # in the first turn both modes have to prefill the same tokens
            weighed = in_turns and options.mode is None and len(conversation.messages) > 1
            uncached_tokens = request.uncached_tokens() if weighed else None
            decision = self.selector.decide(conversation, caption, options.mode, options.price, uncached_tokens)
            decided = time.perf_counter()
            on_piece = None if emit is None else partial(_emit_piece, emit)
            if emit is not None:
                emit(Decided(decision, id))
            try:
                reply = request.answer(decision.mode, settings[decision.mode], on_piece, cancel)
            except ModeUnavailableError as error:
                if decision.forced or error.begun:
                    raise
                decision = _fallen_back(decision, error)
                if emit is not None:
                    emit(Decided(decision, id))
                reply = request.answer(decision.mode, settings[decision.mode], on_piece, cancel)
        if reply.finish_reason != "cancelled":
            prefilled = None if reply.prompt_tokens is None else reply.prompt_tokens - reply.cached_tokens
            self.selector.observe(
                decision.mode, reply.completion_tokens, reply.prefill_seconds, reply.decode_seconds, prefilled
            )
        if reply.note:
            decision = replace(decision, reason=f"{decision.reason}; {reply.note}")
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
        return answer

    def _caption(
        self, conversation: Conversation, options: RequestOptions, request: EngineRequest | None
    ) -> str | None:
        """The caption of the options, otherwise the captioner's; none if the mode is forced."""
        if options.caption is not None or options.mode is not None:
            return options.caption
        try:
            return self.selector.caption(conversation, request)
        except ModeUnavailableError as error:  # the mode that answers may be available
            log.warning("no caption: %s", error)
            return None

    def _keep(self, answer: Answer, conversation: Conversation) -> None:
        """Store the answer before it is returned, so that feedback finds it. A failure is logged only."""
        if self.store is None or answer.finish_reason == "cancelled":
            return
        try:
            self.store.record(answer, conversation, id=answer.id)
        except VLRouteError as error:
            log.error("the answer %s is not stored: %s", answer.id, error)

    def _settings(self, mode: Mode, options: RequestOptions) -> dict[str, Any]:
        both = {key: value for key, value in self.generation.items() if key not in MODES}
        return combined(both, self.generation.get(mode, {}), options.generation)


def _emit_piece(emit: Callable[[Event], Any], channel: Channel, piece: str) -> None:
    emit(ThinkingDelta(piece) if channel == "thinking" else AnswerDelta(piece))


def _fallen_back(decision: Decision, error: ModeUnavailableError) -> Decision:
    log.warning("%s answers instead of %s: %s", other(decision.mode), decision.mode, error)
    reason = f"{decision.reason}; but {error.public}, so {other(decision.mode)} answers"
    return replace(decision, mode=other(decision.mode), reason=reason, fallback=True)
