"""One measured value with its target, as the table of a page shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from vlroute.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value.

    Attributes:
        name: What was measured.
        value: The value; None if there is none, and `note` says why.
        unit: Unit of the value and the target.
        target: Bound of the value, if it has one.
        at_least: Whether the target is a lower bound.
        note: Conditions of the measurement.
        failed: Whether the measurement ended with an error.
    """

    name: str
    value: float | None
    unit: str = ""
    target: float | None = None
    at_least: bool = False
    note: str = ""
    failed: bool = False

    @classmethod
    def of_error(cls, name: str, error: BaseException) -> Self:
        """A measurement that ended with an error. What the user may not set here is no failure."""
        why = " ".join(str(error).split())[:200].replace("|", "/")
        if isinstance(error, SettingsError):
            return cls(name, None, note=f"cannot be used here: {why}")
        return cls(name, None, note=f"failed: {type(error).__name__}: {why}", failed=True)

    @property
    def met(self) -> bool | None:
        """Whether the target is met, False after an error; None if there is no target."""
        if self.failed:
            return False
        if self.target is None or self.value is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def row(self) -> dict[str, Any]:
        """The figure as a row of the JSON file."""
        return {
            "name": self.name, "value": self.value, "unit": self.unit, "target": self.target,
            "at_least": self.at_least, "met": self.met, "note": self.note,
        }  # fmt: skip


#: Called with each figure as soon as it is known.
Report = Callable[[Figure], None]
