"""Forward passes of the language model over KV slots: reading prompts, and one token for every running sequence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from vlroute.engine.local.out_of_memory import is_out_of_memory
from vlroute.engine.local.slots import FIRST_LENGTH, KVSlots, rounded

log = logging.getLogger("vlroute")
#: Row of the inputs of a step that says which slots take part.
ACTIVE = 3
#: A compiled step that takes longer than this many seconds is assumed to have been compiled.
SLOW = 5.0
Language: TypeAlias = Callable[..., torch.Tensor]


class ForwardStopped(Exception):
    """A forward pass has ended before its last layer. What it has computed is not used."""


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


def read(
    model: Any,
    language: Language,
    slots: KVSlots,
    chunks: Sequence[Chunk],
    before_layer: Callable[[], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read chunks of several prompts in one forward pass, padded at the right.

    Args:
        model: A Qwen3-VL model.
        language: Its language model, see `language_model`.
        slots: Its KV slots; the chunks are added to them.
        chunks: At most one chunk of each sequence.
        before_layer: Called before each layer, if the language model is a `LanguageModel`. It may raise ForwardStopped.

    Returns:
        The logits of the last token of each chunk, `[chunks, vocabulary]`, and its hidden state after the last norm,
        `[chunks, width]`.

    Raises:
        ForwardStopped: `before_layer` has raised it.
    """
    device = slots.kv.device
    lengths = [chunk.length for chunk in chunks]
    longest = max(lengths)
    ids, vision = torch.zeros(len(chunks), longest, dtype=torch.long), torch.full((len(chunks), longest), -1)
    positions = torch.zeros(3, len(chunks), longest, dtype=torch.long)
    features: list[Sequence[torch.Tensor]] = []
    rows = 0
    for i, chunk in enumerate(chunks):
        ids[i, : lengths[i]] = chunk.ids
        positions[:, i, : lengths[i]] = chunk.positions
        if chunk.features:
            vision[i, : lengths[i]] = torch.where(chunk.vision >= 0, chunk.vision + rows, -1)
            rows += chunk.features[0].shape[0]
            features.append(chunk.features)
    embeds = model.model.language_model.embed_tokens(ids.to(device))
    seen, deepstack = None, []
    if features:
        flat = vision.flatten()
        seen = torch.nonzero(flat >= 0)[:, 0]
        index, seen = flat[seen].to(device), seen.to(device)
        merged, *deepstack = (torch.cat(parts)[index] for parts in zip(*features, strict=True))
        embeds.view(-1, embeds.shape[-1]).index_copy_(0, seen, merged.to(embeds.dtype))
    mask = slots.reading([chunk.slot for chunk in chunks], [chunk.cached for chunk in chunks], lengths)
    last = (torch.tensor(lengths) - 1).to(device)
    options = {"before_layer": before_layer} if before_layer else {}
    hidden = language(embeds, positions.to(device), mask, slots, seen, deepstack, last, **options)[:, 0]
    return model.lm_head(hidden), hidden


class Decoder:
    """Generates one token for each of the first slots in one forward pass.

    On CUDA, each shape of a step is captured as a CUDA graph when it is first needed, unless `compile` is "off". "max"
    compiles the step with `torch.compile`. In both cases numbers of rows and keys are rounded up, so that there are few
    shapes. Without either, a step computes no more rows and keys than it needs, and it can pause between two layers.
    """

    def __init__(
        self,
        model: Any,
        language: Language,
        slots: KVSlots,
        compile: str = "auto",
        before_layer: Callable[[], None] | None = None,
    ) -> None:
        """Create a decoder.

        Args:
            model: A Qwen3-VL model.
            language: Its language model, see `language_model`.
            slots: Its KV slots.
            compile: "off", "auto" or "max", see above.
            before_layer: Called before each layer of a step that is neither captured nor compiled, if the language
                model is a `LanguageModel`. It may raise ForwardStopped.
        """
        self.model, self.language, self.slots, self.device = model, language, slots, slots.kv.device
        self._graphs: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, Any]] = {}
        self._captures = compile != "off" and self.device.type == "cuda"
        #: Whether numbers of rows and keys are rounded up.
        self.few_shapes = self._captures or compile == "max"
        self._pool: Any = None
        self._step: Callable[[torch.Tensor, int], torch.Tensor] = self._forward
        self._before_layer = before_layer
        if compile == "max":
            # graphs are captured here, around the compiled step
            # one graph: a step that stops between two graphs would have changed recurrent states
            options = {"triton.cudagraphs": False}
            self._compiled = torch.compile(self._forward, fullgraph=True, dynamic=True, options=options)
            self._step, self._warm = self._compiled_step, False

    def __call__(
        self, ids: Sequence[int], cached: Sequence[int], positions: Sequence[int], active: Sequence[int]
    ) -> torch.Tensor:
        """Logits of the next token for the first slots.

        Args:
            ids: Last token of each slot; any id for a slot that does not take part.
            cached: Number of tokens that each slot holds. The token is written behind them.
            positions: Position of each token; the same on all axes, because an answer is text.
            active: 1 for each slot that takes part, else 0.

        Returns:
            The logits, `[rows, vocabulary]` with at least as many rows as there are ids.

        Raises:
            ForwardStopped: `before_layer` has raised it.
        """
        rows, tokens = self.rows(len(ids)), max(cached) + 1
        length = min(rounded(tokens, FIRST_LENGTH) if self.few_shapes else tokens, self.slots.length)
        padding = [0] * (rows - len(ids))
        inputs = torch.tensor([[*one, *padding] for one in (ids, cached, positions, active)])
        if not self._captures:
            return self._step(inputs.to(self.device), length)
        return self._replayed(inputs.pin_memory(), length)

    def rows(self, sequences: int) -> int:
        """Number of rows that a step for the first `sequences` slots computes."""
        return min(rounded(sequences), self.slots.count) if self.few_shapes else sequences

    def _forward(self, inputs: torch.Tensor, length: int) -> torch.Tensor:
        ids, cached, positions, active = inputs.unbind()
        mask = self.slots.decoding(inputs.shape[1], cached, length, active)
        embeds = self.model.model.language_model.embed_tokens(ids)[:, None]
        options = {"before_layer": self._before_layer} if self._before_layer and not self.few_shapes else {}
        hidden = self.language(embeds, positions[:, None], mask, self.slots, **options)
        logits: torch.Tensor = self.model.lm_head(hidden[:, 0])
        return logits

    def _compiled_step(self, inputs: torch.Tensor, length: int) -> torch.Tensor:
        """A compiled step; the first ones take minutes. If they cannot be compiled, this and later steps are not."""
        if not self._warm:
            log.info("compiling the decode step (compile='max'); this takes a minute or more")
        self._warm, began = True, time.perf_counter()
        try:
            logits = self._compiled(inputs, length)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(getattr(error, "inner_exception", error)).partition("\n")[0]
            log.warning("the decode step cannot be compiled, so it runs as with compile='auto': %s", reason)
            self._step, self.few_shapes = self._forward, self._captures
            return self._forward(inputs, length)
        if (seconds := time.perf_counter() - began) > SLOW:
            log.info("compiled the decode step in %.0f s", seconds)
        return logits

    def _replayed(self, inputs: torch.Tensor, length: int) -> torch.Tensor:
        shape = (inputs.shape[1], length)
        if shape not in self._graphs:
            try:
                self._graphs[shape] = self._captured(inputs, length)
            except RuntimeError as error:  # such as an operation that synchronizes, in some quantized layers
                if is_out_of_memory(error):
                    raise
                log.warning("this model cannot be captured as CUDA graphs, so its answers are slower: %s", error)
                self._captures = False
                return self._step(inputs.to(self.device), length)
        own, logits, graph = self._graphs[shape]
        own.copy_(inputs, non_blocking=True)
        graph.replay()
        return logits

    def _captured(self, inputs: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        own = inputs.to(self.device)
        own[ACTIVE] = 0  # the calls below must not change recurrent states
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
