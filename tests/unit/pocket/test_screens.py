"""Screens to act on: every step can be decided, the steps reach the answer, and wrong calls are told."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlroute.pocket.canvas import LETTERS, Style
from vlroute.pocket.screens import DIFFICULTIES, SCREEN_WORDINGS, TOOLS, App, ScreenTask, conversation, draw_screen_task
from vlroute.pocket.tasks import LANGUAGES

seeds = st.integers(0, 2**32)
difficulties = st.sampled_from(sorted(DIFFICULTIES))
MODES = ("instruct", "thinking")


def drawn(seed: int, difficulty: str) -> ScreenTask:
    return draw_screen_task(random.Random(seed), int(difficulty[0]), deep=difficulty == "3 taps")


def drawn_owners(task: ScreenTask) -> dict[str, str]:
    """The screen of each button, from the glyphs alone: each cell has the screen in its upper left."""
    cells: dict[tuple[int, int], list[str]] = {}
    for glyph in task.glyphs[0]:
        cells.setdefault((int(glyph.x // 24), int(glyph.y // 24)), []).append(glyph.label)
    return {button: screen for screen, button in cells.values()}


def letters(prompt: str) -> list[str]:
    return re.findall(r"[A-Z](?![a-z])", prompt)


@given(seeds, difficulties)
def test_same_seed_same_task(seed: int, difficulty: str) -> None:
    one, two = drawn(seed, difficulty), drawn(seed, difficulty)
    assert (one.prompt, one.steps, one.codes, one.answer) == (two.prompt, two.steps, two.codes, two.answer)
    assert one.picture.tobytes() == two.picture.tobytes()
    assert one.glyphs == two.glyphs


@given(seeds, difficulties)
def test_expected_steps_reach_the_answer(seed: int, difficulty: str) -> None:
    task = drawn(seed, difficulty)
    app = App(task)
    results = [app.call(name, arguments) for name, arguments in task.steps]
    assert " ".join(result for result in results if result.isdigit()) == task.answer
    assert not any(result.startswith("no ") for result in results)
    assert len(task.steps) == (4 if difficulty == "3 taps" else int(difficulty[0]))
    assert len(set(task.codes.values())) == len(task.codes)  # a number tells on which screen it was read


@given(seeds, st.sampled_from(["1 step", "2 steps", "3 steps", "4 steps"]))
def test_each_step_needs_one_look_at_the_picture(seed: int, difficulty: str) -> None:
    """A policy that sees goal, history and picture, and looks up one owner a step, makes the expected calls."""
    task = drawn(seed, difficulty)
    owner, named = drawn_owners(task), letters(task.prompt)
    start, goals = (named[0], named[1:]) if named else ("", [])
    for done, (name, arguments) in enumerate(task.steps):
        results = [
            message["content"] for message in conversation(task, done, "instruct")[0] if message["role"] == "tool"
        ]
        here = next((result.split()[1] for result in reversed(results) if not result.isdigit()), start)
        left = goals[sum(result.isdigit() for result in results) :]
        if not left or here == left[0]:
            assert name == "read"
        else:
            button = left[0] if owner[left[0]] == here else owner[left[0]]
            assert (name, arguments) == ("tap", {"button": button})


@given(seeds, difficulties)
def test_thoughts_follow_the_picture(seed: int, difficulty: str) -> None:
    task = drawn(seed, difficulty)
    owner, app = drawn_owners(task), App(task)
    assert len(task.thoughts) == len(task.steps) + 1
    for (name, arguments), thought in zip(task.steps, task.thoughts, strict=False):
        if name == "read":
            assert thought == "read"
        else:
            chain = thought.split("<")
            assert [owner[button] for button in chain[:-1]] == chain[1:]
            assert chain[-2:] == [arguments["button"], app.screen]
        app.call(name, arguments)


@given(seeds, difficulties, st.sampled_from(MODES), st.booleans())
def test_conversations(seed: int, difficulty: str, mode: str, keep_thoughts: bool) -> None:
    task = drawn(seed, difficulty)
    for upto in range(len(task.steps) + 1):
        messages, target = conversation(task, upto, mode, keep_thoughts)
        assert [message["role"] for message in messages] == ["user", *["assistant", "tool"] * upto]
        thoughts = [message.get("reasoning_content") for message in messages[1::2]]
        assert thoughts == ([*task.thoughts[:upto]] if mode == "thinking" and keep_thoughts else [None] * upto)
        thought, end, text = target.rpartition("\n</think>\n\n")
        assert (thought, bool(end)) == ((task.thoughts[upto], True) if mode == "thinking" else ("", False))
        if upto == len(task.steps):
            assert text == task.answer
        else:
            call = json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
            assert (call["name"], call["arguments"]) == task.steps[upto]


@given(seeds, difficulties)
def test_wrong_calls_are_told_and_change_nothing(seed: int, difficulty: str) -> None:
    task = drawn(seed, difficulty)
    app = App(task)
    here = next((screen[1:] for screen in task.screens if screen[0] == task.start), "")
    for letter in set(LETTERS) - set(here):
        assert app.call("tap", {"button": letter}) == f"no button {letter} here"
    for arguments in ({}, {"button": ""}, {"button": here + "?"}, {"button": 3}, {"button": ["B"]}):
        assert app.call("tap", arguments).startswith("no button ")
    assert app.call("swipe", {}) == "no tool swipe"
    assert app.screen == task.start
    assert app.call("read", {}) == task.codes[task.start]


def test_a_screen_without_drawn_buttons_has_none() -> None:
    task = next(task for seed in range(99) if len((task := drawn(seed, "2 steps")).screens) == 1)
    app = App(task)
    assert app.call(*task.steps[0]) == f"screen {app.screen}"
    assert app.call("tap", {"button": task.start}) == f"no button {task.start} here"


def test_all_kinds_are_drawn_in_the_given_style() -> None:
    rng = random.Random(0)
    tasks = [draw_screen_task(rng, style=Style((9, 8, 7))) for _ in range(200)]
    assert {task.difficulty for task in tasks} == set(DIFFICULTIES) - {"3 taps"}
    assert {task.language for task in tasks} == set(LANGUAGES)
    assert all(task.picture.getpixel((0, 0)) == (9, 8, 7) for task in tasks)
    assert {kind for _, kind in DIFFICULTIES.values()} == set(SCREEN_WORDINGS)
    with pytest.raises(KeyError):
        draw_screen_task(rng, 5)


def test_tools_are_those_of_the_steps() -> None:
    assert [tool["function"]["name"] for tool in TOOLS] == ["tap", "read"]
    assert {name for seed in range(20) for name, _ in drawn(seed, "4 steps").steps} == {"tap", "read"}
