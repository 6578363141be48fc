"""One decoding call: explicit positions, given vision features, every token reported, stoppable at every token."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from vlroute.engine.pair import Checkpoint
from vlroute.engine.prompt import Prompt
from vlroute.engine.thinking import ThinkingBudget

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids written (the end token left out), why writing ended, and seconds to the first token and after it."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


class PresencePenalty(LogitsProcessor):
    """Lowers the logit of every token already written in this answer by `penalty`, once, as OpenAI and vLLM do."""

    def __init__(self, prompt_length: int, penalty: float) -> None:
        self.prompt_length, self.penalty = prompt_length, penalty

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = torch.zeros_like(scores, dtype=torch.bool)
        written.scatter_(1, input_ids[:, self.prompt_length :], True)
        return torch.where(written, scores - self.penalty, scores)


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class _TokenStream(BaseStreamer):
    """Hands each new token id on. (transformers' text streamers hide the exceptions of the generating thread.)"""

    def __init__(self, on_token: Callable[[int], None], ends: frozenset[int]) -> None:
        self.on_token, self.ends = on_token, ends
        self.prompt_seen = False
        self.first_at: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:  # the first call brings the prompt
            self.prompt_seen = True
            return
        if self.first_at is None:
            self.first_at = time.perf_counter()
        for token in value.flatten().tolist():
            if token not in self.ends:
                self.on_token(token)

    def end(self) -> None:
        pass


def _processors(checkpoint: Checkpoint, prompt: Prompt, settings: dict[str, Any]) -> LogitsProcessorList:
    """Takes the settings that transformers does not know out of `settings` and returns what does their work."""
    processors = LogitsProcessorList()
    if penalty := settings.pop("presence_penalty", 0.0):
        processors.append(PresencePenalty(prompt.length, penalty))
    budget = settings.pop("thinking_budget", None)
    if budget is not None and checkpoint.mode == "thinking":
        processors.append(ThinkingBudget(checkpoint.tokenizer, prompt.length, budget))
    return processors


@torch.inference_mode()
def generate(
    checkpoint: Checkpoint,
    prompt: Prompt,
    encoder_outputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    on_token: Callable[[int], None] = lambda token: None,
    cancel: threading.Event | None = None,
    cache: DynamicCache | None = None,
) -> Generated:
    """Write one answer token by token.

    `cache` holds what was read of the prompt already, and afterwards what was read of prompt and answer.
    `encoder_outputs` are those of the pictures not yet read, and must be fresh (see `vision.encoder_outputs`);
    `settings` come from `resolve_settings`. `on_token` is called in this thread with each token id; what it raises
    ends the call and is raised here.
    """
    settings = dict(settings)
    processors = _processors(checkpoint, prompt, settings)
    config = GenerationConfig(**settings)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stream = _TokenStream(on_token, frozenset(ends))
    began = time.perf_counter()
    output = checkpoint.model.generate(
        **prompt.inputs(),
        **({"mm_encoder_outputs": dict(encoder_outputs)} if encoder_outputs else {}),
        **({"past_key_values": cache} if cache is not None else {}),
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([_Cancelled(cancel)] if cancel else []),
        streamer=stream,
    )
    ended = time.perf_counter()
    ids = output[0, prompt.length :].tolist()
    stopped = bool(ids) and ids[-1] in ends
    reason: FinishReason = "stop" if stopped else "cancelled" if cancel and cancel.is_set() else "length"
    first = stream.first_at or ended
    return Generated(tuple(ids[:-1] if stopped else ids), reason, first - began, ended - first)
