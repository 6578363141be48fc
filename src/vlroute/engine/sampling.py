"""The next token of one answer: penalties, budget, temperature, cut-offs, then the likeliest or a draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlroute.engine.pair import Checkpoint
from vlroute.engine.thinking import OutputControl


class Penalties(LogitsProcessor):
    """Lowers the logit of every token already written in this answer: by `presence` once, by `frequency` for each time.

    As OpenAI and vLLM do.
    """

    def __init__(self, prompt_length: int, presence: float, frequency: float = 0.0) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, written, torch.ones_like(written, dtype=scores.dtype))
        return scores - self.presence * (counts > 0) - self.frequency * counts


class Sampler:
    """Chooses token by token for one answer, in the order of transformers' `generate`.

    With a `seed` the draws are this answer's own, whatever else is being written.
    """

    #: All settings that it understands.
    KNOWN = frozenset({
        "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "thinking_budget", "seed", "max_new_tokens", "bos_token_id", "eos_token_id",
        "pad_token_id", "transformers_version", "use_cache",
    })  # fmt: skip

    def __init__(self, checkpoint: Checkpoint, prompt_length: int, settings: Mapping[str, Any]) -> None:
        """ValueError for a setting that it does not understand."""
        if unknown := sorted(set(settings) - self.KNOWN):
            raise ValueError(
                f"{', '.join(unknown)} cannot be set here; expected one of {', '.join(sorted(self.KNOWN))}"
            )
        ends: Any = settings.get("eos_token_id")
        #: Ids that end the output.
        self.ends: frozenset[int] = frozenset(ends if isinstance(ends, list) else [ends])
        self.control = OutputControl(
            checkpoint.tokenizer, checkpoint.mode == "thinking", self.ends, settings.get("thinking_budget")
        )
        self.draws = bool(settings.get("do_sample"))
        self.processors = LogitsProcessorList()
        if (penalty := settings.get("repetition_penalty", 1.0)) not in (None, 1.0):
            self.processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        presence, frequency = (settings.get(f"{name}_penalty") or 0.0 for name in ("presence", "frequency"))
        if presence or frequency:
            self.processors.append(Penalties(prompt_length, presence, frequency))
        if self.draws:
            self.processors.extend(_warpers(settings))
        self.generator: torch.Generator | None = None
        if (seed := settings.get("seed")) is not None:
            self.generator = torch.Generator(checkpoint.device).manual_seed(seed)

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """`ids` `[1, n]`: prompt and answer so far. `logits` `[1, vocabulary]` of what follows."""
        if (forced := self.control.forced()) is not None:
            return forced
        scores = self.processors(ids, self.control.mask(logits.to(torch.float32, copy=True)))
        if not self.draws:
            return self.control.chosen(int(scores.argmax(-1)))
        return self.control.chosen(int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator)))


def _warpers(settings: Mapping[str, Any]) -> list[LogitsProcessor]:
    warpers: list[LogitsProcessor] = []
    if (temperature := settings.get("temperature")) not in (None, 1.0):
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k := settings.get("top_k"):
        warpers.append(TopKLogitsWarper(top_k))
    if (top_p := settings.get("top_p")) is not None and top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    if (min_p := settings.get("min_p")) is not None:
        warpers.append(MinPLogitsWarper(min_p))
    return warpers
