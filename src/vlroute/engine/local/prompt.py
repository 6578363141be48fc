"""Builds the prompt of a conversation: token ids and explicit positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlroute.engine.cache.prefix import Slot, TokenPrefix
from vlroute.engine.cache.vision import Grid
from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.inputs.messages import Conversation


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and positions of one request.

    Attributes:
        tokens: Token ids, `[length]`, and the slots of the media.
        vision: Whether each token belongs to a picture or video, `[length]`.
        positions: Position of each token in time, height and width, `[3, length]`. They are explicit, because the
            model object otherwise reuses those of its previous call.
    """

    tokens: TokenPrefix
    vision: NDArray[np.bool_]
    positions: NDArray[np.int64]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def vision_tokens(self) -> int:
        """Number of tokens of pictures and videos."""
        return int(self.vision.sum())

    @property
    def next_position(self) -> int:
        """Position of the token after the prompt; the same on all axes."""
        return int(self.positions[:, -1].max()) + 1


def _timestamps(times: Sequence[float], per_step: int) -> list[float]:
    """The time of each temporal step: the mean of its first and last frame. The last frame fills an incomplete step."""
    padded = [*times, *[times[-1]] * (-len(times) % per_step)]
    return [(padded[i] + padded[i + per_step - 1]) / 2 for i in range(0, len(padded), per_step)]


def render(checkpoint: Checkpoint, conversation: Conversation, images: Sequence[Grid], videos: Sequence[Grid]) -> str:
    """The text of the chat template, with one placeholder token for each merged vision token."""
    processor = checkpoint.processor
    text = processor.apply_chat_template(conversation.template(), tokenize=False, add_generation_prompt=True)
    merged = processor.image_processor.merge_size**2
    parts = text.split(processor.image_token)
    text = parts[0]
    for (t, h, w), rest in zip(images, parts[1:], strict=True):
        text += processor.image_token * (t * h * w // merged) + rest
    parts = text.split(processor.video_token)
    text = parts[0]
    per_step = processor.video_processor.temporal_patch_size
    for (t, h, w), video, rest in zip(videos, conversation.videos, parts[1:], strict=True):
        frame = f"{processor.vision_start_token}{processor.video_token * (h * w // merged)}{processor.vision_end_token}"
        stamps = _timestamps(video.times, per_step)
        if len(stamps) != t:
            raise ValueError(f"{len(stamps)} time stamps for {t} temporal steps of a video")
        text += "".join(f"<{stamp:.1f} seconds>{frame}" for stamp in stamps) + rest
    return str(text)


def build_prompt(
    checkpoint: Checkpoint, conversation: Conversation, images: Sequence[Grid], videos: Sequence[Grid]
) -> Prompt:
    """Tokenize `conversation` for `checkpoint`. `images` and `videos`: grid (t, h, w) in patches of each item."""
    text = render(checkpoint, conversation, images, videos)
    # verbose=False: a prompt that is too long is refused later; transformers need not warn
    ids = np.array(checkpoint.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    config = checkpoint.model.config
    kinds = (ids == config.image_token_id).astype(np.int8) + 2 * (ids == config.video_token_id).astype(np.int8)
    runs: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
    edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(ids)]
    for start, end in itertools.pairwise(edges):
        if kinds[start]:
            runs[int(kinds[start])].append((start, end))
    # a picture is one run of vision tokens, a video one run per temporal step
    slots = [Slot(*run, picture.digest) for run, picture in zip(runs[1], conversation.pictures, strict=True)]
    grids = dict(zip(runs[1], images, strict=True))
    steps = iter(runs[2])
    for (t, h, w), video in zip(videos, conversation.videos, strict=True):
        own = [next(steps) for _ in range(t)]
        slots.append(Slot(own[0][0], own[-1][1], video.digest))
        grids |= dict.fromkeys(own, (1, h, w))
    positions = _positions(len(ids), grids, checkpoint.merge_size)
    return Prompt(TokenPrefix(ids, tuple(sorted(slots, key=lambda slot: slot.start))), kinds > 0, positions)


def _positions(length: int, grids: dict[tuple[int, int], Grid], merge: int) -> NDArray[np.int64]:
    """Positions `[3, length]` as `get_rope_index` of transformers computes them. `grids`: the grid of each run."""
    positions = np.empty((3, length), np.int64)
    at = end = 0
    for (start, stop), (t, h, w) in sorted(grids.items()):
        positions[:, end:start] = np.arange(at, at + start - end)
        at += start - end
        positions[:, start:stop] = at + np.indices((t, h // merge, w // merge)).reshape(3, -1)
        at, end = at + max(h, w) // merge, stop
    positions[:, end:] = np.arange(at, at + length - end)
    return positions
