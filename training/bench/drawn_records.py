"""Any number of records with realistic texts, to time training with: what they teach is made up."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import count as endless
from zlib import crc32

from training.prior.prompts_draw import LANGUAGES, draw_prompts, load_wordings
from training.prior.prompts_style import put
from training.prior.scores import BENCHMARKS
from vlroute.decision.encoder import tokenise
from vlroute.decision.pace import ASSUMED_PER_TOKEN, ASSUMED_PREFILL
from vlroute.learning.records import Outcome, Record
from vlroute.modes import MODES, Mode

CAPTIONED = 2 / 3
NAMED = 0.5
SYLLABLES = [first + vowel for first in "bdfgklmnprst" for vowel in "aeiou"]
#: In front of a question: names from a long tail, as users' texts have words that come once only.
BY_NAME = ("From {}: ", "来自{}：")


def draw_records(number: int, seed: int | str = 0) -> Iterator[Record]:
    """`number` records of all kinds in training/prior, English and Chinese, two thirds with a caption.

    How right the modes are: their published score on this kind, with a lean that follows from the words, so that there
    is something to learn. Seconds follow from tokens. The same seed gives the same records, and fewer are the first of
    more.
    """
    rng = random.Random(f"vlroute retraining {seed}")
    wordings = load_wordings()
    questions = {one.name: draw_prompts(wordings[one.name], one.options, rng) for one in BENCHMARKS}
    for index in endless():
        if index == number:
            return
        benchmark = BENCHMARKS[index % len(BENCHMARKS)]
        language = index // len(BENCHMARKS) % len(LANGUAGES)
        drawn = next(questions[benchmark.name])
        name = BY_NAME[language].format(_name(rng)) if rng.random() < NAMED else ""
        prompt = name + put(drawn, rng)[language]
        caption = drawn.caption[language] if rng.random() < CAPTIONED else None
        both = {
            mode: _outcome(getattr(benchmark, mode), benchmark.effort.tokens(mode), f"{prompt} {caption}", mode, rng)
            for mode in MODES
        }
        yield Record(
            f"drawn/{index}", prompt, caption, both["instruct"], both["thinking"], set="drawn", family=benchmark.family,
            language=LANGUAGES[language],
        )  # fmt: skip


def _outcome(score: float, tokens: int, text: str, mode: Mode, rng: random.Random) -> Outcome:
    words = tokenise(text)
    lean = sum(crc32(f"{mode} {word}".encode()) % 2001 - 1000 for word in words) / 250 / math.sqrt(len(words))
    share = 1 / (1 + math.exp(math.log(1 / score - 1) - lean))
    written = max(1, round(tokens * rng.lognormvariate(0, 0.5)))
    prefill = ASSUMED_PREFILL * rng.uniform(0.8, 1.2)
    seconds = prefill + ASSUMED_PER_TOKEN * written
    return Outcome(rng.random() < share, written, round(seconds, 4), round(prefill, 4))


def _name(rng: random.Random) -> str:
    """Name number n comes about 1/n as often as the first (Zipf)."""
    number = min(int(rng.paretovariate(1)), 10**6)
    name = ""
    while number:
        number, syllable = divmod(number, len(SYLLABLES))
        name += SYLLABLES[syllable]
    return name.title()
