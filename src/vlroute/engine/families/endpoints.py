"""How requests to servers choose between thinking and answering at once, by family. Imports neither torch nor openai.

`ENDPOINT_FAMILIES` is the one table for requests, error messages and docs/how-to/endpoints.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlroute.types import MODES, Mode


@dataclass(frozen=True, slots=True)
class EndpointFamily:
    """The switch of a family of models behind an OpenAI-compatible server.

    Attributes:
        title: Name for people.
        switch: Argument of the chat template that chooses the mode, sent in `chat_template_kwargs`. None: a request
            cannot choose.
        values: Its value for each mode.
        default: The mode without the argument; "adaptive" if the model decides, "size" if it depends on the size.
        place: Where the prompts of both modes begin to differ. Only with "end" does a prefix cache of the server serve
            both modes.
        modes: The modes that the models of the family have.
        why_one_mode: Why a mode is missing, for error messages; empty if both are there.
        note: What else a user should know.
        source: Where the switch is documented, as a URL; "unverified" if it is not known from there.
    """

    title: str
    switch: str | None = None
    values: Mapping[Mode, Any] = field(default_factory=lambda: {"instruct": False, "thinking": True})
    default: Mode | Literal["adaptive", "size"] = "thinking"
    place: Literal["end", "system", "user", ""] = ""
    modes: tuple[Mode, ...] = MODES
    why_one_mode: str = ""
    note: str = ""
    source: str = "unverified"

    def fields(self, mode: Mode) -> dict[str, Any]:
        """The fields of a request that choose `mode`."""
        return {} if self.switch is None else {"chat_template_kwargs": {self.switch: self.values[mode]}}


_RECIPES = "https://github.com/vllm-project/recipes/blob"
_COOKBOOK = "https://github.com/sgl-project/sglang/blob"
#: By the name that `Endpoint(family=…)` takes.
ENDPOINT_FAMILIES: dict[str, EndpointFamily] = {
    "qwen3_vl": EndpointFamily(
        "Qwen3-VL", default="size", note="a checkpoint for each mode: name an endpoint for each",
    ),
    "qwen3_5": EndpointFamily(
        "Qwen3.5", "enable_thinking", default="size", place="end", note="off by default for 0.8B and 2B, else on",
        source=f"{_RECIPES}/5148f3ee524af2923bd4f886884b8352ea2dd76a/models/Qwen/Qwen3.5-0.8B.yaml",
    ),
    "qwen3_6": EndpointFamily(
        "Qwen3.6", "enable_thinking", place="end",
        source=f"{_COOKBOOK}/087e17d89ccd398119574f36aa58c703957d6a37/docs_new/cookbook/autoregressive/Qwen/Qwen3.6.mdx",
    ),
    "qwen3_8": EndpointFamily(
        "Qwen3.8", "enable_thinking", place="system",
        note="earlier thoughts are kept. With `reasoning_effort: medium` (extra_body) the switch is at the end",
        source=f"{_RECIPES}/015a26cb06e8cd628a4b56433e05c34a1782b920/models/Qwen/Qwen3.8-27B.yaml",
    ),
    "gemma4": EndpointFamily(
        "Gemma 4", "enable_thinking", default="instruct", place="system",
        source=f"{_RECIPES}/02c0f09b71d60a61b07a32effc816789edb75d6d/Google/Gemma4.md",
    ),
    "glm4v": EndpointFamily(
        "GLM-4.5V, GLM-4.6V", "enable_thinking", default="adaptive", place="user",
        source=f"{_RECIPES}/163a68dfa110a0057299af9d9d7cc75d1c78ac19/GLM/GLM-V.md",
    ),
    "glm5": EndpointFamily(
        "GLM-5", "enable_thinking", place="end", note="read from the published text models",
    ),
    "kimi_k2_5": EndpointFamily(
        "Kimi K2.5", "thinking", place="end",
        source="https://docs.sglang.io/docs/basic_usage/kimi_k2_5",
    ),
    "minimax_m3": EndpointFamily(
        "MiniMax M3", "thinking_mode", values={"instruct": "disabled", "thinking": "enabled"}, default="adaptive",
        place="system",
        source=f"{_RECIPES}/001c08c734a7cfee444edc9a921a49999c8359b7/models/MiniMaxAI/MiniMax-M3.yaml",
    ),
    "minimax_m3_1_flash": EndpointFamily(
        "MiniMax M3.1-Flash", modes=("thinking",), why_one_mode="it always thinks",
        source="https://platform.minimax.io/docs/guides/text-generation",
    ),
    "nemotron_omni": EndpointFamily(
        "Nemotron 3 Nano Omni", "enable_thinking",
    ),
    "phi4_reasoning_vision": EndpointFamily(
        "Phi-4-reasoning-vision", default="adaptive",
        note="its chat template has no argument for the mode, so a request cannot choose",
        source="https://github.com/microsoft/Phi-4-reasoning-vision-15B/blob/e71388f290b280eea38207db4c23a57a3507b572"
        "/huggingface-transformers/chat_template.jinja",
    ),
}  # fmt: skip
