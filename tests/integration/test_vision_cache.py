"""The vision cache: keys by content, a budget that holds, one encoding however many ask, damage that is a miss."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import DTYPE, SECONDS, task
from tests.serving import until
from vlroute import Router
from vlroute.engine.cache.disk import DiskTier
from vlroute.engine.cache.features import VisionFeatures
from vlroute.engine.cache.vision import VisionCache, feature_key
from vlroute.engine.local import scheduler as scheduling
from vlroute.engine.local.engine import Encoder, LocalEngine
from vlroute.inputs.media import Picture, Video
from vlroute.steps import run, start

PICTURES = [Picture(task("count", seed=seed).frames[0]) for seed in range(8)]
CLIP = Video(tuple(task("video").frames), SECONDS)
GRID = (1, 8, 8)  # of each of the pictures
ONE = 16 * 128 * DTYPE.itemsize * 3  # bytes of one pocket picture: 16 tokens, 128 wide, merged and two deepstack layers


@pytest.fixture(scope="module")
def engine(router: Router) -> LocalEngine:
    return router._local


@pytest.fixture(scope="module")
def encoder(engine: LocalEngine) -> Encoder:
    return engine.encoders["instruct"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each request sent to the tower, in order of the requests."""
    calls: list[int] = []
    real = Encoder.encode

    def counted(encoder: Encoder, items: Sequence[Picture | Video]) -> Any:
        calls.append(len(items))
        return real(encoder, items)

    monkeypatch.setattr(Encoder, "encode", counted)
    return calls


@contextmanager
def leased(
    cache: VisionCache, encoder: Encoder, *items: Picture | Video, namespace: str = ""
) -> Iterator[list[VisionFeatures]]:
    lease = run(cache.lease(encoder, items, namespace))
    try:
        yield lease.features
    finally:
        lease.release()


def see(cache: VisionCache, encoder: Encoder, *items: Picture | Video, namespace: str = "") -> list[torch.Tensor]:
    with leased(cache, encoder, *items, namespace=namespace) as features:
        return [one.merged for one in features]


def test_a_key_names_everything_the_features_depend_on() -> None:
    picture, other = PICTURES[:2]
    wide = Picture(Image.fromarray(np.zeros((2, 8, 3), np.uint8)))
    tall = Picture(Image.fromarray(np.zeros((8, 2, 3), np.uint8)))
    keys = {
        feature_key("tower", picture), feature_key("tower", other), feature_key("other tower", picture),
        feature_key("tower", picture, "tenant"), feature_key("tower", CLIP), feature_key("tower", wide),
        feature_key("tower", tall), feature_key("to", picture, "wer"), feature_key("", picture, "tower"),
    }  # fmt: skip
    assert len(keys) == 9
    assert all(len(key) == 64 for key in keys)
    again = Picture(picture.image.copy())
    assert feature_key("tower", again) == feature_key("tower", picture)


def test_what_is_missing_is_encoded_in_one_call(engine: LocalEngine, encoder: Encoder, encoded: list[int]) -> None:
    cache, calls = VisionCache(), engine.scheduler.tower_calls
    see(cache, encoder, PICTURES[0])
    first, *rest = see(cache, encoder, *PICTURES[:4], PICTURES[1])
    assert encoded == [1, 3]
    assert torch.equal(rest[0], rest[3])
    assert engine.scheduler.tower_calls - calls == 2
    assert torch.equal(first, see(VisionCache(), encoder, PICTURES[0])[0])
    stats = cache.stats()
    assert (stats.encodes, stats.hits, stats.items, stats.bytes) == (4, 1, 4, 4 * ONE)


def test_requests_that_wait_are_encoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the tower runs for one request, those of others collect; each gets what it gets alone."""
    engine = Router.from_pretrained(dtype="float32").load()._local
    encoder = engine.encoders["instruct"]
    begun, go_on, calls = threading.Event(), threading.Event(), list[int]()
    real = scheduling.encode

    def slow(*args: Any) -> Any:
        calls.append(len(args[-1]))
        begun.set()
        assert go_on.wait(20)
        return real(*args)

    alone = [see(VisionCache(), encoder, picture)[0] for picture in PICTURES[1:6]]
    monkeypatch.setattr(scheduling, "encode", slow)
    cache = VisionCache()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(see, cache, encoder, PICTURES[0])
        assert begun.wait(20)
        others = [pool.submit(see, cache, encoder, picture) for picture in PICTURES[1:6]]
        until(lambda: engine.scheduler._new.qsize() == 5)
        go_on.set()
        first.result(20)
        together = [one.result(20)[0] for one in others]
    assert calls == [1, 5]
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)  # the last bits depend on the batch


def test_the_budget_holds_and_the_oldest_goes(encoder: Encoder, encoded: list[int]) -> None:
    cache = VisionCache(budget=3 * ONE)
    for picture in (*PICTURES[:3], PICTURES[0], PICTURES[3], PICTURES[0], PICTURES[1]):
        see(cache, encoder, picture)
        assert cache.stats().bytes <= 3 * ONE
    assert sum(encoded) == 5  # 1 had gone to make room for 3, 0 had been used since
    assert cache.stats().evictions == 2


@pytest.mark.parametrize("budget", [0, ONE - 1])
def test_what_finds_no_room_is_served_uncached(encoder: Encoder, encoded: list[int], budget: int) -> None:
    cache = VisionCache(budget)
    one, two = see(cache, encoder, PICTURES[0]), see(cache, encoder, PICTURES[0])
    assert torch.equal(one[0], two[0])
    assert encoded == [1, 1]
    assert cache.stats().bytes == 0
    assert cache.stats().uncached == 2


def test_what_is_larger_than_the_budget_drives_nothing_out(encoder: Encoder, encoded: list[int]) -> None:
    cache = VisionCache(budget=2 * ONE)
    see(cache, encoder, PICTURES[0])
    see(cache, encoder, CLIP)
    see(cache, encoder, PICTURES[0])
    assert encoded == [1, 1]
    assert (cache.stats().uncached, cache.stats().evictions) == (1, 0)


def test_what_is_in_use_stays(encoder: Encoder, encoded: list[int]) -> None:
    cache = VisionCache(budget=2 * ONE)
    with leased(cache, encoder, *PICTURES[:2]):
        see(cache, encoder, *PICTURES[2:5])
        see(cache, encoder, *PICTURES[:2])
    assert encoded == [2, 3]
    see(cache, encoder, PICTURES[2])  # nothing is in use now: there is room
    assert cache.stats().evictions == 1


def test_threads_that_miss_together_encode_once(
    encoder: Encoder, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Encoder.encode

    def slow(*args: Any) -> Any:
        time.sleep(0.1)
        return real(*args)

    monkeypatch.setattr(Encoder, "encode", slow)
    cache = VisionCache()
    together = threading.Barrier(8)

    def work(i: int) -> torch.Tensor:
        together.wait()
        return see(cache, encoder, PICTURES[i % 2], PICTURES[2])[1]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(work, range(8)))
    assert sum(encoded) == 3
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert cache.stats().waits + cache.stats().hits == 13


@pytest.mark.parametrize("how", ["raises", "future"])
def test_a_failure_reaches_who_caused_it_and_the_next_try_works(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cache, real, tries = VisionCache(), Encoder.encode, []

    def fails_once(*args: Any) -> Any:
        tries.append(1)
        if len(tries) == 1:
            time.sleep(0.1)
            if how == "raises":
                raise MemoryError("no room on the device")
            failed: Future[Any] = Future()
            failed.set_exception(MemoryError("no room on the device"))
            return [GRID], failed
        return real(*args)

    monkeypatch.setattr(Encoder, "encode", fails_once)
    outcomes: list[str] = []

    def work() -> None:
        try:
            see(cache, encoder, PICTURES[0])
            outcomes.append("seen")
        except MemoryError:
            outcomes.append("failed")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["failed", "seen", "seen", "seen"]
    assert len(tries) == 2
    assert cache._pins == cache._making == {}


@pytest.mark.parametrize("ends", ["encoded", "failed", "abandoned"])
def test_grids_are_known_before_the_tower_has_run(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """Prompts are built from them. The features stay in use from then on, until the request gives them back."""
    cache, future = VisionCache(), Future[Any]()
    (features,) = run(VisionCache().lease(encoder, PICTURES[:1])).features
    monkeypatch.setattr(Encoder, "encode", lambda *_: ([GRID], future))
    assert cache.grids(encoder, PICTURES[:1]) == [None]
    steps = cache.lease(encoder, PICTURES[:1])
    if ends == "abandoned":  # an interrupt while the tower runs
        next(steps)
        steps.close()
        assert cache.grids(encoder, PICTURES[:1]) == [GRID]
    else:
        lease = start(steps)
        assert cache.grids(encoder, PICTURES[:1]) == [GRID] == [features.grid]
        assert not lease.done()
        assert list(cache._pins.values()) == [1]
        if ends == "encoded":
            future.set_result([features])
            assert lease.result(0).features == [features]
            assert list(cache._pins.values()) == [1]
            lease.result(0).release()
        else:
            future.set_exception(MemoryError("no room on the device"))
            with pytest.raises(MemoryError):
                lease.result(0)
    assert cache._pins == cache._making == {}
    assert cache.grids(encoder, PICTURES[:1]) == [GRID]


def test_tenants_share_nothing(encoder: Encoder, encoded: list[int]) -> None:
    cache = VisionCache()
    see(cache, encoder, PICTURES[0], namespace="one")
    see(cache, encoder, PICTURES[0], namespace="two")
    assert encoded == [1, 1]


def test_a_hit_of_the_wrong_length_is_a_miss(
    encoder: Encoder, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = VisionCache()
    see(cache, encoder, PICTURES[0])
    monkeypatch.setattr(VisionFeatures, "fits", lambda features, merge_size: len(encoded) > 1)
    assert see(cache, encoder, PICTURES[0])[0].shape[0] == 16
    assert encoded == [1, 1]
    assert cache.stats().bytes == ONE


def test_behind_the_first_tier_stands_main_memory(encoder: Encoder, encoded: list[int]) -> None:
    cache = VisionCache(budget=ONE, host_budget=2 * ONE)
    for picture in PICTURES[:4]:  # 3 in the first tier, 2 and 1 behind it, 0 gone
        see(cache, encoder, picture)
    see(cache, encoder, PICTURES[2])
    see(cache, encoder, PICTURES[0])
    assert encoded == [1, 1, 1, 1, 1]
    stats = cache.stats()
    assert (stats.host_hits, stats.bytes) == (1, ONE)
    assert stats.host_bytes <= 2 * ONE


def test_main_memory_keeps_what_finds_no_room_in_front_of_it(encoder: Encoder, encoded: list[int]) -> None:
    cache = VisionCache(budget=ONE, host_budget=ONE)
    see(cache, encoder, PICTURES[0])
    with leased(cache, encoder, PICTURES[1]):  # 0 goes to main memory, and 1 stays in use
        for _ in range(3):
            see(cache, encoder, PICTURES[0])
    assert encoded == [1, 1]
    assert cache.stats().host_hits == 3


def test_the_disk_tier_outlives_the_cache(encoder: Encoder, encoded: list[int], tmp_path: Path) -> None:
    first = see(VisionCache(disk=DiskTier(tmp_path)), encoder, *PICTURES[:2])
    again = VisionCache(disk=DiskTier(tmp_path))
    with leased(again, encoder, *PICTURES[:2], CLIP) as (*images, clip):
        assert all(torch.equal(a, b.merged) for a, b in zip(first, images, strict=True))
        assert clip.merged.shape[0] == 64
    assert encoded == [2, 1]
    assert again.stats().disk_hits == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_a_miss(
    encoder: Encoder, encoded: list[int], tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = see(VisionCache(disk=DiskTier(tmp_path)), encoder, PICTURES[0])
    (file,) = tmp_path.glob("*.features")
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    file.write_bytes({"cut": data[:-10], "flipped": data, "empty": b""}[damage])
    assert torch.equal(see(VisionCache(disk=DiskTier(tmp_path)), encoder, PICTURES[0])[0], whole[0])
    assert encoded == [1, 1]
    assert "damaged" in caplog.text
    assert DiskTier(tmp_path).get(file.stem) is not None  # written anew


def test_the_disk_budget_holds(encoder: Encoder, tmp_path: Path) -> None:
    disk = DiskTier(tmp_path, budget=3 * (ONE + 1000))
    cache = VisionCache(budget=0, disk=disk)
    for seconds, picture in enumerate(PICTURES[:5]):
        see(cache, encoder, picture)
        for file in tmp_path.glob("*.features"):  # make the order of use plain on coarse clocks
            if time.time() - file.stat().st_mtime < 100:
                os.utime(file, (seconds, seconds))
        assert disk.nbytes() <= disk.budget
    assert len(list(tmp_path.iterdir())) == 3


def test_a_full_disk_costs_a_warning_only(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache = VisionCache(disk=DiskTier(tmp_path))
    assert see(cache, encoder, PICTURES[0])[0].shape == (16, 128)
    assert "No space left" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_thousand_turns_stay_within_the_budget(encoder: Encoder) -> None:
    """Over 50 pictures with room for ten: bytes never exceed the budget and evictions do not pile up memory."""
    cache = VisionCache(budget=10 * ONE)
    pictures = [Picture(task("ocr", seed=seed).frames[0]) for seed in range(50)]
    for turn in range(1000):
        see(cache, encoder, pictures[turn * 7 % 50 if turn % 3 else turn % 5])
        assert cache.stats().bytes <= 10 * ONE
    stats = cache.stats()
    assert stats.hits + stats.encodes == 1000
    assert stats.items == 10
