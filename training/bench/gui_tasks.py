"""Compare the ways to use tools: `python -m training.bench.gui_tasks`

GUI tasks of the pocket world with the tools `tap` and `read`: in this process, over each API of a server with the
official clients, and with plain transformers. Takes 20 minutes on two cores; `--model pocket` takes half of it.
"""

from __future__ import annotations

import json
import random
import runpy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from transformers.utils import logging

from training.bench.servers import vlroute_server
from training.page import POCKET, POCKET_HYBRID, ROOT, argument_parser, environment, figures, publish
from vlroute import Router
from vlroute.pocket.screens import ScreenTask, draw_screen_task
from vlroute.types import MODES, Mode

#: The programs that solve the tasks.
PLAIN = runpy.run_path(str(ROOT / "examples" / "gui_tools.py"))
ROUTED = runpy.run_path(str(ROOT / "examples" / "router_tools.py"))
IN_PROCESS = "`router.ask`"
#: Ways to ask a server, by their names in `examples/router_tools.py`.
APIS = {
    "chat": "`/v1/chat/completions`",
    "responses": "`/v1/responses`",
    "stored-responses": "`/v1/responses` with `previous_response_id`",
    "messages": "`/v1/messages`",
}
MODELS = {"pocket": POCKET, "pocket-hybrid": POCKET_HYBRID}
#: Tasks that are solved at the same time. In float32, an answer does not depend on others in its batch.
CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """How one task was solved.

    Attributes:
        calls: Name and arguments of each call.
        results: The result of each call.
        text: The answer.
        modes: The mode of each step.
    """

    calls: list[tuple[str, Any]]
    results: list[str]
    text: str
    modes: list[str]

    def same(self, other: Run) -> bool:
        """Whether calls, results and answer are equal."""
        return (self.calls, self.results, self.text) == (other.calls, other.results, other.text)


Solve = Callable[[ScreenTask], Run]


def with_plain_transformers(model: Path, mode: Mode) -> Solve:
    """`examples/gui_tools.py`: chat template, `generate`, and a regular expression for calls."""
    if (model / mode).exists():
        write = PLAIN["load"](model / mode)
    else:
        write = PLAIN["load"](model, enable_thinking=mode == "thinking")

    def solve(task: ScreenTask) -> Run:
        conversation: list[dict[str, Any]] = []

        def recorded(messages: list[dict[str, Any]]) -> str:
            conversation[:] = messages
            return str(write(messages))

        text = PLAIN["solve"](task, recorded)
        functions = [call["function"] for message in conversation for call in message.get("tool_calls", ())]
        results = [message["content"] for message in conversation if message["role"] == "tool"]
        return Run([(one["name"], one["arguments"]) for one in functions], results, text, [mode] * (len(functions) + 1))

    return solve


def with_vlroute(ask: Any) -> Solve:
    """`examples/router_tools.py`. `ask`: one of its ways to ask."""

    def solve(task: ScreenTask) -> Run:
        steps = ROUTED["solve"](task, ask)
        calls = [(call.name, json.loads(call.arguments)) for step in steps for call in step.calls]
        results = [result for step in steps for result in step.results]
        return Run(calls, results, "" if steps[-1].calls else steps[-1].text, [step.mode for step in steps])

    return solve


@contextmanager
def ways_to_ask(name: str) -> Iterator[dict[str, Callable[[str], Solve]]]:
    """Each way to ask vlroute by its name: a function of the mode. The server runs until the block ends."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Router.from_pretrained(name) as router,
        vlroute_server("--model", name, "--store", str(Path(folder) / "answers.db")) as (url, _),
    ):
        router.load()

        def through(api: str) -> Callable[[str], Solve]:
            return lambda mode: with_vlroute(ROUTED["APIS"][api](url, mode))

        in_process = lambda mode: with_vlroute(ROUTED["with_router"](router, mode))  # noqa: E731
        yield {IN_PROCESS: in_process, **{title: through(api) for api, title in APIS.items()}}


def measure(name: str, tasks: Sequence[ScreenTask], progress: Progress) -> dict[str, Any]:
    """Solve the tasks in every way with one model."""
    bar = progress.add_task(name, total=(2 * len(MODES) + 1 + 2 * len(APIS)) * len(tasks))

    def solve_all(solve: Solve, clients: int = CLIENTS) -> list[Run]:
        def one(task: ScreenTask) -> Run:
            run = solve(task)
            progress.advance(bar)
            return run

        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(one, tasks))

    plain = {mode: solve_all(with_plain_transformers(MODELS[name], mode), clients=1) for mode in MODES}
    ways = []
    with ways_to_ask(name) as found:
        for title, way in found.items():
            modes = [*MODES, "auto"] if title == IN_PROCESS else ["thinking", "auto"]
            runs = {mode: solve_all(way(mode)) for mode in modes}
            ways.append({
                "way": title,
                "same": {mode: sum(map(Run.same, runs[mode], plain[mode])) for mode in MODES if mode in runs},
                "solved": {mode: count_solved(tasks, runs[mode]) for mode in runs},
                "steps": sum(len(run.modes) for run in runs["auto"]),
                "thinking_steps": sum(run.modes.count("thinking") for run in runs["auto"]),
            })  # fmt: skip
    return {
        "model": name,
        "tasks": len(tasks),
        "clients": CLIENTS,
        "plain": {mode: count_solved(tasks, plain[mode]) for mode in MODES},
        "calls": sum(len(run.calls) for run in plain["thinking"]),
        "ways": ways,
    }


def count_solved(tasks: Sequence[ScreenTask], runs: Sequence[Run]) -> int:
    return sum(run.text == task.answer for task, run in zip(tasks, runs, strict=True))


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--model", choices=MODELS, action="append", help="all by default; others keep their figures")
    options = parser.parse_args()
    where = environment("openai", "anthropic")
    logging.disable_progress_bar()  # those of loading disturb that of the tasks
    rng = random.Random("GUI tasks")
    tasks = [draw_screen_task(rng, steps=2 + i % 3) for i in range(options.tasks)]
    found = {one["model"]: one for one in figures("gui_tasks", options.out).get("models", ())}
    with Progress() as progress:
        for name in options.model or MODELS:
            found[name] = {**measure(name, tasks, progress), "where": where}
            publish("gui_tasks", {"models": [found[model] for model in MODELS if model in found]}, options.out)


if __name__ == "__main__":
    main()
