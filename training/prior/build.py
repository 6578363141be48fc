"""Make the records of the prior for the real pair.

    python -m training.prior.build --public /path/to/data --out prior.jsonl.gz

**Published scores as soft labels.** The labels of a prompt drawn for a benchmark are the two published scores of this
benchmark, and the assumed tokens of `scores.Effort`. Each question is asked in English and in Chinese. A third each of
the questions has an English caption, a Chinese caption and no caption, independently of the language of the prompt, so
that the label depends neither on the language nor on the caption.

**Public per-sample sets (`--public`).** These contain which mode of *another* pair was right on which prompt. Their
accuracies do not apply to our pair, and their differences between prompts only partly. Therefore, within a set and for
each mode, a prompt that the other pair answered correctly gets `ODDS` times the odds of one that it answered wrongly.
All are shifted equally on the logit scale until their mean is the published score of the nearest benchmark:

    share = sigmoid(shift + ln(ODDS) · (correct − 1/2)),  shift so that mean(share) = published score

`ODDS` is a cautious assumption: with 2, a mode with an accuracy of one half is assumed to be right on 59 % of the
prompts that the other pair answered correctly, and on 41 % of the others. Tokens are the assumed ones. Only the first
sentence of a caption is kept, because our captions are short. A set without a near benchmark (gsm8k has no pictures) is
omitted. At most `PUBLIC_ROWS` records of a set are used, chosen by a hash of their ids, because nearly all are English.

**The shipped router uses neither public sets nor captions.** On prompts in other wordings (`training.prior.card`), a
router trained with public sets made the same decision in English and Chinese less often (79 % instead of 91 %, without
captions), and its predicted gains followed the published gains of their kind less closely (correlation 0.5 instead of
0.9). Captions carry no information and are only fitted by chance. `--public` and `--captions` serve to compare.

An output that contains public records is not part of the project.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from training.page import argument_parser
from training.prior.prompts import LANGUAGES, Wording, draw_prompts, load_wordings, put
from training.prior.scores import BENCHMARKS, BY_NAME, Benchmark
from vlroute import Outcome, Record, read_records, write_records
from vlroute.records import outcomes
from vlroute.types import MODES

#: Questions drawn for each benchmark: a multiple of the caption conditions, of which each gets as many.
DRAWS = 120
CAPTIONS = ("none", *LANGUAGES)
#: The benchmark whose published scores are nearest to a public set.
NEAREST = {"mmmu_pro": "MMMU-Pro", "math_v": "MathVision", "mathvista": "MathVista"}
ODDS = 2.0
PUBLIC_ROWS = 600
MARKER = re.compile(r"<image ?\d*>")  # part of the format of the sets, not of prompts
CHINESE = re.compile("[\u4e00-\u9fff]")


def prior_records(draws: int = DRAWS, seed: int | str = 0) -> Iterator[Record]:
    """Records for every benchmark, `draws` questions each in both languages. The same seed gives the same records."""
    wordings = load_wordings()
    for benchmark in BENCHMARKS:
        yield from benchmark_records(benchmark, wordings[benchmark.name], draws, seed)


def benchmark_records(
    benchmark: Benchmark, wordings: Sequence[Wording], draws: int, seed: int | str
) -> Iterator[Record]:
    rng = random.Random(f"vlroute prior {benchmark.name} {seed}")
    conditions = [CAPTIONS[i % len(CAPTIONS)] for i in range(draws)]
    rng.shuffle(conditions)
    seen: set[str] = set()
    questions = draw_prompts(wordings, benchmark.options, rng)
    for number, condition in enumerate(conditions):
        drawn = next(questions)
        while (prompts := put(drawn, rng))[0] in seen:
            drawn = next(questions)
        seen.add(prompts[0])
        caption = None if condition == "none" else drawn.caption[LANGUAGES.index(condition)]
        for language, prompt in zip(LANGUAGES, prompts, strict=True):
            record = labeled(benchmark, prompt, caption, benchmark.instruct, benchmark.thinking)
            yield replace(record, id=f"prior/{benchmark.name}/{number:04d}/{language}", language=language)


def public_records(records: Iterable[Record], rows: int = PUBLIC_ROWS) -> Iterator[Record]:
    """The public `records` as soft labels around the published level of the nearest benchmark; others are left out."""
    of_set: dict[str, list[Record]] = {name: [] for name in NEAREST}
    for record in records:
        if record.set in of_set:
            of_set[record.set].append(record)
    for name, members in of_set.items():
        chosen = sorted(members, key=lambda r: hashlib.sha256(r.id.encode()).digest())[:rows]
        yield from sharpened(chosen, BY_NAME[NEAREST[name]])


def sharpened(records: Sequence[Record], benchmark: Benchmark) -> Iterator[Record]:
    shares = [around([float(o.correct) for o in outcomes(records, mode)], getattr(benchmark, mode)) for mode in MODES]
    for record, instruct, thinking in zip(records, *shares, strict=True):
        prompt = MARKER.sub("", record.prompt).strip()
        yield replace(
            labeled(benchmark, prompt, first_sentence(record.caption), instruct, thinking),
            id=record.id,
            set=record.set,
            language="zh" if CHINESE.search(record.prompt) else "en",
        )


def labeled(benchmark: Benchmark, prompt: str, caption: str | None, instruct: float, thinking: float) -> Record:
    """A record of the kind of `benchmark`, still without an id. `instruct`, `thinking`: shares of right answers."""
    tokens = benchmark.effort.tokens
    return Record(
        "new", prompt, caption, Outcome(instruct, tokens("instruct")), Outcome(thinking, tokens("thinking")),
        set="prior", topic=benchmark.topic, level=benchmark.name,
    )  # fmt: skip


def around(correct: Sequence[float], score: float) -> list[float]:
    """Shares with mean `score` (0 < score < 1), higher by `ODDS` for prompts that the other pair answered correctly."""

    def shares(shift: float) -> Any:
        return expit(shift + math.log(ODDS) * (np.asarray(correct) - 0.5))

    shift = brentq(lambda shift: float(shares(shift).mean()) - score, -20.0, 20.0)
    return [float(share) for share in shares(shift)]


def first_sentence(caption: str | None) -> str | None:
    return re.split(r"(?<=[.。！!])\s|\n", caption.strip(), maxsplit=1)[0] if caption else None


def main() -> None:
    parser = argument_parser(__doc__, None, "file of records")
    parser.add_argument("--public", type=Path, help="folder with public per-sample sets, *.jsonl.gz")
    parser.add_argument("--draws", type=int, default=DRAWS, help="questions for each benchmark")
    parser.add_argument("--public-rows", type=int, default=PUBLIC_ROWS, help="rows of each public set, at most")
    parser.add_argument("--captions", action="store_true", help="keep the captions, on which the labels do not depend")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    records = list(prior_records(options.draws, options.seed))
    if options.public:
        files = sorted(options.public.glob("*.jsonl.gz"))
        if not files:
            parser.error(f"no *.jsonl.gz in {options.public}")
        records += public_records(read_records(*files), options.public_rows)
    if not options.captions:
        records = [replace(record, caption=None) for record in records]
    count = write_records(options.out, records)
    for name, members in sorted(Counter(record.set for record in records).items()):
        print(f"{name}: {members}")
    print(f"{count} records in {options.out}")


if __name__ == "__main__":
    main()
