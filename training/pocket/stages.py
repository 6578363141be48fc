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
    transcript_example,
)
from vlroute.pocket.families import Task, draw_task

Scores = dict[str, tuple[float, int]]  # name → (share right, how many)
STILLS = ("ocr", "count", "math", "gui", "hop")
REASONED = ("math", "gui", "hop")


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
        Stage("transcripts", "tower", 1400, 2e-3, 0.15, 2),
        Stage("instruct", "transcripts", 3400, 1.5e-3, 0.0, 1),
        Stage("thinking", "transcripts", 2800, 1.5e-3, 0.0, 1),
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
        return f"{'transcript' if example.target == task.transcript else 'caption'} {task.family}"
    return f"{'text' if example.as_text else 'seen'} {task.family} {task.level}"


EASIER = {"easy": 0.5, "medium": 0.25, "hard": 0.25}
HARDER = {"easy": 0.2, "medium": 0.3, "hard": 0.5}
EVENLY = {"easy": 1.0, "medium": 1.0, "hard": 1.0}


def _draw(rng: random.Random, families: dict[str, float], levels: dict[str, float], count: int) -> list[Task]:
    return [draw_task(rng, pick(rng, families), pick(rng, levels)) for _ in range(count)]


def transcripts_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Two thirds lists of everything, one third easy questions answered at once; every sixth batch videos."""
    families = {"ocr": 1.5, "count": 1.0, "math": 1.0, "gui": 1.5, "hop": 1.2}
    for step in itertools.count(start):
        if step % 6 == 5:
            tasks = _draw(rng, {"video": 1.0}, EVENLY, 20)
        else:
            tasks = _draw(rng, families, EVENLY, 64)
        yield [
            answer_example(task, "instruct")
            if task.level == "easy" and rng.random() < 0.75
            else transcript_example(task)
            for task in tasks
        ]


def instruct_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Questions answered at once; looking up practised as text first; captions and lists mixed in."""
    families = {"ocr": 1.5, "count": 1.0, "math": 1.0, "gui": 1.5, "hop": 1.5}
    for step in itertools.count(start):
        if step < 300 or step % 5 == 1:
            tasks = _draw(rng, dict.fromkeys(REASONED, 1.0), EASIER, 96)
            yield [answer_example(task, "instruct", as_text=True) for task in tasks]
            continue
        tasks = _draw(rng, {"video": 1.0}, EVENLY, 20) if step % 6 == 5 else _draw(rng, families, EASIER, 64)
        examples = []
        for task in tasks:
            draw = rng.random()
            if draw < 0.12:
                examples.append(caption_example(task))
            else:
                examples.append(transcript_example(task) if draw < 0.2 else answer_example(task, "instruct"))
        yield examples


def thinking_examples(rng: random.Random, start: int) -> Iterator[list[Example]]:
    """Step by step; looking up practised as text alone first, then every other batch as text."""
    for step in itertools.count(start):
        if step < 400:
            tasks = _draw(rng, {"hop": 1.0, "gui": 1.0}, HARDER, 96)
            yield [answer_example(task, "thinking", as_text=True) for task in tasks]
        elif step % 2:
            tasks = _draw(rng, {"math": 2.0, "gui": 1.0, "hop": 1.0}, HARDER, 80)
            yield [answer_example(task, "thinking", as_text=True) for task in tasks]
        elif step % 10 == 4:
            yield [answer_example(task, "thinking") for task in _draw(rng, {"video": 1.0}, EVENLY, 20)]
        else:
            families = {"ocr": 1.2, "count": 0.8, "math": 1.5, "gui": 1.3, "hop": 1.2}
            yield [answer_example(task, "thinking") for task in _draw(rng, families, EVENLY, 48)]


EXAMPLES: dict[str, Callable[[random.Random, int], Iterator[list[Example]]]] = {
    "transcripts": transcripts_examples,
    "instruct": instruct_examples,
    "thinking": thinking_examples,
}
