"""`SequenceBias` gives the scores of transformers' processors."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch
from transformers import NoBadWordsLogitsProcessor, SequenceBiasLogitsProcessor

from vlroute.engine.local.sampling import SequenceBias

VOCABULARY = 50
CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(40))
def test_the_scores_are_those_of_transformers(seed: int) -> None:
    rng = random.Random(seed)
    biases = {
        tuple(rng.choices(range(6), k=rng.choice([1, 1, 2, 3, 4, 9]))): rng.uniform(-9, 9)
        for _ in range(rng.choice([1, 5, 60]))
    }
    ours, theirs = SequenceBias(biases, CPU), SequenceBiasLogitsProcessor(biases)
    for _ in range(30):
        ids = torch.tensor([rng.choices(range(6), k=rng.choice([1, 2, 3, 8, 40]))])
        scores = torch.randn(1, VOCABULARY)
        assert ours(ids, scores).equal(theirs(ids, scores.clone()))


@pytest.mark.parametrize("seed", range(20))
def test_excluded_sequences(seed: int) -> None:
    rng = random.Random(seed)
    words = [rng.choices(range(6), k=rng.choice([1, 2, 3])) for _ in range(8)]
    kept = [word for word in words if word not in ([4], [5])]
    ours = SequenceBias({tuple(word): -math.inf for word in kept}, CPU)
    theirs = NoBadWordsLogitsProcessor(words, [4, 5])
    for _ in range(30):
        ids, scores = torch.tensor([rng.choices(range(6), k=5)]), torch.randn(1, VOCABULARY)
        assert ours(ids, scores).equal(theirs(ids, scores.clone()))


def test_many_lengths_cost_little() -> None:
    ours = SequenceBias({(1,) * length + (2,): 1.0 for length in range(1, 300)}, CPU)
    ids, scores = torch.ones(1, 500, dtype=torch.long), torch.zeros(1, VOCABULARY)
    assert float(ours(ids, scores)[0, 2]) == 299
    began = time.thread_time()
    for _ in range(100):
        ours(ids, scores)
    assert time.thread_time() - began < 0.5
