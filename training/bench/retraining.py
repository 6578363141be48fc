"""Seconds and memory of `vlroute train`, by number of records: `python -m training.bench.retraining`

Each size runs in a process of its own, from 10 000 to 100 000 drawn records (an hour or so on two cores). Sizes that
are not run keep their figures.
"""

from __future__ import annotations

import contextlib
import math
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count as endless
from pathlib import Path
from zlib import crc32

import psutil
from joblib.externals.loky import get_reusable_executor
from rich.console import Console

from training.page import argument_parser, environment, figures, in_own_process, publish, step
from training.prior.prompts import LANGUAGES, draw_prompts, load_wordings, put
from training.prior.scores import BENCHMARKS
from vlroute import Mode, Outcome, Record, write_records
from vlroute.decision.features import tokenize
from vlroute.decision.latency import ASSUMED_PER_TOKEN, ASSUMED_PREFILL
from vlroute.learning import train_router
from vlroute.types import MODES

SIZES = (10_000, 30_000, 100_000)
CAPTIONED = 2 / 3
NAMED = 0.5
SYLLABLES = [first + vowel for first in "bdfgklmnprst" for vowel in "aeiou"]
#: Prefixes of a question, with names from a long tail: texts of users have words that occur only once.
BY_NAME = ("From {}: ", "来自{}：")


@dataclass(frozen=True, slots=True)
class Trained:
    """One training. `seconds`: without the start of Python. `peak`: highest resident bytes with worker processes.

    `artifact`: bytes of the folder. `area`: area over random, out of fold, in points.
    """

    records: int
    seconds: float
    peak: int
    artifact: int
    area: float | None


def draw_records(number: int, seed: int | str = 0) -> Iterator[Record]:
    """`number` records of all kinds in training/prior, in English and Chinese, two thirds with a caption.

    The accuracy of the modes is made up: their published score on this kind, shifted by the words of the text, so that
    there is something to learn. The same seed gives the same records; fewer records are the first of more.
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
            f"drawn/{index}", prompt, caption, both["instruct"], both["thinking"], set="drawn", topic=benchmark.topic,
            language=LANGUAGES[language],
        )  # fmt: skip


def _outcome(score: float, tokens: int, text: str, mode: Mode, rng: random.Random) -> Outcome:
    words = tokenize(text)
    shift = sum(crc32(f"{mode} {word}".encode()) % 2001 - 1000 for word in words) / 250 / math.sqrt(len(words))
    share = 1 / (1 + math.exp(math.log(1 / score - 1) - shift))
    generated = max(1, round(tokens * rng.lognormvariate(0, 0.5)))
    prefill = ASSUMED_PREFILL * rng.uniform(0.8, 1.2)
    seconds = prefill + ASSUMED_PER_TOKEN * generated
    return Outcome(rng.random() < share, generated, round(seconds, 4), round(prefill, 4))


def _name(rng: random.Random) -> str:
    """Name number n occurs about 1/n as often as the first (Zipf)."""
    number = min(int(rng.paretovariate(1)), 10**6)
    name = ""
    while number:
        number, syllable = divmod(number, len(SYLLABLES))
        name += SYLLABLES[syllable]
    return name.title()


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """Sample the bytes of this process and its children every second, shared pages counted once; keep the highest."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        own = psutil.Process()
        ended = False
        while not ended:
            ended = stop.wait(1)  # also sampled at the end, because few records take less than a second
            total = 0
            for process in (own, *own.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it may have ended
                    total += process.memory_full_info().pss
            peak[0] = max(peak[0], total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def train_once(records: Path) -> Trained:
    """Train on `records` with the defaults."""
    with peak_memory() as peak, tempfile.TemporaryDirectory(prefix="vlroute-retraining-") as folder:
        start = time.perf_counter()
        evaluation = train_router([records], folder, console=Console(quiet=True))
        seconds = time.perf_counter() - start
        artifact = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    get_reusable_executor().shutdown(kill_workers=True)  # this process would wait five minutes for joblib's workers
    return Trained(evaluation.records, seconds, peak[0], artifact, evaluation.figures["area over random"].value)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="how many records; at least 50")
    options = parser.parse_args()
    found = figures("retraining", options.out)
    with tempfile.TemporaryDirectory(prefix="vlroute-retraining-") as temporary:
        for size in options.sizes:
            step(f"drawing {size:,} records")
            records = Path(temporary) / f"{size}.jsonl"
            write_records(records, draw_records(size))
            where = environment("scikit-learn")
            step("training")
            found[str(size)] = {"where": where, "trained": asdict(in_own_process(train_once, records))}
            publish("retraining", found, options.out)


if __name__ == "__main__":
    main()
