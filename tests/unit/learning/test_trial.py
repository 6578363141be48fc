"""Drawn tasks: evenly over kinds, levels and hidden difficulty."""

from __future__ import annotations

from collections import defaultdict

from vlroute.learning import draw_evenly
from vlroute.pocket import LEVELS, TASKS


def test_pictures_are_clean_by_default() -> None:
    assert {task.severity for task in draw_evenly(36, 0)} == {None}


def test_hidden_difficulty_covers_the_scale_in_each_kind_and_level() -> None:
    severities = defaultdict(list)
    for task in draw_evenly(5 * 18 + 3, "hidden", hidden=True):
        severities[task.kind, task.level].append(task.severity or 0.0)
    assert len(severities) == len(TASKS) * len(LEVELS)
    sizes = set()
    for found in severities.values():  # one severity in each of as many equal strata
        assert [int(severity * len(found)) for severity in sorted(found)] == list(range(len(found)))
        sizes.add(len(found))
    assert sizes == {5, 6}


def test_a_seed_gives_the_same_tasks() -> None:
    def drawn(seed: str) -> list[tuple[float | None, str, bytes]]:
        return [(t.severity, t.prompt, t.frames[0].tobytes()) for t in draw_evenly(18, seed, hidden=True)]

    assert drawn("one") == drawn("one")
    assert drawn("one") != drawn("two")
