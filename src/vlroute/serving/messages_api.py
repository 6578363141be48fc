"""Anthropic's Messages API: its endpoints, replies and stream events, with the decision in a field `vlroute`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sse_starlette import ServerSentEvent

from vlroute.inputs.messages import Conversation
from vlroute.serving.bodies import JSONRoute
from vlroute.serving.dependencies import Caller
from vlroute.serving.errors import ANTHROPIC_PATH, APIError, request_id
from vlroute.serving.fetch import Preparation
from vlroute.serving.messages_request import CountTokensRequest, MessagesRequest
from vlroute.serving.replies import answer_details, begin, decision_headers, until_disconnect
from vlroute.serving.request_log import current_request
from vlroute.serving.sse import EventStream, json_event
from vlroute.types import (
    Answer,
    AnswerDelta,
    Decided,
    Decision,
    Event,
    Finished,
    Mode,
    ThinkingDelta,
    ToolCalled,
)

PREFIX = "msg_"
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "An error in Anthropic's shape."} for status in ("4XX", "5XX")
}
router = APIRouter(route_class=JSONRoute)


@router.post(ANTHROPIC_PATH, response_model=None, responses=_ERRORS)
async def messages(body: MessagesRequest, request: Request, caller: Caller) -> Response:
    """Answer a conversation in the form of Anthropic's Messages API."""
    arrived, service = time.perf_counter(), caller.service
    options = await until_disconnect(service.read_options(body, caller.namespace, caller.flow, arrived), request)
    tools = await until_disconnect(service.read_tools(body, options, arrived), request)
    prepare = Preparation(body.chat_messages(), caller.fetcher, service.settings, service.sampling, tools)
    ignored = body.ignored(options)
    if not body.stream:
        answer = await until_disconnect(service.answer(prepare, options, arrived), request)
        headers = _headers(answer.id, answer.decision)
        return JSONResponse(message(answer, ignored, body.hides_reasoning), headers=headers)
    events, decided = await until_disconnect(begin(service.stream(prepare, options, arrived)), request)
    stream = MessageStream(decided, ignored, body.hides_reasoning)
    headers = _headers(decided.id, decided.decision)
    return EventStream(events, stream, service.metrics.refused, headers, lambda: _event("ping"))


@router.post(f"{ANTHROPIC_PATH}/count_tokens", response_model=None, responses=_ERRORS)
async def count_tokens(body: CountTokensRequest, request: Request, caller: Caller) -> Response:
    """Count the tokens of a prompt without an answer; the larger number of both modes if none is forced."""
    arrived, service = time.perf_counter(), caller.service
    options = await until_disconnect(service.read_options(body, caller.namespace, caller.flow, arrived), request)
    tools = await until_disconnect(service.read_tools(body, options, arrived, answered=False), request)
    prepare = Preparation(body.chat_messages(), caller.fetcher, service.settings, service.sampling, tools)

    def count(conversation: Conversation) -> dict[Mode, int] | None:
        return service.router.pipeline.prompt_tokens(conversation, options)

    counts = await service.with_conversation(prepare, count, caller.flow, arrived)
    if counts is None:
        raise APIError(
            400, "tokens cannot be counted here: the models run on servers that do not offer it", "not_available"
        )
    reply = {
        "input_tokens": max(counts.values()),
        "vlroute": {"input_tokens": counts, "ignored": body.ignored(options)},
    }
    return JSONResponse(reply, headers={"request-id": request_id(current_request().id)})


def _headers(id: str, decision: Decision) -> dict[str, str]:
    return {**decision_headers(id, decision), "request-id": request_id(current_request().id)}


def message(answer: Answer, ignored: Sequence[str], hide_reasoning: bool = False) -> dict[str, Any]:
    """One answer as a `message`.

    Args:
        answer: The answer.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the text of the reasoning.

    Returns:
        The JSON object.
    """
    content: list[dict[str, Any]] = []
    if answer.thinking:
        text = "" if hide_reasoning else answer.thinking
        content.append({"type": "thinking", "thinking": text, "signature": _signature(answer.id)})
    if answer.text:
        content.append({"type": "text", "text": answer.text})
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": dict(call.arguments)}
        for call in answer.tool_calls
    ]
    return {
        **_head(answer.id, answer.decision), "content": content, **_end(answer), "usage": usage(answer),
        "vlroute": answer_details(answer, ignored),
    }  # fmt: skip


def usage(answer: Answer) -> dict[str, Any]:
    """Token counts under Anthropic's names. The prompt consists of the tokens that were read and the cached ones.

    Args:
        answer: The answer.

    Returns:
        The counts. Those of the prompt are 0 if an endpoint sent none, because clients require numbers.
    """
    used = answer.usage
    return {
        "input_tokens": max((used.prompt_tokens or 0) - used.cached_tokens, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached_tokens,
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"thinking_tokens": used.thinking_tokens},
    }


class MessageStream:
    """Converts the events of one stream to those of Anthropic's API; see `StreamFormat`.

    Reasoning, text and each tool call are one block. A new block begins where the kind of the output changes.

    Args:
        decided: The first event.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the text of the reasoning.
    """

    def __init__(self, decided: Decided, ignored: Sequence[str], hide_reasoning: bool = False) -> None:
        self.decided, self.ignored, self.hide_reasoning = decided, list(ignored), hide_reasoning
        self._blocks = 0  # number of blocks that have begun
        self._open: str | None = None  # type of the block that has not ended

    def first(self) -> Iterator[ServerSentEvent]:
        """The beginning of the message, with the decision. Its token counts follow at the end."""
        id, decision = self.decided.id, self.decided.decision
        begun = {
            **_head(id, decision), "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
            "vlroute": {"id": id, "decision": decision.as_dict(), "ignored": self.ignored},
        }  # fmt: skip
        yield _event("message_start", message=begun)
        yield _event("ping")

    def of(self, event: Event) -> Iterator[ServerSentEvent]:
        """The events for a later event."""
        match event:
            case Decided(decision):  # a second decision: the mode chosen first gives no answer
                self.decided = event
                # clients skip pings, but most of them fail on an event of a type that they do not know
                yield _event("ping", vlroute={"id": event.id, "decision": decision.as_dict()})
            case ThinkingDelta(text):
                yield from self._begin("thinking", thinking="", signature="")
                if self.hide_reasoning:
                    yield _event("ping")  # proxies close an idle stream
                else:
                    yield self._delta("thinking_delta", thinking=text)
            case AnswerDelta(text):
                yield from self._begin("text", text="")
                yield self._delta("text_delta", text=text)
            case ToolCalled(call):
                yield from self._close()
                yield from self._begin("tool_use", id=call.id, name=call.name, input={})
                yield self._delta("input_json_delta", partial_json=call.text)
            case Finished(answer):
                yield from self._close()
                details = {
                    "id": answer.id, "timing": asdict(answer.timing), "encoded": answer.usage.encoded,
                    "closed": answer.closed, "decision": answer.decision.as_dict(),
                }  # fmt: skip
                yield _event("message_delta", delta=_end(answer), usage=usage(answer), vlroute=details)
                yield _event("message_stop")

    def error(self, error: APIError) -> Iterator[ServerSentEvent]:
        """The error that ends the stream."""
        yield json_event(error.anthropic_body(request_id(current_request().id)), "error")

    def last(self) -> Iterator[ServerSentEvent]:
        """Nothing: the end of the message or an error is the last event."""
        yield from ()

    def _begin(self, kind: str, **fields: Any) -> Iterator[ServerSentEvent]:
        """Begin a block, unless one of this kind is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        self._blocks += 1
        yield _event("content_block_start", index=self._blocks - 1, content_block={"type": kind, **fields})

    def _close(self) -> Iterator[ServerSentEvent]:
        """End the open block, if there is one."""
        if self._open == "thinking":
            yield self._delta("signature_delta", signature=_signature(self.decided.id))
        if self._open is not None:
            self._open = None
            yield _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, kind: str, **fields: Any) -> ServerSentEvent:
        return _event("content_block_delta", index=self._blocks - 1, delta={"type": kind, **fields})


def _event(kind: str, **fields: Any) -> ServerSentEvent:
    return json_event({"type": kind, **fields}, kind)


def _head(id: str, decision: Decision) -> dict[str, Any]:
    return {"id": PREFIX + id, "type": "message", "role": "assistant", "model": decision.mode}


def _end(answer: Answer) -> dict[str, Any]:
    """Why the answer ended. APIError 503 if the server ended it, for which the API has no stop reason."""
    if answer.finish_reason == "cancelled":
        raise APIError(503, "the server ended the answer; try again", "cancelled", headers={"Retry-After": "5"})
    if answer.finish_reason == "stop" and answer.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": answer.stop}
    return {"stop_reason": _STOP_REASONS[answer.finish_reason], "stop_sequence": None}


def _signature(id: str) -> str:
    """The signature of reasoning. It is not checked, but clients send only signed reasoning back."""
    return f"vlroute-{id}"
