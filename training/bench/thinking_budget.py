"""Check that answers are complete under short thinking budgets: `python -m training.bench.thinking_budget`

Asks drawn tasks, and a second question about each, under several thinking budgets in four ways: one sequence at a time,
sequences that share forward passes, HTTP, and endpoints. Takes 15 minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
from rich.progress import track

from training.bench.servers import draw_pictures, user_message, vlroute_server
from training.page import argument_parser, environment, publish
from vlroute import Endpoint, Router
from vlroute.learning import is_right
from vlroute.pocket import Task

BUDGETS = (0, 5, 10, 20, None)
TAGS = ("<think>", "</think>")
CLIENTS = 8
AGAIN = {"en": "Are you sure?", "zh": "你确定吗?"}
#: Text, finish reason and number of thinking tokens of an answer.
Result = tuple[str, str, int]
Ask = Callable[[list[dict[str, Any]], dict[str, int]], Result]


def by_router(router: Router) -> Ask:
    def ask(messages: list[dict[str, Any]], limit: dict[str, Any]) -> Result:
        answer = router.ask(messages, mode="thinking", **limit)
        return answer.text, answer.finish_reason, answer.usage.thinking_tokens

    return ask


def by_client(client: openai.OpenAI) -> Ask:
    def ask(messages: list[dict[str, Any]], limit: dict[str, Any]) -> Result:
        request: Any = {"model": "thinking", "messages": messages, "extra_body": limit}
        done = client.chat.completions.create(**request)
        choice, usage = done.choices[0], done.usage
        return choice.message.content or "", choice.finish_reason, usage.completion_tokens_details.reasoning_tokens

    return ask


def measure(way: str, ask: Ask, clients: int, tasks: Sequence[Task], budget: int | None) -> dict[str, Any]:
    """Ask every task and a second question about it; returns a row of the page."""
    limit = {} if budget is None else {"thinking_budget": budget}

    def both(task: Task) -> tuple[Result, Result]:
        messages = [user_message(task.frames, task.prompt)]
        first = ask(messages, limit)
        messages += [{"role": "assistant", "content": first[0]}, {"role": "user", "content": AGAIN[task.language]}]
        return first, ask(messages, limit)

    with ThreadPoolExecutor(clients) as pool:
        turns = [*track(pool.map(both, tasks), f"{way}, budget {budget}", total=len(tasks))]
    results = [result for turn in turns for result in turn]
    return {
        "way": way,
        "budget": budget,
        "answers": len(results),
        "tags": sum(any(tag in text for tag in TAGS) for text, _, _ in results),
        "empty_stop": sum(not text and reason == "stop" for text, reason, _ in results),
        "out_of_tokens": sum(reason == "length" for _, reason, _ in results),
        "right": sum(is_right(task, first[0]) for task, (first, _) in zip(tasks, turns, strict=True)),
        "longest_thought": max(thought for _, _, thought in results),
    }


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    options = parser.parse_args()
    tasks = draw_pictures(options.tasks, "thinking budget")
    with vlroute_server() as (server, _):
        url = f"{server}/v1"
        thinking = Endpoint(url, "thinking", budget_field="thinking_budget")
        ways: list[tuple[str, Ask, int]] = [
            ("in process, `max_num_seqs=1`", by_router(Router.from_pretrained()), 1),
            ("in process, `max_num_seqs=8`", by_router(Router.from_pretrained(max_num_seqs=8)), CLIENTS),
            ("HTTP", by_client(openai.OpenAI(base_url=url, api_key="none", timeout=600)), CLIENTS),
            ("endpoints", by_router(Router.from_endpoints((url, "instruct"), thinking)), CLIENTS),
        ]
        outcomes = [measure(*way, tasks, budget) for way in ways for budget in BUDGETS]
    publish("thinking_budget", {"tasks": len(tasks), "where": environment(), "outcomes": outcomes}, options.out)


if __name__ == "__main__":
    main()
