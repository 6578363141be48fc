"""Generates answers: one alone, or several of one checkpoint that share a forward pass per token.

An answer may join or leave the running batch at any token.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, cast

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, Qwen3VLForConditionalGeneration

from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.engine.local.loading import MAX_NUM_SEQS
from vlroute.engine.local.prompt import Prompt
from vlroute.engine.local.sampling import Sampler
from vlroute.errors import RouterClosedError
from vlroute.types import FinishReason, Mode

#: Name of the argument of transformers for the KV cache; older releases call it `past_key_values`.
CACHE = "cache" if "cache" in signature(Qwen3VLForConditionalGeneration.forward).parameters else "past_key_values"
#: Called with each token id; a true result ends the answer.
OnToken = Callable[[int], bool | None]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate.

    Attributes:
        checkpoint: the model.
        prompt: token ids and positions.
        encoder_outputs: vision features of the media after the cached prefix; a new container, see
            `vision.encoder_outputs`.
        settings: as returned by `resolve_settings`.
        on_token: called with each token id. A true result ends the answer. An exception ends the answer, and `generate`
            raises it.
        cancel: ends the answer when set.
        cache: KV cache of the prompt's prefix; afterwards that of prompt and answer. None: no cache is returned.
    """

    checkpoint: Checkpoint
    prompt: Prompt
    encoder_outputs: Mapping[str, Any]
    settings: Mapping[str, Any]
    on_token: OnToken = lambda token: None
    cancel: threading.Event | None = None
    cache: DynamicCache | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """An answer during generation. `num_cached`: number of cached KV tokens; `ids`: prompt and answer, `[1, n]`."""

    sampler: Sampler
    max_tokens: int
    on_token: OnToken
    cancel: threading.Event | None
    ids: torch.Tensor
    num_cached: int
    position: int
    """Position of the next token; the same on all three axes, because an answer is text."""
    prompt_length: int
    first_at: float = 0.0
    reason: str = ""
    error: BaseException | None = None
    cache: DynamicCache = field(default_factory=DynamicCache)
    keep_cache: bool = False
    """Whether `cache` must contain the keys and values at the end of the answer."""
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def output_ids(self) -> list[int]:
        """Ids of the output without the end token."""
        ids: list[int] = self.ids[0, self.prompt_length :].tolist()
        return ids[:-1] if self.sampler.control.ended else ids

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from `logits` (`[1, vocabulary]`) and check whether the answer ends with it."""
        try:
            token = self.sampler(self.ids, logits)
            self.first_at = self.first_at or time.perf_counter()
            self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], dim=1)
            ended = self.sampler.control.ended or bool(self.on_token(token))
        except BaseException as error:  # raised by the callback or the sampler: it ends only this answer
            self.error, self.reason = error, "error"
            return
        if ended:
            self.reason = "stop"
        elif self.cancel is not None and self.cancel.is_set():
            self.reason = "cancelled"
        elif self.ids.shape[1] - self.prompt_length >= self.max_tokens:
            self.reason = "length"


def begin(request: GenerationRequest) -> Sequence:
    """Run the prefill of one prompt and choose the first token; do neither if the request is cancelled."""
    prompt, settings = request.prompt, request.settings
    seq = Sequence(
        Sampler(request.checkpoint, prompt.length, settings),
        int(settings["max_new_tokens"]), request.on_token, request.cancel, prompt.input_ids, prompt.length,
        int(prompt.position_ids[1:, 0, -1].max()) + 1, prompt.length,
    )  # fmt: skip
    if request.cache is not None:
        seq.cache, seq.keep_cache = request.cache, True
    past = seq.cache.get_seq_length()
    with request.checkpoint.lock.ahead():
        if seq.cancel is not None and seq.cancel.is_set():  # while it waited for the lock
            seq.reason = "cancelled"
            return seq
        output = request.checkpoint.model(
            input_ids=prompt.input_ids[:, past:],
            attention_mask=prompt.attention_mask,
            position_ids=prompt.position_ids[:, :, past:],
            mm_encoder_outputs=dict(request.encoder_outputs) or None,
            logits_to_keep=1,
            use_cache=True,
            **{CACHE: seq.cache},
        )
    seq.take(output.logits[:, -1])
    return seq


class RunningBatch:
    """The sequences in generation and their KV cache, padded at the left to one length. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.seqs: list[Sequence] = []
        self._cache = DynamicCache()

    def join(self, seq: Sequence) -> None:
        """Add `seq`; it takes part from the next step on."""
        layers = [(layer.keys, layer.values) for layer in seq.cache.layers]
        if self.seqs:
            length = max(self._cache.get_seq_length(), seq.num_cached)
            layers = [
                (_stacked(layer.keys, keys, length), _stacked(layer.values, values, length))
                for layer, (keys, values) in zip(self._cache.layers, layers, strict=True)
            ]
        self._cache = _cache(layers)
        # the batch holds the only copy
        _fill(seq.cache, [(keys.new_empty(0), values.new_empty(0)) for keys, values in layers])
        self.seqs.append(seq)

    def step(self) -> list[Sequence]:
        """Generate one token for every sequence. Returns the sequences that ended with it; they have left the batch."""
        length = self._cache.get_seq_length()
        device = self.checkpoint.device
        num_cached = torch.tensor([seq.num_cached for seq in self.seqs], device=device)[:, None]
        # a single sequence has no padding, so the model needs no mask
        mask = (
            (torch.arange(length + 1, device=device)[None] >= length - num_cached).long()
            if len(self.seqs) > 1
            else None
        )
        at = torch.tensor([seq.position for seq in self.seqs], device=device)[:, None]
        output = self.checkpoint.model(
            input_ids=torch.cat([seq.ids[:, -1:] for seq in self.seqs]),
            attention_mask=mask,
            position_ids=torch.cat([num_cached[None], at.expand(3, -1, -1)]),
            use_cache=True,
            **{CACHE: self._cache},
        )
        for i, seq in enumerate(self.seqs):
            seq.num_cached, seq.position = seq.num_cached + 1, seq.position + 1
            seq.take(output.logits[i : i + 1, -1])
        ended = [seq for seq in self.seqs if seq.reason]
        if ended:
            self._leave()
        return ended

    def drop(self) -> list[Sequence]:
        """Remove and return all sequences, after an error in a shared step."""
        seqs, self.seqs, self._cache = self.seqs, [], DynamicCache()
        return seqs

    def _leave(self) -> None:
        length = self._cache.get_seq_length()
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        for i, seq in enumerate(self.seqs):
            if seq.reason and seq.keep_cache:
                _fill(seq.cache, [(_own(k, i, seq.num_cached), _own(v, i, seq.num_cached)) for k, v in layers])
        stay = [i for i, seq in enumerate(self.seqs) if not seq.reason]
        self.seqs = [self.seqs[i] for i in stay]
        longest = max((seq.num_cached for seq in self.seqs), default=0)
        cut = slice(length - longest, None)
        keep_cache = [(keys[stay][..., cut, :], values[stay][..., cut, :]) for keys, values in layers]
        self._cache = _cache(keep_cache) if stay else DynamicCache()


def _stacked(many: torch.Tensor, one: torch.Tensor, length: int) -> torch.Tensor:
    """`[b + 1, heads, length, width]`, padded at the left."""
    return torch.cat([pad(part, (0, 0, length - part.shape[-2], 0)) for part in (many, one)])


def _own(layer: torch.Tensor, seq: int, num_cached: int) -> torch.Tensor:
    """One sequence without its padding, copied: a view would keep the memory of the whole batch alive."""
    return layer[seq : seq + 1, :, layer.shape[-2] - num_cached :].clone()


def _cache(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    cache = DynamicCache()
    for i, (keys, values) in enumerate(layers):
        cache.update(keys, values, i)
    return cache


def _fill(cache: DynamicCache, layers: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        layer.keys, layer.values = keys, values


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids without the end token, the reason for the end, and the seconds until and after the first token."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


@torch.inference_mode()
def generate(request: GenerationRequest) -> Generated:
    """Generate one answer in this thread, with the same steps as for answers that share forward passes."""
    began = time.perf_counter()
    seq = begin(request)
    seqs = RunningBatch(request.checkpoint)
    if not seq.reason:
        seqs.join(seq)
    while not seq.reason:
        seqs.step()
    return generated(seq, began)


def generated(seq: Sequence, began: float) -> Generated:
    """The result of a finished sequence that began at `began` (`time.perf_counter`). Raises the error that ended it."""
    if seq.error is not None:
        raise seq.error
    ended = time.perf_counter()
    first = seq.first_at or ended
    return Generated(tuple(seq.output_ids), cast(FinishReason, seq.reason), first - began, ended - first)


class Scheduler:
    """Generates at most `max_num_seqs` answers of each mode at the same time. Thread-safe.

    In float32 each request gets the tokens that it would get alone. The last bits of the scores depend on the batch
    size, as in every batching server, so in bfloat16 a near tie may be decided differently.
    """

    def __init__(self, max_num_seqs: int = 8) -> None:
        """SettingsError unless `max_num_seqs` is a whole number of at least 1."""
        self.max_num_seqs = MAX_NUM_SEQS.read("max_num_seqs", max_num_seqs)
        self._workers: dict[Mode, _Worker] = {}
        self._closed = False
        self._lock = threading.Lock()

    def generate(self, request: GenerationRequest) -> Generated:
        """As the function `generate`; waits first until one of the `max_num_seqs` places is free.

        Args:
            request: the answer to generate.

        Returns:
            The token ids and timings.

        Raises:
            RouterClosedError: the scheduler is closed.
        """
        if request.cancel is not None and request.cancel.is_set():
            return Generated((), "cancelled", 0.0, 0.0)
        worker = self._worker(request.checkpoint)
        if not worker.enter(request.cancel):
            return Generated((), "cancelled", 0.0, 0.0)
        try:
            began = time.perf_counter()
            with torch.inference_mode():
                seq = begin(request)
            if not seq.reason:
                worker.write(seq)
            return generated(seq, began)
        finally:
            worker.leave()

    def waiting(self) -> dict[Mode, int]:
        """Number of requests of each mode that wait for a free place."""
        with self._lock:
            return {mode: worker.waiting for mode, worker in self._workers.items()}

    def close(self) -> None:
        """Cancel all running answers and end the threads."""
        with self._lock:
            self._closed = True
            workers = [*self._workers.values()]
        for worker in workers:
            worker.close()

    def _worker(self, checkpoint: Checkpoint) -> _Worker:
        with self._lock:
            if self._closed:
                raise RouterClosedError
            if checkpoint.mode not in self._workers:
                self._workers[checkpoint.mode] = _Worker(checkpoint, self.max_num_seqs)
            return self._workers[checkpoint.mode]


class _Worker:
    """The thread that generates the answers of one checkpoint, and the queue before it."""

    def __init__(self, checkpoint: Checkpoint, max_tokens: int) -> None:
        self.seqs = RunningBatch(checkpoint)
        self.free = max_tokens
        self._line: deque[object] = deque()  # first come, first served
        self._joining: deque[Sequence] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"vlroute-{checkpoint.mode}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._line)

    def enter(self, cancel: threading.Event | None) -> bool:
        """Wait for a free place and take it; False if the request was cancelled before."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            try:
                while self._line[0] is not ticket or not self.free:
                    if cancel is not None and cancel.is_set():  # first, because closing the router cancels
                        return False
                    if self._closed:
                        raise RouterClosedError
                    self._changed.wait(0.05 if cancel is not None else None)
                self.free -= 1
                return True
            finally:
                self._line.remove(ticket)
                self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self.free += 1
            self._changed.notify_all()

    def write(self, seq: Sequence) -> None:
        """Add `seq` to the batch and wait until it ends."""
        with self._changed:
            if self._closed:
                seq.reason = "cancelled"
                return
            self._joining.append(seq)
            self._changed.notify_all()
        seq.done.wait()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # a callback may close the router
            self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._joining or self.seqs.seqs or self._closed):
                    self._changed.wait()
                joining = [self._joining.popleft() for _ in range(len(self._joining))]
                closed = self._closed
            if closed:
                for seq in [*self.seqs.drop(), *joining]:
                    seq.reason = "cancelled"
                    seq.done.set()
                return
            try:
                while joining:
                    self.seqs.join(joining[0])
                    joining.pop(0)
                ended = self.seqs.step()
            except Exception as error:  # such as out of memory: it concerns all sequences of the step
                ended = [*self.seqs.drop(), *joining]
                for seq in ended:
                    seq.error = error
            for seq in ended:
                seq.done.set()
