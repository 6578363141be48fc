"""Answers and stream events in the shape of OpenAI's chat completions, with the decision in a field `vlroute`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sse_starlette import ServerSentEvent

from vlroute.serving.choices import ChoiceEvent, Item, joined
from vlroute.serving.errors import APIError
from vlroute.serving.replies import answer_details
from vlroute.serving.sse import json_event
from vlroute.types import (
    Answer,
    AnswerDelta,
    Decided,
    Decision,
    Event,
    Finished,
    ThinkingDelta,
    TokenLogprob,
    ToolCalled,
)

PREFIX = "chatcmpl-"


def completion(answers: Sequence[Answer], ignored: Sequence[str], hide_reasoning: bool = False) -> dict[str, Any]:
    """The answers to one request as a `chat.completion`.

    Args:
        answers: The answers; mode and decision of the first one are those of the request.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the reasoning.

    Returns:
        The JSON object.
    """
    first, choices = answers[0], [_choice(index, answer, hide_reasoning) for index, answer in enumerate(answers)]
    if len(answers) > 1:
        for choice, answer in zip(choices, answers, strict=True):
            choice["vlroute"] = _ending(answer) | {"decision": answer.decision.as_dict()}
    return {
        **_head("chat.completion", first.id, first.decision), "choices": choices,
        "usage": usage(joined(dict(enumerate(answers)))), "vlroute": answer_details(first, ignored),
    }  # fmt: skip


def _choice(index: int, answer: Answer, hide_reasoning: bool) -> dict[str, Any]:
    content = answer.text if answer.text or not answer.tool_calls else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = [call.as_dict() for call in answer.tool_calls]
    if (answer.decision.mode == "thinking" or answer.thinking) and not hide_reasoning:
        message |= _reasoning(answer.thinking)
    return {
        "index": index, "message": message, "finish_reason": answer.finish_reason,
        "logprobs": None if answer.logprobs is None else _logprobs(answer.logprobs),
    }  # fmt: skip


def _logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [one.as_dict() for one in entries], "refusal": None}


def _ending(answer: Answer) -> dict[str, Any]:
    """What the field `vlroute` says at the end of an answer."""
    return {
        "id": answer.id, "timing": asdict(answer.timing), "encoded": answer.usage.encoded, "closed": answer.closed,
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
    """Converts the events of one answer to `chat.completion.chunk`s.

    Args:
        decided: The first event.
        with_usage: Whether the last chunk contains token counts.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the reasoning.
        index: Number of the answer, if there are several.
        id: Id of the first answer, if this is another one.
    """

    def __init__(
        self,
        decided: Decided,
        with_usage: bool,
        ignored: Sequence[str],
        hide_reasoning: bool = False,
        index: int = 0,
        id: str = "",
    ) -> None:
        self.decided, self.with_usage, self.ignored = decided, with_usage, list(ignored)
        self.hide_reasoning, self.index, self.id = hide_reasoning, index, id or decided.id
        self.created = int(time.time())
        self._calls = 0  # number of tool calls so far
        self._logprobs = 0  # number of tokens whose log-probabilities were sent

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
            case AnswerDelta(text, logprobs):
                self._logprobs += len(logprobs)
                yield self._chunk({"content": text}, logprobs=logprobs)
            case ToolCalled(call):
                yield self._chunk({"tool_calls": [{"index": self._calls, **call.as_dict()}]})
                self._calls += 1
            case Finished(answer):
                yield self.end(answer)
                yield from self.counts(answer)

    def end(self, answer: Answer) -> ServerSentEvent:
        """The chunk with the `finish_reason`."""
        details = _ending(answer)
        if answer.decision != self.decided.decision:  # its reason says what is wrong with the answer
            details["decision"] = answer.decision.as_dict()
        rest = (answer.logprobs or ())[self._logprobs :]
        return self._chunk({}, answer.finish_reason, rest, vlroute=details)

    def counts(self, answer: Answer) -> Iterator[ServerSentEvent]:
        """The chunk with the token counts, if it is wanted."""
        if self.with_usage and (used := usage(answer)):
            yield json_event({**self._head(), "choices": [], "usage": used})

    def error(self, error: APIError) -> Iterator[ServerSentEvent]:
        """The error that ends the stream."""
        yield json_event(error.body())

    def last(self) -> Iterator[ServerSentEvent]:
        """The end of the stream, also after an error."""
        yield ServerSentEvent("[DONE]", sep="\n")

    def _chunk(
        self,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: Sequence[TokenLogprob] = (),
        **more: Any,
    ) -> ServerSentEvent:
        choice = {
            "index": self.index, "delta": delta, "finish_reason": finish_reason,
            "logprobs": _logprobs(logprobs) if logprobs else None,
        }  # fmt: skip
        empty = {"usage": None} if self.with_usage else {}
        return json_event({**self._head(), "choices": [choice], **empty, **more})

    def _head(self) -> dict[str, Any]:
        return {**_head("chat.completion.chunk", self.id, self.decided.decision), "created": self.created}


class ChoiceChunks:
    """Converts the events of several answers to one request to `chat.completion.chunk`s of one stream.

    Args:
        decided: The first event.
        with_usage: Whether the last chunk contains token counts.
        ignored: Names of the request's fields that have no effect.
        hide_reasoning: Whether to leave out the reasoning.
    """

    def __init__(
        self, decided: Decided, with_usage: bool, ignored: Sequence[str], hide_reasoning: bool = False
    ) -> None:
        self._options = with_usage, ignored, hide_reasoning
        self._first = Chunks(decided, *self._options)
        self._chunks = {0: self._first}

    def first(self) -> Iterator[ServerSentEvent]:
        """The chunk with the decision."""
        yield from self._first.first()

    def of(self, item: Item) -> Iterator[ServerSentEvent]:
        """The chunks for a later item."""
        match item:
            case ChoiceEvent(index, Decided() as decided) if index not in self._chunks:
                self._chunks[index] = Chunks(decided, *self._options, index, self._first.id)
                yield from self._chunks[index].first()
            case ChoiceEvent(index, Finished(answer)):
                yield self._chunks[index].end(answer)
            case ChoiceEvent(index, event):
                yield from self._chunks[index].of(event)
            case Finished(answer):
                yield from self._first.counts(answer)

    def error(self, error: APIError) -> Iterator[ServerSentEvent]:
        """The error that ends the stream."""
        yield from self._first.error(error)

    def last(self) -> Iterator[ServerSentEvent]:
        """The end of the stream, also after an error."""
        yield from self._first.last()


def _reasoning(text: str) -> dict[str, str]:
    """Under the names of vLLM (`reasoning`) and of SGLang and transformers (`reasoning_content`)."""
    return {"reasoning_content": text, "reasoning": text}


def _head(kind: str, id: str, decision: Decision) -> dict[str, Any]:
    return {
        "id": PREFIX + id, "object": kind, "created": int(time.time()), "model": decision.mode,
        "system_fingerprint": None,
    }  # fmt: skip
