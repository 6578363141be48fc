"""Measure thinking under control: `python -m training.bench.thinking_control`

Answers within a limit of tokens, loops, false alarms and automatic budgets of the pocket pair. Takes 15 minutes on two
cores.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.page import argument_parser, environment, publish, step
from vlroute import Answer, Router
from vlroute.learning import draw_evenly, is_right
from vlroute.pocket import Task

#: Periods of the loops that a bias of the logits makes.
PERIODS = (1, 2, 3, 5, 8, 13, 21)
#: The limit of tokens is this percentile of the lengths of ordinary thoughts.
PERCENTILE = 70
RESAMPLES = 10_000


def request(task: Task, seed: int, **settings: Any) -> dict[str, Any]:
    name = "images" if len(task.frames) == 1 else "videos"
    media = task.frames[0] if len(task.frames) == 1 else [*task.frames]
    return {"prompt": task.prompt, name: media, "seed": seed, **settings}


def ask_all(router: Router, tasks: Sequence[Task], what: str, **settings: Any) -> list[Answer]:
    step(what)
    return router.ask_many([request(task, i, **settings) for i, task in enumerate(tasks)])


def right(tasks: Sequence[Task], answers: Sequence[Answer]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([is_right(task, answer.text) for task, answer in zip(tasks, answers, strict=True)], float)


def difference(ours: Any, theirs: Any) -> dict[str, float]:
    """Mean paired difference in points, with the ends of its 95 % bootstrap interval."""
    rng, each = np.random.default_rng(0), 100 * (np.asarray(ours) - np.asarray(theirs))
    means = [each[rng.integers(len(each), size=len(each))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"points": float(each.mean()), "low": float(low), "high": float(high)}


def measure_limit(
    router: Router, tasks: Sequence[Task], ordinary: Sequence[Answer], instruct: Sequence[Answer]
) -> dict[str, Any]:
    lengths = [answer.usage.thinking_tokens for answer in ordinary]
    most = int(np.percentile(lengths, PERCENTILE))
    found = {}
    for name, settings in {"kept": {}, "none": {"answer_reserve": 0}, "few": {"max_new_tokens": 3}}.items():
        limit = int(settings.get("max_new_tokens", most))
        answers = ask_all(router, tasks, f"limit of {limit} tokens, reserve {name}", mode="thinking",
                          **{"max_new_tokens": most, **settings})  # fmt: skip
        cut = np.array([length > answer.usage.thinking_tokens for length, answer in zip(lengths, answers, strict=True)])
        rescued = np.array([answer.decision.rescued for answer in answers])
        correct, plain = right(tasks, answers), right(tasks, instruct)
        found[name] = {
            "limit": limit,
            "empty": sum(not answer.text for answer in answers),
            "above": sum(answer.usage.completion_tokens > limit for answer in answers),
            "rescued": int(rescued.sum()),
            "right": float(correct.mean()),
            "cut": int(cut.sum()),
            "cut_right": float(correct[cut].mean()) if cut.any() else None,
            "cut_instruct": float(plain[cut].mean()) if cut.any() else None,
            "cut_ordinary": float(right(tasks, ordinary)[cut].mean()) if cut.any() else None,
            "rescued_right": float(correct[rescued].mean()) if rescued.any() else None,
            "rescued_instruct": float(plain[rescued].mean()) if rescued.any() else None,
        }
    return found


def measure_loops(router: Router, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """How many tokens after their first full repeat loops are closed, for each period."""
    tokenizer = router.pair.thinking.tokenizer
    found = []
    for period in PERIODS:
        delays: list[int] = []
        answered = 0
        requests = []
        for i, task in enumerate(tasks):
            words = [*dict.fromkeys(tokenizer(task.transcript + task.thinking, add_special_tokens=False)["input_ids"])]
            chance = random.Random(f"{period} {i}")
            ids = chance.sample(words, period) if len(words) >= period else chance.sample(range(300, 900), period)
            bias = {(ids[0],): 50.0} | {(ids[k], ids[(k + 1) % period]): 500.0 for k in range(period)}
            requests.append(request(task, i, mode="thinking", sequence_bias=bias, max_new_tokens=1000))
        step(f"loops of period {period}")
        for answer in router.ask_many(requests):
            answered += bool(answer.text)
            delays.append(answer.usage.thinking_tokens - 2 * period)
        found.append({
            "period": period, "loops": len(delays), "answered": answered, "within": sum(one <= 64 for one in delays),
            "median": float(np.median(delays)), "longest": max(delays),
        })  # fmt: skip
    return found


def measure_budgets(router: Router, tasks: Sequence[Task], ordinary: Sequence[Answer]) -> list[dict[str, Any]]:
    """Automatic budgets at several prices, for the requests that Thinking answers at these prices."""
    found = []
    for price in (0.0, 0.1, 0.3, 1.0, 3.0):
        decisions = [router.decide(task.prompt, caption=task.caption, price=price) for task in tasks]
        chosen = [i for i, decision in enumerate(decisions) if decision.mode == "thinking"]
        if not chosen:
            continue
        some = [tasks[i] for i in chosen]
        step(f"automatic budgets at the price {price:g}: {len(some)} requests")
        answers = router.ask_many([
            request(tasks[i], i, mode="thinking", thinking_budget="auto", price=price, caption=tasks[i].caption)
            for i in chosen
        ])  # fmt: skip
        plain = [ordinary[i] for i in chosen]
        before = sum(answer.usage.completion_tokens for answer in plain)
        after = sum(answer.usage.completion_tokens for answer in answers)
        found.append({
            "price": price, "requests": len(some), "tokens": after / before - 1,
            "right": float(right(some, answers).mean()), "plain": float(right(some, plain).mean()),
            "difference": difference(right(some, answers), right(some, plain)),
        })  # fmt: skip
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--loops", type=int, default=60, help="tasks for each period of loops")
    options = parser.parse_args()
    tasks = [*draw_evenly(options.tasks, "thinking control", hidden=True)]
    with Router.from_pretrained() as router:
        router.load()
        ordinary = ask_all(router, tasks, "ordinary thoughts, loops not closed", mode="thinking", close_loops=False)
        closed = ask_all(router, tasks, "ordinary thoughts, loops closed", mode="thinking")
        instruct = ask_all(router, tasks, "Instruct", mode="instruct")
        figures = {
            "tasks": len(tasks),
            "percentile": PERCENTILE,
            "alarms": sum(a.thinking != b.thinking for a, b in zip(ordinary, closed, strict=True)),
            "instruct": float(right(tasks, instruct).mean()),
            "thinking": float(right(tasks, ordinary).mean()),
            "limits": measure_limit(router, tasks, ordinary, instruct),
            "loops": measure_loops(router, tasks[: options.loops]),
            "budgets": measure_budgets(router, tasks, ordinary),
            "where": environment(),
        }
    publish("thinking_control", figures, options.out)


if __name__ == "__main__":
    main()
