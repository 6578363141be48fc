"""How requests to servers choose between thinking and answering at once, by family. Imports neither torch nor openai."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlroute.types import MODES, Mode


@dataclass(frozen=True, slots=True)
class EndpointFamily:
    """The switch of a family of models behind an OpenAI-compatible server.

    Attributes:
        title: Name for people.
        switch: Argument of the chat template that chooses the mode, sent in `chat_template_kwargs`. None: a request
            cannot choose.
        values: Its value for each mode.
        default: The mode without the argument; None if it depends on the size of the model.
        modes: The modes that the models have.
        why_one_mode: Why a mode is missing, for error messages.
        shared_prompt: Whether the switch is at the end of the prompt, so that a prefix cache serves both modes.
        source: Where this is documented; "unverified" if it was not found.
    """

    title: str
    switch: str | None = None
    values: Mapping[Mode, Any] = field(default_factory=lambda: {"instruct": False, "thinking": True})
    default: Mode | None = None
    modes: tuple[Mode, ...] = MODES
    why_one_mode: str = ""
    shared_prompt: bool | None = None
    source: str = "unverified"

    def fields(self, mode: Mode) -> dict[str, Any]:
        """The fields of a request that choose `mode`."""
        return {} if self.switch is None else {"chat_template_kwargs": {self.switch: self.values[mode]}}


#: By the name that `Endpoint(family=…)` takes.
ENDPOINT_FAMILIES: dict[str, EndpointFamily] = {
    "qwen3_5": EndpointFamily("Qwen3.5", "enable_thinking", shared_prompt=True),
}
