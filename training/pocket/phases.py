"""The phases of training: settings, examples, and losses with the exact-match accuracy of each kind of example.

tower        the vision encoder alone: which glyph lies in each patch, for both frames of a pair
transcripts  the whole model: list, count and follow everything in the picture; easy questions answered at once
instruct     the language model with a frozen tower: answer at once, write a short caption
thinking     the language model with a frozen tower: look and reason step by step, answer
..._more, ..._last   the same again, with practice of tasks of low accuracy

If every token of a target is predicted correctly after the correct tokens before it, greedy decoding writes this
target. The batches are always new, so the share of such targets is the exact-match accuracy.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

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
    angles_example,
    answer_example,
    caption_example,
    cut_patches,
    draw_links,
    draw_pairs,
    links_example,
    sums_example,
    tally_example,
    times_example,
    transcript_example,
)
from vlroute import Mode
from vlroute.learning import Task, draw_task

Scores = dict[str, tuple[int, int]]  # kind of example → (number of correct ones, number of all)
LINKED = {"gui": 1.0, "hop": 1.0}  # tasks whose pictures hold links
FIRST_READING = 400  # steps of the phase transcripts


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
        Phase("tower", None, None, 700, 2e-3, 1.0, 2),
        Phase("transcripts", None, "tower", 1800, 2e-3, 0.15, 2),
        Phase("instruct", "instruct", "transcripts", 2000, 1.5e-3, 0.0, 1),
        Phase("instruct_more", "instruct", "instruct", 700, 8e-4, 0.0, 1),
        Phase("instruct_last", "instruct", "instruct_more", 600, 6e-4, 0.0, 1),
        Phase("thinking", "thinking", "transcripts", 1600, 1.5e-3, 0.0, 1),
        Phase("thinking_more", "thinking", "thinking", 700, 8e-4, 0.0, 1),
    )
}


def pick(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def tower_loss(
    model: Qwen3VLForConditionalGeneration, head: nn.Module, rng: random.Random
) -> tuple[torch.Tensor, Scores]:
    """Cross entropy of the glyph in every patch, predicted by a linear head from the unmerged output of the tower."""
    pairs, labels = draw_pairs(rng, _draw(rng, {**weights(2.0, 1.0, 1.5, 2.0, 1.5), "video": 1.5}, HARDER, 96))
    grid = torch.tensor([[1, GRID, GRID]] * len(pairs))
    hidden = model.model.visual(cut_patches(pairs), grid_thw=grid, return_dict=True).last_hidden_state
    logits = head(hidden).unflatten(-1, (2, len(LABEL) + 1))
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    there = labels > 0
    return loss, {"glyphs": (int((logits.argmax(-1) == labels)[there].sum()), int(there.sum()))}


def sequence_loss(
    model: Qwen3VLForConditionalGeneration, sequences: Sequences, examples: list[Example]
) -> tuple[torch.Tensor, Scores]:
    """Cross entropy over the target tokens, and for each kind of example the number of targets without any error."""
    inputs, labels = sequences.training_batch(examples)
    hidden = model.model(**inputs, use_cache=False)[0][:, :-1]
    labels = labels[:, 1:]
    asked = labels != IGNORE
    logits = model.lm_head(hidden[asked])
    loss = functional.cross_entropy(logits, labels[asked])
    right = torch.ones_like(labels, dtype=torch.bool)
    right[asked] = logits.argmax(-1) == labels[asked]
    scores: Scores = {}
    for example, whole in zip(examples, right.all(1).tolist(), strict=True):
        correct, count = scores.get(example.name, (0, 0))
        scores[example.name] = correct + whole, count + 1
    return loss, scores


EASIER = {"easy": 0.5, "medium": 0.25, "hard": 0.25}
MOSTLY_EASY = {"easy": 0.6, "medium": 0.25, "hard": 0.15}
HARDER = {"easy": 0.2, "medium": 0.3, "hard": 0.5}
EVENLY = {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def weights(*values: float) -> dict[str, float]:
    """Relative frequencies of the tasks with pictures."""
    return dict(zip(("ocr", "count", "math", "gui", "hop"), values, strict=True))


def _draw(rng: random.Random, drawn: dict[str, float], levels: dict[str, float], count: int) -> list[Task]:
    return [draw_task(rng, pick(rng, drawn), pick(rng, levels)) for _ in range(count)]


def _videos(rng: random.Random) -> list[Task]:
    return _draw(rng, {"video": 1.0}, EVENLY, 24)


def transcripts_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """First reading: links that share no letter and short lists; then lists, counts and links of everything."""
    first, later = {"ocr": 2.0, "count": 1.0, "math": 1.0}, weights(0.8, 1.0, 1.0, 1.0, 1.0)
    for step in itertools.count(start):
        early = step < FIRST_READING
        if step % 4 == 3 and not early:
            yield [_reading(rng, task) for task in _videos(rng)]
            continue
        links = [draw_links(rng, pick(rng, LINKED), rng.randint(1, 4 if early else 8)) for _ in range(24)]
        tasks = _draw(rng, first, EASIER, 40) if early else _draw(rng, later, EVENLY, 44)
        yield [links_example(rng, task) for task in links] + [_reading(rng, task) for task in tasks]


def _reading(rng: random.Random, task: Task) -> Example:
    draw = rng.random()
    if task.kind in LINKED and draw < 0.6:
        return links_example(rng, task)
    if task.kind == "count" and draw < 0.4:
        return tally_example(task)
    if task.level == "easy" and draw > 0.8:
        return answer_example(task, "instruct")
    return transcript_example(task)


def instruct_examples(
    rng: random.Random, start: int, drawn: dict[str, float], levels: dict[str, float]
) -> Iterator[list[Example]]:
    """Questions answered at once; captions, counts and links mixed in."""
    for step in itertools.count(start):
        tasks = _videos(rng) if step % 5 == 3 else _draw(rng, drawn, levels, 64)
        yield [_direct(rng, task) for task in tasks]


def _direct(rng: random.Random, task: Task) -> Example:
    draw = rng.random()
    if draw < 0.1:
        return caption_example(task)
    if draw < 0.2 and task.kind in LINKED:
        return links_example(rng, task)
    if draw < 0.25 and task.kind == "count":
        return tally_example(task)
    return answer_example(task, "instruct")


def thinking_examples(
    rng: random.Random, start: int, drawn: dict[str, float], practice: Sequence[Callable[[random.Random], Example]]
) -> Iterator[list[Example]]:
    """Step by step; every fourth batch is practice without pictures, every fourth a video."""
    for step in itertools.count(start):
        if step % 4 == 1:
            yield [practice[i % len(practice)](rng) for i in range(96)]
        else:
            tasks = _videos(rng) if step % 4 == 3 else _draw(rng, drawn, EVENLY, 64)
            yield [answer_example(task, "thinking") for task in tasks]


# the later phases practice what had low accuracy: easy screens, angles, and the second at which a letter appeared
more_instruct = partial(instruct_examples, drawn=weights(0.6, 1.6, 0.5, 3.0, 0.8), levels=MOSTLY_EASY)
EXAMPLES: dict[str, Callable[[random.Random, int], Iterator[list[Example]]]] = {
    "transcripts": transcripts_examples,
    "instruct": partial(instruct_examples, drawn=weights(1.0, 1.6, 0.8, 1.2, 1.2), levels=EASIER),
    "instruct_more": more_instruct,
    "instruct_last": more_instruct,
    "thinking": partial(thinking_examples, drawn=weights(1.0, 1.2, 1.5, 1.2, 1.0), practice=(sums_example,)),
    "thinking_more": partial(
        thinking_examples,
        drawn=weights(0.8, 1.6, 1.5, 1.0, 0.8),
        practice=(angles_example, times_example, times_example),
    ),
}
