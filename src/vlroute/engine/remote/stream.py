"""The stream of an endpoint: separates reasoning from the answer, and counts tokens."""

from __future__ import annotations

import codecs
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from vlroute.engine.protocol import TOP_TOKENS, Evidence, Piece, Reply
from vlroute.engine.remote.endpoint import Endpoint, Reasoning
from vlroute.engine.remote.errors import failure, is_overload
from vlroute.engine.remote.logprobs import RemoteLogprobs
from vlroute.engine.repetition import LoopDetector
from vlroute.engine.text import StopText, Trimmed
from vlroute.engine.tool_calls import call_of
from vlroute.engine.trial import RunningTrial
from vlroute.errors import ModeUnavailableError, SettingsError
from vlroute.inputs.think_tags import Tag, ThinkTags
from vlroute.inputs.tools import MAX_CALLS, new_call_id
from vlroute.types import Channel, Closed, FinishReason, Mode, TokenLogprob, ToolCall

Pieces = Iterator[tuple[Channel, str]]


class _Surrogates:
    """Joins surrogate pairs that are split over two chunks. A lone surrogate becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def push(self, piece: str, final: bool = False) -> str:
        return self._decoder.decode(piece.encode("utf-16-le", "surrogatepass"), final)


class RemoteText:
    """Converts chunks of a stream to pieces of reasoning and answer, independent of how the text is divided.

    A server with a reasoning parser sends reasoning in a separate field and the answer as content. A server without one
    sends everything as content, in which `</think>` ends the reasoning. With "auto", content is held back until the
    stream shows which case applies. If it never does, earlier streams of the server decide. If they showed nothing
    either, the content is the answer if the server completed it, otherwise truncated reasoning.

    Args:
        thinking: Whether the server was asked to reason first.
        reasoning: See `Endpoint`.
        stops: Strings that end the answer, but not the reasoning.
        known: What earlier streams of the server showed: "parsed", "raw", or "auto" for nothing.
    """

    def __init__(
        self, thinking: bool, reasoning: Reasoning = "auto", stops: Sequence[str] = (), known: Reasoning = "auto"
    ) -> None:
        self.stop = StopText(stops)
        self.chunks: dict[Channel, int] = {"thinking": 0, "answer": 0}  # number of chunks with text
        self._pieces: dict[Channel, list[str]] = {"thinking": [], "answer": []}
        self._trimmed: dict[Channel, Trimmed] = {"thinking": Trimmed(), "answer": Trimmed()}
        self._surrogates: dict[Channel, _Surrogates] = {"thinking": _Surrogates(), "answer": _Surrogates()}
        self._raw = thinking and reasoning != "parsed"  # content may contain the reasoning
        self._undecided: list[str] | None = [] if self._raw and reasoning == "auto" else None  # all content so far
        self._channel: Channel | None = "thinking" if self._raw else "answer"  # of content; None if not known yet
        self.known = known
        self.shown: Reasoning = "auto"  # by this stream
        self._held: list[str] = []  # content whose channel is not known yet
        self._held_chunks = 0
        self._tags = ThinkTags(thought=self._raw)
        if self._undecided is not None:
            self._channel = None

    @property
    def reasoning_chunks(self) -> int:
        """Number of chunks of reasoning; 0 after the answer has begun, or if they may belong to the answer."""
        if self.chunks["answer"] or self._pieces["answer"] or (self._raw and self._channel == "answer"):
            return 0
        return self.chunks["thinking"] + (self._held_chunks if self.known == "raw" else 0)

    def text(self, channel: Channel) -> str:
        """The joined pieces of one channel."""
        return "".join(self._pieces[channel])

    def push(self, reasoning: str, content: str) -> Pieces:
        """Process one chunk. Either part may be empty."""
        yield from self._push(self._surrogates["thinking"].push(reasoning), self._surrogates["answer"].push(content))

    def _push(self, reasoning: str, content: str) -> Pieces:
        if reasoning:
            self.shown = "parsed"
            yield from self.parsed()
            self.chunks["thinking"] += 1
            yield from self._emit("thinking", reasoning)
        if content:
            if self._channel is None:
                self._held_chunks += 1
            else:
                self.chunks[self._channel] += 1
            if self._undecided is not None:
                self._undecided.append(content)
            yield from self._process(self._tags.push(content))

    def parsed(self) -> Pieces:
        """Record that the server has a reasoning parser, so that content is the answer."""
        if not self._raw:
            return
        self._raw = False
        if self._undecided is not None:
            content, self._undecided, self._held, self._tags = self._undecided, None, [], ThinkTags(thought=False)
            self._settle("answer")
            yield from self._process(self._tags.push("".join(content)))
        elif self._channel == "thinking":
            yield from self._process(self._tags.flush())
            self._channel, self._tags = "answer", ThinkTags(thought=False)

    def flush(self, complete: bool) -> Iterator[tuple[Channel, str]]:
        """End the stream.

        Args:
            complete: Whether the server reports a complete answer.

        Yields:
            The pieces that were held back.
        """
        lone = {channel: surrogates.push("", final=True) for channel, surrogates in self._surrogates.items()}
        yield from self._push(lone["thinking"], lone["answer"])
        yield from self._process(self._tags.flush())
        if self._undecided is not None and (self.known == "parsed" or (complete and self.known == "auto")):
            yield from self.parsed()
            yield from self._process(self._tags.flush())
        if self._channel is None:  # truncated reasoning, or an answer that begins with the word <think>
            yield from self._release("answer" if self._undecided is None else "thinking")
        if rest := self.stop.flush():
            self._pieces["answer"].append(rest)
            yield "answer", rest

    def with_calls(self, pieces: Iterator[tuple[Channel, Piece]]) -> Iterator[tuple[Channel, Piece]]:
        """Pass on calls, and add the text of those that cannot be read to the answer."""
        for channel, piece in pieces:
            if isinstance(piece, str):
                yield from self._emit(channel, piece)
            else:
                yield channel, piece

    def _process(self, items: Iterator[str | Tag]) -> Pieces:
        for item in items:
            if item is Tag.CLOSE:
                self.shown = "raw" if self._raw else self.shown
                if self._channel is None:
                    if self._undecided is None:
                        del self._held[0]  # the opening tag
                    yield from self._release("thinking")
                self._channel, self._undecided = "answer", None
            elif isinstance(item, str):
                if self._channel is None:
                    self._held.append(item)
                else:
                    yield from self._emit(self._channel, item)
            elif self._undecided is not None and self._tags.empty:  # reasoning that begins with <think>
                self._undecided = None
                yield from self._release("thinking")
            elif self._channel == "answer":  # an answer that begins with <think>
                self._channel = "thinking" if self._raw else None
                self._held = [] if self._raw else [item.value]

    def _release(self, channel: Channel) -> Pieces:
        held, self._held = self._held, []
        self._settle(channel)
        yield from self._emit(channel, "".join(held))

    def _settle(self, channel: Channel) -> None:
        self.chunks[channel] += self._held_chunks
        self._held_chunks, self._channel = 0, channel

    def _emit(self, channel: Channel, text: str) -> Pieces:
        piece = self._trimmed[channel].push(text)
        if channel == "answer":
            piece = self.stop.push(piece)
        if piece:
            self._pieces[channel].append(piece)
            yield channel, piece


POLL_SECONDS = 0.02
#: Longest time, in seconds, to wait for token counts and the end of the stream once the answer is complete.
END_SECONDS = 2.0
_FINISH: dict[str, FinishReason] = {
    "stop": "stop", "eos_token": "stop", "tool_calls": "stop", "length": "length", "max_tokens": "length",
    "content_filter": "content_filter",
}  # fmt: skip
_CUT: dict[Closed, str] = {
    "loop": "its reasoning repeated itself",
    "reserve": "its reasoning left only the tokens that are kept for the answer",
}
_FAILED = ("error", "abort", "insufficient_system_resource")


class RemoteCalls:
    """Joins the pieces of tool calls. All calls are passed on at the end, because their pieces may be mixed.

    The calls get ids of this process, which contain the mode. Those of the server are not needed again: it keeps no
    state between requests.

    Args:
        mode: The mode that answers.
        most: Maximum number of calls.
    """

    def __init__(self, mode: Mode, most: int = MAX_CALLS) -> None:
        self.calls: list[ToolCall] = []
        self._mode, self._most = mode, most
        self._open = list[dict[str, Any]]()  # in the order of their first pieces

    def __bool__(self) -> bool:
        return bool(self._open or self.calls)

    def push(self, deltas: Any) -> None:
        """Process the field `tool_calls` of one chunk. Parts that are not text are left out."""
        for delta in deltas if isinstance(deltas, list) else ():
            index, id, function = (getattr(delta, name, None) for name in ("index", "id", "function"))
            name, text = getattr(function, "name", None), getattr(function, "arguments", None)
            if isinstance(text, Mapping):  # of servers that send it as an object
                text = json.dumps(text, ensure_ascii=False)
            call = self._call(index, id if isinstance(id, str) else "")
            # a name that is sent again is the same one, not a continuation
            call["name"] = name if isinstance(name, str) and name else call["name"]
            if isinstance(text, str):
                call["text"].append(text)

    def _call(self, index: Any, id: str) -> dict[str, Any]:
        """The call to which a piece belongs: some servers give all calls the same index, or none."""
        call: dict[str, Any]
        for call in reversed(self._open):
            if (call["index"] == index and id in ("", call["id"])) or (id and id == call["id"]):
                return call
        new: dict[str, Any] = {"index": index, "id": id, "name": "", "text": []}
        self._open.append(new)
        return new

    def flush(self) -> Iterator[tuple[Channel, Piece]]:
        """Complete the calls. One that cannot be read, or was cut off, becomes text, so that it is not lost."""
        opened, self._open = self._open, []
        for given in opened[: self._most]:
            # a surrogate pair may be split over two chunks; a lone surrogate becomes U+FFFD
            name, text = (
                "".join(piece).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
                for piece in (given["name"], given["text"])
            )
            if call := call_of(new_call_id(self._mode), name, text):
                self.calls.append(call)
                yield "call", call
            else:
                yield "answer", f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'


class RemoteStream:
    """One stream. The requesting thread reads `queue`, which another thread fills with chunks, errors and a final None.

    Token counts are those of the server; most servers send them at the end. Without counts, each chunk counts as one
    token. A stream that is ended early has the latest counts, but at least one token for each chunk.

    Args:
        endpoint: The server.
        mode: The requested mode.
        stops: Strings that end the answer, but not the reasoning.
        trial: Receives the pieces of text and decides whether the answer goes on.
        cancel: Ends the stream when set.
        known: See `RemoteText`.
        most_thinking: Ends the stream after this many chunks of reasoning without an answer.
        close_loops: Whether reasoning that repeats itself ends the stream. It cannot be closed and continued.
        most_calls: Maximum number of tool calls.
        logprobs: Receives the log-probabilities of the answer, if they are wanted.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        mode: Mode,
        stops: Sequence[str],
        trial: RunningTrial,
        cancel: threading.Event | None,
        known: Reasoning = "auto",
        most_thinking: int | None = None,
        close_loops: bool = True,
        most_calls: int = MAX_CALLS,
        logprobs: RemoteLogprobs | None = None,
    ) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.overloaded = False
        #: Whether the server sent text without the log-probabilities that the trial needs.
        self.lacks_scores = False
        self._scores: list[tuple[float, float]] = []  # log-probability and entropy of each token
        self._endpoint, self._mode, self._trial, self._cancel = endpoint, mode, trial, cancel
        self._text = RemoteText(mode == "thinking", endpoint.reasoning, stops, known)
        self._most_thinking = most_thinking
        self._loops = LoopDetector() if close_loops and mode == "thinking" else None
        self._cut: Closed | None = None
        self._calls, self._logprobs = RemoteCalls(mode, most_calls), logprobs
        self._usage: Any = None
        self._encoded: int | None = None
        self._finish: str | None = None
        self._refused = False
        self._began, self._first = time.perf_counter(), 0.0
        self._deadline, self._patience = self._began + endpoint.read_seconds, endpoint.read_seconds

    @property
    def shown(self) -> Reasoning:
        """Whether the stream showed that the server has a reasoning parser ("parsed") or none ("raw")."""
        return "parsed" if self._reasoning_tokens is not None else self._text.shown

    @property
    def _reasoning_tokens(self) -> int | None:
        """The server's count. None from a server without a reasoning parser."""
        return _count(getattr(self._usage, "completion_tokens_details", None), "reasoning_tokens")

    @property
    def _tokens_so_far(self) -> int:
        """The server's count, if it sends one with each chunk; else 0."""
        return _count(self._usage, "completion_tokens") or 0

    def read(self) -> Reply:
        """Read until the answer ends, is cancelled, or reaches a stop string. Errors as of `RemoteRequest.answer`."""
        while (chunk := self._next()) is not None:
            if isinstance(chunk, Exception):
                if self._finish is not None:  # the answer is complete; only its token counts are missing
                    break
                self.overloaded = is_overload(chunk)
                raise failure(chunk, self._endpoint.model, self._trial.begun) from chunk
            self._process(chunk)
            if self._text.stop.found:
                return self._end("stop")
            if self._cut:
                self._push(self._text.flush(complete=False))
                return self._end("length")
            if self._scores and self._finish is None and self._trial.is_due(time.perf_counter() - self._first):
                self._judge(complete=False)
            if self._trial.rejected:
                return self._reply("cancelled")
        cancelled = self._cancel is not None and self._cancel.is_set()
        if self._finish in _FAILED or (self._finish is None and not cancelled):
            raise ModeUnavailableError(f"{self._endpoint.model} ended its stream early", self._trial.begun)
        reason = "cancelled" if cancelled else _FINISH.get(self._finish or "", "length")
        if self._reasoning_tokens is not None:
            self._text.known = "parsed"
        # a server that reads calls has separated the reasoning
        self._push(self._text.flush(complete=reason == "stop" or bool(self._calls)))
        if not (cancelled or self._text.stop.found):
            self._push(self._text.with_calls(self._calls.flush()))
        return self._end("stop" if self._text.stop.found and not cancelled else reason)

    def _next(self) -> Any:
        """The next chunk or error; None at the end or if the stream was cancelled."""
        while True:
            if self._cancel is not None and self._cancel.is_set():
                return None
            left = max(self._deadline - time.perf_counter(), 0.0)
            try:  # even after the deadline: a slow consumer is not a fault of the server
                return self.queue.get(timeout=left if self._cancel is None else min(left, POLL_SECONDS))
            except Empty:
                if left > 0:
                    continue
            if self._finish is not None:
                return None
            raise ModeUnavailableError(
                f"{self._endpoint.model} sent no token for {self._patience:g} s", self._trial.begun
            )

    def _process(self, chunk: Any) -> None:
        self._usage = getattr(chunk, "usage", None) or self._usage
        details = (getattr(chunk, "model_extra", None) or {}).get("vlroute")
        if isinstance(details, Mapping):  # the server is `vlroute serve`
            self._encoded = details.get("encoded", self._encoded)
            self._push(self._text.parsed())
        if (choice := first_choice(chunk)) is not None:
            delta = getattr(choice, "delta", None)
            # vLLM sends `reasoning`, SGLang, llama.cpp and transformers `reasoning_content`, some servers both
            reasoning = self._part(delta, "reasoning_content") or self._part(delta, "reasoning")
            refusal = self._part(delta, "refusal")
            self._refused = self._refused or bool(refusal)
            content = self._part(delta, "content") + refusal
            if end := getattr(choice, "finish_reason", None):
                self._finish = str(end)
            if self._trial.needs_answer:
                self._read_scores(choice, content)
            if self._logprobs is not None:
                self._read_logprobs(self._logprobs, choice, reasoning, content)
            if reasoning or content:
                self._first = self._first or time.perf_counter()
                self._wait(min(self._endpoint.idle_seconds, self._endpoint.read_seconds))
                self._push(self._text.push(reasoning, content))
                self._check_reasoning(reasoning or content)
            if calls := getattr(delta, "tool_calls", None):
                self._first = self._first or time.perf_counter()
                self._wait(min(self._endpoint.idle_seconds, self._endpoint.read_seconds))
                self._calls.push(calls)
                self._text.chunks["answer"] += 1
            if self._finish is not None:
                self._wait(min(END_SECONDS, self._patience))

    def _push(self, pieces: Iterator[tuple[Channel, Piece]]) -> None:
        """Pass pieces on to the trial."""
        self._trial.push(pieces if self._logprobs is None else self._logprobs.attach(pieces))

    def _entries(self, choice: Any, content: str) -> list[Any]:
        """The log-probabilities of one chunk. Not all servers send the end token, so it is left out."""
        entries: list[Any] = getattr(getattr(choice, "logprobs", None), "content", None) or []
        if entries and _FINISH.get(self._finish or "") == "stop":
            token = entries[-1].token
            entries = entries if token and content.endswith(token) else entries[:-1]
        return entries

    def _read_logprobs(self, logprobs: RemoteLogprobs, choice: Any, reasoning: str, content: str) -> None:
        try:
            logprobs.push(self._entries(choice, content), reasoning, content)
        except (AttributeError, TypeError, ValueError) as error:
            raise self._unusable() from error

    def _answer_logprobs(self, text: str, stopped: bool) -> tuple[TokenLogprob, ...] | None:
        if self._logprobs is None or not text:
            return None
        if not (self._refused or self._logprobs.fit(text, stopped)):  # those of a refusal are in another field
            raise self._unusable()
        return tuple(self._logprobs.entries)

    def _unusable(self) -> SettingsError:
        error = SettingsError(
            f"{self._endpoint.model} sent no log-probabilities of its answer, or wrong ones: leave logprobs out"
        )
        error.address = self._endpoint.address
        return error

    def _read_scores(self, choice: Any, content: str) -> None:
        """Read the log-probabilities of one chunk. Without them, or if they are malformed, nothing is decided."""
        try:
            self._scores += map(token_scores, self._entries(choice, content))
            self.lacks_scores = bool(content) and not self._scores
        except (AttributeError, TypeError, ValueError):
            self.lacks_scores = True
        if self.lacks_scores:
            self._trial.release()

    def _judge(self, complete: bool) -> None:
        log_probs, entropies = zip(*self._scores, strict=True) if self._scores else ((), ())
        self._trial.judge(Evidence(None, log_probs, entropies, complete))

    def _end(self, reason: FinishReason) -> Reply:
        if self._scores and self._trial.needs_answer and reason != "cancelled":
            self._judge(complete=reason == "stop")
        self._trial.release()
        return self._reply("cancelled" if self._trial.rejected else reason)

    def _check_reasoning(self, text: str) -> None:
        """Mark the stream to be ended if its reasoning repeats itself or reaches the reserve for the answer.

        Args:
            text: Text of the new chunk.
        """
        if self._mode != "thinking" or self._finish is not None or not (chunks := self._text.reasoning_chunks):
            return  # after the finish reason, only the counts of the server follow
        if self._loops is not None and self._loops.push(text):
            self._cut = "loop"
        # a chunk may contain several tokens
        elif self._most_thinking is not None and max(chunks, self._tokens_so_far) >= self._most_thinking:
            self._cut = "reserve"

    def _part(self, delta: Any, name: str) -> str:
        value = getattr(delta, name, None) or ""
        if not isinstance(value, str):
            raise ModeUnavailableError(f"{self._endpoint.model} sent a {name} that is not text", self._trial.begun)
        return value

    def _wait(self, seconds: float) -> None:
        self._deadline, self._patience = time.perf_counter() + seconds, seconds

    def _reply(self, reason: FinishReason) -> Reply:
        ended = time.perf_counter()
        first = self._first or ended
        text, thinking, notes = self._text.text("answer"), self._text.text("thinking"), []
        logprobs = self._answer_logprobs(text, reason == "cancelled" or self._text.stop.found is not None)
        if self._refused:
            reason = "content_filter" if reason == "stop" else reason
            notes.append("the server refused to answer")
        without_calls = self._finish == "tool_calls" and not self._calls.calls
        if self._finish is not None and (self._finish not in _FINISH or without_calls):
            reason = "length" if reason == "stop" else reason
            notes.append(f"the server ended with finish_reason {self._finish[:40]!r}")
        if self._cut is not None and not text and not self._calls.calls:
            notes.append(_CUT[self._cut])
        elif not text and not self._calls.calls and reason != "cancelled" and not self._text.stop.found:
            reason = "length" if reason == "stop" else reason
            hint = " (an Instruct server must run without a reasoning parser)"
            notes.append(f"the server returned no answer{hint if thinking and self._mode == 'instruct' else ''}")
        prompt = getattr(self._usage, "prompt_tokens_details", None)
        chunks = self._text.chunks
        total, thought = _count(self._usage, "completion_tokens"), self._reasoning_tokens
        if total is None or self._finish is None:  # the counts of an unfinished stream may be older than its text
            total, thought = max(total or 0, sum(chunks.values())), None
        if thinking and not thought:  # vLLM's deepseek_r1 parser reports 0
            seen, whole = chunks["thinking"], sum(chunks.values())
            if 2 * whole < total:  # many tokens per chunk
                called = sum(len(call.text) for call in self._calls.calls)
                seen, whole = len(thinking), len(thinking) + len(text) + called
            thought = min(max(round(total * seen / whole), 1), max(total - bool(text), 0))
        return Reply(
            text=text,
            thinking=thinking,
            finish_reason=reason,
            prompt_tokens=_count(self._usage, "prompt_tokens"),
            cached_tokens=_count(prompt, "cached_tokens") or 0,
            vision_tokens=_vision_tokens(prompt),
            completion_tokens=total,
            thinking_tokens=min(thought or 0, total),
            vision_seconds=0.0,
            prefill_seconds=first - self._began,
            decode_seconds=ended - first,
            encoded=self._encoded,
            note="; ".join(notes),
            closed=self._cut,
            stop=self._text.stop.found if reason == "stop" else None,
            tool_calls=tuple(self._calls.calls),
            logprobs=logprobs,
        )


def first_choice(chunk: Any) -> Any:
    """The part of a chunk that contains the text and the finish reason; None if there is none."""
    choices = getattr(chunk, "choices", None)
    return choices[0] if isinstance(choices, list) and choices else None


def token_scores(entry: Any) -> tuple[float, float]:
    """Log-probability and entropy of one token, see `protocol.Evidence`.

    Args:
        entry: An item of `logprobs.content`.

    Returns:
        Both numbers.

    Raises:
        ValueError: It has no `top_logprobs`; AttributeError or TypeError for other invalid values.
    """
    top = sorted((one.logprob for one in entry.top_logprobs or ()), reverse=True)[:TOP_TOKENS]
    if not top:
        raise ValueError("an entry of logprobs has no top_logprobs")
    shares = [math.exp(min(one, 0.0)) for one in top]
    shares.append(1 - sum(shares))
    return float(entry.logprob), sum(-share * math.log(share) for share in shares if share > 0)


def _count(counts: Any, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, Mapping) else getattr(counts, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _vision_tokens(prompt: Any) -> int:
    """Tokens of pictures and videos: `image_tokens`, or vLLM's `multimodal_tokens`, one number or one per modality."""
    parts = getattr(prompt, "multimodal_tokens", None)
    if isinstance(parts, Mapping):
        return sum(_count(parts, name) or 0 for name in ("image", "video"))
    return _count(prompt, "image_tokens") or _count(prompt, "multimodal_tokens") or 0
