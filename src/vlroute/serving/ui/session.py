"""One visitor of the page: the language, and the messages beside the fields that they concern."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from vlroute.serving.ui.problems import error_text, kept
from vlroute.serving.ui.texts import TEXTS, Texts


@dataclass(slots=True)
class Session:
    """One visitor. It is mutable, so that a running answer goes on in the language that was chosen meanwhile.

    Attributes:
        language: "en" or "zh".
        problems: Errors that the page shows, by the name of their place.
        notes: Other messages at these places: names of texts.
    """

    language: str
    problems: dict[str, Exception] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> Texts:
        """The texts in the language of the visitor."""
        return TEXTS[self.language]

    def problem(self, name: str) -> str:
        """The error or the note at this place as HTML; "" if there is none."""
        if (error := self.problems.get(name)) is not None:
            return f'<p class="problem" role="alert">{escape(error_text(error, self.texts))}</p>'
        note = self.notes.get(name)
        return "" if note is None else f'<p class="note" role="status">{escape(getattr(self.texts, note))}</p>'

    def clear(self, name: str) -> None:
        """Forget the error and the note at this place."""
        self.problems.pop(name, None)
        self.notes.pop(name, None)


class Caught:
    """Context manager that keeps an error for `Session.problem`; unexpected errors are also logged.

    Args:
        session: The visitor.
        name: Name of the place where the error is shown. An earlier error there is forgotten.
    """

    def __init__(self, session: Session, name: str) -> None:
        self.session, self.name = session, name

    def __enter__(self) -> None:
        self.session.clear(self.name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self.session.problems[self.name] = kept(error)
        return True
