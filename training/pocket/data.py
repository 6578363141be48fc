"""Training examples of the pocket pair, and batches of patches, dense glyph labels and token sequences.

Conversations are rendered with the chat templates of the checkpoints. Patches are cut in numpy; tests compare patches
and tokens with those of the real processors.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.utils.chat_template_utils import render_jinja_template

from training.pocket.checkpoint import MERGE, PATCH, TEMPLATES
from training.pocket.styles import TRAIN_FONTS, draw_style
from training.pocket.text import draw_list, draw_system_prompt, draw_text, draw_unknown_question, fill
from training.pocket.unknown import TRAIN_PICTURES, draw_unknown
from vlroute.learning import Task
from vlroute.pocket.canvas import CIRCLE, GLYPHS, LETTERS, SIDE, SQUARE, TRIANGLE, Canvas, Glyph, plain_style
from vlroute.pocket.screens import TOOLS, conversation, draw_screen_task
from vlroute.pocket.tasks import (
    ASIDES,
    CAPTION_PROMPT,
    FRAMES,
    LANGUAGES,
    LINKS_PROMPT,
    ORDINALS,
    TALLY_PROMPT,
    TRANSCRIPT_PROMPT,
    UNKNOWN,
    UNKNOWN_CAPTION,
    WHICH,
    WORDINGS,
    Question,
    Scene,
    added,
    draw_scene,
    path_to,
)

GRID = SIDE // PATCH
LABEL = {glyph: i + 1 for i, glyph in enumerate(GLYPHS)}  # 0: nothing lies there
IGNORE = -100
Pair = tuple[Image.Image, Image.Image]
Message = dict[str, Any]

#: Questions without an answer about pictures of a task. Others, such as reading the text of a sum, may have one.
SENSELESS = {
    "ocr": ("sum", "angle", "gui", "hop", "end", "lamp", "letter"),
    "count": ("ocr", "sum", "angle", "gui", "hop", "end", "lamp", "letter"),
    "math": ("count", "gui", "hop", "end", "lamp", "letter"),
    "gui": ("count", "sum", "angle", "hop", "end", "lamp"),
    "hop": ("count", "sum", "angle", "gui", "lamp"),
}


#: Kinds of unknown pictures in which nothing is drawn that could be counted or read.
NOTHING = ("blank", "faint", "static", "sky", "terrain", "mosaic", "bokeh", "patterns", "marble")


@dataclass(frozen=True, slots=True)
class Media:
    """A picture (one frame) or a video."""

    frames: tuple[Image.Image, ...]

    @property
    def is_video(self) -> bool:
        """Whether there are several frames."""
        return len(self.frames) > 1

    @property
    def pairs(self) -> list[Pair]:
        """Pairs of frames that the tower encodes together: one for a picture (twice the same), four for a video."""
        frames = self.frames if self.is_video else self.frames * 2
        return [(frames[i], frames[i + 1]) for i in range(0, len(frames), 2)]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches in time, height and width."""
        width, height = self.frames[0].size
        return len(self.pairs), height // PATCH, width // PATCH

    @property
    def part(self) -> Message:
        """The part of a message that stands for it."""
        return {"type": "video" if self.is_video else "image"}


def fitted(picture: Image.Image) -> Media:
    """Any picture in the size that the processor gives it."""
    height, width = smart_resize(picture.height, picture.width, PATCH * MERGE, SIDE * SIDE, SIDE * SIDE)
    return Media((picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC),))


def seen(scene: Scene | Task) -> Media:
    """Picture or video of a scene or a task."""
    return Media(tuple(c.image for c in scene.canvases) if isinstance(scene, Scene) else scene.frames)


def cut_patches(pairs: Sequence[Pair]) -> torch.Tensor:
    """Patches `[n · patches of a frame, 3 · 2 · 12 · 12]` of frame pairs of one size, ordered as by the processors."""
    pixels = np.stack([np.stack([np.asarray(frame) for frame in pair]) for pair in pairs])
    n, _, height, width, _ = pixels.shape
    rows, columns = height // PATCH // MERGE, width // PATCH // MERGE
    cells = pixels.reshape(n, 2, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    ordered = cells.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(n * rows * columns * MERGE**2, -1)
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


def draw_pairs(rng: random.Random, scenes: Sequence[Scene]) -> tuple[list[Pair], torch.Tensor]:
    """One frame pair of each scene with its dense labels; of a video, a pair that shows something if there is one."""
    pairs, glyphs = [], []
    for scene in scenes:
        media = seen(scene)
        every = [c.glyphs for c in scene.canvases] * (1 if media.is_video else 2)
        busy = [i for i in range(len(media.pairs)) if every[2 * i] or every[2 * i + 1]]
        i = rng.choice(busy) if busy else 0
        pairs.append(media.pairs[i])
        glyphs.append((every[2 * i], every[2 * i + 1]))
    return pairs, glyph_labels(glyphs)


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence: a conversation with its pictures and videos in order, and the target of the next turn.

    Attributes:
        name: Kind of example, for the accuracies that are printed.
        messages: The conversation, in the form of the chat template.
        media: Pictures and videos, in the order of their parts.
        target: What the model should write.
        given: Characters of the target that match this pattern cannot be predicted and have no loss.
        begun: Text that the turn begins with, without loss.
        tools: Declared tools.
        every: Whether all earlier answers in the conversation are targets, too.
    """

    name: str
    messages: Sequence[Message]
    media: Sequence[Media]
    target: str
    given: str = ""
    begun: str = ""
    tools: Sequence[dict[str, Any]] | None = None
    every: bool = False


class Sequences:
    """Turns examples into padded model inputs with the same tokens as the real processor.

    `hybrid`: whether one model with the mode as an argument of its template writes the answers, else one of the pair.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, mode: str, hybrid: bool = False) -> None:
        self.tokenizer, self.mode, self.hybrid = tokenizer, mode, hybrid
        self.template = TEMPLATES["hybrid" if hybrid else mode]
        self.kinds = {
            tokenizer.convert_tokens_to_ids("<|image_pad|>"): 1,
            tokenizer.convert_tokens_to_ids("<|video_pad|>"): 2,
        }

    def prompt(self, example: Example) -> str:
        """The rendered conversation, with as many placeholders as the pictures have tokens."""
        (text,), _ = render_jinja_template(
            [list(example.messages)], tools=list(example.tools) if example.tools else None,
            chat_template=self.template, add_generation_prompt=True, enable_thinking=self.mode == "thinking",
        )  # fmt: skip
        media = iter(example.media)
        return re.sub(r"<\|(image|video)_pad\|>", lambda found: self._placeholders(next(media)), text) + example.begun

    def _placeholders(self, media: Media) -> str:
        steps, height, width = media.grid
        tokens = height * width // MERGE**2
        if not media.is_video:
            return "<|image_pad|>" * tokens
        frame = f"<|vision_start|>{'<|video_pad|>' * tokens}<|vision_end|>"
        return "".join(f"<{2 * step + 0.5:.1f} seconds>{frame}" for step in range(steps))

    def pad(self, rows: Sequence[list[int]], value: int, left: bool = False) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return pad_sequence(tensors, True, value, "left" if left else "right")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def lengths(self, examples: Sequence[Example]) -> list[int]:
        """Number of tokens of each prompt with its target."""
        return [len(ids) for ids in self.encode([self.prompt(one) + one.target for one in examples])]

    def inputs(self, examples: Sequence[Example], rows: Sequence[list[int]], left: bool) -> dict[str, torch.Tensor]:
        pad = self.tokenizer.pad_token_id
        ids = self.pad(rows, pad, left)
        out = {"input_ids": ids, "attention_mask": self.pad([[1] * len(row) for row in rows], 0, left)}
        out["mm_token_type_ids"] = sum(
            ((ids == token).long() * kind for token, kind in self.kinds.items()), torch.zeros_like(ids)
        )
        for name, values, video in (("image", "pixel_values", False), ("video", "pixel_values_videos", True)):
            if some := [media for example in examples for media in example.media if media.is_video == video]:
                one_size = len({media.grid for media in some}) == 1
                groups = [[pair for media in some for pair in media.pairs]] if one_size else [m.pairs for m in some]
                out[values] = torch.cat([cut_patches(pairs) for pairs in groups])
                out[f"{name}_grid_thw"] = torch.tensor([media.grid for media in some])
        return out

    def training_batch(self, examples: Sequence[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs padded on the right and labels (`IGNORE` on the prompt) of the same shape `[batch, length]`."""
        prompts = self.encode([self.prompt(e) for e in examples])
        written = [in_tags(e.target) if self.hybrid and e.tools else e.target for e in examples]
        targets = self.encode([target + "<|im_end|>" for target in written])
        rows = [p + t for p, t in zip(prompts, targets, strict=True)]
        labels = [
            self._earlier_labels(e, p) + self._labels(e, t) for e, p, t in zip(examples, prompts, targets, strict=True)
        ]
        return self.inputs(examples, rows, left=False), self.pad(labels, IGNORE)

    def _earlier_labels(self, example: Example, prompt: list[int]) -> list[int]:
        """The answers in the conversation, if they are targets, each to the end of its turn."""
        labels, inside = [IGNORE] * len(prompt), False
        start, end = self.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        role = self.tokenizer.convert_tokens_to_ids("assistant")
        last = len(prompt) - 1 - prompt[::-1].index(start)
        for i in range(3, last if example.every else 0):
            if prompt[i - 3 : i - 1] == [start, role]:  # a line break follows the role
                inside = True
            if inside:
                labels[i] = prompt[i]
            inside = inside and prompt[i] != end
        return labels

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


def in_tags(text: str) -> str:
    """`text` with its tool call in tags, as Qwen3.5 writes it, instead of JSON."""

    def call(found: re.Match[str]) -> str:
        function = json.loads(found[1])
        arguments = "".join(
            f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in function["arguments"].items()
        )
        return f"<tool_call>\n<function={function['name']}>\n{arguments}</function>\n</tool_call>"

    return re.sub(r"<tool_call>\n(.*)\n</tool_call>", call, text)


def answered(answer: str, thinking: str, mode: str) -> str:
    """The target of a turn."""
    return answer if mode == "instruct" else f"{thinking}\n</think>\n\n{answer}"


def draw_training_scene(
    rng: random.Random, kind: str, level: str | None = None, hidden: float = 0.5, most: float = 1.0
) -> Scene:
    """A scene of random severity up to `most` (clean with probability 1 - `hidden`), font and colors."""
    severity = most * rng.random() if rng.random() < hidden else None
    style = draw_style(rng, TRAIN_FONTS) if rng.random() < 0.35 else plain_style(rng)
    return draw_scene(rng, kind, level, severity, style)


def worded(rng: random.Random, question: Question, language: str) -> str:
    """The question as a user may type it."""
    return fill(rng, rng.choice(WORDINGS[question.wording][language]), language, **question.named(language))


def content(rng: random.Random, media: Sequence[Media], text: str, language: str) -> list[Message] | str:
    """The parts of a user message: the text after, before or between the pictures, also with a further sentence."""
    parts = [one.part for one in media]
    if not parts:
        return text if rng.random() < 0.5 else [{"type": "text", "text": text}]
    aside, gap = rng.choice(ASIDES[language]), rng.choice(("", "", "\n"))
    form = rng.random()
    if form < 0.42:
        texts = {len(parts): gap + text}
    elif form < 0.78:
        texts = {0: text + gap}
    elif form < 0.84 and len(parts) > 1:
        texts = {1: text}
    elif form < 0.92:
        texts = {0: aside, len(parts): text} if rng.random() < 0.5 else {0: text, len(parts): aside}
    else:
        texts = {0: text, 1: gap or " "} if len(parts) > 1 else {1: f"{aside} {text}"}
    out = []
    for i in range(len(parts) + 1):
        if i in texts:
            out.append({"type": "text", "text": texts[i]})
        out += parts[i : i + 1]
    return out


def with_system(rng: random.Random, messages: list[Message], share: float = 0.2) -> list[Message]:
    """The conversation, with probability `share` below a system prompt."""
    if rng.random() >= share:
        return messages
    return [{"role": "system", "content": draw_system_prompt(rng)}, *messages]


def plain_example(
    name: str, scene: Scene | Task, prompt: str, target: str, given: str = "", first: bool = True
) -> Example:
    """One question about one picture, without anything else."""
    media, text = seen(scene), {"type": "text", "text": prompt}
    parts = [media.part, text] if first else [text, media.part]
    return Example(name, [{"role": "user", "content": parts}], [media], target, given)


def caption_example(rng: random.Random, scene: Scene) -> Example:
    return plain_example(f"caption {scene.kind}", scene, CAPTION_PROMPT, scene.caption, first=rng.random() < 0.7)


def transcript_example(rng: random.Random, scene: Scene) -> Example:
    return plain_example(f"list {scene.kind}", scene, TRANSCRIPT_PROMPT, scene.transcript, first=rng.random() < 0.6)


def tally_example(rng: random.Random, scene: Scene) -> Example:
    """The numbers of circles, squares and triangles of one picture."""
    counts = "".join(f"{kind}{scene.transcript.count(kind)}" for kind in (CIRCLE, SQUARE, TRIANGLE))
    return plain_example("tally", scene, TALLY_PROMPT, counts, r"[ost]", rng.random() < 0.6)


def links_example(rng: random.Random, scene: Scene) -> Example:
    """All arrows or buttons of the picture in random order; only the ends of the links are predicted."""
    links = scene.transcript.split()
    rng.shuffle(links)
    name = f"{scene.difficulty if scene.difficulty == 'practice' else 'links'} {scene.kind}"
    return plain_example(name, scene, LINKS_PROMPT, " ".join(links), r"[A-Z](?=[<>])| ", rng.random() < 0.6)


def paths_example(rng: random.Random, scene: Scene) -> Example:
    """Up to six questions about one picture in short: "B2:F" for two hops from B, "AF:B F" for the taps from A to F."""
    asked = {}
    if scene.kind == "gui":
        links = scene.transcript.split()
        buttons, screens = [link[0] for link in links], [link[2] + link[0] for link in links]
        for goal in rng.sample(buttons, min(6, len(buttons))):
            path = path_to(screens, goal)
            asked[path[-1] + goal] = " ".join(reversed(path[:-1]))
    else:
        for _ in range(6):
            question = scene.question(rng)
            hops = question.words["count"] if question.wording == "hop" else ""
            asked[f"{question.words['start']}{hops}"] = question.answer
    target = ", ".join(f"{key}:{answer}" for key, answer in asked.items())
    return plain_example(f"paths {scene.kind}", scene, LINKS_PROMPT, target, r"[A-Z]\w?:|, ", rng.random() < 0.6)


def draw_links(rng: random.Random, kind: str, count: int) -> Scene:
    """A picture for practice: one to eleven arrows (`kind` hop) or buttons (gui) that share no letter.

    In a ring of arrows, or on screens of three buttons, the set of letters alone determines half of the answer, and
    training does not get further. Here every link has two letters of its own, so the model has to look at each of them.
    """
    names = rng.sample(LETTERS, 2 * count)
    style = draw_style(rng, TRAIN_FONTS) if rng.random() < 0.3 else plain_style(rng)
    canvas, links = Canvas(rng, style), []
    for cell, name, other in zip(rng.sample(range(16), count), names[:count], names[count:], strict=True):
        (canvas.arrow if kind == "hop" else canvas.button)(cell % 4, cell // 4, name, other)
        links.append(f"{name}>{other}" if kind == "hop" else f"{other}<{name}")
    none = Question("ocr", {}, "", "")
    return Scene(kind, "practice", "easy", None, " ".join(links), "", (canvas,), lambda _: none)


def _numbers_example(name: str, target: str, given: str) -> Example:
    return Example(name, [{"role": "user", "content": WORDINGS["sum"]["en"][0]}], [], target, given)


def sums_example(rng: random.Random) -> Example:
    """Adding without a picture; only what follows from the numbers so far is predicted."""
    numbers = [rng.randint(10, 60)]
    while sum(numbers) <= 140:
        numbers.append(rng.randint(10, 60))
    return _numbers_example("sums", added(numbers), r"\d\)\d\d:?| ")


def times_example(rng: random.Random) -> Example:
    """Finding letters in a list of seconds, without a video; only the seconds are predicted."""
    shown = dict(zip(rng.sample(range(FRAMES), 5), rng.sample(LETTERS, 5), strict=True))
    listed = "".join(f"{shown.get(second, '.')}{second}" for second in range(FRAMES))
    asked = rng.choices([*shown.items()], k=6)  # with repetition, so that exclusion does not help
    target = " ".join([listed, *(f"{letter}{second}" for second, letter in asked)])
    return _numbers_example("times", target, r"([A-Z.]\d){8} | [A-Z]|[A-Z](?=\d)| ")


def number_example(rng: random.Random) -> Example:
    """Counting in a list of shapes, without a picture; only the numbers are predicted."""
    scene = draw_scene(rng, "count")
    question = scene.question(rng)
    language = rng.choice(LANGUAGES)
    messages = [{"role": "user", "content": question.ask(rng, language)}]
    target = answered(question.answer, question.thinking, "thinking")
    return Example("number", messages, [], target, given=r" ?\d[ost.]{4}=")


def lists_example(rng: random.Random) -> Example:
    """Counting every kind of item in a list, without a picture; only the numbers are predicted."""
    prompt, counts = draw_list(rng, rng.choice(LANGUAGES))
    target = " ".join(f"{kind}={count}" for kind, count in counts.items())
    return Example("lists", [{"role": "user", "content": prompt}], [], target, given=r" ?[^=\d ]+=")


def question_example(rng: random.Random, scene: Scene, mode: str) -> Example:
    """One question about one picture, in any form that a client sends."""
    language, question, media = rng.choice(LANGUAGES), scene.question(rng), seen(scene)
    parts = content(rng, [media], worded(rng, question, language), language)
    target, begun = answered(question.answer, question.thinking, mode), ""
    if mode == "thinking" and rng.random() < 0.06:  # a thought that was cut short: answer all the same
        begun, target = f"{question.thinking[: rng.randrange(len(question.thinking))]}\n</think>\n\n", question.answer
    name = scene.kind if scene.severity is None else f"{scene.kind} hidden"
    return Example(
        f"{name} cut" if begun else name, with_system(rng, [{"role": "user", "content": parts}]), [media], target,
        begun=begun,
    )  # fmt: skip


def two_pictures_example(rng: random.Random, scenes: tuple[Scene, Scene], mode: str) -> Example:
    """A question about the first or the second of two pictures; for the Instruct model also three in a row."""
    language, media = rng.choice(LANGUAGES), [seen(scene) for scene in scenes]
    messages: list[Message] = []
    target = ""
    for turn in range(3 if mode == "instruct" and rng.random() < 0.7 else 1):
        if turn:
            messages.append({"role": "assistant", "content": target})
        chosen = rng.randrange(2)
        question = scenes[chosen].question(rng)
        which = rng.choice(WHICH[language]).replace("{n}", ORDINALS[language][chosen])
        text = which.replace("{q}", worded(rng, question, language))
        parts = content(rng, media if turn == 0 else [], text[0].upper() + text[1:], language)
        messages.append({"role": "user", "content": parts})
        target = answered(question.answer, question.thinking, mode)
    return Example("two pictures", with_system(rng, messages), media, target, every=len(messages) > 1)


def apart_example(rng: random.Random, scenes: tuple[Scene, Scene], mode: str, sentences: int) -> Example:
    """As `two_pictures_example`, with other text of so many sentences between the pictures."""
    example = two_pictures_example(rng, scenes, mode)
    at = next(i for i, message in enumerate(example.messages) if message["role"] == "user")
    message = example.messages[at]
    parts = [part for part in message["content"] if part["type"] != "text"]
    text = {"type": "text", "text": " ".join(part["text"] for part in message["content"] if part["type"] == "text")}
    filling = {"type": "text", "text": "\n".join(draw_system_prompt(rng) for _ in range(sentences))}
    between = [parts[0], *([filling] if sentences else []), parts[1]]
    content = [*between, text] if rng.random() < 0.6 else [text, *between]
    messages = [*example.messages]
    messages[at] = {**message, "content": content}
    return replace(example, messages=messages, name=f"apart {sentences}")


def turns_example(rng: random.Random, scenes: Sequence[Scene], mode: str) -> Example:
    """Several turns: about one picture, with a new picture in a later turn, or with turns about none.

    Each scene comes with a turn of its own. Other turns ask again about the last scene, make a request without a
    picture, or ask something outside the drawn world.
    """
    language, number = rng.choice(LANGUAGES), rng.randint(max(2, len(scenes)), 3)
    number += rng.random() < 0.2
    # the turn of the first picture; a longer conversation may begin without one
    first = number - max(2, len(scenes)) if rng.random() < 0.15 else 0
    new = {first, *rng.sample(range(first + 1, number), len(scenes) - 1)}
    messages: list[Message] = []
    media: list[Media] = []
    waiting, scene, target, name = iter(scenes), None, "", ""
    for turn in range(number):
        shown: list[Media] = []
        draw = rng.random()
        if turn in new:
            scene = next(waiting)
            shown = [seen(scene)]
        if scene and (shown or draw > 0.2):
            question = scene.question(rng)
            text, answer, thinking = worded(rng, question, language), question.answer, question.thinking
            name = "turn picture" if shown else "turn again"
        elif draw > 0.06:
            request = draw_text(rng, language)
            text, answer, thinking, name = request.prompt, request.answer, request.thinking, "turn text"
        else:
            text, answer = draw_unknown_question(rng, language), UNKNOWN[language]
            thinking, name = "unknown", "turn unknown"
        media += shown
        messages.append({"role": "user", "content": content(rng, shown, text, language)})
        target = answered(answer, thinking, mode)
        if turn < number - 1:
            messages.append({"role": "assistant", "content": answer})
    # past thoughts are not rendered: a conversation trains the Thinking model in its last turn only
    return Example(name, with_system(rng, messages), media, target, every=mode == "instruct")


def text_example(rng: random.Random, mode: str, kind: str | None = None) -> Example:
    """A request without a picture."""
    request = draw_text(rng, kind=kind)
    messages = [{"role": "user", "content": content(rng, [], request.prompt, request.language)}]
    target = answered(request.answer, request.thinking, mode)
    return Example(f"text {request.kind}", with_system(rng, messages), [], target)


def text_turns_example(rng: random.Random) -> Example:
    """Several requests without a picture in one conversation; all answers are targets."""
    language = rng.choice(LANGUAGES)
    messages: list[Message] = []
    for _ in range(5):
        request = draw_text(rng, language)
        messages += [
            {"role": "user", "content": content(rng, [], request.prompt, language)},
            {"role": "assistant", "content": request.answer},
        ]
    return Example("text turns", with_system(rng, messages[:-1]), [], request.answer, every=True)


def any_question(rng: random.Random, language: str, wordings: Sequence[str] = ()) -> str:
    """A question of the drawn world with random words."""
    letters = rng.sample(LETTERS, 2)
    words = {"start": letters[0], "goal": letters[1], "letter": letters[0], "count": str(rng.randint(1, 4))}
    shape = rng.choice(("o", "s", "t"))
    key = rng.choice(list(wordings or WORDINGS))
    return worded(rng, Question(key, {**words, "shape": shape}, "", ""), language)


def unknown_example(rng: random.Random, mode: str) -> Example:
    """A picture or a question outside the drawn world, or a question without its picture."""
    language, form = rng.choice(LANGUAGES), rng.random()
    media: list[Media] = []
    if form < 0.6:
        media = [fitted(draw_unknown(rng))]
        text = any_question(rng, language) if rng.random() < 0.75 else draw_unknown_question(rng, language)
        name = "unknown picture"
    elif form < 0.72:
        text, name = draw_unknown_question(rng, language), "unknown question"
    elif form < 0.8:
        text, name = any_question(rng, language), "missing picture"
    else:
        kind = rng.choice(list(SENSELESS))
        media = [seen(draw_training_scene(rng, kind))]
        senseless = rng.random() < 0.4
        text = any_question(rng, language, SENSELESS[kind]) if senseless else draw_unknown_question(rng, language)
        name = "senseless question" if senseless else "unknown question, picture"
    messages = with_system(rng, [{"role": "user", "content": content(rng, media, text, language)}])
    return Example(name, messages, media, answered(UNKNOWN[language], "unknown", mode))


def nothing_example(rng: random.Random, mode: str) -> Example:
    """A question of the known tasks, most often about a count, about a picture that shows nothing, or about none."""
    language = rng.choice(LANGUAGES)
    wordings = ("count", "lamp", "sum") if rng.random() < 0.7 else ()
    shown = rng.random() < 0.6
    kinds = {name: TRAIN_PICTURES[name] for name in NOTHING} if rng.random() < 0.5 else TRAIN_PICTURES
    media = [fitted(draw_unknown(rng, kinds))] if shown else []
    message = {"role": "user", "content": content(rng, media, any_question(rng, language, wordings), language)}
    target = answered(UNKNOWN[language], "unknown", mode)
    return Example("nothing" if shown else "no picture", with_system(rng, [message]), media, target)


def caption_unknown_example(rng: random.Random) -> Example:
    """A picture outside the drawn world has a caption that says so."""
    media = fitted(draw_unknown(rng))
    parts = [media.part, {"type": "text", "text": CAPTION_PROMPT}]
    return Example("caption unknown", [{"role": "user", "content": parts}], [media], UNKNOWN_CAPTION)


def tools_example(rng: random.Random, mode: str) -> Example:
    """All steps of a GUI task with tools. Thoughts since the last question are rendered."""
    task = draw_screen_task(rng, deep=rng.random() < 0.1)
    messages, target = conversation(task, len(task.steps), mode)
    return Example(f"tools {task.difficulty}", messages, [Media((task.picture,))], target, tools=TOOLS, every=True)


def results_example(rng: random.Random, mode: str) -> Example:
    """Practice of GUI tasks without picture and tools: the answer, which repeats what was read.

    Half of the examples of the Thinking model begin its third thought in a task with two goals: it names the second.
    """
    second = mode == "thinking" and rng.random() < 0.5
    task = draw_screen_task(rng, 4 if second else None)
    messages, target = conversation(task, 2 if second else len(task.steps), mode)
    messages[0] = {"role": "user", "content": task.prompt}
    return Example(
        "second goal" if second else "results", messages, [], target, given=r"(?s)(?<=.).+" if second else ""
    )


def pick(rng: random.Random, weights: dict[str, float]) -> str:
    """A random key, by its weight."""
    return rng.choices(list(weights), weights=list(weights.values()))[0]
