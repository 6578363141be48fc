"""The language model of Qwen3-VL in few operations, over KV slots.

On a small model, and in every decode step, starting the many operations and modules of a layer in transformers takes
longer than running them. These are the same computations on the same weights, with joined projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.nn.functional import linear, rms_norm, silu
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vlroute.engine.local.attention import attend, prepared
from vlroute.engine.local.slots import KVSlots
from vlroute.errors import SettingsError

#: On a CPU, weights of more elements are not joined. The copy would be in memory beside the pages of the file, and
#: starting two operations takes no time that counts there.
LARGE = 2**21
Project: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
#: Name of the argument of transformers for the KV cache; older releases call it `past_key_values`.
CACHE = "cache" if "cache" in signature(Qwen3VLTextModel.forward).parameters else "past_key_values"


def is_plain(*modules: nn.Module) -> bool:
    """Whether all linear layers are those of torch, so that their weights may be used directly; not quantized ones."""
    return all(_is_plain(one) for module in modules for one in module.modules() if hasattr(one, "in_features"))


def _is_plain(layer: Any) -> bool:
    """The same for one layer. Compressed-tensors keeps its class, but replaces its `forward` or its weight."""
    weight = layer._parameters.get("weight")  # noqa: SLF001
    return (
        type(layer) is nn.Linear
        and weight is not None
        and type(weight.data) is torch.Tensor
        and weight.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))  # noqa: SLF001
    )


def joined(*layers: nn.Linear) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight and bias for several linear layers of one input. The layers become views of it: no copy remains."""
    weight = torch.cat([layer.weight.data for layer in layers])
    at = 0
    for layer in layers:
        layer.weight.data = weight[at : at + layer.out_features]
        at += layer.out_features
    bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
    return weight, bias


class Rotary:
    """Rotary embedding in time, height and width, whose frequencies are interleaved (M-RoPE of Qwen3-VL)."""

    def __init__(self, rotary: Any) -> None:
        """`rotary`: the module of transformers."""
        axis = torch.zeros(len(rotary.inv_freq), dtype=torch.long)  # of each frequency
        for one in (1, 2):
            axis[one : 3 * rotary.mrope_section[one] : 3] = one
        self.axis = axis.to(rotary.inv_freq.device)
        self.frequencies, self.scaling = rotary.inv_freq.float(), float(rotary.attention_scaling)

    def __call__(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions.

        Args:
            positions: `[3, rows, length]`; `[rows, length]` if they are equal on all axes.
            dtype: Of the result.

        Returns:
            Both `[rows, length, 1, rotated width]`; the sines of the first half are negated.
        """
        at = positions[..., None] if positions.dim() == 2 else positions[self.axis].permute(1, 2, 0)
        angles = (at.float() * self.frequencies)[:, :, None]
        cos, sin = (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def project(*layers: nn.Module) -> Project:
    """The outputs of linear layers of one input, side by side; one operation unless they are quantized or large."""
    if is_plain(*layers):
        plain: tuple[Any, ...] = layers
        if len(plain) == 1:
            weight, bias = plain[0].weight, plain[0].bias
            return lambda x: linear(x, weight, bias)
        if plain[0].weight.device.type != "cpu" or sum(layer.weight.numel() for layer in plain) <= LARGE:
            weight, bias = joined(*plain)
            return lambda x: linear(x, weight, bias)
    return lambda x: layers[0](x) if len(layers) == 1 else torch.cat([layer(x) for layer in layers], -1)


def feed_forward(mlp: Any) -> Project:
    """The feed-forward part of a layer: with a gate, or with experts, for which the module of transformers is used."""
    if not hasattr(mlp, "gate_proj"):
        return lambda x: cast("torch.Tensor", mlp(x))
    gate_up, down = project(mlp.gate_proj, mlp.up_proj), project(mlp.down_proj)

    def forward(x: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up(x).chunk(2, -1)
        return down(silu(gate) * up)

    return forward


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one decoder layer. `scales`: of the norms of queries and keys, `[heads + key heads, width]`."""

    before: torch.Tensor
    qkv: Project
    scales: torch.Tensor
    out: Project
    between: torch.Tensor
    mlp: Project


class LanguageModel:
    """Runs the language model of a Qwen3-VL checkpoint, dense or with experts; see `language_model`."""

    def __init__(self, body: Any) -> None:
        config = body.config
        self.heads, self.key_heads = config.num_attention_heads, config.num_key_value_heads
        self.eps, self.final = config.rms_norm_eps, body.norm.weight
        self.rotary, self.width = Rotary(body.rotary_emb), 2 * len(body.rotary_emb.inv_freq)
        self.layers = [self._layer(layer) for layer in body.layers]

    def _layer(self, layer: Any) -> _Layer:
        attention = layer.self_attn
        scales = [attention.q_norm.weight.expand(self.heads, -1), attention.k_norm.weight.expand(self.key_heads, -1)]
        return _Layer(
            layer.input_layernorm.weight, project(attention.q_proj, attention.k_proj, attention.v_proj),
            torch.cat(scales), project(attention.o_proj),
            layer.post_attention_layernorm.weight, feed_forward(layer.mlp),
        )  # fmt: skip

    def __call__(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        slots: KVSlots,
        seen: torch.Tensor | None = None,
        deepstack: Sequence[torch.Tensor] = (),
        last: torch.Tensor | None = None,
        before_layer: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm.

        Args:
            embeds: Embeddings, `[rows, length, width]`.
            positions: In time, height and width, `[3, rows, length]`; `[rows, length]` if they are equal, as in text.
            mask: Which keys each query sees, `[rows, 1, length, keys]`.
            slots: KV slots, prepared for this call.
            seen: Places of the tokens of pictures and videos among all tokens, `[tokens]`.
            deepstack: Features that are added to these tokens after each of the first layers.
            last: The place of the last token of each row, `[rows]`, if only its hidden state is needed. The last layer
                then computes only keys and values of the other tokens.
            before_layer: Called before each layer.

        Returns:
            `[rows, length, width]`, or `[rows, 1, width]` with `last`.
        """
        rows, length, size = embeds.shape
        heads, both = self.heads, self.heads + self.key_heads
        cos, sin = self.rotary(positions, embeds.dtype)
        bias = prepared(mask, heads // self.key_heads, embeds.dtype)
        half = self.width // 2
        hidden = embeds
        for i, layer in enumerate(self.layers):
            if before_layer is not None:
                before_layer()
            x = rms_norm(hidden, (size,), layer.before, self.eps)
            qk, values = layer.qkv(x).view(rows, length, -1, self.width).split((both, self.key_heads), 2)
            qk = rms_norm(qk, (self.width,), None, self.eps) * layer.scales
            queries, keys = torch.addcmul(qk * cos, qk.roll(half, -1), sin).split((heads, self.key_heads), 2)
            keys, values = slots.update(keys.transpose(1, 2), values.transpose(1, 2), i)
            if last is not None and i == len(self.layers) - 1 and length > 1:
                row = torch.arange(rows, device=last.device)
                hidden, queries = hidden[row, last][:, None], queries[row, last][:, None]
                bias = prepared(mask[row, :, last][:, :, None], heads // self.key_heads, embeds.dtype)
                seen = None
            hidden = hidden + layer.out(attend(queries.transpose(1, 2), keys, values, bias))
            x = rms_norm(hidden, (size,), layer.between, self.eps)
            hidden = hidden + layer.mlp(x)
            if seen is not None and i < len(deepstack):
                hidden.view(-1, size).index_add_(0, seen, deepstack[i].to(hidden.dtype))
        return rms_norm(hidden, (size,), self.final, self.eps)


def language_model(model: Any) -> Callable[..., torch.Tensor]:
    """The language model of a checkpoint as a function with the arguments of `LanguageModel.__call__`.

    A quantized model, or one with eager attention or another position encoding, runs with the modules of transformers.

    Args:
        model: A Qwen3-VL model.

    Returns:
        The function.

    Raises:
        SettingsError: The attention of a quantized model takes no masks.
    """
    body = model.model.language_model
    attention = body.config._attn_implementation  # noqa: SLF001 (transformers has no public name)
    if attention != "eager" and body.rotary_emb.rope_type == "default" and is_plain(body):
        return LanguageModel(body)
    if attention not in ("sdpa", "eager"):
        raise SettingsError(f"attn_implementation={attention!r} cannot be used with a quantized model; leave it out")
    return _Modules(body)


class _Modules:
    """The language model of transformers with the same arguments."""

    def __init__(self, body: Any) -> None:
        self._body, self._eager = body, body.config._attn_implementation == "eager"  # noqa: SLF001

    def __call__(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        slots: KVSlots,
        seen: torch.Tensor | None = None,
        deepstack: Sequence[torch.Tensor] = (),
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self._eager:  # it adds the mask to the scores
            least = torch.finfo(embeds.dtype).min
            mask = torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill_(~mask, least)
        if positions.dim() == 2:
            positions = positions.expand(3, -1, -1)
        vision: dict[str, Any] = {}
        if seen is not None:
            places = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            places.view(-1)[seen] = True
            vision = {"visual_pos_masks": places, "deepstack_visual_embeds": [*deepstack]}
        options = {"attention_mask": mask, "use_cache": True, CACHE: slots, **vision}
        hidden: torch.Tensor = self._body(inputs_embeds=embeds, position_ids=positions, **options)[0]
        return hidden if last is None else hidden[torch.arange(len(last), device=last.device), last][:, None]
