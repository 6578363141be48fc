"""Text without white space around it, piece by piece."""

from __future__ import annotations


class Trimmed:
    """Passes text on without white space at its start and end, however it is cut into pieces."""

    def __init__(self) -> None:
        self._begun = False
        self._held: list[str] = []  # white space, passed on only if text follows

    def push(self, piece: str) -> str:
        """The part of the text that can be passed on now."""
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
