"""The steps of one request: caption, decide, answer, store."""

from __future__ import annotations

import hashlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vlroute.checks import refused
from vlroute.decision.evidence import answer_numbers
from vlroute.decision.policy import PRICE
from vlroute.decision.selector import ModeSelector
from vlroute.decision.staged import StagedDecision
from vlroute.engine.protocol import Evidence, Piece, Reply, ScoredText, Trial, empty_reply
from vlroute.engine.settings import AUTO, checked, combined, response_format
from vlroute.errors import MessageError, ModeUnavailableError, RouterClosedError, SettingsError, VLRouteError
from vlroute.fair_share import Flow
from vlroute.inputs.limits import DEFAULT_LIMITS, Limits
from vlroute.inputs.messages import Conversation, parse
from vlroute.inputs.tools import Tools
from vlroute.lazy_model import LazyModel
from vlroute.shadow import Shadow, Watched
from vlroute.steps import Steps, run, start
from vlroute.stream import AsyncStream, Stream
from vlroute.structured import ResponseFormat
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
    ToolCall,
    ToolCalled,
    Usage,
    forced_mode,
    new_id,
    other,
)

if TYPE_CHECKING:
    from vlroute.engine.protocol import Engine, EngineRequest
    from vlroute.store import Store

log = logging.getLogger("vlroute")
#: Why Instruct answers, if the caller has not chosen it.
CONTINUED = "Instruct continues the given beginning of the answer"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """Options of one request, besides its messages; see `Router.ask`.

    Attributes:
        caption: Description of the media, instead of the captioner's.
        mode: Forces a mode; "auto" becomes None.
        price: Replaces the price of the policy, even if the policy is a target.
        cancel: Cancels the answer once it is set.
        generation: Generation settings.
        namespace: Tenant of the request. Entries that were cached for another namespace are not used, so that
            response times do not reveal them either.
        flow: The requests with which this one shares its part of the model; None: those of its namespace.
        trial: Passed to the engine if Instruct is forced, to collect its evidence.
        id: The id of the answer, which no other answer may have; "" for a new one.

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
    flow: Flow | None = None
    trial: Trial | None = None
    id: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", forced_mode(self.mode))
        if not isinstance(self.caption, str | None):
            raise refused("caption", self.caption, "a string")
        if self.price is not None:
            object.__setattr__(self, "price", PRICE.read("price", self.price))
        _check_event(self.cancel)
        object.__setattr__(self, "generation", checked(self.generation))


def _check_event(value: Any) -> None:
    if isinstance(value, type) or not (value is None or hasattr(value, "is_set")):
        raise refused("cancel", value, "a threading.Event")


class EitherEvent(threading.Event):
    """An event that is set as soon as one of `events` is set. SettingsError if one of them is no event."""

    def __init__(self, *events: threading.Event | None) -> None:
        super().__init__()
        for event in events:
            _check_event(event)
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
        shadow: Decides on the same requests as the selector, if given.
        explore: Share of the requests without a forced mode that the other mode answers.
    """

    model: LazyModel
    selector: ModeSelector
    generation: Mapping[str, Any]
    limits: Limits = DEFAULT_LIMITS
    store: Store | None = None
    shadow: Shadow | None = None
    explore: float = 0.0

    def parse(
        self,
        prompt: str | Sequence[Any],
        images: Any,
        videos: Any,
        history: Sequence[Any] | None,
        tools: Tools | None = None,
    ) -> Conversation:
        """Check and load the messages of a request; see `Router.ask`."""
        return parse(prompt, images, videos, history, self.limits, self.model.sampling, tools)

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
        chosen, options, engine = options.mode, _continuing(conversation, options), self.model.engine
        with engine.request(conversation, options.namespace, options.flow) if engine else nullcontext() as request:
            caption = run(self._caption(conversation, options, request))
            decision = self.selector.begin(conversation, caption, options.mode, options.price).decision
            return decision if chosen == options.mode else replace(decision, reason=CONTINUED)

    def check_tools(self, tools: Tools, response: ResponseFormat | None) -> None:
        """Check tools before a request is answered, which may take seconds. The model is loaded, but does not run.

        Args:
            tools: The tools.
            response: The format of an answer without calls.

        Raises:
            RouterClosedError: The router was closed.
            SettingsError: An answer with the tools cannot be constrained.
        """
        self.model.load().check_tools(tools, response)

    def prompt_tokens(self, conversation: Conversation, options: RequestOptions) -> dict[Mode, int] | None:
        """Number of prompt tokens that each mode that may answer would read. The model is loaded, but does not run.

        Args:
            conversation: The messages.
            options: The mode, if it is forced, and the namespace.

        Returns:
            The numbers; None for endpoints.

        Raises:
            RouterClosedError: The router was closed.
        """
        options = _continuing(conversation, options)
        modes = MODES if options.mode is None else (options.mode,)
        with self.model.load().request(conversation, options.namespace, options.flow) as request:
            counts = {mode: request.prompt_tokens(mode) for mode in modes}
        known = {mode: count for mode, count in counts.items() if count is not None}
        return known if len(known) == len(modes) else None

    def answer(
        self,
        conversation: Conversation,
        options: RequestOptions,
        emit: Callable[[Event], Any] | None = None,
    ) -> Steps[Answer]:
        """Decide, answer and store.

        Args:
            conversation: The messages.
            options: Mode, caption, price, generation settings and others.
            emit: Called with each event, in one thread after the other.

        Returns:
            The answer, which `emit` has received too.

        Raises:
            RouterClosedError: The router was closed.
            ModeUnavailableError: The mode cannot answer, and the other one cannot replace it.
        """
        engine = self.model.load()
        began, id = time.perf_counter(), options.id or new_id()
        try:
            with self.shadow.request() if self.shadow else nullcontext():
                answer, watched = yield from self._answer(engine, conversation, options, emit, began, id)
        except BaseException as error:
            log.debug("request %s failed after %.3f s: %s", id, time.perf_counter() - began, type(error).__name__)
            raise
        decision, usage = answer.decision, answer.usage
        closed = f", reasoning closed ({answer.closed})" if answer.closed else ""
        rescued = ", rescued" if decision.rescued else ""
        log.debug(
            "request %s: %s (stage %s, gain %+.3f, threshold %.3f)%s, %s, %s prompt + %d completion tokens, %.3f s",
            id, decision.mode, decision.stage, decision.gain, decision.threshold, closed + rescued,
            answer.finish_reason, usage.prompt_tokens, usage.completion_tokens, answer.timing.total,
        )  # fmt: skip
        if answer.closed == "loop":
            log.info("request %s: the reasoning repeated itself; ended after %d tokens", id, usage.thinking_tokens)
        if emit is not None:
            emit(Finished(answer))
        if self.shadow is not None and watched is not None:
            again = partial(self._answer_again, conversation, options, answer.decision.thinking_budget)
            self.shadow.store(watched, conversation.prompt, answer, again)
        return answer

    def further_options(self, options: RequestOptions, decision: Decision, index: int) -> RequestOptions:
        """Options of a further answer to a request, in the mode of the first one.

        Args:
            options: Options of the first answer.
            decision: Its decision.
            index: Number of the further answer, from 1.

        Returns:
            The options. A seed is replaced by one that is derived from it and the number.
        """
        settings, generation = self._settings(decision.mode, options), dict(options.generation)
        if (seed := settings.get("seed")) is not None:
            generation["seed"] = _derived_seed(seed, index)
        if settings.get("thinking_budget") == AUTO and decision.thinking_budget is not None:
            generation["thinking_budget"] = decision.thinking_budget
        return replace(options, mode=decision.mode, generation=generation, id="")

    def start(self, prepare: Callable[[], Conversation], options: RequestOptions) -> Future[Answer]:
        """`answer` in threads of the model, none of which waits for it. `prepare` makes the conversation there."""
        self.selector.check_not_captioning()
        return start(self._prepared(prepare, options), self.model.workers)

    def astream(self, prepare: Callable[[], Conversation], options: RequestOptions) -> AsyncStream[Event]:
        """The events of `answer` for the running event loop. `prepare` makes the conversation in another thread."""
        self.selector.check_not_captioning()
        closed = threading.Event()
        options = replace(options, cancel=EitherEvent(closed, options.cancel))
        return AsyncStream(self.model.workers, partial(self._prepared, prepare, options), closed)

    def _prepared(
        self, prepare: Callable[[], Conversation], options: RequestOptions, emit: Callable[[Event], Any] | None = None
    ) -> Steps[Answer]:
        return (yield from self.answer(prepare(), options, emit))

    def stream(
        self, conversation: Conversation, options: RequestOptions, observe: Callable[[Event], Any] | None = None
    ) -> Events:
        """The events of `answer`, which runs in a thread of its own. The model is loaded before this returns.

        `observe` is called with each event in that thread, also after the stream was closed.
        """
        self.selector.check_not_captioning()
        self.model.load()
        closed = threading.Event()
        options = replace(options, cancel=EitherEvent(closed, options.cancel))

        def work(emit: Callable[[Event], Any]) -> Answer:
            def observed(event: Event) -> None:
                if observe is not None:
                    observe(event)
                emit(event)

            return run(self.answer(conversation, options, observed))

        return Stream(work, closed)

    def _answer(
        self,
        engine: Engine,
        conversation: Conversation,
        options: RequestOptions,
        emit: Callable[[Event], Any] | None,
        began: float,
        id: str,
    ) -> Steps[tuple[Answer, Watched | None]]:
        chosen, options = options.mode, _continuing(conversation, options)
        cancel = EitherEvent(options.cancel, self.model.closed)
        with engine.request(conversation, options.namespace, options.flow) as request:
            settings = {mode: self._settings(mode, options) for mode in MODES}
            modes = MODES if options.mode is None else (options.mode,)
            for mode in modes:
                request.check(mode, settings[mode])
                if mode == "thinking":
                    self._check_budget(settings[mode])
            checked_at = time.perf_counter()
            request.prepare(modes)
            prepared = time.perf_counter() - checked_at
            try:
                caption = yield from self._caption(conversation, options, request)
            except RouterClosedError:  # the answer will be cancelled
                if not self.model.closed.is_set():
                    raise
                caption = None
            captioned = time.perf_counter()
            # in the first turn both modes have to prefill the same tokens
            weighed = options.mode is None and len(conversation.messages) > 1
            uncached_tokens = request.uncached_tokens() if weighed else None
            staged = self.selector.begin(conversation, caption, options.mode, options.price, uncached_tokens)
            if chosen != options.mode:
                staged.decision = replace(staged.decision, reason=CONTINUED)
            watched: Watched | None = None
            if self.shadow is not None:
                watched = self.shadow.watch(self.selector, staged.decision, options.price, uncached_tokens)
            # a mode is kept within a loop of tool calls
            if self.explore and options.mode is None and conversation.previous_mode is None:
                staged.explore(self.explore, random.random() < self.explore)
            decided = time.perf_counter()
            staged.decided_after(decided - began)
            on_piece = None if emit is None else partial(_emit_piece, emit)
            trial, tried, given_up = _InstructTrial(staged, emit, id, began), None, None
            decision = staged.decision
            try:
                if staged.goes_on:
                    tried = yield from trial.run(request, settings["instruct"], cancel)
                decision = staged.settle()
                if settings["thinking"].get("thinking_budget") == AUTO:
                    settings["thinking"]["thinking_budget"] = decision.thinking_budget
                trial.announce()
                try:
                    if tried is not None and decision.mode == "instruct":
                        reply = tried
                    elif options.mode == "instruct" and options.trial is not None:
                        reply = yield from request.answer(
                            "instruct", settings["instruct"], on_piece, cancel, options.trial
                        )
                    else:
                        reply = yield from request.answer(decision.mode, settings[decision.mode], on_piece, cancel)
                except ModeUnavailableError as error:
                    if decision.forced or error.begun:
                        raise
                    decision = _fallen_back(decision, error)
                    if emit is not None:
                        emit(Decided(decision, id))
                    reply = yield from request.answer(decision.mode, settings[decision.mode], on_piece, cancel)
                given_up = tried if tried is not reply else None
                if (rescue := _rescue(decision, settings, reply)) is not None:
                    thought, rescued = reply, _rescued(decision, reply)
                    self._observe("thinking", thought)
                    if emit is not None:
                        emit(Decided(rescued, id))
                    try:
                        reply = yield from request.answer("instruct", rescue, on_piece, cancel)
                        self._observe("instruct", reply)
                        decision, reply = rescued, _joined(thought, reply)
                    except RouterClosedError:
                        reply = replace(thought, finish_reason="cancelled")
                    except VLRouteError as error:  # the reasoning is not lost
                        log.warning("Thinking gave no answer, and Instruct cannot answer: %s", error)
                        reply = replace(thought, note=f"Instruct cannot answer either: {error.public}")
                        if emit is not None:
                            emit(Decided(decision, id))
                else:
                    self._observe(decision.mode, reply)
                if given_up is not None:
                    self._observe("instruct", replace(given_up, finish_reason="stop"))
            except RouterClosedError:  # closed before the first token, such as while pictures were encoded
                if not self.model.closed.is_set():
                    raise
                reply = empty_reply(finish_reason="cancelled")
        if reply.note:
            decision = replace(decision, reason=f"{decision.reason}; {reply.note}")
        # an answer that was given up has served the decision, and its vision features serve this answer
        vision, queue, deciding = prepared + reply.vision_seconds, reply.queue_seconds, decided - captioned
        if given_up is not None:
            vision += given_up.vision_seconds
            queue += given_up.queue_seconds
            deciding += given_up.prefill_seconds + given_up.decode_seconds
        answer = Answer(
            reply.text, reply.thinking, decision,
            "tool_calls" if reply.tool_calls and reply.finish_reason == "stop" else reply.finish_reason,
            Usage(
                reply.prompt_tokens, reply.vision_tokens, reply.completion_tokens, reply.thinking_tokens,
                reply.cached_tokens, reply.encoded,
            ),
            Timing(
                caption=captioned - began - prepared, decide=deciding, vision=vision,
                prefill=reply.prefill_seconds, decode=reply.decode_seconds,
                total=time.perf_counter() - began, queue=queue,
            ),
            id=id, closed=reply.closed, parsed=_parsed(settings[decision.mode], reply), tool_calls=reply.tool_calls,
            stop=reply.stop, logprobs=(reply.logprobs or ()) if settings[decision.mode].get("logprobs") else None,
        )  # fmt: skip
        kept = self._keep(answer, conversation)
        return answer, watched if kept else None

    def _answer_again(
        self, conversation: Conversation, options: RequestOptions, budget: int | None, mode: Mode
    ) -> Reply:
        """The answer of another mode, for a label. `budget`: replaces the thinking budget "auto"."""
        settings, engine = self._settings(mode, options) | {"logprobs": False, "top_logprobs": 0}, self.model.load()
        if settings.get("thinking_budget") == AUTO:
            settings["thinking_budget"] = budget
        cancel = EitherEvent(self.model.closed, None if self.shadow is None else self.shadow.closed)
        with engine.request(conversation, options.namespace, options.flow) as request:
            request.check(mode, settings)
            return run(request.answer(mode, settings, None, cancel))

    def _observe(self, mode: Mode, reply: Reply) -> None:
        """Update the latency model."""
        if reply.finish_reason == "cancelled" or not reply.completion_tokens:
            return
        prefilled = None if reply.prompt_tokens is None else reply.prompt_tokens - reply.cached_tokens
        self.selector.observe(mode, reply.completion_tokens, reply.prefill_seconds, reply.decode_seconds, prefilled)

    def _check_budget(self, settings: Mapping[str, Any]) -> None:
        """Raise a SettingsError if the router cannot choose a budget for "auto"."""
        classifier = self.selector.classifier
        if settings.get("thinking_budget") == AUTO and (classifier is None or classifier.budgets is None):
            raise SettingsError(
                'thinking_budget="auto" needs a router artifact with a calibration set: pass router=, or a number'
            )

    def _caption(
        self, conversation: Conversation, options: RequestOptions, request: EngineRequest | None
    ) -> Steps[str | None]:
        """The caption of the options, otherwise the captioner's; none if the mode is forced."""
        if options.caption is not None or options.mode is not None:
            return options.caption
        try:
            return (yield from self.selector.caption(conversation, request))
        except ModeUnavailableError as error:  # the mode that answers may be available
            log.warning("no caption: %s", error)
            return None

    def _keep(self, answer: Answer, conversation: Conversation) -> bool:
        """Store the answer before it is returned, so that feedback finds it. A failure is logged only."""
        if self.store is None or answer.finish_reason == "cancelled":
            return False
        try:
            self.store.record(answer, conversation, id=answer.id, model=self.model.identity)
        except VLRouteError as error:
            log.error("the answer %s is not stored: %s", answer.id, error)
            return False
        return True

    def _settings(self, mode: Mode, options: RequestOptions) -> dict[str, Any]:
        both = {key: value for key, value in self.generation.items() if key not in MODES}
        return combined(both, self.generation.get(mode, {}), options.generation)


class _InstructTrial:
    """Lets Instruct start its answer, and decides at later stages whether the answer goes on."""

    def __init__(self, staged: StagedDecision, emit: Callable[[Event], Any] | None, id: str, began: float) -> None:
        self._staged, self._emit, self._id, self._began = staged, emit, id, began
        self._announced = False

    def run(self, request: EngineRequest, settings: Mapping[str, Any], cancel: threading.Event) -> Steps[Reply | None]:
        """The reply of Instruct; None if it is not available. The decision then remains that of the stage "prompt"."""
        later = self._staged.decision.later_stages
        held = self._staged.decide_within if self._emit else math.inf
        trial = Trial(self._judge, "prefill" in later, "answer" in later, held)
        try:
            reply = yield from request.answer("instruct", settings, self._emit and self._on_piece, cancel, trial)
        except ModeUnavailableError as error:
            if self._announced or error.begun:
                raise
            return None
        if not self._staged.judged and reply.finish_reason != "cancelled":
            self._staged.without_evidence()
        return reply

    def announce(self) -> None:
        """Emit the decision, unless this was done."""
        if self._emit is not None and not self._announced:
            self._announced = True
            self._emit(Decided(self._staged.decision, self._id))

    def _judge(self, evidence: Evidence) -> bool | None:
        seconds = time.perf_counter() - self._began
        if evidence.complete or evidence.log_probs:
            numbers = answer_numbers(evidence.log_probs, evidence.entropies)
            instruct = self._staged.judge("answer", numbers, seconds)
        else:
            assert evidence.state is not None
            instruct = self._staged.judge("prefill", evidence.state, seconds)
        if instruct is not None:
            self.announce()
        return instruct

    def _on_piece(self, channel: Channel, piece: Piece) -> None:
        if not self._staged.judged:
            self._staged.without_evidence()
            self._staged.settle()
        self.announce()
        assert self._emit is not None
        _emit_piece(self._emit, channel, piece)


def _derived_seed(seed: int, index: int) -> int:
    """A seed that differs from those of other numbers and of near seeds; below 2**63, which servers accept."""
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8], "big") >> 1


def _continuing(conversation: Conversation, options: RequestOptions) -> RequestOptions:
    """Options with which Instruct continues an answer. MessageError if Thinking is forced: it would reason first."""
    if not conversation.prefix:
        return options
    if options.mode == "thinking":
        raise MessageError(
            "Thinking cannot continue an answer, because it begins with reasoning: leave the last message out, or let "
            "Instruct continue it"
        )
    return replace(options, mode="instruct")


def _emit_piece(emit: Callable[[Event], Any], channel: Channel, piece: Piece) -> None:
    if isinstance(piece, ToolCall):
        emit(ToolCalled(piece))
    elif isinstance(piece, ScoredText):
        emit(AnswerDelta(piece.text, piece.logprobs))
    else:
        emit(ThinkingDelta(piece) if channel == "thinking" else AnswerDelta(piece))


def _parsed(settings: Mapping[str, Any], reply: Reply) -> Any:
    """See `Answer.parsed`."""
    form = response_format(settings)
    if form is None or reply.tool_calls or reply.finish_reason != "stop":
        return None
    try:
        return form.parse(reply.text)
    except Exception as error:  # the validators of a model are code of the caller
        log.warning("the answer cannot be parsed: %s", error)
        return None


def _rescue(decision: Decision, settings: Mapping[Mode, Mapping[str, Any]], reply: Reply) -> Mapping[str, Any] | None:
    """Settings with which Instruct answers after Thinking gave no answer; None if it need not or cannot.

    If the caller limits the tokens, the limit applies to the reasoning and this answer together.
    """
    answered = reply.text or reply.tool_calls
    unanswered = decision.mode == "thinking" and not answered and reply.finish_reason == "length"
    thinking = settings["thinking"]
    if not unanswered or decision.fallback or thinking.get("answer_reserve") == 0:
        return None
    instruct = {name: value for name, value in settings["instruct"].items() if name != "answer_reserve"}
    if (most := thinking.get("max_new_tokens")) is None:
        return instruct
    left = most - reply.completion_tokens
    return {**instruct, "max_new_tokens": left} if left >= max(1, instruct.get("min_new_tokens") or 0) else None


def _rescued(decision: Decision, thought: Reply) -> Decision:
    note = f" ({thought.note})" if thought.note else ""
    why = f"Thinking left no answer after {thought.thinking_tokens} tokens{note}, so Instruct answers"
    log.info("%s", why)
    return replace(decision, mode="instruct", reason=f"{decision.reason}; {why}", rescued=True)


def _joined(thought: Reply, answer: Reply) -> Reply:
    """The reasoning of one reply and the answer of another one, with the sums of their tokens and seconds.

    `encoded` is that of the answer: engines count it for the whole request.
    """
    prompts = thought.prompt_tokens, answer.prompt_tokens
    return replace(
        answer,
        thinking=thought.thinking + answer.thinking,
        prompt_tokens=None if None in prompts else sum(filter(None, prompts)),
        cached_tokens=thought.cached_tokens + answer.cached_tokens,
        vision_tokens=thought.vision_tokens + answer.vision_tokens,
        completion_tokens=thought.completion_tokens + answer.completion_tokens,
        thinking_tokens=thought.thinking_tokens + answer.thinking_tokens,
        vision_seconds=thought.vision_seconds + answer.vision_seconds,
        queue_seconds=thought.queue_seconds + answer.queue_seconds,
        prefill_seconds=thought.prefill_seconds + answer.prefill_seconds,
        decode_seconds=thought.decode_seconds + answer.decode_seconds,
        closed=thought.closed,
    )


def _fallen_back(decision: Decision, error: ModeUnavailableError) -> Decision:
    log.warning("%s answers instead of %s: %s", other(decision.mode), decision.mode, error)
    reason = f"{decision.reason}; but {error.public}, so {other(decision.mode)} answers"
    # whatever the exploration draws, the only mode that is available answers
    return replace(decision, mode=other(decision.mode), reason=reason, fallback=True, explored=False, propensity=1.0)
