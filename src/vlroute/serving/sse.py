"""Answers and events in OpenAI's shape, with the decision in a field `vlroute`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vlroute.serving.errors import APIError, Count, api_error
from vlroute.serving.service import Running
from vlroute.types import Answer, AnswerDelta, Decided, Decision, Event, Finished, ThinkingDelta

PREFIX = "chatcmpl-"


def completion(answer: Answer, ignored: Sequence[str], hide_reasoning: bool = False) -> dict[str, Any]:
    """One answer as a `chat.completion`."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.decision.mode == "thinking" and not hide_reasoning:
        message |= _reasoning(answer.thinking)
    choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}
    return {
        **_head("chat.completion", answer.id, answer.decision), "choices": [choice], "usage": usage(answer),
        "vlroute": {
            "id": answer.id, "decision": answer.decision.as_dict(), "timing": asdict(answer.timing),
            "encoded": answer.usage.encoded, "ignored": list(ignored),
        },
    }  # fmt: skip


def usage(answer: Answer) -> dict[str, Any] | None:
    """Token counts under OpenAI's names; those of pictures and videos as `image_tokens`. None if an endpoint sent
    none."""
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


def headers(decided: Decided) -> dict[str, str]:
    """The decision for whoever does not read the body."""
    return {
        "X-VLRoute-Id": decided.id,
        "X-VLRoute-Mode": decided.decision.mode,
        "X-VLRoute-Gain": f"{decided.decision.gain:.4f}",
        "X-VLRoute-Forced": str(decided.decision.forced).lower(),
    }


class Chunks:
    """The `chat.completion.chunk`s of one stream, as server-sent events."""

    def __init__(
        self, decided: Decided, with_usage: bool, ignored: Sequence[str], hide_reasoning: bool = False
    ) -> None:
        self.decided, self.with_usage, self.ignored = decided, with_usage, list(ignored)
        self.hide_reasoning = hide_reasoning
        self.created = int(time.time())

    def first(self) -> str:
        told = {"id": self.decided.id, "decision": self.decided.decision.as_dict(), "ignored": self.ignored}
        return self._chunk({"role": "assistant", "content": ""}, vlroute=told)

    def of(self, event: Event) -> Iterator[str]:
        match event:
            case Decided(decision):  # anew: the mode chosen first cannot answer
                self.decided = event
                yield self._chunk({}, vlroute={"id": event.id, "decision": decision.as_dict()})
            case ThinkingDelta() if self.hide_reasoning:
                yield ": thinking\n\n"  # a comment, because proxies close an idle stream
            case ThinkingDelta(text):
                yield self._chunk(_reasoning(text))
            case AnswerDelta(text):
                yield self._chunk({"content": text})
            case Finished(answer):
                told = {"id": answer.id, "timing": asdict(answer.timing), "encoded": answer.usage.encoded}
                if answer.decision != self.decided.decision:  # the reason says what is wrong with the answer
                    told["decision"] = answer.decision.as_dict()
                yield self._chunk({}, answer.finish_reason, vlroute=told)
                if self.with_usage and (used := usage(answer)):
                    yield data({**self._head(), "choices": [], "usage": used})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        empty = {"usage": None} if self.with_usage else {}
        return data({**self._head(), "choices": [choice], **empty, **more})

    def _head(self) -> dict[str, Any]:
        return {**_head("chat.completion.chunk", self.decided.id, self.decided.decision), "created": self.created}


def data(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=True, separators=(',', ':'))}\n\n"


DONE = "data: [DONE]\n\n"


def _reasoning(text: str) -> dict[str, str]:
    """Under the names of vLLM (`reasoning`) and of SGLang and transformers (`reasoning_content`)."""
    return {"reasoning_content": text, "reasoning": text}


def _head(kind: str, id: str, decision: Decision) -> dict[str, Any]:
    return {
        "id": PREFIX + id, "object": kind, "created": int(time.time()), "model": decision.mode,
        "system_fingerprint": None,
    }  # fmt: skip


PING_SECONDS = 10.0  # proxies cut a silent stream after half a minute or so


async def first(running: Running) -> Decided:
    """The decision; what fails before it has a status of its own."""
    try:
        event = await running.next()
    except BaseException:
        running.close()
        raise
    assert isinstance(event, Decided)
    return event


async def whole(running: Running, request: Request) -> tuple[Answer, Decided]:
    """The answer with its decision; given up when the client leaves."""

    async def read() -> tuple[Answer, Decided]:
        decided = await first(running)
        while not isinstance(event := await running.next(), Finished):
            decided = event if isinstance(event, Decided) else decided
        return event.answer, decided

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    reading, leaving = asyncio.ensure_future(read()), asyncio.ensure_future(left())
    try:
        await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise APIError(499, "the client left", "client_left")
        return reading.result()
    finally:
        leaving.cancel()
        reading.cancel()
        running.close()


class EventStream(StreamingResponse):
    """The answer as server-sent events. However the client leaves, nothing is written for it any longer."""

    def __init__(self, running: Running, chunks: Chunks, count: Count, headers: dict[str, str]) -> None:
        told = {**headers, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_sent(running, chunks, count), media_type="text/event-stream", headers=told)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # not in the generator: one that was never begun has no end either
            self._running.close()


async def _sent(running: Running, chunks: Chunks, count: Count) -> AsyncIterator[str]:
    """A comment now and then while there is nothing to say. An error ends them with its message; `count` is told."""
    try:
        yield chunks.first()
        event: Event | None = None
        while not isinstance(event, Finished):
            try:
                event = await running.next(PING_SECONDS)
            except TimeoutError:
                yield ": still working\n\n"
                continue
            for chunk in chunks.of(event):
                yield chunk
    except Exception as error:
        said = api_error(error)
        count(said.status, said.code)
        yield data(said.body())
    yield DONE
