"""Attention with an explicit choice of kernel, without process-wide switches.

On CUDA, `scaled_dot_product_attention` of torch may choose cuDNN, which builds a plan for every new pair of query and
key length. That takes 45 to 730 ms each, and prompts, and decode steps without CUDA graphs, have ever new lengths. The
memory-efficient kernel takes any length at no further cost.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

#: The memory-efficient kernel reads masks in rows of a multiple of this many elements.
ALIGNED = 8
_EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001 (no public function chooses it)


def kernel(device: torch.device, dtype: torch.dtype) -> str:
    """The attention kernel of the language model, in words."""
    if _has_efficient(device, dtype):
        return "memory-efficient kernel, the same for every length"
    return "scaled_dot_product_attention of torch"


@lru_cache
def _has_efficient(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the memory-efficient kernel runs there."""
    if device.type != "cuda" or torch.version.hip or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    return dtype != torch.bfloat16 or bool(torch.cuda.get_device_capability(device)[0] >= 8)


def prepared(mask: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """A mask in the form that `attend` takes, for all layers of a forward pass.

    Args:
        mask: Which keys each query sees, boolean `[batch, 1, queries, keys]`.
        groups: Number of query heads for each key head.
        dtype: Of the queries.

    Returns:
        What is added to the scores, `[batch, 1, groups · queries, keys]`.
    """
    bias = torch.where(mask, 0.0, -torch.inf).to(dtype)
    if groups > 1:
        bias = bias.repeat(1, 1, groups, 1)
    keys = mask.shape[-1]
    return pad(bias, (0, -keys % ALIGNED))[..., :keys] if _has_efficient(mask.device, dtype) else bias


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Scaled dot-product attention.

    Args:
        query: `[batch, heads, queries, width]`.
        key: `[batch, key heads, keys, width]`. The number of heads is a multiple of that of the key heads.
        value: As `key`.
        mask: As returned by `prepared`; by default each query sees all keys.

    Returns:
        The output, `[batch, queries, heads · width]`.
    """
    batch, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    if groups > 1:  # the heads that share keys become rows of one query, so that keys are not repeated
        query = query.reshape(batch, heads // groups, groups * queries, width)
    if _has_efficient(query.device, query.dtype):
        bias = None if mask is None else mask.expand(batch, query.shape[1], -1, -1)
        out = _EFFICIENT(query, key, value, bias, False)[0]
    else:
        out = scaled_dot_product_attention(query, key, value, mask)
    return out.reshape(batch, heads, queries, width).transpose(1, 2).reshape(batch, queries, heads * width)
