"""One drawn task put to a router: both modes, and what the router itself would do, each really run."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlroute.pocket.tasks import FAMILIES, LANGUAGES, LEVELS, Task, draw_task
from vlroute.router import Router
from vlroute.types import Answer, Mode

#: A larger model answers in sentences unless told not to; the pocket pair was trained on bare answers.
BARE = {"en": " Reply with the result only.", "zh": "只回答结果。"}


@dataclass(frozen=True, slots=True)
class Trial:
    """A task, both single modes' answers, and the routed one (None if it was not asked for)."""

    task: Task
    instruct: Answer
    thinking: Answer
    routed: Answer | None = None

    def right(self, answer: Answer) -> bool:
        """Whether the answer is correct."""
        return is_right(self.task, answer.text)


def is_right(task: Task, text: str) -> bool:
    """Equal to the task's answer, white space and punctuation aside."""
    return _plain(text) == _plain(task.answer)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def media(task: Task) -> dict[str, Any]:
    """The task's picture, or its eight frames one a second, as keyword arguments of `Router.ask` and `decide`."""
    if task.is_video:
        return {"videos": (task.frames, range(len(task.frames)))}
    return {"images": task.frames[0]}


def ask_task(router: Router, task: Task, mode: Mode | None = None, bare: bool = False) -> Answer:
    """Put one task to the router as if its picture were new, so that each answer's seconds hold the whole work.

    `bare` asks for the result only.
    """
    router.forget()
    return router.ask(task.prompt + (BARE[task.language] if bare else ""), **media(task), mode=mode)


def draw_evenly(count: int, seed: int | str) -> Iterator[Task]:
    """`count` fresh tasks: every family and level as often as every other, languages in turn, in mixed order."""
    rng = random.Random(f"vlroute {seed}")
    plan = [(family, level) for level in LEVELS for family in FAMILIES]
    plan = [plan[i % len(plan)] for i in range(count)]
    rng.shuffle(plan)
    for i, (family, level) in enumerate(plan):
        yield draw_task(rng, family, level, LANGUAGES[i % len(LANGUAGES)])


def run_trials(router: Router, tasks: Iterator[Task], routed: bool = True, bare: bool = False) -> Iterator[Trial]:
    """Run each task in both modes and, if `routed`, once more as the router decides."""
    router.load()
    for task in tasks:
        chosen = ask_task(router, task, bare=bare) if routed else None
        yield Trial(task, ask_task(router, task, "instruct", bare), ask_task(router, task, "thinking", bare), chosen)
