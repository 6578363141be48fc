"""What each training stage practises. Every stage gives one loss and how often each family came out whole.

tower        the vision encoder alone: which glyph lies in each patch, for both frames of a pair
transcripts  the whole model: list everything in the picture; easy questions answered at once
instruct     the language model alone, tower frozen: answer at once, say a short caption
thinking     the language model alone, tower frozen: list, reason step by step, answer

A target predicted right token by token with the truth before it is exactly one that greedy decoding would write,
so the share of whole targets in the (always fresh) training batches is the exact-match accuracy.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
    answer_example,
    caption_example,
    cut_patches,
    draw_pairs,
    steps_example,
    transcript_example,
)
from vlroute.pocket.families import Task, draw_task

Scores = dict[str, tuple[float, int]]  # name → (share right, how many)
STILLS = ("ocr", "count", "math", "gui", "hop")
REASONED = ("math", "gui", "hop")
READING_STEPS = 1400


@dataclass(frozen=True, slots=True)
class Stage:
    """How one stage trains: where it starts, for how long, at which rate."""

    name: str
    start: str | None
    steps: int
    rate: float
    tower_rate: float  # times `rate`; 0 freezes the tower and its mergers
    threads: int


STAGES = {
    stage.name: stage
    for stage in (
        Stage("tower", None, 700, 2e-3, 1.0, 2),
        Stage("transcripts", "tower", 2300, 2e-3, 0.15, 2),
        Stage("instruct", "transcripts", 2000, 1.5e-3, 0.0, 1),
        Stage("thinking", "transcripts", 1500, 1.5e-3, 0.0, 1),
    )
}


def pick(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def tower_loss(
    model: Qwen3VLForConditionalGeneration, head: nn.Module, rng: random.Random
) -> tuple[torch.Tensor, Scores]:
    """Cross entropy of the glyph in every patch, read off the un-merged output of the tower by a linear head."""
    weights = {"ocr": 2.0, "count": 1.0, "math": 1.5, "gui": 2.0, "hop": 1.5, "video": 1.5}
    pairs, labels = draw_pairs(rng, [draw_task(rng, pick(rng, weights), pick(rng, HARDER)) for _ in range(96)])
    grid = torch.tensor([[1, GRID, GRID]] * len(pairs))
    hidden = model.model.visual(cut_patches(pairs), grid_thw=grid, return_dict=True).last_hidden_state
    logits = head(hidden).unflatten(-1, (2, len(LABEL) + 1))
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    there = labels > 0
    return loss, {"glyphs": ((logits.argmax(-1) == labels)[there].float().mean().item(), int(there.sum()))}


def sequence_loss(
    model: Qwen3VLForConditionalGeneration, sequences: Sequences, examples: list[Example]
) -> tuple[torch.Tensor, Scores]:
    """Cross entropy over the target tokens, and per kind of example the share of targets right as a whole."""
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
        name = _name(example)
        share, count = scores.get(name, (0.0, 0))
        scores[name] = ((share * count + whole) / (count + 1), count + 1)
    return loss, scores


def _name(example: Example) -> str:
    task = example.task
    if example.question != task.prompt:
        kind = {task.transcript: "transcript", task.caption: "caption"}.get(example.target, "steps")
        return f"{kind} {task.family}"
    return f"{'text' if example.as_text else 'seen'} {task.family} {task.level}"


EASIER = {"easy": 0.5, "medium": 0.25, "hard": 0.25}
HARDER = {"easy": 0.2, "medium": 0.3, "hard": 0.5}
EVENLY = {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def _draw(rng: random.Random, families: dict[str, float], levels: dict[str, float], count: int) -> list[Task]:
    return [draw_task(rng, pick(rng, families), pick(rng, levels)) for _ in range(count)]


def transcripts_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """First reading: lists of everything, and easy questions answered at once. Then following, seen and as text."""
    reading = {"ocr": 1.5, "count": 1.0, "math": 1.0, "gui": 1.5, "hop": 1.2}
    following = {"ocr": 0.5, "count": 1.0, "math": 1.0, "gui": 2.0, "hop": 2.0}
    for step in itertools.count(start):
        if step < READING_STEPS:
            video, tasks = step % 6 == 5, _draw(rng, reading, EVENLY, 64)
            shares = (0.0, 0.75)
        elif step % 4 == 1:
            yield [steps_example(task, as_text=True) for task in _draw(rng, {"gui": 1.0, "hop": 1.0}, HARDER, 96)]
            continue
        else:
            video, tasks = step % 4 == 3, _draw(rng, following, EVENLY, 64)
            shares = (0.4, 0.9)
        if video:
            tasks = _draw(rng, {"video": 1.0}, EVENLY, 20)
        yield [_early(rng, task, *shares) for task in tasks]


def _early(rng: random.Random, task: Task, steps: float, answer: float) -> Example:
    """With these chances the steps, if there are any, or the answer, if it is easy; else the list of everything."""
    if task.family in REASONED and task.steps and rng.random() < steps:
        return steps_example(task)
    if task.level == "easy" and rng.random() < answer:
        return answer_example(task, "instruct")
    return transcript_example(task)


def instruct_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Questions answered at once, a fifth of the batches as text; captions, lists and steps mixed in."""
    families = {"ocr": 1.2, "count": 1.4, "math": 1.0, "gui": 1.2, "hop": 1.0}
    for step in itertools.count(start):
        if step % 5 == 1:
            tasks = _draw(rng, dict.fromkeys(REASONED, 1.0), EASIER, 80)
            yield [answer_example(task, "instruct", as_text=True) for task in tasks]
        else:
            tasks = _draw(rng, {"video": 1.0}, EVENLY, 24) if step % 5 == 3 else _draw(rng, families, EASIER, 64)
            yield [_instruct_example(rng, task) for task in tasks]


def _instruct_example(rng: random.Random, task: Task) -> Example:
    draw = rng.random()
    if draw < 0.1:
        return caption_example(task)
    if draw < 0.15:
        return transcript_example(task)
    if draw < 0.25 and task.family in REASONED and task.steps:
        return steps_example(task)
    return answer_example(task, "instruct")


def thinking_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Step by step, every other batch as text with the list in place of the picture; sums above all."""
    families = {"ocr": 1.0, "count": 1.2, "math": 2.0, "gui": 0.8, "hop": 0.6}
    for step in itertools.count(start):
        if step % 2:
            tasks = _draw(rng, {"math": 3.0, "gui": 0.7, "hop": 0.3}, HARDER, 72)
            yield [answer_example(task, "thinking", as_text=True) for task in tasks]
        elif step % 6 == 4:
            yield [answer_example(task, "thinking") for task in _draw(rng, {"video": 1.0}, EVENLY, 24)]
        else:
            yield [answer_example(task, "thinking") for task in _draw(rng, families, EVENLY, 48)]


EXAMPLES: dict[str, Callable[[random.Random, int], Iterator[list[Example]]]] = {
    "transcripts": transcripts_examples,
    "instruct": instruct_examples,
    "thinking": thinking_examples,
}
