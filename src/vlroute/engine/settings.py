"""Generation settings per mode, under transformers' own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from vlroute.engine.pair import Checkpoint
from vlroute.engine.sampling import Sampler

#: What Qwen recommends for each edition, where a checkpoint's own generation config does not say otherwise.
RECOMMENDED: dict[str, dict[str, Any]] = {
    "instruct": {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 1.5,
        "max_new_tokens": 2048,
    },
    "thinking": {
        "do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 20, "presence_penalty": 0.0,
        "max_new_tokens": 8192,
    },
}  # fmt: skip
OURS = ("presence_penalty", "frequency_penalty", "thinking_budget", "seed", "stop")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "presence_penalty")
_KNOWN = frozenset(GenerationConfig().to_dict()) | frozenset(OURS)


def check_names(settings: Mapping[str, Any]) -> None:
    """Raises TypeError for a name that neither transformers' GenerationConfig nor vlroute knows."""
    unknown = sorted(set(settings) - _KNOWN)
    if unknown:
        raise TypeError(
            f"unknown generation setting{'s'[: len(unknown) > 1]} {', '.join(unknown)}; expected names of "
            f"transformers.GenerationConfig (do_sample, max_new_tokens, …) or one of {', '.join(OURS)}"
        )


def resolve_settings(checkpoint: Checkpoint, *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Recommended values, then the checkpoint's own, then each of `overrides`, the last one winning.

    Without sampling, what only belongs to it falls away (a penalty of the recommended recipe too), unless an
    override asks for it.
    """
    asked: dict[str, Any] = {}
    for override in overrides:
        check_names(override)
        asked.update(override)
    own = checkpoint.model.generation_config.to_diff_dict()
    own = {key: value for key, value in own.items() if key in Sampler.KNOWN and value is not None}
    settings = {**RECOMMENDED[checkpoint.mode], **own, **asked}
    if not settings["do_sample"]:
        kept_by_caller = {"presence_penalty"} & set(asked)
        settings = {key: value for key, value in settings.items() if key not in _SAMPLING or key in kept_by_caller}
    return settings
