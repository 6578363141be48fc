"""Seconds of a decision, without a loaded model: `python -m training.bench.decision [--router DIR] [--minilm DIR]`

On one core: warm decisions on prompts with captions, alternating with all-MiniLM-L6-v2 as additional text encoder if
its folder is given (a few minutes), and the first decision of a fresh process.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from training.page import POCKET, ROOT, argument_parser, environment, in_own_process, publish, step
from training.prior.build import prior_records
from vlroute import ComplexityClassifier, Decision, Policy
from vlroute.learning import train_router

REQUESTS, WARM_UP, BLOCK, STARTS = 2000, 200, 100, 5
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1")
FIRST = """
import sys
from vlroute import Router
Router.from_pretrained(router=sys.argv[1]).decide("What is the sum of the numbers?", caption="three numbers")
"""
#: Decides one request: prompt and caption.
Decide = Callable[[str, str], Decision]
Embed = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class DecisionTime:
    """Milliseconds of a decision over `requests` distinct requests. `minilm`: MiniLM embedded both texts as well."""

    router: str
    minilm: bool
    requests: int
    median: float
    p99: float


@dataclass(frozen=True, slots=True)
class FirstDecision:
    """Seconds from the start of a process to its exit, over `starts` processes."""

    router: str
    starts: int
    median: float
    most: float


def draw_requests(count: int) -> list[tuple[str, str]]:
    """Distinct prompts with captions, in English and Chinese, of all kinds that training/prior has wordings for."""
    drawn = {(record.prompt, record.caption): None for record in prior_records() if record.caption}
    requests = [(prompt, caption) for prompt, caption in drawn if caption]
    if len(requests) < count:
        raise ValueError(f"only {len(requests)} distinct requests can be drawn, {count} were asked for")
    random.Random(0).shuffle(requests)
    return requests[:count]


def deciding(classifier: ComplexityClassifier) -> Decide:
    policy, latency = Policy(), classifier.latency
    return lambda prompt, caption: policy.decide(classifier.predict(prompt, caption), latency, caption)


def embedding_first(decide: Decide, embed: Embed) -> Decide:
    """A decision whose text encoder is `embed`: both texts are embedded, then `decide` runs."""

    def both(prompt: str, caption: str) -> Decision:
        embed((prompt, caption))
        return decide(prompt, caption)

    return both


def load_minilm(folder: Path) -> Embed:
    """all-MiniLM-L6-v2 on one core, prompt and caption as one batch: faster than through sentence-transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts: Sequence[str]) -> object:
        with torch.inference_mode():
            batch = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()

    return embed


def time_decisions(ways: dict[tuple[str, bool], Decide], count: int, warm_up: int = WARM_UP) -> list[DecisionTime]:
    """Time all ways on the same requests, in alternating blocks, so that other load affects all of them."""
    requests = iter(draw_requests(count + warm_up))
    for request in islice(requests, warm_up):
        for decide in ways.values():
            decide(*request)
    seconds: dict[tuple[str, bool], list[float]] = {name: [] for name in ways}
    while block := list(islice(requests, BLOCK)):
        for name, decide in ways.items():
            for prompt, caption in block:
                start = time.perf_counter()
                decide(prompt, caption)
                seconds[name].append(time.perf_counter() - start)
    return [
        DecisionTime(router, minilm, len(all_), *(1e3 * float(np.quantile(all_, q)) for q in (0.5, 0.99)))
        for (router, minilm), all_ in seconds.items()
    ]


def time_routers(routers: Sequence[Path], minilm: Path | None, count: int) -> list[DecisionTime]:
    """Warm decisions of each router, with and without MiniLM."""
    ways: dict[tuple[str, bool], Decide] = {}
    embed = load_minilm(minilm) if minilm else None
    for folder in routers:
        ways[str(folder), False] = decide = deciding(ComplexityClassifier.load(folder))
        if embed:
            ways[str(folder), True] = embedding_first(decide, embed)
    return time_decisions(ways, count)


def first_decision(router: Path, name: str, starts: int = STARTS) -> FirstDecision:
    """Fresh processes that import vlroute and decide once. RuntimeError if one fails."""
    seconds = []
    for _ in range(1 + starts):  # the first one reads the files from disk and is not counted
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", FIRST, str(router)], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"{router}: the first decision failed: {done.stderr.strip().splitlines()[-1]}")
    return FirstDecision(name, starts, statistics.median(seconds[1:]), max(seconds[1:]))


def page_data(times: Sequence[DecisionTime], firsts: Sequence[FirstDecision], where: str) -> dict[str, Any]:
    """The figures of the page."""
    return {"where": where, "times": [asdict(one) for one in times], "firsts": [asdict(one) for one in firsts]}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--router", nargs="+", type=Path, default=[POCKET / "router"], help="folders of routers")
    parser.add_argument("--records", nargs="+", type=Path, default=[], help="train a router on these, and time it too")
    parser.add_argument("--minilm", type=Path, help="folder with all-MiniLM-L6-v2: config, vocabulary, weights")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args()
    os.environ.update(ONE_CORE)  # for the processes that measure: before they import numpy
    where = environment()
    with tempfile.TemporaryDirectory(prefix="vlroute-decision-") as temporary:
        names = {folder: os.path.relpath(folder.resolve(), ROOT) for folder in options.router}
        if options.records:
            train_router(options.records, temporary, folds=2, seeds=1, console=Console(stderr=True))
            names[Path(temporary)] = "trained on " + ", ".join(path.name for path in options.records)
        step("warm decisions")
        times = in_own_process(time_routers, list(names), options.minilm, options.requests)
        step("fresh processes")
        firsts = [first_decision(folder, name) for folder, name in names.items()]
    times = [replace(one, router=names[Path(one.router)]) for one in times]
    publish("decision_speed", page_data(times, firsts, where), options.out)


if __name__ == "__main__":
    main()
