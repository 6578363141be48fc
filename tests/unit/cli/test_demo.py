"""The two cases of the demo, on trials with made-up answers."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from rich.console import Console
from rich.text import Text

from vlroute.cli.demo import compared, hardest, print_cases, routing_matters, thinking_hurts
from vlroute.learning import Trial
from vlroute.pocket import draw_task
from vlroute.types import Answer, Decision, Mode, Timing, Usage

TASK = draw_task(random.Random(0), "ocr", "easy", "en", 0.5)


def trial(instruct: bool, thinking: bool, mode: Mode, level: str = "easy", severity: float = 0.5) -> Trial:
    def answer(right: bool) -> Answer:
        decision = Decision(mode, "prompt", 0.5, 0.5, 0.0, 0.1, 0.2, 0.0, f"made up for {level}", "letters", False)
        text = TASK.answer if right else "?"
        return Answer(text, "", decision, "stop", Usage(10, 1, 1, 0), Timing(0.0, 0.0, 0.0, 0.05, 0.05, 0.1))

    task = replace(TASK, level=level, severity=severity)
    return Trial(task, answer(instruct), answer(thinking), answer(instruct if mode == "instruct" else thinking))


@pytest.mark.parametrize(
    ("instruct", "thinking", "mode", "matters", "hurts"),
    [
        (False, True, "thinking", True, False),
        (False, True, "instruct", False, False),
        (True, False, "instruct", False, True),
        (True, False, "thinking", False, True),
        (True, True, "thinking", False, False),
        (False, False, "thinking", False, False),
    ],
)
def test_cases(instruct: bool, thinking: bool, mode: Mode, matters: bool, hurts: bool) -> None:
    one = trial(instruct, thinking, mode)
    assert (routing_matters(one), thinking_hurts(one)) == (matters, hurts)


def test_a_correctly_routed_picture_comes_first_and_then_the_hardest() -> None:
    wrongly = trial(True, False, "thinking", "hard", 0.9)
    easy, medium, medium_too = (
        trial(True, False, "instruct", level, severity)
        for level, severity in (("easy", 0.9), ("medium", 0.3), ("medium", 0.4))
    )
    assert hardest([wrongly, easy, medium_too, medium]) is medium_too
    assert hardest([wrongly]) is wrongly
    assert hardest([]) is None


def printed(trials: list[Trial], more: Iterator[Trial]) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_cases(console, trials, more)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_more_pictures_are_drawn_only_for_a_case_that_is_missing() -> None:
    matters, hurts = trial(False, True, "thinking", "hard"), trial(True, False, "instruct", "hard")
    more = iter([matters, hurts, trial(True, True, "instruct")])
    shown = printed([matters], more)
    assert "routing matters" in shown
    assert "thinking hurts" in shown
    assert len(list(more)) == 1
    assert printed([matters, hurts], more).count("made up for hard") == 2


def test_pictures_searched_for_the_first_case_serve_the_second() -> None:
    matters, hurts = trial(False, True, "thinking", "hard"), trial(True, False, "instruct", "hard")
    more = iter([hurts, matters, trial(True, True, "instruct")])
    assert "no such picture" not in printed([], more)
    assert len(list(more)) == 1


def test_only_the_question_is_bold() -> None:
    text = compared(trial(True, False, "instruct"), "title").renderable
    assert isinstance(text, Text)
    assert text.style == ""
    assert [text.plain[span.start : span.end] for span in text.spans if span.style == "bold"] == [f"{TASK.prompt}\n"]


def test_missing_cases_are_stated() -> None:
    assert printed([trial(True, True, "instruct")], iter(())).count("no such picture") == 2
