"""One request on a loaded pair: nothing is encoded or read twice, whoever captions and whichever mode answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from vlroute.engine.cache.prefix import PrefixCache
from vlroute.engine.cache.vision import Features, Grid, VisionCache, feature_key
from vlroute.engine.local.checkpoint import Checkpoint, ModelPair, load_model_pair
from vlroute.engine.local.prompt import Prompt, build_prompt
from vlroute.engine.local.reasoning import Splitter
from vlroute.engine.local.sampling import resolve_settings
from vlroute.engine.local.scheduler import Batching, Generated, GenerationRequest, generate
from vlroute.engine.local.vision import VisionFeatures, encoder_outputs
from vlroute.engine.protocol import CAPTION_SETTINGS, OnPiece, Reply
from vlroute.errors import LimitError
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, Message
from vlroute.types import MODES, Mode

#: `generate.generate`, or another that does the same.
Generate = Callable[[GenerationRequest], Generated]


class Request:
    """One conversation to answer: a context manager that holds its vision features in memory until it ends.

    With `prefixes` (a conversation in turns) what a mode has read before is not read again. `namespace` keeps the
    caches of tenants apart.
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
        self._held: dict[str, VisionFeatures] = {}
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
        return self.pair.instruct.tower

    def features(self, checkpoint: Checkpoint, pictures: list[Picture], videos: list[Video]) -> Features:
        """Features in order, from the cache or the tower; they stay at hand until the request ends."""
        key = partial(feature_key, checkpoint.vision_key, namespace=self.namespace)
        new_pictures = [picture for picture in pictures if key(picture) not in self._held]
        new_videos = [video for video in videos if key(video) not in self._held]
        if new_pictures or new_videos:
            lease = self.vision.lease(checkpoint, new_pictures, new_videos, self.namespace, self._encoded)
            images, clips = self._leases.enter_context(lease)
            new: list[Picture | Video] = [*new_pictures, *new_videos]
            for item, features in zip(new, [*images, *clips], strict=True):
                self._held[key(item)] = features
        return [self._held[key(picture)] for picture in pictures], [self._held[key(video)] for video in videos]

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> None:
        """See `protocol.EngineRequest`."""
        resolve_settings(self.pair[mode], settings)

    def caption(self, seen: Picture | Video, prompt: str) -> str:
        """What the Instruct model says of one picture or video of this conversation, asked `prompt`, greedily."""
        self._see_turn(seen)
        asked = Conversation((Message("user", (seen, prompt)),))
        with Request(self.pair, asked, self.vision, None, self.namespace, self.generate) as alone:
            alone._held, alone._encoded = self._held, self._encoded
            return alone.answer("instruct", CAPTION_SETTINGS).text

    def pooled(self, seen: Picture | Video) -> NDArray[np.float32]:
        """Mean, then standard deviation, of the Instruct tower's merged tokens of one picture or video: `[2 · width]`.

        What a vision probe reads. Nothing is encoded for it that an answer would not need as well, unless the towers
        differ and Thinking answers.
        """
        self._see_turn(seen)
        pictures, videos = ([seen], []) if isinstance(seen, Picture) else ([], [seen])
        images, clips = self.features(self.pair.instruct, pictures, videos)
        merged = [*images, *clips][0].merged.float()
        return np.asarray(torch.cat([merged.mean(0), merged.std(0, correction=0)]).cpu())

    def uncached_tokens(self) -> dict[Mode, int] | None:
        """How many tokens of the prompt each mode would have to read; None while a picture's size in tokens is open."""
        if any(None in grids for mode in MODES for grids in self._grids(self.pair[mode])):
            return None
        prompts = {mode: self._prompt(self.pair[mode]) for mode in MODES}
        if self.prefixes is None:
            return {mode: prompt.length for mode, prompt in prompts.items()}
        known = {mode: self.prefixes.known(self._owner(mode), prompt.reading) for mode, prompt in prompts.items()}
        return {mode: prompt.length - known[mode] for mode, prompt in prompts.items()}

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: OnPiece = lambda channel, piece: None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """Answer the conversation in `mode`; `on_piece` gets each piece of thinking or answer as it is written."""
        checkpoint = self.pair[mode]
        began = time.perf_counter()
        self._see_new(checkpoint)
        seen_new = time.perf_counter()
        prompt = self._prompt(checkpoint)
        room = _room(checkpoint, prompt)
        owner = self._owner(mode)
        known, cache = self.prefixes.take(owner, prompt.reading) if self.prefixes else (0, None)
        if self.prefixes and cache is None:
            cache = DynamicCache()
        looked_up = time.perf_counter()
        images, videos = self.features(checkpoint, *self._unread_media(prompt, known))
        seen = time.perf_counter()
        resolved = resolve_settings(checkpoint, settings)
        resolved["max_new_tokens"] = min(resolved["max_new_tokens"], room)
        splitter = Splitter(checkpoint.tokenizer, mode == "thinking", resolved.pop("stop", None) or ())

        def on_token(token: int) -> bool:
            for channel, piece in splitter.push(token):
                on_piece(channel, piece)
            return splitter.stop.found

        outputs = encoder_outputs(images, videos)
        written = self.generate(GenerationRequest(checkpoint, prompt, outputs, resolved, on_token, cancel, cache))
        for channel, piece in splitter.flush():
            on_piece(channel, piece)
        if self.prefixes and cache is not None:
            self.prefixes.put(owner, prompt.reading.extended(written.ids), cache)
        texts = splitter.texts
        return Reply(
            text=texts["answer"],
            thinking=texts["thinking"],
            finish_reason=written.finish_reason,
            prompt_tokens=prompt.length,
            cached_tokens=known,
            vision_tokens=prompt.vision_tokens,
            completion_tokens=len(written.ids),
            thinking_tokens=splitter.thinking_tokens,
            vision_seconds=seen_new - began + seen - looked_up,
            prefill_seconds=looked_up - seen_new + written.prefill_seconds,
            decode_seconds=written.decode_seconds,
            encoded=len(self._encoded),
        )

    def _see_turn(self, seen: Picture | Video) -> None:
        """If `seen` is new in this turn, all that is new in it goes through the tower in one call."""
        last = self.conversation.messages[-1]
        if seen in (*last.pictures, *last.videos):
            self.features(self.pair.instruct, list(last.pictures), list(last.videos))

    def _owner(self, mode: Mode) -> str:
        return f"{mode} {self.namespace}"

    def _grids(self, checkpoint: Checkpoint) -> tuple[list[Grid | None], list[Grid | None]]:
        pictures, videos = list(self.conversation.pictures), list(self.conversation.videos)
        grids = self.vision.grids(checkpoint, [*pictures, *videos], self.namespace)
        return grids[: len(pictures)], grids[len(pictures) :]

    def _see_new(self, checkpoint: Checkpoint) -> None:
        """Encode what was never seen: the prompt cannot be built before its size in tokens is known."""
        images, clips = self._grids(checkpoint)
        pictures = [item for item, grid in zip(self.conversation.pictures, images, strict=True) if grid is None]
        videos = [item for item, grid in zip(self.conversation.videos, clips, strict=True) if grid is None]
        self.features(checkpoint, pictures, videos)

    def _prompt(self, checkpoint: Checkpoint) -> Prompt:
        if checkpoint.mode not in self._prompts:
            images, clips = ([grid for grid in grids if grid is not None] for grids in self._grids(checkpoint))
            self._prompts[checkpoint.mode] = build_prompt(checkpoint, self.conversation, images, clips)
        return self._prompts[checkpoint.mode]

    def _unread_media(self, prompt: Prompt, known: int) -> tuple[list[Picture], list[Video]]:
        uncached_tokens = [slot.start >= known for slot in prompt.reading.slots]
        media = [part for message in self.conversation.messages for part in message.parts if not isinstance(part, str)]
        left = [part for part, new in zip(media, uncached_tokens, strict=True) if new]
        return [p for p in left if isinstance(p, Picture)], [v for v in left if isinstance(v, Video)]


def _room(checkpoint: Checkpoint, prompt: Prompt) -> int:
    """Tokens that remain in the model's context for the output. LimitError if there is none."""
    most: int = checkpoint.model.config.text_config.max_position_embeddings
    if prompt.length >= most:
        raise LimitError(
            f"the conversation has {prompt.length} tokens, {prompt.vision_tokens} of them pictures; the model reads at "
            f"most {most - 1}: send fewer turns or smaller pictures"
        )
    return most - prompt.length


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """A loaded pair; `batching` writes several answers at the same time. Thread-safe."""

    pair: ModelPair
    vision: VisionCache
    prefixes: PrefixCache
    batching: Batching | None = None

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
        """With caches of the usual budgets where none are given. `loading` and errors as of `load_model_pair`."""
        pair = load_model_pair(instruct, thinking, **loading)
        batching = Batching(max_num_seqs) if max_num_seqs > 1 else None
        return cls(pair, vision_cache or VisionCache(), prefix_cache or PrefixCache(), batching)

    def request(self, conversation: Conversation, in_turns: bool = False, namespace: str = "") -> Request:
        write = self.batching.generate if self.batching else generate
        return Request(self.pair, conversation, self.vision, self.prefixes if in_turns else None, namespace, write)

    def close(self) -> None:
        """Cancel what is being written in shared rows."""
        if self.batching is not None:
            self.batching.close()
