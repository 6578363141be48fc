"""What the scripts of all routers share: read a job, train and score on its splits, write the scores.

Each script runs in the environment of its router, so only the standard library is used here.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

CHEAP, STRONG = "cheap", "strong"
Score = Callable[[int], float]


@dataclass(frozen=True)
class Split:
    """One cross-validation split.

    `train` and `test` are positions of requests. `right` tells for each request in `train` how right the cheap and the
    strong answer were, 0 to 1. Test labels are not in the file.
    """

    seed: int
    train: list[int]
    right: list[tuple[float, float]]
    test: list[int]

    def labels(self) -> list[str]:
        """The model that a router should choose: the strong one only if it was better."""
        return [STRONG if strong > cheap else CHEAP for cheap, strong in self.right]


@dataclass(frozen=True)
class Requests:
    """The requests of a set. `embeddings`: for each encoder an `.npy` file with a row per request."""

    prompts: list[str]
    captions: list[str]
    topics: list[str]
    embeddings: dict[str, str]


#: Trains on a split; the result scores the request at a position: the higher, the more it needs the strong model.
Fit = Callable[[Requests, Split], Score]


def run(package: str, learners: Mapping[str, Fit], seed: Callable[[int], Any] = random.seed) -> None:
    """Score with every learner, and write the scores with the CPU-milliseconds of a decision and of a training.

    The arguments of the process are the job, the file to write and, if decisions are timed, one more.
    """
    source, target, timed = Path(sys.argv[1]), Path(sys.argv[2]), len(sys.argv) > 3
    job = json.loads(source.read_text("utf-8"))
    requests = Requests(**job["requests"])
    splits = [Split(**one) for one in job["splits"]]
    found = {}
    for name, fit in learners.items():
        scores = [0.0] * len(requests.prompts)
        training, decisions = [], []
        for split in splits:
            seed(split.seed)
            began = time.process_time()
            score = fit(requests, split)
            training.append(1e3 * (time.process_time() - began))
            for _ in range(5 if timed else 1):  # the fastest pass counts: others shared the core
                began = time.process_time()
                for at in split.test:
                    scores[at] = float(score(at))
                decisions.append(1e3 * (time.process_time() - began) / len(split.test))
        found[name] = {
            "scores": scores, "decision_ms": min(decisions), "training_ms": sum(training) / len(training),
        }  # fmt: skip
    target.write_text(json.dumps({"version": metadata.version(package), "learners": found}), "utf-8")
