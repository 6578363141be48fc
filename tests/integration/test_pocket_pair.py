"""The shipped pair really reads, counts and adds; the full figures stand in its model card."""

from __future__ import annotations

import pytest

from tests.conftest import media
from vlroute import Router
from vlroute.files import shipped
from vlroute.learning.trial import draw_evenly, is_right, run_trials
from vlroute.pocket.tasks import TASKS
from vlroute.types import MODES


def share_right(router: Router, mode: str, kind: str, level: str, count: int = 12) -> float:
    tasks = [t for t in draw_evenly(18 * count, "pair test") if (t.kind, t.level) == (kind, level)]
    assert len(tasks) == count
    return sum(is_right(t, router.ask(t.prompt, **media(t), mode=mode).text) for t in tasks) / count


# Floors well under what the model card reports, so that only a broken pair falls through.
@pytest.mark.parametrize("kind", TASKS)
def test_instruct_does_the_easy_ones(router: Router, kind: str) -> None:
    assert share_right(router, "instruct", kind, "easy") >= 0.75


@pytest.mark.parametrize("kind", ["math", "gui", "hop"])
def test_thinking_wins_the_hard_ones(router: Router, kind: str) -> None:
    thinking, instruct = (share_right(router, mode, kind, "hard") for mode in ("thinking", "instruct"))
    assert thinking >= 0.75
    assert instruct <= 0.6


def test_hidden_difficulty_is_difficult(router: Router) -> None:
    right: dict[bool, list[bool]] = {True: [], False: []}
    for one in draw_evenly(108, "hidden", hidden=True):
        right[(one.severity or 0.0) > 0.5].append(
            is_right(one, router.ask(one.prompt, **media(one), mode="instruct").text)
        )
    low, high = (sum(right[hard]) / len(right[hard]) for hard in (False, True))
    assert low > high + 0.15


def test_every_trial_pays_for_its_own_picture(router: Router) -> None:
    before = router.cache.stats().encodes
    trials = list(run_trials(router, draw_evenly(2, "fair")))
    assert router.cache.stats().encodes - before == 3 * len(trials)


def test_captions_name_what_is_there(router: Router) -> None:
    tasks = list(draw_evenly(36, "captions"))
    right = [router.decide(t.prompt, **media(t)).caption == t.caption for t in tasks]
    assert sum(right) >= 0.8 * len(tasks)


def test_models_and_router_are_small() -> None:
    folders = [shipped(f"pocket/{name}") for name in (*MODES, "router")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20 * 2**20
