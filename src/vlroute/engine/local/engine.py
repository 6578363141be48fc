"""The engine for a model in this process.

Within a request no picture is encoded twice, and no prompt is tokenized twice, whether for the caption, the decision
or the answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from vlroute.engine.cache.features import Features, VisionFeatures
from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.cache.vision import Grid, VisionCache, feature_key
from vlroute.engine.local.checkpoint import Checkpoint, ModelPair, load_model_pair
from vlroute.engine.local.prompt import Prompt, build_prompt
from vlroute.engine.local.reasoning import Splitter
from vlroute.engine.local.sampling import resolve_settings
from vlroute.engine.local.scheduler import Generated, GenerationRequest, Scheduler, generate
from vlroute.engine.local.vision import encoder_outputs
from vlroute.engine.protocol import CAPTION_SETTINGS, OnPiece, Reply
from vlroute.errors import LimitError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, Message
from vlroute.types import MODES, Channel, Mode

#: `scheduler.generate`, or the method of a `Scheduler`.
Generate = Callable[[GenerationRequest], Generated]


class Request:
    """One conversation to answer; a context manager that keeps its vision features in memory until it ends.

    Implements `protocol.EngineRequest`. With `prefixes`, cached KV tokens of earlier turns are reused. `namespace`
    separates the cache entries of tenants.
    """

    def __init__(
        self,
        pair: ModelPair,
        conversation: Conversation,
        vision: VisionCache,
        prefixes: PrefixCache | None = None,
        namespace: str = "",
        generate: Generate = generate,
    ) -> None:
        self.pair, self.conversation, self.vision = pair, conversation, vision
        self.prefixes, self.namespace, self.generate = prefixes, namespace, generate
        self._leases = ExitStack()
        self._features: dict[str, VisionFeatures] = {}
        self._encoded: set[str] = set()
        self._prompts: dict[Mode, Prompt] = {}

    def __enter__(self) -> Request:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leases.close()

    @property
    def tower(self) -> str:
        """See `protocol.EngineRequest`."""
        return self.pair.instruct.tower

    @property
    def encoded(self) -> int:
        """Number of pictures and videos that went through the tower for this request."""
        return len(self._encoded)

    def features(self, checkpoint: Checkpoint, pictures: list[Picture], videos: list[Video]) -> Features:
        """Features of the items in order, from the cache or the tower; they are kept until the request ends."""
        key = partial(feature_key, checkpoint.vision_key, namespace=self.namespace)
        new_pictures = [picture for picture in pictures if key(picture) not in self._features]
        new_videos = [video for video in videos if key(video) not in self._features]
        if new_pictures or new_videos:
            lease = self.vision.lease(checkpoint, new_pictures, new_videos, self.namespace, self._encoded)
            images, clips = self._leases.enter_context(lease)
            new: list[Picture | Video] = [*new_pictures, *new_videos]
            for item, features in zip(new, [*images, *clips], strict=True):
                self._features[key(item)] = features
        return [self._features[key(picture)] for picture in pictures], [self._features[key(video)] for video in videos]

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """See `protocol.EngineRequest`."""
        resolve_settings(self.pair[mode], settings)

    def caption(self, item: Picture | Video, prompt: str) -> str:
        """See `protocol.EngineRequest`."""
        self._encode_turn(item)
        conversation = Conversation((Message("user", (item, prompt)),))
        with Request(self.pair, conversation, self.vision, None, self.namespace, self.generate) as request:
            request._features, request._encoded = self._features, self._encoded
            return request.answer("instruct", CAPTION_SETTINGS).text

    def pooled(self, item: Picture | Video) -> NDArray[np.float32]:
        """Mean and standard deviation over the merged tokens of the Instruct tower, `[2 · width]`, for a vision probe.

        The answer uses the same features, unless the towers differ and Thinking answers.
        """
        self._encode_turn(item)
        pictures, videos = ([item], []) if isinstance(item, Picture) else ([], [item])
        images, clips = self.features(self.pair.instruct, pictures, videos)
        merged = [*images, *clips][0].merged.float()
        return np.asarray(torch.cat([merged.mean(0), merged.std(0, correction=0)]).cpu())

    def uncached_tokens(self) -> dict[Mode, int] | None:
        """Number of prompt tokens that each mode must prefill; None if the size of an item in tokens is unknown."""
        if any(None in grids for mode in MODES for grids in self._grids(self.pair[mode])):
            return None
        prompts = {mode: self._prompt(self.pair[mode]) for mode in MODES}
        if self.prefixes is None:
            return {mode: prompt.length for mode, prompt in prompts.items()}
        cached = {
            mode: self.prefixes.cached_tokens(self._owner(mode), prompt.tokens) for mode, prompt in prompts.items()
        }
        return {mode: prompt.length - cached[mode] for mode, prompt in prompts.items()}

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece | None = None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """See `protocol.EngineRequest`."""
        checkpoint = self.pair[mode]
        began = time.perf_counter()
        self._encode_new(checkpoint)
        seen_new = time.perf_counter()
        prompt = self._prompt(checkpoint)
        max_output = _max_output_tokens(checkpoint, prompt)
        owner = self._owner(mode)
        cached, cache = self.prefixes.match(owner, prompt.tokens) if self.prefixes else (0, None)
        if self.prefixes and cache is None:
            cache = DynamicCache()
        looked_up = time.perf_counter()
        images, videos = self.features(checkpoint, *self._uncached_media(prompt, cached))
        encoded = time.perf_counter()
        resolved = resolve_settings(checkpoint, settings)
        resolved["max_new_tokens"] = min(resolved["max_new_tokens"], max_output)
        splitter = Splitter(checkpoint.tokenizer, mode == "thinking", resolved.pop("stop", None) or ())

        def pass_on(pieces: Iterable[tuple[Channel, str]]) -> None:
            for channel, piece in pieces:
                if on_piece is not None:
                    on_piece(channel, piece)

        def on_token(token: int) -> bool:
            pass_on(splitter.push(token))
            return splitter.stop.found

        outputs = encoder_outputs(images, videos)
        generated = self.generate(GenerationRequest(checkpoint, prompt, outputs, resolved, on_token, cancel, cache))
        pass_on(splitter.flush())
        if self.prefixes and cache is not None:
            self.prefixes.insert(owner, prompt.tokens.extended(generated.ids), cache)
        texts = splitter.texts
        return Reply(
            text=texts["answer"],
            thinking=texts["thinking"],
            finish_reason=generated.finish_reason,
            prompt_tokens=prompt.length,
            cached_tokens=cached,
            vision_tokens=prompt.vision_tokens,
            completion_tokens=len(generated.ids),
            thinking_tokens=splitter.thinking_tokens,
            vision_seconds=seen_new - began + encoded - looked_up,
            prefill_seconds=looked_up - seen_new + generated.prefill_seconds,
            decode_seconds=generated.decode_seconds,
            encoded=self.encoded,
        )

    def _encode_turn(self, item: Picture | Video) -> None:
        """If `item` belongs to the last message, encode all items of this message in one call."""
        last = self.conversation.messages[-1]
        if item in (*last.pictures, *last.videos):
            self.features(self.pair.instruct, list(last.pictures), list(last.videos))

    def _owner(self, mode: Mode) -> str:
        return f"{mode} {self.namespace}"

    def _grids(self, checkpoint: Checkpoint) -> tuple[list[Grid | None], list[Grid | None]]:
        pictures, videos = list(self.conversation.pictures), list(self.conversation.videos)
        grids = self.vision.grids(checkpoint, [*pictures, *videos], self.namespace)
        return grids[: len(pictures)], grids[len(pictures) :]

    def _encode_new(self, checkpoint: Checkpoint) -> None:
        """Encode the items whose grid is unknown: without it the prompt cannot be built."""
        images, clips = self._grids(checkpoint)
        pictures = [item for item, grid in zip(self.conversation.pictures, images, strict=True) if grid is None]
        videos = [item for item, grid in zip(self.conversation.videos, clips, strict=True) if grid is None]
        self.features(checkpoint, pictures, videos)

    def _prompt(self, checkpoint: Checkpoint) -> Prompt:
        if checkpoint.mode not in self._prompts:
            images, clips = ([grid for grid in grids if grid is not None] for grids in self._grids(checkpoint))
            self._prompts[checkpoint.mode] = build_prompt(checkpoint, self.conversation, images, clips)
        return self._prompts[checkpoint.mode]

    def _uncached_media(self, prompt: Prompt, cached: int) -> tuple[list[Picture], list[Video]]:
        uncached_tokens = [slot.start >= cached for slot in prompt.tokens.slots]
        media = [part for message in self.conversation.messages for part in message.parts if not isinstance(part, str)]
        left = [part for part, new in zip(media, uncached_tokens, strict=True) if new]
        return [p for p in left if isinstance(p, Picture)], [v for v in left if isinstance(v, Video)]


def _max_output_tokens(checkpoint: Checkpoint, prompt: Prompt) -> int:
    """Number of tokens that the context leaves for the output. LimitError if there are none."""
    most: int = checkpoint.model.config.text_config.max_position_embeddings
    if prompt.length >= most:
        raise LimitError(
            f"the conversation has {prompt.length} tokens, {prompt.vision_tokens} of them vision tokens; the model "
            f"accepts at most {most - 1}: send fewer turns or smaller pictures"
        )
    return most - prompt.length


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """A loaded model pair with its caches. With a `scheduler`, several answers share forward passes. Thread-safe."""

    pair: ModelPair
    vision: VisionCache
    prefixes: PrefixCache
    scheduler: Scheduler | None = None
    remote: ClassVar[bool] = False

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
        max_num_seqs: int = 1,
        vision_cache: VisionCache | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> LocalEngine:
        """Load the pair, with caches of default size if none are given. `loading` and errors: see `load_model_pair`."""
        pair = load_model_pair(instruct, thinking, **loading)
        scheduler = Scheduler(max_num_seqs) if max_num_seqs > 1 else None
        return cls(pair, vision_cache or VisionCache(), prefix_cache or PrefixCache(), scheduler)

    def request(self, conversation: Conversation, in_turns: bool = False, namespace: str = "") -> Request:
        """See `protocol.Engine`."""
        generate_one = self.scheduler.generate if self.scheduler else generate
        return Request(
            self.pair, conversation, self.vision, self.prefixes if in_turns else None, namespace, generate_one
        )

    def wait(self) -> None:
        """See `protocol.Engine`: the models are loaded."""

    def close(self) -> None:
        """Cancel the running answers of the scheduler."""
        if self.scheduler is not None:
            self.scheduler.close()
