"""One stream of an endpoint: chunks to pieces, counts and seconds; errors to what the caller can do about them."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from vlroute.engine.endpoint import Endpoint
from vlroute.engine.protocol import FinishReason, OnPiece, Reply
from vlroute.engine.remote_text import RemoteText
from vlroute.errors import EndpointError, InputError, ModeUnavailable, VLRouteError
from vlroute.modes import Mode

POLL_SECONDS = 0.02
_REFUSED, _MISCONFIGURED, OVERLOADED = (400, 413, 415, 422), (401, 403, 404), 429


class RemoteStream:
    """Read by the thread that asked, from `queue`, which another one fills with chunks, errors, and at last None.

    Tokens are the server's own counts; where it sends none, a piece counts as a token.
    """

    def __init__(
        self, endpoint: Endpoint, mode: Mode, stops: Sequence[str], on_piece: OnPiece, cancel: threading.Event | None
    ) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.overloaded = False
        self._endpoint, self._on_piece, self._cancel = endpoint, on_piece, cancel
        self._text = RemoteText(mode == "thinking", endpoint.reasoning, stops)
        self._usage: Any = None
        self._encoded: int | None = None
        self._finish: str | None = None
        self._pieces = {"thinking": 0, "answer": 0}
        self._began, self._first = time.perf_counter(), 0.0

    def read(self) -> Reply:
        """Until the answer ends, is cancelled, or comes to a stop string. Errors as of `RemoteRequest.answer`."""
        while (chunk := self._next()) is not None:
            if isinstance(chunk, Exception):
                error = failure(chunk, self._endpoint.name, bool(self._first))
                self.overloaded = getattr(chunk, "status_code", None) == OVERLOADED
                raise error from chunk
            self._take(chunk)
            if self._text.stop.found:
                return self._reply("stop")
        if self._cancel is not None and self._cancel.is_set():
            return self._reply("cancelled")
        if self._finish is None:
            raise ModeUnavailable(f"{self._endpoint.name} broke off before the end of its answer", bool(self._first))
        for channel, piece in self._text.flush():
            self._on_piece(channel, piece)
        return self._reply("length" if self._finish == "length" else "stop")

    def _next(self) -> Any:
        """None at the end and once cancelled."""
        while True:
            if self._cancel is not None and self._cancel.is_set():
                return None
            try:
                return self.queue.get(timeout=None if self._cancel is None else POLL_SECONDS)
            except Empty:
                continue

    def _take(self, chunk: Any) -> None:
        self._usage = getattr(chunk, "usage", None) or self._usage
        if told := (chunk.model_extra or {}).get("vlroute"):  # a server of this kind
            self._encoded = told.get("encoded", self._encoded)
            self._text.reasoning = "parsed"
        for choice in chunk.choices[:1]:
            self._finish = choice.finish_reason or self._finish
            delta = choice.delta
            # vLLM says `reasoning`, SGLang and transformers `reasoning_content`, some both
            reasoning = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None) or ""
            content = delta.content or ""
            if reasoning or content:
                self._first = self._first or time.perf_counter()
            for channel, piece in self._text.push(reasoning, content):
                self._pieces[channel] += 1
                self._on_piece(channel, piece)

    def _reply(self, reason: FinishReason) -> Reply:
        ended = time.perf_counter()
        first = self._first or ended
        used = self._usage
        prompt = getattr(used, "prompt_tokens_details", None)
        completion = getattr(used, "completion_tokens_details", None)
        total = used.completion_tokens if used else sum(self._pieces.values())
        thought = getattr(completion, "reasoning_tokens", None)
        return Reply(
            text=self._text.texts["answer"],
            thinking=self._text.texts["thinking"],
            finish_reason=reason,
            prompt_tokens=used.prompt_tokens if used else 0,
            cached_tokens=getattr(prompt, "cached_tokens", None) or 0,
            vision_tokens=getattr(prompt, "image_tokens", None) or 0,
            completion_tokens=total,
            thinking_tokens=min(self._pieces["thinking"], total) if thought is None else thought,
            vision_seconds=0.0,
            prefill_seconds=first - self._began,
            decode_seconds=ended - first,
            encoded=self._encoded,
        )


def failure(error: Exception, name: str, begun: bool) -> VLRouteError:
    """What an error of the openai package means for whoever asked."""
    status, said = getattr(error, "status_code", None), _said(error)
    if status in _REFUSED:
        return InputError(f"{name} refuses the request: {said}")
    if status in _MISCONFIGURED:
        return EndpointError(f"{name} answers {status}: {said}; check key, model and address")
    if status == OVERLOADED:
        return ModeUnavailable(f"{name} has too much to do", begun)
    what = f"answers {status}" if status else "broke off" if begun else "cannot be reached"
    return ModeUnavailable(f"{name} {what}: {said}", begun)


def _said(error: Exception) -> str:
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    return " ".join(str(message or error or type(error).__name__).split())[:300]
