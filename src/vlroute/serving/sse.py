"""Answers and stream events in the shape of OpenAI's API, with the decision in a field `vlroute`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from vlroute.serving.errors import Count, api_error
from vlroute.serving.service import GRACE_SECONDS
from vlroute.stream import AsyncStream
from vlroute.types import Answer, AnswerDelta, Decided, Decision, Event, Finished, ThinkingDelta, ToolCalled

PREFIX = "chatcmpl-"
#: Seconds between two comments that keep the connection open: proxies close a silent stream after about 30 s.
PING_SECONDS = 10.0


def completion(answer: Answer, ignored: Sequence[str], hide_reasoning: bool = False) -> dict[str, Any]:
    """One answer as a `chat.completion`.

    Args:
        answer: The answer.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the reasoning.

    Returns:
        The JSON object.
    """
    content = answer.text if answer.text or not answer.tool_calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = [call.as_dict() for call in answer.tool_calls]
    if (answer.decision.mode == "thinking" or answer.thinking) and not hide_reasoning:
        message |= _reasoning(answer.thinking)
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
    return {
        **_head("chat.completion", answer.id, answer.decision), "choices": [choice], "usage": usage(answer),
        "vlroute": {
            "id": answer.id, "decision": answer.decision.as_dict(), "timing": asdict(answer.timing),
            "encoded": answer.usage.encoded, "closed": answer.closed, "ignored": list(ignored),
        },
    }  # fmt: skip


def usage(answer: Answer) -> dict[str, Any] | None:
    """Token counts under OpenAI's names, videos under `image_tokens`. None if an endpoint sent no counts."""
    used = answer.usage
    if used.prompt_tokens is None:
        return None
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens, "image_tokens": used.vision_tokens},
        "completion_tokens_details": {"reasoning_tokens": used.thinking_tokens},
    }


def decision_headers(id: str, decision: Decision) -> dict[str, str]:
    """The decision as headers, for clients that do not read the body.

    Args:
        id: Id of the answer.
        decision: The decision.

    Returns:
        Headers of the response.
    """
    return {
        "X-VLRoute-Id": id,
        "X-VLRoute-Mode": decision.mode,
        "X-VLRoute-Gain": f"{decision.gain:.4f}",
        "X-VLRoute-Forced": str(decision.forced).lower(),
    }


class Chunks:
    """Converts the events of one stream to `chat.completion.chunk`s.

    Args:
        decided: The first event.
        with_usage: Whether the last chunk contains token counts.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the reasoning.
    """

    def __init__(
        self, decided: Decided, with_usage: bool, ignored: Sequence[str], hide_reasoning: bool = False
    ) -> None:
        self.decided, self.with_usage, self.ignored = decided, with_usage, list(ignored)
        self.hide_reasoning = hide_reasoning
        self.created = int(time.time())
        self._calls = 0  # number of tool calls so far

    def first(self) -> ServerSentEvent:
        """The chunk with the decision."""
        details = {"id": self.decided.id, "decision": self.decided.decision.as_dict(), "ignored": self.ignored}
        return self._chunk({"role": "assistant", "content": ""}, vlroute=details)

    def of(self, event: Event) -> Iterator[ServerSentEvent]:
        """The chunks for a later event."""
        match event:
            case Decided(decision):  # a second decision: the mode chosen first gives no answer
                self.decided = event
                yield self._chunk({}, vlroute={"id": event.id, "decision": decision.as_dict()})
            case ThinkingDelta() if self.hide_reasoning:
                yield ServerSentEvent(comment="thinking", sep="\n")  # proxies close an idle stream
            case ThinkingDelta(text):
                yield self._chunk(_reasoning(text))
            case AnswerDelta(text):
                yield self._chunk({"content": text})
            case ToolCalled(call):
                yield self._chunk({"tool_calls": [{"index": self._calls, **call.as_dict()}]})
                self._calls += 1
            case Finished(answer):
                details = {
                    "id": answer.id, "timing": asdict(answer.timing), "encoded": answer.usage.encoded,
                    "closed": answer.closed,
                }  # fmt: skip
                if answer.decision != self.decided.decision:  # its reason says what is wrong with the answer
                    details["decision"] = answer.decision.as_dict()
                yield self._chunk({}, answer.finish_reason, vlroute=details)
                if self.with_usage and (used := usage(answer)):
                    yield _json_event({**self._head(), "choices": [], "usage": used})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> ServerSentEvent:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        empty = {"usage": None} if self.with_usage else {}
        return _json_event({**self._head(), "choices": [choice], **empty, **more})

    def _head(self) -> dict[str, Any]:
        return {**_head("chat.completion.chunk", self.decided.id, self.decided.decision), "created": self.created}


class EventStream(EventSourceResponse):
    """The answer as server-sent events. Generation stops as soon as the response ends, for whatever reason.

    Args:
        events: The events after the first one.
        chunks: Converts them.
        count: Called with status and code of an error within the stream.
        headers: Headers of the response.
    """

    def __init__(self, events: AsyncStream[Event], chunks: Chunks, count: Count, headers: dict[str, str]) -> None:
        super().__init__(
            _body(events, chunks, count),
            headers={**headers, "Cache-Control": "no-cache"},
            ping=PING_SECONDS,
            ping_message_factory=lambda: ServerSentEvent(comment="still working", sep="\n"),
            shutdown_grace_period=GRACE_SECONDS,
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the request is cancelled when the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the generator: if it was never started, its `finally` does not run
            self._events.close()


async def _body(events: AsyncStream[Event], chunks: Chunks, count: Count) -> AsyncIterator[ServerSentEvent]:
    """All events of the stream. An error becomes the last one before [DONE]."""
    try:
        yield chunks.first()
        event: Event | None = None
        while not isinstance(event, Finished):
            event = await events.next()
            for chunk in chunks.of(event):
                yield chunk
    except Exception as error:
        converted = api_error(error)
        count(converted.status, converted.code)
        yield _json_event(converted.body())
    yield ServerSentEvent("[DONE]", sep="\n")


def _json_event(value: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(value, separators=(",", ":")), sep="\n")


def _reasoning(text: str) -> dict[str, str]:
    """Under the names of vLLM (`reasoning`) and of SGLang and transformers (`reasoning_content`)."""
    return {"reasoning_content": text, "reasoning": text}


def _head(kind: str, id: str, decision: Decision) -> dict[str, Any]:
    return {
        "id": PREFIX + id, "object": kind, "created": int(time.time()), "model": decision.mode,
        "system_fingerprint": None,
    }  # fmt: skip
