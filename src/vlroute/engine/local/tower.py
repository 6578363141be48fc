"""The vision tower of Qwen3-VL and Qwen3.5 in few operations, for any number of pictures and videos at once.

The computations and weights are those of transformers. What depends on the size of a picture only (positions and their
embeddings) is computed once per size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.nn.functional import gelu, layer_norm, linear

from vlroute.engine.cache.vision import Grid
from vlroute.engine.local.attention import attend
from vlroute.engine.local.language import is_plain

#: Positions are kept for items of at most so many patches; for larger ones the tower takes much longer than they.
KEPT = 4096
#: Merged features and those of each deepstack layer, each `[tokens, width]`.
Output = list[torch.Tensor]


class Tower:
    """Runs the vision tower of a checkpoint; see `vision_tower`."""

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        self.merge, self.side = visual.spatial_merge_size, visual.num_grid_per_side
        self.heads = visual.config.num_heads
        patch = visual.patch_embed.proj
        # the kernel of the convolution covers a patch exactly, so it is a linear layer
        self.patch = patch.weight.data.flatten(1), patch.bias
        self._kept = lru_cache(maxsize=64)(self._positions)

    def __call__(self, pixels: torch.Tensor, grids: Sequence[Grid]) -> Output:
        """Features of all items.

        Args:
            pixels: Patches of all items in order, `[patches, channels · frames · patch²]`.
            grids: (t, h, w) of each item in patches.

        Returns:
            The merged features and those of each deepstack layer, `[patches / merge², width]` each.
        """
        parts = [self._kept(grid) if math.prod(grid) <= KEPT else self._positions(grid) for grid in grids]
        embeds, cos, sin = parts[0] if len(parts) == 1 else (torch.cat(column) for column in zip(*parts, strict=True))
        lengths = [h * w for t, h, w in grids for _ in range(t)]  # frames do not see each other
        hidden = linear(pixels, *self.patch) + embeds
        count, size = hidden.shape
        cos, sin = cos[:, None, None], sin[:, None, None]
        deepstack, layers = [], getattr(self.visual, "deepstack_visual_indexes", ())
        for i, block in enumerate(self.visual.blocks):
            x = layer_norm(hidden, (size,), block.norm1.weight, block.norm1.bias, block.norm1.eps)
            qkv = block.attn.qkv(x).view(count, 3, self.heads, -1)
            qk = qkv[:, :2].float()
            # `sin` holds the sign of the rotated first half
            qk = (qk * cos + qk.roll(qk.shape[-1] // 2, -1) * sin).to(hidden.dtype)
            hidden = hidden + block.attn.proj(self._attend(qk[:, 0], qk[:, 1], qkv[:, 2], lengths))
            x = layer_norm(hidden, (size,), block.norm2.weight, block.norm2.bias, block.norm2.eps)
            hidden = hidden + block.mlp.linear_fc2(block.mlp.act_fn(block.mlp.linear_fc1(x)))
            if i in layers:
                deepstack.append(_merged(self.visual.deepstack_merger_list[layers.index(i)], hidden))
        return [_merged(self.visual.merger, hidden), *deepstack]

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Attention within each frame; neighbors of equal length share a call."""
        outputs, start = [], 0
        for length, group in groupby(lengths):
            frames = len([*group])
            part = slice(start, start := start + frames * length)
            q, k, v = (one[part].unflatten(0, (frames, length)).transpose(1, 2) for one in (query, key, value))
            outputs.append(attend(q, k, v).flatten(0, 1))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _positions(self, grid: Grid) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Position embeddings, and cosines and signed sines of the rotary embedding, for each patch of a grid."""
        t, h, w = grid
        weight = self.visual.pos_embed.weight
        # bilinear interpolation of the learned grid, whose corners are those of the picture
        rows, columns = (np.linspace(0, self.side - 1, n, dtype=np.float32) for n in (h, w))
        grid_rows, grid_columns = (a.ravel() for a in np.meshgrid(rows, columns, indexing="ij"))
        embeds = torch.zeros(h * w, weight.shape[1], dtype=torch.float32, device=weight.device)
        for below in (True, False):
            for left in (True, False):
                row, row_share = _neighbor(grid_rows, below, self.side)
                column, column_share = _neighbor(grid_columns, left, self.side)
                index = torch.from_numpy(row * self.side + column).to(weight.device)
                share = torch.from_numpy(row_share * column_share).to(weight.device)
                embeds += weight[index].float() * share[:, None]
        order = np.arange(h * w).reshape(h // self.merge, self.merge, w // self.merge, self.merge)
        order = np.tile(order.transpose(0, 2, 1, 3).ravel(), t)
        inverse = self.visual.rotary_pos_emb.inv_freq.float()
        at = torch.from_numpy(np.stack([order % (h * w) // w, order % w])).to(weight.device)
        angles = (at[..., None].float() * inverse).permute(1, 0, 2).flatten(1)
        cos, sin = angles.cos(), angles.sin()
        picked = embeds[torch.from_numpy(order).to(weight.device)].to(weight.dtype)
        return picked, torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def _neighbor(at: np.ndarray[Any, Any], below: bool, side: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Index and share of the learned position before or after each fractional one."""
    low = at.astype(np.int64)
    share = at - low
    return (low, 1 - share) if below else (np.minimum(low + 1, side - 1), share)


def _merged(merger: Any, hidden: torch.Tensor) -> torch.Tensor:
    size, norm = merger.hidden_size, merger.norm
    x = hidden.view(-1, size) if merger.use_postshuffle_norm else hidden
    x = layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).view(-1, size)
    merged: torch.Tensor = merger.linear_fc2(gelu(merger.linear_fc1(x)))
    return merged


def vision_tower(model: Any) -> Callable[[torch.Tensor, Sequence[Grid]], Output]:
    """The vision tower of a checkpoint as a function with the arguments of `Tower.__call__`.

    A quantized tower, or one with another attention, runs with the modules of transformers.
    """
    visual = model.model.visual
    if visual.config._attn_implementation == "sdpa" and is_plain(visual):  # noqa: SLF001 (there is no public name)
        return Tower(visual)

    def by_modules(pixels: torch.Tensor, grids: Sequence[Grid]) -> Output:
        output = visual(pixels, grid_thw=torch.tensor(grids, device=pixels.device), return_dict=True)
        return [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]

    return by_modules
