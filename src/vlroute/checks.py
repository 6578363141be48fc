"""Checks of single values. Each error names the argument and says what is accepted. Imports neither torch nor numpy."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from vlroute.errors import SettingsError

#: The largest accepted count if there is no other bound.
MANY = 2**31 - 1


def shown(value: object) -> str:
    """`value` for an error message: its shortened `repr`, or its type if `repr` fails (a very large integer)."""
    try:
        text = repr(value)
    except Exception:
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def type_of(value: object) -> str:
    """The type of `value` for an error message, such as "a dict"; "None" for None."""
    return "None" if value is None else f"a {type(value).__name__}"


def refused(name: str, value: object, accepts: str, hint: str = "") -> SettingsError:
    """The error for a `value` that `name` does not accept."""
    return SettingsError(f"{name} must be {accepts}, not {shown(value)}{hint and f'; {hint}'}")


def _plain(value: Any) -> int | float:
    """`value` as a Python number; NaN if it is not a number. Booleans are not numbers."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, Integral):
        return operator.index(value)
    return float(value) if isinstance(value, Real) else math.nan


@dataclass(frozen=True, slots=True)
class Number:
    """A range of finite numbers. `above` and `below` exclude the lower and the upper end."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"a finite number, {'above' if self.above else 'at least'} {self.low:g}"
        lower = f"above {self.low:g} and up" if self.above else f"from {self.low:g}"
        return f"a number {lower} to {'below ' if self.below else ''}{self.high:g}"

    def read(self, name: str, value: Any) -> float:
        """Check a number and convert it. numpy scalars count as numbers, booleans and strings do not.

        Args:
            name: Name of the argument for errors.
            value: The given value.

        Returns:
            The value as a float.

        Raises:
            SettingsError: not a number, not finite, or outside the range.
        """
        try:
            number = float(_plain(value))
        except OverflowError:
            number = math.nan
        lower = number > self.low if self.above else number >= self.low
        upper = number < self.high if self.below else number <= self.high
        if not (lower and upper and math.isfinite(number)):
            raise refused(name, value, str(self))
        return number


@dataclass(frozen=True, slots=True)
class Whole:
    """A range of whole numbers, both ends included."""

    low: int = 0
    high: int = MANY

    def __str__(self) -> str:
        return (
            f"a whole number from {self.low} to {self.high}"
            if self.high < MANY
            else f"a whole number, at least {self.low}"
        )

    def read(self, name: str, value: Any) -> int:
        """Check a whole number and convert it. numpy integers and floats without a fraction count, booleans do not.

        Args:
            name: Name of the argument for errors.
            value: The given value.

        Returns:
            The value as an int.

        Raises:
            SettingsError: not a whole number, or outside the range.
        """
        number = _plain(value)
        if not (self.low <= number <= self.high and number == int(number)):
            raise refused(name, value, str(self), f"the largest is {self.high}" if number > self.high else "")
        return int(number)


#: The budget of a cache.
BYTES = Whole(0, 2**63 - 1)
