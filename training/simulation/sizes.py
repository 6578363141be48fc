"""Memory and throughput of two layouts of the 2B pair, by arithmetic: `python -m training.simulation.sizes`

Bytes from the sizes of the checkpoints (bf16). Tokens a second as a bound: each step of decoding reads all weights of
the language model once, and keys and values of every row; prompts as a bound of computation, two operations a parameter
and token (both Pope et al. 2022, Efficiently Scaling Transformer Inference). Writes a section of docs/scaling.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.bench.measure import ROOT
from training.bench.page import put_section, table
from vlroute.modes import MODES, Mode

KiB, GiB = 2**10, 2**30
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by training.simulation.sizes -->", "<!-- end of what training.simulation.sizes wrote -->"
#: Parameters of a 2B checkpoint, bytes of one, and what one token takes; see docs/real_size.md.
TOWER, LANGUAGE, BYTES = 407e6, 1.72e9, 2
WEIGHTS = (TOWER + LANGUAGE) * BYTES
KEYS, FEATURES = 112 * KiB, 16 * KiB
#: Tokens of a 1024² picture, and the tower's part of the operations that reading it takes.
PICTURE, TOWER_PART = 1024, 0.59
#: Tokens of a question, and of answers with their thoughts: assumed.
QUESTION, ANSWERS = 100, {"instruct": 200, "thinking": 1500}
TURNS, ROWS, REPLICAS = 4, 8, 8
#: Bytes for activations and graphs of one process, and the part of a GPU's memory that is used at all: assumed.
WORKING, USED = 1.5 * GiB, 0.9


@dataclass(frozen=True, slots=True)
class GPU:
    """`memory` in bytes, `bandwidth` in bytes a second, `operations` a second (dense, bf16): from data sheets."""

    name: str
    memory: float
    bandwidth: float
    operations: float


#: As an RTX 3090 and an H100 SXM have it.
SMALL = GPU("24 GiB", 24 * GiB, 936e9, 71e12)
LARGE = GPU("80 GiB", 80 * GiB, 3.35e12, 989e12)


def context(mode: Mode) -> int:
    """Tokens of one question about one picture and its answer."""
    return PICTURE + QUESTION + ANSWERS[mode]


def free_for_keys(gpu: GPU, part: float = USED / 2) -> float:
    """Bytes left for keys and values in a server of one mode that has `part` of the GPU."""
    return part * gpu.memory - WEIGHTS - WORKING


def rows_at_once(gpu: GPU, mode: Mode) -> int:
    """Whole contexts whose keys and values fit in one of two servers."""
    return int(free_for_keys(gpu) / (context(mode) * KEYS))


def tokens_a_second(gpu: GPU, rows: int, tokens: int) -> float:
    """Bound by bandwidth, for so many rows with so many tokens read each."""
    return rows * gpu.bandwidth / (LANGUAGE * BYTES + rows * tokens * KEYS)


def prompt_seconds(gpu: GPU) -> float:
    """Bound by operations: reading a question about a 1024² picture, tower and all."""
    picture = 2 * LANGUAGE * PICTURE / (1 - TOWER_PART)
    return (picture + 2 * LANGUAGE * QUESTION) / gpu.operations


def answers_a_second(gpu: GPU, rows: dict[Mode, int], thinking: float = 0.5) -> float:
    """Of a GPU that does nothing else: each answer takes its prompt, and its tokens at the rate of so many rows."""
    shares: dict[Mode, float] = {"instruct": 1 - thinking, "thinking": thinking}
    writing = sum(shares[mode] * ANSWERS[mode] / tokens_a_second(gpu, rows[mode], context(mode)) for mode in MODES)
    return 1 / (prompt_seconds(gpu) + writing)


def pair_in_one(gpu: GPU, shared_tower: bool) -> tuple[float, float, int]:
    """Bytes of the pair's weights, bytes left for conversations, and how many of `TURNS` turns about one picture stay
    with features and the keys and values of both modes."""
    towers = 1 if shared_tower else 2
    weights = (2 * LANGUAGE + towers * TOWER) * BYTES
    left = USED * gpu.memory - weights - WORKING
    tokens = PICTURE + TURNS * (QUESTION + ANSWERS["instruct"])  # reasoning is not kept in a prompt
    one = towers * PICTURE * FEATURES + 2 * tokens * KEYS
    return weights, left, int(left / one)


def steps(gpu: GPU = SMALL, mode: Mode = "thinking") -> list[list[str]]:
    """One case of the first layout, line by line: what, how, result."""
    rows, tokens, free = rows_at_once(gpu, mode), context(mode), free_for_keys(gpu)
    read = LANGUAGE * BYTES + rows * tokens * KEYS
    picture = 2 * LANGUAGE * PICTURE
    return [
        ["weights", f"(407 M + 1.72 B) × {BYTES} bytes", f"{WEIGHTS / 1e9:.2f} GB = {WEIGHTS / GiB:.2f} GiB"],
        [
            "keys and values",
            f"{USED / 2:.2f} × {gpu.memory / GiB:.0f} − {WEIGHTS / GiB:.2f} − {WORKING / GiB:.1f} GiB",
            f"{free / GiB:.2f} GiB",
        ],
        ["tokens of a request", f"{PICTURE} picture + {QUESTION} question + {ANSWERS[mode]} answer", f"{tokens:,}"],
        ["its keys and values", f"{tokens:,} × {KEYS // KiB} KiB", f"{tokens * KEYS / 2**20:.0f} MiB"],
        ["requests at once", f"{free / GiB:.2f} GiB ÷ {tokens * KEYS / 2**20:.0f} MiB, rounded down", f"{rows}"],
        [
            "bytes of a step", f"1.72 B × {BYTES} + {rows} × {tokens * KEYS / 2**20:.0f} MiB", f"{read / 1e9:.2f} GB",
        ],
        [
            "tokens a second", f"{rows} × {gpu.bandwidth / 1e9:,.0f} GB/s ÷ {read / 1e9:.2f} GB",
            f"{tokens_a_second(gpu, rows, tokens):,.0f}",
        ],
        [
            "operations of a prompt",
            f"2 × 1.72 B × {PICTURE} ÷ (1 − {TOWER_PART}) + 2 × 1.72 B × {QUESTION}",
            f"{(picture / (1 - TOWER_PART) + 2 * LANGUAGE * QUESTION) / 1e12:.2f} × 10¹²",
        ],
        ["seconds of a prompt", f"÷ {gpu.operations / 1e12:.0f} × 10¹² a second", f"{prompt_seconds(gpu):.3f}"],
    ]  # fmt: skip


def servers() -> list[list[str]]:
    """Rows of the table of the first layout."""
    return [
        [
            f"{gpu.name}, {mode}", f"{free_for_keys(gpu) / GiB:.1f}", f"{context(mode):,}",
            f"{rows_at_once(gpu, mode)}",
            f"{tokens_a_second(gpu, 1, context(mode)):,.0f}",
            f"{tokens_a_second(gpu, rows_at_once(gpu, mode), context(mode)):,.0f}",
            f"{answers_a_second(gpu, {one: rows_at_once(gpu, one) for one in MODES}):,.1f}" if mode == MODES[0] else "",
        ]
        for gpu in (SMALL, LARGE) for mode in MODES
    ]  # fmt: skip


def replicas() -> list[list[str]]:
    """Rows of the table of the second layout."""
    found = []
    for gpu in (SMALL, LARGE):
        one = answers_a_second(gpu, dict.fromkeys(MODES, ROWS))
        for shared in (True, False):
            weights, left, kept = pair_in_one(gpu, shared)
            found.append([
                f"{gpu.name}, towers {'equal' if shared else 'different'}", f"{weights / GiB:.2f}", f"{left / GiB:.1f}",
                f"{kept:,}", f"{REPLICAS * kept:,}", f"{one:.1f}", f"{REPLICAS * one:.0f}",
            ])  # fmt: skip
    return found


def render() -> str:
    """The section of the page."""
    lines = [
        "Written by `python -m training.simulation.sizes`. Arithmetic, not measured: no GPU was at hand. Bandwidth and",
        "operations of the 24 GiB GPU are those of an RTX 3090 (936 GB/s, 71 × 10¹² a second), of the 80 GiB one those",
        "of an H100 SXM (3.35 TB/s, 989 × 10¹²).",
        "",
        "One case of the first layout step by step, Thinking in 45 % of 24 GiB:",
        "",
        *_left(["", "how", "result"], steps()),
        "",
        "The first layout, two servers of 45 % each:",
        "",
        *table(
            ["one server", "keys and values, GiB", "tokens of a request", "at once", "tokens a second, one",
             "tokens a second, all", "answers a second, half of them thinking"],
            servers(),
        ),
        "",
        f"The second, a replica that holds the pair with {ROWS} rows a mode, and {REPLICAS} of them:",
        "",
        *table(
            ["one replica", "weights, GiB", "left, GiB", "conversations kept", f"by {REPLICAS}", "answers a second",
             f"by {REPLICAS}"],
            replicas(),
        ),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _left(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table whose middle is text."""
    first, _, *rest = table(head, rows)
    return [first, "| --- | --- | ---: |", *rest]


def main(page: Path = PAGE) -> None:
    put_section(page, BEGIN, END, render())


if __name__ == "__main__":
    main()
