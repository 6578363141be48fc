"""Answers and stream events in the shape of OpenAI's chat completions, with the decision in a field `vlroute`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sse_starlette import ServerSentEvent

from vlroute.serving.errors import APIError
from vlroute.serving.replies import answer_details
from vlroute.serving.sse import json_event
from vlroute.types import Answer, AnswerDelta, Decided, Decision, Event, Finished, ThinkingDelta, ToolCalled

PREFIX = "chatcmpl-"


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
        "vlroute": answer_details(answer, ignored),
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

    def first(self) -> Iterator[ServerSentEvent]:
        """The chunk with the decision."""
        details = {"id": self.decided.id, "decision": self.decided.decision.as_dict(), "ignored": self.ignored}
        yield self._chunk({"role": "assistant", "content": ""}, vlroute=details)

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
                    yield json_event({**self._head(), "choices": [], "usage": used})

    def error(self, error: APIError) -> Iterator[ServerSentEvent]:
        """The error that ends the stream."""
        yield json_event(error.body())

    def last(self) -> Iterator[ServerSentEvent]:
        """The end of the stream, also after an error."""
        yield ServerSentEvent("[DONE]", sep="\n")

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> ServerSentEvent:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        empty = {"usage": None} if self.with_usage else {}
        return json_event({**self._head(), "choices": [choice], **empty, **more})

    def _head(self) -> dict[str, Any]:
        return {**_head("chat.completion.chunk", self.decided.id, self.decided.decision), "created": self.created}


def _reasoning(text: str) -> dict[str, str]:
    """Under the names of vLLM (`reasoning`) and of SGLang and transformers (`reasoning_content`)."""
    return {"reasoning_content": text, "reasoning": text}


def _head(kind: str, id: str, decision: Decision) -> dict[str, Any]:
    return {
        "id": PREFIX + id, "object": kind, "created": int(time.time()), "model": decision.mode,
        "system_fingerprint": None,
    }  # fmt: skip
