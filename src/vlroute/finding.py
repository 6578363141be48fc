"""One thing that `vlroute doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["fine", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `state`: a "problem" prevents answering, a "note" does not; `advice` says what to do."""

    section: str
    what: str
    found: str
    state: State = "fine"
    advice: str = ""
