"""The two modes; the one word that every room shares."""

from __future__ import annotations

from typing import Literal, get_args

from vlroute.errors import InputError

Mode = Literal["instruct", "thinking"]
MODES: tuple[Mode, ...] = get_args(Mode)
#: Accepted values of `mode=`; "auto" lets the router decide, as None does.
ModeChoice = Literal["auto", "instruct", "thinking"]


def other(mode: Mode) -> Mode:
    return "thinking" if mode == "instruct" else "instruct"


def forced_mode(choice: object) -> Mode | None:
    """The mode that `choice` forces; None for None and "auto". InputError for anything else."""
    if choice is None or (isinstance(choice, str) and choice == "auto"):
        return None
    if isinstance(choice, str) and choice in MODES:
        return choice
    raise InputError(f"mode must be one of auto, {', '.join(MODES)}, not {choice!r}")
