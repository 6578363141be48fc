"""Make the records of the prior for the real pair.

    python -m training.prior.build --public /path/to/data --out prior.jsonl.gz

**Published scores as soft labels.** Every prompt drawn for a benchmark gets this benchmark's two published scores as
its `correct` shares and the assumed tokens of `scores.Effort`. Each question is put in English and in Chinese, and a
third each of the questions has an English, a Chinese and no caption, whatever the language of the prompt: neither
language nor caption language says anything about the label.

**Public per-sample sets, to sharpen.** These say which mode of *another* pair was right on which prompt. Their level
means nothing here, and of their differences only a part carries over. So within a set, and for each mode, a prompt
that the other pair's mode got right is given `ODDS` times the odds of one that it got wrong, and all are shifted
alike on the logit scale until their mean is the published score of the nearest benchmark:

    share = sigmoid(shift + ln(ODDS) · (correct − 1/2)),  shift so that mean(share) = published score

`ODDS` is a modest assumption: at 2 a mode that scores one half is taken to be right on 59 % of what the other pair
got right, and on 41 % of the rest. Tokens are the assumed ones again: other models' lengths are not ours. Of a caption
only the first sentence is kept: ours are short. A set without a near benchmark (gsm8k, which has no pictures) is left
out. At most `PUBLIC_ROWS` of a set are used, chosen by a hash of their ids: nearly all are English, and one language
must not outweigh the other.

**What ships uses neither.** On prompts in wordings of their own (`training.prior.card`), a router learnt with public
sets agreed less often between English and Chinese (79 % against 91 %, captions in neither), and its gains followed the
published ones of their kind less closely (correlation 0.5 against 0.9): other pairs' records blur what is published.
Captions say nothing and are learnt by chance. So `--public` and `--captions` are there to compare with.

An output that holds public rows is not part of the project.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from training.prior.prompts import LANGUAGES, Wording, draw_prompts, load_wordings, put
from training.prior.scores import BENCHMARKS, BY_NAME, Benchmark
from vlroute.records import Outcome, Record, outcomes, read_records, write_records
from vlroute.types import MODES

#: Questions drawn for each benchmark: a multiple of the caption conditions, of which each gets as many.
DRAWS = 120
CAPTIONS = ("none", *LANGUAGES)
#: The benchmark whose published scores are nearest to a public set.
NEAREST = {"mmmu_pro": "MMMU-Pro", "math_v": "MathVision", "mathvista": "MathVista"}
ODDS = 2.0
PUBLIC_ROWS = 600
MARKER = re.compile(r"<image ?\d*>")  # of the sets' own format; users write nothing like it
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
            yield Record(
                id=f"prior/{benchmark.name}/{number:04d}/{language}",
                prompt=prompt,
                caption=caption,
                instruct=Outcome(benchmark.instruct, benchmark.effort.tokens("instruct")),
                thinking=Outcome(benchmark.thinking, benchmark.effort.tokens("thinking")),
                set="prior",
                family=benchmark.family,
                grade=benchmark.name,
                language=language,
            )


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
    shares = {
        mode: around([float(o.correct) for o in outcomes(records, mode)], getattr(benchmark, mode)) for mode in MODES
    }
    for record, instruct, thinking in zip(records, shares["instruct"], shares["thinking"], strict=True):
        yield Record(
            id=record.id,
            prompt=MARKER.sub("", record.prompt).strip(),
            caption=first_sentence(record.caption),
            instruct=Outcome(instruct, benchmark.effort.tokens("instruct")),
            thinking=Outcome(thinking, benchmark.effort.tokens("thinking")),
            set=record.set,
            family=benchmark.family,
            grade=benchmark.name,
            language="zh" if CHINESE.search(record.prompt) else "en",
        )


def around(correct: Sequence[float], score: float) -> list[float]:
    """Shares of mean `score` (0 < score < 1) that lean by `ODDS` towards the prompts the other pair got right."""
    low, high = -20.0, 20.0
    shares: list[float] = []
    for _ in range(60):
        shift = (low + high) / 2
        shares = [1 / (1 + math.exp(-shift - math.log(ODDS) * (right - 0.5))) for right in correct]
        if sum(shares) < score * len(shares):
            low = shift
        else:
            high = shift
    return shares


def first_sentence(caption: str | None) -> str | None:
    return re.split(r"(?<=[.。！!])\s|\n", caption.strip(), maxsplit=1)[0] if caption else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, help="folder with public per-sample sets, *.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=DRAWS, help="questions for each benchmark")
    parser.add_argument("--public-rows", type=int, default=PUBLIC_ROWS, help="rows of each public set, at most")
    parser.add_argument("--captions", action="store_true", help="keep the captions, which say nothing of the labels")
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
