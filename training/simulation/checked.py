"""What was measured against what was predicted, as values and as a section of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bench.page import table
from training.simulation.run import Chooses, Times, drawn, poisson, simulate
from training.simulation.work import Machine, Request

MOST_ERROR, RUNS, WARM_UP = 0.15, 20, 0.1
QUANTILES = {"p50": 0.5, "p95": 0.95}
SECTION = """\
Written by `python -m training.simulate_check` from `docs/scaling_check.json`: `vlroute serve` with the pocket pair, one
thread a model, asked by a client on the same cores, with fresh pictures that arrive by chance, whether or not earlier
ones are answered. Loads are parts of the {capacity:.0f} answers a second that {full} clients get who ask again at once.
What the simulator is told: what {singles} tasks cost on the idle server in each mode, and how many times longer each
stage takes while 1, 2, 4 … 64 clients ask again at once, right before and after each load. Not the seconds that it
predicts. Asked: within {asked:.0%}; what misses is bold.

{table}

*Measured*, in brackets: 95 % bootstrap interval, by blocks of a second, as neighbours wait together. *Predicted*:
{runs} runs as long as the measured one with other arrivals and requests; in brackets the lowest and highest run, which
is what chance alone does. *Rule of thumb*: the error of seconds on the idle server ÷ (1 − load). *Others*: cores that
other processes took in the meantime; over 0.1, what is measured is theirs, too.

Taken on: {where}
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantile in seconds: what was measured, what was predicted, each with an interval, and the rule of thumb."""

    measured: float
    interval: tuple[float, float]
    predicted: float
    runs: tuple[float, float]
    thumb: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class Shown:
    """Arrivals, seconds and thinking of the answers of one load, in the order of arrival; `asked` a second for
    `seconds`; `others`: cores that were not ours."""

    arrived: Times
    spent: Times
    thinks: NDArray[np.bool_]
    refused: int
    asked: float
    seconds: float
    others: float


def compared(
    part: float, shown: Shown, machine: Machine, requests: Sequence[Request], chooses: Chooses
) -> dict[str, Any]:
    """One load's figures, ready for JSON. `requests` are what a load is drawn from."""
    count = len(shown.spent) + shown.refused
    runs = [
        simulate(machine, poisson(shown.asked, count, 1000 + seed), drawn(requests, count, seed), chooses, seed=seed)
        for seed in range(RUNS)
    ]
    thinking = float(np.mean([run.thinking for run in runs]))
    first = int(WARM_UP * len(shown.spent))
    arrived, spent = shown.arrived[first:], shown.spent[first:]
    idle = _idle(requests, thinking)
    found: dict[str, Any] = {
        "part": part, "rate": shown.asked, "requests": count, "others": shown.others,
        "refused": {"measured": shown.refused / count, "predicted": float(np.mean([r.refused for r in runs])) / count},
        "thinking": {"measured": float(np.mean(shown.thinks[first:])), "predicted": thinking},
        "busy": float(np.mean([run.busy for run in runs])),
    }  # fmt: skip
    pooled = np.concatenate([run.seconds for run in runs])
    for name, share in QUANTILES.items():
        each = [run.quantile(share) for run in runs]
        found[name] = {
            "measured": float(np.quantile(spent, share)), "interval": interval(arrived, spent, share),
            "predicted": float(np.quantile(pooled, share)), "runs": (min(each), max(each)),
            "thumb": float(np.quantile(idle, share)) / (1 - part),
        }  # fmt: skip
    return found


def interval(arrived: Times, spent: Times, share: float, draws: int = 500) -> tuple[float, float]:
    """95 % bootstrap interval of a quantile, by blocks of one second of arrivals."""
    blocks: dict[int, list[float]] = {}
    for at, seconds in zip(arrived, spent, strict=True):
        blocks.setdefault(int(at), []).append(float(seconds))
    chance, each = np.random.default_rng(0), [*blocks.values()]
    found = [
        float(np.quantile(np.concatenate([each[i] for i in chance.integers(len(each), size=len(each))]), share))
        for _ in range(draws)
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def _idle(requests: Sequence[Request], thinking: float) -> Times:
    """Seconds of each request on the idle machine, so many of them thinking."""
    chance = np.random.default_rng(0)
    works = [one.thinking if chance.random() < thinking else one.instruct for one in requests]
    return np.array([
        one.front + one.seeing + work.prefill + work.decode
        for one, work in zip(requests, works, strict=True)
    ])  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """The section of the page; what misses is bold."""
    rows = []
    for one in found["loads"]:
        for name in QUANTILES:
            value = Figure(**one[name])
            said = f"{value.error:+.0%}"
            rows.append([
                f"{one['part']:.0%}, {one['rate']:.1f} a second" if name == "p50" else "",
                name,
                _milliseconds(value.measured, value.interval),
                _milliseconds(value.predicted, value.runs),
                said if abs(value.error) <= MOST_ERROR else f"**{said}**",
                f"{value.thumb / value.measured - 1:+.0%}",
                f"{one['thinking']['measured']:.0%}, {one['thinking']['predicted']:.0%}" if name == "p50" else "",
                f"{one['others']:.2f}" if name == "p50" else "",
            ])  # fmt: skip
    head = [
        "load", "", "measured, ms", "predicted, ms", "error", "rule of thumb", "thinking: measured, predicted",
        "others",
    ]  # fmt: skip
    return SECTION.format(
        table="\n".join(table(head, rows)), asked=MOST_ERROR, runs=RUNS,
        **{name: found[name] for name in ("where", "singles", "capacity", "full")},
    )  # fmt: skip


def _milliseconds(value: float, around: tuple[float, float]) -> str:
    return f"{1e3 * value:.0f} ({1e3 * around[0]:.0f} – {1e3 * around[1]:.0f})"
