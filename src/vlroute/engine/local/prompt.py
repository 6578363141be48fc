"""Builds the prompt of a conversation: token ids and explicit positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlroute.engine.cache.prefix import Slot, TokenPrefix
from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.inputs.messages import Conversation

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Model inputs of one request: ids, mask and token types `[1, length]`, positions `[4, 1, length]`.

    Positions are explicit because the model object otherwise reuses `rope_deltas` of its previous call.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    mm_token_type_ids: torch.Tensor
    position_ids: torch.Tensor
    tokens: TokenPrefix

    @property
    def length(self) -> int:
        """Number of tokens."""
        return int(self.input_ids.shape[1])

    @property
    def vision_tokens(self) -> int:
        """Number of tokens of pictures and videos."""
        return int((self.mm_token_type_ids > 0).sum())

    def inputs(self) -> dict[str, torch.Tensor]:
        """The inputs by the argument names of the model."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "mm_token_type_ids": self.mm_token_type_ids,
            "position_ids": self.position_ids,
        }


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
    tokens = checkpoint.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ids = torch.tensor([tokens], device=checkpoint.device)
    config = checkpoint.model.config
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    mask = torch.ones_like(ids)
    vision: dict[str, Any] = {}
    if images:
        vision["image_grid_thw"] = torch.tensor(images, device=checkpoint.device)
    if videos:
        vision["video_grid_thw"] = torch.tensor(videos, device=checkpoint.device)
    text_positions = torch.arange(ids.shape[1], device=checkpoint.device)[None, None]
    if vision:
        axes, _ = checkpoint.model.model.get_rope_index(ids, mm_token_type_ids=types, attention_mask=mask, **vision)
    else:
        axes = text_positions.expand(3, -1, -1)
    tokens = TokenPrefix(ids[0].cpu().numpy(), _slots(types[0].tolist(), conversation, videos))
    return Prompt(ids, mask, types, torch.cat([text_positions, axes]), tokens)


def _slots(types: Sequence[int], conversation: Conversation, videos: Sequence[Grid]) -> tuple[Slot, ...]:
    """The token range of each item. A picture is one run of vision tokens, a video one run per temporal step."""
    runs: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
    at = 0
    for kind, group in itertools.groupby(types):
        length = len(list(group))
        if kind:
            runs[kind].append((at, at + length))
        at += length
    slots = [Slot(*run, picture.digest) for run, picture in zip(runs[1], conversation.pictures, strict=True)]
    steps = iter(runs[2])
    for (t, _, _), video in zip(videos, conversation.videos, strict=True):
        own = [next(steps) for _ in range(t)]
        slots.append(Slot(own[0][0], own[-1][1], video.digest))
    return tuple(sorted(slots, key=lambda slot: slot.start))
