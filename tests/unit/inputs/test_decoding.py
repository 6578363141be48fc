"""Budgets of decoded pixels, and the end of decoding when a request is cancelled."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image
from training.chaos.media import blank_video

from tests.serving import png
from vlroute.errors import LimitError
from vlroute.inputs.decoding import DecodingCancelledError, MediaBudget, PixelPool, decoding
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import load_picture, load_video
from vlroute.inputs.messages import parse

SQUARE = Image.new("RGB", (100, 100))


def test_the_pixels_of_a_request_are_counted_together() -> None:
    limits = Limits(max_total_pixels=25_000)
    assert len(parse("?", [SQUARE, png(SQUARE)], limits=limits).pictures) == 2
    with pytest.raises(LimitError, match="more than 25000, the limit for one request"):
        parse("?", [SQUARE, png(SQUARE), SQUARE], limits=limits)
    with pytest.raises(LimitError, match="limit for one request"):
        parse("?", SQUARE, [[SQUARE, SQUARE]], limits=limits)
    assert len(parse("?", [load_picture(SQUARE)] * 3, limits=limits).pictures) == 3  # nothing is decoded


def test_a_video_file_counts_before_its_frames_are_decoded() -> None:
    with pytest.raises(LimitError, match="limit for one request"):
        parse("?", videos=blank_video(30, 64), limits=Limits(max_total_pixels=4 * 64 * 64 - 1))


@pytest.mark.parametrize("at", ["picture", "video"])
def test_decoding_stops_when_the_request_is_cancelled(at: str) -> None:
    checks = 0

    def cancelled() -> bool:
        nonlocal checks
        checks += 1
        return checks > 40

    def load() -> None:
        if at == "video":
            load_video(blank_video(3000, 256))
        for _ in range(100):
            load_picture(png(SQUARE))

    with decoding(MediaBudget(cancelled=cancelled)), pytest.raises(DecodingCancelledError):
        load()
    assert checks == 41


def test_a_request_waits_for_the_pixels_of_the_process() -> None:
    pool = PixelPool(300, 100)
    first, other = MediaBudget(pool, "a"), MediaBudget(pool, "b")
    first.take(200, "picture", 1000)
    other.take(100, "picture", 1000)
    second, ended = MediaBudget(pool, "a"), threading.Event()
    waiting = threading.Thread(target=lambda: (second.take(100, "picture", 1000), ended.set()))
    waiting.start()
    assert not ended.wait(0.2)
    other.release()
    assert not ended.wait(0.2)  # a flow leaves pixels for another one
    first.release()
    assert ended.wait(2)
    waiting.join()
    second.release()
    second.release()
    assert pool.held == 0


def test_a_request_that_waits_for_pixels_can_be_cancelled() -> None:
    pool, cancel = PixelPool(200, 100), threading.Event()
    first, second = MediaBudget(pool, "a"), MediaBudget(pool, "a", cancel.is_set)
    first.take(100, "picture", 1000)
    threading.Timer(0.1, cancel.set).start()
    began = time.monotonic()
    with pytest.raises(DecodingCancelledError):
        second.take(100, "picture", 1000)
    assert time.monotonic() - began < 1
    second.release()
    first.release()
    assert pool.held == 0


def test_what_is_decoded_after_the_end_of_a_request_is_given_back() -> None:
    pool = PixelPool(200, 100)
    late = MediaBudget(pool, "a")
    late.release()
    with pytest.raises(DecodingCancelledError):
        late.take(100, "picture", 1000)
    assert pool.held == 0
