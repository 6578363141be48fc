"""The engine for a model in this process.

Within a request each tower encodes a picture at most once, and the prompt of each mode is tokenized once, whether for
the caption, the decision or the answer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vlroute.engine.cache.features import VisionFeatures
from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.cache.vision import Grid, VisionCache, feature_key
from vlroute.engine.local.checkpoint import Checkpoint, ModelPair, load_models
from vlroute.engine.local.forward import Language
from vlroute.engine.local.generation import GenerationRequest
from vlroute.engine.local.grammar import constraint, token_id
from vlroute.engine.local.loading import DEFAULT_NUM_SEQS
from vlroute.engine.local.logprobs import AnswerLogprobs
from vlroute.engine.local.memory import Memory, available
from vlroute.engine.local.out_of_memory import is_out_of_memory
from vlroute.engine.local.prompt import Prompt, build_prompt, check_length, in_other_mode
from vlroute.engine.local.reasoning import Splitter, closing_length
from vlroute.engine.local.sampling import end_ids, resolve_settings
from vlroute.engine.local.scheduler import Scheduler
from vlroute.engine.local.vision import prepare
from vlroute.engine.protocol import CAPTION_SETTINGS, OnPiece, Piece, Reply, Trial, empty_reply
from vlroute.engine.settings import answer_reserve, response_format
from vlroute.engine.tool_calls import CLOSE, OPEN, CallReader
from vlroute.engine.tool_grammar import tool_grammar
from vlroute.engine.trial import RunningTrial
from vlroute.errors import LimitError, OutOfMemoryError, SettingsError
from vlroute.fair_share import DEFAULT_FLOW, Flow
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, Message
from vlroute.inputs.tools import Tools
from vlroute.steps import Steps, start, wait
from vlroute.structured import ResponseFormat
from vlroute.types import MODES, Channel, Mode, Stage, other


class Request:
    """One conversation to answer; a context manager that keeps its vision features in memory until it ends.

    Implements `protocol.EngineRequest`. `namespace` separates the cache entries of tenants; `flow`: see
    `protocol.Engine.request`.
    """

    def __init__(
        self, engine: LocalEngine, conversation: Conversation, namespace: str = "", flow: Flow | None = None
    ) -> None:
        self.engine, self.conversation, self.namespace = engine, conversation, namespace
        self.flow = Flow(namespace) if flow is None else flow
        self._leases = ExitStack()
        self._lock, self._ended = threading.Lock(), False
        self._features: dict[str, VisionFeatures] = {}
        self._encoded: set[str] = set()
        self._prompts: dict[Mode, Prompt] = {}
        self._grammars: dict[Mode, str] = {}
        self._encoding: Future[None] | None = None
        self._measures: dict[str, Grid] = {}
        self._new: set[str] = set()  # digests of the items whose grid was unknown

    def __enter__(self) -> Request:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._ended = True
        self._leases.close()
        if is_out_of_memory(error):
            raise OutOfMemoryError(self._too_large()) from error

    def _too_large(self) -> str:
        """What the request contains, and how much memory is free."""
        device = self.engine.pair.instruct.device
        free, total = available(device)
        characters = sum(len(message.text) for message in self.conversation.messages)
        pictures = [f"{width} × {height}" for width, height in (one.image.size for one in self.conversation.pictures)]
        videos = [f"{len(one.frames)} frames" for one in self.conversation.videos]
        parts = [f"{characters} characters of text"]
        for name, sizes in (("picture", pictures), ("video", videos)):
            if sizes:
                shown = ", ".join(sizes[:4]) + (", …" if len(sizes) > 4 else "")
                parts.append(f"{len(sizes)} {name}{'s' if len(sizes) > 1 else ''} ({shown})")
        return (
            f"the memory of {device} is not enough for this request with {' and '.join(parts)}: "
            f"{free / 2**30:.1f} GiB of {total / 2**30:.1f} GiB are free. Send smaller pictures, fewer frames or fewer "
            "turns; or leave more memory free with a lower max_num_seqs= or memory="
        )

    @property
    def tower(self) -> str:
        """See `protocol.EngineRequest`."""
        return self.engine.pair.instruct.tower

    @property
    def _has_media(self) -> bool:
        return bool(self.conversation.pictures or self.conversation.videos)

    @property
    def encoded(self) -> int:
        """Number of pictures and videos that went through the tower for this request."""
        return len(self._encoded)

    def features(self, checkpoint: Checkpoint, items: Sequence[Picture | Video]) -> Steps[list[VisionFeatures]]:
        """Features of the items in order, from the cache or the tower; they are kept until the request ends."""
        if self._encoding is not None:
            yield from wait(self._encoding)
        return (yield from self._leased(checkpoint, items))

    def _leased(self, checkpoint: Checkpoint, items: Sequence[Picture | Video]) -> Steps[list[VisionFeatures]]:
        keys = [feature_key(checkpoint.vision_key, item, self.namespace) for item in items]
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in self._features}
        if new:
            encoder = self.engine.encoders[checkpoint.mode].of(self.flow)
            lease = yield from self.engine.vision.lease(encoder, [*new.values()], self.namespace, self._encoded)
            self._keep(lease.release)
            self._features |= dict(zip(new, lease.features, strict=True))
        return [self._features[key] for key in keys]

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """See `protocol.EngineRequest`."""
        resolved = resolve_settings(self.engine.pair[mode], settings, media=self._has_media)
        check_length(self.engine.pair[mode], self.conversation)
        self._grammar(mode, response_format(resolved))

    def prepare(self, modes: Sequence[Mode]) -> None:
        """See `protocol.EngineRequest`: encodes new pictures if the modes share a tower and there is no disk tier."""
        checkpoints = [self.engine.pair[mode] for mode in modes]
        if self.engine.vision.disk is None and len({one.vision_key for one in checkpoints}) == 1:
            self._encoding = start(self._encode_new(checkpoints[0]))

    def caption(self, item: Picture | Video, prompt: str) -> Steps[str]:
        """See `protocol.EngineRequest`."""
        yield from self._encode_turn(item)
        with Request(
            self.engine, Conversation((Message("user", (item, prompt)),)), self.namespace, self.flow
        ) as request:
            request._features, request._encoded = self._features, self._encoded
            reply = yield from request.answer("instruct", CAPTION_SETTINGS)
        return reply.text

    def pooled(self, item: Picture | Video) -> Steps[NDArray[np.float32]]:
        """Mean and standard deviation over the merged tokens of the Instruct tower, `[2 · width]`, for a vision probe.

        The answer uses the same features, unless the towers differ and Thinking answers.
        """
        yield from self._encode_turn(item)
        (features,) = yield from self.features(self.engine.pair.instruct, [item])
        merged = features.merged.float().cpu().numpy()
        return np.concatenate([merged.mean(0), merged.std(0)])

    def uncached_tokens(self) -> dict[Mode, int] | None:
        """Number of prompt tokens that each mode must prefill; None if the size of an item in tokens is unknown."""
        pair = self.engine.pair
        if any(None in grids for mode in MODES for grids in self._grids(pair[mode])):
            return None
        prompts = {mode: self._prompt(pair[mode]) for mode in MODES}
        cached = {
            mode: self.engine.prefixes.cached_tokens(
                self._owner(pair[mode]), prompt.tokens, pair[mode].family.recurrent
            )
            for mode, prompt in prompts.items()
        }
        return {mode: prompt.length - cached[mode] for mode, prompt in prompts.items()}

    def prompt_tokens(self, mode: Mode) -> int:
        """See `protocol.EngineRequest`. The pixels of new pictures are prepared to learn their size in tokens."""
        checkpoint, count = self.engine.pair[mode], len(self.conversation.pictures)
        items: list[Picture | Video] = [*self.conversation.pictures, *self.conversation.videos]
        grids = [
            self._measured(checkpoint, item) if grid is None else grid
            for item, grid in zip(items, itertools.chain(*self._grids(checkpoint)), strict=True)
        ]
        return build_prompt(checkpoint, self.conversation, grids[:count], grids[count:]).length

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece | None = None,
        cancel: threading.Event | None = None,
        trial: Trial | None = None,
    ) -> Steps[Reply]:
        """See `protocol.EngineRequest`."""
        checkpoint, prefixes = self.engine.pair[mode], self.engine.prefixes
        began = encoded = time.perf_counter()
        writes = self.engine.vision.disk is not None  # the thread of the models must not wait for a disk
        if writes:
            yield from self._encode_new(checkpoint)
        encoding = self._encoding or start(self._encode_new(checkpoint))
        if None in itertools.chain(*self._grids(checkpoint)):  # another request prepares the same pixels now
            yield from wait(encoding)
        prompt = self._prompt(checkpoint)
        max_output = _max_output_tokens(checkpoint, prompt)
        owner = self._owner(checkpoint)
        lease = prefixes.match(owner, prompt.tokens, checkpoint.family.recurrent)
        try:
            media = self._uncached_media(prompt, lease.length)
            if writes:
                yield from self.features(checkpoint, media)
            # begun here, because the thread of the models must not prepare pixels
            evicted = start(self._leased(checkpoint, [item for item in media if item.digest not in self._new]))

            def uncached_features() -> Steps[list[VisionFeatures]]:
                nonlocal encoded
                yield from wait(encoding)
                yield from wait(evicted)
                features = yield from self.features(checkpoint, media)
                encoded = time.perf_counter()
                return features

            resolved = resolve_settings(checkpoint, settings, media=self._has_media)
            resolved["max_new_tokens"] = min(resolved["max_new_tokens"], max_output)
            reserve = answer_reserve(resolved, resolved["max_new_tokens"]) if mode == "thinking" else 0
            if reserve and resolved["max_new_tokens"] <= closing_length(checkpoint.tokenizer):
                lease.release()
                return empty_reply(encoded=self.encoded)  # the reasoning could not be closed in time
            continues, stops = bool(self.conversation.prefix), resolved.pop("stop", None) or ()
            splitter = Splitter(checkpoint.tokenizer, mode == "thinking", stops, continues)
            running, tools = RunningTrial(trial, on_piece, self.engine.stages), self.conversation.tools
            calls = None if tools is None else CallReader(tools, checkpoint.family.call_format, mode, continues)
            constrained = None
            if (grammar := self._grammar(mode, response_format(resolved))) is not None:
                vocabulary = checkpoint.model.config.text_config.vocab_size
                constrained = constraint(checkpoint.tokenizer, vocabulary, grammar, end_ids(resolved))

            logprobs = AnswerLogprobs(checkpoint.tokenizer) if resolved.get("logprobs") else None

            def pass_on(pieces: Iterable[tuple[Channel, Piece]]) -> None:
                running.push(pieces if logprobs is None else logprobs.attach(pieces))

            def on_token(token: int) -> bool:
                pieces = splitter.push(token)
                pass_on(pieces if calls is None else calls.read(pieces))
                return splitter.stop.found is not None or (calls is not None and calls.ended)

            features = start(uncached_features())
            generating = self.engine.scheduler.generate(
                GenerationRequest(
                    checkpoint,
                    prompt,
                    resolved,
                    features,
                    on_token,
                    cancel,
                    owner,
                    lease,
                    running,
                    constrained,
                    continues,
                    None if logprobs is None else logprobs.push,
                    self.flow,
                )
            )
        except BaseException:
            lease.release()
            raise
        try:
            generated = yield from wait(generating)
        except BaseException:  # such as Ctrl-C: nobody waits for the answer any more
            generating.cancel()
            raise
        running.release()  # cancelled before the trial was decided
        if calls is None:
            pass_on(splitter.flush())
        else:
            pass_on(calls.read(splitter.flush()))
            pass_on(calls.flush(complete=generated.finish_reason == "stop" and not splitter.stop.found))
        texts = splitter.texts
        return Reply(
            text=texts["answer"] if calls is None else calls.text,
            thinking=texts["thinking"],
            finish_reason=generated.finish_reason,
            prompt_tokens=prompt.length,
            cached_tokens=generated.cached,
            vision_tokens=prompt.vision_tokens,
            completion_tokens=len(generated.ids),
            thinking_tokens=splitter.thinking_tokens,
            vision_seconds=encoded - began,
            prefill_seconds=generated.prefill_seconds,
            decode_seconds=generated.decode_seconds,
            encoded=self.encoded,
            closed=generated.closed,
            tool_calls=() if calls is None else tuple(calls.calls),
            stop=splitter.stop.found if generated.finish_reason == "stop" else None,
            queue_seconds=generated.queue_seconds,
            logprobs=None if logprobs is None else tuple(logprobs.entries),
        )

    def _keep(self, release: Callable[[], None]) -> None:
        """Call `release` when the request ends; at once if it has ended while the tower ran."""
        with self._lock:
            if not self._ended:
                self._leases.callback(release)
                return
        release()

    def _encode_turn(self, item: Picture | Video) -> Steps[None]:
        """If `item` belongs to the last message, encode all items of this message in one call."""
        last = self.conversation.messages[-1]
        if item in (*last.pictures, *last.videos):
            yield from self.features(self.engine.pair.instruct, [*last.pictures, *last.videos])

    def _grammar(self, mode: Mode, response: ResponseFormat | None) -> str | None:
        """The grammar of the answer, computed once; None if nothing constrains it."""
        tools, checkpoint = self.conversation.tools, self.engine.pair[mode]
        if self.conversation.prefix and (response is not None or (tools is not None and tools.constrained)):
            raise SettingsError(
                "an answer that continues a given beginning cannot have a response_format or required or strict tools: "
                "leave them or the last message out"
            )
        if tools is None or not (tools.constrained or response is not None):
            return None if response is None else response.grammar
        if mode not in self._grammars:
            self._grammars[mode] = _tool_grammar(tools, checkpoint, response)
        return self._grammars[mode]

    def _owner(self, checkpoint: Checkpoint) -> str:
        return f"{checkpoint.owner} {self.namespace}"

    def _grids(self, checkpoint: Checkpoint) -> tuple[list[Grid | None], list[Grid | None]]:
        pictures, videos = list(self.conversation.pictures), list(self.conversation.videos)
        encoder = self.engine.encoders[checkpoint.mode]
        grids = self.engine.vision.grids(encoder, [*pictures, *videos], self.namespace)
        return grids[: len(pictures)], grids[len(pictures) :]

    def _measured(self, checkpoint: Checkpoint, item: Picture | Video) -> Grid:
        """The grid of an item that was not encoded."""
        key = feature_key(checkpoint.grid_key, item)
        if key not in self._measures:
            self._measures[key] = prepare(checkpoint.model, checkpoint.processor, [item])[0].grid
        return self._measures[key]

    def _encode_new(self, checkpoint: Checkpoint) -> Steps[None]:
        """Encode the items whose grid is unknown: without it the prompt cannot be built."""
        items: list[Picture | Video] = [*self.conversation.pictures, *self.conversation.videos]
        grids = itertools.chain(*self._grids(checkpoint))
        new = [item for item, grid in zip(items, grids, strict=True) if grid is None]
        self._new.update(item.digest for item in new)
        yield from self._leased(checkpoint, new)

    def _prompt(self, checkpoint: Checkpoint) -> Prompt:
        if checkpoint.mode not in self._prompts:
            known = self._prompts.get(other(checkpoint.mode))
            if known is not None and known.marker is not None:
                prompt = in_other_mode(known, checkpoint)
            else:
                images, clips = ([grid for grid in grids if grid is not None] for grids in self._grids(checkpoint))
                prompt = build_prompt(checkpoint, self.conversation, images, clips)
            self._prompts[checkpoint.mode] = prompt
        return self._prompts[checkpoint.mode]

    def _uncached_media(self, prompt: Prompt, cached: int) -> list[Picture | Video]:
        """The items that do not end within the first `cached` tokens."""
        media = [part for message in self.conversation.messages for part in message.parts if not isinstance(part, str)]
        return [item for item, slot in zip(media, prompt.tokens.slots, strict=True) if slot.end > cached]


def _max_output_tokens(checkpoint: Checkpoint, prompt: Prompt) -> int:
    """Number of tokens that the context leaves for the output. LimitError if there are none."""
    most: int = checkpoint.model.config.text_config.max_position_embeddings
    if prompt.length >= most:
        raise LimitError(
            f"the conversation has {prompt.length} tokens, {prompt.vision_tokens} of them vision tokens; the model "
            f"accepts at most {most - 1}: send fewer turns or smaller pictures"
        )
    return most - prompt.length


class Encoder:
    """Encodes pictures and videos with the tower of a checkpoint; see `cache.vision.VisionEncoder`."""

    def __init__(self, checkpoint: Checkpoint, scheduler: Scheduler, flow: Flow = DEFAULT_FLOW) -> None:
        self.vision_key, self.grid_key = checkpoint.vision_key, checkpoint.grid_key
        self.merge_size, self.device = checkpoint.merge_size, checkpoint.device
        self._checkpoint, self._scheduler, self._flow = checkpoint, scheduler, flow

    def of(self, flow: Flow) -> Encoder:
        """This encoder for the requests of a flow."""
        return Encoder(self._checkpoint, self._scheduler, flow)

    def encode(self, items: Sequence[Picture | Video]) -> tuple[list[Grid], Future[list[VisionFeatures]]]:
        """Prepare pixels in this thread; the thread of the scheduler runs the tower."""
        pixels = prepare(self._checkpoint.model, self._checkpoint.processor, items)
        return [one.grid for one in pixels], self._scheduler.encode(self._checkpoint, pixels, self._flow)


def _languages(pair: ModelPair) -> dict[Mode, Language]:
    """The language model of each mode; one object if both modes have one model."""
    languages: dict[Mode, Language] = {}
    for mode in MODES:
        checkpoint = pair[mode]
        if mode == "thinking" and checkpoint.model is pair.instruct.model:
            languages[mode] = languages["instruct"]
        else:
            languages[mode] = resolve_name(checkpoint.family.language_model)(checkpoint.model)
    return languages


def _tool_grammar(tools: Tools, checkpoint: Checkpoint, response: ResponseFormat | None) -> str:
    opening, closing = (token_id(checkpoint.tokenizer, tag) for tag in (OPEN, CLOSE))
    return tool_grammar(tools, checkpoint.family.call_format, (opening, closing), response)


class LocalEngine:
    """A loaded model pair with its caches and the scheduler that runs it. Thread-safe."""

    remote: ClassVar[bool] = False
    stages: ClassVar[tuple[Stage, ...]] = ("prefill", "answer")

    def __init__(
        self,
        pair: ModelPair,
        vision: VisionCache | None = None,
        prefixes: PrefixCache | None = None,
        max_num_seqs: int = DEFAULT_NUM_SEQS,
        memory: float | None = None,
        compile: str = "auto",
    ) -> None:
        """Create the engine.

        Args:
            pair: The loaded checkpoints.
            vision: Cache of vision features.
            prefixes: Cache of KV tokens.
            max_num_seqs: Maximum number of answers in each mode that are generated at the same time.
            memory: See `Router.from_pretrained`.
            compile: See `Router.from_pretrained`.
        """
        self.pair = pair
        self.vision = VisionCache() if vision is None else vision
        self.prefixes = PrefixCache() if prefixes is None else prefixes
        languages = _languages(pair)
        budgets = Memory(pair, self.prefixes, self.vision, memory)
        self.scheduler = Scheduler(languages, self.prefixes, budgets, max_num_seqs, compile)
        self.encoders = {mode: Encoder(pair[mode], self.scheduler) for mode in MODES}

    @property
    def shared_prompt(self) -> bool:
        """See `protocol.Engine`."""
        return self.pair.instruct.model is self.pair.thinking.model

    @property
    def fingerprint(self) -> str:
        """Fingerprint of both checkpoints."""
        return self.pair.fingerprint

    @classmethod
    def load(
        cls,
        instruct: str | Path,
        thinking: str | Path,
        loading: Mapping[str, Any],
        max_num_seqs: int = DEFAULT_NUM_SEQS,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> LocalEngine:
        """Load the models, with caches of default size if none are given. `loading` and errors: see `load_models`."""
        options = {name: value for name, value in loading.items() if name not in ("memory", "compile")}
        pair = load_models(instruct, thinking, **options)
        memory, compile = loading.get("memory"), loading.get("compile") or "auto"
        return cls(pair, vision_cache, prefix_cache, max_num_seqs, memory, compile)

    def request(self, conversation: Conversation, namespace: str = "", flow: Flow | None = None) -> Request:
        """See `protocol.Engine`."""
        return Request(self, conversation, namespace, flow)

    def check_tools(self, tools: Tools, response: ResponseFormat | None) -> None:
        """See `protocol.Engine`."""
        if tools.constrained or response is not None:
            for checkpoint in (self.pair.instruct, self.pair.thinking):
                _tool_grammar(tools, checkpoint, response)

    def wait(self) -> None:
        """See `protocol.Engine`: the models are loaded."""

    def close(self) -> None:
        """Cancel the running answers and end the thread of the scheduler."""
        self.scheduler.close()
