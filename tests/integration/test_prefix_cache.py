"""Cached KV tokens: what two prompts share in whole blocks; leases, order of eviction and a budget that holds."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlroute.engine.cache import prefix as prefix_module
from vlroute.engine.cache.prefix import BLOCK, PrefixCache, Slot, TokenPrefix

PAD = 9  # fills the slots of pictures
PICTURE = 20  # tokens of a picture, so that most of them span a block boundary
ONE = 2 * 2 * BLOCK * 1 * 4 * 4  # bytes of one block below: two layers, keys and values, one head of four float32


def prompt(*parts: int | str) -> TokenPrefix:
    """A number is a run of 7 equal text tokens; a string is a picture with that digest."""
    ids: list[int] = []
    slots = []
    for part in parts:
        if isinstance(part, str):
            slots.append(Slot(len(ids), len(ids) + PICTURE, part))
            ids += [PAD] * PICTURE
        else:
            ids += [part] * 7
    return TokenPrefix(np.array(ids, dtype=np.int64), tuple(slots))


def text(*ids: int) -> TokenPrefix:
    """One block of each id."""
    return TokenPrefix(np.repeat(np.array(ids, dtype=np.int64), BLOCK), ())


def kv(start: int, end: int, fill: float = 0.0) -> torch.Tensor:
    """Keys and values that are the position of each token, plus `fill`."""
    return (torch.arange(start, end) + fill)[None, None, None, :, None].expand(2, 2, 1, end - start, 4).clone()


def insert(cache: PrefixCache, tokens: TokenPrefix, fill: float = 0.0, owner: str = "instruct") -> None:
    cache.insert(owner, tokens, lambda start, end: kv(start, end, fill))


def shared(one: TokenPrefix, other: TokenPrefix) -> int:
    """Number of leading tokens that are equal, media included, without any hash."""
    signs = [
        [(int(token), next((slot for slot in each.slots if slot.start == i), None)) for i, token in enumerate(each.ids)]
        for each in (one, other)
    ]
    return next((i for i, (a, b) in enumerate(zip(*signs, strict=False)) if a != b), min(map(len, signs)))


def usable(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


parts = st.lists(st.one_of(st.integers(0, 2), st.sampled_from(["a", "b"])), max_size=8)


@given(st.lists(parts, min_size=1, max_size=5), parts)
def test_the_longest_prefix_in_whole_blocks_is_found(kept: list[list[int | str]], asked: list[int | str]) -> None:
    cache, prompts = PrefixCache(), [prompt(*one) for one in kept]
    for one in prompts:
        insert(cache, one)
    wanted = prompt(*asked, 5)
    best = min(max(shared(one, wanted) for one in prompts), len(wanted) - 1)
    assert cache.cached_tokens("instruct", wanted) == usable(best)
    assert cache.cached_tokens("thinking", wanted) == 0
    lease = cache.match("instruct", wanted)
    assert lease.length == usable(best)
    lease.release()


blocks = st.lists(st.integers(0, 2), min_size=1, max_size=4)


@given(st.lists(blocks, min_size=1, max_size=6), blocks)
def test_hashes_are_only_a_filter(kept: list[list[int]], asked: list[int]) -> None:
    """With a hash of two bits, almost everything collides; wrong keys are never found."""

    def weak(data: bytes, digest_size: int) -> Any:
        return SimpleNamespace(digest=lambda: bytes([hashlib.sha256(data).digest()[0] % 4]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_module, "hashlib", SimpleNamespace(blake2b=weak))
        cache, computed = PrefixCache(), dict[float, TokenPrefix]()
        for number, one in enumerate(text(*ids) for ids in kept):
            computed[1000.0 * number] = one
            insert(cache, one, 1000.0 * number)
        wanted = text(*asked, 5)
        lease = cache.match("instruct", wanted)
        for i, block in enumerate(lease.blocks):
            source = computed.get(float(block.kv[0, 0, 0, 0, 0]) - BLOCK * i)
            assert source is not None  # else the keys belong to another position
            assert shared(source, wanted) >= BLOCK * (i + 1)


def test_equal_tokens_of_other_pictures_are_not_shared() -> None:
    cache = PrefixCache()
    insert(cache, prompt(1, 1, 1, "a", 2, 3))
    assert cache.cached_tokens("instruct", prompt(1, 1, 1, "a", 2, 3, 4)) == 48
    assert cache.cached_tokens("instruct", prompt(1, 1, 1, "b", 2, 3, 4)) == 16  # the picture begins at 21


def test_a_picture_of_another_size_is_another_picture() -> None:
    """The keys of its first tokens depend on the positions of all its tokens."""
    cache, ids = PrefixCache(), np.full(64, PAD, dtype=np.int64)
    insert(cache, TokenPrefix(ids, (Slot(0, 40, "a"),)))
    assert cache.cached_tokens("instruct", TokenPrefix(ids, (Slot(0, 40, "a"),))) == 48
    assert cache.cached_tokens("instruct", TokenPrefix(ids, (Slot(0, 50, "a"),))) == 0


def test_it_goes_on_from_the_longest_prefix() -> None:
    cache = PrefixCache()
    insert(cache, text(1, 2, 3))
    insert(cache, text(1, 5, 3, 4), fill=100)
    lease = cache.match("instruct", text(1, 5, 3, 7, 8))
    assert lease.length == 3 * BLOCK
    found = torch.cat([block.kv for block in lease.blocks], dim=3)[0, 0, 0, :, 0].tolist()
    assert found == [*range(BLOCK), *range(100 + BLOCK, 100 + 3 * BLOCK)]  # the first block was there already
    lease.release()
    missed = cache.match("thinking", text(1, 5, 3, 7, 8))
    assert (missed.length, missed.blocks) == (0, [])
    stats = cache.stats()
    assert (stats.prompts, stats.hits, stats.tokens, stats.tokens_reused) == (2, 1, 10 * BLOCK, 3 * BLOCK)


def test_one_token_is_always_left_for_the_model() -> None:
    cache = PrefixCache()
    insert(cache, text(1, 2, 3))
    assert cache.cached_tokens("instruct", text(1, 2, 3)) == 2 * BLOCK
    assert cache.cached_tokens("instruct", text(1, 2, 3).extended([4])) == 3 * BLOCK
    assert cache.match("instruct", text(1)).length == 0


def test_tokens_of_an_incomplete_block_are_not_kept() -> None:
    cache = PrefixCache()
    insert(cache, text(1).extended([2] * (BLOCK - 1)))
    assert (cache.stats().items, cache.stats().bytes) == (1, ONE)
    insert(cache, text(1, 2).extended([3]))  # the answer has gone on
    assert cache.stats().items == 2


def test_what_is_there_is_not_copied_again() -> None:
    cache, copied = PrefixCache(), list[tuple[int, int]]()

    def read(start: int, end: int) -> torch.Tensor:
        copied.append((start, end))
        return kv(start, end)

    cache.insert("instruct", text(1, 2), read)
    cache.insert("instruct", text(1, 2, 3), read)
    assert copied == [(0, 16), (16, 32), (32, 48)]


def test_tenants_and_modes_share_nothing() -> None:
    cache = PrefixCache()
    for owner in ("instruct ", "instruct a", "thinking "):
        assert cache.cached_tokens(owner, text(1, 2, 3)) == 0
        insert(cache, text(1, 2, 3), owner=owner)
    assert cache.stats().items == 9


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), max_size=30), st.integers(0, 12))
def test_the_budget_holds(puts: list[tuple[int, int]], blocks: int) -> None:
    cache = PrefixCache(budget=blocks * ONE + 5)
    for first, length in puts:
        tokens = text(first, *range(100, 99 + length))
        insert(cache, tokens)
        stats = cache.stats()
        assert stats.bytes == stats.items * ONE <= blocks * ONE
        # the prompt that was used last is kept as far as there is room
        assert cache.cached_tokens("instruct", tokens.extended([0])) == min(length, blocks) * BLOCK


@pytest.mark.parametrize("budget", [-1, 0.5, "1"])
def test_an_impossible_budget_is_refused(budget: Any) -> None:
    with pytest.raises(ValueError, match="bytes"):
        PrefixCache(budget)


def test_the_end_of_the_prompt_not_used_for_longest_goes_first() -> None:
    cache = PrefixCache(budget=4 * ONE)
    insert(cache, text(1, 2))
    insert(cache, text(3, 4))
    cache.match("instruct", text(1, 2, 0)).release()
    insert(cache, text(5))
    assert [cache.cached_tokens("instruct", one) for one in (text(1, 2, 0), text(3, 4, 0), text(5, 0))] == [32, 16, 16]
    insert(cache, text(6))
    assert [cache.cached_tokens("instruct", one) for one in (text(1, 2, 0), text(3, 4, 0), text(6, 0))] == [32, 0, 16]
    insert(cache, text(7))
    assert cache.cached_tokens("instruct", text(1, 2, 0)) == 16
    assert cache.stats().evictions == 3


def test_asking_for_the_number_changes_no_order() -> None:
    cache = PrefixCache(budget=2 * ONE)
    insert(cache, text(1))
    insert(cache, text(2))
    cache.cached_tokens("instruct", text(1, 0))
    insert(cache, text(3))
    assert cache.cached_tokens("instruct", text(1, 0)) == 0
    assert cache.stats().prompts == 0


def test_leased_blocks_stay_until_the_last_release() -> None:
    cache = PrefixCache(budget=3 * ONE)
    insert(cache, text(1, 2, 3))
    one, two = (cache.match("instruct", text(1, 2, 0)) for _ in range(2))
    held = [block.kv for block in one.blocks]
    cache.limit(0)
    assert cache.stats().items == 2  # the third block was in no lease
    insert(cache, text(7))
    assert cache.cached_tokens("instruct", text(7, 0)) == 0  # no room
    one.release()
    one.release()  # twice has no effect
    cache.clear()
    assert cache.cached_tokens("instruct", text(1, 2, 0)) == 2 * BLOCK
    assert all(block.kv is kept for block, kept in zip(two.blocks, held, strict=True))
    two.release()
    assert (cache.stats().items, cache.stats().bytes) == (0, 0)


def test_clearing_is_no_eviction() -> None:
    cache = PrefixCache()
    insert(cache, text(1, 2, 3))
    cache.clear()
    assert (cache.stats().items, cache.stats().evictions) == (0, 0)


def test_a_lease_takes_up_what_was_stored_since() -> None:
    cache = PrefixCache()
    wanted = text(1, 2, 3, 0)
    lease = cache.match("instruct", wanted)
    assert lease.length == 0
    insert(cache, text(1, 2))  # another request has read the same prompt
    cache.extend(lease, "instruct", wanted)
    assert lease.length == 2 * BLOCK
    insert(cache, text(1, 2, 3))
    cache.extend(lease, "instruct", wanted)
    assert lease.length == 3 * BLOCK
    stats = cache.stats()
    assert (stats.prompts, stats.hits, stats.tokens_reused) == (1, 1, 3 * BLOCK)
    cache.limit(0)
    assert cache.stats().items == 3
    lease.release()
    assert cache.stats().items == 0


def test_a_longer_lease_is_not_shortened() -> None:
    cache = PrefixCache()
    insert(cache, text(1, 2, 3))
    lease = cache.match("instruct", text(1, 2, 0))
    cache.extend(lease, "thinking", text(1, 2, 0))
    cache.extend(lease, "instruct", text(1, 2, 0))
    assert (lease.length, cache.stats().tokens_reused) == (2 * BLOCK, 2 * BLOCK)
    lease.release()
    cache.limit(0)
    assert cache.stats().items == 0


def test_finding_takes_no_longer_for_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, hashed, real = PrefixCache(2**40), list[int](), hashlib.blake2b
    empty = kv(0, BLOCK)
    for i in range(3000):
        cache.insert("o", text(0, 1, i), lambda start, end: empty)

    def counted(data: bytes, digest_size: int) -> Any:
        hashed.append(len(data))
        return real(data, digest_size=digest_size)

    monkeypatch.setattr(prefix_module, "hashlib", SimpleNamespace(blake2b=counted))
    assert cache.cached_tokens("o", text(0, 1, 7, 2, 3)) == 3 * BLOCK
    assert len(hashed) == 5
    assert max(hashed) < 1000


def test_threads_leave_no_lease_and_keep_the_budget() -> None:
    cache = PrefixCache(budget=20 * ONE)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(200):
            tokens = text(*(chance.randrange(3) for _ in range(chance.randint(1, 6))))
            lease = cache.match("instruct", tokens)
            found = [block.kv[0, 0, 0, 0, 0].item() for block in lease.blocks]
            assert found == [BLOCK * i for i in range(len(found))]
            insert(cache, tokens)
            cache.extend(lease, "instruct", tokens)
            lease.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    stats = cache.stats()
    assert stats.bytes == stats.items * ONE <= 20 * ONE
    cache.limit(0)
    assert (cache.stats().items, cache.stats().bytes) == (0, 0)
