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
from itertools import product
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
    """Train and score every learner on every split.

    The arguments of the process are the job and the file of results. Each result is a line of its own, so that a
    stopped process continues after the last complete one. The line after all results holds the version of the package.
    """
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    job = json.loads(source.read_text("utf-8"))
    requests = Requests(**job["requests"])
    lines = target.read_text("utf-8").splitlines(keepends=True) if target.exists() else []
    complete = [line for line in lines if line.endswith("\n")]
    target.write_text("".join(complete), "utf-8")
    done = {(one["learner"], one["split"]) for one in map(json.loads, complete)}
    with target.open("a", encoding="utf-8") as results:
        for (name, fit), (number, values) in product(learners.items(), enumerate(job["splits"])):
            if (name, number) not in done:
                split = Split(**values)
                seed(split.seed)
                line = {"learner": name, "split": number, **measured(fit, requests, split)}
                results.write(json.dumps(line) + "\n")
                results.flush()
        results.write(json.dumps({"learner": None, "split": None, "version": metadata.version(package)}) + "\n")


def measured(fit: Fit, requests: Requests, split: Split) -> dict[str, Any]:
    """Scores of the test requests, and CPU-milliseconds of the training and of a decision."""
    began = time.process_time()
    score = fit(requests, split)
    trained = time.process_time()
    scores = [float(score(at)) for at in split.test]
    ended = time.process_time()
    return {
        "scores": scores, "training_ms": 1e3 * (trained - began), "decision_ms": 1e3 * (ended - trained) / len(scores),
    }  # fmt: skip
