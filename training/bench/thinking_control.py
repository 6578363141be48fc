"""Measure thinking under control: `python -m training.bench.thinking_control`

Answers within a limit of tokens, rescued answers, loops, false alarms, automatic budgets and early exits of the pocket
pair. Takes half an hour on two cores.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.bench.servers import vlroute_server
from training.page import argument_parser, environment, publish, step
from vlroute import Answer, Endpoint, Router
from vlroute.decision.latency import LatencyModel
from vlroute.learning import draw_evenly, is_right
from vlroute.pocket import Task
from vlroute.types import Decision, Mode

#: Periods of the loops that a bias of the logits makes.
PERIODS = (1, 2, 3, 5, 8, 13, 21)
#: The limit of tokens is this percentile of the lengths of ordinary thoughts.
PERCENTILE = 70
#: Enough to see that a loop is not closed in time: the answer that follows loops, too.
MOST_LOOPING = 200
#: A limit too small to close a thought, so that Instruct answers.
FEW = 3
#: Values of `early_exit`.
CONFIDENCES = (0.5, 0.9, 0.99, 0.999)
PRICES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CLIENTS = 8
RESAMPLES = 10_000
Shares = NDArray[np.float64]


def request(task: Task, seed: int, **settings: Any) -> dict[str, Any]:
    name = "images" if len(task.frames) == 1 else "videos"
    media = task.frames[0] if len(task.frames) == 1 else [*task.frames]
    return {"prompt": task.prompt, name: media, "seed": seed, **settings}


def ask_all(router: Router, tasks: Sequence[Task], what: str, **settings: Any) -> list[Answer]:
    step(what)
    return router.ask_many([request(task, i, **settings) for i, task in enumerate(tasks)])


def right(tasks: Sequence[Task], answers: Sequence[Answer]) -> Shares:
    return np.array([is_right(task, answer.text) for task, answer in zip(tasks, answers, strict=True)], float)


def shorter(ours: Sequence[Answer], theirs: Sequence[Answer]) -> NDArray[np.bool_]:
    """Which thoughts are shorter than those of `theirs`."""
    pairs = zip(ours, theirs, strict=True)
    return np.array([one.usage.thinking_tokens < other.usage.thinking_tokens for one, other in pairs])


def difference(ours: Shares, theirs: Shares, unit: float = 1.0) -> dict[str, float]:
    """Mean paired difference, multiplied by `unit`, with the ends of its 95 % bootstrap interval."""
    rng, each = np.random.default_rng(0), unit * (ours - theirs)
    means = [each[rng.integers(len(each), size=len(each))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(each.mean()), "low": float(low), "high": float(high)}


def beside(correct: Shares, others: dict[str, Shares], some: NDArray[np.bool_]) -> dict[str, Any]:
    """Accuracy of some requests, with that of other ways to answer the same requests."""
    if not some.any():
        return {"count": 0}
    means = {name: float(theirs[some].mean()) for name, theirs in others.items()}
    differs = difference(correct[some], others["instruct"][some], 100.0)
    return {"count": int(some.sum()), "right": float(correct[some].mean()), **means, "difference": differs}


def measure_limit(
    router: Router, tasks: Sequence[Task], ordinary: Sequence[Answer], instruct: Sequence[Answer], most: int
) -> list[dict[str, Any]]:
    """Requests for Thinking with a maximum number of tokens, with and without a reserve for the answer."""
    found = []
    others = {"instruct": right(tasks, instruct), "unlimited": right(tasks, ordinary)}
    for limit, settings in ((most, {}), (most, {"answer_reserve": 0}), (FEW, {})):
        name = "0" if settings else "default"
        what = f"limit of {limit} tokens, reserve {name}"
        answers = ask_all(router, tasks, what, mode="thinking", max_new_tokens=limit, **settings)
        rescued = np.array([answer.decision.rescued for answer in answers])
        correct = right(tasks, answers)
        found.append({
            "reserve": name,
            "limit": limit,
            "empty": sum(not answer.text for answer in answers),
            "above": sum(answer.usage.completion_tokens > limit for answer in answers),
            "right": float(correct.mean()),
            "closed": beside(correct, others, shorter(answers, ordinary) & ~rescued),
            "rescued": beside(correct, others, rescued),
        })  # fmt: skip
    return found


def measure_rescue(router: Router, tasks: Sequence[Task], most: int) -> dict[str, Any]:
    """Answers of endpoints whose Thinking server keeps no tokens for the answer and takes no budget."""
    step(f"endpoints: {len(tasks)} requests, limit of {most} tokens")
    with vlroute_server() as (server, _):
        url = f"{server}/v1"
        thinking = Endpoint(url, "thinking", extra_body={"vlroute": {"answer_reserve": 0}})
        with Router.from_endpoints((url, "instruct"), thinking) as there, ThreadPoolExecutor(CLIENTS) as pool:

            def ask(mode: Mode, **settings: Any) -> list[Answer]:
                def one(i: int) -> Answer:
                    return there.ask(**request(tasks[i], i, mode=mode, **settings))

                return [*pool.map(one, range(len(tasks)))]

            answers, unlimited, instruct = ask("thinking", max_new_tokens=most), ask("thinking"), ask("instruct")
    rescued = np.array([answer.decision.rescued for answer in answers])
    others = {"instruct": right(tasks, instruct), "unlimited": right(tasks, unlimited)}
    return {
        "requests": len(tasks),
        "limit": most,
        "empty": sum(not answer.text for answer in answers),
        "above": sum(answer.usage.completion_tokens > most for answer in answers),
        "right": float(right(tasks, answers).mean()),
        "rescued": beside(right(tasks, answers), others, rescued),
        "same": sum(ours.text == theirs.text for ours, theirs in zip(answers, instruct, strict=True)
                    if ours.decision.rescued),
    }  # fmt: skip


def measure_loops(router: Router, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """How many tokens after their first full repeat loops are closed, for each period."""
    tokenizer = router.pair.thinking.tokenizer
    found = []
    for period in PERIODS:
        requests = []
        for i, task in enumerate(tasks):
            words = [*dict.fromkeys(tokenizer(task.transcript + task.thinking, add_special_tokens=False)["input_ids"])]
            chance = random.Random(f"{period} {i}")
            ids = chance.sample(words, period) if len(words) >= period else chance.sample(range(300, 900), period)
            bias = {(ids[0],): 50.0} | {(ids[k], ids[(k + 1) % period]): 500.0 for k in range(period)}
            requests.append(request(task, i, mode="thinking", sequence_bias=bias, max_new_tokens=MOST_LOOPING))
        step(f"loops of period {period}")
        answers = router.ask_many(requests)
        delays = [answer.usage.thinking_tokens - 2 * period for answer in answers]
        found.append({
            "period": period, "loops": len(delays), "answered": sum(bool(answer.text) for answer in answers),
            "within": sum(one <= 64 for one in delays), "median": float(np.median(delays)), "longest": max(delays),
        })  # fmt: skip
    return found


def measure_budgets(
    router: Router,
    tasks: Sequence[Task],
    decisions: dict[float, list[Decision]],
    latency: LatencyModel,
    ordinary: Sequence[Answer],
    instruct: Sequence[Answer],
) -> list[dict[str, Any]]:
    """Answers with automatic budgets and without budgets at several prices: all in Thinking, and routed.

    The budgets are those of the decisions, which were made before the speed of this machine was measured: the seconds
    of one request at a time, not those of the batches here. A request whose thought is within its budget is not asked
    again, because its answer is the same.
    """

    def seconds(answers: Sequence[Answer]) -> Shares:
        """Of each answer alone."""
        return np.array([
            latency.expected(answer.decision.mode, answer.usage.completion_tokens) for answer in answers
        ])  # fmt: skip

    def compared(ours: Sequence[Answer], plain: Sequence[Answer]) -> dict[str, Any]:
        return {
            "closed": beside(right(tasks, ours), others, shorter(ours, plain)),
            "right": float(right(tasks, ours).mean()),
            "plain": float(right(tasks, plain).mean()),
            "seconds": float(seconds(ours).mean()),
            "plain_seconds": float(seconds(plain).mean()),
            "difference": difference(right(tasks, ours), right(tasks, plain), 100.0),
            "seconds_difference": difference(seconds(ours), seconds(plain)),
        }

    found = []
    others = {"instruct": right(tasks, instruct), "unlimited": right(tasks, ordinary)}
    for price, decided in decisions.items():
        budgets = [decision.thinking_budget for decision in decided]
        longer = [i for i, answer in enumerate(ordinary) if answer.usage.thinking_tokens > (budgets[i] or 0)]
        step(f"automatic budgets at the price {price:g}: {len(longer)} requests")
        ours = [*ordinary]
        for i, answer in zip(longer, router.ask_many([
            request(tasks[i], i, mode="thinking", thinking_budget=budgets[i]) for i in longer
        ]), strict=True):  # fmt: skip
            ours[i] = answer
        thinks = [decision.mode == "thinking" for decision in decided]
        routed, plain = (
            [one if think else direct for think, one, direct in zip(thinks, some, instruct, strict=True)]
            for some in (ours, ordinary)
        )
        found.append({
            "price": price, "thinks": sum(thinks), "all": compared(ours, ordinary), "routed": compared(routed, plain),
        })  # fmt: skip
    return found


def measure_early_exits(
    router: Router, tasks: Sequence[Task], ordinary: Sequence[Answer], instruct: Sequence[Answer]
) -> list[dict[str, Any]]:
    """Thoughts that end when their answer no longer changes. One request at a time; the settings take turns."""
    step(f"early exits: {len(tasks)} tasks, one request at a time")
    settings: list[dict[str, Any]] = [{}, *({"early_exit": one} for one in CONFIDENCES)]
    answers: list[list[Answer]] = [[] for _ in settings]
    for i, task in enumerate(tasks):
        for turn in range(len(settings)):
            one = (i + turn) % len(settings)
            router.cache.clear()  # the first of them would be the only one to encode the picture
            router.prefixes.clear()
            answers[one].append(router.ask(**request(task, i, mode="thinking", **settings[one])))
    plain, *others = answers

    def seconds(some: Sequence[Answer]) -> Shares:
        return np.array([answer.timing.total for answer in some])

    found = []
    beside_them = {"instruct": right(tasks, instruct), "unlimited": right(tasks, ordinary)}
    for confidence, ours in zip(CONFIDENCES, others, strict=True):
        early = np.array([answer.closed == "early" for answer in ours])
        found.append({
            "confidence": confidence,
            "early": beside(right(tasks, ours), beside_them, early),
            "right": float(right(tasks, ours).mean()),
            "plain": float(right(tasks, plain).mean()),
            "difference": difference(right(tasks, ours), right(tasks, plain), 100.0),
            "tokens": float(np.mean([answer.usage.completion_tokens for answer in ours])),
            "plain_tokens": float(np.mean([answer.usage.completion_tokens for answer in plain])),
            "seconds": float(seconds(ours).mean()),
            "plain_seconds": float(seconds(plain).mean()),
            "seconds_difference": difference(seconds(ours), seconds(plain)),
        })  # fmt: skip
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--loops", type=int, default=60, help="tasks for each period of loops")
    parser.add_argument("--remote", type=int, default=400, help="tasks for endpoints")
    parser.add_argument("--only-early-exits", action="store_true", help="keep the other figures of the latest run")
    options = parser.parse_args()
    where = environment()
    tasks = [*draw_evenly(options.tasks, "thinking control", hidden=True)]
    if options.only_early_exits:
        figures = json.loads((options.out / "thinking_control.json").read_text("utf-8"))
        with Router.from_pretrained() as router:
            ordinary, instruct = (ask_all(router, tasks, mode, mode=mode) for mode in ("thinking", "instruct"))
            exits = {"early_exits": measure_early_exits(router, tasks, ordinary, instruct), "where_exits": where}
        publish("thinking_control", {**figures, **exits}, options.out)
        return
    with Router.from_pretrained() as router:
        router.load()
        latency = LatencyModel.from_dict(router.selector.latency.to_dict())
        decisions = {price: [router.decide(one.prompt, caption=one.caption, price=price) for one in tasks]
                     for price in PRICES}  # fmt: skip
        ordinary = ask_all(router, tasks, "ordinary thoughts, loops not closed", mode="thinking", close_loops=False)
        closed = ask_all(router, tasks, "ordinary thoughts, loops closed", mode="thinking")
        instruct = ask_all(router, tasks, "Instruct", mode="instruct")
        most = int(np.percentile([answer.usage.thinking_tokens for answer in ordinary], PERCENTILE))
        changed = [whole.finish_reason for whole, ours in zip(ordinary, closed, strict=True)
                   if whole.thinking != ours.thinking]  # fmt: skip
        figures = {
            "tasks": len(tasks),
            "percentile": PERCENTILE,
            "few": FEW,
            "alarms": changed.count("stop"),
            "endless": len(changed) - changed.count("stop"),
            "instruct": float(right(tasks, instruct).mean()),
            "thinking": float(right(tasks, ordinary).mean()),
            "limits": measure_limit(router, tasks, ordinary, instruct, most),
            "loops": measure_loops(router, tasks[: options.loops]),
            "budgets": measure_budgets(router, tasks, decisions, latency, ordinary, instruct),
            "early_exits": measure_early_exits(router, tasks, ordinary, instruct),
            "where_exits": where,
            "per_token": latency.seconds_per_token("thinking"),
            "rescue": measure_rescue(router, [one for one in tasks if not one.is_video][: options.remote], most),
            "where": where,
        }
    publish("thinking_control", figures, options.out)


if __name__ == "__main__":
    main()
