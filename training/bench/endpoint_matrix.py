"""Checks vlroute over different servers. `python -m training.bench.endpoint_matrix NAME FILE [NAME FILE ...]`

Each FILE names two running servers of the pocket pair, as docs/endpoints.md describes it. Drawn tasks are sent to
them and to the pair in this process. Writes endpoint_matrix.json and endpoint_matrix.md in docs/benchmarks. Takes a
few minutes per server on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from training.bench.page import PAGES, table, versions
from vlroute import Answer, Router
from vlroute.errors import InputError
from vlroute.files import replace_file
from vlroute.modes import MODES, Mode
from vlroute.pocket import Task
from vlroute.pocket.trial import draw_evenly, media

BUDGETS = (0, 5, 10, 20)
TAGS = ("<think>", "</think>")
CLIENTS = 4
LONG = "word " * 50_000
PAGE = """\
# Servers behind endpoints

Written by `python -m training.bench.endpoint_matrix` from `endpoint_matrix.json`.

{tasks} drawn tasks for the pocket pair, with pictures, sent to each server and to the pair in this process.

{rows}

*Equal*: greedy answers, reasoning included, that are equal to those of the pair in this process. *Thought counted*:
greedy answers in Thinking whose number of reasoning tokens differs from the pair's by at most 3. *Pictures counted*:
answers with a number of picture tokens. *Stop string*: answers that are cut at a stop string at the same position as
the pair's. *Penalty*: answers whose reasoning changes under a repetition penalty of 3; for the pair in this process,
{changed}. *Too long*: the error for a prompt of 50 000 words, and the state of the breaker afterwards. *Budget*: of
{tasks} sampled answers in Thinking each, the number that contain a tag, the number without text that claim to be
complete, and the longest reasoning in tokens.

{versions}
"""


@dataclass(frozen=True, slots=True)
class Column:
    """What one server did."""

    server: str
    equal: dict[str, int]
    thought_counted: int
    pictures_counted: int
    stop_string: int
    penalty: int
    too_long: str
    budgets: dict[str, tuple[int, int, int]]
    """Tags in answers, empty answers with "stop", tokens of the longest thought; None if the server takes no budget."""


Ask = Callable[..., list[Answer]]


def asking(router: Router, tasks: Sequence[Task], name: str, clients: int) -> Ask:
    """Put all tasks in one mode."""

    def ask(mode: Mode, **options: Any) -> list[Answer]:
        def one(task: Task) -> Answer:
            return router.ask(task.prompt, **media(task), mode=mode, **options)

        with ThreadPoolExecutor(clients) as pool:
            return [*track(pool.map(one, tasks), f"{name}, {mode}", total=len(tasks))]

    return ask


def said(answers: Sequence[Answer]) -> list[tuple[str, str, str]]:
    """What must be equal."""
    return [(one.text, one.thinking, one.finish_reason) for one in answers]


def same(ones: Sequence[Any], others: Sequence[Any]) -> int:
    """How many are equal."""
    return sum(one == other for one, other in zip(ones, others, strict=True))


GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 200}


def take(name: str, router: Router, tasks: Sequence[Task], here: dict[str, list[Answer]]) -> Column:
    """Everything, for one server."""
    ask = asking(router, tasks, name, CLIENTS)
    greedy = {mode: ask(mode, **GREEDY) for mode in MODES}
    thoughts = [
        (one.usage.thinking_tokens, other.usage.thinking_tokens)
        for one, other in zip(greedy["thinking"], here["thinking"], strict=True)
    ]
    stopped = ask("thinking", **GREEDY, stop=["1", "a"])
    punished = ask("thinking", **GREEDY, repetition_penalty=3.0)
    remote = router.remote
    assert remote is not None
    try:
        raised: str = router.ask(LONG, mode="thinking", max_new_tokens=20).finish_reason
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
    return Column(
        name,
        {mode: same(said(greedy[mode]), said(here[mode])) for mode in MODES},
        sum(abs(one - other) <= 3 for one, other in thoughts),
        sum(bool(one.usage.vision_tokens) for one in greedy["instruct"]),
        same(said(stopped), said(here["stopped"])),
        len(tasks) - same([one.thinking for one in punished], [one.thinking for one in greedy["thinking"]]),
        f"{raised}, {remote.breakers['thinking'].state}",
        budgets,
    )


def render(tasks: int, changed: int, columns: Sequence[Column], where: str) -> str:
    """The page."""
    rows = [
        ["equal, Instruct", *(str(one.equal["instruct"]) for one in columns)],
        ["equal, Thinking", *(str(one.equal["thinking"]) for one in columns)],
        ["thought counted", *(str(one.thought_counted) for one in columns)],
        ["pictures counted", *(str(one.pictures_counted) for one in columns)],
        ["stop string", *(str(one.stop_string) for one in columns)],
        ["penalty", *(str(one.penalty) for one in columns)],
        ["too long", *(one.too_long for one in columns)],
        *(
            [f"budget {budget}", *(" / ".join(map(str, one.budgets.get(str(budget), ["–"]))) for one in columns)]
            for budget in BUDGETS
        ),
    ]
    lines = "\n".join(table(["", *(one.server for one in columns)], rows))
    return PAGE.format(tasks=tasks, changed=changed, rows=lines, versions=where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="+", metavar="NAME FILE")
    parser.add_argument("--tasks", type=int, default=60)
    parser.add_argument("--out", type=Path, default=PAGES / "endpoint_matrix.md", help="path of the page")
    options = parser.parse_args()
    if len(options.servers) % 2:
        parser.error("each server is a name and a file of endpoints")
    drawn = draw_evenly(2 * options.tasks, "endpoint matrix")
    tasks = [task for task in drawn if not task.is_video][: options.tasks]
    ask = asking(Router.from_pretrained(), tasks, "in process", 1)
    here: dict[str, list[Answer]] = {mode: ask(mode, **GREEDY) for mode in MODES}
    here["stopped"] = ask("thinking", **GREEDY, stop=["1", "a"])
    punished = [one.thinking for one in ask("thinking", **GREEDY, repetition_penalty=3.0)]
    changed = len(tasks) - same(punished, [one.thinking for one in here["thinking"]])
    pairs = zip(options.servers[::2], options.servers[1::2], strict=True)
    columns = [take(name, Router.from_pretrained(file), tasks, here) for name, file in pairs]
    data = {"tasks": len(tasks), "changed": changed, "where": versions(), "columns": [asdict(one) for one in columns]}
    replace_file(options.out.with_suffix(".json"), (json.dumps(data, indent=1) + "\n").encode())
    replace_file(options.out, render(len(tasks), changed, columns, versions()).encode())


if __name__ == "__main__":
    main()
