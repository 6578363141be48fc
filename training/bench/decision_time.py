"""How long is one decision? Warm, in a process of its own: `python -m training.bench.decision_time ROUTER…`"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from training.prior.build import prior_records
from vlroute.decision import ComplexityClassifier, Decision, Policy

REQUESTS, WARM_UP, BLOCK = 2000, 200, 100
#: One request, prompt and caption, decided.
Way = Callable[[str, str], Decision]
Embed = Callable[[Sequence[str]], object]


@dataclass(frozen=True, slots=True)
class DecisionTime:
    """One way to decide: milliseconds over `requests` distinct ones. `minilm`: MiniLM embedded both texts as well."""

    router: str
    minilm: bool
    requests: int
    median: float
    p99: float


def draw_requests(count: int) -> list[tuple[str, str]]:
    """Distinct prompts with captions, in English and Chinese, of all kinds that training/prior has wordings for."""
    drawn = {(record.prompt, record.caption): None for record in prior_records() if record.caption}
    requests = [(prompt, caption) for prompt, caption in drawn if caption]
    if len(requests) < count:
        raise ValueError(f"only {len(requests)} distinct requests can be drawn, {count} were asked for")
    random.Random(0).shuffle(requests)
    return requests[:count]


def deciding(classifier: ComplexityClassifier) -> Way:
    policy, pace = Policy(), classifier.pace
    return lambda prompt, caption: policy.decide(classifier.predict(prompt, caption), pace, caption)


def embedding_first(way: Way, embed: Embed) -> Way:
    """What a decision would take if `embed` were its text encoder: both texts embedded, then all that `way` does."""

    def decide(prompt: str, caption: str) -> Decision:
        embed((prompt, caption))
        return way(prompt, caption)

    return decide


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


def time_ways(
    ways: dict[tuple[str, bool], Way], count: int, warm_up: int, report: Callable[[str], None] = lambda step: None
) -> list[DecisionTime]:
    """Every way over the same requests, in turns of `BLOCK`, so that what else the machine does meets them all."""
    requests = iter(draw_requests(count + warm_up))
    for request in islice(requests, warm_up):
        for way in ways.values():
            way(*request)
    seconds: dict[tuple[str, bool], list[float]] = {name: [] for name in ways}
    done = 0
    while block := list(islice(requests, BLOCK)):
        for name, way in ways.items():
            for prompt, caption in block:
                start = time.perf_counter()
                way(prompt, caption)
                seconds[name].append(time.perf_counter() - start)
        done += len(block)
        report(f"{done} of {count} requests")
    return [
        DecisionTime(router, minilm, len(all_), *(1e3 * float(np.quantile(all_, q)) for q in (0.5, 0.99)))
        for (router, minilm), all_ in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("routers", nargs="+", type=Path, help="folders of router artefacts")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2, to compare with")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args()
    ways: dict[tuple[str, bool], Way] = {}
    embed = load_minilm(options.minilm) if options.minilm else None
    for folder in options.routers:
        ways[str(folder), False] = way = deciding(ComplexityClassifier.load(folder))
        if embed:
            ways[str(folder), True] = embedding_first(way, embed)
    times = time_ways(ways, options.requests, WARM_UP, lambda step: print(step, flush=True))
    print(json.dumps({"times": [asdict(one) for one in times]}))


if __name__ == "__main__":
    main()
