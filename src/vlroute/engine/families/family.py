"""What the engine in this process has to know about a family of models. Imports neither torch nor transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vlroute.types import Mode

#: How a model writes tool calls between `<tool_call>` and `</tool_call>`. "json": one object with name and arguments.
#: "xml": `<function=name>` with `<parameter=name>` inside.
CallFormat = Literal["json", "xml"]


@dataclass(frozen=True, slots=True)
class Family:
    """How a family of vision-language models thinks, and what differs from the others.

    Attributes:
        model_type: `model_type` in config.json.
        title: Name for people.
        example: A hub ID.
        hub_names: The hub IDs that belong to it, without their owner.
        model_class: Name of the class in transformers.
        language_model: `module:function` that makes the language model over KV slots from a model of transformers.
        switch: Argument of the chat template that chooses the mode (true: Thinking). None: each mode has a checkpoint
            of its own.
        marker: The token at which the prompts of both modes begin to differ. None: they are read separately.
        recurrent: Whether layers keep a state that cannot be cut to a shorter prompt, so that prefixes are stored as
            snapshots at some places.
        sampling: Recommended settings of each mode, for requests with and without pictures or videos. They replace
            those of the generation config, which has only one set for both modes. Empty: those of Qwen3-VL, unless the
            generation config of the checkpoint says otherwise.
        call_format: How the model writes tool calls.
    """

    model_type: str
    title: str
    example: str
    hub_names: re.Pattern[str]
    model_class: str
    language_model: str
    switch: str | None = None
    marker: str | None = None
    recurrent: bool = False
    sampling: Mapping[tuple[Mode, bool], Mapping[str, Any]] | None = None
    call_format: CallFormat = "json"

    @property
    def hybrid(self) -> bool:
        """Whether one checkpoint answers in both modes."""
        return self.switch is not None
