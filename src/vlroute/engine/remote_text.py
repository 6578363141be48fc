"""Separates reasoning from the answer in the text that a server streams."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence

from vlroute.engine.endpoint import Reasoning
from vlroute.engine.protocol import Channel
from vlroute.engine.stop_text import StopText
from vlroute.engine.trimmed import Trimmed
from vlroute.think_tags import Tag, ThinkTags

Pieces = Iterator[tuple[Channel, str]]


class _Surrogates:
    """Joins surrogate pairs that are split over two chunks. A lone surrogate becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-16-le")("replace")

    def push(self, piece: str, final: bool = False) -> str:
        return self._decoder.decode(piece.encode("utf-16-le", "surrogatepass"), final)


class RemoteText:
    """Turns chunks of a stream into pieces of reasoning and answer, independent of how the text is divided.

    A server with a reasoning parser sends reasoning in a separate field and the answer as content. A server without one
    sends everything as content, in which `</think>` ends the reasoning. With "auto", content is held back until the
    stream shows which case applies. If it never does, earlier streams of the server decide. If they showed nothing
    either, the content is the answer if the server completed it, otherwise truncated reasoning.
    """

    def __init__(
        self, thinking: bool, reasoning: Reasoning = "auto", stops: Sequence[str] = (), known: Reasoning = "auto"
    ) -> None:
        """
        Args:
            thinking: whether the server was asked to think first.
            reasoning: see `Endpoint`.
            stops: strings that end the answer, but not the reasoning.
            known: what earlier streams of the server showed: "parsed", "raw", or "auto" for nothing.
        """
        self.stop = StopText(stops)
        self.chunks: dict[Channel, int] = {"thinking": 0, "answer": 0}  # number of chunks with text
        self._said: dict[Channel, list[str]] = {"thinking": [], "answer": []}
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

    def text(self, channel: Channel) -> str:
        """The joined pieces of one channel."""
        return "".join(self._said[channel])

    def push(self, reasoning: str, content: str) -> Pieces:
        """Process one chunk. Either part may be empty."""
        yield from self._push(self._surrogates["thinking"].push(reasoning), self._surrogates["answer"].push(content))

    def _push(self, reasoning: str, content: str) -> Pieces:
        if reasoning:
            self.shown = "parsed"
            yield from self.parsed()
            self.chunks["thinking"] += 1
            yield from self._say("thinking", reasoning)
        if content:
            if self._channel is None:
                self._held_chunks += 1
            else:
                self.chunks[self._channel] += 1
            if self._undecided is not None:
                self._undecided.append(content)
            yield from self._take(self._tags.push(content))

    def parsed(self) -> Pieces:
        """Record that the server has a reasoning parser, so that content is the answer."""
        if not self._raw:
            return
        self._raw = False
        if self._undecided is not None:
            content, self._undecided, self._held, self._tags = self._undecided, None, [], ThinkTags(thought=False)
            self._settle("answer")
            yield from self._take(self._tags.push("".join(content)))
        elif self._channel == "thinking":
            yield from self._take(self._tags.flush())
            self._channel, self._tags = "answer", ThinkTags(thought=False)

    def flush(self, complete: bool) -> Pieces:
        """The pieces that were held back.

        Args:
            complete: whether the server reports a complete answer.
        """
        lone = {channel: surrogates.push("", final=True) for channel, surrogates in self._surrogates.items()}
        yield from self._push(lone["thinking"], lone["answer"])
        yield from self._take(self._tags.flush())
        if self._undecided is not None and (self.known == "parsed" or (complete and self.known == "auto")):
            yield from self.parsed()
            yield from self._take(self._tags.flush())
        if self._channel is None:  # truncated reasoning, or an answer that begins with the word <think>
            yield from self._release("answer" if self._undecided is None else "thinking")
        if rest := self.stop.flush():
            self._said["answer"].append(rest)
            yield "answer", rest

    def _take(self, items: Iterator[str | Tag]) -> Pieces:
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
                    yield from self._say(self._channel, item)
            elif self._undecided is not None and self._tags.empty:  # reasoning that begins with <think>
                self._undecided = None
                yield from self._release("thinking")
            elif self._channel == "answer":  # an answer that begins with <think>
                self._channel = "thinking" if self._raw else None
                self._held = [] if self._raw else [item.value]

    def _release(self, channel: Channel) -> Pieces:
        held, self._held = self._held, []
        self._settle(channel)
        yield from self._say(channel, "".join(held))

    def _settle(self, channel: Channel) -> None:
        self.chunks[channel] += self._held_chunks
        self._held_chunks, self._channel = 0, channel

    def _say(self, channel: Channel, text: str) -> Pieces:
        piece = self._trimmed[channel].push(text)
        if channel == "answer":
            piece = self.stop.push(piece)
        if piece:
            self._said[channel].append(piece)
            yield channel, piece
