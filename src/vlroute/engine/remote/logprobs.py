"""Log-probabilities that an endpoint sends: those of the answer, without those of the reasoning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from vlroute.engine.protocol import Piece
from vlroute.engine.scored import ScoredPieces
from vlroute.types import Channel, TokenLogprob

_END_THINK = "</think>"


class RemoteLogprobs(ScoredPieces):
    """Reads the log-probabilities of a stream.

    Servers send those of the reasoning as well, and some leave out tokens without a text of their own. The answer
    begins after the token `</think>` or, from a server with a reasoning parser, after the last chunk of reasoning.

    Args:
        thinking: Whether the server was asked to reason first.
        count: How many alternatives to each token are wanted. A server may send more.
    """

    def __init__(self, thinking: bool, count: int) -> None:
        super().__init__()
        self._thinking, self._count = thinking, count

    def push(self, sent: Iterable[Any], reasoning: str, content: str) -> None:
        """Add the entries of one chunk.

        Args:
            sent: The items of its `logprobs.content`, without the end token.
            reasoning: Its text of the reasoning.
            content: Its other text.

        Raises:
            ValueError: An entry is malformed.
        """
        new = [self._entry(one) for one in sent]
        if not self._thinking:
            self.entries += new
            return
        if reasoning:  # of this and of earlier chunks, only what belongs to the content may be part of the answer
            self.entries = []
            while new and (not content or len("".join(one.token for one in new)) > len(content)):
                del new[0]
        self.entries += new
        ends = [i for i, one in enumerate(self.entries) if one.token.strip() == _END_THINK]
        if ends:
            del self.entries[: ends[-1] + 1]

    def attach(self, pieces: Iterable[tuple[Channel, Piece]]) -> Iterator[tuple[Channel, Piece]]:
        """See `ScoredPieces.attach`. The first piece of the answer ends the reasoning."""
        for channel, piece in super().attach(pieces):
            self._thinking = self._thinking and channel == "thinking"
            yield channel, piece

    def fit(self, text: str, stopped: bool) -> bool:
        """Whether the entries are those of an answer.

        Args:
            text: The answer.
            stopped: Whether a stop string has cut it, so that it is only the beginning of what the server has sent.

        Returns:
            Whether the tokens result in the text. Parts of characters, which some servers send as U+FFFD, fit anything.
        """
        data = b"".join(one.token.encode() if one.bytes is None else one.bytes for one in self.entries)
        written, at = data.decode("utf-8", "replace").strip(), 0
        for index, part in enumerate(re.split("\ufffd+", written)):
            found = text.find(part, at)
            if found < 0 or (index == 0 and found > 0):
                return stopped and part.startswith(text[at:].strip())
            at = found + len(part)
        return at == len(text) or written.endswith("\ufffd")

    def _entry(self, sent: Any) -> TokenLogprob:
        try:
            top = sorted((_plain(one) for one in sent.top_logprobs or ()), key=lambda one: -one.logprob)
            one = _plain(sent)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"an entry of logprobs is malformed: {error}") from error
        return TokenLogprob(one.token, one.bytes, one.logprob, tuple(top[: self._count]))


def _plain(sent: Any) -> TokenLogprob:
    data = None if sent.bytes is None else bytes(sent.bytes)
    return TokenLogprob(str(sent.token), data, float(sent.logprob))
