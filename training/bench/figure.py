"""One measured value with its target, as the table of a page shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self


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
    """

    name: str
    value: float | None
    unit: str = ""
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @classmethod
    def failed(cls, name: str, error: BaseException, target: float | None = None) -> Self:
        """A measurement that ended with an error."""
        why = " ".join(str(error).split())[:200].replace("|", "/")
        return cls(name, None, target=target, note=f"failed: {type(error).__name__}: {why}")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is no target or no value."""
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
