"""An answer on the terminal while it is written: notes and reasoning dim on stderr, the answer on stdout."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from vlroute.answer import Event

#: What could move the cursor, change colours or retitle the window: a picture may make a model write it.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Text is shown as it is, without markup; control characters in it are shown as �."""

    def __init__(self, store: str | None = None) -> None:
        """`store`: where answers are stored; then each answer's id is shown, for feedback on it."""
        self.store = store
        self.notes = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
        self._reasons = False

    def show(self, event: Event) -> None:
        """The next event of a stream."""
        from vlroute.answer import AnswerDelta, Decided, Finished, ThinkingDelta

        match event:
            case Decided(decision):
                self.note(f"{decision.mode}: {decision.reason}")
            case ThinkingDelta(text):
                self._reasons = True
                self.notes.print(CONTROLS.sub("�", text), end="", style="dim")
            case AnswerDelta(text):
                self._end_reasoning()
                typer.echo(CONTROLS.sub("�", text), nl=False)
            case Finished(answer):
                self._end_reasoning()
                typer.echo()
                if not answer.text and answer.finish_reason != "stop":
                    self.note(str(answer))
                self.note(
                    f"{answer.finish_reason}, {answer.usage.completion_tokens} tokens, {answer.timing.total:.2f} s"
                )
                if self.store is not None and answer.finish_reason != "cancelled":
                    where = "URL" if "://" in self.store else shlex.quote(self.store)  # a URL may hold a password
                    self.note(f"vlroute feedback {answer.id} --correct --store {where}    (or --wrong)")

    def note(self, text: str) -> None:
        """A line beside the answer."""
        self.notes.print(CONTROLS.sub("�", text), style="dim")

    def error(self, error: object) -> None:
        """What went wrong, in one line."""
        self._reasons = False
        line = " ".join(f"error: {error}".split())
        self.notes.print(CONTROLS.sub("�", line), style="red")

    def _end_reasoning(self) -> None:
        if self._reasons:
            self.notes.print()
        self._reasons = False
