"""The only thread that runs the models: it encodes pictures, reads prompts and generates tokens for all requests.

Each round serves one mode and does one kind of work: it encodes waiting pictures in one call of the tower, reads one
chunk of the prompts, or generates one token for each running answer (continuous batching, Yu et al., 2022, with
chunked prefill, Agrawal et al., 2023). The next round goes to the mode that has used less time relative to its share.

Flows of requests share the slots of a mode and the time of its rounds. A free slot goes to the flow that holds fewest,
then to the one that has received least time; if all slots are in use, an answer of a flow with more than its share is
interrupted. A round leaves out flows with more answers than others while they have received more time, so that a flow
with one answer is at least half as fast beside a flow with many as alone.

On a CPU, a decode step for many answers takes longer than a short answer. A round of one mode therefore pauses between
two layers for rounds of the other mode, if these are next.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from queue import SimpleQueue
from typing import Any
from weakref import WeakMethod

import torch

from vlroute.engine.cache.features import VisionFeatures
from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.engine.local.early_exit import MAX_TRIED, most_probable
from vlroute.engine.local.forward import Chunk, Decoder, ForwardStopped, Language, read
from vlroute.engine.local.generation import Generated, Generation, GenerationRequest
from vlroute.engine.local.language import LanguageModel
from vlroute.engine.local.loading import DEFAULT_NUM_SEQS, MAX_NUM_SEQS
from vlroute.engine.local.memory import Memory
from vlroute.engine.local.out_of_memory import is_out_of_memory
from vlroute.engine.local.reasoning import closing_length
from vlroute.engine.local.sampling import BatchSampler, LogProbs, log_probs_of, token_scores
from vlroute.engine.local.slots import FIRST_LENGTH, KVSlots, slots_for
from vlroute.engine.local.tower import vision_tower
from vlroute.engine.local.vision import Pixels, encode
from vlroute.errors import LimitError, RouterClosedError
from vlroute.exit import end_at_exit
from vlroute.fair_share import DEFAULT_FLOW, FairShare, Flow
from vlroute.steps import forbid_waiting
from vlroute.types import MODES, Mode

log = logging.getLogger("vlroute")

#: Prompt tokens that are read between two decode steps. Without running answers, a larger chunk delays nothing.
CHUNK, CHUNK_ALONE = 512, 2048
#: Most patches of one call of the tower, and of one with pictures of several flows: one flow must not wait long for the
#: pictures of another one. A single request may exceed both.
PATCHES, SHARED_PATCHES = 65_536, 8192
#: On a GPU, the slots of a mode begin with this many tokens each and at most this share of the memory.
FIRST_SLOT, FIRST_SHARE = 4096, 0.25
#: On a CPU, the operations of models with fewer parameters are too short to be divided between threads.
ONE_THREAD = 50_000_000
#: On a CPU, the priority of this thread is lower by so much than that of threads that read requests and send answers:
#: they need a core for a short time, while a decode step would use it for several milliseconds (Linux).
BEHIND = 3
#: Shares of the time while both modes have work. With equal shares, a short Instruct answer would take twice as long
#: beside Thinking as alone.
SHARES: dict[Mode, int] = {"instruct": 3, "thinking": 1}


class Work(Enum):
    """Kinds of work of a mode, in the order in which they take turns."""

    ENCODE, READ, DECODE = range(3)


class _Lane:
    """The work of one model: pictures to encode, waiting answers, and answers in slots, oldest first.

    The model of a hybrid answers in both modes: one step generates a token for answers of either.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        language: Language,
        most: int,
        compile: str,
        between_layers: Callable[[_Lane], None],
    ) -> None:
        model, device = checkpoint.model, checkpoint.device
        self.checkpoint, self.language = checkpoint, language
        self.slots = slots_for(model.config.text_config, model.dtype, device, most)
        # on a GPU, a layer runs long after its call
        can_pause = device.type == "cpu" and isinstance(language, LanguageModel)
        self.before_layer = partial(between_layers, self) if can_pause else None
        self.decoder = Decoder(model, self.language, self.slots, compile, self.before_layer)
        self.encodings: deque[_Encoding] = deque()
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        #: Seconds of work so far and in the latest round, divided by the share of the mode.
        self.spent = self.latest_spent = 0.0
        #: Names of the flows that the current round serves.
        self.served: frozenset[str] = frozenset()
        self.round_seconds = 0.0  # of the latest round
        #: Beginning of the latest round, later by the time that it has paused.
        self.round_began = 0.0
        #: Seconds of a round that pauses, before the pause, divided by the share of the mode.
        self.begun_spent = 0.0
        self._latest = Work.DECODE
        self._sampled: tuple[Generation, ...] = ()
        self._sampler: BatchSampler | None = None

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        return bool(self.encodings or self.waiting or self.running)

    def next_work(self) -> Work | None:
        """What the next round of this mode does: the kinds of work take turns."""
        possible = {
            Work.ENCODE: bool(self.encodings),
            Work.READ: any(one.reads for one in self.running if self.serves(one)),
            Work.DECODE: any(not one.reads for one in self.running if self.serves(one)),
        }
        kinds = [Work((self._latest.value + i) % len(Work)) for i in range(1, len(Work) + 1)]
        work = next((kind for kind in kinds if possible[kind]), None)
        if work is not None:
            self._latest = work
        return work

    @property
    def tokens(self) -> int:
        """Number of tokens of the longest answer that runs, the next one included."""
        return max((len(one.ids) + 1 for one in self.running), default=0)

    def serves(self, one: Generation) -> bool:
        """Whether the current round serves an answer."""
        return one.request.flow.name in self.served

    def held(self) -> Counter[str]:
        """Number of slots of each flow."""
        return Counter(one.request.flow.name for one in self.running)

    def resize(self, count: int, length: int) -> None:
        """Allocate slots anew, see `KVSlots.resize`."""
        self.slots.resize([one.slot for one in self.running], count, length)
        for slot, one in enumerate(self.running):
            one.slot = slot
        self.decoder.forget()

    def free_slot(self) -> int:
        """The lowest slot that no answer uses."""
        used = {one.slot for one in self.running}
        return next(slot for slot in range(self.slots.count) if slot not in used)

    def slot_for(self, one: Generation) -> int:
        """A slot for an answer: low ones for flows with few answers, because a step costs as much as its last slot."""
        slot, held = self.free_slot(), self.held()
        mine = held[one.request.flow.name]
        below = [other for other in self.running if other.slot < slot and held[other.request.flow.name] > mine + 1]
        if not below:
            return slot
        moved = min(below, key=lambda other: other.slot)
        low = moved.slot
        self.slots.move(low, slot, moved.cached)
        moved.slot = slot
        return low

    def compact(self) -> None:
        """Move the last answers to free slots, if a decode step then has fewer rows."""
        if not self.running:
            self._sampled, self._sampler = (), None  # they hold answers with their vision features
        while self.running:
            last = max(self.running, key=lambda one: one.slot)
            if self.decoder.rows(len(self.running)) >= self.decoder.rows(last.slot + 1):
                return
            slot = self.free_slot()
            self.slots.move(last.slot, slot, last.cached)
            last.slot = slot

    def sample(self, answers: Sequence[Generation], logits: torch.Tensor) -> None:
        """Choose the next token of answers from their `logits`, `[answers, vocabulary]`."""
        if trying := [i for i, one in enumerate(answers) if one.exit.running]:
            self._try([answers[i] for i in trying], logits[trying])
            if not (rest := [i for i, one in enumerate(answers) if i not in trying]):
                return
            answers, logits = [answers[i] for i in rest], logits[rest]
        failed = None
        try:
            if self._sampler is None or self._sampled != (*answers,):
                samplers = [one.sampler for one in answers]
                self._sampled, self._sampler = (*answers,), BatchSampler(samplers, logits.shape[-1], logits.device)
            tokens = self._sampler(logits)
            tried = [i for i, one in enumerate(answers) if one.request.trial.needs_answer]
            scores = token_scores(logits[tried], [tokens[i] for i in tried]) if tried else ()
            log_probs: list[LogProbs | None] = [None] * len(answers)
            if wanted := [i for i, one in enumerate(answers) if one.needs_scores]:
                counts = [answers[i].top_logprobs for i in wanted]
                rows = log_probs_of(logits[wanted], [tokens[i] for i in wanted], counts)
                for i, row in zip(wanted, rows, strict=True):
                    log_probs[i] = row
        except Exception as error:
            failed = error.with_traceback(None)
        if failed is not None:
            self._sampler = None
            if len(answers) == 1:
                answers[0].error = failed
                return
            for one, row in zip(answers, logits, strict=True):
                self.sample([one], row[None])
            return
        for i, score in zip(tried, scores, strict=True):
            answers[i].scores.append(score)
        taken = zip(answers, tokens, log_probs, strict=True)
        replaced = [one.take(token, row) for one, token, row in taken]
        if any(replaced):
            self._sampler = None  # it has counted another token

    def _try(self, answers: Sequence[Generation], logits: torch.Tensor) -> None:
        """Choose the next token of trials from their `logits`, `[answers, vocabulary]`.

        An error, such as out of memory or a grammar that is too complex, ends the trials without a result.
        """
        try:
            excluded, constraints = [one.exit.excluded() for one in answers], [one.exit.constraint for one in answers]
            chosen = most_probable(logits, excluded, constraints)
        except Exception as error:
            self._give_up(answers, error)
            return
        for one, (token, log_prob) in zip(answers, chosen, strict=True):
            if one.cancelled:
                one.reason = "cancelled"
                continue
            try:
                if one.exit.push(token, log_prob, one.sampler.control):
                    one.end_trial(self.slots)
            except Exception as error:
                self._give_up([one], error)

    def _give_up(self, answers: Sequence[Generation], error: Exception) -> None:
        """End trials without a result."""
        log.debug("trials of the answer end: %s", error)
        for one in answers:
            one.end_trial(self.slots)
            one.exit.skip(one.sampler.control)


@dataclass(frozen=True, slots=True, eq=False)
class _Encoding:
    """Pictures and videos that wait for the tower of `checkpoint`."""

    checkpoint: Checkpoint
    pixels: Sequence[Pixels]
    future: Future[list[VisionFeatures]]
    flow: Flow

    @property
    def patches(self) -> int:
        """Number of patches of all items."""
        return sum(len(one.values) for one in self.pixels)


class _MemoryShort(Exception):
    """There is no memory for a decode step while a round of another mode pauses."""


class Scheduler:
    """Encodes pictures and generates answers of both modes, in one thread for all requests.

    In float32 each request gets the tokens that it would get alone. The last bits of the scores depend on the batch
    size, as in every batching server, so in bfloat16 a near tie may be decided differently.
    """

    def __init__(
        self,
        languages: Mapping[Mode, Language],
        prefixes: PrefixCache,
        memory: Memory,
        max_num_seqs: int = DEFAULT_NUM_SEQS,
        compile: str = "auto",
    ) -> None:
        """Create a scheduler; its thread starts with the first request.

        Args:
            languages: The language model of each mode, see `language_model`.
            prefixes: Cache of KV tokens.
            memory: Limits the KV slots.
            max_num_seqs: Maximum number of answers of each model that are generated at the same time.
            compile: See `Decoder`.

        Raises:
            SettingsError: `max_num_seqs` is not a whole number of at least 1.
        """
        self.languages, self.prefixes, self.memory, self.compile = languages, prefixes, memory, compile
        self.max_num_seqs = MAX_NUM_SEQS.read("max_num_seqs", max_num_seqs)
        #: Number of runs of a vision tower.
        self.tower_calls = 0
        self._new: SimpleQueue[Generation | _Encoding | None] = SimpleQueue()
        self._lanes: dict[Any, _Lane] = {}  # by model
        self._shares = FairShare()  # of seconds of rounds
        self._towers: dict[Any, Callable[..., list[torch.Tensor]]] = {}
        #: The mode whose round pauses for rounds of another mode. Until it goes on, nothing of it may change.
        self._paused: _Lane | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        # read here, because `prepare` sets the number to 1 for a while, and new threads inherit it
        self._threads = torch.get_num_threads()
        self._process = os.getpid()

    def generate(self, request: GenerationRequest) -> Future[Generated]:
        """Generate an answer.

        Args:
            request: The answer to generate.

        Returns:
            The future token ids and timings. The future raises errors of the vision tower, the callback or the model,
            and RouterClosedError if the scheduler is closed when the features are ready.

        Raises:
            RuntimeError: This process is a fork of the one that loaded the models.
        """
        future: Future[Generated] = Future()

        def begin(_: Future[Any]) -> None:
            try:
                self._submit(Generation(request, future))
            except BaseException as error:  # such as that of the tower
                request.lease.release()
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)

        self._check_process()
        request.features.add_done_callback(begin)
        return future

    def encode(
        self, checkpoint: Checkpoint, pixels: Sequence[Pixels], flow: Flow = DEFAULT_FLOW
    ) -> Future[list[VisionFeatures]]:
        """Encode pictures and videos. Raises RouterClosedError and RuntimeError, see `generate`."""
        self._check_process()
        future: Future[list[VisionFeatures]] = Future()
        self._submit(_Encoding(checkpoint, pixels, future, flow))
        return future

    def waiting(self) -> dict[Mode, int]:
        """Number of requests of each mode that wait for a free slot."""
        waiting = [one.checkpoint.mode for lane in [*self._lanes.values()] for one in [*lane.waiting]]
        return {mode: waiting.count(mode) for mode in MODES}

    def close(self) -> None:
        """Cancel all running answers and end the thread."""
        self._end_thread()
        thread = self._thread
        # a callback may close the router; and the thread of a forked process is not in this one
        if thread and thread is not threading.current_thread() and self._process == os.getpid():
            thread.join()

    def _end_thread(self) -> None:
        with self._lock:
            self._closed = True
        self._new.put(None)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError(
                "the models were loaded in another process, of which this one is a fork; create the router in the "
                "process that uses it, or start processes with the method 'spawn'"
            )

    def _submit(self, work: Generation | _Encoding) -> None:
        with self._lock:
            if self._closed and isinstance(work, Generation) and work.cancelled:
                work.reason = "cancelled"  # it had begun before the router was closed
                work.finish()
                return
            if self._closed:
                raise RouterClosedError
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vlroute-engine", daemon=True)
                end = WeakMethod(self._end_thread)  # of a scheduler that still exists
                end_at_exit(self._thread, lambda: (method := end()) and method())
                self._thread.start()
                self._started.wait()
                torch.set_num_threads(self._threads)  # the default of threads that start later
            self._new.put(work)

    @torch.inference_mode()
    def _run(self) -> None:
        if self.memory.device.type == "cuda":  # otherwise streams and graphs would belong to the first GPU
            torch.cuda.set_device(self.memory.device)
        torch.get_num_threads()  # the first use in a thread would later replace the number that is set here
        torch.set_num_threads(1 if self.memory.parameters < ONE_THREAD else self._threads)  # of this thread
        forbid_waiting(
            "a callback of an answer cannot wait for another answer, because the thread that calls it generates "
            "both; ask from another thread, or after the answer has ended"
        )
        if self.memory.device.type == "cpu" and sys.platform == "linux":
            thread = threading.get_native_id()
            with suppress(OSError):  # a filter of system calls
                os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + BEHIND)
        self._started.set()
        while self._take_new():
            try:
                self._round([*self._lanes.values()])
            except Exception as error:  # no caller may wait forever after an unexpected error
                log.exception("the engine failed; its running answers end with this error")
                self._fail_all(error)

    def _take_new(self) -> bool:
        """Take over new work; wait for it if there is nothing else to do. False after `close`."""
        busy = any(lane.busy for lane in self._lanes.values())
        work = [] if busy else [self._new.get()]
        while not self._new.empty():
            work.append(self._new.get())
        for one in work:
            if one is None and self._paused:
                self._new.put(None)
                raise ForwardStopped
            if one is None:
                self._cancel_all()
                return False
            try:
                lane = self._lane(one.checkpoint)
            except Exception as error:  # such as out of memory
                self._fail(one, error)
                continue
            if not lane.busy:  # no credit for idle time beyond the latest round of the other mode, for short answers
                for other in self._lanes.values():
                    if other is not lane:
                        latest = max(other.latest_spent, other.begun_spent)
                        lane.spent = max(lane.spent, other.spent + other.begun_spent - latest)
            if isinstance(one, _Encoding):
                lane.encodings.append(one)
            else:
                lane.waiting.append(one)
        return True

    def _round(self, lanes: Sequence[_Lane]) -> bool:
        """Serve one of `lanes`. False if none has work that can be done."""
        for lane in lanes:
            self._drop_cancelled(lane)
        waiting = [lane for lane in lanes if lane.waiting]
        if waiting:
            active = (one for lane in self._lanes.values() for one in (*lane.waiting, *lane.running))
            self._shares.advance(one.request.flow for one in active)
        # if there is no memory for the next answer of one mode, the other mode admits none either
        for lane in sorted(waiting, key=self._turn):
            if not self._admit(lane):
                break
        ready = [lane for lane in lanes if lane.encodings or lane.running]
        if not ready:
            return False
        lane = min(ready, key=lambda lane: (lane.spent, MODES.index(lane.checkpoint.mode)))
        self._choose_flows(lane)
        lane.round_began, parts = time.perf_counter(), Counter[Flow]()
        try:
            match lane.next_work():
                case Work.ENCODE:
                    parts = self._encode(lane)
                case Work.READ:
                    parts = self._read(lane)
                case Work.DECODE:
                    parts = self._decode(lane)
        except ForwardStopped as stop:
            if stop.__cause__ is None:  # the scheduler is being closed
                return True
            raise stop.__cause__ from None
        lane.round_seconds = time.perf_counter() - lane.round_began
        for flow, part in parts.items():
            self._shares.charge(flow, lane.round_seconds * part / parts.total())
        lane.latest_spent = lane.round_seconds / SHARES[lane.checkpoint.mode]
        lane.spent += lane.latest_spent
        return True

    def _run_others(self, lane: _Lane) -> None:
        """Between two layers of a round of `lane`: do the rounds of other modes that are next.

        Raises:
            ForwardStopped: The scheduler is being closed, or one of these rounds has failed (`__cause__`).
        """
        others = [other for other in self._lanes.values() if other is not lane]
        if self._paused or (self._new.empty() and not any(other.busy for other in others)):
            return
        self._paused, began = lane, time.perf_counter()
        lane.begun_spent = (began - lane.round_began) / SHARES[lane.checkpoint.mode]
        spent = lane.spent + lane.begun_spent
        try:
            self._take_new()
            others = [other for other in self._lanes.values() if other is not lane]
            # only for rounds that are not longer: otherwise, this one would better be done first
            while any(
                other.busy and other.spent < spent and other.round_seconds <= lane.round_seconds for other in others
            ) and self._round(others):
                self._take_new()
        except _MemoryShort:
            pass  # after the pause, an answer of `lane` may be interrupted
        except ForwardStopped:
            raise
        except Exception as error:
            raise ForwardStopped from error
        finally:
            self._paused, lane.begun_spent = None, 0.0
            lane.round_began += time.perf_counter() - began

    def _choose_flows(self, lane: _Lane) -> None:
        """Let the round serve the flows with fewest answers, and those that are not ahead of them by more than a round.

        Flows with equally many answers do not wait for each other, because together they are faster.
        """
        flows, held = {one.request.flow for one in lane.running}, lane.held()
        fewest = min((held[flow.name] / flow.weight for flow in flows), default=0.0)
        first = {flow for flow in flows if held[flow.name] / flow.weight <= fewest}
        most = min((self._shares.received(flow) for flow in first), default=0.0) + lane.round_seconds
        lane.served = frozenset(flow.name for flow in flows if flow in first or self._shares.received(flow) <= most)

    def _lane(self, checkpoint: Checkpoint) -> _Lane:
        if checkpoint.model not in self._lanes:
            language = self.languages[checkpoint.mode]
            self._lanes[checkpoint.model] = _Lane(
                checkpoint, language, self.max_num_seqs, self.compile, self._run_others
            )
        return self._lanes[checkpoint.model]

    def _cancel_all(self) -> None:
        """End all answers and encodings; those that came before `close` are in the lanes."""
        for lane in self._lanes.values():
            for encoding in lane.encodings:
                encoding.future.set_exception(RouterClosedError())
            for one in (*lane.running, *lane.waiting):
                one.reason = "cancelled"
                one.finish()

    def _fail(self, work: Generation | _Encoding, error: Exception) -> None:
        if isinstance(work, _Encoding):
            work.future.set_exception(error)
        else:
            work.error = error
            work.finish()

    def _fail_all(self, error: Exception) -> None:
        """End all answers and encodings with `error`."""
        for lane in self._lanes.values():
            work: list[Generation | _Encoding] = [*lane.encodings, *lane.running, *lane.waiting]
            for one in work:
                self._fail(one, error)
            lane.encodings.clear()
            lane.running.clear()
            lane.waiting.clear()

    def _encode(self, lane: _Lane) -> Counter[Flow]:
        """Encode the items of one request, and of further ones up to `PATCHES`, in one call of the tower."""
        waiting = sorted(lane.encodings, key=lambda one: self._shares.received(one.flow))
        most = PATCHES if len({one.flow.name for one in waiting}) == 1 else SHARED_PATCHES
        batch, patches, parts = list[_Encoding](), 0, Counter[Flow]()
        for one in waiting:
            if batch and patches + one.patches > most:
                break
            patches += one.patches
            batch.append(one)
            lane.encodings.remove(one)
            parts[one.flow] += one.patches
        self._encode_batch(batch)
        return parts

    def _encode_batch(self, batch: Sequence[_Encoding]) -> None:
        failed = None
        try:
            model = batch[0].checkpoint.model
            visual = model.model.visual
            if visual not in self._towers:
                self._towers[visual] = vision_tower(model)
            features = encode(model, self._towers[visual], [one for encoding in batch for one in encoding.pixels])
            self.tower_calls += 1
        except Exception as error:  # such as out of memory
            failed = error.with_traceback(None)  # which would keep tensors of the failed call
        if failed is not None:
            if len(batch) > 1:
                for encoding in batch:
                    self._encode_batch([encoding])
            else:
                batch[0].future.set_exception(failed)
            return
        for encoding in batch:
            own, features = features[: len(encoding.pixels)], features[len(encoding.pixels) :]
            encoding.future.set_result(own)

    def _drop_cancelled(self, lane: _Lane) -> None:
        for one in [one for one in lane.waiting if one.cancelled]:
            lane.waiting.remove(one)
            one.reason = "cancelled"
            one.finish()
        for one in lane.running:
            if one.reads and one.cancelled:
                one.reason = "cancelled"
        self._end(lane)

    def _admit(self, lane: _Lane) -> bool:
        """Give slots to answers that wait. False if there is no memory for the next one."""
        while lane.waiting:
            held = lane.held()
            one, excess = self._next(lane, held), None
            if len(lane.running) == self.max_num_seqs and (excess := self._excess(lane, held, one)) is None:
                return True
            most = len(lane.running) + (excess is None)
            if not self._grow(lane, most, max(lane.tokens, len(one.ids) + 1)):
                if not any(other.running for other in self._lanes.values()):
                    lane.waiting.remove(one)
                    one.error = self._too_long(lane, one)
                    one.finish()
                    continue
                return False
            if excess is not None:
                self._interrupt(lane, excess)
            lane.waiting.remove(one)
            one.slot, one.began = lane.slot_for(one), one.began or time.perf_counter()
            lane.running.append(one)
            recurrent = one.checkpoint.family.recurrent
            self.prefixes.extend(one.lease, one.request.owner, one.request.prompt.tokens, recurrent)
            self._rewind(lane, one)
            self._end(lane)
        return True

    def _turn(self, lane: _Lane) -> tuple[float, int]:
        """The mode with the lower value gives a slot first: to the flow with fewer tokens, then to the older answer."""
        one = self._next(lane, lane.held())
        return self._shares.received(one.request.flow), one.number

    def _next(self, lane: _Lane, held: Counter[str]) -> Generation:
        """The answer that gets the next slot: of the flow with fewest slots, then with fewest tokens, the first one."""

        def order(one: Generation) -> tuple[float, float]:
            flow = one.request.flow
            return (held[flow.name] + 1) / flow.weight, self._shares.received(flow)

        first: dict[str, Generation] = {}
        for one in lane.waiting:
            first.setdefault(one.request.flow.name, one)
        return min(first.values(), key=order)

    def _excess(self, lane: _Lane, held: Counter[str], one: Generation) -> Generation | None:
        """The answer to interrupt for `one`: the last one of the flow with most slots, if that makes them more equal.

        As each of these steps makes the numbers of slots more equal, answers do not interrupt each other in turn.
        """
        flows = {running.request.flow.name: running.request.flow for running in lane.running}
        heaviest = max(flows.values(), key=lambda flow: held[flow.name] / flow.weight)
        flow = one.request.flow
        if (held[heaviest.name] - 1) / heaviest.weight < (held[flow.name] + 1) / flow.weight:
            return None
        return next(running for running in reversed(lane.running) if running.request.flow.name == heaviest.name)

    def _interrupt(self, lane: _Lane, one: Generation) -> None:
        """Take the slot of an answer. It is computed again, from its tokens, when it gets another one."""
        lane.running.remove(one)
        one.cached = 0
        lane.waiting.appendleft(one)

    def _rewind(self, lane: _Lane, one: Generation) -> None:
        """Let the slot of an answer hold its cached prefix only; all other tokens are read again."""
        state = one.lease.snapshot.state if one.lease.snapshot else None
        one.exit.abandon()
        try:
            lane.slots.write(one.slot, [block.kv for block in one.lease.held], state)
        except Exception as error:  # such as out of memory
            one.error = error
        one.cached = one.lease.length

    def _too_long(self, lane: _Lane, one: Generation) -> LimitError:
        if not (most := self.memory.longest(lane.slots)):
            return LimitError("the memory for keys and values is too small for any conversation: raise memory=")
        answer = " and its answer have" if len(one.ids) > one.sampler.prompt_length else " has"
        if most > len(one.ids):
            return LimitError(
                f"the conversation{answer} {len(one.ids)} tokens, and there is no memory left for them: other programs "
                "use the device; end them, or choose a lower memory= and a smaller max_num_seqs="
            )
        return LimitError(
            f"the conversation{answer} {len(one.ids)} tokens; the memory for keys and values holds at most {most}: "
            "shorten it, or raise memory="
        )

    def _grow(self, lane: _Lane, sequences: int, tokens: int) -> bool:
        """Make room for `sequences` answers, the longest with `tokens` tokens. False if there is no memory."""
        slots = lane.slots
        needed = slots.shape_for(sequences, tokens)
        if needed[0] <= slots.count and needed[1] <= slots.length:
            return True
        larger = max(needed[0], slots.count), max(needed[1], slots.length)
        if not slots.nbytes and lane.checkpoint.device.type == "cuda":
            first = self._first_shape(slots)
            larger = max(larger[0], first[0]), max(larger[1], first[1])
        for other in self._lanes.values():  # memory of a mode that does not run
            if other is not lane and not other.running and other.slots.nbytes and not self._fits(lane, *larger):
                other.resize(0, 0)
        shape = next((one for one in (larger, needed) if self._fits(lane, *one)), None)
        if shape is None:
            return False
        self.memory.reserve(self._bytes_with(lane, *shape))
        try:
            lane.resize(*shape)
        except Exception as error:
            if not is_out_of_memory(error):  # other programs use the memory
                raise
            log.warning("no memory for %d slots of %d tokens: %s", *shape, error)
            return False
        return True

    def _first_shape(self, slots: KVSlots) -> tuple[int, int]:
        """Captured graphs are lost when slots grow, so on a GPU they begin large."""
        count, length = self.max_num_seqs, FIRST_SLOT
        while slots.bytes_of(count, length) > FIRST_SHARE * self.memory.kv and length > FIRST_LENGTH:
            length //= 2
        return slots.shape_for(count, length)

    def _fits(self, lane: _Lane, count: int, length: int) -> bool:
        return self._bytes_with(lane, count, length) <= self.memory.kv

    def _bytes_with(self, lane: _Lane, count: int, length: int) -> int:
        """Size of the slots of all modes if those of `lane` had this shape."""
        others = sum(other.slots.nbytes for other in self._lanes.values() if other is not lane)
        return others + lane.slots.bytes_of(count, length)

    def _read(self, lane: _Lane) -> Counter[Flow]:
        """Read one chunk of the prompts of a mode. Returns the number of tokens of each flow."""
        decodes = any(not one.reads for other in self._lanes.values() for one in other.running)
        left, reading, parts = CHUNK if decodes else CHUNK_ALONE, [], Counter[Flow]()
        for one in lane.running:
            if one.reads and left > 0 and lane.serves(one):
                reading.append((one, one.chunk(left)))
                left -= reading[-1][1].length
                parts[one.request.flow] += reading[-1][1].length
        reading.sort(key=lambda pair: pair[1].length)
        while reading:  # chunks of similar lengths together: shorter ones are padded to the longest
            longest = reading[-1][1].length
            first = next(i for i, (_, chunk) in enumerate(reading) if 2 * chunk.length >= longest)
            self._read_chunks(lane, reading[first:])
            del reading[first:]
        self._end(lane)
        return parts

    def _read_chunks(self, lane: _Lane, reading: Sequence[tuple[Generation, Chunk]]) -> None:
        failed = None
        try:
            chunks = [chunk for _, chunk in reading]
            logits, states = read(
                lane.checkpoint.model, lane.language, lane.slots, chunks, before_layer=lane.before_layer
            )
        except ForwardStopped:
            raise
        except Exception as error:  # such as out of memory
            failed = error.with_traceback(None)  # which would keep tensors of the failed call
        if failed is not None:
            if len(reading) == 1:
                reading[0][0].error = failed
                return
            for one, chunk in reading:
                if one.checkpoint.family.recurrent:  # some layers may have changed their states
                    self._rewind(lane, one)
                if one.error is None:
                    self._read_chunks(lane, [(one, one.chunk(chunk.length))])
            return
        done = []
        for i, (one, chunk) in enumerate(reading):
            one.cached += chunk.length
            if not one.exit.running and (one.cached == len(one.ids) or one.cached in one.request.prompt.snapshots):
                self._keep(lane, one)
            if one.cached == len(one.ids):
                if not one.exit.running:
                    one.read_prompt(states[i])
                if not one.reason and one.error is None:
                    done.append(i)
        if done:
            lane.sample([reading[i][0] for i in done], logits if len(done) == len(reading) else logits[done])

    def _decode(self, lane: _Lane) -> Counter[Flow]:
        """Generate one token for every answer whose prompt is read. Returns the number of answers of each flow."""
        for one in lane.running:
            if not one.reads and one.trial_due and lane.serves(one):
                most = len(one.ids) + closing_length(one.checkpoint.tokenizer) + MAX_TRIED
                if self._grow(lane, len(lane.running), max(lane.tokens, most)):
                    one.begin_trial(lane.slots)
                else:  # no answer is interrupted for a trial
                    one.exit.skip(one.sampler.control)
        while lane.running and not self._grow(lane, len(lane.running), lane.tokens):
            if self._paused:  # an answer of the other mode may have to be interrupted
                raise _MemoryShort
            self._preempt()
        served = (one for one in lane.running if not one.reads and lane.serves(one))
        writing = sorted(served, key=lambda one: one.slot)
        parts = Counter(one.request.flow for one in writing)
        if not writing:
            return parts
        # the rows of the step: all of them write a token to their slot
        rows = lane.decoder.rows(writing[-1].slot + 1)
        ids, positions, cached, active = ([0] * rows for _ in range(4))
        for one in lane.running:  # others get a dummy token where their next tokens will be written
            if one.slot < rows:
                cached[one.slot] = one.cached
        for one in writing:
            ids[one.slot], positions[one.slot], active[one.slot] = one.ids[-1], one.position, 1
        try:
            logits = lane.decoder(ids, cached, positions, active)
        except ForwardStopped:
            raise
        except Exception as error:
            if is_out_of_memory(error) and len(lane.running) > 1:
                self._preempt()
                for one in lane.running:
                    if one in writing and one.checkpoint.family.recurrent:
                        self._rewind(lane, one)
            else:  # it concerns all answers of the step
                for one in writing:
                    one.error = error
                self._end(lane)
            return parts
        if writing[-1].slot + 1 == len(writing):
            logits = logits[: len(writing)]
        else:
            logits = logits[[one.slot for one in writing]]
        for one in writing:
            one.cached += 1
        lane.sample(writing, logits)
        self._end(lane)
        return parts

    def _preempt(self) -> None:
        """Take the slot of the answer that began last; it is computed again, from its tokens, when there is room."""
        lanes = [lane for lane in self._lanes.values() if lane.running and lane is not self._paused]
        lane = max(lanes, key=lambda lane: lane.running[-1].began)
        if sum(len(other.running) for other in self._lanes.values()) == 1:
            lane.running[0].error = self._too_long(lane, lane.running[0])
            self._end(lane)
            return
        one = lane.running[-1]
        self._interrupt(lane, one)
        log.debug("an answer of %d tokens is interrupted, because there is no memory for it", len(one.ids))

    def _keep(self, lane: _Lane, one: Generation) -> None:
        """Store the keys and values of an answer in the prefix cache, and recurrent states where the prompt says so."""
        tokens, state = one.request.prompt.tokens, None
        answer = one.cached - len(tokens)  # with the tokens of a trial, more than the answer has
        if answer > 0:
            tokens = tokens.extended(one.sampler.output_ids[:answer])
        if one.checkpoint.family.recurrent:
            if one.cached not in one.request.prompt.snapshots:
                return  # of no use without the states
            tokens, state = tokens.cut(one.cached), partial(lane.slots.state, one.slot)
        try:
            self.prefixes.insert(
                one.request.owner, tokens, lambda start, end: lane.slots.read(one.slot, start, end), state
            )
        except Exception as error:
            if not is_out_of_memory(error):  # the answer does not need it
                raise
            log.warning("no memory to cache a prefix: %s", error)

    def _end(self, lane: _Lane) -> None:
        """Remove the answers that have ended."""
        ended = [one for one in lane.running if one.reason or one.error is not None]
        if not ended:
            return
        for one in ended:
            if one.error is None and one.cached >= one.sampler.prompt_length:
                self._keep(lane, one)
            lane.running.remove(one)
        for one in ended:
            one.finish()
        lane.compact()
