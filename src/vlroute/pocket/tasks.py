"""Draws tasks for the pocket pair: small pictures and videos with questions and exact answers.

Each question has several wordings in English and Chinese. They do not depend on the difficulty of the picture.

Two things make a task difficult. Its *level* is visible in the caption: the number of characters, shapes or arrows.
Its *severity*, a number from 0 to 1, is not: look-alike glyphs, partly covered and crowded shapes, sums with carries,
longer chains with the same number of arrows, more taps with the same number of screens, a dimmer lamp, and a blurred,
noisy or faint picture.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image

from vlroute.pocket.canvas import (
    CORRUPTIONS,
    DIGITS,
    LETTERS,
    LOOK_ALIKE,
    SHAPES,
    SIDE,
    Canvas,
    Glyph,
    Ink,
    Style,
    plain_style,
)

WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "ocr": {
        "en": (
            "Read the text.",
            "What does it say?",
            "Transcribe the text in the picture.",
            "What is written here?",
        ),
        "zh": ("读出文字。", "上面写着什么？", "图中的文字是什么？"),
    },
    "count": {
        "en": ("How many {shape}?", "Count the {shape}.", "How many {shape} are in the picture?"),
        "zh": ("有几个{shape}？", "数一数{shape}。", "图中有多少个{shape}？"),
    },
    "sum": {
        "en": (
            "Add the numbers.",
            "What is the total?",
            "Sum up the numbers shown.",
            "What do the numbers add up to?",
        ),
        "zh": ("求和。", "数字的总和是多少？", "把数字加起来。"),
    },
    "angle": {
        "en": ("Find the missing angle.", "How large is the angle marked ?", "What is the unknown angle?"),
        "zh": ("求未知的角。", "问号处的角是多少度？"),
    },
    "gui": {
        "en": (
            "You are on screen {start}. Which taps lead to {goal}?",
            "From {start}, what do I tap to open {goal}?",
            "Show the taps from {start} to {goal}.",
        ),
        "zh": ("从{start}怎么点到{goal}？", "现在在屏幕{start}，依次点什么能打开{goal}？"),
    },
    "hop": {
        "en": (
            "Start at {start} and follow {count} arrows.",
            "Where do {count} hops from {start} lead?",
            "From {start}, take {count} steps along the arrows. Where are you?",
        ),
        "zh": ("从{start}出发，沿箭头走{count}步，到哪里？", "从{start}跟着{count}个箭头走。"),
    },
    "end": {
        "en": (
            "Start at {start} and follow the arrows to the end.",
            "Where do the arrows from {start} end?",
            "From {start}, follow all arrows. Where are you?",
        ),
        "zh": ("从{start}出发，沿箭头走到底，到哪里？", "从{start}跟着箭头走到最后。"),
    },
    "lamp": {
        "en": ("How often did the lamp light?", "How many times does the lamp flash?", "Count the flashes."),
        "zh": ("灯亮了几次？", "数一数灯闪了多少次。"),
    },
    "letter": {
        "en": (
            "At which second does {letter} show?",
            "When does {letter} appear?",
            "Which second shows {letter}?",
        ),
        "zh": ("{letter}在第几秒出现？", "字母{letter}什么时候出现？"),
    },
}

SHAPE_NAMES = {
    "en": {"o": "circles", "s": "squares", "t": "triangles"},
    "zh": {"o": "圆形", "s": "方形", "t": "三角形"},
}

#: Answer to pictures and questions outside the drawn tasks.
UNKNOWN = {"en": "I can only read small drawings.", "zh": "我只能看懂简单的小图。"}

#: Sentences next to the question that do not change it.
ASIDES = {
    "en": ("Look at this picture.", "Here is a picture:", "Look:", "Question:", "Answer briefly.", "Thanks!"),
    "zh": ("看这张图。", "图片如下：", "请看：", "问题：", "请简短回答。", "谢谢！"),
}
#: Wordings that say which of two pictures is meant. `{n}`: one of `ORDINALS`, `{q}`: the question.
WHICH = {
    "en": ("In the {n} picture: {q}", "{n} picture: {q}", "Look at the {n} picture. {q}", "{q} ({n} picture)"),
    "zh": ("{n}张图：{q}", "看{n}张图。{q}", "{n}张图里，{q}", "{q}（{n}张图）"),
}
ORDINALS = {"en": ("first", "second"), "zh": ("第一", "第二")}
#: Prompt for the short caption of the Instruct model; a separate training task.
CAPTION_PROMPT = "Describe the picture in a few words."
#: Caption of a picture outside the drawn tasks.
UNKNOWN_CAPTION = "an unknown picture"
#: Prompt for all symbols in the picture; used in training only.
TRANSCRIPT_PROMPT = "List everything in the picture."
#: Prompt for the number of each kind of shape; used in training only.
TALLY_PROMPT = "Count everything in the picture."
#: Prompt for the target of every arrow or button; used in training only.
LINKS_PROMPT = "Follow everything in the picture."

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LEVELS = ("easy", "medium", "hard")
FRAMES = 8  # frames of a video, one per second
LANGUAGES = ("en", "zh")
#: Separates the passes of a thought that repeats its steps.
AGAIN = " again "
#: Share of a shape that stays visible, so that a person can still tell what it is.
LEAST_VISIBLE = 0.35


def counted(count: int, noun: str) -> str:
    """Write a number in words before a noun: `counted(3, "number")` is "three numbers".

    Args:
        count: The number, from 0 to 10.
        noun: The noun in the singular.

    Returns:
        The text.
    """
    return f"{NUMBER_WORDS[count]} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture, without its wording.

    Attributes:
        wording: A key of `WORDINGS`.
        words: What the wording is filled with; "shape" is a kind of shape, which has a name in each language.
        answer: The exact answer.
        thinking: Target of the Thinking model before `</think>`.
    """

    wording: str
    words: Mapping[str, object]
    answer: str
    thinking: str

    def named(self, language: str) -> dict[str, str]:
        """Return `words` with the names of shapes in a language.

        Args:
            language: "en" or "zh".

        Returns:
            The words by the name of their field.
        """
        return {k: SHAPE_NAMES[language][str(v)] if k == "shape" else str(v) for k, v in self.words.items()}

    def ask(self, rng: random.Random, language: str) -> str:
        """Return a random wording of the question.

        Args:
            rng: Source of randomness.
            language: "en" or "zh".

        Returns:
            The text.
        """
        return rng.choice(WORDINGS[self.wording][language]).format(**self.named(language))


@dataclass(frozen=True, slots=True)
class Task:
    """One picture, or a video of eight frames, with a question and its answer.

    Attributes:
        kind: Kind of task, a key of `TASKS`.
        difficulty: Description of the difficulty, such as "3–4 shapes".
        level: Difficulty that the caption shows, one of `LEVELS`.
        severity: Difficulty that the caption does not show, from 0 to 1; None for a clean picture with any content.
        language: "en" or "zh".
        prompt: The question.
        answer: The exact answer.
        transcript: Everything that is drawn.
        thinking: Target of the Thinking model before `</think>`; each step reads one symbol, adds two numbers, or
            writes the number found so far.
        caption: Target of the caption task.
        frames: The picture, or the frames of the video.
        glyphs: The glyphs of each frame.
    """

    kind: str
    difficulty: str
    level: str
    severity: float | None
    language: str
    prompt: str
    answer: str
    transcript: str
    thinking: str
    caption: str
    frames: tuple[Image.Image, ...]
    glyphs: tuple[tuple[Glyph, ...], ...]

    @property
    def is_video(self) -> bool:
        """Whether the task has several frames."""
        return len(self.frames) > 1


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture or a video that several questions can be asked about.

    Attributes:
        kind: See `Task`, as for the other attributes.
        difficulty: Description of the difficulty.
        level: Difficulty that the caption shows.
        severity: Difficulty that the caption does not show.
        transcript: Everything that is drawn.
        caption: Short description.
        canvases: The picture, or the frames of the video.
        question: Draws one of the questions about it.
    """

    kind: str
    difficulty: str
    level: str
    severity: float | None
    transcript: str
    caption: str
    canvases: tuple[Canvas, ...]
    question: Callable[[random.Random], Question]

    def task(self, rng: random.Random, language: str) -> Task:
        """Draw one question about the scene.

        Args:
            rng: Source of randomness.
            language: "en" or "zh".

        Returns:
            The task.
        """
        question = self.question(rng)
        return Task(
            self.kind, self.difficulty, self.level, self.severity, language,
            prompt=question.ask(rng, language), answer=question.answer, thinking=question.thinking,
            transcript=self.transcript, caption=self.caption,
            frames=tuple(c.image for c in self.canvases), glyphs=tuple(tuple(c.glyphs) for c in self.canvases),
        )  # fmt: skip


def _scene(
    rng: random.Random, kind: str, difficulty: str, level: str, severity: float | None, canvases: list[Canvas],
    transcript: str, caption: str, question: Callable[[random.Random], Question],
) -> Scene:  # fmt: skip
    """Make the pictures as hard to see as `severity` asks for, each frame in the same way."""
    way = rng.choice(CORRUPTIONS)
    for canvas in canvases:
        # shapes are hidden in other ways, too
        canvas.corrupt(way, (severity or 0.0) * (0.5 if kind == "count" else 1.0))
    return Scene(kind, difficulty, level, severity, transcript, caption, tuple(canvases), question)


def _between(rng: random.Random, low: int, high: int, severity: float) -> int:
    """Interpolate between `low` at severity 0 and `high` at 1, and round at random so that the mean grows evenly."""
    return int(low + severity * (high - low) + rng.random())


def _ocr(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    length = {"easy": rng.randint(2, 3), "medium": 4, "hard": rng.randint(5, 6)}[level]
    text = "".join(
        rng.choice("".join(LOOK_ALIKE)) if rng.random() < (severity or 0.0) else rng.choice(LETTERS + DIGITS[2:])
        for _ in range(length)
    )
    canvas = Canvas(rng, style)
    top = rng.randint(0, 3 - (length - 1) // 4)
    for i, char in enumerate(text):  # four a line
        canvas.text(i % 4, top + i // 4, char)
    return _scene(
        rng, "ocr", f"{length} characters", level, severity, [canvas], text, counted(length, "character"),
        lambda _: Question("ocr", {}, text, text),
    )  # fmt: skip


def _draw_shapes(rng: random.Random, kinds: list[str], hidden: float, style: Style) -> tuple[Canvas, list[str]]:
    """Draw shapes into random cells; with growing `hidden` smaller, crowded, in any color and partly covered."""
    canvas, cells = Canvas(rng, style), ["."] * 16
    size, shift = round(18 - 2 * hidden), round(10 * hidden)
    for cell, kind in zip(rng.sample(range(16), len(kinds)), kinds, strict=True):
        ink: Ink | None = rng.choice(style.shape_inks) if rng.random() < hidden else None
        canvas.shape(kind, cell % 4, cell // 4, size, ink, shift)
        cells[cell] = kind
    if hidden:
        for cell in range(16):
            if cells[cell] != ".":
                canvas.cover(cell % 4, cell // 4, 0.3 * hidden * rng.random())
    return canvas, cells


def _count(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    hidden = severity or 0.0
    total = rng.randint(*{"easy": (1, 2), "medium": (3, 4), "hard": (5, _between(rng, 7, 10, hidden))}[level])
    kinds = [rng.choice(SHAPES) for _ in range(total)]
    canvas, cells = _draw_shapes(rng, kinds, hidden, style)
    while min(canvas.visible_shares()) < LEAST_VISIBLE:
        canvas, cells = _draw_shapes(rng, kinds, hidden, style)
    rows = "".join(f"{row + 1}{''.join(cells[4 * row : 4 * row + 4])}" for row in range(4))

    def question(rng: random.Random) -> Question:
        # mostly a kind that is there: "0" would otherwise be the most frequent answer
        asked = rng.choice(kinds) if rng.random() < 0.85 else rng.choice(SHAPES)
        found, listed = 0, []
        for row in range(4):  # each row is followed by the number found so far
            some = "".join(cells[4 * row : 4 * row + 4])
            found += some.count(asked)
            listed.append(f"{row + 1}{some}={found}")
        return Question("count", {"shape": asked}, str(found), " ".join(listed))

    difficulty = {"easy": "1–2 shapes", "medium": "3–4 shapes", "hard": f"5–{7 if severity is None else 10} shapes"}[
        level
    ]
    return _scene(rng, "count", difficulty, level, severity, [canvas], rows, counted(total, "shape"), question)


def numbered(numbers: list[int]) -> str:
    """Number the items of a list: `[34, 27]` becomes "1)34 2)27".

    Args:
        numbers: The numbers.

    Returns:
        The text.
    """
    return " ".join(f"{i}){number}" for i, number in enumerate(numbers, start=1))


def added(numbers: list[int]) -> str:
    """Write the steps of a sum: `[34, 27]` becomes "1)34 2)27:11=61".

    Each number after the first is followed by the sum of the units and by the sum of all numbers so far.

    Args:
        numbers: The numbers, at least one.

    Returns:
        The text.
    """
    total = numbers[0]
    parts = [numbered(numbers[:1])]
    for i, number in enumerate(numbers[1:], start=2):
        units = total % 10 + number % 10
        total += number
        parts.append(f"{i}){number}:{units:02d}={total}")
    return " ".join(parts)


def _number(rng: random.Random, low: int, high: int, severity: float | None) -> int:
    """A number from `low` to `high`. Its last digit is 0 at severity 0, and any digit at 1, so that sums carry."""
    number = rng.randint(low, high)
    return number if severity is None else max(number // 10 * 10 + rng.randint(0, round(9 * severity)), low)


def _sum(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    how_many = {"easy": 1, "medium": 2, "hard": rng.randint(3, 4)}[level]
    numbers = [rng.randint(10, 49), *(_number(rng, 10, 49, severity) for _ in range(how_many - 1))]
    canvas = Canvas(rng, style)
    for row, number in enumerate(numbers):
        canvas.text(rng.randint(0, 2), row, str(number), pitch=20)
    # long sums are added several times, in up to 200 tokens, so that a thinking budget can cut the thought short
    thinking = AGAIN.join([added(numbers)] * {3: 3, 4: 5}.get(how_many, 1))
    return _scene(
        rng, "math", counted(how_many, "number"), level, severity, [canvas], numbered(numbers),
        counted(how_many, "number"), lambda _: Question("sum", {}, str(sum(numbers)), thinking),
    )  # fmt: skip


def _angle(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    canvas = Canvas(rng, style)
    canvas.draw.polygon([(54, 30), (28, 74), (80, 74)], outline=rng.choice(style.inks))
    top, left = _number(rng, 20, 99, severity), _number(rng, 20, 60, severity)
    for (column, row), label in zip(((1, 0), (0, 3), (2, 3)), (str(top), str(left), "?"), strict=True):
        canvas.text(column, row, label, pitch=20)
    answer = 180 - top - left
    thinking = f"{added([top, left])} 180-{top + left}={answer}"
    return _scene(
        rng, "math", "triangle angle", level, severity, [canvas], numbered([top, left]), "a triangle",
        lambda _: Question("angle", {}, str(answer), thinking),
    )  # fmt: skip


def _math(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    return (_angle if level == "hard" and rng.random() < 0.4 else _sum)(rng, level, severity, style)


def draw_screens(rng: random.Random, how_many: int) -> list[str]:
    """Draw a tree of screens as strings: "ABCD" is screen A with the buttons B, C and D.

    A button opens the screen of the same name. A button of each screen opens the next one, so that the tree is as deep
    as possible. With four screens, a button of the root opens the last one instead, which does not lead deeper.

    Args:
        rng: Source of randomness.
        how_many: Number of screens, from 1 to 4.

    Returns:
        The screens; the root comes first.
    """
    names = rng.sample(LETTERS, 3 * how_many + 1)
    screens = [names[0] + "".join(names[1:4])]
    for i in range(1, how_many):
        above = screens[0] if i == 1 or (how_many == 4 and i == 3) else screens[i - 1]
        taken = {screen[0] for screen in screens}
        name = rng.choice([button for button in above[1:] if button not in taken])
        screens.append(name + "".join(names[3 * i + 1 : 3 * i + 4]))
    return screens


def path_to(screens: list[str], goal: str) -> list[str]:
    """List the screens and buttons from a goal back to the root.

    Args:
        screens: The screens, in the form of `draw_screens`.
        goal: Letter of a screen or button.

    Returns:
        Their letters; the goal comes first.
    """
    owner = {button: screen[0] for screen in screens for button in screen[1:]}
    path = [goal]
    while path[-1] in owner:
        path.append(owner[path[-1]])
    return path


def draw_buttons(rng: random.Random, screens: list[str], style: Style) -> Canvas:
    """Draw one row of buttons for each screen.

    Args:
        rng: Source of randomness.
        screens: The screens, in the form of `draw_screens`.
        style: Font and colors.

    Returns:
        The picture.
    """
    canvas = Canvas(rng, style)
    for row, screen in enumerate(screens):
        for column, button in zip(sorted(rng.sample(range(4), 3)), screen[1:], strict=True):
            canvas.button(column, row, screen[0], button)
    return canvas


def _gui(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    if severity is None:
        taps = {"easy": 1, "medium": 2, "hard": 3}[level]
        few = {1: rng.randint(1, 2), 2: rng.randint(2, 3), 3: rng.randint(3, 4)}[taps]
        how_many = 4 if taps > 1 and rng.random() < 0.15 else few  # or the number of screens would show that of taps
        difficulty = counted(taps, "tap")
    else:
        how_many = {"easy": 2, "medium": 3, "hard": 4}[level]
        taps = _between(rng, 1, min(3, how_many), severity)
        difficulty = counted(how_many, "screen")
    screens = draw_screens(rng, how_many)
    start = screens[0][0]
    goals = [b for s in screens for b in s[1:] if len(path_to(screens, b)) == taps + 1]
    rng.shuffle(screens)
    canvas = draw_buttons(rng, screens, style)
    canvas.scribble(round(6 * (severity or 0.0)))

    def question(rng: random.Random) -> Question:
        path = path_to(screens, rng.choice(goals))
        words = {"start": start, "goal": path[0]}
        return Question("gui", words, " ".join(reversed(path[:-1])), "<".join(path))

    transcript = " ".join(f"{button}<{screen[0]}" for screen in screens for button in screen[1:])
    return _scene(
        rng, "gui", difficulty, level, severity, [canvas], transcript, counted(how_many, "screen"), question
    )  # fmt: skip


def _hop(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    if severity is None:  # a ring: the question says how many arrows to follow
        hops = {"easy": 1, "medium": 2, "hard": rng.randint(3, 4)}[level]
        arrows = {"easy": rng.randint(2, 4), "medium": rng.randint(3, 5), "hard": rng.randint(5, 6)}[level]
        ring = rng.sample(LETTERS, arrows)
        following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        starts, difficulty = ring, counted(hops, "hop")
    else:  # a chain that ends, among arrows that lead elsewhere: neither question nor caption shows its length
        arrows, longest = {"easy": (4, 2), "medium": (5, 3), "hard": (7, 5)}[level]
        hops = _between(rng, 1, longest, severity)
        names = rng.sample(LETTERS, hops + 1 + 2 * (arrows - hops))
        chain, pairs = names[: hops + 1], names[hops + 1 :]
        following = dict(itertools.pairwise(chain)) | dict(zip(pairs[::2], pairs[1::2], strict=True))
        starts, difficulty = chain[:1], counted(arrows, "arrow")
    order = rng.sample(list(following), arrows)
    canvas = Canvas(rng, style)
    for cell, name in zip(sorted(rng.sample(range(16), arrows)), order, strict=True):
        canvas.arrow(cell % 4, cell // 4, name, following[name])
    canvas.scribble(round(6 * (severity or 0.0)))

    def question(rng: random.Random) -> Question:
        path = [rng.choice(starts)]
        for _ in range(hops):
            path.append(following[path[-1]])
        words = {"start": path[0], "count": hops}
        return Question("hop" if severity is None else "end", words, path[-1], ">".join(path))

    transcript = " ".join(f"{name}>{following[name]}" for name in order)
    return _scene(
        rng, "hop", difficulty, level, severity, [canvas], transcript, counted(arrows, "arrow"), question
    )  # fmt: skip


def _lamp(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    flashes = {"easy": rng.randint(0, 1), "medium": 2, "hard": rng.randint(3, 4)}[level]
    # a flash lasts one second and a dark second follows, so that a person can tell two flashes from one
    gaps = sorted(rng.sample(range(FRAMES - max(flashes - 1, 0)), flashes))
    lit = {gap + i for i, gap in enumerate(gaps)}
    x, y = rng.randint(18, SIDE - 18), rng.randint(18, SIDE - 24)
    canvases = [Canvas(rng, style) for _ in range(FRAMES)]
    for second, canvas in enumerate(canvases):
        canvas.lamp(x, y, second in lit, brightness=1 - 0.85 * (severity or 0.0))
    listed = "".join(f"{'*' if second in lit else '.'}{second}" for second in range(FRAMES))
    difficulty = {"easy": "0–1 flashes", "medium": "2 flashes", "hard": "3–4 flashes"}[level]
    thinking = f"{listed} {'*' * flashes}={flashes}"
    return _scene(
        rng, "video", difficulty, level, severity, canvases, listed, "a lamp",
        lambda _: Question("lamp", {}, str(flashes), thinking),
    )  # fmt: skip


def _letter(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    how_many = {"easy": 1, "medium": 2, "hard": 3}[level]
    shown = dict(zip(rng.sample(range(FRAMES), how_many), rng.sample(LETTERS, how_many), strict=True))
    canvases = [Canvas(rng, style) for _ in range(FRAMES)]
    for second, letter in shown.items():
        canvases[second].text(rng.randint(0, 3), rng.randint(0, 3), letter)
    listed = "".join(f"{shown.get(i, '.')}{i}" for i in range(FRAMES))

    def question(rng: random.Random) -> Question:
        second, letter = rng.choice(list(shown.items()))
        return Question("letter", {"letter": letter}, str(second), f"{listed} {letter}{second}")

    caption = counted(how_many, "letter")
    return _scene(rng, "video", caption, level, severity, canvases, listed, caption, question)


def _video(rng: random.Random, level: str, severity: float | None, style: Style) -> Scene:
    return rng.choice((_lamp, _letter))(rng, level, severity, style)


TASKS: dict[str, Callable[[random.Random, str, float | None, Style], Scene]] = {
    "ocr": _ocr,
    "count": _count,
    "math": _math,
    "gui": _gui,
    "hop": _hop,
    "video": _video,
}


def draw_scene(
    rng: random.Random,
    kind: str | None = None,
    level: str | None = None,
    severity: float | None = None,
    style: Style | None = None,
) -> Scene:
    """Draw a picture or a video that several questions can be asked about.

    Args:
        rng: Source of randomness.
        kind: Kind of task; by default drawn uniformly, like the level.
        level: Difficulty that the caption shows.
        severity: Difficulty that the caption does not show, from 0 to 1; None for a clean picture with any content.
        style: Font and colors; by default those of the shipped drawings.

    Returns:
        The scene.

    Raises:
        KeyError: If kind or level is unknown.
    """
    kind = kind or rng.choice(tuple(TASKS))
    return TASKS[kind](rng, level or rng.choice(LEVELS), severity, style or plain_style(rng))


def draw_task(
    rng: random.Random,
    kind: str | None = None,
    level: str | None = None,
    language: str | None = None,
    severity: float | None = None,
) -> Task:
    """Draw one task. The same state of `rng` gives the same task.

    Args:
        rng: Source of randomness.
        kind: Kind of task; by default drawn uniformly, like level and language.
        level: Difficulty that the caption shows.
        language: Language of the question, "en" or "zh".
        severity: Difficulty that the caption does not show, from 0 to 1; None for a clean picture with any content.

    Returns:
        The task.

    Raises:
        KeyError: If kind, level or language is unknown.
    """
    return draw_scene(rng, kind, level, severity).task(rng, language or rng.choice(LANGUAGES))
