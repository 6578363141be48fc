"""Adds the log-probabilities of tokens to the pieces of an answer. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vlroute.engine.protocol import Piece, ScoredText
from vlroute.types import Channel, TokenLogprob


class ScoredPieces:
    """Collects the log-probabilities of an answer. Each piece of its text gets those since the piece before.

    Attributes:
        entries: Those so far.
    """

    def __init__(self) -> None:
        self.entries: list[TokenLogprob] = []
        self._passed_on = 0

    def attach(self, pieces: Iterable[tuple[Channel, Piece]]) -> Iterator[tuple[Channel, Piece]]:
        """Yield the pieces; those of the answer as ScoredText."""
        for channel, piece in pieces:
            if channel == "answer" and isinstance(piece, str):
                since, self._passed_on = self._passed_on, len(self.entries)
                yield channel, ScoredText(piece, tuple(self.entries[since:]))
            else:
                yield channel, piece
