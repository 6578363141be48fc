"""Builds the prompt of a conversation: token ids and explicit positions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from vlroute.engine.cache.prefix import Slot, TokenPrefix
from vlroute.engine.cache.vision import Grid
from vlroute.engine.local.checkpoint import Checkpoint
from vlroute.errors import InputError, LimitError
from vlroute.inputs.messages import Conversation

#: Tolerance in tokens: cutting a text may split one token into several.
DIVIDED = 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids and positions of one request.

    Attributes:
        tokens: Token ids, `[length]`, and the slots of the media.
        vision: Whether each token belongs to a picture or video, `[length]`.
        positions: Position of each token in time, height and width, `[3, length]`. They are explicit, because the
            model object otherwise reuses those of its previous call.
        marker: Number of tokens before the prompts of both modes of a hybrid differ; None for a pair.
        snapshots: Numbers of tokens after which recurrent states are stored, if the model has any.
    """

    tokens: TokenPrefix
    vision: NDArray[np.bool_]
    positions: NDArray[np.int64]
    marker: int | None = None
    snapshots: tuple[int, ...] = ()

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
    """The text of the chat template, with one placeholder token for each merged vision token, and the prefix."""
    processor, options = checkpoint.processor, dict[str, Any](checkpoint.template_options)
    if conversation.tools is not None:
        options["tools"] = list(conversation.tools.definitions)
    messages = conversation.template(parsed=checkpoint.family.call_format == "xml")
    apply = partial(processor.apply_chat_template, tokenize=False, add_generation_prompt=True, **options)
    try:
        try:
            text = apply(messages)
        except TemplateError:  # some templates accept only one system message, but clients often send several
            text = apply(_with_one_system_message(messages))
    except TemplateError as error:  # raised by the template, such as for a system message that is not the first one
        raise InputError(f"the chat template of this model refuses this conversation: {error}") from None  # no path
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
    return str(text) + conversation.prefix


def _with_one_system_message(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with all system messages at the beginning joined by blank lines."""
    head = [*itertools.takewhile(lambda message: message["role"] == "system", messages)]
    texts = ["".join(part["text"] for part in message["content"]) for message in head]
    joined = [{"role": "system", "content": [{"type": "text", "text": "\n\n".join(texts)}]}] if head else []
    return [*joined, *messages[len(head) :]]


def check_length(checkpoint: Checkpoint, conversation: Conversation) -> None:
    """Refuse texts of megabytes after their beginning was tokenized, before anything else is done with them.

    Args:
        checkpoint: The model.
        conversation: The messages.

    Raises:
        LimitError: The texts have many more tokens than the model accepts.
    """
    most = checkpoint.model.config.text_config.max_position_embeddings
    asked = [message for message in conversation.messages if message.role != "assistant"]  # reasoning may be left out
    texts = [part for message in asked for part in message.parts if isinstance(part, str)]
    texts += [call.name + call.text for message in conversation.messages for call in message.tool_calls]
    texts += [conversation.prefix, *([] if conversation.tools is None else [conversation.tools.text])]
    characters = sum(map(len, texts))
    length = 16 * most
    while length < characters:
        if len(_tokenized(checkpoint, "\n".join(texts)[:length])) > most + DIVIDED:
            raise LimitError(
                f"the conversation has {characters} characters and more than {most} tokens; the model accepts at most "
                f"{most - 1}: send fewer turns or shorter texts"
            )
        length *= 2


def build_prompt(
    checkpoint: Checkpoint, conversation: Conversation, images: Sequence[Grid], videos: Sequence[Grid]
) -> Prompt:
    """Tokenize `conversation` for `checkpoint`.

    Args:
        checkpoint: The model.
        conversation: The messages.
        images: Grid (t, h, w) in patches of each picture.
        videos: The same of each video.

    Returns:
        The prompt.

    Raises:
        InputError: The chat template refuses the conversation.
    """
    text = render(checkpoint, conversation, images, videos)
    ids = np.array(_tokenized(checkpoint, text), dtype=np.int64)
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
    slots.sort(key=lambda slot: slot.start)
    marker = _marker(checkpoint, ids)
    return Prompt(TokenPrefix(ids, tuple(slots)), kinds > 0, positions, marker, _snapshots(checkpoint, slots, marker))


def _tokenized(checkpoint: Checkpoint, text: str) -> list[int]:
    # verbose=False: a prompt that is too long is refused later; transformers need not warn
    ids: list[int] = checkpoint.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _marker(checkpoint: Checkpoint, ids: NDArray[np.int64]) -> int | None:
    """Number of tokens before the last one that chooses the mode."""
    if checkpoint.family.marker is None:
        return None
    return int(np.flatnonzero(ids == checkpoint.tokenizer.convert_tokens_to_ids(checkpoint.family.marker))[-1])


def _snapshots(checkpoint: Checkpoint, slots: Sequence[Slot], marker: int | None) -> tuple[int, ...]:
    """Where other prompts are likely to leave this one.

    After the first picture or video, with which the prompt of a caption begins; after the last one, about which there
    may be other questions; and at the marker, for the other mode and for the next turn.
    """
    if not checkpoint.family.recurrent:
        return ()
    media = (slots[0].end, slots[-1].end) if slots else ()
    return tuple(sorted({*media, *(() if marker is None else (marker,))}))


def in_other_mode(prompt: Prompt, checkpoint: Checkpoint) -> Prompt:
    """The prompt of the other mode of a hybrid: the tokens from the marker on are replaced.

    Args:
        prompt: The prompt of one mode.
        checkpoint: The other mode.

    Returns:
        Its prompt.
    """
    at, tail = prompt.marker, np.array(checkpoint.marker_ids, dtype=np.int64)
    assert at is not None, "only hybrids have a marker"
    first = int(prompt.positions[:, at - 1].max()) + 1
    positions = np.broadcast_to(np.arange(first, first + len(tail)), (3, len(tail)))
    return replace(
        prompt,
        tokens=TokenPrefix(np.concatenate([prompt.tokens.ids[:at], tail]), prompt.tokens.slots),
        vision=np.concatenate([prompt.vision[:at], np.zeros(len(tail), dtype=bool)]),
        positions=np.concatenate([prompt.positions[:, :at], positions], axis=1),
    )


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
