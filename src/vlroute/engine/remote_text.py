"""Reasoning apart from the answer in what a server streams, whichever way it marks it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlroute.engine.endpoint import Reasoning
from vlroute.engine.protocol import Channel
from vlroute.engine.stop_text import StopText
from vlroute.engine.trimmed import Trimmed

END = "</think>"


class RemoteText:
    """Pieces of a stream to pieces of thinking and of answer. `stops` end the answer, not the thinking.

    A server with a reasoning parser sends reasoning in a field of its own; one without sends all as content, where
    `</think>` ends the thought. "auto": the first piece that comes says which one it is.
    """

    def __init__(self, thinking: bool, reasoning: Reasoning = "auto", stops: Sequence[str] = ()) -> None:
        self.reasoning: Reasoning = reasoning if thinking else "parsed"
        self.texts: dict[Channel, str] = {"thinking": "", "answer": ""}
        self.stop = StopText(stops)
        self._trimmed: dict[Channel, Trimmed] = {"thinking": Trimmed(), "answer": Trimmed()}
        self._end = StopText([END])  # holds back what may be the beginning of the mark
        self._ended = False

    def push(self, reasoning: str, content: str) -> Iterator[tuple[Channel, str]]:
        """What a chunk brought, either of them may be empty."""
        if self.reasoning == "auto" and (reasoning or content):
            self.reasoning = "parsed" if reasoning else "raw"
        yield from self._said("thinking", reasoning)
        if self.reasoning != "raw" or self._ended:
            yield from self._said("answer", content)
            return
        held = self._end.held
        thought = self._end.push(content.replace("<think>", ""))
        yield from self._said("thinking", thought)
        if self._end.found:
            self._ended = True
            _, _, answer = (held + content).partition(END)
            yield from self._said("answer", answer)

    def flush(self) -> Iterator[tuple[Channel, str]]:
        """What was held back in case a mark or a stop string had begun."""
        if self.reasoning == "raw" and not self._ended:
            yield from self._said("thinking", self._end.flush())
        if rest := self.stop.flush():
            self.texts["answer"] += rest
            yield "answer", rest

    def _said(self, channel: Channel, text: str) -> Iterator[tuple[Channel, str]]:
        piece = self._trimmed[channel].push(text) if text else ""
        if channel == "answer":
            piece = self.stop.push(piece)
        if piece:
            self.texts[channel] += piece
            yield channel, piece
