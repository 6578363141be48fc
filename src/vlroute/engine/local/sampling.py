"""Chooses the next token: logits processors, thinking budget, then greedy decoding or sampling."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)  # fmt: skip

from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.engine.local.grammar import Constraint, allowed_tokens
from vlroute.engine.local.reasoning import OutputControl
from vlroute.engine.protocol import TOP_TOKENS
from vlroute.engine.settings import (
    AUTO,
    RECOMMENDED,
    SAMPLING,
    SETTINGS,
    answer_reserve,
    check_lengths,
    check_logprobs,
    checked,
    combined,
)
from vlroute.errors import SettingsError

#: Settings that processors of transformers apply to one answer after the other.
SINGLE = (
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "typical_p",
    "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
#: Largest `top_k` for which only the best tokens are sorted. Twice as many are, because tokens may have equal scores.
WIDEST = 256


def resolve_settings(checkpoint: Checkpoint, *overrides: Mapping[str, Any], media: bool = True) -> dict[str, Any]:
    """The settings in force: recommended values, overridden by the checkpoint's own, then by each of `overrides`.

    A hybrid has one generation config for both modes, so its sampling settings are those of its family, unless the
    config says that the checkpoint does not sample. For greedy decoding the sampling settings and the recommended
    presence penalty are removed.

    Args:
        checkpoint: the model.
        *overrides: settings of the router and of the request.
        media: whether the request has pictures or videos.

    Returns:
        The settings by name.

    Raises:
        SettingsError: see `checked`; also if a token id is not in the vocabulary, if the settings suppress every
            token, if `min_new_tokens` is greater than `max_new_tokens`, or if `top_logprobs` is set without
            `logprobs`.
    """
    asked = combined(*map(checked, overrides))
    ends = {"eos_token_id": checkpoint.tokenizer.eos_token_id}
    own, sampling = dict(checkpoint.generation), checkpoint.family.sampling
    if sampling is not None and own.get("do_sample", True):
        own |= sampling[checkpoint.mode, media]
    settings = ends | RECOMMENDED[checkpoint.mode] | own | asked
    if not settings["do_sample"]:
        recipe = set() if "presence_penalty" in asked else {"presence_penalty"}
        settings = {name: value for name, value in settings.items() if name not in SAMPLING | recipe}
    vocabulary = checkpoint.model.config.text_config.vocab_size
    if further := settings.pop("stop_token_ids", None):
        _check_ids("stop_token_ids", further, vocabulary)
        settings["eos_token_id"] = [*_end_list(settings), *further]
    if words := settings.pop("bad_words", None):
        settings["bad_words_ids"] = [*settings.get("bad_words_ids", ()), *_word_ids(checkpoint.tokenizer, words)]
    if biases := settings.pop("logit_bias", None):
        _check_ids("logit_bias", [*biases], vocabulary)
        given = settings.get("sequence_bias", {})
        settings["sequence_bias"] = given | {(one,): bias + given.get((one,), 0.0) for one, bias in biases.items()}
    _check_tokens(settings, vocabulary)
    check_lengths(settings)
    check_logprobs(settings)
    return settings


def _check_tokens(settings: Mapping[str, Any], vocabulary: int) -> None:
    ends, words = _end_list(settings), settings.get("bad_words_ids", [])
    suppressed = {*settings.get("suppress_tokens", []), *(word[0] for word in words if len(word) == 1)}
    lists = {
        "eos_token_id": ends, "suppress_tokens": settings.get("suppress_tokens", []),
        "bad_words_ids": [one for word in words for one in word],
        "begin_suppress_tokens": settings.get("begin_suppress_tokens", []),
        "sequence_bias": [one for ids in settings.get("sequence_bias", ()) for one in ids],
    }  # fmt: skip
    for name, ids in lists.items():
        _check_ids(name, ids, vocabulary)
    if len(suppressed | set(lists["begin_suppress_tokens"]) | set(ends) - {-1}) >= vocabulary:
        raise SettingsError("suppress_tokens, begin_suppress_tokens and bad_words_ids leave no token to generate")


def _check_ids(name: str, ids: Sequence[int], vocabulary: int) -> None:
    if (largest := max(ids, default=0)) >= vocabulary:
        raise SettingsError(f"{name} contains token id {largest}; the model has token ids 0 to {vocabulary - 1}")


def end_ids(settings: Mapping[str, Any]) -> frozenset[int]:
    """The ids that end an output, of `eos_token_id`; -1 if none does."""
    return frozenset(_end_list(settings))


def _end_list(settings: Mapping[str, Any]) -> list[int]:
    ids: Any = settings["eos_token_id"]
    return ids if isinstance(ids, list) else [ids]


def _word_ids(tokenizer: Any, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word at the beginning of a text and after a space."""
    texts = [text for word in words for text in ((word,) if word[0].isspace() else (word, f" {word}"))]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [ids for ids in found if ids]


class Penalties(LogitsProcessor):
    """Presence and frequency penalty over the tokens of the answer so far, as defined by OpenAI and vLLM."""

    def __init__(self, prompt_length: int, presence: float, frequency: float = 0.0) -> None:
        self.prompt_length, self.presence, self.frequency = prompt_length, presence, frequency

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores after both penalties."""
        written = input_ids[:, self.prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, written, torch.ones_like(written, dtype=scores.dtype))
        return scores - self.presence * (counts > 0) - self.frequency * counts


class SequenceBias(LogitsProcessor):
    """Adds to the scores of tokens that would complete a sequence. For one answer.

    The scores are those of transformers' `SequenceBiasLogitsProcessor`, which compares tensors for each length of a
    sequence. Here, the end of the answer is looked up in a table.

    Args:
        biases: What is added for each sequence of token ids.
        device: Where the scores are.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float], device: torch.device) -> None:
        single = {ids[0]: bias for ids, bias in biases.items() if len(ids) == 1}
        self._ids = torch.tensor([*single], dtype=torch.long).to(device)
        self._biases = torch.tensor([*single.values()], dtype=torch.float).to(device)
        self._single: torch.Tensor | None = None  # the biases of single tokens in a row of scores
        self._after: dict[tuple[int, ...], list[tuple[int, float]]] = {}  # for each beginning: last ids and biases
        for ids, bias in biases.items():
            if len(ids) > 1:
                self._after.setdefault(tuple(ids[:-1]), []).append((ids[-1], bias))
        self._lengths = list(dict.fromkeys(map(len, self._after)))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """The scores with the biases; both have one row."""
        if self._single is None:
            self._single = torch.zeros_like(scores)
            self._single[0, self._ids] = self._biases.to(scores.dtype)
        total = self._single
        if self._after:
            written = input_ids[0, -max(self._lengths) :].tolist()
            ends = (tuple(written[-length:]) for length in self._lengths if length <= len(written))
            if matched := [one for end in ends for one in self._after.get(end, ())]:
                ids, biases = (torch.tensor([*one]).to(scores.device) for one in zip(*matched, strict=True))
                total = total.index_add(1, ids, biases.to(total.dtype)[None])
        return cast("torch.FloatTensor", scores + total)


class Sampler:
    """State of the sampling of one answer: its settings, its tokens, and what may come next."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompt: Sequence[int],
        settings: Mapping[str, Any],
        constraint: Constraint | None = None,
        continues: bool = False,
    ) -> None:
        """Begin an answer.

        Args:
            checkpoint: The model.
            prompt: Token ids of the prompt.
            settings: As returned by `resolve_settings`.
            constraint: Constrains the answer, at its beginning.
            continues: Whether it continues a given beginning.

        Raises:
            SettingsError: The thinking budget is "auto".
        """
        ends = end_ids(settings)
        #: Chosen if all tokens are excluded. It ends an answer that has visible text, unless `eos_token_id` is -1.
        self.last_resort = max(ends) if max(ends) >= 0 else int(checkpoint.tokenizer.eos_token_id)
        most = int(settings["max_new_tokens"])
        thinking = checkpoint.mode == "thinking"
        if thinking and settings.get("thinking_budget") == AUTO:
            raise SettingsError("the router replaces thinking_budget='auto'; an engine takes a number of tokens")
        self.control = OutputControl(
            checkpoint.tokenizer, thinking, ends, settings.get("thinking_budget") if thinking else None, most,
            answer_reserve(settings, most), settings.get("close_loops", True),
            None if constraint is None else constraint.ends, checkpoint.family.hybrid and not thinking,
            continues,
        )  # fmt: skip
        #: What constrains the answer, but not the reasoning.
        self.constraint = constraint
        self.ids, self.prompt_length = [*prompt], len(prompt)
        self.draws = bool(settings.get("do_sample"))
        self.repetition = float(settings.get("repetition_penalty") or 1.0)
        self.presence, self.frequency = (
            float(settings.get(f"{name}_penalty") or 0) for name in ("presence", "frequency")
        )
        self.temperature, self.top_k, self.top_p, self.min_p = 1.0, 0, 1.0, 0.0
        if self.draws:
            self.temperature = float(settings.get("temperature", 1.0))
            self.top_k, self.top_p = int(settings.get("top_k") or 0), float(settings.get("top_p", 1.0))
            self.min_p = float(settings.get("min_p") or 0.0)
        self.min_new_tokens = int(settings.get("min_new_tokens") or 0)
        self.ends = ends if constraint is None else constraint.ends
        #: Processors of transformers, if a setting is not vectorized: they then do everything for this answer.
        self.processors: LogitsProcessorList | None = None
        if any(settings.get(name) not in (None, SETTINGS[name].off, [], {}) for name in SINGLE):
            self.processors = LogitsProcessorList(_processors(settings, len(prompt), [*ends], checkpoint.device))
            if self.presence or self.frequency:
                self.processors.append(Penalties(len(prompt), self.presence, self.frequency))
            if self.draws:
                self.processors.extend(_warpers(settings, checkpoint.device))
        self._random: random.Random | None = None
        if (seed := settings.get("seed")) is not None:
            self._random = random.Random(str(seed))  # a number would be taken without its sign

    @property
    def output_ids(self) -> list[int]:
        """The ids of the output so far."""
        return self.ids[self.prompt_length :]

    def draw(self) -> float:
        """A random number from 0 to 1. With a seed it depends on nothing but the seed and the draws before it."""
        return self._random.random() if self._random else float(torch.rand(()))

    def excluded(self) -> frozenset[int]:
        """The ids that may not come next, besides those that settings exclude."""
        early = len(self.ids) - self.prompt_length < self.min_new_tokens
        return self.control.excluded | self.ends if early else self.control.excluded

    def take(self, token: int) -> int:
        """Process the id that the model chose. Returns the id for the output, which may differ."""
        forced, answering = self.control.forced(), self.control.answering
        token = self.control.chosen(token) if forced is None else forced
        self.ids.append(token)
        if self.constraint is not None and forced is None and answering:
            self.constraint.push(token)
        return token


class BatchSampler:
    """Chooses the next token of several answers at once, with one transfer of results from the device.

    The processors have the order of transformers' `generate`. Each answer gets the token that it would get alone.
    """

    def __init__(self, samplers: Sequence[Sampler], vocabulary: int, device: torch.device) -> None:
        """`samplers`: of the rows of `logits`, in order. Make a new object if the rows change."""
        self.samplers, self.device, self.vocabulary = samplers, device, vocabulary
        self._excluded: tuple[frozenset[int], ...] = ()
        self._exclusion: tuple[torch.Tensor, torch.Tensor] | None = None
        shared = [one if one.processors is None else None for one in samplers]
        # settings of rows that processors of transformers work on are neutral here
        self._repetition = self._column([one.repetition if one else 1.0 for one in shared], 1.0)
        self._seen = self._tokens(shared, prompts=True) if self._repetition is not None else None
        self._presence = self._column([one.presence if one else 0.0 for one in shared], 0.0)
        self._frequency = self._column([one.frequency if one else 0.0 for one in shared], 0.0)
        penalized = self._presence is not None or self._frequency is not None
        self._counts = self._tokens(shared, prompts=False) if penalized else None
        # answers with a small top_k are drawn from the best tokens only: sorting these is fast
        narrow = [
            i for i, one in enumerate(samplers) if one.draws and one.processors is None and 0 < one.top_k <= WIDEST
        ]
        wide = [i for i, one in enumerate(samplers) if one.draws and i not in set(narrow)]
        self._drawn = [_Drawn(rows, [shared[i] for i in rows], device) for rows in (narrow, wide) if rows]

    def _column(self, values: list[float], neutral: float) -> torch.Tensor | None:
        if all(value == neutral for value in values):
            return None
        return torch.tensor(values, dtype=torch.float32).to(self.device)[:, None]

    def _tokens(self, samplers: Sequence[Sampler | None], prompts: bool) -> torch.Tensor:
        """How often each answer, with its prompt if `prompts`, contains each token: `[rows, vocabulary]`."""
        counts = torch.zeros(len(samplers), self.vocabulary, device=self.device)
        for row, one in zip(counts, samplers, strict=True):
            if one is not None and (ids := one.ids if prompts else one.output_ids):
                index = torch.tensor(ids).to(self.device)
                row.scatter_add_(0, index, torch.ones_like(index, dtype=counts.dtype))
        return counts

    def __call__(self, logits: torch.Tensor) -> list[int]:
        """Ids for `logits`, `[rows, vocabulary]`, for `Sampler.take` of each row."""
        scores = logits.to(torch.float32, copy=True)
        likely = self._constrain(scores)
        self._exclude(scores)
        for i, one in enumerate(self.samplers):
            if one.processors is not None:
                scores[i : i + 1] = one.processors(torch.tensor([one.ids], device=self.device), scores[i : i + 1])
        if self._repetition is not None and self._seen is not None:
            scaled = torch.where(scores < 0, scores * self._repetition, scores / self._repetition)
            scores = torch.where(self._seen > 0, scaled, scores)
        if self._counts is not None:
            if self._presence is not None:
                scores = scores - self._presence * (self._counts > 0)
            if self._frequency is not None:
                scores = scores - self._frequency * self._counts
        best, tokens = scores.max(-1)
        tokens = torch.where(best == -torch.inf, -1, tokens)  # -1: all tokens are excluded
        for drawn in self._drawn:
            tokens = drawn(scores, tokens, self.samplers)
        if likely is not None:
            tokens = torch.where(tokens < 0, likely, tokens)
        if self._counts is not None or self._seen is not None:
            self._count(tokens)
        chosen: list[int] = tokens.tolist()
        return [one.last_resort if token < 0 else token for one, token in zip(self.samplers, chosen, strict=True)]

    def _constrain(self, scores: torch.Tensor) -> torch.Tensor | None:
        """Keep only the scores of tokens that the grammars of the answers allow.

        Returns:
            The most likely allowed token of each constrained answer, for the case that other settings exclude all that
            are allowed: the grammar precedes. -1 for the other rows. None if no answer is constrained.
        """
        found = [
            (i, one.constraint)
            for i, one in enumerate(self.samplers)
            if one.constraint is not None and one.control.answering
        ]
        if not found:
            return None
        rows = torch.tensor([i for i, _ in found]).to(self.device)
        allowed = allowed_tokens([one for _, one in found], self.vocabulary, self.device)
        own = scores[rows].masked_fill(~allowed, -torch.inf)
        scores[rows] = own
        return torch.full((len(scores),), -1, device=self.device).index_copy(0, rows, own.argmax(-1))

    def _exclude(self, scores: torch.Tensor) -> None:
        excluded = tuple(one.excluded() for one in self.samplers)
        if excluded != self._excluded:
            self._excluded = excluded
            ids = sorted({i for row in excluded for i in row if 0 <= i < self.vocabulary})
            where = torch.tensor([[i in row for i in ids] for row in excluded], dtype=torch.bool)
            self._exclusion = (torch.tensor(ids).to(self.device), where.to(self.device)) if ids else None
        if self._exclusion is not None:
            ids, where = self._exclusion
            scores[:, ids] = scores[:, ids].masked_fill(where, -torch.inf)

    def _count(self, tokens: torch.Tensor) -> None:
        """Count the tokens on the device. If `Sampler.take` returns another id, a new object is needed."""
        index = tokens.clamp(min=0)[:, None]
        for counts in (self._counts, self._seen):
            if counts is not None:
                counts.scatter_add_(1, index, torch.ones_like(index, dtype=counts.dtype))


def token_scores(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probability and entropy of chosen tokens, see `protocol.Evidence`.

    Args:
        logits: Logits of the model, before processors, `[rows, vocabulary]`.
        tokens: The id that was chosen in each row.

    Returns:
        Both numbers of each row, `[rows, 2]`, on the device of `logits`.
    """
    log_probs = logits.float().log_softmax(-1)
    chosen = log_probs.gather(1, torch.tensor(tokens).to(logits.device)[:, None])[:, 0]
    top = log_probs.topk(TOP_TOKENS).values.exp()
    rest = (1 - top.sum(-1)).clamp(min=0)
    return torch.stack([chosen, torch.special.entr(top).sum(-1) + torch.special.entr(rest)], dim=1)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probability of a token, and ids and log-probabilities of the most probable tokens at its place."""

    token: int
    log_prob: float
    top: Sequence[tuple[int, float]]


class LogProbs:
    """The log-probabilities at one place of an answer, before processors, in float32.

    Args:
        row: Those of all tokens, on the device of the model.
        chosen: The token that was chosen, and its log-probability.
        top: Ids and log-probabilities of the most probable tokens.
    """

    def __init__(self, row: torch.Tensor, chosen: tuple[int, float], top: Sequence[tuple[int, float]]) -> None:
        self._row, self._chosen, self._top = row, chosen, top

    def of(self, token: int) -> TokenScores:
        """The scores of the token of the output, which may differ from the chosen one."""
        chosen, log_prob = self._chosen
        return TokenScores(token, log_prob if token == chosen else float(self._row[token]), self._top)


def log_probs_of(logits: torch.Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[LogProbs]:
    """Log-probabilities of chosen tokens and of the most probable ones.

    Args:
        logits: Logits of the model, before processors, `[rows, vocabulary]`.
        tokens: The id that was chosen in each row.
        counts: How many of the most probable tokens each row needs.

    Returns:
        One object for each row.
    """
    rows = logits.float().log_softmax(-1)
    top = rows.topk(min(max(counts), rows.shape[-1]))
    chosen = rows.gather(1, torch.tensor(tokens).to(logits.device)[:, None])
    values, ids = torch.cat([chosen, top.values], dim=1).tolist(), top.indices.tolist()
    return [
        LogProbs(row, (token, own[0]), [*zip(best[:count], own[1 : count + 1], strict=True)])
        for row, token, own, best, count in zip(rows, tokens, values, ids, counts, strict=True)
    ]


class _Drawn:
    """The rows that are drawn at random, from all tokens or from the best ones."""

    def __init__(self, rows: list[int], samplers: Sequence[Sampler | None], device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.index = torch.tensor(rows).to(device)
        # rows that processors of transformers have worked on are only drawn
        settings = [(s.temperature, s.top_k, s.top_p, s.min_p) if s else (1.0, 0, 1.0, 0.0) for s in samplers]
        temperature, top_k, top_p, min_p = (
            torch.tensor(column).to(device)[:, None] for column in zip(*settings, strict=True)
        )
        tops = [one[1] for one in settings]
        self.narrow = all(0 < top <= WIDEST for top in tops)
        self.temperature = temperature.float() if any(one[0] != 1.0 for one in settings) else None
        self.top_k = top_k if any(tops) else None
        self.top_p = top_p.double() if any(one[2] < 1.0 for one in settings) else None
        self.min_p = min_p.double() if any(one[3] > 0 for one in settings) else None

    def __call__(self, scores: torch.Tensor, tokens: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
        """`tokens` with those of these rows drawn from `scores`."""
        draws = torch.tensor([samplers[i].draw() for i in self.rows], dtype=torch.float64).to(self.device)[:, None]
        own = scores[self.index]
        if self.temperature is not None:
            own = own / self.temperature
        # in descending order, the tokens to keep are the first ones in each row
        if self.narrow:
            order = own.topk(min(2 * WIDEST, own.shape[-1]))
        else:
            order = own.sort(dim=-1, descending=True, stable=True)
        values, ids = order.values, order.indices
        if self.top_k is not None:
            last = values.gather(1, (self.top_k.long() - 1).clamp(0, values.shape[-1] - 1))
            values = values.masked_fill((values < last) & (self.top_k > 0), -torch.inf)
        if self.top_p is not None:
            shares = values.double().softmax(-1)
            before = shares.cumsum(-1) - shares
            values = values.masked_fill((before >= self.top_p) & (self.top_p < 1) & (before > 0), -torch.inf)
        if self.min_p is not None:
            shares = values.double().softmax(-1)
            values = values.masked_fill(shares < self.min_p * shares[:, :1], -torch.inf)
        # in the order of ids: scores that differ in their last bits may change places, which a draw must not depend on
        by_id = ids.argsort(-1)
        values, ids = values.gather(1, by_id), ids.gather(1, by_id)
        shares = values.double().softmax(-1).nan_to_num()
        sums = shares.cumsum(-1)
        total = sums[:, -1:]
        below = torch.nextafter(total, torch.zeros_like(total))
        place = torch.searchsorted(sums, torch.minimum(draws * total, below), right=True)
        drawn = ids.gather(1, place.clamp(max=ids.shape[-1] - 1))[:, 0]
        old = tokens[self.index]
        return tokens.index_copy(0, self.index, torch.where(old < 0, old, drawn))


def _processors(
    settings: Mapping[str, Any], prompt_length: int, ends: list[int], device: torch.device
) -> Iterator[LogitsProcessor]:
    """Processors for greedy decoding and sampling, in the order of transformers' `generate`."""
    if bias := settings.get("sequence_bias"):
        yield SequenceBias(bias, device)
    if (penalty := settings.get("repetition_penalty", 1.0)) != 1.0:
        yield RepetitionPenaltyLogitsProcessor(penalty)
    if size := settings.get("no_repeat_ngram_size"):
        yield NoRepeatNGramLogitsProcessor(size)
    if words := settings.get("bad_words_ids"):
        # as in transformers' `NoBadWordsLogitsProcessor`, which does not exclude what ends an answer
        yield SequenceBias({tuple(ids): -math.inf for ids in words if not (len(ids) == 1 and ids[0] in ends)}, device)
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
