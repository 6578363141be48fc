"""`vlroute demo`: new pictures, answers of both modes, and the results with and without routing.

The pictures have hidden difficulty. Of one picture that only Thinking answers correctly, and of one that only Instruct
does, both answers are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from vlroute.decision.wilson import share_interval
from vlroute.learning.trial import Trial, draw_evenly, run_trials
from vlroute.pocket.tasks import LEVELS, TASKS
from vlroute.router import Router
from vlroute.types import Answer, judged_mode

MORE = 108  # pictures to search for the cases that the first pictures lack


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way to choose the answer of a trial; one row of a table."""

    name: str
    choose: Callable[[Trial], Answer]


def _routed(trial: Trial) -> Answer:
    if trial.routed is None:
        raise ValueError("this trial was run without routing")
    return trial.routed


def _oracle(trial: Trial) -> Answer:
    """The cheaper of the right answers; that of Instruct if none is right."""
    return trial.thinking if trial.right(trial.thinking) and not trial.right(trial.instruct) else trial.instruct


STRATEGIES = (
    Strategy("always instruct", lambda trial: trial.instruct),
    Strategy("always thinking", lambda trial: trial.thinking),
    Strategy("routed", _routed),
    Strategy("oracle", _oracle),
)


def summary(trials: list[Trial]) -> Table:
    """Accuracy with its 95 % interval, mean seconds and share of Thinking for each strategy."""
    table = Table(
        title=f"{len(trials)} new pictures",
        caption="interval: 95 %, for the sampling of the pictures · seconds: of a whole answer\n"
        "severity: difficulty that the caption does not show, drawn evenly from 0 to 1",
    )
    for column in ("", "accuracy", "interval", "mean seconds", "thinking"):
        table.add_column(column, justify="left" if not column else "right")
    for strategy in STRATEGIES:
        answers = [strategy.choose(trial) for trial in trials]
        right = np.array([trial.right(answer) for trial, answer in zip(trials, answers, strict=True)], dtype=float)
        bounds = share_interval(right)
        seconds = np.mean([answer.timing.total for answer in answers])
        share = np.mean([judged_mode(answer.decision) == "thinking" for answer in answers])
        table.add_row(
            strategy.name,
            f"{right.mean():.1%}",
            f"{bounds[0]:.0%} – {bounds[1]:.0%}" if bounds else "",
            f"{seconds:.2f}",
            f"{share:.0%}",
            style="bold" if strategy.name == "routed" else "",
        )
    return table


def by_task(trials: list[Trial]) -> Table:
    """Accuracy and mean seconds of each strategy by task."""
    table = Table(title="by task: accuracy, mean seconds", caption="thinking: share of pictures routed to Thinking")
    for column in ("task", "pictures", *(strategy.name for strategy in STRATEGIES), "thinking"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for kind in TASKS:
        some = [trial for trial in trials if trial.task.kind == kind]
        if not some:
            continue
        cells = []
        for strategy in STRATEGIES:
            answers = [strategy.choose(trial) for trial in some]
            accuracy = np.mean([trial.right(answer) for trial, answer in zip(some, answers, strict=True)])
            cells.append(f"{accuracy:.0%} {np.mean([answer.timing.total for answer in answers]):.2f}s")
        share = np.mean([judged_mode(_routed(trial).decision) == "thinking" for trial in some])
        table.add_row(kind, str(len(some)), *cells, f"{share:.0%}")
    return table


def shown(trial: Trial, number: int) -> Panel:
    """One routed picture: question, decision with its reason, reasoning, answer, whether it is right, and seconds."""
    answer = _routed(trial)
    decision = answer.decision
    text = _question(trial)
    text.append(
        f"decision   {decision.mode}   p_instruct {decision.p_instruct:.2f}   p_thinking {decision.p_thinking:.2f}   "
        f"gain {decision.gain:+.2f}\n           {decision.reason}\n"
    )
    _append_answer(text, trial, answer, "answer")
    return Panel(text, title=f"{number} · {_about(trial)}", title_align="left")


def compared(trial: Trial, title: str) -> Panel:
    """One picture with the answers of both modes and the decision."""
    decision = _routed(trial).decision
    text = _question(trial)
    for name, answer in (("instruct", trial.instruct), ("thinking", trial.thinking)):
        _append_answer(text, trial, answer, name)
        text.append("\n")
    text.append(f"routed     to {decision.mode}: {decision.reason}")
    # a line each: together they are too long for a terminal of 80 columns
    return Panel(text, title=title, title_align="left", subtitle=_about(trial), subtitle_align="left")


def _about(trial: Trial) -> str:
    severity = trial.task.severity
    return f"{trial.task.kind}, {trial.task.difficulty}" + ("" if severity is None else f", severity {severity:.2f}")


def _question(trial: Trial) -> Text:
    text = Text()
    text.append(f"{trial.task.prompt}\n", style="bold")  # `Text(..., style=...)` would apply to the whole panel
    text.append(f"caption    {_routed(trial).decision.caption}\n", style="dim")
    return text


def _append_answer(text: Text, trial: Trial, answer: Answer, name: str) -> None:
    right = trial.right(answer)
    if answer.thinking:
        text.append(f"thought    {answer.thinking}\n", style="dim")
    text.append(f"{name:10} {answer}   ")
    text.append("right" if right else f"wrong, expected {trial.task.answer}", style="green" if right else "red")
    text.append(f"   {answer.timing.total:.2f} s", style="dim")


def routing_matters(trial: Trial) -> bool:
    """Whether only Thinking is right, and the picture was routed to it."""
    return not trial.right(trial.instruct) and trial.right(trial.thinking) and trial.right(_routed(trial))


def thinking_hurts(trial: Trial) -> bool:
    """Whether only Instruct is right."""
    return trial.right(trial.instruct) and not trial.right(trial.thinking)


#: Kinds of pictures of which the demo compares one.
CASES = (
    ("routing matters: only Thinking is right", routing_matters),
    ("thinking hurts: only Instruct is right", thinking_hurts),
)


def hardest(trials: Iterable[Trial]) -> Trial | None:
    """The picture of the highest level and severity among those that were routed correctly, otherwise among all."""

    def rank(trial: Trial) -> tuple[bool, int, float]:
        return trial.right(_routed(trial)), LEVELS.index(trial.task.level), trial.task.severity or 0.0

    return max(trials, key=rank, default=None)


def print_cases(console: Console, trials: list[Trial], more: Iterator[Trial]) -> None:
    """Print one picture of each of `CASES`: one of `trials`, or, if there is none, the first of `more`."""
    searched: list[Trial] = []  # those of `more` so far
    for title, holds in CASES:
        case = hardest(filter(holds, trials))
        if case is None:
            case = next(filter(holds, searched), None)
        if case is None:
            with console.status(f"drawing more pictures: {title}"):
                for trial in more:
                    searched.append(trial)
                    if holds(trial):
                        case = trial
                        break
        console.print(f"no such picture was found: {title}" if case is None else compared(case, title))


def run_demo(router: Router, pictures: int, show: int, seed: int, bare: bool, console: Console) -> list[Trial]:
    """Run the demo, print it, and return its trials. `bare` asks larger models for the result only."""
    console.print(f"[bold]{router.load().pair}[/bold]")
    trials: list[Trial] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("answering in both modes and with routing", total=pictures)
        for trial in run_trials(router, draw_evenly(pictures, seed, hidden=True), bare=bare):
            trials.append(trial)
            if len(trials) <= show:
                progress.console.print(shown(trial, len(trials)))
            progress.advance(task)
    # larger models would take minutes for these
    more: Iterator[Trial] = iter(()) if bare else run_trials(router, draw_evenly(MORE, "cases", hidden=True))
    print_cases(console, trials, more)
    print_tables(console, trials)
    return trials


def print_tables(console: Console, trials: list[Trial]) -> None:
    """Print accuracy and seconds of all trials together and by task."""
    tables: Iterable[Table] = (summary(trials), by_task(trials))
    for table in tables:
        console.print(table)
