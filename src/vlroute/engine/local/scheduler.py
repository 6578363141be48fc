"""Several answers of one checkpoint, one forward pass a token for all of them; each may join and leave at any token."""

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
#: Told each token id; true ends the answer there.
OnToken = Callable[[int], bool | None]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """All that one answer is written from.

    `encoder_outputs` are those of the pictures not yet read, and must be fresh (see `vision.encoder_outputs`);
    `settings` come from `resolve_settings`. `on_token` is called with each token id; true ends the answer there, and
    what it raises ends the answer and is raised to whoever waits for it. `cache` holds what was read of the prompt
    already, and afterwards what was read of prompt and answer.
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
    """One answer under way. `read`: tokens that keys and values are there for; `ids`: prompt and answer `[1, n]`."""

    sampler: Sampler
    most: int
    on_token: OnToken
    cancel: threading.Event | None
    ids: torch.Tensor
    read: int
    position: int
    """Of the token to be read next, on all three axes: an answer is text."""
    prompt_length: int
    first_at: float = 0.0
    reason: str = ""
    error: BaseException | None = None
    cache: DynamicCache = field(default_factory=DynamicCache)
    kept: bool = False
    """Whether the caller wants keys and values in `cache` when the answer is written."""
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def written(self) -> list[int]:
        """Ids of the output, without the end token."""
        ids: list[int] = self.ids[0, self.prompt_length :].tolist()
        return ids[:-1] if self.sampler.control.ended else ids

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token from `logits` `[1, vocabulary]`, and see whether the answer ends with it."""
        try:
            token = self.sampler(self.ids, logits)
            self.first_at = self.first_at or time.perf_counter()
            self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], dim=1)
            ended = self.sampler.control.ended or bool(self.on_token(token))
        except BaseException as error:  # a listener's or sampler's: it ends this answer and no other
            self.error, self.reason = error, "error"
            return
        if ended:
            self.reason = "stop"
        elif self.cancel is not None and self.cancel.is_set():
            self.reason = "cancelled"
        elif self.ids.shape[1] - self.prompt_length >= self.most:
            self.reason = "length"


def begin(writing: GenerationRequest) -> Sequence:
    """Read the prompt, alone, as `generate` does, and choose the first token; neither if cancelled before."""
    prompt, settings = writing.prompt, writing.settings
    row = Sequence(
        Sampler(writing.checkpoint, prompt.length, settings),
        int(settings["max_new_tokens"]), writing.on_token, writing.cancel, prompt.input_ids, prompt.length,
        int(prompt.position_ids[1:, 0, -1].max()) + 1, prompt.length,
    )  # fmt: skip
    if writing.cache is not None:
        row.cache, row.kept = writing.cache, True
    past = row.cache.get_seq_length()
    with writing.checkpoint.turn.ahead():
        if row.cancel is not None and row.cancel.is_set():  # while others read
            row.reason = "cancelled"
            return row
        output = writing.checkpoint.model(
            input_ids=prompt.input_ids[:, past:],
            attention_mask=prompt.attention_mask,
            position_ids=prompt.position_ids[:, :, past:],
            mm_encoder_outputs=dict(writing.encoder_outputs) or None,
            logits_to_keep=1,
            use_cache=True,
            **{CACHE: row.cache},
        )
    row.take(output.logits[:, -1])
    return row


class RunningBatch:
    """Keys and values of all rows under way, padded at the left to one length. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.rows: list[Sequence] = []
        self._cache = DynamicCache()

    def join(self, row: Sequence) -> None:
        """From the next step on `row` is written too."""
        layers = [(layer.keys, layer.values) for layer in row.cache.layers]
        if self.rows:
            length = max(self._cache.get_seq_length(), row.read)
            layers = [
                (_stacked(layer.keys, keys, length), _stacked(layer.values, values, length))
                for layer, (keys, values) in zip(self._cache.layers, layers, strict=True)
            ]
        self._cache = _cache(layers)
        _fill(row.cache, [(keys.new_empty(0), values.new_empty(0)) for keys, values in layers])  # not held twice
        self.rows.append(row)

    def step(self) -> list[Sequence]:
        """One token for every row; gives those that ended with it, their keys and values in their own cache again."""
        length = self._cache.get_seq_length()
        device = self.checkpoint.device
        read = torch.tensor([row.read for row in self.rows], device=device)[:, None]
        # one row is not padded: the model needs no mask
        mask = (torch.arange(length + 1, device=device)[None] >= length - read).long() if len(self.rows) > 1 else None
        at = torch.tensor([row.position for row in self.rows], device=device)[:, None]
        output = self.checkpoint.model(
            input_ids=torch.cat([row.ids[:, -1:] for row in self.rows]),
            attention_mask=mask,
            position_ids=torch.cat([read[None], at.expand(3, -1, -1)]),
            use_cache=True,
            **{CACHE: self._cache},
        )
        for i, row in enumerate(self.rows):
            row.read, row.position = row.read + 1, row.position + 1
            row.take(output.logits[i : i + 1, -1])
        ended = [row for row in self.rows if row.reason]
        if ended:
            self._leave()
        return ended

    def drop(self) -> list[Sequence]:
        """Forget all rows, as after an error in a step that was everyone's; gives them."""
        rows, self.rows, self._cache = self.rows, [], DynamicCache()
        return rows

    def _leave(self) -> None:
        length = self._cache.get_seq_length()
        layers = [(layer.keys, layer.values) for layer in self._cache.layers]
        for i, row in enumerate(self.rows):
            if row.reason and row.kept:
                _fill(row.cache, [(_own(k, i, row.read), _own(v, i, row.read)) for k, v in layers])
        stay = [i for i, row in enumerate(self.rows) if not row.reason]
        self.rows = [self.rows[i] for i in stay]
        longest = max((row.read for row in self.rows), default=0)
        cut = slice(length - longest, None)
        kept = [(keys[stay][..., cut, :], values[stay][..., cut, :]) for keys, values in layers]
        self._cache = _cache(kept) if stay else DynamicCache()


def _stacked(many: torch.Tensor, one: torch.Tensor, length: int) -> torch.Tensor:
    """`[b + 1, heads, length, width]`, padded at the left."""
    return torch.cat([pad(part, (0, 0, length - part.shape[-2], 0)) for part in (many, one)])


def _own(layer: torch.Tensor, row: int, read: int) -> torch.Tensor:
    """One row without its padding, in memory of its own: a view would keep all rows alive."""
    return layer[row : row + 1, :, layer.shape[-2] - read :].clone()


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
    """Token ids written (the end token left out), why writing ended, and seconds to the first token and after it."""

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float


@torch.inference_mode()
def generate(writing: GenerationRequest) -> Generated:
    """Generate one answer in this thread, with the same steps as answers that share forward passes."""
    began = time.perf_counter()
    row = begin(writing)
    rows = RunningBatch(writing.checkpoint)
    if not row.reason:
        rows.join(row)
    while not row.reason:
        rows.step()
    return generated(row, began)


def generated(row: Sequence, began: float) -> Generated:
    """What came of a row whose answer was begun at `began` (`time.perf_counter`). Raises what ended it, if it did."""
    if row.error is not None:
        raise row.error
    ended = time.perf_counter()
    first = row.first_at or ended
    return Generated(tuple(row.written), cast(FinishReason, row.reason), first - began, ended - first)


class Batching:
    """Writes at most `max_num_seqs` answers of each mode at a time; `generate` may be called from any thread.

    In float32 the tokens are those that each request would get alone. Last bits of the scores depend on the number of
    rows, as in every batching server, so in bfloat16 a near tie may fall otherwise.
    """

    def __init__(self, max_num_seqs: int = 8) -> None:
        """SettingsError for fewer than one row."""
        self.max_num_seqs = MAX_NUM_SEQS.read("max_num_seqs", max_num_seqs)
        self._writers: dict[Mode, _Writer] = {}
        self._closed = False
        self._lock = threading.Lock()

    def generate(self, writing: GenerationRequest) -> Generated:
        """As `generate.generate`; waits for a free row first.

        RouterClosedError after `close`.
        """
        if writing.cancel is not None and writing.cancel.is_set():
            return Generated((), "cancelled", 0.0, 0.0)
        writer = self._writer(writing.checkpoint)
        if not writer.enter(writing.cancel):
            return Generated((), "cancelled", 0.0, 0.0)
        try:
            began = time.perf_counter()
            with torch.inference_mode():
                row = begin(writing)
            if not row.reason:
                writer.write(row)
            return generated(row, began)
        finally:
            writer.leave()

    def waiting(self) -> dict[Mode, int]:
        """Requests that wait for a free row."""
        with self._lock:
            return {mode: writer.waiting for mode, writer in self._writers.items()}

    def close(self) -> None:
        """Cancel what is being written and end the threads."""
        with self._lock:
            self._closed = True
            writers = [*self._writers.values()]
        for writer in writers:
            writer.close()

    def _writer(self, checkpoint: Checkpoint) -> _Writer:
        with self._lock:
            if self._closed:
                raise RouterClosedError
            if checkpoint.mode not in self._writers:
                self._writers[checkpoint.mode] = _Writer(checkpoint, self.max_num_seqs)
            return self._writers[checkpoint.mode]


class _Writer:
    """The thread that writes one checkpoint's rows, and the door before it."""

    def __init__(self, checkpoint: Checkpoint, most: int) -> None:
        self.rows = RunningBatch(checkpoint)
        self.free = most
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
        """Wait for a free row and take it; false if cancelled before."""
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

    def write(self, row: Sequence) -> None:
        """Until `row` is written to its end."""
        with self._changed:
            if self._closed:
                row.reason = "cancelled"
                return
            self._joining.append(row)
            self._changed.notify_all()
        row.done.wait()

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
                while not (self._joining or self.rows.rows or self._closed):
                    self._changed.wait()
                joining = [self._joining.popleft() for _ in range(len(self._joining))]
                closed = self._closed
            if closed:
                for row in [*self.rows.drop(), *joining]:
                    row.reason = "cancelled"
                    row.done.set()
                return
            try:
                while joining:
                    self.rows.join(joining[0])
                    joining.pop(0)
                ended = self.rows.step()
            except Exception as error:  # out of memory, say: of everyone, for nobody's row alone is to blame
                ended = [*self.rows.drop(), *joining]
                for row in ended:
                    row.error = error
            for row in ended:
                row.done.set()
