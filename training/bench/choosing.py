"""Whether N chosen records give a better router than N random ones: `python -m training.bench.choosing FOLDER`

`FOLDER` holds the public sets as NAME.jsonl.gz. In each draw a third of the records, equal texts together, is the test;
of the others, N are chosen by `choose_requests` without labels, and N are drawn at random, several times. Finished
draws are kept in `--cache`, so that a stopped run continues.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from training.bench.public_sets import SETS
from training.bench.routers import set_files
from training.page import argument_parser, publish, step
from vlroute import Record, read_records
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.decision.wilson import student_95
from vlroute.learning import area_over_random
from vlroute.learning.choose import choose_requests
from vlroute.learning.embeddings import EmbeddedTexts, embed_texts
from vlroute.learning.fit import fit_classifier
from vlroute.learning.folds import folds_of

SIZES, RANDOM = (50, 100, 200), 2


def one_draw(records: Sequence[Record], draw: int, sizes: Sequence[int], text: EmbeddedTexts) -> dict[str, list[float]]:
    """Area over random of the test records, in points, for each size: of chosen and of random records."""
    fold = folds_of(records, 3, draw, together="text")
    pool = [record for record, at in zip(records, fold, strict=True) if at]
    test = [record for record, at in zip(records, fold, strict=True) if not at]
    requests = [(record.prompt, record.caption) for record in pool]
    chosen = choose_requests(requests, max(sizes), text, seed=draw)
    rng = np.random.default_rng(draw)
    drawn = [rng.permutation(len(pool)).tolist() for _ in range(RANDOM)]
    right = np.asarray([(float(r.instruct.correct), float(r.thinking.correct)) for r in test]).T

    def area(rows: Sequence[int]) -> float:
        router = fit_classifier([pool[at] for at in rows], seed=draw, text=text)
        return area_over_random(np.asarray([router.predict(r.prompt, r.caption).gain for r in test]), *right)

    return {
        "chosen": [area(chosen[:size]) for size in sizes],
        "random": [float(np.mean([area(rows[:size]) for rows in drawn])) for size in sizes],
    }


def mean_of(values: NDArray[np.float64]) -> list[float]:
    """Mean over the draws (the last axis) and over the sets, with a 95 % interval of the draws' mean."""
    sets, draws = values.shape
    error = float(np.sqrt((values.var(axis=1, ddof=1) / draws).sum())) / sets
    mean, half = float(values.mean()), student_95(sets * (draws - 1)) * error
    return [mean, mean - half, mean + half]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", type=Path, help="with the sets as NAME.jsonl.gz")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder for finished draws")
    options = parser.parse_args()
    run = joblib.Memory(options.cache, verbose=0).cache(one_draw, ignore=["text"])
    areas: dict[str, NDArray[np.float64]] = {}  # [way, size, draw]
    counts: dict[str, int] = {}
    for name, path in set_files(options.folder, options.sets).items():
        records = list(read_records(path))
        text = embed_texts(records, load_text_encoder(STATIC))
        draws = []
        for draw in range(options.draws):
            draws.append(run(records, draw, SIZES, text))
            step(f"{name}, draw {draw + 1} of {options.draws}")
        areas[name] = np.asarray([[one[way] for one in draws] for way in ("chosen", "random")]).transpose(0, 2, 1)
        counts[name] = len(records)

    def row(sets: Sequence[str], at: int) -> dict[str, Any]:
        chosen, random = (np.asarray([areas[name][way, at] for name in sets]) for way in (0, 1))
        return {
            "chosen": float(chosen.mean()), "random": float(random.mean()), "difference": mean_of(chosen - random)
        }  # fmt: skip

    rows = {
        name: {str(size): row(sets, at) for at, size in enumerate(SIZES)}
        for name, sets in {**{one: [one] for one in areas}, "mean": list(areas)}.items()
    }
    publish("choosing", {"draws": options.draws, "random": RANDOM, "records": counts, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
