"""Questions and answers for a store, in a module that processes of a test import without torch."""

from __future__ import annotations

from PIL import Image

from vlroute.inputs.messages import Conversation, parse
from vlroute.types import Answer, Decision, Mode, Timing, Usage


def answer(mode: Mode = "instruct", *, caption: str | None = "a red square", forced: bool = False) -> Answer:
    decision = Decision(mode, "prompt", 0.4, 0.7, 0.3, 0.2, 1.0, 0.08, "gain", caption, forced)
    return Answer("red", "", decision, "stop", Usage(20, 4, 5, 0), Timing(0.5, 0.1, 0.1, 0.2, 0.3, 1.2))


def asked(prompt: str = "Which colour?", color: str = "red") -> Conversation:
    return parse(prompt, Image.new("RGB", (8, 8), color))
