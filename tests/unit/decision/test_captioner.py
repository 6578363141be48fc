"""The cached captioner: once per picture, also between threads; failures are not kept."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from vlroute.decision.captions import CachedCaptioner
from vlroute.steps import Steps, immediate, run, start, wait


@dataclass(frozen=True)
class Picture:
    digest: str


class Counting:
    """Says what it was asked, and counts."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, picture: Picture, /) -> Steps[str]:
        self.asked.append(picture.digest)
        return immediate(lambda: f" a {picture.digest} ")


def test_equal_digests_are_captioned_once() -> None:
    captioner = Counting()
    cached = CachedCaptioner(captioner)
    assert [run(cached(Picture(name))) for name in ("cat", "cat", "dog")] == ["a cat", "a cat", "a dog"]
    assert captioner.asked == ["cat", "dog"]


def test_cached_never_runs_the_captioner() -> None:
    captioner = Counting()
    cached = CachedCaptioner(captioner)
    assert cached.cached(Picture("cat")) is None
    assert captioner.asked == []
    run(cached(Picture("cat")))
    assert cached.cached(Picture("cat")) == "a cat"


def test_an_empty_caption_is_kept_too() -> None:
    asked = []
    cached = CachedCaptioner(lambda picture: immediate(lambda: asked.append(picture) or ""))
    assert [run(cached(Picture("cat"))), run(cached(Picture("cat")))] == ["", ""]
    assert len(asked) == 1


def test_the_caption_not_used_for_longest_goes_first() -> None:
    captioner = Counting()
    cached = CachedCaptioner(captioner, max_items=2)
    for digest in ("a", "b", "a", "c"):
        run(cached(Picture(digest)))
    assert cached.cached(Picture("b")) is None
    assert cached.cached(Picture("a")) == "a a"
    assert cached.cached(Picture("c")) == "a c"


def test_several_pictures_are_joined_in_order() -> None:
    cached = CachedCaptioner(lambda picture: immediate(lambda: "" if picture.digest == "blank" else picture.digest))
    assert run(cached.describe([Picture("two"), Picture("blank"), Picture("one")])) == "two; one"
    assert run(cached.describe([])) == ""


def test_a_failure_propagates_and_is_tried_again() -> None:
    outcomes = iter([OSError("no model"), "a cat"])

    def captioner() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    cached = CachedCaptioner(lambda picture: immediate(captioner))
    with pytest.raises(OSError, match="no model"):
        run(cached(Picture("cat")))
    assert cached.cached(Picture("cat")) is None
    assert run(cached(Picture("cat"))) == "a cat"


def test_a_captioner_must_give_text() -> None:
    with pytest.raises(TypeError, match="must return a string"):
        run(CachedCaptioner(lambda picture: immediate(lambda: None))(Picture("cat")))
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

    cached = CachedCaptioner(lambda picture: immediate(lambda: slow(picture)))
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(run, cached(Picture("cat")))
        assert started.wait(5)
        others = [pool.submit(run, cached(Picture("cat"))) for _ in range(6)]
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

    cached = CachedCaptioner(lambda picture: immediate(lambda: meets(picture)))
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lambda name: run(cached(Picture(name))), ["a", "b"])) == ["a", "b"]


@pytest.mark.parametrize("fails", [False, True])
def test_requests_that_share_one_run_hold_no_thread(fails: bool) -> None:
    """One thread is enough for any number of requests that wait for the same caption."""
    model: Future[str] = Future()
    cached = CachedCaptioner(lambda picture: wait(model))
    with ThreadPoolExecutor(1) as pool:
        requests = [start(cached(Picture("cat")), pool) for _ in range(5)]
        assert pool.submit(lambda: "free").result(5) == "free"
        assert not any(request.done() for request in requests)
        if fails:
            model.set_exception(OSError("no model"))
            assert all(isinstance(request.exception(5), OSError) for request in requests)
        else:
            model.set_result("a cat")
            assert [request.result(5) for request in requests] == ["a cat"] * 5
