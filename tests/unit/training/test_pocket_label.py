"""The requests that are labeled for the pocket router."""

from __future__ import annotations

from collections import Counter

from training.pocket.label import band, requests

from vlroute.pocket.tasks import TASKS, UNKNOWN

COUNT = 760


def test_bands_cover_the_scale() -> None:
    assert band(None) == "clean"
    assert band(0.0) == band(0.19) == "severity 0.0–0.2"
    assert band(0.2) == "severity 0.2–0.4"
    assert band(1.0) == "severity 0.8–1.0"


def test_requests_are_drawn_evenly_and_in_forms_of_clients() -> None:
    drawn = list(requests(COUNT, "test"))
    hidden = [request for request in drawn if "severity" in request.level]
    cells = Counter((request.topic, request.level.partition(":")[0]) for request in hidden)
    assert len(cells) == 18
    assert max(cells.values()) - min(cells.values()) <= 1
    clean = [request for request in drawn if "clean" in request.level]
    assert {request.topic for request in clean} == {"hop"}
    assert len(clean) == COUNT // 19
    topics = Counter(request.topic for request in drawn)
    assert (topics["text"], topics["unknown"]) == (COUNT // 10, COUNT // 40)
    pictured = [request for request in drawn if request.topic in TASKS]
    text_first = [isinstance(request.conversation.messages[0].parts[0], str) for request in pictured]
    assert 0.1 < sum(text_first) / len(pictured) < 0.25
    for request in drawn:
        shown = (len(request.conversation.pictures), len(request.conversation.videos))
        assert shown == {"video": (0, 1), "text": (0, 0)}.get(request.topic, (1, 0))
        assert request.topic != "unknown" or request.answer in UNKNOWN.values()


def test_a_seed_gives_the_same_requests() -> None:
    def prompts(seed: str) -> list[str]:
        return [request.conversation.prompt for request in requests(38, seed)]

    assert prompts("one") == prompts("one") != prompts("two")
