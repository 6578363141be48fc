"""KV slots: growth without loss, moves, masks, and the keys that attention reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlroute.engine.local.slots import FIRST_LENGTH, KVSlots, rounded

LAYERS, HEADS, WIDTH = 2, 3, 4


def config(**changed: Any) -> Any:
    fields = {"num_hidden_layers": LAYERS, "num_key_value_heads": HEADS, "head_dim": WIDTH, "hidden_size": 99,
              "num_attention_heads": 6, "max_position_embeddings": 1000}  # fmt: skip
    return SimpleNamespace(**fields | changed)


def slots_of(count: int = 0, length: int = 0, most: int = 32) -> KVSlots:
    slots = KVSlots(config(), torch.float32, torch.device("cpu"), most)
    if count:
        slots.resize([], count, length)
    return slots


def content(tokens: int, fill: float) -> torch.Tensor:
    """Keys and values of some tokens: each has a value of its own."""
    shape = (LAYERS, 2, HEADS, tokens, WIDTH)
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape) + fill


def filled(count: int, length: int, tokens: int) -> tuple[KVSlots, list[torch.Tensor]]:
    slots = slots_of(count, length)
    parts = [content(tokens, 1e4 * (slot + 1)) for slot in range(count)]
    for slot, part in enumerate(parts):
        slots.write(slot, [part])
    return slots, parts


@given(st.integers(1, 5000), st.sampled_from([1, 2, 128]))
def test_sizes_are_rounded_up_to_doublings(value: int, first: int) -> None:
    size = rounded(value, first)
    assert size >= value
    assert size == first or size // 2 < value
    assert (size // first).bit_count() == 1


def test_without_sequences_there_is_no_memory() -> None:
    slots = slots_of()
    assert (slots.count, slots.length, slots.nbytes) == (0, 0, 0)
    assert slots.token_bytes == LAYERS * 2 * HEADS * WIDTH * 4
    slots.resize([], 2, 128)
    assert slots.nbytes == 2 * 128 * slots.token_bytes
    slots.resize([], 0, 0)
    assert slots.nbytes == 0


def test_the_width_of_a_head_may_follow_from_the_size() -> None:
    slots = KVSlots(config(head_dim=None, hidden_size=48), torch.float32, torch.device("cpu"), 1)
    assert slots.kv.shape[-1] == 8


@given(st.integers(1, 40), st.integers(1, 1100))
def test_shapes_have_room_within_the_limits(sequences: int, tokens: int) -> None:
    slots = slots_of(most=24)
    count, length = slots.shape_for(sequences, tokens)
    assert count == min(rounded(sequences), 24)
    assert FIRST_LENGTH <= length <= 1024
    assert length >= min(tokens, 1024)


def test_growth_keeps_what_is_used_in_order() -> None:
    slots, parts = filled(4, 128, 10)
    slots.resize([3, 1], 8, 256)
    assert (slots.count, slots.length) == (8, 256)
    assert torch.equal(slots.read(0, 0, 10), parts[3])
    assert torch.equal(slots.read(1, 0, 10), parts[1])
    assert not slots.kv[:, :, 2:].any()
    assert not slots.kv[:, :, :, :, 10:].any()  # zeros: attention multiplies masked values by zero


def test_shrinking_keeps_the_first_tokens() -> None:
    slots, parts = filled(4, 256, 10)
    slots.resize([2], 1, 128)
    assert torch.equal(slots.read(0, 0, 10), parts[2])


def test_a_move_copies_the_tokens_of_a_sequence() -> None:
    slots, parts = filled(3, 128, 10)
    slots.move(2, 0, 7)
    assert torch.equal(slots.read(0, 0, 7), parts[2][:, :, :, :7])
    assert torch.equal(slots.read(0, 7, 10), parts[0][:, :, :, 7:])
    assert torch.equal(slots.read(1, 0, 10), parts[1])


def test_blocks_are_written_one_after_the_other_and_never_changed() -> None:
    slots = slots_of(2, 128)
    blocks = [content(16, fill) for fill in (0, 1e4, 2e4)]
    before = [block.clone() for block in blocks]
    slots.write(1, blocks)
    slots.write(0, [])
    assert torch.equal(slots.read(1, 0, 48), torch.cat(blocks, dim=3))
    slots.kv.fill_(-1)
    assert all(torch.equal(a, b) for a, b in zip(blocks, before, strict=True))


def test_what_is_read_is_a_copy() -> None:
    slots, parts = filled(1, 128, 32)
    block = slots.read(0, 16, 32)
    slots.kv.zero_()
    assert block.shape == (LAYERS, 2, HEADS, 16, WIDTH)
    assert torch.equal(block, parts[0][:, :, :, 16:32])
    assert block.untyped_storage().nbytes() == 16 * slots.token_bytes  # not a view of all slots


def test_the_keys_of_a_head_are_next_to_each_other() -> None:
    """Attention reads the keys one head after the other; this order is what makes a step on a CPU fast."""
    slots, _ = filled(2, 128, 10)
    assert slots.kv.is_contiguous()
    assert slots.kv.shape == (LAYERS, 2, 2, HEADS, 128, WIDTH)
    slots.decoding(2, torch.tensor([10, 10]), 11, torch.ones(2))
    for layer in range(LAYERS):
        new = torch.randn(2, 2, HEADS, 1, WIDTH)
        for read, all_ in zip(slots.update(new[0], new[1], layer), slots.kv[layer], strict=True):
            assert read.stride()[2:] == (WIDTH, 1)
            assert read.data_ptr() == all_.data_ptr()  # a view: nothing is copied for a step


def test_a_decode_step_adds_one_token_to_each_slot() -> None:
    slots, parts = filled(4, 128, 10)
    cached = torch.tensor([4, 10, 0])
    mask = slots.decoding(3, cached, 16, torch.ones(3))
    assert mask.shape == (3, 1, 1, 16)
    assert mask[:, 0, 0].sum(-1).tolist() == [5, 11, 1]  # the new token sees itself and all before it
    assert all(row[0, 0, : n + 1].all() for row, n in zip(mask, cached.tolist(), strict=True))
    for layer in range(LAYERS):
        new = torch.randn(2, 3, HEADS, 1, WIDTH)
        keys, values = slots.update(new[0], new[1], layer)
        assert keys.shape == values.shape == (3, HEADS, 16, WIDTH)
        for row, at in enumerate(cached.tolist()):
            assert torch.equal(keys[row, :, at], new[0, row, :, 0])
            assert torch.equal(values[row, :, at], new[1, row, :, 0])
            assert torch.equal(keys[row, :, :at], parts[row][layer, 0, :, :at])
        assert torch.equal(slots.kv[layer, 0, 3, :, :10], parts[3][layer, 0])  # does not take part


def test_chunks_of_several_prompts_are_added_and_padding_is_not() -> None:
    slots, parts = filled(4, 128, 10)
    order, cached, lengths = [2, 0], [4, 6], [3, 5]
    mask = slots.reading(order, cached, lengths)
    assert mask.shape == (2, 1, 5, 11)
    for row in range(2):
        for query in range(lengths[row]):
            assert mask[row, 0, query].tolist() == [key <= cached[row] + query for key in range(11)]
        assert mask[row, 0, lengths[row] :].any(-1).all()  # the softmax over no key is undefined
    for layer in range(LAYERS):
        new = torch.randn(2, 2, HEADS, 5, WIDTH)
        keys, values = slots.update(new[0], new[1], layer)
        assert keys.shape == (2, HEADS, 11, WIDTH)
        for row, slot in enumerate(order):
            start, end = cached[row], cached[row] + lengths[row]
            for pair, got, stored in ((new[0], keys, 0), (new[1], values, 1)):
                assert torch.equal(got[row, :, start:end], pair[row, :, : lengths[row]])
                assert torch.equal(got[row, :, :start], parts[slot][layer, stored, :, :start])
                assert torch.equal(slots.kv[layer, stored, slot, :, start:end], pair[row, :, : lengths[row]])
                assert torch.equal(slots.kv[layer, stored, slot, :, end:10], parts[slot][layer, stored, :, end:])


def test_prompts_without_cached_tokens_see_their_own_keys_only() -> None:
    slots, _ = filled(2, 128, 10)
    mask = slots.reading([1, 0], [0, 0], [2, 4])
    new = torch.randn(2, 2, HEADS, 4, WIDTH)
    keys, values = slots.update(new[0], new[1], 0)
    assert torch.equal(keys, new[0])
    assert torch.equal(values, new[1])
    assert mask.shape == (2, 1, 4, 4)
    assert torch.equal(slots.kv[0, 0, 0, :, :4], new[0, 1])


@pytest.mark.parametrize("chunks", [[20], [7, 13], [1] * 20, [16, 4]])
def test_a_prompt_in_chunks_leaves_the_same_keys(chunks: list[int]) -> None:
    new = torch.randn(2, 1, HEADS, 20, WIDTH)
    slots, start = slots_of(1, 128), 0
    for length in chunks:
        slots.reading([0], [start], [length])
        for layer in range(LAYERS):
            slots.update(new[0, :, :, start : start + length], new[1, :, :, start : start + length], layer)
        start += length
    assert torch.equal(slots.kv[0, 0, 0, :, :20], new[0, 0])
    assert torch.equal(slots.kv[1, 1, 0, :, :20], new[1, 0])
