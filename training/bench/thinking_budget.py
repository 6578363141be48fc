"""Is every answer complete under short thinking budgets? `python -m training.bench.thinking_budget [--tasks 200]`

Asks drawn tasks, and a second question about each, under several thinking budgets in four ways: one sequence at a
time, sequences that share forward passes, HTTP, and endpoints. Counts tags in answers and empty answers that claim to
be complete. Writes thinking_budget.json and thinking_budget.md in docs/benchmarks. Takes 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai
from rich.progress import track

from training.bench.page import PAGES, table, versions
from training.bench.server import serving, user_message
from vlroute import Router
from vlroute.engine.endpoint import Endpoint
from vlroute.files import replace_file
from vlroute.pocket import Task
from vlroute.pocket.trial import draw_evenly, is_right

BUDGETS = (0, 5, 10, 20, None)
TAGS = ("<think>", "</think>")
CLIENTS = 8
AGAIN = {"en": "Are you sure?", "zh": "你确定吗?"}
PAGE = """\
# Complete answers under a thinking budget

Written by `python -m training.bench.thinking_budget` from `thinking_budget.json`.

The pocket pair answers {tasks} drawn tasks in Thinking (videos left out: endpoints take none), each with a second
question about the first answer, so {answers} answers a row. *Tags*: answers that contain `<think>` or `</think>`.
*Empty, stop*: answers without text that claim to be complete. *Out of tokens*: answers with `finish_reason="length"`.
*Right*: first answers that equal the task's. *Longest thought*: in tokens, the closing tag and a line break before it
included.

{rows}

{versions}
"""

#: One answer: text, finish reason, tokens of thinking.
Said = tuple[str, str, int]
Ask = Callable[[list[dict[str, Any]], int | None], Said]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of all tasks under one budget in one way."""

    way: str
    budget: int | None
    answers: int
    tags: int
    empty_stop: int
    out_of_tokens: int
    right: int
    longest_thought: int


def of_router(router: Router) -> Ask:
    """Ask in Python."""

    def ask(messages: list[dict[str, Any]], budget: int | None) -> Said:
        limit: dict[str, Any] = {} if budget is None else {"thinking_budget": budget}
        answer = router.ask(messages, mode="thinking", **limit)
        return answer.text, answer.finish_reason, answer.usage.thinking_tokens

    return ask


def of_client(client: openai.OpenAI) -> Ask:
    """Ask over HTTP."""

    def ask(messages: list[dict[str, Any]], budget: int | None) -> Said:
        limit = {} if budget is None else {"thinking_budget": budget}
        asked: Any = {"model": "thinking", "messages": messages, "extra_body": limit}
        done = client.chat.completions.create(**asked)
        usage: Any = done.usage
        choice = done.choices[0]
        return choice.message.content or "", choice.finish_reason, usage.completion_tokens_details.reasoning_tokens

    return ask


def run(way: str, ask: Ask, clients: int, tasks: Sequence[Task], budget: int | None) -> Outcome:
    """Put every task and a second question about it."""

    def both(task: Task) -> tuple[Said, Said]:
        asked = [user_message(task)]
        first = ask(asked, budget)
        again = [*asked, {"role": "assistant", "content": first[0]}, {"role": "user", "content": AGAIN[task.language]}]
        return first, ask(again, budget)

    name = f"{way}, {'no budget' if budget is None else f'budget {budget}'}"
    with ThreadPoolExecutor(clients) as pool:
        turns = [*track(pool.map(both, tasks), name, total=len(tasks))]
    said = [one for turn in turns for one in turn]
    return Outcome(
        way,
        budget,
        len(said),
        sum(any(tag in text for tag in TAGS) for text, _, _ in said),
        sum(not text and reason == "stop" for text, reason, _ in said),
        sum(reason == "length" for _, reason, _ in said),
        sum(is_right(task, first[0]) for task, (first, _) in zip(tasks, turns, strict=True)),
        max(thought for _, _, thought in said),
    )


def render(tasks: int, outcomes: Sequence[Outcome], where: str) -> str:
    """The page."""
    head = ["way", "budget", "tags", "empty, stop", "out of tokens", "right", "longest thought"]
    rows = [
        [one.way, "none" if one.budget is None else str(one.budget), str(one.tags), str(one.empty_stop),
         str(one.out_of_tokens), str(one.right), str(one.longest_thought)]
        for one in outcomes
    ]  # fmt: skip
    return PAGE.format(tasks=tasks, answers=2 * tasks, rows="\n".join(table(head, rows)), versions=where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--out", type=Path, default=PAGES / "thinking_budget.md", help="where the page goes")
    options = parser.parse_args()
    drawn = draw_evenly(2 * options.tasks, "thinking budget")
    tasks = [task for task in drawn if not task.is_video][: options.tasks]
    with serving() as (port, _):
        url = f"http://127.0.0.1:{port}/v1"
        thinking = Endpoint(url, "thinking", budget_field="thinking_budget")
        ways: list[tuple[str, Ask, int]] = [
            ("in process, `rows=1`", of_router(Router.from_pretrained()), 1),
            ("in process, `rows=8`", of_router(Router.from_pretrained(rows=8)), CLIENTS),
            ("HTTP", of_client(openai.OpenAI(base_url=url, api_key="none", timeout=600)), CLIENTS),
            ("endpoints", of_router(Router.from_endpoints((url, "instruct"), thinking)), CLIENTS),
        ]
        outcomes = [run(*way, tasks, budget) for way in ways for budget in BUDGETS]
    data = {"tasks": len(tasks), "where": versions(), "outcomes": [asdict(one) for one in outcomes]}
    replace_file(options.out.with_suffix(".json"), (json.dumps(data, indent=1) + "\n").encode())
    replace_file(options.out, render(len(tasks), outcomes, versions()).encode())


if __name__ == "__main__":
    main()
