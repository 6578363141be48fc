"""What was measured against what was predicted, as values and as a section of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.bench.page import table
from training.simulation.calibrate import Answered
from training.simulation.choosing import Choosing
from training.simulation.measured import Seen
from training.simulation.run import Times, drawn, poisson, simulate
from training.simulation.work import STAGES, Machine, Request

MOST_ERROR, RUNS, WARM_UP = 0.15, 20, 0.1
QUANTILES = {"p50": 0.5, "p95": 0.95}
SECTION = """\
Written by `python -m training.simulate_check` from `docs/scaling_check.json`: `vlroute serve` with the pocket pair, one
thread a model, asked by a client on the same cores, with pictures that it does not know and that arrive by chance,
whether or not earlier ones are answered. Loads are parts of the {capacity:.1f} answers a second that a crowd gets at
most whose clients ask again at once. What the simulator is told: what each of {tasks} tasks costs on the idle server
in each mode, asked one by one before and after all else; how crowds slow each stage; and when which task comes. It
decides by the same router. Asked: within {asked:.0%}; what misses is bold.

{table}

*Measured*: all {rounds} rounds together; in brackets a 95 % bootstrap interval by blocks of a second, as neighbours
wait together. *These arrivals*: each round simulated with its own. *By rate alone*: {runs} runs with other arrivals and
with tasks drawn anew, as `training.simulate --rate` does; in brackets the lowest and highest of them, each as long as
one round: what chance alone does. *Rule of thumb*: the error of seconds on the idle server ÷ (1 − load). *Others*:
cores that other processes took in the meantime; over 0.1, what is measured is theirs, too.

How many times longer each stage takes in a crowd of {crowd} tasks, measured and as the fitted machine has it (root mean
square of the differences {off:.0%}):

{crowds}

The machine: two or more things at work do {speed:.2f} times what one does alone; a step of two rows takes {two:.2f}
times that of one, of eight {eight:.2f} times, and who joins others loses {join:.2f} steps; beside seeing and reading
(1) the others get these shares: {weights}; done in turn: {in_turn}.

Taken on: {where}
"""


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantile in seconds: what was measured and predicted, the latter from the same arrivals and from the rate
    alone, with intervals, and the rule of thumb."""

    measured: float
    interval: tuple[float, float]
    predicted: float
    by_rate: float
    runs: tuple[float, float]
    thumb: float

    def error(self, predicted: float) -> float:
        return predicted / self.measured - 1


@dataclass(frozen=True, slots=True)
class Round:
    """One load: when each request came, in seconds, and its answer, None where refused. `others`: cores that were not
    ours."""

    arrivals: Times
    answers: Sequence[Seen | None]
    others: float

    @property
    def kept(self) -> list[tuple[float, Seen]]:
        """Arrival and answer, warm-up and refused ones left out."""
        first = int(WARM_UP * len(self.arrivals))
        both = [*zip(self.arrivals, self.answers, strict=True)][first:]
        return [(float(at), answer) for at, answer in both if answer is not None]


def compared(
    part: float,
    capacity: float,
    rounds: Sequence[Round],
    machine: Machine,
    tasks: Sequence[Request],
    again: Callable[[], Choosing],
) -> dict[str, Any]:
    """One load's figures, ready for JSON. Each round asked the first of `tasks`, in their order; `again` makes a
    chooser that has seen nothing."""
    rate, count = part * capacity, sum(len(one.arrivals) for one in rounds)
    same = [
        simulate(machine, one.arrivals, tasks[: len(one.arrivals)], lambda number: again(), warm_up=WARM_UP)
        for one in rounds
    ]
    runs = [
        simulate(
            machine, poisson(rate, count // len(rounds), 1000 + seed), drawn(tasks, count // len(rounds), seed),
            lambda number: again(), warm_up=WARM_UP,
        )
        for seed in range(RUNS)
    ]  # fmt: skip
    kept = [one.kept for one in rounds]
    answers: list[Seen] = [answer for one in kept for _, answer in one]
    spent = np.array([answer.spent for answer in answers])
    # the rounds one after the other, so that each block of a second is of one
    at = np.concatenate([[when + 1e4 * number for when, _ in one] for number, one in enumerate(kept)])
    thinking = float(np.mean([run.thinking for run in same]))
    predicted, by_rate = (np.concatenate([run.seconds for run in each]) for each in (same, runs))
    idle = _idle(tasks, thinking)
    refused = sum(answer is None for one in rounds for answer in one.answers)
    found: dict[str, Any] = {
        "part": part, "rate": rate, "requests": count, "rounds": len(rounds),
        "others": float(np.mean([one.others for one in rounds])),
        "refused": {"measured": refused / count, "predicted": sum(run.refused for run in same) / count},
        "thinking": {"measured": _share(answers), "predicted": thinking},
        "busy": float(np.mean([run.busy for run in same])),
    }  # fmt: skip
    for name, share in QUANTILES.items():
        each = [run.quantile(share) for run in runs]
        found[name] = {
            "measured": float(np.quantile(spent, share)), "interval": interval(at, spent, share),
            "predicted": float(np.quantile(predicted, share)), "by_rate": float(np.quantile(by_rate, share)),
            "runs": (min(each), max(each)), "thumb": float(np.quantile(idle, share)) / (1 - part),
        }  # fmt: skip
    return found


def _share(answers: Sequence[Answered]) -> float:
    return sum(answer.mode == "thinking" for answer in answers) / max(len(answers), 1)


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
            value, first = Figure(**one[name]), name == "p50"
            rows.append([
                f"{one['part']:.0%}, {one['rate']:.1f} a second" if first else "",
                name,
                _milliseconds(value.measured, value.interval),
                f"{1e3 * value.predicted:.0f}",
                _error(value.error(value.predicted)),
                _milliseconds(value.by_rate, value.runs),
                _error(value.error(value.by_rate)),
                f"{value.error(value.thumb):+.0%}",
                f"{one['thinking']['measured']:.0%}, {one['thinking']['predicted']:.0%}" if first else "",
                f"{one['others']:.2f}" if first else "",
            ])  # fmt: skip
    head = [
        "load", "", "measured, ms", "predicted, these arrivals", "error", "by rate alone", "error", "rule of thumb",
        "thinking: measured, predicted", "others",
    ]  # fmt: skip
    fitted, machine = found["fitted"], found["fitted"]["machine"]
    crowds = [
        [name, *(f"{slowed[stage]:.1f}, {fitted['simulated'][name][stage]:.1f}" for stage in STAGES)]
        for name, slowed in fitted["measured"].items()
    ]
    weights = ", ".join(f"{stage} {weight:.1f}" for stage, weight in machine["weights"].items())
    in_turn = ", ".join(f"{part:.0%} of {stage}" for stage, part in machine["in_turn"].items())
    step = [machine["growth"][rows - 1] for rows in (2, 8)]
    return SECTION.format(
        table="\n".join(table(head, rows)), asked=MOST_ERROR, runs=RUNS, rounds=found["loads"][0]["rounds"],
        crowds="\n".join(table(["clients, model", *STAGES], crowds)), off=fitted["off"],
        speed=machine["speeds"][-1], two=step[0], eight=step[1], weights=weights, in_turn=in_turn,
        join=machine["join"],
        **{name: found[name] for name in ("where", "tasks", "capacity", "crowd")},
    )  # fmt: skip


def _error(value: float) -> str:
    return f"{value:+.0%}" if abs(value) <= MOST_ERROR else f"**{value:+.0%}**"


def _milliseconds(value: float, around: tuple[float, float]) -> str:
    return f"{1e3 * value:.0f} ({1e3 * around[0]:.0f} – {1e3 * around[1]:.0f})"
