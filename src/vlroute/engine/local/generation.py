"""One answer from its queueing to its end: what is read next, which token was taken, and why it ended."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from vlroute.engine.cache.features import VisionFeatures
from vlroute.engine.cache.prefix import Lease, State
from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.engine.local.early_exit import MAX_TRIED, EarlyExit
from vlroute.engine.local.forward import Chunk
from vlroute.engine.local.grammar import Constraint
from vlroute.engine.local.prompt import Prompt
from vlroute.engine.local.reasoning import closing_length
from vlroute.engine.local.sampling import LogProbs, Sampler, TokenScores
from vlroute.engine.local.slots import KVSlots
from vlroute.engine.protocol import Evidence
from vlroute.engine.trial import RunningTrial
from vlroute.fair_share import DEFAULT_FLOW, Flow
from vlroute.types import Closed, FinishReason

#: Called with each token id; a true result ends the answer.
OnToken = Callable[[int], bool | None]
#: Called with the log-probability of a token of the answer, before `OnToken`.
OnScores = Callable[[TokenScores], None]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to generate.

    Attributes:
        checkpoint: the model.
        prompt: token ids and positions.
        settings: as returned by `resolve_settings`.
        features: future vision features of the items that are not completely within the tokens of `lease`, in the
            order of `prompt.tokens.slots`. The answer is queued when they are ready.
        on_token: called with each token id, in the thread of the scheduler. A true result ends the answer. An exception
            ends the answer, and the future raises it.
        cancel: ends the answer when set.
        owner: owner of the prefix in the cache of KV tokens.
        lease: cached tokens of the prompt; released by the scheduler.
        trial: decides during the answer whether it goes on.
        constraint: constrains the tokens of the answer, not those of the reasoning.
        continues: whether the answer continues a given beginning, which is the end of the prompt.
        on_scores: called with the log-probability of each token of the answer, but not of the reasoning, before
            `on_token`; None: they are not computed.
        flow: the requests with which this one shares its part of the slots.
    """

    checkpoint: Checkpoint
    prompt: Prompt
    settings: Mapping[str, Any]
    features: Future[list[VisionFeatures]]
    on_token: OnToken = lambda token: None
    cancel: threading.Event | None = None
    owner: str = ""
    lease: Lease = field(default_factory=Lease)
    trial: RunningTrial = field(default_factory=RunningTrial)
    constraint: Constraint | None = None
    continues: bool = False
    on_scores: OnScores | None = None
    flow: Flow = DEFAULT_FLOW


@dataclass(frozen=True, slots=True)
class Generated:
    """Token ids without the end token, the reason for the end, and the seconds until and after the first token.

    `cached`: number of prompt tokens that were in the cache. `closed`: why the reasoning was closed, see `Answer`.
    `queue_seconds`: time before the answer got a slot, which is not part of `prefill_seconds`.
    """

    ids: tuple[int, ...]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float
    cached: int = 0
    closed: Closed | None = None
    queue_seconds: float = 0.0


_numbers = itertools.count()


class Generation:
    """An answer during generation. `number`: in the order in which answers were queued."""

    def __init__(self, request: GenerationRequest, future: Future[Generated]) -> None:
        prompt = request.prompt
        self.request, self.future, self.lease = request, future, request.lease
        ids = prompt.tokens.ids.tolist()
        self.sampler = Sampler(request.checkpoint, ids, request.settings, request.constraint, request.continues)
        self.most = int(request.settings["max_new_tokens"])
        #: Number of alternatives to each token of the answer, if log-probabilities are wanted.
        self.top_logprobs = int(request.settings.get("top_logprobs") or 0)
        self.exit = EarlyExit(request.settings.get("early_exit") if request.checkpoint.mode == "thinking" else None)
        self._before_trial: tuple[int, State | None] = 0, None  # tokens in the slot and recurrent states
        self.slot = self.cached = 0
        #: Hidden state of the last prompt token if there is a trial, and `token_scores` until the trial is decided.
        self.state: torch.Tensor | None = None
        self.scores: list[torch.Tensor] = []
        self.number = next(_numbers)
        self.queued_at = time.perf_counter()
        self.began = self.first_at = 0.0
        self.reason = ""
        self.error: BaseException | None = None
        self._offset = prompt.next_position - prompt.length - 1
        self._vision, self._features = _vision_rows(request)

    @property
    def checkpoint(self) -> Checkpoint:
        """The model."""
        return self.request.checkpoint

    @property
    def ids(self) -> list[int]:
        """Prompt and answer so far, and the tokens of a trial of the answer."""
        return [*self.sampler.ids, *self.exit.ids] if self.exit.running else self.sampler.ids

    @property
    def position(self) -> int:
        """Position of the last token, which belongs to the answer."""
        return self._offset + len(self.ids)

    @property
    def reads(self) -> bool:
        """Whether tokens are read before the next one is generated, as for a prompt."""
        return self.cached < self.sampler.prompt_length or len(self.ids) > self.cached + 1

    @property
    def trial_due(self) -> bool:
        """Whether a trial of the answer begins before the next token. It must not exceed `max_new_tokens`."""
        if not self.exit.is_due(self.sampler.control):
            return False
        closing = closing_length(self.checkpoint.tokenizer)
        return len(self.sampler.output_ids) + closing + MAX_TRIED <= self.most

    def begin_trial(self, slots: KVSlots) -> None:
        """Begin a trial of the answer. The last token of the thought is not in the slot yet, and is read with it."""
        self._before_trial = self.cached, slots.state(self.slot)
        self.exit.begin(self.sampler.control, self.sampler.constraint)

    def end_trial(self, slots: KVSlots) -> None:
        """Let the slot hold what it held before the trial. Keys and values behind that will be replaced."""
        self.exit.abandon()
        self.cached, state = self._before_trial
        slots.write(self.slot, (), state)

    @property
    def cancelled(self) -> bool:
        """Whether the request or its future was cancelled, or its cancel event raised an error."""
        cancel = self.request.cancel
        try:
            return self.future.cancelled() or (cancel is not None and cancel.is_set())
        except Exception as error:  # raised by an event of the caller: it ends only this answer
            self.error = error
            return True

    def chunk(self, most: int) -> Chunk:
        """The next tokens to read, at most `most`. After a preemption, tokens of the answer are among them."""
        prompt, start, end = self.request.prompt, self.cached, min(self.cached + most, len(self.ids))
        # a snapshot of recurrent states can be stored only between two chunks
        end = min([end, *(place for place in prompt.snapshots if place > start)])
        if self.trial_due:  # after a preemption; the trial begins behind the last but one token
            end = min(end, len(self.ids) - 1)
        length = self.sampler.prompt_length
        positions, vision = prompt.positions[:, start:end], self._vision[start:end]
        if end > length:
            answer = np.arange(max(start, length), end) - length + prompt.next_position
            positions = np.concatenate([positions, np.broadcast_to(answer, (3, len(answer)))], axis=1)
            vision = np.concatenate([vision, np.full(len(answer), -1)])
        ids, positions, vision = map(torch.from_numpy, (np.array(self.ids[start:end]), positions, vision))
        return Chunk(self.slot, start, ids, positions, vision, self._features if bool((vision >= 0).any()) else ())

    def read_prompt(self, state: torch.Tensor) -> None:
        """Process the end of the prompt, whose last token has this hidden state. Has no effect after a preemption."""
        trial = self.request.trial
        if trial.undecided and self.state is None:
            self.state = state
            if trial.needs_state:
                self._judge()

    @property
    def needs_scores(self) -> bool:
        """Whether the log-probability of the next token is wanted."""
        return self.request.on_scores is not None and not self.sampler.control.thinking

    def take(self, token: int, scores: LogProbs | None = None) -> bool:
        """Process a chosen token, and check whether the answer ends with it.

        Args:
            token: Its id.
            scores: The log-probabilities at its place, if the answer `needs_scores`.

        Returns:
            Whether it was replaced.
        """
        try:
            taken = self.sampler.take(token)
            self.first_at = self.first_at or time.perf_counter()
            if not (ended := self.sampler.control.ended):
                if scores is not None and self.request.on_scores is not None:
                    self.request.on_scores(scores.of(taken))
                ended = bool(self.request.on_token(taken))
        except BaseException as error:  # raised by a callback: it ends only this answer
            self.error = error
            return True
        if ended:
            self.reason = "stop"
        elif self.cancelled:
            self.reason = "cancelled"
        elif len(self.ids) - self.sampler.prompt_length >= self.most:
            self.reason = "length"
        trial = self.request.trial
        ended = self.reason in ("stop", "length")
        if trial.undecided and (ended or (not self.reason and trial.is_due(time.perf_counter() - self.first_at))):
            self._judge()
        return taken != token

    def _judge(self) -> None:
        """Let the trial decide on the evidence so far. Evidence is copied from the device only here."""
        # endpoints differ in whether they send the end token, so it is left out
        scores = self.scores[:-1] if self.sampler.control.ended else self.scores
        try:
            state = None if self.state is None else self.state.to("cpu", torch.float32, copy=True).numpy()
            log_probs, entropies = torch.stack(scores).T.tolist() if scores else ((), ())
            if not self.request.trial.judge(Evidence(state, log_probs, entropies, self.reason == "stop")):
                self.reason = "cancelled"
        except BaseException as error:  # raised by the judge or by a callback: it ends only this answer
            self.error = error

    def finish(self) -> None:
        """Set the result or the error of the future."""
        cached = self.lease.length
        self.lease.release()
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
            return
        ended = time.perf_counter()
        first, began = self.first_at or ended, self.began or ended
        ids = self.sampler.output_ids
        ids = ids[:-1] if self.sampler.control.ended else ids
        self.future.set_result(
            Generated(
                tuple(ids), cast(FinishReason, self.reason), first - began, ended - first, cached,
                self.sampler.control.closed, began - self.queued_at,
            )
        )  # fmt: skip


def _vision_rows(request: GenerationRequest) -> tuple[NDArray[np.int64], list[torch.Tensor]]:
    """The row of each token of the prompt in the joined features, -1 for none; and the joined features."""
    prompt, at, cached = request.prompt, 0, request.lease.length
    rows = np.full(prompt.length, -1)
    slots = [slot for slot in prompt.tokens.slots if slot.end > cached]
    features = request.features.result()
    for slot, _ in zip(slots, features, strict=True):
        own = np.flatnonzero(prompt.vision[slot.start : slot.end]) + slot.start
        rows[own] = np.arange(at, at + len(own))
        at += len(own)
    layers = zip(*((one.merged, *one.deepstack) for one in features), strict=True)
    return rows, [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in layers]
