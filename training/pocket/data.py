"""Training data of the pocket pair: examples, and batches of patches, dense glyph labels and token sequences.

Patches of a whole batch are cut in one numpy step; a test compares them with those of the real processors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from training.pocket.checkpoint import MERGE, PATCH
from vlroute.learning import Task
from vlroute.pocket.canvas import CIRCLE, GLYPHS, LETTERS, SIDE, SQUARE, TRIANGLE, Canvas, Glyph
from vlroute.pocket.tasks import CAPTION_PROMPT, FRAMES, LINKS_PROMPT, TALLY_PROMPT, TRANSCRIPT_PROMPT, WORDINGS, added

GRID = SIDE // PATCH
IMAGE_TOKENS = (GRID // MERGE) ** 2
LABEL = {glyph: i + 1 for i, glyph in enumerate(GLYPHS)}  # 0: nothing lies there
IGNORE = -100
Pair = tuple[Image.Image, Image.Image]


def cut_patches(pairs: Sequence[Pair]) -> torch.Tensor:
    """Patches `[n · 64, 3 · 2 · 12 · 12]` of frame pairs, in the order of the real processors."""
    pixels = np.stack([np.stack([np.asarray(frame) for frame in pair]) for pair in pairs])
    n, grid = len(pairs), GRID // MERGE
    cells = pixels.reshape(n, 2, grid, MERGE, PATCH, grid, MERGE, PATCH, 3)
    ordered = cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(n * GRID * GRID, -1)
    return torch.from_numpy(np.ascontiguousarray(ordered)).float() / 127.5 - 1.0


def glyph_labels(pairs: Sequence[tuple[Sequence[Glyph], Sequence[Glyph]]]) -> torch.Tensor:
    """Class of the glyph whose center lies in each patch, for both frames of a pair: `[n · 64, 2]`; 0 for none."""
    labels = np.zeros((len(pairs), GRID, GRID, 2), dtype=np.int64)
    for i, pair in enumerate(pairs):
        for slot, glyphs in enumerate(pair):
            for glyph in glyphs:
                labels[i, int(glyph.y // PATCH), int(glyph.x // PATCH), slot] = LABEL[glyph.label]
    grid = GRID // MERGE
    ordered = labels.reshape(-1, grid, MERGE, grid, MERGE, 2).transpose(0, 1, 3, 2, 4, 5)
    return torch.from_numpy(np.ascontiguousarray(ordered).reshape(-1, 2))


def frame_pairs(task: Task) -> list[Pair]:
    """Pairs of frames that the tower encodes together: one for a picture (twice the same), four for a video."""
    frames = task.frames if task.is_video else task.frames * 2
    return [(frames[i], frames[i + 1]) for i in range(0, len(frames), 2)]


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: a prompt with the task's picture, or without any, and the target text.

    Characters of the target that match `given` cannot be predicted and have no loss.
    """

    name: str
    task: Task | None
    question: str
    target: str
    given: str = ""


def draw_links(rng: random.Random, task: str, count: int) -> Task:
    """A picture for practice: one to eleven arrows (`task` hop) or buttons (gui) that share no letter.

    In a ring of arrows, or on screens of three buttons, the set of letters alone determines half of the answer, and
    training does not get further. Here every link has two letters of its own, so the model has to look at each of them.
    """
    names = rng.sample(LETTERS, 2 * count)
    canvas, links = Canvas(rng), []
    for cell, name, other in zip(rng.sample(range(16), count), names[:count], names[count:], strict=True):
        (canvas.arrow if task == "hop" else canvas.button)(cell % 4, cell // 4, name, other)
        links.append(f"{name}>{other}" if task == "hop" else f"{other}<{name}")
    return Task(
        task, "practice", "easy", "en", prompt="", answer="", thinking="", caption="", transcript=" ".join(links),
        frames=(canvas.image,), glyphs=(tuple(canvas.glyphs),),
    )  # fmt: skip


def caption_example(task: Task) -> Example:
    return Example(f"caption {task.kind}", task, CAPTION_PROMPT, task.caption)


def transcript_example(task: Task) -> Example:
    return Example(f"transcript {task.kind}", task, TRANSCRIPT_PROMPT, task.transcript)


def tally_example(task: Task) -> Example:
    """The numbers of circles, squares and triangles of one picture."""
    counts = "".join(f"{kind}{task.transcript.count(kind)}" for kind in (CIRCLE, SQUARE, TRIANGLE))
    return Example("tally", task, TALLY_PROMPT, counts, given=r"[ost]")


def links_example(rng: random.Random, task: Task) -> Example:
    """All arrows or buttons of the picture in random order; only the ends of the links are predicted."""
    links = task.transcript.split()
    rng.shuffle(links)
    name = f"{task.difficulty if task.difficulty == 'practice' else 'links'} {task.kind}"
    return Example(name, task, LINKS_PROMPT, " ".join(links), given=r"[A-Z](?=[<>])| ")


def sums_example(rng: random.Random) -> Example:
    """Adding without a picture; only what follows from the numbers so far is predicted."""
    numbers = [rng.randint(10, 60)]
    while sum(numbers) <= 140:
        numbers.append(rng.randint(10, 60))
    return Example("sums", None, WORDINGS["sum"]["en"][0], added(numbers), given=r"\d\)\d\d:?| ")


def angles_example(rng: random.Random) -> Example:
    """Like `sums_example`, for the third angle of several triangles."""
    pairs = [(rng.randint(20, 99), rng.randint(20, 60)) for _ in range(3)]
    lines = " ".join(f"{added([*pair])} 180-{sum(pair)}={180 - sum(pair)}" for pair in pairs)
    return Example("angles", None, WORDINGS["angle"]["en"][0], lines, given=r"\d\)\d\d:?| ")


def times_example(rng: random.Random) -> Example:
    """Finding letters in a list of seconds, without a video; only the seconds are predicted."""
    shown = dict(zip(rng.sample(range(FRAMES), 5), rng.sample(LETTERS, 5), strict=True))
    listed = "".join(f"{second}{shown.get(second, '.')}" for second in range(FRAMES))
    asked = rng.choices([*shown.items()], k=6)  # with repetition, so that exclusion does not help
    target = " ".join([listed, *(f"{letter}{second}" for second, letter in asked)])
    return Example("times", None, WORDINGS["letter"]["en"][0].format(letter=asked[0][1]), target,
                   given=r"(\d[A-Z.]){8} | [A-Z]|[A-Z](?=\d)| ")  # fmt: skip


def answer_example(task: Task, mode: str) -> Example:
    answer = task.answer if mode == "instruct" else f"{task.thinking}\n</think>\n\n{task.answer}"
    return Example(f"{task.kind} {task.level}", task, task.prompt, answer)


class Sequences:
    """Turns examples into padded model inputs with the same tokens as the real processor."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, mode: str) -> None:
        self.tokenizer = tokenizer
        self.tail = "<think>\n" if mode == "thinking" else ""
        self.image = f"<|vision_start|>{'<|image_pad|>' * IMAGE_TOKENS}<|vision_end|>"
        frame = f"<|vision_start|>{'<|video_pad|>' * IMAGE_TOKENS}<|vision_end|>"
        stamps = "".join(f"<{second + 0.5:.1f} seconds>{frame}" for second in range(0, FRAMES, 2))
        self.video = f"<|vision_start|>{stamps}<|vision_end|>"
        self.kinds = {
            tokenizer.convert_tokens_to_ids("<|image_pad|>"): 1,
            tokenizer.convert_tokens_to_ids("<|video_pad|>"): 2,
        }

    def prompt(self, example: Example) -> str:
        media = "" if example.task is None else self.video if example.task.is_video else self.image
        return f"<|im_start|>user\n{media}{example.question}<|im_end|>\n<|im_start|>assistant\n{self.tail}"

    def pad(self, rows: Sequence[list[int]], value: int, left: bool = False) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, True, value, "left" if left else "right")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def inputs(self, examples: Sequence[Example], rows: Sequence[list[int]], left: bool) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        ids = self.pad(rows, pad, left)
        out = {"input_ids": ids, "attention_mask": self.pad([[1] * len(row) for row in rows], 0, left)}
        out["mm_token_type_ids"] = sum(
            ((ids == token).long() * kind for token, kind in self.kinds.items()), torch.zeros_like(ids)
        )
        for name, values, video in (("image", "pixel_values", False), ("video", "pixel_values_videos", True)):
            if tasks := [e.task for e in examples if e.task and e.task.is_video == video]:
                out[values] = cut_patches([pair for task in tasks for pair in frame_pairs(task)])
                steps = len(frame_pairs(tasks[0]))
                out[f"{name}_grid_thw"] = torch.tensor([[steps, GRID, GRID]] * len(tasks))
        return out

    def training_batch(self, examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs padded on the right and labels (`IGNORE` on the prompt) of the same shape `[batch, length]`."""
        prompts = self.encode([self.prompt(e) for e in examples])
        targets = self.encode([e.target + "<|im_end|>" for e in examples])
        rows = [p + t for p, t in zip(prompts, targets, strict=True)]
        labels = [[IGNORE] * len(p) + self._labels(e, t) for e, p, t in zip(examples, prompts, targets, strict=True)]
        return self.inputs(examples, rows, left=False), self.pad(labels, IGNORE)

    def _labels(self, example: Example, target: list[int]) -> list[int]:
        if not example.given:
            return target
        given = [span.span() for span in re.finditer(example.given, example.target)]
        out, at = [], 0
        for token, text in zip(target, self.tokenizer.convert_ids_to_tokens(target), strict=True):
            out.append(IGNORE if any(start <= at < end for start, end in given) else token)
            at += len(text)
        return out

    def prompt_batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Prompts padded on the left, for batched generation."""
        return self.inputs(examples, self.encode([self.prompt(e) for e in examples]), left=True)


def draw_pairs(rng: random.Random, tasks: Sequence[Task]) -> tuple[list[Pair], torch.Tensor]:
    """One frame pair of each task with its dense labels; of a video, a pair that shows something if there is one."""
    pairs, glyphs = [], []
    for task in tasks:
        every = task.glyphs if task.is_video else task.glyphs * 2
        choices = frame_pairs(task)
        busy = [i for i in range(len(choices)) if every[2 * i] or every[2 * i + 1]]
        i = rng.choice(busy) if busy else 0
        pairs.append(choices[i])
        glyphs.append((every[2 * i], every[2 * i + 1]))
    return pairs, glyph_labels(glyphs)
