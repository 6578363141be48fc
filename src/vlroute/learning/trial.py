"""Trials of a router on drawn tasks: each task is answered in both modes and as the router decides."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vlroute.pocket.tasks import LANGUAGES, LEVELS, TASKS, Task, draw_task
from vlroute.router import Router
from vlroute.types import Answer, Mode

#: Appended to prompts for larger models, which answer in sentences; the pocket pair was trained on bare answers.
BARE = {"en": " Reply with the result only.", "zh": "只回答结果。"}


@dataclass(frozen=True, slots=True)
class Trial:
    """A task and its answers.

    Attributes:
        task: The drawn task.
        instruct: Answer of Instruct.
        thinking: Answer of Thinking.
        routed: Answer in the mode that the router chose; None if it was not asked for.
    """

    task: Task
    instruct: Answer
    thinking: Answer
    routed: Answer | None = None

    def right(self, answer: Answer) -> bool:
        """Check an answer.

        Args:
            answer: One of the answers.

        Returns:
            Whether it is right.
        """
        return is_right(self.task, answer.text)


def is_right(task: Task, text: str) -> bool:
    """Check the answer to a task. Spaces, punctuation and case do not matter.

    Args:
        task: The task.
        text: The answer.

    Returns:
        Whether it is right.
    """
    return plain(text) == plain(task.answer)


def plain(text: str) -> str:
    """Return a text without spaces, punctuation and case.

    Args:
        text: The text.

    Returns:
        Its letters and digits.
    """
    return re.sub(r"[\W_]+", "", text).casefold()


def media(task: Task) -> dict[str, Any]:
    """Return the picture or video of a task as arguments of `Router.ask` and `Router.decide`.

    Args:
        task: The task.

    Returns:
        `images`, or `videos` with the frames, one per second.
    """
    if task.is_video:
        return {"videos": (task.frames, range(len(task.frames)))}
    return {"images": task.frames[0]}


def ask_task(router: Router, task: Task, mode: Mode | None = None, bare: bool = False) -> Answer:
    """Ask a router to solve a task. Its caches are emptied first, so the seconds are those of a new picture.

    Args:
        router: The router.
        task: The task.
        mode: Mode that answers; None lets the router decide.
        bare: Ask for the result only.

    Returns:
        The answer.
    """
    router.forget()
    return router.ask(task.prompt + (BARE[task.language] if bare else ""), **media(task), mode=mode)


def draw_evenly(count: int, seed: int | str, hidden: bool = False) -> Iterator[Task]:
    """Draw tasks: equally many of each kind and level, languages in turn, in random order.

    Args:
        count: Number of tasks.
        seed: Equal seeds give equal tasks.
        hidden: Give every task a severity, a difficulty that its caption does not show: uniformly from 0 to 1, in equal
            strata within each kind and level. By default all pictures are clean.

    Yields:
        The tasks.
    """
    rng = random.Random(f"vlroute {seed}")
    cells = [(kind, level) for level in LEVELS for kind in TASKS]
    plan: list[tuple[str, str, float | None]] = []
    for i in range(count):
        stratum, cell = divmod(i, len(cells))
        strata = len(range(cell, count, len(cells)))
        plan.append((*cells[cell], (stratum + rng.random()) / strata if hidden else None))
    rng.shuffle(plan)
    for i, (kind, level, severity) in enumerate(plan):
        yield draw_task(rng, kind, level, LANGUAGES[i % len(LANGUAGES)], severity)


def run_trials(router: Router, tasks: Iterator[Task], routed: bool = True, bare: bool = False) -> Iterator[Trial]:
    """Answer each task in both modes and, if asked for, as the router decides.

    Args:
        router: The router; it is loaded first.
        tasks: The tasks.
        routed: Whether to answer as the router decides, too.
        bare: Ask for the result only.

    Yields:
        One trial per task.
    """
    router.load()
    for task in tasks:
        chosen = ask_task(router, task, bare=bare) if routed else None
        yield Trial(task, ask_task(router, task, "instruct", bare), ask_task(router, task, "thinking", bare), chosen)
