"""Chooses the attention kernel of the language model for calls of the scheduler, without process-wide switches.

On CUDA, `scaled_dot_product_attention` of torch may choose cuDNN, which builds a plan for every new pair of query and
key length. That takes 45 to 730 ms each, and the keys of a growing conversation have a new length at every token. The
kernels named here take any length at no further cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface

#: Name under which transformers finds `efficient_attention`.
NAME = "vlroute_efficient"
#: The memory-efficient kernel reads masks in rows of a multiple of this many elements.
ALIGNED = 8
_EFFICIENT = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001 (the public function may choose cuDNN)


def kernel(model: Any) -> str:
    """The kernel of the language model, in words."""
    if _uses_efficient(model):
        return "memory-efficient attention with grouped keys (any length)"
    return f"{model.config.text_config._attn_implementation} of transformers"  # noqa: SLF001 (there is no public name)


@contextmanager
def chosen(model: Any) -> Iterator[None]:
    """Within this block, the language model uses the chosen kernel. Only one thread may call the model."""
    config = model.model.language_model.config
    before = config._attn_implementation  # noqa: SLF001
    if _uses_efficient(model):
        config._attn_implementation = NAME  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001


def _uses_efficient(model: Any) -> bool:
    return bool(model.device.type == "cuda") and bool(model.config.text_config._attn_implementation == "sdpa")  # noqa: SLF001


def efficient_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the memory-efficient kernel, in the form of an attention function of transformers.

    The query heads that share a key head are rows of one query, so that keys are not repeated.

    Args:
        module: The attention layer.
        query: `[batch, heads, queries, width]`.
        key: `[batch, key heads, keys, width]`.
        value: As `key`.
        attention_mask: Which keys each query sees, boolean `[batch or 1, 1, queries, keys]`.
        scaling: Factor of the scores.

    Returns:
        The output, `[batch, queries, heads, width]`, and no weights.
    """
    batch, heads, queries, width = query.shape
    groups = heads // key.shape[1]
    rows = query.reshape(batch, heads // groups, groups * queries, width)
    mask = attention_mask.expand(batch, 1, queries, -1).repeat(1, 1, groups, 1)
    bias = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~mask, -torch.inf)
    keys = bias.shape[-1]
    if padding := -keys % ALIGNED:
        bias = torch.nn.functional.pad(bias, (0, padding))[..., :keys]
    bias = bias.expand(-1, heads // groups, -1, -1)
    out = _EFFICIENT(rows, key, value, bias, False, scale=scaling)[0]
    return out.reshape(batch, heads, queries, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, efficient_attention)
