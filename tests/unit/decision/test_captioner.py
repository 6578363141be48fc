"""The cached captioner: once per picture, also between threads; failures are not kept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from vlroute.decision.captions import CachedCaptioner


@dataclass(frozen=True)
class Picture:
    digest: str


class Counting:
    """Says what it was asked, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, picture: Picture, /) -> str:
        self.asked.append(picture.digest)
        return f" a {picture.digest} "


def test_equal_digests_are_captioned_once() -> None:
    captioner = Counting()
    cached = CachedCaptioner(captioner)
    assert [cached(Picture("cat")), cached(Picture("cat")), cached(Picture("dog"))] == ["a cat", "a cat", "a dog"]
    assert captioner.asked == ["cat", "dog"]


def test_cached_never_runs_the_captioner() -> None:
    captioner = Counting()
    cached = CachedCaptioner(captioner)
    assert cached.cached(Picture("cat")) is None
    assert captioner.asked == []
    cached(Picture("cat"))
    assert cached.cached(Picture("cat")) == "a cat"


def test_an_empty_caption_is_kept_too() -> None:
    asked = []
    cached = CachedCaptioner(lambda picture: asked.append(picture) or "")
    assert [cached(Picture("cat")), cached(Picture("cat"))] == ["", ""]
    assert len(asked) == 1


def test_the_caption_not_used_for_longest_goes_first() -> None:
    captioner = Counting()
    cached = CachedCaptioner(captioner, max_items=2)
    for digest in ("a", "b", "a", "c"):
        cached(Picture(digest))
    assert cached.cached(Picture("b")) is None
    assert cached.cached(Picture("a")) == "a a"
    assert cached.cached(Picture("c")) == "a c"


def test_several_pictures_are_joined_in_order() -> None:
    cached = CachedCaptioner(lambda picture: "" if picture.digest == "blank" else picture.digest)
    assert cached.describe([Picture("two"), Picture("blank"), Picture("one")]) == "two; one"
    assert cached.describe([]) == ""


def test_a_failure_propagates_and_is_tried_again() -> None:
    outcomes = iter([OSError("no model"), "a cat"])

    def captioner(picture: Picture, /) -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    cached = CachedCaptioner(captioner)
    with pytest.raises(OSError, match="no model"):
        cached(Picture("cat"))
    assert cached.cached(Picture("cat")) is None
    assert cached(Picture("cat")) == "a cat"


def test_a_captioner_must_give_text() -> None:
    with pytest.raises(TypeError, match="must return a string"):
        CachedCaptioner(lambda picture: None)(Picture("cat"))
    with pytest.raises(ValueError, match="max_items"):
        CachedCaptioner(Counting(), max_items=0)


@pytest.mark.parametrize("fails", [False, True])
def test_two_threads_share_one_run_and_its_outcome(fails: bool) -> None:
    started, finish = threading.Event(), threading.Event()
    runs = []

    def slow(picture: Picture, /) -> str:
        runs.append(picture.digest)
        started.set()
        assert finish.wait(5)
        if fails:
            raise OSError("no model")
        return "a cat"

    cached = CachedCaptioner(slow)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(cached, Picture("cat"))
        assert started.wait(5)
        others = [pool.submit(cached, Picture("cat")) for _ in range(6)]
        assert not any(other.done() for other in others)
        assert cached.cached(Picture("cat")) is None  # does not wait
        finish.set()
        if not fails:
            assert [one.result(5) for one in (first, *others)] == ["a cat"] * 7
            assert runs == ["cat"]
            return
        for one in (first, *others):
            with pytest.raises(OSError, match="no model"):
                one.result(5)


def test_different_pictures_do_not_wait_for_each_other() -> None:
    both = threading.Barrier(2, timeout=5)

    def meets(picture: Picture, /) -> str:
        both.wait()
        return picture.digest

    cached = CachedCaptioner(meets)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(cached, [Picture("a"), Picture("b")])) == ["a", "b"]
