"""An engine over one or two OpenAI-compatible servers, through the openai package. It does not import torch."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vlroute.engine.families import ENDPOINT_FAMILIES
from vlroute.engine.protocol import CAPTION_SETTINGS, TOP_TOKENS, OnPiece, Reply, Trial, empty_reply
from vlroute.engine.remote.breaker import Breaker, State
from vlroute.engine.remote.endpoint import ONE_MODE, Endpoint, Reasoning
from vlroute.engine.remote.errors import failure, is_error, is_temporary
from vlroute.engine.remote.logprobs import RemoteLogprobs
from vlroute.engine.remote.stream import RemoteStream, first_choice
from vlroute.engine.settings import RECOMMENDED, answer_reserve, response_format
from vlroute.engine.trial import RunningTrial
from vlroute.errors import (
    EndpointError,
    InputError,
    MissingExtraError,
    ModeUnavailableError,
    RouterClosedError,
    SettingsError,
    VLRouteError,
)
from vlroute.fair_share import Flow
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, Message
from vlroute.inputs.tools import MAX_CALLS, Tools
from vlroute.steps import Steps, immediate
from vlroute.structured import ResponseFormat
from vlroute.types import MODES, Mode, Stage

log = logging.getLogger("vlroute")
HEALTH_SECONDS = 5.0
HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Health:
    """State of one endpoint.

    Attributes:
        reachable: Whether it answered.
        listed: Whether its /v1/models contains the model.
        breaker: State of its breaker; "open" while it is skipped.
        message: "ok", or what is wrong.
    """

    reachable: bool
    listed: bool
    breaker: State
    message: str


class RemoteEngine:
    """An engine over one endpoint per mode. A thread of its own reads their streams. Thread-safe.

    Args:
        endpoints: The endpoint of each mode.

    Raises:
        MissingExtraError: The openai package is missing.
    """

    remote: ClassVar[bool] = True
    stages: ClassVar[tuple[Stage, ...]] = ("answer",)
    shared_prompt = False
    fingerprint = None

    def __init__(self, endpoints: Mapping[Mode, Endpoint]) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise MissingExtraError(error, "remote") from error
        self.endpoints = dict(endpoints)
        self.breakers = {mode: Breaker() for mode in MODES}
        self._reasoning: dict[Mode, Reasoning] = {}
        #: Modes whose server refuses requests for log-probabilities, and those for which their lack was logged.
        self.without_logprobs: set[Mode] = set()
        self._logged: set[Mode] = set()
        self._clients = {mode: _client(openai, endpoint) for mode, endpoint in self.endpoints.items()}
        self._loop = asyncio.new_event_loop()
        self._running: set[Future[None]] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="vlroute-endpoints", daemon=True)
        self._thread.start()

    @classmethod
    def over(
        cls, instruct: Endpoint | tuple[str, str], thinking: Endpoint | tuple[str, str] | None = None
    ) -> RemoteEngine:
        """Create an engine.

        Args:
            instruct: Endpoint of Instruct, or (base URL, name of the model).
            thinking: The same for Thinking; None if `instruct` answers in both modes.

        Returns:
            The engine.

        Raises:
            ValueError: See `Endpoint.of`; also if one endpoint does not answer in both modes, or if the model of an
                endpoint has no such mode.
        """
        first = Endpoint.of(instruct)
        if thinking is None and not first.has_both_modes:
            raise ValueError(ONE_MODE)
        endpoints: dict[Mode, Endpoint] = {
            "instruct": first, "thinking": first if thinking is None else Endpoint.of(thinking),
        }  # fmt: skip
        for mode, endpoint in endpoints.items():
            family = None if endpoint.family is None else ENDPOINT_FAMILIES[endpoint.family]
            if family is not None and mode not in family.modes:
                raise ValueError(f"{family.title} has no {mode} mode: {family.why_one_mode}")
        return cls(endpoints)

    @property
    def names(self) -> tuple[str, str]:
        """Names of both endpoints, for messages."""
        return self.endpoints["instruct"].name, self.endpoints["thinking"].name

    def request(
        self, conversation: Conversation, namespace: str = "", flow: Flow | None = None
    ) -> AbstractContextManager[RemoteRequest]:
        """See `protocol.Engine`."""
        return nullcontext(RemoteRequest(self, conversation, namespace))

    def check_tools(self, tools: Tools, response: ResponseFormat | None) -> None:
        """See `protocol.Engine`: the servers check tools themselves."""

    def wait(self) -> None:
        """See `protocol.Engine`. A server that does not answer is logged, and its mode is tried later."""
        self.health()

    def health(self) -> dict[Mode, Health]:
        """Ask both servers which models they serve, and log what is wrong. This takes at most `HEALTH_SECONDS`.

        Returns:
            The state of both endpoints. The breaker of a server that answers is closed.

        Raises:
            RouterClosedError: The engine was closed.
        """
        if self._closed:
            raise RouterClosedError
        checks = {mode: asyncio.run_coroutine_threadsafe(self._check(mode), self._loop) for mode in MODES}
        found = {mode: future.result() for mode, future in checks.items()}
        for mode, health in found.items():
            if not (health.reachable and health.listed):
                log.warning("%s: %s", mode, health.message)
        return found

    def submit(self, mode: Mode, body: dict[str, Any], headers: dict[str, str], put: Callable[[Any], None]) -> Any:
        """Read one stream in the engine's thread.

        Args:
            mode: Mode of the endpoint.
            body: See `Endpoint.body`.
            headers: Headers of the request.
            put: Called with each chunk, or an exception, and finally None.

        Returns:
            A future, whose cancellation ends the request.
        """
        retries = self.endpoints[mode].retries
        future: Future[None] = self._start(_read(self._clients[mode], retries, body, headers, put))

        def done(future: Future[None]) -> None:
            with self._lock:
                self._running.discard(future)
            put(None)

        future.add_done_callback(done)
        return future

    def known_reasoning(self, mode: Mode) -> Reasoning:
        """How the server of a mode marked reasoning in earlier streams; "auto" if they did not show it."""
        return self._reasoning.get(mode, "auto")

    def learn_reasoning(self, mode: Mode, shown: Reasoning) -> None:
        """Remember how the server of a mode marks reasoning, for streams that do not show it."""
        if shown == "auto":
            return
        if shown == "raw" and self.known_reasoning(mode) != "raw" and self.endpoints[mode].reasoning == "auto":
            name = self.endpoints[mode].name
            log.info("%s sends reasoning as text; set Endpoint(reasoning='raw') to stream it without delay", name)
        self._reasoning[mode] = shown

    def log_no_logprobs(self, mode: Mode) -> None:
        """Log once for each mode that its server sends no log-probabilities."""
        if mode not in self._logged:
            self._logged.add(mode)
            name = self.endpoints[mode].name
            log.warning("%s sends no log-probabilities: no decisions at the stage 'answer' for its answers", name)

    def close(self) -> None:
        """See `protocol.Engine`. All connections are closed."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            running = [*self._running]
        for future in running:
            future.cancel()
        closing = asyncio.run_coroutine_threadsafe(self._close_clients(), self._loop)
        closing.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        self._thread.join(HEALTH_SECONDS)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        with self._lock:
            if self._closed:
                work.close()
                raise RouterClosedError
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._running.add(future)
            return future

    async def _close_clients(self) -> None:
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
        for client in self._clients.values():
            await client.close()
        await self._loop.shutdown_asyncgens()  # abandoned streams

    async def _check(self, mode: Mode) -> Health:
        endpoint, breaker = self.endpoints[mode], self.breakers[mode]
        try:
            listing = self._clients[mode].with_options(timeout=HEALTH_SECONDS, max_retries=0).models.list()
            models = [one.id async for one in await asyncio.wait_for(_awaited(listing), HEALTH_SECONDS)]
        except Exception as error:
            return Health(False, False, breaker.state, str(failure(error, endpoint.name, begun=False)))
        breaker.succeeded()
        listed = endpoint.model in models
        message = "ok" if listed else f"{endpoint.name} is not among the server's models: {', '.join(models[:10])}"
        return Health(True, listed, breaker.state, message)


class RemoteRequest:
    """One conversation to answer through the endpoints, see `protocol.EngineRequest`."""

    tower = None

    def __init__(self, engine: RemoteEngine, conversation: Conversation, namespace: str) -> None:
        self.engine, self.conversation, self.namespace = engine, conversation, namespace
        self._encoded: int | None = 0  # sum over all answers; None if a server did not report it

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """See `protocol.EngineRequest`."""
        self.engine.endpoints[mode].check(mode, settings)
        if self.conversation.prefix:
            raise SettingsError(
                "endpoints cannot continue an answer, because servers differ in whether they do so: the last message "
                "must have the role user or tool"
            )
        if self.conversation.tools is not None and settings.get("logprobs"):
            raise SettingsError(
                "endpoints take no logprobs together with tools, because servers do not say which tokens belong to "
                "calls: leave one of them out, or pass tool_choice='none'"
            )
        if self.conversation.tools is not None and response_format(settings) is not None:
            raise SettingsError(
                "endpoints take no response_format together with tools, because most servers then allow no calls: "
                "leave one of them out, or pass tool_choice='none'"
            )

    def caption(self, item: Picture | Video, prompt: str) -> Steps[str]:
        """See `protocol.EngineRequest`. InputError for a video."""
        conversation = Conversation((Message("user", (item, prompt)),))
        request = RemoteRequest(self.engine, conversation, self.namespace)
        return (yield from request.answer("instruct", CAPTION_SETTINGS)).text

    def pooled(self, item: Picture | Video) -> Steps[NDArray[np.float32]]:
        """Not available, as `tower` tells."""
        raise RuntimeError("endpoints offer no vision features")

    def prepare(self, modes: Sequence[Mode]) -> None:
        """See `protocol.EngineRequest`: the server of the chosen mode does everything."""

    def uncached_tokens(self) -> None:
        """See `protocol.EngineRequest`. Unknown, because the servers have caches of their own."""

    def prompt_tokens(self, mode: Mode) -> None:
        """See `protocol.EngineRequest`. Unknown, because the servers do not offer it."""

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece | None = None,
        cancel: threading.Event | None = None,
        trial: Trial | None = None,
    ) -> Steps[Reply]:
        """See `protocol.EngineRequest`. Time in the server's queue counts as prefill.

        Args:
            mode: Which endpoint answers.
            settings: Generation settings.
            on_piece: Called with each new piece of text.
            cancel: Cancels the answer when set.
            trial: Decides on the answer if the server sends log-probabilities. By default, vLLM and llama.cpp send
                those from before temperature and penalties.

        Returns:
            The answer.

        Raises:
            ModeUnavailableError: The endpoint is down, overloaded, skipped by its breaker, or ended its stream early.
            EndpointError: It refuses the key, the model or the address.
            InputError: It refuses the request.
        """
        return immediate(lambda: self._answer(mode, settings, on_piece, cancel, trial))

    def _answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece | None,
        cancel: threading.Event | None,
        trial: Trial | None,
    ) -> Reply:
        endpoint, breaker = self.engine.endpoints[mode], self.engine.breakers[mode]
        if settings.get("do_sample"):  # endpoints take no do_sample, and may be greedy by default
            settings = {"temperature": RECOMMENDED[mode]["temperature"], **settings}
        most, most_thinking = settings.get("max_new_tokens"), None
        if mode == "thinking" and most is not None and (reserve := answer_reserve(settings, most)):
            if reserve == most:
                return empty_reply(encoded=self._encoded)
            most_thinking = most - reserve
            if endpoint.budget_field:  # the server closes the reasoning; the stream is ended only if it does not
                budget = settings.get("thinking_budget")
                budget = most_thinking if budget is None else min(budget, most_thinking)
                settings = {**settings, "thinking_budget": budget}
                most_thinking += reserve // 2
        body, tools = endpoint.body(self.conversation, settings, mode), self.conversation.tools
        running = RunningTrial(trial, on_piece, () if mode in self.engine.without_logprobs else self.engine.stages)
        asks = running.needs_answer
        if asks:
            body |= {"logprobs": True, "top_logprobs": max(TOP_TOKENS, body.get("top_logprobs", 0))}
        known = self.engine.known_reasoning(mode)
        if endpoint.budget_field and settings.get("thinking_budget") == 0:
            known = "parsed"  # no reasoning is expected
        logprobs = None
        if settings.get("logprobs"):
            logprobs = RemoteLogprobs(mode == "thinking", settings.get("top_logprobs", 0))
        stream = RemoteStream(
            endpoint, mode, settings.get("stop") or (), running, cancel, known, most_thinking,
            settings.get("close_loops", True), 1 if tools is not None and not tools.parallel else MAX_CALLS, logprobs,
        )  # fmt: skip
        if not breaker.allow():
            error = ModeUnavailableError(f"{endpoint.model} failed several times in a row and is skipped for a while")
            error.address = endpoint.address
            raise error
        try:
            reading = self.engine.submit(mode, body, endpoint.headers_for(self.conversation), stream.queue.put)
            try:
                reply = stream.read()
            finally:
                reading.cancel()
                self.engine.learn_reasoning(mode, stream.shown)
        except ModeUnavailableError as error:
            breaker.inconclusive() if stream.overloaded else breaker.failed()
            error.address = endpoint.address
            raise error
        except BaseException as error:
            if isinstance(error, InputError | EndpointError):
                error.address = endpoint.address
            # a refusal is an answer; an error of `on_piece` or Ctrl-C says nothing about the endpoint
            breaker.succeeded() if isinstance(error, VLRouteError) else breaker.inconclusive()
            optional = asks and logprobs is None
            if not (optional and isinstance(error, InputError | EndpointError) and "logprobs" in str(error)):
                raise
            reply = self._answer(mode, settings, on_piece, cancel, None)
            self.engine.without_logprobs.add(mode)
            self.engine.log_no_logprobs(mode)
            return reply
        cancelled = reply.finish_reason == "cancelled" and not running.rejected
        breaker.inconclusive() if cancelled else breaker.succeeded()
        if stream.lacks_scores:
            self.engine.log_no_logprobs(mode)
        self._encoded = None if self._encoded is None or reply.encoded is None else self._encoded + reply.encoded
        if tools is not None and tools.required and not reply.tool_calls and reply.finish_reason == "stop":
            ignored = "the server called no tool although tool_choice requires it"
            reply = replace(reply, note=f"{reply.note}; {ignored}" if reply.note else ignored)
        return replace(reply, encoded=self._encoded)


def _client(openai: Any, endpoint: Endpoint) -> Any:
    read, connect = endpoint.read_seconds, endpoint.connect_seconds
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",  # the package requires a key, even if the server does not
        max_retries=endpoint.retries,
        timeout=openai.Timeout(read, connect=connect),
    )


async def _awaited(listing: Any) -> Any:
    return await listing


async def _read(
    client: Any, retries: int, body: dict[str, Any], headers: dict[str, str], put: Callable[[Any], None]
) -> None:
    """Read one stream. Errors before its first token are retried here, errors before the stream by `client`."""
    for attempt in range(retries + 1):
        begun = False
        try:
            stream = await client.chat.completions.create(
                **body, stream=True, stream_options={"include_usage": True}, extra_headers=headers
            )
            head = _record_head(stream)
            async with stream:
                async for chunk in stream:
                    if first_choice(chunk) is None and hasattr(chunk, "model_extra") and is_error(dict(chunk)):
                        raise _in_stream(stream, dict(chunk))
                    begun = begun or _has_text_or_end(chunk)
                    put(chunk)
            if not begun:
                _check_head(stream, bytes(head))
            if begun or attempt == retries:
                return
        except Exception as error:  # passed to the waiting thread
            if begun or attempt == retries or not is_temporary(error) or hasattr(error, "status_code"):
                put(error)
                return
        await asyncio.sleep(min(0.5 * 2**attempt, 8.0) * random.uniform(0.75, 1.0))


def _has_text_or_end(chunk: Any) -> bool:
    choice = first_choice(chunk)
    delta = getattr(choice, "delta", None)
    names = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls")
    parts = (getattr(delta, name, None) for name in names)
    return bool(getattr(choice, "finish_reason", None)) or any(parts)


def _record_head(stream: Any) -> bytearray:
    """The first bytes of the response, filled while `stream` is read: its reader ignores what is not an event."""
    head, aiter_bytes = bytearray(), stream.response.aiter_bytes
    stream.response.aiter_bytes = lambda: _Recorded(aiter_bytes(), head)
    return head


class _Recorded:
    """Passes on `pieces` and keeps the first bytes. A generator would have to be closed as well."""

    def __init__(self, pieces: AsyncIterator[bytes], head: bytearray) -> None:
        self._pieces, self._head = pieces, head

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._pieces.__anext__()
        self._head.extend(piece[: HEAD_BYTES - len(self._head)])
        return piece


def _check_head(stream: Any, head: bytes) -> None:
    """Raise the error that a response without tokens reports, or ValueError if the response is not an event stream."""
    text = head.decode("utf-8", "replace").strip()
    for line in (text, *text.splitlines()):
        try:
            found = json.loads(line.removeprefix("error:"))  # llama.cpp sends "error: {…}"
        except ValueError:
            continue
        if isinstance(found, dict):
            body = found.get("error", found)
            if line.startswith("error:") or "error" in found or is_error(found):
                raise _in_stream(stream, body if isinstance(body, dict) else {"message": str(body), **found})
    kind = stream.response.headers.get("content-type", "")
    if text and not re.search(r"^(data|event|id|retry)?:", text, re.MULTILINE):
        raise ValueError(f"the response has the type {kind or 'unknown'}: {text[:100]}")


def _in_stream(stream: Any, body: dict[str, Any]) -> Exception:
    import openai

    return openai.APIError(str(body.get("message")), stream.response.request, body=body)
