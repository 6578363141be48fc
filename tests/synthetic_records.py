"""Drawn records whose true probabilities are known, so that a test can tell learning from luck."""

from __future__ import annotations

import random
from dataclasses import dataclass

from vlroute.records import Outcome, Record

PREFILL, PER_TOKEN = 0.1, 0.02  # seconds
WORDS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True, slots=True)
class Drawn:
    prompt: str
    caption: str
    p_instruct: float
    p_thinking: float


def caption_decides(rng: random.Random) -> Drawn:
    """In "add" and "guess" the caption decides how often Instruct is right; in "hops" the prompt does."""
    count = rng.randint(1, 4)
    numbers = f"{WORDS[count]} number{'s' if count > 1 else ''}"
    kind = rng.choice(("add", "guess", "hops"))
    if kind == "add":
        prompt = rng.choice(("Add the numbers.", "What is the total?", "把数字加起来。"))
        return Drawn(prompt, numbers, (0.95, 0.6, 0.3, 0.15)[count - 1], 0.9)
    if kind == "guess":
        prompt = rng.choice(("Guess the hidden number.", "Which number is hidden?"))
        return Drawn(prompt, numbers, (0.9, 0.45, 0.2, 0.1)[count - 1], 0.9)
    start = rng.choice("ABCDEF")
    prompt = rng.choice((f"Start at {start} and follow {count} arrows.", f"从{start}跟着{count}个箭头走。"))
    return Drawn(prompt, "six boxes", (0.9, 0.5, 0.2, 0.1)[count - 1], 0.88)


def draw_records(count: int, seed: int = 0) -> tuple[list[Drawn], list[Record]]:
    """`count` requests with their true probabilities, and as records with outcomes drawn from these."""
    rng = random.Random(seed)
    drawn = [caption_decides(rng) for _ in range(count)]
    records = []
    for index, one in enumerate(drawn):
        few, many = rng.randint(4, 8), rng.choice((20, 100))
        instruct = Outcome(rng.random() < one.p_instruct, few, PREFILL + PER_TOKEN * few)
        thinking = Outcome(rng.random() < one.p_thinking, many, PREFILL + PER_TOKEN * many)
        records.append(Record(f"r{index}", one.prompt, one.caption, instruct, thinking, set="drawn"))
    return drawn, records
