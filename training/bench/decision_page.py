"""docs/benchmarks/decision_speed.md from the figures in docs/benchmarks/decision_speed.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from training.bench.decision_time import BLOCK, DecisionTime
from training.bench.page import table

RATIO = 20.0  # how many times faster than with MiniLM a decision must be
FIRST_SECONDS = 1.0  # from the start of a process to the end of its first decision, at most

INTRODUCTION = f"""# How long a decision takes

Written by `python -m training.bench.decision` from `decision_speed.json`.

* *decision*: predicting both modes from prompt and caption, and weighing gain against price. No checkpoint is loaded,
  no picture read. Warm, one core; every request has another prompt or caption, in English or Chinese, drawn from
  training/prior for all kinds of picture. Words that a router has not seen in training take it less time than others.
* *with MiniLM*: the same, and all-MiniLM-L6-v2 embeds prompt and caption, as one batch through transformers on the same
  core: what a sentence encoder would add. Both ways take turns, {BLOCK} requests each, within one run.
* *first decision*: a fresh process from its start to its exit: Python, `import vlroute`, reading the artefact and
  deciding.
"""


@dataclass(frozen=True, slots=True)
class FirstDecision:
    """Seconds from the start of a process to its exit, over `starts` of them."""

    router: str
    starts: int
    median: float
    most: float


def render(times: Sequence[DecisionTime], firsts: Sequence[FirstDecision], where: str) -> str:
    """The page. What falls short of its bar is bold."""
    slow = {one.router: one for one in times if one.minilm}
    rows = []
    for one in times:
        if one.minilm:
            continue
        other = slow.get(one.router)
        compared = ["–"] * 3 if other is None else [*_milliseconds(other), _ratio(other.median / one.median)]
        rows.append([f"`{one.router}`", str(one.requests), *_milliseconds(one), *compared])
    lines = [
        INTRODUCTION,
        "## Warm decisions, milliseconds",
        "",
        *table(["router", "requests", "median", "p99", "with MiniLM, median", "p99", "ratio of medians"], rows),
        "",
        f"Asked for: ratio ≥ {RATIO:.0f}. What falls short is bold.",
        "",
        "## First decision of a process, seconds",
        "",
        *table(
            ["router", "processes", "median", "most"],
            [[f"`{one.router}`", str(one.starts), _first(one.median), f"{one.most:.2f}"] for one in firsts],
        ),
        "",
        f"Asked for: median ≤ {FIRST_SECONDS:.0f} s.",
        "",
        f"Taken on: {where}",
    ]
    return "\n".join(lines) + "\n"


def _milliseconds(one: DecisionTime) -> list[str]:
    return [f"{one.median:.2f}", f"{one.p99:.2f}"]


def _ratio(value: float) -> str:
    return f"{value:.1f}×" if value >= RATIO else f"**{value:.1f}×**"


def _first(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds <= FIRST_SECONDS else f"**{seconds:.2f}**"
