"""The language model of Qwen3.5 in few operations, over KV slots and recurrent states.

Most layers are gated delta networks (Yang et al., 2024): a state of constant size for each sequence instead of keys and
values. The computations and weights are those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import conv1d, rms_norm, silu, softplus
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from vlroute.engine.local.attention import attend, prepared
from vlroute.engine.local.language import Rotary, feed_forward, project
from vlroute.engine.local.slots import RecurrentSlots
from vlroute.errors import SettingsError

#: Added to squared lengths of queries and keys before they are normalized.
EPSILON = 1e-6


def _norm(x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm in float32, with the scale in float32."""
    return rms_norm(x.float(), x.shape[-1:], scale, eps).to(x.dtype)


def _scale(norm: Any) -> torch.Tensor:
    """These norms store the difference of their scale from 1."""
    return 1.0 + norm.weight.data.float()


class _Recurrent:
    """A gated delta network."""

    def __init__(self, layer: Any, place: int) -> None:
        """`place`: number of this layer among the recurrent ones."""
        self.place = place
        self.key_heads, self.heads = layer.num_k_heads, layer.num_v_heads
        self.key_width, self.width = layer.head_k_dim, layer.head_v_dim
        self.sizes = (layer.key_dim, layer.key_dim, layer.value_dim)
        self.inputs = project(layer.in_proj_qkv, layer.in_proj_z, layer.in_proj_b, layer.in_proj_a)
        self.out = project(layer.out_proj)
        self.kernel = layer.conv1d.weight  # [channels, 1, kernel]
        self.decay, self.bias = -layer.A_log.data.float().exp(), layer.dt_bias.data.float()
        self.norm_scale, self.eps = layer.norm.weight, layer.norm.variance_epsilon

    def __call__(self, x: torch.Tensor, slots: RecurrentSlots) -> torch.Tensor:
        rows, length = x.shape[:2]
        keys = sum(self.sizes)
        mixed, z, b, a = self.inputs(x).split((keys, self.sizes[2], self.heads, self.heads), -1)
        window = slots.convolution(self.place, mixed)  # [rows, kernel - 1 + length, channels]
        mixed = silu(conv1d(window.transpose(1, 2), self.kernel, groups=keys).transpose(1, 2))
        q, k, v = mixed.split(self.sizes, -1)
        q, k = (one.unflatten(-1, (self.key_heads, self.key_width)) for one in (q, k))
        v = v.unflatten(-1, (self.heads, self.width))
        beta, decay = b.sigmoid(), self.decay * softplus(a.float() + self.bias)
        if slots.steps is not None:  # a token without effect: it adds nothing, and nothing decays
            beta, decay = beta * slots.steps, decay * slots.steps
        out = self._step(q, k, v, beta, decay, slots) if slots.decodes else self._chunk(q, k, v, beta, decay, slots)
        out = out.to(x.dtype).float()
        hidden = rms_norm(out, (self.width,), None, self.eps).to(x.dtype) * self.norm_scale
        hidden = (hidden * silu(z.unflatten(-1, (self.heads, self.width)).float())).to(x.dtype)
        return self.out(hidden.reshape(rows, length, -1))

    def _step(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor,
        slots: RecurrentSlots,
    ) -> torch.Tensor:  # fmt: skip
        """One token of each row, with the states changed in place."""
        state = slots.first_states(self.place)  # [rows, heads, key width, width]
        q, k, v, beta = (one[:, 0].float() for one in (q, k, v, beta))
        q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + EPSILON) * self.key_width**-0.5
        k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + EPSILON)
        if self.heads != self.key_heads:
            q, k = (one.repeat_interleave(self.heads // self.key_heads, 1) for one in (q, k))
        state.mul_(decay[:, 0].exp()[..., None, None])
        change = (v - (k[:, :, None] @ state)[:, :, 0]) * beta[..., None]
        state.add_(k[..., None] * change[:, :, None])
        return (q[:, :, None] @ state).transpose(1, 2)  # [rows, 1, heads, width]

    def _chunk(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, decay: torch.Tensor,
        slots: RecurrentSlots,
    ) -> torch.Tensor:  # fmt: skip
        out, state = torch_chunk_gated_delta_rule(
            q, k, v, g=decay, beta=beta, initial_state=slots.states(self.place), output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        slots.set_states(self.place, state)
        return out


class _Attention:
    """Full attention with a gate for each head, and positions in a part of its width."""

    def __init__(self, layer: Any, place: int) -> None:
        """`place`: number of this layer among those with attention."""
        self.place, self.width = place, layer.head_dim
        self.inputs, self.out = project(layer.q_proj, layer.k_proj, layer.v_proj), project(layer.o_proj)
        self.heads, self.key_heads = layer.config.num_attention_heads, layer.config.num_key_value_heads
        self.query_scale, self.key_scale, self.eps = _scale(layer.q_norm), _scale(layer.k_norm), layer.q_norm.eps

    def __call__(
        self,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        bias: torch.Tensor,
        slots: RecurrentSlots,
        last: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """`last`: row and place of the only queries that are needed."""
        rows, length = x.shape[:2]
        sizes = (2 * self.heads * self.width, self.key_heads * self.width, self.key_heads * self.width)
        queries, keys, values = self.inputs(x).split(sizes, -1)
        queries, gate = queries.view(rows, length, self.heads, 2 * self.width).chunk(2, -1)
        keys, values = (one.view(rows, length, self.key_heads, self.width) for one in (keys, values))
        queries, keys = _norm(queries, self.query_scale, self.eps), _norm(keys, self.key_scale, self.eps)
        queries, keys = _rotated(queries, *rotary), _rotated(keys, *rotary)
        keys, values = slots.update(keys.transpose(1, 2), values.transpose(1, 2), self.place)
        if last is not None:
            queries, gate = queries[last][:, None], gate[last][:, None]
        return self.out(attend(queries.transpose(1, 2), keys, values, bias) * gate.flatten(2).sigmoid())


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the first part of the width of each head. `sin` holds the sign of the rotated first half."""
    size = cos.shape[-1]
    turned = x[..., :size]
    turned = turned * cos + turned.roll(size // 2, -1) * sin
    return turned if size == x.shape[-1] else torch.cat([turned, x[..., size:]], -1)


class LanguageModel:
    """Runs the language model of a Qwen3.5 checkpoint; see `language_model`."""

    def __init__(self, body: Any) -> None:
        self.eps, self.final = body.config.rms_norm_eps, _scale(body.norm)
        self.rotary = Rotary(body.rotary_emb)
        self.groups = body.config.num_attention_heads // body.config.num_key_value_heads
        self.mixers: list[_Recurrent | _Attention] = []
        for layer in body.layers:
            kind: Any = _Recurrent if layer.block_type == "linear_attention" else _Attention
            inner = layer.linear_attn if kind is _Recurrent else layer.self_attn
            self.mixers.append(kind(inner, sum(isinstance(one, kind) for one in self.mixers)))
        self.norms = [(_scale(one.input_layernorm), _scale(one.post_attention_layernorm)) for one in body.layers]
        self.mlps = [feed_forward(layer.mlp) for layer in body.layers]

    def __call__(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        slots: RecurrentSlots,
        seen: torch.Tensor | None = None,
        deepstack: Sequence[torch.Tensor] = (),
        last: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last norm; see `language.LanguageModel.__call__`.

        Args:
            embeds: Embeddings, `[rows, length, width]`.
            positions: In time, height and width, `[3, rows, length]`; `[rows, length]` if they are equal.
            mask: Which keys each query sees, `[rows, 1, length, keys]`.
            slots: KV slots and states, prepared for this call.
            seen: Not used: the features of pictures are part of the embeddings.
            deepstack: Not used.
            last: The place of the last token of each row, `[rows]`, if only its hidden state is needed.

        Returns:
            `[rows, length, width]`, or `[rows, 1, width]` with `last`.
        """
        rotary = self.rotary(positions, embeds.dtype)
        bias = prepared(mask, self.groups, embeds.dtype)
        picked = None
        if last is not None and embeds.shape[1] > 1:
            picked = torch.arange(len(last), device=last.device), last
        hidden = embeds
        for mixer, norms, mlp in zip(self.mixers, self.norms, self.mlps, strict=True):
            x = _norm(hidden, norms[0], self.eps)
            # the last layer computes only keys and values of the other tokens
            only = picked if mixer is self.mixers[-1] else None
            if isinstance(mixer, _Recurrent):
                x = mixer(x, slots)
                x = x if only is None else x[only][:, None]
            else:
                own = bias if only is None else prepared(mask[only[0], :, only[1]][:, :, None], self.groups, x.dtype)
                x = mixer(x, rotary, own, slots, only)
            hidden = (hidden if only is None else hidden[only][:, None]) + x
            hidden = hidden + mlp(_norm(hidden, norms[1], self.eps))
        return _norm(hidden, self.final, self.eps)


def language_model(model: Any) -> Callable[..., torch.Tensor]:
    """The language model of a checkpoint as a function with the arguments of `LanguageModel.__call__`.

    Args:
        model: A Qwen3.5 model.

    Returns:
        The function.

    Raises:
        SettingsError: Another attention than that of torch was asked for.
    """
    body = model.model.language_model
    attention = body.config._attn_implementation  # noqa: SLF001 (transformers has no public name)
    if attention != "sdpa":
        raise SettingsError(f"attn_implementation={attention!r} cannot be used with Qwen3.5; leave it out")
    return LanguageModel(body)
