"""Memory and throughput of two layouts of the 2B pair, by arithmetic: `python -m training.simulation.sizes`

Bytes from the sizes of the checkpoints (bf16); tokens a second as a bound: each step of decoding reads all weights of
the language model once, and keys and values of every row (Pope et al. 2022, Efficiently Scaling Transformer Inference).
Writes a section of docs/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.bench.measure import ROOT
from training.bench.page import table
from vlroute.files import replace_file

KiB, GiB = 2**10, 2**30
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by training.simulation.sizes -->", "<!-- end of what training.simulation.sizes wrote -->"
#: Parameters of a 2B checkpoint, bytes of one, and what one token takes; see docs/real_size.md.
TOWER, LANGUAGE, BYTES = 407e6, 1.72e9, 2
KEYS, FEATURES = 112 * KiB, 16 * KiB
#: Tokens of a 1024² picture, of a question, and of answers: assumed.
PICTURE, QUESTION, ANSWERS = 1024, 100, {"instruct": 200, "thinking": 1500}
TURNS = 4
#: Bytes for activations and graphs of one server: assumed.
WORKING = 1.5 * GiB


@dataclass(frozen=True, slots=True)
class GPU:
    """`bandwidth`: bytes a second, from the maker's data sheet."""

    name: str
    memory: float
    bandwidth: float


SMALL, LARGE = GPU("24 GiB, 936 GB/s", 24 * GiB, 936e9), GPU("80 GiB, 3.35 TB/s", 80 * GiB, 3.35e12)


def context(mode: str) -> int:
    """Tokens of one question about one picture and its answer."""
    return PICTURE + QUESTION + ANSWERS[mode]


def two_servers(gpu: GPU, part: float = 0.45) -> dict[str, tuple[float, int, float]]:
    """Each mode in a server of its own with `part` of the GPU: (bytes for keys and values, answers under way at the
    same time, tokens a second at most with so many). The GPU's bandwidth is shared, so this is one of them alone."""
    free = part * gpu.memory - (TOWER + LANGUAGE) * BYTES - WORKING
    found = {}
    for mode in ANSWERS:
        rows = int(free / (context(mode) * KEYS))
        found[mode] = free, rows, tokens_a_second(gpu, rows, context(mode))
    return found


def tokens_a_second(gpu: GPU, rows: int, tokens: int) -> float:
    """Bound by bandwidth, for so many rows with so many tokens read each."""
    return rows * gpu.bandwidth / (LANGUAGE * BYTES + rows * tokens * KEYS)


def pair_in_one(gpu: GPU, shared_tower: bool) -> tuple[float, float, int]:
    """Bytes of the pair's weights, bytes left for conversations, and how many of `TURNS` turns about one picture stay
    with features and the keys and values of both modes."""
    weights = (2 * LANGUAGE + (1 if shared_tower else 2) * TOWER) * BYTES
    left = 0.9 * gpu.memory - weights - WORKING
    tokens = PICTURE + TURNS * (QUESTION + ANSWERS["instruct"])  # reasoning is not kept in a prompt
    one = PICTURE * FEATURES * (1 if shared_tower else 2) + 2 * tokens * KEYS
    return weights, left, int(left / one)


def render() -> str:
    rows = []
    for gpu in (SMALL, LARGE):
        for mode, (free, under_way, rate) in two_servers(gpu).items():
            rows.append(
                [
                    f"{gpu.name}, {mode}",
                    f"{(TOWER + LANGUAGE) * BYTES / GiB:.2f}",
                    f"{free / GiB:.1f}",
                    f"{context(mode):,}",
                    f"{under_way}",
                    f"{tokens_a_second(gpu, 1, context(mode)):,.0f}",
                    f"{rate:,.0f}",
                ]
            )
    head = [
        "one GPU, two servers of 45 %",
        "weights, GiB",
        "keys and values, GiB",
        "tokens of a request",
        "at the same time",
        "tokens a second, one",
        "all",
    ]
    pairs = []
    for gpu in (SMALL, LARGE):
        for shared in (True, False):
            weights, left, kept = pair_in_one(gpu, shared)
            pairs.append(
                [
                    f"{gpu.name}, towers {'equal' if shared else 'different'}",
                    f"{weights / GiB:.2f}",
                    f"{left / GiB:.1f}",
                    f"{kept:,}",
                    f"{8 * kept:,}",
                ]
            )
    head_pairs = [
        "one replica that holds the pair",
        "weights, GiB",
        "left, GiB",
        "conversations kept",
        "by eight replicas",
    ]
    return "\n".join(
        [
            "Written by `python -m training.simulation.sizes`. Arithmetic, not measured: no GPU was at hand.",
            "",
            *table(head, rows),
            "",
            *table(head_pairs, pairs),
            "",
        ]
    )


def main(page: Path = PAGE) -> None:
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    replace_file(page, f"{before}{BEGIN}\n{render()}{END}{after}".encode())


if __name__ == "__main__":
    main()
