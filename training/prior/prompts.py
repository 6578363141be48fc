"""Prompts of a benchmark's kind in English and Chinese, drawn from the wordings in `prompts/*.json`.

A file holds `slots` and `sections`. A section names the `benchmarks` it is for, with `captions` `[english, chinese]`
and `prompts` `[english, chinese]` or `[english, chinese, options]`. All wordings were written for this project; none
comes from a benchmark. `{animal}` takes a value of the slot `animal`, the same one wherever it stands in a question and
its caption; `{animal2}` takes another value of that slot. A slot's value is `[english, chinese]`, or one string for
both; the slots of `common.json` are known in all files. A single option with slots is drawn as often as needed.

`put` adds what users write around a question: openings, closings, layouts of options, and a few mistakes. Every
benchmark's questions get the same styles equally often, so a style does not depend on which mode is right.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: A text in English and in Chinese.
Both = tuple[str, str]
Slots = Mapping[str, Sequence[Both]]
LANGUAGES = ("en", "zh")

PROMPTS = Path(__file__).with_name("prompts")
COMMON = "common.json"
SLOT = re.compile(r"\{(\w+)\}")
NUMBERS = {
    "n": range(2, 10), "p": range(11, 90), "big": range(120, 990), "deg": range(20, 86), "year": range(1998, 2025),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wording:
    """A question with open slots. `options`: none, a fixed choice, or one pattern for all of them.

    `captions`: what a captioner may say of such a picture. `slots`: the values they may take.
    """

    question: Both
    options: tuple[Both, ...]
    captions: tuple[Both, ...]
    slots: Slots


@dataclass(frozen=True, slots=True)
class Drawn:
    """One question with its slots filled, the same in both languages, options in order."""

    question: Both
    options: tuple[Both, ...]
    caption: Both


class Filling:
    """Fills slots; a slot once filled keeps its value. KeyError for an unknown slot."""

    def __init__(self, slots: Slots, rng: random.Random) -> None:
        self._slots, self._rng = slots, rng
        self._chosen: dict[str, Both] = {}

    def fill(self, text: Both) -> Both:
        for name in SLOT.findall(text[0] + text[1]):
            if name not in self._chosen:
                self._chosen[name] = self._rng.choice(self._free(name.rstrip("0123456789")))
        return self._put_in(text[0], 0), self._put_in(text[1], 1)

    def _put_in(self, text: str, language: int) -> str:
        return SLOT.sub(lambda match: self._chosen[match[1]][language], text)

    def _free(self, slot: str) -> list[Both]:
        taken = set(self._chosen.values())
        return [value for value in self._slots[slot] if value not in taken] or list(self._slots[slot])


def load_wordings(folder: Path = PROMPTS) -> dict[str, list[Wording]]:
    """The wordings for each benchmark, by its name."""
    numbers: Slots = {name: [(str(number),) * 2 for number in values] for name, values in NUMBERS.items()}
    common = _slots(folder / COMMON)
    wordings: dict[str, list[Wording]] = {}
    for path in sorted(folder.glob("*.json")):
        slots = {**numbers, **common, **_slots(path)}
        for section in json.loads(path.read_text("utf-8"))["sections"]:
            captions = list(map(_both, section["captions"]))
            for english, chinese, *rest in section["prompts"]:
                options = tuple(_both(option) for choice in rest for option in choice)
                wording = Wording((english, chinese), options, fitting(english, captions), slots)
                for benchmark in section["benchmarks"]:
                    wordings.setdefault(benchmark, []).append(wording)
    return wordings


def fitting(question: str, captions: Sequence[Both]) -> tuple[Both, ...]:
    """The captions without slots and those that name something the question names; all if there are none."""
    asked = set(SLOT.findall(question))
    named = [(caption, set(SLOT.findall(caption[0]))) for caption in captions]
    return tuple(caption for caption, slots in named if not slots or slots & asked) or tuple(captions)


def draw_prompts(wordings: Sequence[Wording], options: int, rng: random.Random) -> Iterator[Drawn]:
    """Endless draws, each wording as often as every other; `options`: at most so many, where there are any."""
    while True:
        for wording in rng.sample(wordings, len(wordings)):
            filling = Filling(wording.slots, rng)
            question = filling.fill(wording.question)
            yield Drawn(question, _options(wording, options, rng), filling.fill(rng.choice(wording.captions)))


def _options(wording: Wording, most: int, rng: random.Random) -> tuple[Both, ...]:
    patterns = wording.options
    if len(patterns) != 1:
        return tuple(rng.sample(patterns, len(patterns)))
    drawn: dict[Both, None] = {}
    for _ in range(8 * most):  # a slot may hold fewer values than options are wanted
        drawn[Filling(wording.slots, rng).fill(patterns[0])] = None
        if len(drawn) == most:
            break
    return tuple(drawn)


def _slots(path: Path) -> dict[str, Sequence[Both]]:
    written = json.loads(path.read_text("utf-8"))["slots"]
    return {name: list(map(_both, values)) for name, values in written.items()}


def _both(written: str | Sequence[str]) -> Both:
    if isinstance(written, str):
        return written, written
    english, chinese = written
    return english, chinese


OPENINGS: tuple[Both, ...] = (
    ("Please help me with this: ", "请帮我看一下："),
    ("Hi! ", "你好！"),
    ("Quick question: ", "问个小问题："),
    ("Could you tell me? ", "请问，"),
    ("Have a look. ", "看一下，"),
    ("I have no idea, so: ", "我不太懂，"),
    ("Question: ", "问题："),
    ("Based on what you see: ", "根据你看到的内容："),
)
CLOSINGS: tuple[Both, ...] = (
    ("Answer with a single word or number.", "用一个词或数字回答。"),
    ("Just the answer, please.", "只要答案。"),
    ("Keep it short.", "简短回答。"),
    ("Explain your answer.", "请说明理由。"),
    ("Thanks!", "谢谢！"),
    ("Be careful.", "请仔细看。"),
)
LETTER_ONLY: tuple[Both, ...] = (
    ("Answer with the letter only.", "只回答选项字母。"),
    ("Reply with the letter of the right option.", "请直接给出正确选项的字母。"),
    ("Pick one.", "选一个。"),
)
#: (before the letter, behind it, between options) in each language.
LAYOUTS: tuple[tuple[tuple[str, str, str], tuple[str, str, str]], ...] = (
    (("(", ") ", "\n"), ("(", ") ", "\n")),
    (("", ". ", "\n"), ("", ". ", "\n")),
    (("", ") ", "  "), ("", "．", "　")),
    (("", ": ", "; "), ("", "：", "；")),
)
MIXED = {
    "图表": "chart", "截图": "screenshot", "照片": "photo", "视频": "video", "片段": "clip", "图片": "image",
    "机器人": "robot", "信息图": "infographic", "流程图": "flowchart", "按钮": "button", "菜单": "menu",
    "图例": "legend", "坐标": "coordinates",
}  # fmt: skip
MISHEARD = {"哪": "那", "在": "再", "的": "地", "做": "作"}


def put(drawn: Drawn, rng: random.Random) -> Both:
    """The whole prompt in both languages: the same style, but slips and English words in Chinese fall apart."""
    with_options = bool(drawn.options) and rng.random() < 0.6
    opening = rng.choice(OPENINGS) if rng.random() < 0.25 else ("", "")
    closing = rng.choice(LETTER_ONLY if with_options else CLOSINGS) if rng.random() < 0.3 else ("", "")
    layout = rng.choice(LAYOUTS)
    headed = rng.random() < 0.3
    english, chinese = drawn.question
    if rng.random() < 0.08:
        english = english.lower().rstrip(".?")
    if rng.random() < 0.08:
        chinese = chinese.rstrip("。？")
    if rng.random() < 0.08:
        chinese = re.sub("|".join(sorted(MIXED, key=len, reverse=True)), lambda m: f" {MIXED[m[0]]} ", chinese)
    if rng.random() < 0.03:
        english = swap_letters(english, rng)
    if rng.random() < 0.03:
        chinese = re.sub("|".join(MISHEARD), lambda m: MISHEARD[m[0]], chinese, count=1)
    texts = []
    for language, question in enumerate((english, chinese)):
        parts = [opening[language] + question.strip()]
        if with_options:
            heading = [("Options:", "选项：")[language]] if headed else []
            parts += [*heading, lay_out([option[language] for option in drawn.options], layout[language])]
        space = "\n" if with_options else (" ", "")[language]
        if closing[language] and not with_options and parts[0][-1].isalnum():
            parts[0] += (".", "。")[language]
        texts.append(space.join([*parts, closing[language]] if closing[language] else parts))
    return texts[0], texts[1]


def lay_out(options: Sequence[str], layout: tuple[str, str, str]) -> str:
    """Options with the letters A, B, C … in front."""
    before, behind, between = layout
    return between.join(f"{before}{chr(ord('A') + i)}{behind}{option}" for i, option in enumerate(options))


def swap_letters(text: str, rng: random.Random) -> str:
    """Two neighbouring letters inside one longer word change places."""
    words = list(re.finditer(r"[a-z]{5,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
