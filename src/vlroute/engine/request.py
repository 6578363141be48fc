"""One request on a loaded pair: pictures are encoded once, whoever captions and whichever mode answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlroute.engine.generate import FinishReason, generate
from vlroute.engine.pair import Checkpoint, Pair
from vlroute.engine.prompt import build_prompt
from vlroute.engine.settings import resolve_settings
from vlroute.engine.thinking import Channel, Splitter
from vlroute.engine.vision import VisionFeatures, encode, encoder_outputs
from vlroute.media import Picture, Video
from vlroute.messages import Conversation, Message
from vlroute.modes import Mode

Features = tuple[list[VisionFeatures], list[VisionFeatures]]
CAPTION_SETTINGS = {"do_sample": False, "max_new_tokens": 24}


@dataclass(frozen=True, slots=True)
class Reply:
    """What one mode wrote, with its counts of tokens and its seconds per step."""

    text: str
    thinking: str
    finish_reason: FinishReason
    prompt_tokens: int
    vision_tokens: int
    completion_tokens: int
    thinking_tokens: int
    vision_seconds: float
    prefill_seconds: float
    decode_seconds: float


class Request:
    """Holds the vision features of one conversation for as long as the request lasts."""

    def __init__(self, pair: Pair, conversation: Conversation) -> None:
        self.pair, self.conversation = pair, conversation
        self._features: dict[str, Features] = {}

    def features(self, checkpoint: Checkpoint) -> Features:
        """Features of all pictures and all videos, in order; encoded at the first call per distinct tower."""
        key = checkpoint.vision_key
        if key not in self._features:
            self._features[key] = encode(checkpoint, self.conversation.pictures, self.conversation.videos)
        return self._features[key]

    def caption(self, seen: Picture | Video, prompt: str) -> str:
        """What the Instruct model says of one picture or video of this conversation, asked `prompt`, greedily."""
        checkpoint = self.pair.instruct
        images, videos = self.features(checkpoint)
        if isinstance(seen, Picture):
            images, videos = [images[self.conversation.pictures.index(seen)]], []
        else:
            images, videos = [], [videos[self.conversation.videos.index(seen)]]
        asked = Conversation((Message("user", (seen, prompt)),))
        return self._write(checkpoint, asked, images, videos, CAPTION_SETTINGS).text

    def answer(
        self,
        mode: Mode,
        settings: Mapping[str, Any],
        on_piece: Callable[[Channel, str], None] = lambda channel, piece: None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        """Answer the conversation in `mode`; `on_piece` gets each piece of thinking or answer as it is written."""
        checkpoint = self.pair[mode]
        began = time.perf_counter()
        images, videos = self.features(checkpoint)
        vision_seconds = time.perf_counter() - began
        return self._write(
            checkpoint,
            self.conversation,
            images,
            videos,
            settings,
            vision_seconds,
            on_piece=on_piece,
            cancel=cancel,
        )

    def _write(
        self,
        checkpoint: Checkpoint,
        conversation: Conversation,
        images: list[VisionFeatures],
        videos: list[VisionFeatures],
        settings: Mapping[str, Any],
        vision_seconds: float = 0.0,
        on_piece: Callable[[Channel, str], None] = lambda channel, piece: None,
        cancel: threading.Event | None = None,
    ) -> Reply:
        began = time.perf_counter()
        prompt = build_prompt(checkpoint, conversation, [i.grid for i in images], [v.grid for v in videos])
        splitter = Splitter(checkpoint.tokenizer, checkpoint.mode == "thinking")

        def on_token(token: int) -> None:
            for channel, piece in splitter.push(token):
                on_piece(channel, piece)

        built = time.perf_counter() - began
        resolved = resolve_settings(checkpoint, settings)
        written = generate(checkpoint, prompt, encoder_outputs(images, videos), resolved, on_token, cancel)
        return Reply(
            text=splitter.texts["answer"],
            thinking=splitter.texts["thinking"],
            finish_reason=written.finish_reason,
            prompt_tokens=prompt.length,
            vision_tokens=prompt.vision_tokens,
            completion_tokens=len(written.ids),
            thinking_tokens=splitter.thinking_tokens,
            vision_seconds=vision_seconds,
            prefill_seconds=built + written.prefill_seconds,
            decode_seconds=written.decode_seconds,
        )
