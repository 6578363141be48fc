"""The programs of `examples/` that use tools, and the benchmark that compares them with plain transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from training.bench.gui_tasks import APIS, PLAIN, ROUTED, Run, with_plain_transformers, with_vlroute
from training.page import POCKET, POCKET_HYBRID, render

from tests.serving import Served, served
from vlroute import Router
from vlroute.pocket.screens import draw_screen_task
from vlroute.types import MODES

pytestmark = pytest.mark.float32
TASKS = [draw_screen_task(random.Random(f"GUI {i}"), steps=2 + i) for i in range(2)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(store=tmp_path_factory.mktemp("store") / "answers.db") as one:
        yield one


@pytest.fixture(scope="module")
def plain() -> list[Run]:
    solve = with_plain_transformers(POCKET, "thinking")
    return [solve(task) for task in TASKS]


@pytest.mark.parametrize("api", APIS)
def test_each_api_gives_the_calls_and_results_of_plain_transformers(server: Served, plain: list[Run], api: str) -> None:
    solve = with_vlroute(ROUTED["APIS"][api](server.url, "thinking"))
    runs = [solve(task) for task in TASKS]
    assert runs == plain
    assert [run.text for run in runs] == [task.answer for task in TASKS]
    assert [run.calls for run in runs] == [list(task.steps) for task in TASKS]


def test_both_modes_of_a_hybrid() -> None:
    with Router.from_pretrained("pocket-hybrid") as router:
        for mode in MODES:
            ours, theirs = (
                with_vlroute(ROUTED["with_router"](router, mode)),
                with_plain_transformers(POCKET_HYBRID, mode),
            )
            assert ours(TASKS[0]).same(theirs(TASKS[0]))


def test_calls_without_end_and_calls_that_fail() -> None:
    call, step = ROUTED["Call"], ROUTED["Step"]
    wrong = [
        call("1", "tap", '{"button": "?"}'),
        call("2", "tap", "{"),
        call("3", "tap", "[]"),
        call("4", "swipe", "{}"),
    ]
    run = ROUTED["solve"](TASKS[0], lambda task, steps: step("instruct", TASKS[0].answer, wrong, None))
    assert len(run) == ROUTED["MOST_STEPS"] == PLAIN["MOST_CALLS"]
    assert not ROUTED["is_solved"](TASKS[0], run)
    for result, reason in zip(run[0].results, ("no button", "error: ", "error: ", "no tool"), strict=True):
        assert result.startswith(reason)


def test_options_that_contradict_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, reason in ((["--api", "chat"], "pass --url"), (["--url", "x", "--model", "y"], "its own model")):
        monkeypatch.setattr("sys.argv", ["router_tools.py", *options])
        with pytest.raises(SystemExit):
            ROUTED["main"]()
        assert reason in capsys.readouterr().err


def test_ways_that_differ_are_bold() -> None:
    way: dict[str, Any] = {
        "way": "router.ask", "same": {"instruct": 10, "thinking": 9}, "solved": {"auto": 8}, "steps": 40,
        "thinking_steps": 30,
    }  # fmt: skip
    model = {
        "model": "pocket", "tasks": 10, "clients": 2, "plain": {"instruct": 5, "thinking": 10}, "calls": 30,
        "ways": [way], "where": "here",
    }  # fmt: skip
    figures = {"models": [model]}
    page = render("gui_tasks.md", data=figures, **figures)
    assert "| router.ask | **9 of 10** | 8 of 10 (49–94 %) | 75 % |" in page
    assert "plain transformers in 10 of 10 tasks" in page
