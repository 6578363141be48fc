"""Prefixes: what two readings share, cut at pictures; a budget that holds; entries that nobody can change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from vlroute.engine.cache import prefix as prefix_index
from vlroute.engine.cache.prefix import PrefixCache, Slot, TokenPrefix

PAD = 9  # fills the slots of pictures
TOKEN = 2 * 4 * 4 * 2  # bytes of one token below: keys and values, two layers, four numbers of float32


def reading(*parts: int | str) -> TokenPrefix:
    """Numbers are text tokens; a string is a picture of three tokens with that digest."""
    ids: list[int] = []
    slots = []
    for part in parts:
        if isinstance(part, str):
            slots.append(Slot(len(ids), len(ids) + 3, part))
            ids += [PAD] * 3
        else:
            ids.append(part)
    return TokenPrefix(np.array(ids, dtype=np.int64), tuple(slots))


def cache_of(length: int, fill: float = 0.0) -> DynamicCache:
    cache = DynamicCache()
    for layer in range(2):
        rows = torch.arange(length, dtype=torch.float32)[None, None, :, None].expand(1, 1, length, 4) + fill
        cache.update(rows, rows, layer)
    return cache


@pytest.fixture(autouse=True)
def blocks_of_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these short readings are found as real ones are."""
    monkeypatch.setattr(prefix_index, "BLOCK", 1)


parts = st.lists(st.one_of(st.integers(0, 2), st.sampled_from(["a", "b"])), max_size=8)


@given(parts, parts)
def test_common_is_a_beginning_of_both_and_cuts_no_picture(left: list[int | str], right: list[int | str]) -> None:
    one, two = reading(*left), reading(*right)
    length = one.common(two)
    assert length == two.common(one)
    assert one.ids[:length].tolist() == two.ids[:length].tolist()
    assert one.head(length).slots == two.head(length).slots
    for slot in (*one.slots, *two.slots):
        assert not slot.start < length < slot.end
    # and it is the longest: by whole parts nothing more is shared
    shared = 0
    for mine, others in zip(left, right, strict=False):
        if mine != others:
            break
        shared += 3 if isinstance(mine, str) else 1
    assert length == shared


def test_equal_slots_of_other_pictures_are_not_shared() -> None:
    assert reading(1, "a", 2).common(reading(1, "b", 2)) == 1
    assert reading(1, "a", 2).common(reading(1, "a", 2, 3)) == 5


def test_it_reads_on_from_the_longest_beginning() -> None:
    prefixes = PrefixCache()
    prefixes.insert("instruct", reading(1, "a", 2, 3), cache_of(6))
    prefixes.insert("instruct", reading(1, "b", 2, 3, 4), cache_of(7, fill=100))
    length, cache = prefixes.match("instruct", reading(1, "b", 2, 7, 8))
    assert length == 5
    assert cache is not None
    assert cache.layers[0].keys[0, 0, :, 0].tolist() == [100, 101, 102, 103, 104]
    assert prefixes.match("thinking", reading(1, "b", 2, 7, 8)) == (0, None)
    stats = prefixes.stats()
    assert (stats.prompts, stats.hits, stats.tokens_reused) == (2, 1, 5)


def test_one_token_is_always_left_to_read() -> None:
    prefixes = PrefixCache()
    prefixes.insert("instruct", reading(1, 2, 3), cache_of(3))
    assert prefixes.cached_tokens("instruct", reading(1, 2, 3)) == 2
    prefixes.insert("instruct", reading(4, "a"), cache_of(4))
    assert prefixes.cached_tokens("instruct", reading(4, "a")) == 1  # a picture is read whole or not at all


def test_what_is_taken_can_be_changed_without_harm() -> None:
    prefixes = PrefixCache()
    prefixes.insert("instruct", reading(1, 2, 3, 4), cache_of(4))
    for _ in range(2):
        length, cache = prefixes.match("instruct", reading(1, 2, 3, 5))
        assert cache is not None
        assert cache.layers[0].keys[0, 0, :, 0].tolist() == [0, 1, 2][:length]
        cache.layers[0].keys.fill_(-1)
        cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)


def test_a_longer_reading_serves_for_its_beginning() -> None:
    prefixes = PrefixCache()
    prefixes.insert("instruct", reading(1, 2), cache_of(2))
    prefixes.insert("instruct", reading(1, 2, 3, 4), cache_of(4))
    assert (prefixes.stats().items, prefixes.stats().bytes) == (1, 4 * TOKEN)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 6)), max_size=30), st.integers(0, 12))
def test_the_budget_holds(puts: list[tuple[int, int]], tokens: int) -> None:
    prefixes = PrefixCache(budget=tokens * TOKEN)
    for first, length in puts:
        prefixes.insert("instruct", reading(first, *range(100, 99 + length)), cache_of(length))
        stats = prefixes.stats()
        assert stats.bytes <= tokens * TOKEN
        assert stats.items * TOKEN <= stats.bytes


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="bytes"):
        PrefixCache(-1)


@given(st.lists(parts, min_size=1, max_size=6), parts, st.integers(1, 5))
def test_found_by_blocks_as_by_looking_at_each(kept: list[list[int | str]], asked: list[int | str], block: int) -> None:
    """Beginnings of whole blocks are never missed; what is within the last block may be."""
    before, prefix_index.BLOCK = prefix_index.BLOCK, block
    try:
        cache = PrefixCache()
        readings = [reading(*one) for one in kept]
        for one in readings:
            if len(one):
                cache.insert("o", one, cache_of(len(one)))
        wanted = reading(*asked, 5)
        best = max(one.common(wanted.head(len(wanted) - 1)) for one in readings)
        found = cache.cached_tokens("o", wanted)
        assert best // block * block <= found <= best
        assert cache.cached_tokens("another", wanted) == 0
        cache.budget = TOKEN
        cache.insert("o", reading(10**6), cache_of(1))
        assert cache.stats().items == 1
        assert cache.cached_tokens("o", wanted) == 0  # evicted entries are not found
    finally:
        prefix_index.BLOCK = before


def test_finding_takes_no_longer_for_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_index, "BLOCK", 16)
    cache = PrefixCache(2**40)
    empty = cache_of(48)
    for i in range(3000):
        cache.insert("o", TokenPrefix(np.array([*range(32), *[i] * 16]), ()), empty)
    before, seen = TokenPrefix.common, 0

    def counted(self: TokenPrefix, other: TokenPrefix) -> int:
        nonlocal seen
        seen += 1
        return before(self, other)

    monkeypatch.setattr(TokenPrefix, "common", counted)
    assert cache.cached_tokens("o", TokenPrefix(np.array([*range(32), *[7] * 16, 1, 2]), ())) == 48
    assert seen == 1
    assert cache.cached_tokens("o", TokenPrefix(np.array([*range(32), 5, 5, 1, 2]), ())) >= 32
    assert seen <= 1 + prefix_index.MAX_COMPARED
