"""Write the tables of docs/benchmarks/scaling.md: `python -m training.scaling_page`

Memory and throughput of the 2B pair on two GPUs, by arithmetic from the sizes of its checkpoints (bf16), and what
`training.simulate` predicts for the records of the pocket pair. Throughput is an upper bound: a decoding step reads all
weights of the language model and the KV cache of each sequence once, and a prompt takes two operations for each
parameter and token (Pope et al. 2022, Efficiently Scaling Transformer Inference).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.page import PAGES, POCKET, ROOT, put_section, render
from training.simulate import RUNS, forecast
from training.simulation import Limits, RouterDecider, poisson, requests_from
from vlroute import ComplexityClassifier, Mode, Policy, read_records
from vlroute.types import MODES

KiB, GiB = 2**10, 2**30
PAGE = PAGES / "scaling.md"
#: Parameters of a 2B checkpoint, bytes of a parameter, bytes of KV cache and features for each token.
TOWER, LANGUAGE, BYTES = 407e6, 1.72e9, 2
WEIGHTS = (TOWER + LANGUAGE) * BYTES
KV, FEATURES = 112 * KiB, 16 * KiB
#: Tokens of a 1024² picture, and the tower's share of the operations of its prefill.
PICTURE, TOWER_SHARE = 1024, 0.59
#: Assumed: tokens of a question and of answers (with thoughts), turns of a conversation.
QUESTION, ANSWERS, TURNS = 100, {"instruct": 200, "thinking": 1500}, 4
SEQUENCES, REPLICAS = 8, 8
#: Assumed: bytes of activations in each process, usable share of a GPU's memory.
WORKING, USABLE = 1.5 * GiB, 0.9
RATES, P95, REQUESTS = (4.0, 8.0, 16.0, 32.0, 64.0), 0.25, 1000


@dataclass(frozen=True, slots=True)
class GPU:
    """From the data sheet: `memory` in bytes, `bandwidth` in bytes a second, `operations` a second (dense, bf16)."""

    name: str
    memory: float
    bandwidth: float
    operations: float


SMALL = GPU("24 GiB", 24 * GiB, 936e9, 71e12)  # RTX 3090
LARGE = GPU("80 GiB", 80 * GiB, 3.35e12, 989e12)  # H100 SXM


def context(mode: Mode) -> int:
    """Tokens of one question about one picture with its answer."""
    return PICTURE + QUESTION + ANSWERS[mode]


def kv_bytes(gpu: GPU) -> float:
    """Bytes left for the KV cache in a server of one mode that has half of the usable memory."""
    return USABLE / 2 * gpu.memory - WEIGHTS - WORKING


def sequences(gpu: GPU, mode: Mode) -> int:
    """Contexts whose KV cache fits into such a server."""
    return int(kv_bytes(gpu) / (context(mode) * KV))


def tokens_per_second(gpu: GPU, count: int, tokens: int) -> float:
    """Upper bound for `count` sequences with `tokens` cached tokens each."""
    return count * gpu.bandwidth / (LANGUAGE * BYTES + count * tokens * KV)


def prompt_operations() -> float:
    """Operations of the prefill of a question about a 1024² picture, tower included."""
    return 2 * LANGUAGE * (PICTURE / (1 - TOWER_SHARE) + QUESTION)


def answers_per_second(gpu: GPU, counts: dict[Mode, int], thinking: float = 0.5) -> float:
    """Upper bound if the GPU does nothing else and decodes `counts` sequences of each mode together."""
    shares: dict[Mode, float] = {"instruct": 1 - thinking, "thinking": thinking}
    decoding = sum(shares[mode] * ANSWERS[mode] / tokens_per_second(gpu, counts[mode], context(mode)) for mode in MODES)
    return 1 / (prompt_operations() / gpu.operations + decoding)


def pair_in_one(gpu: GPU, shared_tower: bool) -> tuple[float, float, int]:
    """Bytes of the pair's weights, bytes left, and conversations of `TURNS` turns about one picture that fit there with
    features and the KV cache of both modes."""
    towers = 1 if shared_tower else 2
    weights = (2 * LANGUAGE + towers * TOWER) * BYTES
    left = USABLE * gpu.memory - weights - WORKING
    tokens = PICTURE + TURNS * (QUESTION + ANSWERS["instruct"])  # prompts do not contain earlier thoughts
    return weights, left, int(left / (towers * PICTURE * FEATURES + 2 * tokens * KV))


def sizes() -> str:
    """The section about GPUs."""
    one = {mode: context(mode) for mode in MODES}
    servers, replicas = [], []
    for gpu in (SMALL, LARGE):
        counts = {mode: sequences(gpu, mode) for mode in MODES}
        for mode in MODES:
            rates = [tokens_per_second(gpu, count, one[mode]) for count in (1, counts[mode])]
            servers.append({"name": f"{gpu.name}, {mode}", "kv": kv_bytes(gpu) / GiB, "tokens": one[mode],
                            "sequences": counts[mode], "rates": rates,
                            "answers": answers_per_second(gpu, counts) if mode == MODES[0] else None})  # fmt: skip
        for shared in (True, False):
            weights, left, kept = pair_in_one(gpu, shared)
            replicas.append({"name": f"{gpu.name}, towers {'equal' if shared else 'different'}",
                             "weights": weights / GiB, "left": left / GiB, "kept": kept,
                             "answers": answers_per_second(gpu, dict.fromkeys(MODES, SEQUENCES))})  # fmt: skip
    return render(
        "scaling_sizes.md", bytes=BYTES, weights=WEIGHTS, working=WORKING, usable=USABLE, kv=KV, picture=PICTURE,
        question=QUESTION, answer=ANSWERS["thinking"], tower_share=TOWER_SHARE, language=LANGUAGE,
        operations=prompt_operations(), gpu=SMALL, detail=servers[1], servers=servers, replicas=replicas,
        sequences=SEQUENCES, count=REPLICAS,
    )  # fmt: skip


def example() -> str:
    """The section with predictions for the pocket pair."""
    classifier = ComplexityClassifier.load(POCKET / "router")
    requests = requests_from(read_records(ROOT / "training" / "pocket" / "records.jsonl.gz"), classifier)
    decider = lambda number: RouterDecider(Policy(), classifier.latency)  # noqa: E731
    arrivals = {rate: [poisson(rate, REQUESTS, seed) for seed in range(RUNS)] for rate in RATES}
    rows = {rate: forecast(Limits(), times, requests, decider, 1, P95) for rate, times in arrivals.items()}
    return render("scaling_example.md", rows=rows, p95=P95, runs=RUNS, requests=REQUESTS)


def main(page: Path = PAGE) -> None:
    for name, section in (("sizes", sizes()), ("example", example())):
        put_section(page, f"<!-- {name}: written by training.scaling_page -->", f"<!-- end of {name} -->", section)


if __name__ == "__main__":
    main()
