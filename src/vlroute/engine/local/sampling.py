"""Chooses the next token: logits processors, thinking budget, then greedy decoding or sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)  # fmt: skip

from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.engine.local.reasoning import OutputControl
from vlroute.engine.settings import RECOMMENDED, SAMPLING, check_lengths, checked, combined
from vlroute.errors import SettingsError

#: Settings that exclude tokens.
EXCLUDING = ("no_repeat_ngram_size", "bad_words_ids", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens")


def resolve_settings(checkpoint: Checkpoint, *overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in force: recommended values, overridden by the checkpoint's own, then by each of `overrides`.

    For greedy decoding the sampling settings and the recommended presence penalty are removed.

    Args:
        checkpoint: the model.
        *overrides: settings of the router and of the request.

    Returns:
        The settings by name.

    Raises:
        SettingsError: see `checked`; also if a token id is not in the vocabulary, if the settings suppress every
            token, or if `min_new_tokens` is greater than `max_new_tokens`.
    """
    asked = combined(*map(checked, overrides))
    ends = {"eos_token_id": checkpoint.tokenizer.eos_token_id}
    settings = ends | RECOMMENDED[checkpoint.mode] | dict(checkpoint.generation) | asked
    if not settings["do_sample"]:
        recipe = set() if "presence_penalty" in asked else {"presence_penalty"}
        settings = {name: value for name, value in settings.items() if name not in SAMPLING | recipe}
    _check_tokens(settings, checkpoint.model.config.text_config.vocab_size)
    check_lengths(settings)
    return settings


def _check_tokens(settings: Mapping[str, Any], vocabulary: int) -> None:
    ends, words = settings["eos_token_id"], settings.get("bad_words_ids", [])
    ends = ends if isinstance(ends, list) else [ends]
    suppressed = {*settings.get("suppress_tokens", []), *(word[0] for word in words if len(word) == 1)}
    lists = {
        "eos_token_id": ends, "suppress_tokens": settings.get("suppress_tokens", []),
        "bad_words_ids": [one for word in words for one in word],
        "begin_suppress_tokens": settings.get("begin_suppress_tokens", []),
        "sequence_bias": [one for ids in settings.get("sequence_bias", ()) for one in ids],
    }  # fmt: skip
    for name, ids in lists.items():
        if (largest := max(ids, default=0)) >= vocabulary:
            raise SettingsError(f"{name} contains token id {largest}; the model has token ids 0 to {vocabulary - 1}")
    if len(suppressed | set(lists["begin_suppress_tokens"]) | set(ends) - {-1}) >= vocabulary:
        raise SettingsError("suppress_tokens, begin_suppress_tokens and bad_words_ids leave no token to generate")


class Penalties(LogitsProcessor):
    """Presence and frequency penalty over the tokens of the answer so far, as defined by OpenAI and vLLM."""

    def __init__(self, prompt_length: int, presence: float, frequency: float = 0.0) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores after both penalties."""
        written = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, written, torch.ones_like(written, dtype=scores.dtype))
        return scores - self.presence * (counts > 0) - self.frequency * counts


class Sampler:
    """Chooses the tokens of one answer; the processors have the order of transformers' `generate`.

    With a `seed` the random numbers do not depend on other answers.
    """

    def __init__(self, checkpoint: Checkpoint, prompt_length: int, settings: Mapping[str, Any]) -> None:
        """`settings`: as returned by `resolve_settings`."""
        asked: Any = settings.get("eos_token_id")
        ends = frozenset(asked if isinstance(asked, list) else [asked])
        #: Chosen if all tokens are excluded. It ends an answer that has visible text, unless `eos_token_id` is -1.
        self.last_resort = max(ends) if max(ends) >= 0 else int(checkpoint.tokenizer.eos_token_id)
        self.control = OutputControl(
            checkpoint.tokenizer, checkpoint.mode == "thinking", ends, settings.get("thinking_budget")
        )
        self.draws = bool(settings.get("do_sample"))
        self.processors = LogitsProcessorList(_processors(settings, prompt_length, [*ends], checkpoint.device))
        self.excludes = any(settings.get(name) for name in EXCLUDING)
        presence, frequency = (settings.get(f"{name}_penalty") or 0.0 for name in ("presence", "frequency"))
        if presence or frequency:
            self.processors.append(Penalties(prompt_length, presence, frequency))
        if self.draws:
            self.processors.extend(_warpers(settings, checkpoint.device))
        self.generator: torch.Generator | None = None
        if (seed := settings.get("seed")) is not None:
            self.generator = torch.Generator(checkpoint.device).manual_seed(seed)

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> int:
        """The next token id. `ids`: prompt and answer so far, `[1, n]`; `logits`: `[1, vocabulary]`."""
        if (forced := self.control.forced()) is not None:
            return forced
        scores = self.processors(ids, self.control.mask(logits.to(torch.float32, copy=True)))
        if self.excludes and bool((scores == -torch.inf).all()):  # all tokens are excluded
            return self.control.chosen(self.last_resort)
        if not self.draws:
            return self.control.chosen(int(scores.argmax(-1)))
        return self.control.chosen(int(torch.multinomial(scores.softmax(-1), 1, generator=self.generator)))


def _processors(
    settings: Mapping[str, Any], prompt_length: int, ends: list[int], device: torch.device
) -> Iterator[LogitsProcessor]:
    """Processors for greedy decoding and sampling, in the order of transformers' `generate`."""
    if bias := settings.get("sequence_bias"):
        yield SequenceBiasLogitsProcessor(bias)
    if (penalty := settings.get("repetition_penalty", 1.0)) != 1.0:
        yield RepetitionPenaltyLogitsProcessor(penalty)
    if size := settings.get("no_repeat_ngram_size"):
        yield NoRepeatNGramLogitsProcessor(size)
    if words := settings.get("bad_words_ids"):
        yield NoBadWordsLogitsProcessor(words, ends)
    if least := settings.get("min_new_tokens"):
        yield MinNewTokensLengthLogitsProcessor(prompt_length, least, ends, device=device)
    if ids := settings.get("suppress_tokens"):
        yield SuppressTokensLogitsProcessor(ids, device=device)
    if ids := settings.get("begin_suppress_tokens"):
        yield SuppressTokensAtBeginLogitsProcessor(ids, prompt_length, device=device)


def _warpers(settings: Mapping[str, Any], device: torch.device) -> Iterator[LogitsProcessor]:
    """Processors for sampling only, in the order of transformers' `generate`."""
    if (temperature := settings.get("temperature", 1.0)) != 1.0:
        yield TemperatureLogitsWarper(temperature)
    if top_k := settings.get("top_k"):
        yield TopKLogitsWarper(top_k)
    if (top_p := settings.get("top_p", 1.0)) < 1.0:
        yield TopPLogitsWarper(top_p)
    if min_p := settings.get("min_p"):
        yield MinPLogitsWarper(min_p)
    if (typical_p := settings.get("typical_p", 1.0)) < 1.0:
        yield TypicalLogitsWarper(typical_p)
    if epsilon := settings.get("epsilon_cutoff"):
        yield EpsilonLogitsWarper(epsilon)
    if eta := settings.get("eta_cutoff"):
        yield EtaLogitsWarper(eta, device=device)
