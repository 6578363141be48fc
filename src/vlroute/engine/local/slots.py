"""KV slots: one preallocated tensor with the keys and values of all running sequences of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from vlroute.engine.cache.prefix import State

#: Lengths of slots, and of keys if shapes have to be few, are rounded up to this one or to its doublings.
FIRST_LENGTH = 128


def rounded(value: int, first: int = 1) -> int:
    """`value` rounded up to `first` times a power of two."""
    step = first
    while step < value:
        step *= 2
    return step


def _recurrent_layers(config: Any) -> int:
    """Number of layers with a recurrent state instead of keys and values."""
    return sum(kind == "linear_attention" for kind in getattr(config, "layer_types", None) or ())


class KVSlots:
    """Keys and values of up to `most` sequences, `[layers, 2, slots, heads, length, width]`, each in a slot of its own.

    The keys of a head are next to each other, because attention reads them one head after the other: on a CPU, where
    reading them takes most of the time, this is twice as fast as the order in which the model computes them.

    Implements the part of transformers' `Cache` that attention uses: `update`. Before each forward call, `decoding` or
    `reading` says which tokens the call adds. Number and length of the slots grow by doubling; apart from that,
    only cached prefixes are copied (`write`), and last slots are moved to free ones (`move`). Not thread-safe.
    """

    #: transformers asks caches for it when it builds masks.
    is_compileable = False

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device, most: int) -> None:
        """Create slots without memory. `config`: the config of the text model; `most`: maximum number of slots."""
        heads = config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.most, self.max_length = most, config.max_position_embeddings
        layers = config.num_hidden_layers - _recurrent_layers(config)
        self.kv = torch.empty(layers, 2, 0, heads, 0, width, dtype=dtype, device=device)
        # keys and values of each layer, `[slots, heads, length, width]`, and the same flat, `[…, width]`
        self._layers: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._places: torch.Tensor | None = None  # of each head of each new token in a layer, `[tokens, heads]`
        self._new: tuple[torch.Tensor, torch.Tensor] | None = None  # its row and place in the call; None: one per row
        self._rows: torch.Tensor | int | None = None  # slots that attention reads, or the number of the first ones;
        # None: only the new tokens
        self._length = 0

    @property
    def token_bytes(self) -> int:
        """Size of the keys and values of one token in bytes."""
        layers, two, _, heads, _, width = self.kv.shape
        return int(layers * two * heads * width * self.kv.element_size())

    @property
    def count(self) -> int:
        """Number of slots."""
        return int(self.kv.shape[2])

    @property
    def length(self) -> int:
        """Maximum number of tokens of a slot."""
        return int(self.kv.shape[4])

    def bytes_of(self, count: int, length: int) -> int:
        """Size of so many slots of so many tokens in bytes."""
        return count * length * self.token_bytes

    @property
    def nbytes(self) -> int:
        """Size of all slots in bytes."""
        return self.bytes_of(self.count, self.length)

    def shape_for(self, sequences: int, tokens: int) -> tuple[int, int]:
        """Number and length of the slots for so many sequences, the longest of which has `tokens` tokens."""
        most = rounded(self.max_length, FIRST_LENGTH)
        return min(rounded(sequences), self.most), min(rounded(tokens, FIRST_LENGTH), most)

    def resize(self, used: Sequence[int], count: int, length: int) -> None:
        """Allocate `count` slots of `length` tokens. The slots `used` become the first ones, in order."""
        old, kept = self.kv, min(length, self.length)
        layers, two, _, heads, _, width = old.shape
        # zeros, not garbage: attention multiplies masked values by zero, and NaN times zero is NaN
        self.kv = old.new_zeros(layers, two, count, heads, length, width)
        self._layers = [_views(one) for one in self.kv]
        for new, slot in enumerate(used):
            self.kv[:, :, new, :, :kept] = old[:, :, slot, :, :kept]

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first tokens of a slot to another one."""
        self.kv[:, :, target, :, :tokens] = self.kv[:, :, source, :, :tokens]

    def write(self, slot: int, blocks: Sequence[torch.Tensor], state: State | None = None) -> None:
        """Begin a sequence in a slot with a cached prefix.

        Args:
            slot: The slot.
            blocks: Keys and values of the prefix, each `[layers, 2, heads, tokens, width]`.
            state: States of the recurrent layers after the prefix, if there are such layers.
        """
        if blocks:
            tokens = sum(block.shape[3] for block in blocks)
            self.kv[:, :, slot, :, :tokens] = torch.cat([*blocks], dim=3)

    def read(self, slot: int, start: int, end: int) -> torch.Tensor:
        """A copy of the tokens `start` to `end` (exclusive) of a slot, `[layers, 2, heads, tokens, width]`."""
        return self.kv[:, :, slot, :, start:end].clone(memory_format=torch.contiguous_format)

    def state(self, slot: int) -> State | None:
        """A copy of what the recurrent layers hold: the last inputs of the convolutions, and the states.

        `[layers, kernel - 1, channels]` and `[layers, heads, key width, width]`; None if there are no such layers.
        """
        return None

    def decoding(self, rows: int, cached: torch.Tensor, length: int, active: torch.Tensor) -> torch.Tensor:
        """Prepare a step that adds one token to each of the first `rows` slots.

        Args:
            rows: Number of slots that take part, from the first one on.
            cached: Number of tokens that each of them holds, `[rows]`.
            length: Number of keys that attention reads.
            active: Whether a sequence goes on in the row, 1 or 0, `[rows]`. The token of another row has no effect on
                states; its keys and values are replaced when the slot gets its next token.

        Returns:
            The attention mask, `[rows, 1, 1, length]`.
        """
        self._places, self._new = self._at(torch.arange(rows, device=cached.device), cached), None
        self._rows, self._length = rows, length
        return (torch.arange(length, device=cached.device) <= cached[:, None])[:, None, None]

    def reading(self, slots: Sequence[int], cached: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """Prepare a step that adds several tokens to each of `slots`.

        Args:
            slots: The slot of each sequence.
            cached: Number of tokens that each slot holds.
            lengths: Number of tokens that are added to each; shorter rows are padded at the right.

        Returns:
            The attention mask, `[sequences, 1, longest, keys]`.
        """
        device, longest = self.kv.device, max(lengths)
        past = torch.tensor(cached)[:, None]
        new = torch.tensor(lengths)[:, None]
        at = torch.arange(longest)[None]
        row, place = torch.nonzero(at < new, as_tuple=True)
        slot = torch.tensor(slots)
        self._places = self._at(slot[row].to(device), (past + at)[row, place].to(device))
        self._new = row.to(device), place.to(device)
        self._rows = slot.to(device) if max(cached) else None
        self._length = max(map(sum, zip(cached, lengths, strict=True)))
        keys = torch.arange(self._length, device=device)
        # a padded query sees what the last one sees, because the softmax over no key is undefined
        reach = torch.minimum(past + at, past + new - 1).to(device)
        return (keys[None, None] <= reach[..., None])[:, None]

    def _at(self, slot: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """Index of each head of tokens among those of all tokens in a layer, `[tokens, heads]`."""
        heads = torch.arange(self.kv.shape[3], device=slot.device)
        return (slot[:, None] * len(heads) + heads) * self.length + place[:, None]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new keys and values `[rows, heads, tokens, width]` of a layer; returns those that attention reads.

        See `Cache.update` of transformers.
        """
        assert self._places is not None, "`decoding` or `reading` comes first"
        # compiled code must change views that it has made itself
        k, v, flat_k, flat_v = _views(self.kv[layer]) if torch.compiler.is_compiling() else self._layers[layer]
        if self._new is None:
            flat_k[self._places], flat_v[self._places] = keys.squeeze(2), values.squeeze(2)
        else:
            flat_k[self._places] = keys.transpose(1, 2)[self._new]
            flat_v[self._places] = values.transpose(1, 2)[self._new]
        if self._rows is None:
            return keys, values
        if isinstance(self._rows, torch.Tensor):
            return k[self._rows, :, : self._length], v[self._rows, :, : self._length]
        rows, length = self._rows, self._length
        return k.narrow(0, 0, rows).narrow(2, 0, length), v.narrow(0, 0, rows).narrow(2, 0, length)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not used for the explicit masks and positions of this engine; transformers may ask nevertheless."""
        return self._length


def _views(layer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values of a layer, `[slots, heads, length, width]`; and both as `[slots · heads · length, width]`."""
    k, v = layer.unbind()
    return k, v, k.view(-1, k.shape[-1]), v.view(-1, v.shape[-1])


class RecurrentSlots(KVSlots):
    """KV slots of a model that also has recurrent layers, with their states of constant size."""

    def __init__(self, config: Any, dtype: torch.dtype, device: torch.device, most: int) -> None:
        """See `KVSlots`."""
        super().__init__(config, dtype, device, most)
        layers, heads, width = _recurrent_layers(config), config.linear_num_value_heads, config.linear_key_head_dim
        channels = 2 * config.linear_num_key_heads * width + heads * config.linear_value_head_dim
        self._inputs = torch.empty(layers, 0, config.linear_conv_kernel_dim - 1, channels, dtype=dtype, device=device)
        self._states = torch.empty(layers, 0, heads, width, config.linear_value_head_dim, device=device)
        self._slot: torch.Tensor | None = None  # slots of the rows, while prompts are read
        self._ends: torch.Tensor | None = None  # place of the last inputs of each row, `[rows, kernel - 1]`
        #: Which tokens have an effect, 1 or 0, `[rows, length, 1]`; None: all.
        self.steps: torch.Tensor | None = None
        #: Whether the call adds one token to each of the first slots.
        self.decodes = False

    @property
    def state_bytes(self) -> int:
        """Size of the states of one sequence in bytes."""
        both = self._inputs, self._states
        return sum(one.shape[0] * math.prod(one.shape[2:]) * one.element_size() for one in both)

    def bytes_of(self, count: int, length: int) -> int:
        """See `KVSlots`."""
        return super().bytes_of(count, length) + count * self.state_bytes

    def resize(self, used: Sequence[int], count: int, length: int) -> None:
        """See `KVSlots`."""
        super().resize(used, count, length)
        old = self._inputs, self._states
        self._inputs, self._states = (one.new_zeros(one.shape[0], count, *one.shape[2:]) for one in old)
        for new, slot in enumerate(used):
            self._inputs[:, new], self._states[:, new] = old[0][:, slot], old[1][:, slot]

    def move(self, source: int, target: int, tokens: int) -> None:
        """See `KVSlots`."""
        super().move(source, target, tokens)
        self._inputs[:, target], self._states[:, target] = self._inputs[:, source], self._states[:, source]

    def write(self, slot: int, blocks: Sequence[torch.Tensor], state: State | None = None) -> None:
        """See `KVSlots`; without `state` the sequence begins anew."""
        super().write(slot, blocks)
        self._inputs[:, slot], self._states[:, slot] = (0.0, 0.0) if state is None else state

    def state(self, slot: int) -> State | None:
        """See `KVSlots`."""
        return self._inputs[:, slot].clone(), self._states[:, slot].clone()

    def decoding(self, rows: int, cached: torch.Tensor, length: int, active: torch.Tensor) -> torch.Tensor:
        """See `KVSlots`."""
        self.decodes, self._slot, self.steps = True, None, active[:, None, None].float()
        return super().decoding(rows, cached, length, active)

    def reading(self, slots: Sequence[int], cached: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """See `KVSlots`."""
        device, new = self.kv.device, torch.tensor(lengths)
        self.decodes, self._slot = False, torch.tensor(slots).to(device)
        self._ends = (new[:, None] + torch.arange(self._inputs.shape[2])).to(device)
        padded = min(lengths) < max(lengths)
        self.steps = (torch.arange(max(lengths)) < new[:, None])[..., None].float().to(device) if padded else None
        return super().reading(slots, cached, lengths)

    def convolution(self, layer: int, new: torch.Tensor) -> torch.Tensor:
        """Add inputs of the convolution of a layer.

        Args:
            layer: Number of the layer among the recurrent ones.
            new: Inputs of the new tokens, `[rows, tokens, channels]`.

        Returns:
            These and the `kernel - 1` inputs before them, `[rows, kernel - 1 + tokens, channels]`.
        """
        inputs = self._inputs[layer]
        if self._slot is None:
            past = inputs[: len(new)]
            window = torch.cat([past, new], 1)
            past.copy_(window[:, 1:] if self.steps is None else torch.where(self.steps > 0, window[:, 1:], past))
            return window
        assert self._ends is not None, "`reading` comes first"
        window = torch.cat([inputs[self._slot], new], 1)
        inputs[self._slot] = window[torch.arange(len(new), device=new.device)[:, None], self._ends]
        return window

    def first_states(self, layer: int) -> torch.Tensor:
        """The states of the rows of a decode step, to be changed in place, `[rows, heads, key width, width]`."""
        assert self.steps is not None, "`decoding` comes first"
        return self._states[layer, : len(self.steps)]

    def states(self, layer: int) -> torch.Tensor:
        """A copy of the states of the rows whose prompts are read, `[rows, heads, key width, width]`."""
        return self._states[layer, self._slot]

    def set_states(self, layer: int, states: torch.Tensor) -> None:
        """Store the states of these rows."""
        self._states[layer, self._slot] = states


def slots_for(config: Any, dtype: torch.dtype, device: torch.device, most: int) -> KVSlots:
    """Slots for a text model with this config; see `KVSlots`."""
    return (RecurrentSlots if _recurrent_layers(config) else KVSlots)(config, dtype, device, most)
