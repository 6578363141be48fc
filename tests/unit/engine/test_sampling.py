"""The next token of several answers at once: each gets what it would get alone, and what transformers allows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.conftest import DEVICE
from vlroute import Router
from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.engine.local.sampling import BatchSampler, Penalties, Sampler, resolve_settings

GREEDY: dict[str, Any] = {"do_sample": False}
#: Neither of the recommended limits.
DRAWN: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "presence_penalty": 0}
MIXED: list[dict[str, Any]] = [
    GREEDY, GREEDY | {"repetition_penalty": 1.7}, GREEDY | {"presence_penalty": 2.0, "frequency_penalty": 0.5},
    GREEDY | {"min_new_tokens": 9}, GREEDY | {"no_repeat_ngram_size": 1}, GREEDY | {"suppress_tokens": [*range(300)]},
    {"do_sample": True, "seed": 1}, DRAWN | {"seed": 2}, DRAWN | {"seed": 3, "top_k": 400},
    DRAWN | {"seed": 4, "temperature": 0.3}, DRAWN | {"seed": 5, "top_p": 0.5, "min_p": 0.1},
    DRAWN | {"seed": 6, "typical_p": 0.5}, DRAWN | {"seed": 7, "frequency_penalty": 1.5, "top_k": 7},
    DRAWN | {"seed": 8, "repetition_penalty": 0.6, "bad_words_ids": [[40], [41, 42]]},
]  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(router: Router) -> Checkpoint:
    return router.pair.instruct


@pytest.fixture(scope="module")
def vocabulary(checkpoint: Checkpoint) -> int:
    return int(checkpoint.model.config.text_config.vocab_size)


def sampler(checkpoint: Checkpoint, settings: dict[str, Any], prompt: list[int] | None = None) -> Sampler:
    return Sampler(checkpoint, prompt or [5, 6, 7, 6], resolve_settings(checkpoint, settings))


def written(samplers: list[Sampler], logits: list[torch.Tensor]) -> list[list[int]]:
    """The output of each row after steps with these `logits`, `[rows, vocabulary]` each."""
    batch: BatchSampler | None = None
    for step in logits:
        batch = batch or BatchSampler(samplers, step.shape[-1], DEVICE)
        chosen = batch(step)
        taken = [one.take(token) for one, token in zip(samplers, chosen, strict=True)]
        if taken != chosen:
            batch = None  # as its docstring says
    return [one.output_ids for one in samplers]


def steps(rows: int, vocabulary: int, count: int = 24) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, vocabulary, generator=generator) * 3).to(DEVICE) for _ in range(count)]


@pytest.mark.parametrize("mode", ["instruct", "thinking"])
def test_each_row_gets_what_it_gets_alone(router: Router, vocabulary: int, mode: Any) -> None:
    checkpoint = router.pair[mode]
    settings = [one | extra for one in MIXED for extra in ({}, {"thinking_budget": 5})]
    logits = steps(len(settings), vocabulary)
    together = written([sampler(checkpoint, one) for one in settings], logits)
    for row, one in enumerate(settings):
        assert written([sampler(checkpoint, one)], [step[row : row + 1] for step in logits]) == [together[row]], one
    assert len({*map(tuple, together)}) > len(MIXED) / 2


def test_the_order_and_the_company_of_rows_do_not_matter(checkpoint: Checkpoint, vocabulary: int) -> None:
    logits = steps(len(MIXED), vocabulary)
    together = written([sampler(checkpoint, one) for one in MIXED], logits)
    order = [*range(len(MIXED))][::-2]
    some = written([sampler(checkpoint, MIXED[i]) for i in order], [step[order] for step in logits])
    assert some == [together[i] for i in order]


def test_logits_are_not_changed(checkpoint: Checkpoint, vocabulary: int) -> None:
    (logits,) = steps(len(MIXED), vocabulary, 1)
    before = logits.clone()
    BatchSampler([sampler(checkpoint, one) for one in MIXED], vocabulary, DEVICE)(logits)
    assert torch.equal(logits, before)


def test_greedy_takes_the_best_token(checkpoint: Checkpoint, vocabulary: int) -> None:
    (logits,) = steps(6, vocabulary, 1)
    assert BatchSampler([sampler(checkpoint, GREEDY) for _ in range(6)], vocabulary, DEVICE)(logits) == [
        int(row.argmax()) for row in logits
    ]
    logits[:, [50, 60]] = 99.0
    # the first of equal ones
    assert BatchSampler([sampler(checkpoint, GREEDY)], vocabulary, DEVICE)(logits[:1]) == [50]


@pytest.mark.parametrize(
    "limits",
    [
        {}, {"temperature": 0.2}, {"temperature": 30.0}, {"top_k": 1}, {"top_k": 5}, {"top_k": 256}, {"top_k": 257},
        {"top_k": 10_000}, {"top_p": 0.0}, {"top_p": 0.3}, {"top_p": 0.99}, {"min_p": 0.05}, {"min_p": 1.0},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
        {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("tied", [False, True])
def test_draws_follow_the_distribution_of_transformers(
    checkpoint: Checkpoint, vocabulary: int, limits: dict[str, Any], tied: bool
) -> None:
    """With evenly spaced random numbers, each token is drawn as often as its probability says."""
    (logits,) = steps(1, vocabulary, 1)
    if tied:
        logits = logits.round()
    excluded = sampler(checkpoint, DRAWN).excluded()
    scores = logits.clone()
    scores[:, [*excluded]] = -torch.inf
    warpers = LogitsProcessorList()
    if "temperature" in limits:
        warpers.append(TemperatureLogitsWarper(limits["temperature"]))
    if "top_k" in limits:
        warpers.append(TopKLogitsWarper(limits["top_k"]))
    if "top_p" in limits:
        warpers.append(TopPLogitsWarper(limits["top_p"]))
    if "min_p" in limits:
        warpers.append(MinPLogitsWarper(limits["min_p"]))
    shares = warpers(torch.zeros(1, 0, dtype=torch.long, device=DEVICE), scores).double().softmax(-1)[0]
    count = 2000
    samplers = [sampler(checkpoint, DRAWN | limits) for _ in range(count)]
    for i, one in enumerate(samplers):
        one.draw = lambda i=i: (i + 0.5) / count  # type: ignore[method-assign]
    drawn = Counter(BatchSampler(samplers, vocabulary, DEVICE)(logits.expand(count, -1)))
    allowed = shares.nonzero()[:, 0].tolist()
    if not (tied and "top_p" in limits):  # which of equal tokens top_p keeps depends on the direction of sorting
        assert {*drawn} <= {*allowed}
        for token in allowed:
            assert abs(drawn[token] / count - float(shares[token])) <= 1.001 / count + 1e-6
    else:  # equal tokens are interchangeable
        by_score: Counter[float] = Counter()
        for token, times in drawn.items():
            by_score[float(logits[0, token])] += times
        for score in {float(logits[0, token]) for token in (*allowed, *drawn)}:
            expected = float(shares[logits[0] == score].sum())
            assert abs(by_score[score] / count - expected) <= 5 / count  # of many tokens, each rounded


@pytest.mark.parametrize("draw", [0.0, 1.0 - 2**-53, 1.0])
def test_extreme_random_numbers_draw_allowed_tokens(checkpoint: Checkpoint, vocabulary: int, draw: float) -> None:
    (logits,) = steps(1, vocabulary, 1)
    for limits in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}):
        one = sampler(checkpoint, DRAWN | limits)
        one.draw = lambda: draw  # type: ignore[method-assign]
        (token,) = BatchSampler([one], vocabulary, DEVICE)(logits)
        best = logits[0].argsort(descending=True).tolist()
        assert token in (best[:3] if "top_k" in limits else best)
        assert token not in one.excluded()


def test_penalties_are_those_of_transformers_and_of_the_definition(checkpoint: Checkpoint, vocabulary: int) -> None:
    """Counted on from step to step, also for tokens that were written several times."""
    logits = steps(1, vocabulary, 40)
    for step in logits:
        step[:, 40:60] += 12  # the best tokens are few and their scores close, so that penalties decide
    settings = {"repetition_penalty": 1.4, "presence_penalty": 0.7, "frequency_penalty": 0.4}
    one = sampler(checkpoint, GREEDY | settings)
    (ids,) = written([one], logits)
    repeats = RepetitionPenaltyLogitsProcessor(1.4)
    penalties = Penalties(one.prompt_length, 0.7, 0.4)
    control = sampler(checkpoint, GREEDY)
    for step, token in zip(logits, ids, strict=True):
        scores = step.clone()
        scores[:, [*control.excluded()]] = -torch.inf
        before = torch.tensor([control.ids], device=DEVICE)
        assert token == int(penalties(before, repeats(before, scores)).argmax())
        control.take(token)
    assert len({*ids}) < len(ids)


def test_a_penalty_counts_what_was_written_and_not_what_was_chosen(router: Router, vocabulary: int) -> None:
    """The budget of a thought replaces tokens; the penalty must see the replacement."""
    checkpoint = router.pair.thinking
    logits = torch.zeros(1, vocabulary, device=DEVICE)
    logits[0, 50], logits[0, 51] = 5.0, 4.5
    one = sampler(checkpoint, GREEDY | {"presence_penalty": 1.0, "thinking_budget": 0})
    (ids,) = written([one], [logits] * 12)
    first = ids.index(50)  # the thought is closed before it
    assert first > 0
    assert ids[first : first + 2] == [50, 51]


def test_seeds_do_not_depend_on_the_company(checkpoint: Checkpoint, vocabulary: int) -> None:
    logits = steps(1, vocabulary)
    (alone,) = written([sampler(checkpoint, DRAWN | {"seed": 9})], logits)
    for company in ([GREEDY], [DRAWN] * 3, [DRAWN | {"seed": 9}, DRAWN | {"seed": 8, "top_k": 2}]):
        settings = [*company, DRAWN | {"seed": 9}]
        shared = [step.expand(len(settings), -1) for step in logits]
        rows = written([sampler(checkpoint, one) for one in settings], shared)
        assert rows[-1] == alone
    assert written([sampler(checkpoint, DRAWN | {"seed": -9})], logits) != [alone]


def test_without_a_seed_draws_differ(checkpoint: Checkpoint, vocabulary: int) -> None:
    logits = [step.expand(8, -1) for step in steps(1, vocabulary)]
    assert len({*map(tuple, written([sampler(checkpoint, DRAWN) for _ in range(8)], logits))}) == 8


@pytest.mark.parametrize("settings", [GREEDY, DRAWN, DRAWN | {"top_k": 5}, GREEDY | {"suppress_tokens": [7]}])
def test_an_answer_does_not_end_before_it_may(
    checkpoint: Checkpoint, vocabulary: int, settings: dict[str, Any]
) -> None:
    """The end token is excluded until there is visible text, and for `min_new_tokens` tokens; each row for itself."""
    end = int(checkpoint.tokenizer.eos_token_id)
    logits = torch.zeros(1, vocabulary, device=DEVICE)
    logits[0, 50], logits[0, end] = 50.0, 100.0
    least = [1, 3, 6]
    samplers = [sampler(checkpoint, settings | {"min_new_tokens": n}) for n in least]
    rows = written(samplers, [logits.expand(3, -1)] * 7)
    assert [row.index(end) for row in rows] == least
    assert all(row[:n] == [50] * n for row, n in zip(rows, least, strict=True))


@pytest.mark.parametrize("settings", [GREEDY, DRAWN, DRAWN | {"top_k": 5, "top_p": 0.5, "min_p": 0.5}])
def test_if_all_tokens_are_excluded_the_last_resort_is_chosen(
    checkpoint: Checkpoint, vocabulary: int, settings: dict[str, Any]
) -> None:
    """`-inf` for all is what a combination of bans leaves; the other rows are not affected."""
    logits = steps(2, vocabulary, 1)[0]
    logits[0] = -torch.inf
    one, other = sampler(checkpoint, settings), sampler(checkpoint, GREEDY)
    tokens = BatchSampler([one, other], vocabulary, DEVICE)(logits)
    assert tokens == [one.last_resort, int(logits[1].argmax())]
    banned = sampler(checkpoint, settings | {"no_repeat_ngram_size": 1}, prompt=[*range(vocabulary)])
    assert BatchSampler([banned, other], vocabulary, DEVICE)(steps(2, vocabulary, 1)[0])[0] == banned.last_resort


def test_half_precision_is_computed_in_float32(checkpoint: Checkpoint, vocabulary: int) -> None:
    (logits,) = steps(len(MIXED), vocabulary, 1)
    logits = logits.bfloat16()
    one, other = (
        BatchSampler([sampler(checkpoint, settings) for settings in MIXED], vocabulary, DEVICE)(given)
        for given in (logits, logits.float())
    )
    assert one == other


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_one_transfer_from_the_device_whatever_the_batch(
    checkpoint: Checkpoint, vocabulary: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectorized = [one for one in MIXED if not {"no_repeat_ngram_size", "suppress_tokens", "typical_p"} & one.keys()
                  and "bad_words_ids" not in one]  # fmt: skip
    samplers = [sampler(checkpoint, vectorized[i % len(vectorized)]) for i in range(rows)]
    batch = BatchSampler(samplers, vocabulary, DEVICE)
    (logits,) = steps(rows, vocabulary, 1)
    calls: list[str] = []
    for name in ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__"):
        real = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, name: str = name, real: Any = real) -> Any:
            if tensor.numel() != 1 or name == "tolist":  # random numbers are drawn on the host
                calls.append(name)
            return real(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    batch(logits)
    monkeypatch.undo()
    assert calls == ["tolist"]
