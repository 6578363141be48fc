"""Text without white space around it, piece by piece."""

from __future__ import annotations


class Trimmed:
    """Passes text on without white space at its start and end, however it is cut into pieces."""

    def __init__(self) -> None:
        self.begun, self.held = False, ""

    def push(self, piece: str) -> str:
        text = self.held + piece
        if not self.begun:
            text = text.lstrip()
        kept = text.rstrip()
        self.held = text[len(kept) :] if kept or self.begun else ""
        self.begun = self.begun or bool(kept)
        return kept
