"""The phases of training: settings, examples, and losses with the exact-match accuracy of each kind of example.

tower        the vision encoder alone: which glyph lies in each patch, for both frames of a pair
transcripts  the whole model: list, count and follow everything in the picture; easy questions answered at once
instruct     the language model with a frozen tower: answer at once, write a short caption
thinking     the language model with a frozen tower: look and reason step by step, answer
..._more     the phase before, with more practice of tasks of low accuracy
..._last     the phase before, with more requests without a picture
..._forms    the phase before, with more requests about two pictures, and pictures of low severity
..._wide     the phase before, with random system prompts, pictures of nothing and two pictures
..._pairs    the phase before, with two pictures of one task, which only the question tells apart
..._texts    the phase before, with more requests without a picture
..._unknown  the phase before, with more unknown pictures and no shapes to count

If every token of a target is predicted correctly after the correct tokens before it, greedy decoding writes this
target. The batches are always new, so the share of such targets is the exact-match accuracy.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration

from training.pocket.data import (
    GRID,
    IGNORE,
    LABEL,
    Example,
    Sequences,
    apart_example,
    caption_example,
    caption_unknown_example,
    cut_patches,
    draw_links,
    draw_pairs,
    draw_training_scene,
    fitted,
    links_example,
    lists_example,
    nothing_example,
    number_example,
    paths_example,
    pick,
    question_example,
    results_example,
    sums_example,
    tally_example,
    text_example,
    text_turns_example,
    times_example,
    tools_example,
    transcript_example,
    turns_example,
    two_pictures_example,
    unknown_example,
)
from training.pocket.text import REPLIES
from training.pocket.unknown import draw_unknown
from vlroute import Mode
from vlroute.pocket.canvas import SIDE
from vlroute.pocket.tasks import Scene

Scores = dict[str, tuple[int, int]]  # kind of example → (number of correct ones, number of all)
LINKED = {"gui": 1.0, "hop": 1.0}  # tasks whose pictures hold links
FIRST_READING = 400  # steps of the phase transcripts; after it, the loss rises because of new kinds of examples


@dataclass(frozen=True, slots=True)
class Phase:
    """Settings of a phase. `mode`: None for both. `start`: the phase whose weights it starts from."""

    name: str
    mode: Mode | None
    start: str | None
    steps: int
    rate: float
    tower_rate: float  # relative to `rate`; 0 freezes the tower and its mergers
    threads: int


PHASES = {
    phase.name: phase
    for phase in (
        Phase("tower", None, None, 1500, 2e-3, 1.0, 2),
        Phase("transcripts", None, "tower", 3400, 2e-3, 0.15, 2),
        Phase("instruct", "instruct", "transcripts", 5200, 1.5e-3, 0.0, 1),
        Phase("instruct_more", "instruct", "instruct", 3750, 1e-3, 0.0, 1),
        Phase("instruct_last", "instruct", "instruct_more", 700, 6e-4, 0.0, 1),
        Phase("instruct_forms", "instruct", "instruct_last", 500, 6e-4, 0.0, 1),
        Phase("thinking", "thinking", "transcripts", 4400, 1.5e-3, 0.0, 1),
        Phase("thinking_more", "thinking", "thinking", 2250, 8e-4, 0.0, 1),
        Phase("thinking_last", "thinking", "thinking_more", 850, 5e-4, 0.0, 1),
        Phase("thinking_wide", "thinking", "thinking_last", 700, 6e-4, 0.0, 1),
        Phase("thinking_pairs", "thinking", "thinking_wide", 1500, 1e-3, 0.0, 1),
        Phase("thinking_texts", "thinking", "thinking_pairs", 200, 6e-4, 0.0, 1),
        Phase("thinking_unknown", "thinking", "thinking_texts", 250, 6e-4, 0.0, 1),
    )
}

#: Phases whose final weights are averaged for the shipped checkpoint (model soups, Wortsman et al., 2022): the last one
#: recognizes unknown pictures better, the one before counts better.
SHIPPED: dict[Mode, tuple[str, ...]] = {
    "instruct": ("instruct_forms",),
    "thinking": ("thinking_texts", "thinking_unknown"),
}


def tower_loss(
    model: Qwen3VLForConditionalGeneration, head: nn.Module, rng: random.Random
) -> tuple[torch.Tensor, Scores]:
    """Cross entropy of the glyph in every patch, predicted by a linear head from the unmerged output of the tower."""
    pairs, labels = draw_pairs(rng, _draw(rng, {**weights(2.5, 1.0, 2.0, 1.5, 1.5), "video": 2.0}, HARDER, 88))
    strange = [fitted(draw_unknown(rng, size=(SIDE, SIDE))).pairs[0] for _ in range(8)]
    pairs, labels = [*pairs, *strange], torch.cat([labels, torch.zeros(8 * GRID**2, 2, dtype=torch.long)])
    grid = torch.tensor([[1, GRID, GRID]] * len(pairs))
    hidden = model.model.visual(cut_patches(pairs), grid_thw=grid, return_dict=True).last_hidden_state
    logits = head(hidden).unflatten(-1, (2, len(LABEL) + 1))
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    there = labels > 0
    return loss, {"glyphs": (int((logits.argmax(-1) == labels)[there].sum()), int(there.sum()))}


def sequence_loss(
    model: Qwen3VLForConditionalGeneration, sequences: Sequences, examples: list[Example]
) -> tuple[torch.Tensor, Scores]:
    """Mean cross entropy of the target tokens, and for each kind of example the number of targets without any error."""
    losses, scores = token_losses(model, sequences, examples)
    return losses.mean(), scores


def token_losses(model: Any, sequences: Sequences, examples: Sequence[Example]) -> tuple[torch.Tensor, Scores]:
    """Cross entropy of each target token, and the scores of `sequence_loss`."""
    inputs, labels = sequences.training_batch(examples)
    hidden = model.model(**inputs, use_cache=False)[0][:, :-1]
    labels = labels[:, 1:]
    asked = labels != IGNORE
    logits = model.lm_head(hidden[asked])
    losses = functional.cross_entropy(logits, labels[asked], reduction="none")
    right = torch.ones_like(labels, dtype=torch.bool)
    right[asked] = logits.argmax(-1) == labels[asked]
    scores: Scores = {}
    for example, whole in zip(examples, right.all(1).tolist(), strict=True):
        correct, count = scores.get(example.name, (0, 0))
        scores[example.name] = correct + whole, count + 1
    return losses, scores


EASIER = {"easy": 0.5, "medium": 0.25, "hard": 0.25}
HARDER = {"easy": 0.2, "medium": 0.3, "hard": 0.5}
EVENLY = {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def weights(*values: float) -> dict[str, float]:
    """Relative frequencies of the tasks with pictures."""
    return dict(zip(("ocr", "count", "math", "gui", "hop"), values, strict=True))


def _draw(
    rng: random.Random, drawn: dict[str, float], levels: dict[str, float], count: int, hidden: float = 0.5
) -> list[Scene]:
    return [draw_training_scene(rng, pick(rng, drawn), pick(rng, levels), hidden) for _ in range(count)]


def _videos(rng: random.Random) -> list[Scene]:
    return _draw(rng, {"video": 1.0}, EVENLY, 24)


def transcripts_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """First reading: links that share no letter and short lists; then lists, counts and links of everything."""
    first, later = {"ocr": 2.0, "count": 1.0, "math": 1.0}, weights(1.0, 1.0, 1.0, 1.0, 1.0)
    for step in itertools.count(start):
        early = step < FIRST_READING
        if step % 4 == 3 and not early:
            yield [_reading(rng, scene) for scene in _videos(rng)]
            continue
        if step % 8 == 5 and not early:
            yield [unknown_example(rng, "instruct") for _ in range(24)] + [
                text_example(rng, "instruct") if rng.random() < 0.5 else caption_unknown_example(rng) for _ in range(16)
            ]
            continue
        links = [draw_links(rng, pick(rng, LINKED), rng.randint(1, 4 if early else 8)) for _ in range(24)]
        scenes = _draw(rng, first, EASIER, 40, 0.15) if early else _draw(rng, later, EVENLY, 44, 0.4)
        yield [links_example(rng, scene) for scene in links] + [_reading(rng, scene) for scene in scenes]


def _reading(rng: random.Random, scene: Scene) -> Example:
    draw = rng.random()
    if scene.kind in LINKED and draw < 0.55:
        return links_example(rng, scene)
    if scene.kind == "count" and draw < 0.4:
        return tally_example(rng, scene)
    if draw > 0.9:
        return caption_example(rng, scene)
    if scene.level == "easy" and draw > 0.7:
        return question_example(rng, scene, "instruct")
    return transcript_example(rng, scene)


def _turns(rng: random.Random, mode: Mode, drawn: dict[str, float], count: int) -> list[Example]:
    """Two pictures at once, or several turns about one or two pictures; never videos."""
    examples = []
    for _ in range(count):
        one, two = _draw(rng, drawn, EVENLY, 2, 0.3)
        if rng.random() < 0.4:
            examples.append(two_pictures_example(rng, (one, two), mode))
        else:
            examples.append(turns_example(rng, [one, two] if rng.random() < 0.35 else [one], mode))
    return examples


def _two_scenes(rng: random.Random, mode: Mode, drawn: dict[str, float], count: int) -> list[Example]:
    """Two pictures at once, and conversations with a new picture in a later turn."""
    examples = []
    for i in range(count):
        one, two = _draw(rng, drawn, EVENLY, 2, 0.3)
        both = two_pictures_example(rng, (one, two), mode) if i % 3 else turns_example(rng, [one, two], mode)
        examples.append(both)
    return examples


def _others(rng: random.Random, mode: Mode, step: int, drawn: dict[str, float], every: int) -> list[Example] | None:
    """One batch in `every`: conversations, requests without a picture, unknown ones and tools, in turn."""
    if step % every != 1:
        return None
    turn = step // every % 6
    if turn == 0 and mode == "instruct":
        return [text_turns_example(rng) for _ in range(48)]
    if turn == 0:
        return [text_example(rng, mode) for _ in range(96)]
    if turn == 2 and (mode == "instruct" or step % (12 * every) < 6 * every):
        return [unknown_example(rng, mode) for _ in range(64)]
    if turn == 3 and mode == "instruct":
        return [results_example(rng, mode) if i % 3 == 0 else text_turns_example(rng) for i in range(54)]
    if turn == 3:
        return [results_example(rng, mode) if i % 2 else text_example(rng, mode) for i in range(96)]
    if turn in (2, 4):
        return [tools_example(rng, mode) for _ in range(24)]
    return _turns(rng, mode, drawn, 32)


def _alike(rng: random.Random, mode: Mode, drawn: dict[str, float], count: int, apart: float) -> list[Example]:
    """Two pictures of one task: only the ordinal tells which one is meant. A share `apart` has text between them."""
    examples = []
    for _ in range(count):
        kind, level = pick(rng, drawn), pick(rng, EASIER)
        pair = (draw_training_scene(rng, kind, level, 0.1), draw_training_scene(rng, kind, level, 0.1))
        if rng.random() < apart:
            examples.append(apart_example(rng, pair, mode, rng.choice((1, 1, 2))))
        else:
            examples.append(replace(two_pictures_example(rng, pair, mode), name=f"alike {kind}"))
    return examples


def by_length(rng: random.Random, examples: list[Example], batches: int) -> list[list[Example]]:
    """Split into batches of similar lengths, in random order: less padding, which saves a third of the time."""
    examples.sort(key=lambda example: len(str(example.messages)) / 3 + len(example.target))
    size = len(examples) // batches
    parts = [examples[i : i + size] for i in range(0, len(examples), size)]
    rng.shuffle(parts)
    return parts


def instruct_examples(
    rng: random.Random,
    start: int,
    drawn: dict[str, float],
    levels: dict[str, float],
    hidden: float = 0.5,
    every: int = 3,
) -> Iterator[list[Example]]:
    """Questions answered at once; captions, counts and links mixed in."""
    waiting: list[list[Example]] = []
    for step in itertools.count(start):
        if others := _others(rng, "instruct", step, drawn, every):
            yield others
        elif step % (2 * every) == 3:
            yield [_direct(rng, scene) for scene in _videos(rng)]
        else:
            waiting = waiting or by_length(
                rng, [_direct(rng, scene) for scene in _draw(rng, drawn, levels, 192, hidden)], 3
            )
            yield waiting.pop()


def _direct(rng: random.Random, scene: Scene) -> Example:
    draw = rng.random()
    if draw < 0.06:
        return caption_example(rng, scene)
    if draw < 0.12 and scene.kind in LINKED:
        return links_example(rng, scene)
    if draw < 0.18 and scene.kind == "count":
        return tally_example(rng, scene)
    # several questions about one picture: more answers to learn from in the same time
    if draw < 0.4 and scene.kind in LINKED:
        return paths_example(rng, scene)
    if draw < 0.7 and scene.kind in (*LINKED, "count"):
        return turns_example(rng, [scene], "instruct")
    return question_example(rng, scene, "instruct")


def thinking_examples(
    rng: random.Random,
    start: int,
    drawn: dict[str, float],
    practice: Sequence[Callable[[random.Random], Example]],
    hidden: float = 0.5,
    every: int = 3,
) -> Iterator[list[Example]]:
    """Questions answered after a thought. One batch in six is practice without pictures, one in six has videos."""
    waiting: list[list[Example]] = []
    for step in itertools.count(start):
        if others := _others(rng, "thinking", step, drawn, every):
            yield others
        elif step % 6 == 5:
            yield [practice[i % len(practice)](rng) for i in range(96)]
        elif step % 6 == 3:
            yield [question_example(rng, scene, "thinking") for scene in _videos(rng)]
        else:
            if not waiting:
                some = [question_example(rng, scene, "thinking") for scene in _draw(rng, drawn, EVENLY, 256, hidden)]
                waiting = by_length(rng, some, 4)
            yield waiting.pop()


def with_texts(
    examples: Callable[[random.Random, int], Iterator[list[Example]]], texts: Callable[[random.Random], list[Example]]
) -> Callable[[random.Random, int], Iterator[list[Example]]]:
    """Every second batch from `texts`, the others from `examples`."""

    def alternately(rng: random.Random, start: int) -> Iterator[list[Example]]:
        for batch in examples(rng, start // 2):
            yield batch
            yield texts(rng)

    return alternately


def instruct_forms(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Two pictures; short chains and one tap among as many arrows and buttons as long ones; all of before."""
    before = more_instruct(rng, start)
    for step in itertools.count(start):
        if step % 2:
            yield _two_scenes(rng, "instruct", weights(0.8, 1.2, 0.6, 1.6, 1.6), 32)
        elif step % 4:
            low = [draw_training_scene(rng, pick(rng, LINKED), None, 1.0, 0.25) for _ in range(64)]
            yield [_direct(rng, scene) for scene in low]
        else:
            yield next(before)


def thinking_wide(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Two pictures, pictures of nothing, tools, and all of before without practice of counting."""
    before = thinking_examples(
        rng, start, weights(1.2, 0.5, 1.2, 1.0, 1.0), (times_example, text_count, text_count), hidden=0.35, every=6
    )
    for step in itertools.count(start):
        turn = step % 6
        if turn in (1, 3):
            yield _two_scenes(rng, "thinking", weights(1.2, 0.5, 1.0, 1.0, 1.0), 32)
        elif turn == 4:
            yield [nothing_example(rng, "thinking") for _ in range(64)]
        elif step % 24 == 0:
            yield [tools_example(rng, "thinking") for _ in range(24)]
        else:
            yield next(before)


def thinking_pairs(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Two pictures of one task, first with text between them; and batches of before."""
    before = thinking_wide(rng, start)
    for step in itertools.count(start):
        if step % (4 if step < FAR_APART else 3) == 2:
            yield next(before)
        elif step < FAR_APART:
            yield _alike(rng, "thinking", {"ocr": 3.0, "count": 1.0}, 40, 0.85)
        else:
            yield _alike(rng, "thinking", weights(1.0, 0.4, 1.0, 1.0, 1.0), 36, 0.3)


FAR_APART = 500  # steps with text between the pictures


def thinking_texts(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Sums in words and requests of other kinds without a picture, but no counting, and all of before."""
    before = thinking_pairs(rng, start + 2 * FAR_APART)
    for step in itertools.count(start):
        if step % 2:
            kinds = ("sum", "sum", "sum", *REPLIES)
            yield [text_example(rng, "thinking", rng.choice(kinds)) for _ in range(96)]
        elif step % 16 == 0:
            yield [tools_example(rng, "thinking") for _ in range(24)]
        else:
            yield next(before)


def thinking_unknown(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Unknown pictures and questions, and all of before without pictures of shapes to count."""
    drawn = weights(1.2, 0.0, 1.2, 1.0, 1.0)
    before = thinking_examples(rng, start, drawn, (times_example,), hidden=0.35, every=1000)
    for step in itertools.count(start):
        turn = step % 8
        if turn in (0, 3):
            yield [unknown_example(rng, "thinking") for _ in range(64)]
        elif turn == 5:
            yield [nothing_example(rng, "thinking") for _ in range(64)]
        elif turn == 6:
            yield [text_example(rng, "thinking", rng.choice(("sum", "sum", "sum", *REPLIES))) for _ in range(96)]
        elif turn == 7:
            yield [tools_example(rng, "thinking") for _ in range(24)]
        else:
            yield _alike(rng, "thinking", drawn, 36, 0.5) if turn == 1 else next(before)


# the later phases practice what had low accuracy
text_count = partial(text_example, mode="thinking", kind="count")
more_instruct = partial(instruct_examples, drawn=weights(0.6, 0.9, 0.4, 3.5, 3.0), levels=EVENLY, hidden=0.35, every=4)
more_thinking = partial(
    thinking_examples,
    drawn=weights(0.8, 2.4, 1.3, 1.0, 1.0),
    practice=(times_example, number_example, number_example, text_count),
    hidden=0.35,
    every=6,
)
EXAMPLES: dict[str, Callable[[random.Random, int], Iterator[list[Example]]]] = {
    "transcripts": transcripts_examples,
    "instruct": partial(instruct_examples, drawn=weights(1.0, 1.6, 0.9, 1.3, 1.2), levels=EASIER),
    "instruct_more": more_instruct,
    "instruct_last": with_texts(more_instruct, lambda rng: [text_turns_example(rng) for _ in range(72)]),
    "instruct_forms": instruct_forms,
    "thinking": partial(
        thinking_examples, drawn=weights(1.0, 1.2, 1.5, 1.2, 1.0), practice=(sums_example, sums_example, times_example)
    ),
    "thinking_more": more_thinking,
    "thinking_last": with_texts(
        more_thinking, lambda rng: [lists_example(rng) if i % 4 else text_example(rng, "thinking") for i in range(96)]
    ),
    "thinking_wide": thinking_wide,
    "thinking_texts": thinking_texts,
    "thinking_unknown": thinking_unknown,
    "thinking_pairs": thinking_pairs,
}
