"""The two modes; the one word that every room shares."""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["instruct", "thinking"]
MODES: tuple[Mode, ...] = get_args(Mode)


def other(mode: Mode) -> Mode:
    return "thinking" if mode == "instruct" else "instruct"
