"""Loops are found soon after their first full repeat; texts that quote themselves or list similar things are none."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from vlroute.engine.repetition import LONG_PERIOD, NGRAM, LoopDetector


def found(tokens: Iterable[int | str]) -> int | None:
    """Number of tokens after which a loop was found."""
    detector = LoopDetector()
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)


def repeated(begin: int, period: int, times: int, chance: random.Random) -> list[int]:
    before = [chance.randrange(1000) for _ in range(begin)]
    return before + [chance.randrange(1000) for _ in range(period)] * times


@pytest.mark.parametrize("begin", [0, 7, 500])
@pytest.mark.parametrize("period", [1, 2, 3, 5, 8, 13, LONG_PERIOD - 1])
def test_a_short_loop_is_found_within_64_tokens_after_its_first_repeat(begin: int, period: int) -> None:
    for seed in range(20):
        at = found(repeated(begin, period, 4 + 200 // period, random.Random(seed)))
        assert at is not None
        assert begin + 2 * period <= at <= begin + 2 * period + 64


@pytest.mark.parametrize("period", [LONG_PERIOD, 41, 100, 300])
def test_a_long_loop_may_be_a_check(period: int) -> None:
    """Five equal passes are no loop; the sixth one is cut."""
    for seed in range(5):
        assert found([*repeated(50, period, 5, random.Random(seed)), *range(-60, 0)]) is None
        at = found(repeated(50, period, 7, random.Random(seed)))
        assert at is not None
        assert 50 + 5 * period <= at <= 50 + 5 * period + 2 * NGRAM


@pytest.mark.parametrize("period", [60, 100, 200])
def test_a_loop_that_counts_is_found(period: int) -> None:
    """One token changes in each round, such as the number of the attempt."""
    words = [f"word {i}" for i in range(period - 1)]
    at = found(token for i in range(20) for token in (f"attempt {i}", *words))
    assert at is not None
    assert at <= 12 * period


def test_a_quoted_passage_is_no_loop() -> None:
    chance = random.Random(0)
    text = [chance.randrange(1000) for _ in range(400)]
    for length in (20, 50, 100, 200):
        assert found(text + text[:length] + [-1] + text[200 : 200 + length]) is None


def test_a_list_of_similar_lines_is_no_loop() -> None:
    lines = [["Row", i, ":", "one", shape, "and", "one", other, ".", "\n"] for i, shape in enumerate("abcdefghijklmnop")
             for other in ("x", "y")]  # fmt: skip
    assert found(token for line in lines for token in line) is None


def test_a_short_run_within_repeated_steps_is_no_loop() -> None:
    """As a row of zeros in a table that is written again."""
    chance = random.Random(1)
    steps = [chance.randrange(1000) for _ in range(140)]
    steps[100:100] = [0, 1] * 8
    assert found([*steps, -1, *steps, -2]) is None


def test_the_time_for_a_token_does_not_grow() -> None:
    detector = LoopDetector()
    for i in range(100_000):
        detector.push(i)
    assert len(detector._last) == NGRAM  # noqa: SLF001
