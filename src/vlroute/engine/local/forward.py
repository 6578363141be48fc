"""Forward passes of the language model over KV slots: reading prompts, and one token for every running sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from vlroute.engine.local import attention
from vlroute.engine.local.slots import FIRST_LENGTH, KVSlots, rounded

#: Name of the argument of transformers for the KV cache; older releases call it `past_key_values`.
CACHE = "cache" if "cache" in signature(Qwen3VLTextModel.forward).parameters else "past_key_values"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a prompt that one forward pass reads.

    Attributes:
        slot: KV slot of the sequence.
        cached: Number of tokens that the slot holds.
        ids: Token ids, `[length]`.
        positions: Positions in time, height and width, `[3, length]`.
        vision: Index in `features` of each token that belongs to a picture or video, else -1, `[length]`.
        features: Merged vision features of the request and one tensor for each deepstack layer, each `[rows, width]`;
            empty if no token of the chunk needs them.
    """

    slot: int
    cached: int
    ids: torch.Tensor
    positions: torch.Tensor
    vision: torch.Tensor
    features: Sequence[torch.Tensor]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.ids.shape[0])


def read(model: Any, slots: KVSlots, chunks: Sequence[Chunk]) -> torch.Tensor:
    """Read chunks of several prompts in one forward pass, padded at the right.

    Args:
        model: A Qwen3-VL model.
        slots: Its KV slots; the chunks are added to them.
        chunks: At most one chunk of each sequence.

    Returns:
        The logits of the last token of each chunk, `[chunks, vocabulary]`.
    """
    device, body = model.device, model.model.language_model
    lengths = [chunk.length for chunk in chunks]
    longest = max(lengths)
    ids, vision = torch.zeros(len(chunks), longest, dtype=torch.long), torch.full((len(chunks), longest), -1)
    positions = torch.zeros(4, len(chunks), longest, dtype=torch.long)
    features: list[list[torch.Tensor]] = []
    rows = 0
    for i, chunk in enumerate(chunks):
        ids[i, : lengths[i]] = chunk.ids
        positions[0, i, : lengths[i]] = torch.arange(chunk.cached, chunk.cached + lengths[i])
        positions[1:, i, : lengths[i]] = chunk.positions
        if chunk.features:
            vision[i, : lengths[i]] = torch.where(chunk.vision >= 0, chunk.vision + rows, -1)
            rows += chunk.features[0].shape[0]
            features.append([*chunk.features])
    embeds = body.embed_tokens(ids.to(device))
    deepstack: dict[str, Any] = {}
    if bool((vision >= 0).any()):
        merged, *layers = (
            [torch.cat(parts) for parts in zip(*features, strict=True)] if len(features) > 1 else features[0]
        )
        index = vision[vision >= 0].to(device)
        seen = (vision >= 0).to(device)
        embeds = embeds.clone()
        embeds[seen] = merged[index].to(embeds.dtype)
        deepstack = {"visual_pos_masks": seen, "deepstack_visual_embeds": [layer[index] for layer in layers]}
    mask = slots.reading([chunk.slot for chunk in chunks], [chunk.cached for chunk in chunks], lengths)
    with attention.chosen(model):
        hidden = body(
            inputs_embeds=embeds, position_ids=positions.to(device), attention_mask=_mask(model, mask, embeds.dtype),
            use_cache=True, **{CACHE: slots}, **deepstack,
        )[0]  # fmt: skip
    last = torch.tensor([length - 1 for length in lengths], device=device)
    return model.lm_head(hidden[torch.arange(len(chunks), device=device), last])


def _mask(model: Any, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask in the form of the attention implementation: eager attention adds it to the scores."""
    if model.config.text_config._attn_implementation == "eager":  # noqa: SLF001 (transformers has no public name)
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return mask


class Decoder:
    """Generates one token for each of the first slots in one forward pass.

    Numbers of rows and keys are rounded up, so that attention sees few shapes. On CUDA, each shape is captured as a
    CUDA graph when it is first needed, unless `compile` is "off". "max" compiles the step with `torch.compile`.
    """

    def __init__(self, model: Any, slots: KVSlots, compile: str = "auto") -> None:
        self.model, self.slots = model, slots
        self._graphs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, Any]] = {}
        self._captures = compile != "off" and model.device.type == "cuda"
        self._pool: Any = None
        self._step: Callable[[torch.Tensor, int], torch.Tensor] = self._forward
        if compile == "max":
            # graphs are captured here, around the compiled step
            self._step = torch.compile(
                self._forward, dynamic=model.device.type == "cpu", options={"triton.cudagraphs": False}
            )

    def __call__(self, ids: Sequence[int], cached: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Logits of the next token for the first slots.

        Args:
            ids: Last token of each slot; any id for a slot that does not take part.
            cached: Number of tokens that each slot holds. The token is written behind them.
            positions: Position of each token; the same on all axes, because an answer is text.

        Returns:
            The logits, `[rows, vocabulary]` with at least as many rows as there are ids.
        """
        rows = min(rounded(len(ids)), self.slots.count)
        length = min(rounded(max(cached) + 1, FIRST_LENGTH), self.slots.length)
        padding = [0] * (rows - len(ids))
        inputs = torch.tensor([[*ids, *padding], [*cached, *padding], [*positions, *padding]])
        with attention.chosen(self.model):
            if not self._captures:
                return self._step(inputs.to(self.model.device), length)
            return self._replayed(inputs.pin_memory(), length)

    def _forward(self, inputs: torch.Tensor, length: int) -> torch.Tensor:
        body = self.model.model.language_model
        ids, cached, positions = inputs.unbind()
        mask = self.slots.decoding(inputs.shape[1], cached, length)
        embeds = body.embed_tokens(ids)[:, None]
        axes = torch.stack([cached, positions, positions, positions])[..., None]
        hidden = body(
            inputs_embeds=embeds, position_ids=axes, attention_mask=_mask(self.model, mask, embeds.dtype),
            use_cache=True, **{CACHE: self.slots},
        )[0]  # fmt: skip
        return self.model.lm_head(hidden[:, 0])

    def _replayed(self, inputs: torch.Tensor, length: int) -> torch.Tensor:
        shape = (inputs.shape[1], length)
        if shape not in self._graphs:
            self._graphs[shape] = self._captured(inputs, length)
        own, logits, graph = self._graphs[shape]
        own.copy_(inputs, non_blocking=True)
        graph.replay()
        return logits

    def _captured(self, inputs: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        own = inputs.to(self.model.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their work space in the first calls
            for _ in range(2):
                self._step(own, length)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads copy pixels meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._step(own, length)
        self._pool = graph.pool()
        return own, logits, graph

    def forget(self) -> None:
        """Discard captured graphs; called when the memory of the slots has moved."""
        self._graphs.clear()
        self._pool = None
