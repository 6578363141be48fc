"""One decoding call: explicit positions, given vision features, every token reported, stoppable at every token."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from vlroute.engine.protocol import FinishReason
from vlroute.engine.rows import OnToken, Row, Rows, Writing, begin
from vlroute.engine.sampling import Sampler, take_own_processors


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids written (the end token left out), why writing ended, and seconds to the first token and after it."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), device=input_ids.device)


class _TokenStream(BaseStreamer):
    """Hands each new token id on. (transformers' text streamers hide the exceptions of the generating thread.)"""

    def __init__(self, on_token: OnToken, ends: frozenset[int]) -> None:
        self.on_token, self.ends = on_token, ends
        self.ended = threading.Event()  # the listener has heard enough
        self.prompt_seen = False
        self.first_at: float | None = None

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:  # the first call brings the prompt
            self.prompt_seen = True
            return
        if self.first_at is None:
            self.first_at = time.perf_counter()
        for token in value.flatten().tolist():
            if token not in self.ends and self.on_token(token):
                self.ended.set()

    def end(self) -> None:
        pass


@torch.inference_mode()
def generate(writing: Writing) -> Generated:
    """Write one answer token by token, in this thread.

    ValueError for a `seed` beside settings that only transformers' own `generate` knows.
    """
    checkpoint, prompt, cancel = writing.checkpoint, writing.prompt, writing.cancel
    if writing.settings.get("seed") is not None:
        return _seeded(writing)
    settings = {key: value for key, value in writing.settings.items() if key != "seed"}
    processors = take_own_processors(checkpoint, prompt.length, settings)
    config = GenerationConfig(**settings)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stream = _TokenStream(writing.on_token, frozenset(ends))
    began = time.perf_counter()
    output = checkpoint.model.generate(
        **prompt.inputs(),
        **({"mm_encoder_outputs": dict(writing.encoder_outputs)} if writing.encoder_outputs else {}),
        **({"past_key_values": writing.cache} if writing.cache is not None else {}),
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=StoppingCriteriaList([_Cancelled(event) for event in (stream.ended, cancel) if event]),
        streamer=stream,
    )
    ended = time.perf_counter()
    ids = output[0, prompt.length :].tolist()
    at_end = bool(ids) and ids[-1] in ends
    stopped = at_end or stream.ended.is_set()
    reason: FinishReason = "stop" if stopped else "cancelled" if cancel and cancel.is_set() else "length"
    first = stream.first_at or ended
    return Generated(tuple(ids[:-1] if at_end else ids), reason, first - began, ended - first)


def _seeded(writing: Writing) -> Generated:
    """transformers draws from one generator for the whole process; here the draws are this answer's own."""
    if unknown := sorted(set(writing.settings) - Sampler.KNOWN):
        raise ValueError(f"seed does not go together with {', '.join(unknown)}; leave one of them out")
    began = time.perf_counter()
    row = begin(writing)
    rows = Rows(writing.checkpoint)
    if not row.reason:
        rows.join(row)
    while not row.reason:
        rows.step()
    return generated(row, began)


def generated(row: Row, began: float) -> Generated:
    """What came of a row whose answer was begun at `began` (`time.perf_counter`). Raises what ended it, if it did."""
    if row.error is not None:
        raise row.error
    ended = time.perf_counter()
    ids = row.written
    if ids and ids[-1] in row.ends:
        ids.pop()
    first = row.first_at or ended
    return Generated(tuple(ids), cast(FinishReason, row.reason), first - began, ended - first)
