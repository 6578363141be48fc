"""The requests that are labeled for the pocket router."""

from __future__ import annotations

from collections import Counter

from training.pocket.label import band, requests

COUNT = 19 * 18


def test_bands_cover_the_scale() -> None:
    assert band(None) == "clean"
    assert band(0.0) == band(0.19) == "severity 0.0–0.2"
    assert band(0.2) == "severity 0.2–0.4"
    assert band(1.0) == "severity 0.8–1.0"


def test_requests_are_drawn_evenly_and_in_forms_of_clients() -> None:
    drawn = list(requests(COUNT, "test"))
    hidden = [task for task, _ in drawn if task.severity is not None]
    assert set(Counter((task.kind, task.level) for task in hidden).values()) == {COUNT // 19}
    clean = [task for task, _ in drawn if task.severity is None]
    assert {(task.kind, task.level) for task in clean} == {("hop", level) for level in ("easy", "medium", "hard")}
    assert len(clean) == COUNT // 19
    as_worded = [asked.prompt == task.prompt for task, asked in drawn]
    assert 0.7 < sum(as_worded) / COUNT < 0.95
    text_first = [isinstance(asked.messages[0].parts[0], str) for _, asked in drawn]
    assert 0.1 < sum(text_first) / COUNT < 0.25
    for task, asked in drawn:
        assert (len(asked.pictures), len(asked.videos)) == ((0, 1) if task.is_video else (1, 0))


def test_a_seed_gives_the_same_requests() -> None:
    def prompts(seed: str) -> list[str]:
        return [asked.prompt for _, asked in requests(38, seed)]

    assert prompts("one") == prompts("one") != prompts("two")
