"""Published scores of the 2B pair in `benchmarks.csv`, and the assumed number of tokens of each mode.

The scores are shares of right answers from the Qwen3-VL technical report (Qwen3-VL-2B Instruct and Thinking). For two
kinds of requests no benchmark is published; their scores come from an earlier hands-on comparison of the modes.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from vlroute import Mode
from vlroute.decision.latency import ASSUMED_PER_TOKEN, ASSUMED_PREFILL

HANDS_ON = "hands-on"


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of an answer in the hands-on comparison, for one kind of work.

    The number of tokens of each mode is not published, so it is ASSUMED: `tokens` take these seconds at the speed that
    the library assumes without measurements. Decisions of the prior therefore weigh the seconds of the comparison. Real
    Thinking answers may be far longer.
    """

    instruct: float
    thinking: float

    def tokens(self, mode: Mode) -> int:
        seconds: float = getattr(self, mode)
        return round((seconds - ASSUMED_PREFILL) / ASSUMED_PER_TOKEN)


EFFORTS = {
    "look": Effort(0.78, 1.12),  # OCR: one look, or several of the same kind
    "figures": Effort(0.91, 2.04),  # geometry and algebra
    "taps": Effort(0.85, 1.87),  # GUI path
    "frames": Effort(1.23, 2.41),  # video key frames
    "steps": Effort(1.05, 2.33),  # multi-hop: several looks that build on each other
}


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Share answered correctly by each mode, 0 to 1. `options`: number of options of a multiple-choice question."""

    name: str
    topic: str
    instruct: float
    thinking: float
    effort: Effort
    options: int
    source: str


def _benchmark(row: dict[str, str]) -> Benchmark:
    scores = float(row["instruct"]), float(row["thinking"])
    return Benchmark(row["name"], row["topic"], *scores, EFFORTS[row["effort"]], int(row["options"]), row["source"])


with Path(__file__).with_name("benchmarks.csv").open(encoding="utf-8", newline="") as file:
    BENCHMARKS = tuple(map(_benchmark, csv.DictReader(file)))
BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}
