"""Write the tables of docs/benchmarks/scaling.md: `python -m training.scaling_page`

Memory and throughput of the 2B pair on two GPUs, by arithmetic from the sizes of its checkpoints (bf16), and what
`training.simulate` predicts for the records of the pocket pair. Throughput is an upper bound: a decoding step reads all
weights of the language model and the KV cache of each sequence once, and a prompt takes two operations for each
parameter and token (Pope et al. 2022, Efficiently Scaling Transformer Inference).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.page import PAGES, ROOT, put_section, table
from training.simulate import RUNS, forecast
from training.simulation import Limits, RouterDecider, poisson, requests_from
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.records import read_records
from vlroute.types import MODES, Mode

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


def steps(gpu: GPU = SMALL, mode: Mode = "thinking") -> list[list[str]]:
    """The arithmetic of one server: quantity, formula, result."""
    count, tokens, free = sequences(gpu, mode), context(mode), kv_bytes(gpu)
    read, operations, mib = LANGUAGE * BYTES + count * tokens * KV, prompt_operations(), tokens * KV / 2**20
    return [
        ["weights", f"(407 M + 1.72 B) × {BYTES} bytes", f"{WEIGHTS / 1e9:.2f} GB = {WEIGHTS / GiB:.2f} GiB"],
        ["KV cache", f"{USABLE / 2:.2f} × {gpu.memory / GiB:.0f} − {WEIGHTS / GiB:.2f} − {WORKING / GiB:.1f} GiB",
         f"{free / GiB:.2f} GiB"],
        ["tokens of a request", f"{PICTURE} picture + {QUESTION} question + {ANSWERS[mode]} answer", f"{tokens:,}"],
        ["KV cache of a request", f"{tokens:,} × {KV // KiB} KiB", f"{mib:.0f} MiB"],
        ["sequences", f"{free / GiB:.2f} GiB ÷ {mib:.0f} MiB, rounded down", f"{count}"],
        ["bytes read in a step", f"1.72 B × {BYTES} + {count} × {mib:.0f} MiB", f"{read / 1e9:.2f} GB"],
        ["tokens a second", f"{count} × {gpu.bandwidth / 1e9:,.0f} GB/s ÷ {read / 1e9:.2f} GB",
         f"{tokens_per_second(gpu, count, tokens):,.0f}"],
        ["operations of a prompt", f"2 × 1.72 B × ({PICTURE} ÷ (1 − {TOWER_SHARE}) + {QUESTION})",
         f"{operations / 1e12:.2f} × 10¹²"],
        ["seconds of a prompt", f"÷ {gpu.operations / 1e12:.0f} × 10¹² a second", f"{operations / gpu.operations:.3f}"],
    ]  # fmt: skip


def server_rows() -> list[list[str]]:
    return [
        [
            f"{gpu.name}, {mode}", f"{kv_bytes(gpu) / GiB:.1f}", f"{context(mode):,}", f"{sequences(gpu, mode)}",
            f"{tokens_per_second(gpu, 1, context(mode)):,.0f}",
            f"{tokens_per_second(gpu, sequences(gpu, mode), context(mode)):,.0f}",
            f"{answers_per_second(gpu, {one: sequences(gpu, one) for one in MODES}):,.1f}" if mode == MODES[0] else "",
        ]
        for gpu in (SMALL, LARGE) for mode in MODES
    ]  # fmt: skip


def replica_rows() -> list[list[str]]:
    rows = []
    for gpu in (SMALL, LARGE):
        rate = answers_per_second(gpu, dict.fromkeys(MODES, SEQUENCES))
        for shared in (True, False):
            weights, left, kept = pair_in_one(gpu, shared)
            name = f"{gpu.name}, towers {'equal' if shared else 'different'}"
            rows.append([name, f"{weights / GiB:.2f}", f"{left / GiB:.1f}", f"{kept:,}", f"{REPLICAS * kept:,}",
                         f"{rate:.1f}", f"{REPLICAS * rate:.0f}"])  # fmt: skip
    return rows


def sizes() -> str:
    """The section about GPUs."""
    first, _, *rest = table(["quantity", "formula", "result"], steps())
    server_head = ["server", "KV cache, GiB", "tokens of a request", "sequences", "tokens/s, one sequence",
                   "tokens/s, all sequences", "answers/s, half of them Thinking"]  # fmt: skip
    replica_head = ["replica", "weights, GiB", "left, GiB", "conversations kept", f"{REPLICAS} replicas", "answers/s",
                    f"{REPLICAS} replicas"]  # fmt: skip
    lines = [
        "Written by `python -m training.scaling_page`. Computed, not measured. The 24 GiB GPU has the bandwidth and",
        "the operations of an RTX 3090 (936 GB/s, 71 × 10¹² a second), the 80 GiB GPU those of an H100 SXM (3.35 TB/s,",
        "989 × 10¹²).",
        "", "One server in detail, Thinking in 45 % of 24 GiB:",
        "", first, "| --- | --- | ---: |", *rest,
        "", "Two servers on one GPU, 45 % of its memory each:",
        "", *table(server_head, server_rows()),
        "", f"Replicas that hold the pair, with {SEQUENCES} sequences of each mode, and {REPLICAS} of them:",
        "", *table(replica_head, replica_rows()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def example() -> str:
    """The section with predictions for the pocket pair."""
    classifier = ComplexityClassifier.load(ROOT / "models" / "pocket" / "router")
    requests = requests_from(read_records(ROOT / "training" / "pocket" / "records.jsonl.gz"), classifier)
    rows = []
    for rate in RATES:
        arrivals = [poisson(rate, REQUESTS, seed) for seed in range(RUNS)]
        decider = lambda number: RouterDecider(Policy(), classifier.latency)  # noqa: E731
        result = forecast(Limits(), arrivals, requests, decider, 1, P95)
        p50, p95 = (f"{1e3 * result[name]:.0f}" for name in ("p50", "p95"))
        rows.append([f"{rate:g}", p50, p95, f"{result['thinking']:.0%}", f"{result['busy']:.0%}",
                     f"{result['refused']:.1%}", str(result["needed"])])  # fmt: skip
    head = ["requests/s", "p50, ms", "p95, ms", "Thinking", "busy", "refused", f"replicas for p95 ≤ {P95:g} s"]
    lines = [
        "Written by `python -m training.scaling_page`: predictions for one replica with the pocket pair and its",
        "router, from `training/pocket/records.jsonl.gz`.",
        f"Means of {RUNS} runs of {REQUESTS:,} requests, not measured.",
        "", *table(head, rows),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(page: Path = PAGE) -> None:
    for name, section in (("sizes", sizes()), ("example", example())):
        put_section(page, f"<!-- {name}: written by training.scaling_page -->", f"<!-- end of {name} -->", section)


if __name__ == "__main__":
    main()
