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
from typing import Any

#: A text in English and in Chinese.
Both = tuple[str, str]
Slots = Mapping[str, Sequence[Both]]
LANGUAGES = ("en", "zh")

PROMPTS = Path(__file__).with_name("prompts")
COMMON = "common.json"
#: Texts of `put`. `layouts`: in each language, what stands before and behind the letter and between options.
STYLES: dict[str, Any] = json.loads(Path(__file__).with_name("styles.json").read_text("utf-8"))
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
    """Fills slots; a filled slot keeps its value. KeyError for an unknown slot."""

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
    """The captions without slots and those that share a slot with the question; all captions if there are none."""
    asked = set(SLOT.findall(question))
    named = [(caption, set(SLOT.findall(caption[0]))) for caption in captions]
    return tuple(caption for caption, slots in named if not slots or slots & asked) or tuple(captions)


def draw_prompts(wordings: Sequence[Wording], options: int, rng: random.Random) -> Iterator[Drawn]:
    """Endless draws, with all wordings equally often. `options`: the largest number of options."""
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
    for _ in range(8 * most):  # a slot may have fewer values than the number of options
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


def put(drawn: Drawn, rng: random.Random) -> Both:
    """The whole prompt in both languages, in the same style; only mistakes and English words in Chinese differ."""
    with_options = bool(drawn.options) and rng.random() < 0.6
    opening = rng.choice(STYLES["openings"]) if rng.random() < 0.25 else ("", "")
    closing = rng.choice(STYLES["letter_only" if with_options else "closings"]) if rng.random() < 0.3 else ("", "")
    layout = rng.choice(STYLES["layouts"])
    headed = rng.random() < 0.3
    english, chinese = drawn.question
    if rng.random() < 0.08:
        english = english.lower().rstrip(".?")
    if rng.random() < 0.08:
        chinese = chinese.rstrip("。？")
    if rng.random() < 0.08:
        mixed = STYLES["mixed"]
        chinese = re.sub("|".join(sorted(mixed, key=len, reverse=True)), lambda m: f" {mixed[m[0]]} ", chinese)
    if rng.random() < 0.03:
        english = swap_letters(english, rng)
    if rng.random() < 0.03:
        chinese = re.sub("|".join(STYLES["misheard"]), lambda m: str(STYLES["misheard"][m[0]]), chinese, count=1)
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
    """Swap two neighboring letters inside one longer word."""
    words = list(re.finditer(r"[a-z]{5,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
