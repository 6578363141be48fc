"""The drawn world: exact answers, honest grades, pictures that can be read."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlroute.decision.selector import CAPTION_PROMPT as ROUTER_CAPTION_PROMPT
from vlroute.learning.trial import draw_evenly, is_right
from vlroute.pocket import LEVELS, TASKS, Task, draw_task
from vlroute.pocket.canvas import CORRUPTIONS, INKS, PAPERS, SIDE, Canvas, Ink, Style
from vlroute.pocket.tasks import AGAIN, CAPTION_PROMPT, LANGUAGES, draw_scene

seeds = st.integers(0, 2**32)


severities = st.none() | st.floats(0, 1)


def drawn(seed: int, kind: str, level: str | None = None, severity: float | None = None) -> Task:
    return draw_task(random.Random(seed), kind, level, severity=severity)


@given(seeds, st.sampled_from(sorted(TASKS)), severities)
def test_same_seed_same_task(seed: int, kind: str, severity: float | None) -> None:
    one, two = drawn(seed, kind, None, severity), drawn(seed, kind, None, severity)
    assert one.prompt == two.prompt
    assert [frame.tobytes() for frame in one.frames] == [frame.tobytes() for frame in two.frames]


@given(seeds, st.sampled_from(sorted(TASKS)))
def test_every_glyph_has_a_patch_of_its_own(seed: int, kind: str) -> None:
    for glyphs in drawn(seed, kind).glyphs:
        patches = [(glyph.x // 12, glyph.y // 12) for glyph in glyphs]
        assert len(set(patches)) == len(patches)
        assert all(0 <= glyph.x < SIDE and 0 <= glyph.y < SIDE for glyph in glyphs)


@given(seeds, severities)
def test_sums_add_up(seed: int, severity: float | None) -> None:
    some = drawn(seed, "math", None, severity)
    numbers = [int(number) for number in re.findall(r"\)(\d+)", some.transcript)]
    if some.difficulty == "triangle angle":
        assert sum(numbers) + int(some.answer) == 180
        assert some.thinking.endswith(f" 180-{sum(numbers)}={some.answer}")
    else:
        assert sum(numbers) == int(some.answer)
    passes = some.thinking.split(AGAIN)
    assert len(set(passes)) == 1  # each pass repeats the first one
    assert re.findall(r"\)(\d+)", passes[0]) == [str(number) for number in numbers]
    total = numbers[0]
    for number, units, result in re.findall(r"\)(\d+):(\d+)=(\d+)", passes[0]):
        assert int(units) == total % 10 + int(number) % 10
        total += int(number)
        assert total == int(result)


@given(seeds)
def test_taps_lead_from_start_to_goal(seed: int) -> None:
    some = drawn(seed, "gui")
    screen_of = dict(link.split("<") for link in some.transcript.split())
    here = re.search(r"[A-Z](?=[^A-Za-z]|$)", some.prompt.replace("You", "").replace("From", "").replace("Show", ""))
    assert here
    screen = here[0]
    for tap in some.answer.split():
        assert screen_of[tap] == screen
        screen = tap
    assert some.thinking.split("<") == [*some.answer.split()[::-1], here[0]]
    assert len(some.answer.split()) == 1 + LEVELS.index(some.level)


@given(seeds)
def test_arrows_are_followed(seed: int) -> None:
    some = drawn(seed, "hop")
    arrows = dict(pair.split(">") for pair in some.transcript.split())
    count = int(re.search(r"\d", some.prompt)[0])  # type: ignore[index]
    path = [some.thinking[0]]
    assert path[0] in some.prompt
    for _ in range(count):
        path.append(arrows[path[-1]])
    assert path[-1] == some.answer
    assert some.thinking == ">".join(path)


@given(seeds)
def test_counting_and_reading(seed: int) -> None:
    some = drawn(seed, "count")
    listed = re.sub(r"\d", "", some.transcript)
    drawn_cells = {4 * int(glyph.y // 24) + int(glyph.x // 24): glyph.label for glyph in some.glyphs[0]}
    assert listed == "".join(drawn_cells.get(cell, ".") for cell in range(16))
    asked = {"circle": "o", "square": "s", "triangle": "t", "圆": "o", "方": "s", "三角": "t"}
    kind = next(mark for name, mark in asked.items() if name in some.prompt)
    assert int(some.answer) == listed.count(kind)
    text = drawn(seed, "ocr")
    assert text.answer == text.transcript == "".join(glyph.label for glyph in text.glyphs[0])


@given(seeds)
def test_videos_say_when(seed: int) -> None:
    some = drawn(seed, "video")
    seen = {second: what for what, second in re.findall(r"([^\d])(\d)", some.transcript)}
    assert len(some.frames) == len(seen) == 8
    if some.caption == "a lamp":
        assert list(seen.values()).count("*") == int(some.answer)
        assert "**" not in "".join(seen.values())
    else:
        assert seen[some.answer] in some.prompt


@pytest.mark.parametrize("kind", ["math", "gui"])
def test_only_the_picture_tells_easy_from_hard(kind: str) -> None:
    """With letters and names of the question kind aside, every wording occurs at every level."""
    wordings: dict[str, set[str]] = {level: set() for level in LEVELS}
    for seed in range(1500):
        some = drawn(seed, kind)
        if some.difficulty != "triangle angle":
            wordings[some.level].add(re.sub(r"[A-Z](?![a-z])", "X", some.prompt))
    assert wordings["easy"] == wordings["medium"] == wordings["hard"]


def test_both_languages_and_all_levels_evenly() -> None:
    tasks = list(draw_evenly(72, seed=5))
    assert {(t.kind, t.level) for t in tasks} == {(f, level) for f in TASKS for level in LEVELS}
    assert {t.language for t in tasks} == set(LANGUAGES)
    assert all(sum(t.kind == kind for t in tasks) == 12 for kind in TASKS)


def test_the_router_asks_for_captions_as_trained() -> None:
    assert CAPTION_PROMPT == ROUTER_CAPTION_PROMPT


def test_judging_forgives_only_form() -> None:
    some = drawn(3, "gui", "hard")
    assert is_right(some, f" {', '.join(some.answer.split())}.")
    assert not is_right(some, some.answer[:-1])
    assert not is_right(some, "")


@given(seeds)
def test_arrows_are_followed_to_the_end(seed: int) -> None:
    some = drawn(seed, "hop", None, 0.7)
    arrows = dict(pair.split(">") for pair in some.transcript.split())
    path = [some.thinking[0]]
    while path[-1] in arrows:
        path.append(arrows[path[-1]])
    assert (some.answer, some.thinking) == (path[-1], ">".join(path))


@given(seeds, st.sampled_from(sorted(TASKS)), st.floats(0.05, 1))
def test_severity_stays_within_the_caption(seed: int, kind: str, severity: float) -> None:
    some = drawn(seed, kind, "medium", severity)
    captions = {
        "ocr": {"four characters"}, "count": {"three shapes", "four shapes"}, "math": {"two numbers"},
        "gui": {"three screens"}, "hop": {"five arrows"}, "video": {"a lamp", "two letters"},
    }  # fmt: skip
    assert some.caption in captions[kind]
    assert some.severity == severity


def local_contrast(picture: Image.Image) -> float:
    """Largest difference between averages over 3×3 pixels, which noise of single pixels changes little."""
    gray = np.asarray(picture.convert("L"), dtype=float)
    means = np.lib.stride_tricks.sliding_window_view(gray, (3, 3)).mean((2, 3))
    return float(means.max() - means.min())


@pytest.mark.parametrize("way", CORRUPTIONS)
@pytest.mark.parametrize("ink", INKS)
def test_glyphs_stay_visible_at_the_highest_severity(way: str, ink: Ink) -> None:
    for seed in range(20):
        written, empty = (Canvas(random.Random(seed), Style(PAPERS[seed % 3])) for _ in range(2))
        written.text(1, 1, "8", ink)
        empty.rng.setstate(written.rng.getstate())  # the same noise
        for canvas in (written, empty):
            canvas.corrupt(way, 1.0)
        difference = np.asarray(written.image, dtype=float) - np.asarray(empty.image, dtype=float)
        assert local_contrast(Image.fromarray(np.abs(difference).astype(np.uint8))) > 10


def test_content_grows_with_severity() -> None:
    """More taps, longer chains, more carries and more look-alike glyphs among pictures with one caption."""

    def mean(kind: str, severity: float, size: Callable[[Task], float]) -> float:
        return sum(size(drawn(seed, kind, "medium", severity)) for seed in range(60)) / 60

    sizes: dict[str, Callable[[Task], float]] = {
        "gui": lambda some: len(some.answer.split()),
        "hop": lambda some: some.thinking.count(">"),
        "math": lambda some: sum(int(n) % 10 for n in re.findall(r"\)(\d+)", some.transcript)) > 9,
        "ocr": lambda some: sum(char in "8B5S2Z6G" for char in some.answer),
    }
    for kind, size in sizes.items():
        low, middle, high = (mean(kind, severity, size) for severity in (0.0, 0.5, 1.0))
        assert low < middle < high, kind


@given(seeds, st.sampled_from(sorted(TASKS)), severities)
def test_one_scene_has_several_questions(seed: int, kind: str, severity: float | None) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng, kind, None, severity)
    questions = {repr(scene.question(rng)) for _ in range(400)}
    if kind in ("ocr", "math") or (kind == "hop" and severity is not None):
        assert len(questions) == 1
    elif kind != "video":  # a question for each kind of shape, each goal or each start
        assert len(questions) > 1
    first, second = scene.task(rng, "en"), scene.task(rng, "zh")
    assert first.prompt != second.prompt
    assert [frame.tobytes() for frame in first.frames] == [frame.tobytes() for frame in second.frames]
