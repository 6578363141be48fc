"""Compare other servers with the pair in this process. `python -m training.bench.endpoint_matrix NAME FILE …`

Each FILE names two running servers of the pocket pair, as the page on endpoints describes it. Drawn tasks are sent to
them and to the pair in this process. Takes a few minutes per server on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.progress import track

from training.bench.servers import draw_pictures
from training.bench.thinking_budget import TAGS
from training.page import argument_parser, environment, publish
from vlroute import Answer, InputError, Mode, Router
from vlroute.learning.trial import media
from vlroute.pocket import Task
from vlroute.types import MODES

BUDGETS = (0, 5, 10, 20)
CLIENTS = 4
LONG = "word " * 50_000
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 200}
Ask = Callable[..., list[Answer]]


def asking(router: Router, tasks: Sequence[Task], name: str, clients: int) -> Ask:
    """Returns a function that asks all tasks in one mode."""

    def ask(mode: Mode, **options: Any) -> list[Answer]:
        def one(task: Task) -> Answer:
            return router.ask(task.prompt, **media(task), mode=mode, **options)

        with ThreadPoolExecutor(clients) as pool:
            return [*track(pool.map(one, tasks), f"{name}, {mode}", total=len(tasks))]

    return ask


def greedy(ask: Ask) -> dict[str, list[Answer]]:
    """Greedy answers in both modes, with stop strings, and with a repetition penalty."""
    return {
        **{mode: ask(mode, **GREEDY) for mode in MODES},
        "stopped": ask("thinking", **GREEDY, stop=["1", "a"]),
        "punished": ask("thinking", **GREEDY, repetition_penalty=3.0),
    }


def equal(ones: Sequence[Answer], others: Sequence[Answer]) -> int:
    """Number of answers that are equal, with their thoughts and finish reasons."""
    pairs = zip(ones, others, strict=True)
    return sum((a.text, a.thinking, a.finish_reason) == (b.text, b.thinking, b.finish_reason) for a, b in pairs)


def changed(answers: dict[str, list[Answer]]) -> int:
    """Number of thoughts that the repetition penalty changes."""
    return sum(a.thinking != b.thinking for a, b in zip(answers["punished"], answers["thinking"], strict=True))


def measure(name: str, router: Router, tasks: Sequence[Task], here: dict[str, list[Answer]]) -> dict[str, Any]:
    """A column of the page: what one server did. `here`: greedy answers of the pair in this process."""
    ask = asking(router, tasks, name, CLIENTS)
    there = greedy(ask)
    remote = router.remote
    assert remote is not None
    try:
        raised: str = router.ask(LONG, mode="thinking", max_new_tokens=20, answer_reserve=0).finish_reason
    except (InputError, RuntimeError) as error:
        raised = type(error).__name__
    budgets = {}
    for budget in BUDGETS if remote.endpoints["thinking"].budget_field else ():
        answers = ask("thinking", thinking_budget=budget, max_new_tokens=200)
        budgets[str(budget)] = (
            sum(any(tag in one.text for tag in TAGS) for one in answers),
            sum(not one.text and one.finish_reason == "stop" for one in answers),
            max(one.usage.thinking_tokens for one in answers),
        )
    thoughts = [[one.usage.thinking_tokens for one in answers["thinking"]] for answers in (there, here)]
    return {
        "server": name,
        "equal": {mode: equal(there[mode], here[mode]) for mode in MODES},
        "thought_counted": sum(abs(a - b) <= 3 for a, b in zip(*thoughts, strict=True)),
        "pictures_counted": sum(bool(one.usage.vision_tokens) for one in there["instruct"]),
        "stop_string": equal(there["stopped"], here["stopped"]),
        "penalty": changed(there),
        "too_long": f"{raised}, {remote.breakers['thinking'].state}",
        "budgets": budgets,
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("servers", nargs="+", metavar="NAME FILE")
    parser.add_argument("--tasks", type=int, default=60)
    options = parser.parse_args()
    if len(options.servers) % 2:
        parser.error("each server is a name and a file of endpoints")
    tasks = draw_pictures(options.tasks, "endpoint matrix")
    here = greedy(asking(Router.from_pretrained(), tasks, "in process", 1))
    pairs = zip(options.servers[::2], options.servers[1::2], strict=True)
    columns = [measure(name, Router.from_pretrained(file), tasks, here) for name, file in pairs]
    data = {"tasks": len(tasks), "changed": changed(here), "where": environment(), "columns": columns}
    publish("endpoint_matrix", data, options.out)


if __name__ == "__main__":
    main()
