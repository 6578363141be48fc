"""Pictures outside the drawn tasks: reproducible, of any size, and different between training and test."""

from __future__ import annotations

import random

import numpy as np
import pytest
from training.pocket.unknown import TEST_PICTURES, TRAIN_PICTURES, draw_size, draw_unknown

from vlroute.pocket.canvas import SIDE

ALL = TRAIN_PICTURES | TEST_PICTURES


def test_training_and_test_kinds_are_disjoint() -> None:
    assert len(TRAIN_PICTURES) >= 18
    assert len(TEST_PICTURES) >= 10
    assert not TRAIN_PICTURES.keys() & TEST_PICTURES.keys()
    assert not set(TRAIN_PICTURES.values()) & set(TEST_PICTURES.values())


@pytest.mark.parametrize("name", ALL)
def test_kind_is_reproducible_and_varies(name: str) -> None:
    def draw(seed: int) -> bytes:
        return draw_unknown(random.Random(seed), {name: ALL[name]}, (96, 72)).tobytes()

    random.seed(1)
    np.random.seed(1)
    first = draw(0)
    random.seed(2)
    np.random.seed(2)
    assert draw(0) == first
    assert len({draw(seed) for seed in range(8)}) >= 5


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (400, 134), (1999, 1200)])
@pytest.mark.parametrize("kinds", [TRAIN_PICTURES, TEST_PICTURES], ids=["train", "test"])
def test_size_is_exact(kinds: dict[str, object], size: tuple[int, int]) -> None:
    for i, name in enumerate(kinds):
        if max(size) <= 400 or i % 4 == 0:  # the largest pictures take up to 0.1 s each
            image = draw_unknown(random.Random(i), {name: ALL[name]}, size)
            assert (image.size, image.mode) == (size, "RGB")


def test_default_sizes() -> None:
    rng = random.Random(0)
    sizes = [draw_size(rng) for _ in range(1000)]
    assert sizes.count((SIDE, SIDE)) == pytest.approx(600, abs=40)
    assert all(min(size) >= 64 and max(size) <= 400 and max(size) <= 3.1 * min(size) for size in sizes)
    assert max(max(draw_size(rng, 2000)) for _ in range(1000)) > 1500
    assert len({draw_unknown(rng).size for _ in range(30)}) > 5
