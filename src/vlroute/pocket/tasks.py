"""Draws tasks for the pocket pair: small pictures and videos with questions and exact answers.

Each question has several wordings in English and Chinese. They do not depend on the difficulty of the picture.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from vlroute.pocket.canvas import CIRCLE, DIGITS, INKS, LETTERS, SIDE, SQUARE, TRIANGLE, Canvas, Glyph

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

#: Prompt for the short caption of the Instruct model; a separate training task.
CAPTION_PROMPT = "Describe the picture in a few words."
#: Prompt for all symbols in the picture; used in training only.
TRANSCRIPT_PROMPT = "List everything in the picture."
#: Prompt for the number of each kind of shape; used in training only.
TALLY_PROMPT = "Count everything in the picture."
#: Prompt for the target of every arrow or button; used in training only.
LINKS_PROMPT = "Follow everything in the picture."

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def counted(count: int, noun: str) -> str:
    """`counted(3, "number")` is "three numbers"."""
    return f"{NUMBER_WORDS[count]} {noun}{'' if count == 1 else 's'}"


def ask(question: str, language: str, rng: random.Random, **words: object) -> str:
    """A random wording of `question` with `words` filled in."""
    return rng.choice(WORDINGS[question][language]).format(**words)


LEVELS = ("easy", "medium", "hard")
FRAMES = 8  # frames of a video, one per second
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Task:
    """One picture, or a video of eight frames, with a question and its answer.

    Attributes:
        kind: kind of task, a key of `TASKS`.
        difficulty: description of the difficulty, such as "3–4 shapes".
        level: difficulty, one of `LEVELS`.
        language: "en" or "zh".
        prompt: the question.
        answer: the exact answer.
        transcript: everything that is drawn.
        thinking: target of the Thinking model before `</think>`; each step reads one symbol or adds two numbers.
        caption: target of the caption task.
        frames: the picture, or the frames of the video.
        glyphs: the glyphs of each frame.
    """

    kind: str
    difficulty: str
    level: str
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


def _task(kind: str, difficulty: str, level: str, language: str, canvases: list[Canvas], **texts: str) -> Task:
    return Task(
        kind,
        difficulty,
        level,
        language,
        frames=tuple(c.image for c in canvases),
        glyphs=tuple(tuple(c.glyphs) for c in canvases),
        **texts,
    )


def _ocr(rng: random.Random, level: str, language: str) -> Task:
    length = {"easy": rng.randint(2, 3), "medium": 4, "hard": rng.randint(5, 6)}[level]
    text = "".join(rng.choice(LETTERS + DIGITS[2:]) for _ in range(length))
    canvas = Canvas(rng)
    top = rng.randint(0, 3 - (length - 1) // 4)
    for i, char in enumerate(text):  # four a line
        canvas.text(i % 4, top + i // 4, char)
    return _task(
        "ocr", f"{length} characters", level, language, [canvas],
        prompt=ask("ocr", language, rng), answer=text, transcript=text, thinking=text,
        caption=counted(length, "character"),
    )  # fmt: skip


def _count(rng: random.Random, level: str, language: str) -> Task:
    total = rng.randint(*{"easy": (1, 2), "medium": (3, 4), "hard": (5, 7)}[level])
    kinds = [rng.choice((CIRCLE, SQUARE, TRIANGLE)) for _ in range(total)]
    canvas, cells = Canvas(rng), ["."] * 16
    for cell, kind in zip(rng.sample(range(16), total), kinds, strict=True):
        canvas.shape(kind, cell % 4, cell // 4)
        cells[cell] = kind
    rows = "".join(f"{row + 1}{''.join(cells[4 * row : 4 * row + 4])}" for row in range(4))
    # mostly a kind that is there: "none" would otherwise be the most frequent answer
    asked = rng.choice(kinds) if rng.random() < 0.85 else rng.choice((CIRCLE, SQUARE, TRIANGLE))
    found = kinds.count(asked)
    difficulty = {"easy": "1–2 shapes", "medium": "3–4 shapes", "hard": "5–7 shapes"}[level]
    return _task(
        "count", difficulty, level, language, [canvas],
        prompt=ask("count", language, rng, shape=SHAPE_NAMES[language][asked]), answer=str(found),
        transcript=rows, thinking=f"{rows}={found}", caption=counted(total, "shape"),
    )  # fmt: skip


def numbered(numbers: list[int]) -> str:
    """`[34, 27]` is "1)34 2)27"."""
    return " ".join(f"{i}){number}" for i, number in enumerate(numbers, start=1))


def added(numbers: list[int]) -> str:
    """`[34, 27]` is "1)34 2)27:11=61": behind each further number the sum of the units, then of everything so far."""
    total = numbers[0]
    parts = [numbered(numbers[:1])]
    for i, number in enumerate(numbers[1:], start=2):
        units = total % 10 + number % 10
        total += number
        parts.append(f"{i}){number}:{units:02d}={total}")
    return " ".join(parts)


def _sum(rng: random.Random, level: str, language: str) -> Task:
    how_many = {"easy": 1, "medium": 2, "hard": rng.randint(3, 4)}[level]
    numbers = [rng.randint(10, 49) for _ in range(how_many)]
    canvas = Canvas(rng)
    for row, number in enumerate(numbers):
        canvas.text(rng.randint(0, 2), row, str(number), pitch=20)
    return _task(
        "math", counted(how_many, "number"), level, language, [canvas],
        prompt=ask("sum", language, rng), answer=str(sum(numbers)), transcript=numbered(numbers),
        thinking=added(numbers), caption=counted(how_many, "number"),
    )  # fmt: skip


def _angle(rng: random.Random, level: str, language: str) -> Task:
    canvas = Canvas(rng)
    canvas.draw.polygon([(54, 30), (28, 74), (80, 74)], outline=rng.choice(INKS))
    top, left = rng.randint(20, 99), rng.randint(20, 60)
    for (column, row), label in zip(((1, 0), (0, 3), (2, 3)), (str(top), str(left), "?"), strict=True):
        canvas.text(column, row, label, pitch=20)
    answer = 180 - top - left
    return _task(
        "math", "triangle angle", level, language, [canvas],
        prompt=ask("angle", language, rng), answer=str(answer), transcript=numbered([top, left]),
        thinking=f"{added([top, left])} 180-{top + left}={answer}", caption="a triangle",
    )  # fmt: skip


def _math(rng: random.Random, level: str, language: str) -> Task:
    return (_angle if level == "hard" and rng.random() < 0.4 else _sum)(rng, level, language)


def _screens(rng: random.Random, how_many: int) -> list[str]:
    """A tree of screens as strings "ABCD": screen A has the buttons B, C and D. The root comes first.

    Each further screen belongs to a button of the screen before it, so that the last one lies deepest; with four
    screens one of them is a false trail from the root.
    """
    names = rng.sample(LETTERS, 3 * how_many + 1)
    screens = [names[0] + "".join(names[1:4])]
    for i in range(1, how_many):
        above = screens[0] if i == 1 or (how_many == 4 and i == 3) else screens[i - 1]
        taken = {screen[0] for screen in screens}
        name = rng.choice([button for button in above[1:] if button not in taken])
        screens.append(name + "".join(names[3 * i + 1 : 3 * i + 4]))
    return screens


def _taps(screens: list[str], goal: str) -> list[str]:
    """The screens and buttons from the goal back to the root, goal first."""
    owner = {button: screen[0] for screen in screens for button in screen[1:]}
    path = [goal]
    while path[-1] in owner:
        path.append(owner[path[-1]])
    return path


def _gui(rng: random.Random, level: str, language: str) -> Task:
    taps = {"easy": 1, "medium": 2, "hard": 3}[level]
    few = {1: rng.randint(1, 2), 2: rng.randint(2, 3), 3: rng.randint(3, 4)}[taps]
    how_many = 4 if taps > 1 and rng.random() < 0.15 else few  # so that screens do not quite give the taps away
    screens = _screens(rng, how_many)
    start = screens[0][0]
    goals = [b for s in screens for b in s[1:] if len(_taps(screens, b)) == taps + 1]
    path = _taps(screens, rng.choice(goals))
    rng.shuffle(screens)
    canvas = Canvas(rng)
    for row, screen in enumerate(screens):
        for column, button in zip(sorted(rng.sample(range(4), 3)), screen[1:], strict=True):
            canvas.button(column, row, screen[0], button)
    return _task(
        "gui", counted(taps, "tap"), level, language, [canvas],
        prompt=ask("gui", language, rng, start=start, goal=path[0]), answer=" ".join(reversed(path[:-1])),
        transcript=" ".join(f"{button}<{screen[0]}" for screen in screens for button in screen[1:]),
        thinking="<".join(path),
        caption=counted(how_many, "screen"),
    )  # fmt: skip


def _hop(rng: random.Random, level: str, language: str) -> Task:
    hops = {"easy": 1, "medium": 2, "hard": rng.randint(3, 4)}[level]
    arrows = {"easy": rng.randint(2, 4), "medium": rng.randint(3, 5), "hard": rng.randint(5, 6)}[level]
    ring = rng.sample(LETTERS, arrows)
    following = dict(zip(ring, ring[1:] + ring[:1], strict=True))
    order = rng.sample(ring, arrows)
    canvas = Canvas(rng)
    for cell, name in zip(sorted(rng.sample(range(16), arrows)), order, strict=True):
        canvas.arrow(cell % 4, cell // 4, name, following[name])
    path = [rng.choice(ring)]
    for _ in range(hops):
        path.append(following[path[-1]])
    return _task(
        "hop", counted(hops, "hop"), level, language, [canvas],
        prompt=ask("hop", language, rng, start=path[0], count=hops), answer=path[-1],
        transcript=" ".join(f"{name}>{following[name]}" for name in order), thinking=">".join(path),
        caption=counted(arrows, "arrow"),
    )  # fmt: skip


def _lamp(rng: random.Random, level: str, language: str) -> Task:
    flashes = {"easy": rng.randint(0, 1), "medium": 2, "hard": rng.randint(3, 4)}[level]
    # a flash lasts one second and is followed by a dark one, so a person can tell two flashes from one
    gaps = sorted(rng.sample(range(FRAMES - max(flashes - 1, 0)), flashes))
    lit = {gap + i for i, gap in enumerate(gaps)}
    x, y = rng.randint(18, SIDE - 18), rng.randint(18, SIDE - 24)
    first = Canvas(rng)
    canvases = [first] + [Canvas(rng, first.paper) for _ in range(FRAMES - 1)]
    for second, canvas in enumerate(canvases):
        canvas.lamp(x, y, second in lit)
    listed = "".join(f"{second}{'*' if second in lit else '.'}" for second in range(FRAMES))
    difficulty = {"easy": "0–1 flashes", "medium": "2 flashes", "hard": "3–4 flashes"}[level]
    return _task(
        "video", difficulty, level, language, canvases,
        prompt=ask("lamp", language, rng), answer=str(flashes), caption="a lamp",
        transcript=listed, thinking=f"{listed} {'*' * flashes}={flashes}",
    )  # fmt: skip


def _letter(rng: random.Random, level: str, language: str) -> Task:
    how_many = {"easy": 1, "medium": 2, "hard": 3}[level]
    shown = dict(zip(rng.sample(range(FRAMES), how_many), rng.sample(LETTERS, how_many), strict=True))
    first = Canvas(rng)
    canvases = [first] + [Canvas(rng, first.paper) for _ in range(FRAMES - 1)]
    for second, letter in shown.items():
        canvases[second].text(rng.randint(0, 3), rng.randint(0, 3), letter)
    second, letter = rng.choice(list(shown.items()))
    listed = "".join(f"{i}{shown.get(i, '.')}" for i in range(FRAMES))
    return _task(
        "video", counted(how_many, "letter"), level, language, canvases,
        prompt=ask("letter", language, rng, letter=letter), answer=str(second), caption=counted(how_many, "letter"),
        transcript=listed, thinking=f"{listed} {letter}{second}",
    )  # fmt: skip


def _video(rng: random.Random, level: str, language: str) -> Task:
    return rng.choice((_lamp, _letter))(rng, level, language)


TASKS: dict[str, Callable[[random.Random, str, str], Task]] = {
    "ocr": _ocr,
    "count": _count,
    "math": _math,
    "gui": _gui,
    "hop": _hop,
    "video": _video,
}


def draw_task(
    rng: random.Random, kind: str | None = None, level: str | None = None, language: str | None = None
) -> Task:
    """Draw one task. The same state of `rng` gives the same task.

    Args:
        rng: source of randomness.
        kind: kind of task; by default drawn uniformly, like the other arguments.
        level: difficulty.
        language: language of the question.

    Returns:
        The task.

    Raises:
        KeyError: unknown kind or level.
    """
    kind = kind or rng.choice(tuple(TASKS))
    return TASKS[kind](rng, level or rng.choice(LEVELS), language or rng.choice(LANGUAGES))
