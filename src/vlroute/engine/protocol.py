"""What answers, a pair in this process or behind endpoints: the same words for both. Brings no torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation
from vlroute.types import Channel, FinishReason, Mode

#: Told each piece of thinking or answer as it is written.
OnPiece = Callable[[Channel, str], None]
CAPTION_SETTINGS = {"do_sample": False, "max_new_tokens": 24}


@dataclass(frozen=True, slots=True)
class Reply:
    """The output of one mode, with token counts and the seconds of each step.

    `cached_tokens`: prompt tokens from a prefix cache. `prompt_tokens` is None if a server sent no counts.
    """

    text: str
    thinking: str
    finish_reason: FinishReason
    prompt_tokens: int | None
    cached_tokens: int
    vision_tokens: int
    completion_tokens: int
    thinking_tokens: int
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float
    encoded: int | None = None
    """Pictures and videos that went through the tower for this request; None where a server does not say."""
    note: str = ""
    """What is wrong with the answer, if anything; appended to the reason of the decision."""


class EngineRequest(Protocol):
    """One conversation to answer; what is found out for its caption serves its answer, too."""

    namespace: str

    @property
    def tower(self) -> str | None:
        """Fingerprint of the Instruct tower whose features `pooled` gives; None where there are none to be had."""

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """Raises SettingsError if `mode` cannot answer with these settings, before anything is encoded or generated."""

    def caption(self, seen: Picture | Video, prompt: str) -> str:
        """What the Instruct model says of one picture or video of the conversation, asked `prompt`, greedily."""

    def pooled(self, seen: Picture | Video) -> NDArray[np.float32]:
        """Vision features of one picture or video, pooled for a probe: `[2 · width]`."""

    def uncached_tokens(self) -> dict[Mode, int] | None:
        """How many tokens of the prompt each mode would have to read, where that is known."""

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece = lambda channel, piece: None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """Answer in `mode`. ModeUnavailableError where another mode may still be able to."""


class Engine(Protocol):
    """Thread-safe."""

    def request(
        self, conversation: Conversation, in_turns: bool, namespace: str
    ) -> AbstractContextManager[EngineRequest]:
        """`in_turns`: the conversation will go on, or did; `namespace` keeps what tenants make it remember apart."""

    def close(self) -> None:
        """Cancel what is being written. Nothing is answered afterwards."""
