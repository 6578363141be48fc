"""Texts that arrive in pieces: white space around them, and stop strings. Does not import torch."""

from __future__ import annotations

from collections.abc import Sequence


class Trimmed:
    """Removes white space at the start and the end of a text that arrives in pieces.

    Args:
        continues: Whether the text continues another one, so that white space at its start is kept.
    """

    def __init__(self, continues: bool = False) -> None:
        self._begun = continues
        self._held: list[str] = []  # white space that is returned only if text follows

    def push(self, piece: str) -> str:
        """Add a piece; returns the text that is final."""
        if not self._begun:
            piece = piece.lstrip()
        kept = piece.rstrip()
        if not kept:
            if self._begun and piece:
                self._held.append(piece)
            return ""
        text = "".join(self._held) + kept
        self._begun, self._held = True, [piece[len(kept) :]]
        return text


class StopText:
    """Cuts a text that arrives in pieces at the first stop string; a possible beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        """ValueError for an empty stop string, TypeError for a single string instead of a list."""
        if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
            raise TypeError(f"stop must be a list of strings, not {stops!r}")
        if "" in stops:
            raise ValueError("a stop string must not be empty")
        self.stops, self.held = tuple(stops), ""
        #: The stop string at which the text was cut; if several begin at the same character, the first one of `stops`.
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """Add a piece; returns the text that cannot belong to a stop string."""
        if self.found or not self.stops:
            return "" if self.found else piece
        text = self.held + piece
        places = [(i, stop) for stop in self.stops if (i := text.find(stop)) >= 0]
        if places:
            safe, self.found = min(places, key=lambda place: place[0])
        else:
            safe = len(text) - max(begun(text, stop) for stop in self.stops)
        self.held = "" if self.found else text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """The text that was held back, when no more text follows."""
        held, self.held = self.held, ""
        return held


def begun(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, but not all of it, at the end of `text`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
