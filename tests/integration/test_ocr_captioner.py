"""The OCR captioner reads pictures drawn with PIL's own font; what it says of what was read is a pure function."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from tests.conftest import lacking
from vlroute import Router
from vlroute.decision.captions import OcrCaptioner, describe
from vlroute.inputs.media import Picture, Video


@pytest.fixture(scope="module")
def captioner() -> OcrCaptioner:
    try:
        return OcrCaptioner()
    except ImportError:
        lacking("the extra 'ocr' is not installed")


def page(lines: list[str], size: tuple[int, int] = (640, 480), points: int = 22) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((16, 12 + (points + 12) * i), line, fill="black", font=ImageFont.load_default(size=points))
    return image


@pytest.mark.parametrize(
    ("lines", "caption"),
    [
        ([], "no text"),
        (["INVOICE"], "little text, one line, letters"),
        (["48213", "97750"], "little text, 2 to 3 lines, digits"),
        (["Item 48213 costs 97 euros"] * 5, "some text, 4 to 7 lines, digits, letters"),
        (["The quick brown fox jumps over the lazy dog"] * 13, "dense text, 8 to 15 lines, letters"),
    ],
)
def test_it_says_how_much_is_to_read_and_of_what_kind(captioner: OcrCaptioner, lines: list[str], caption: str) -> None:
    assert captioner(Picture(page(lines))) == caption


def test_of_a_video_the_fullest_frame_speaks(captioner: OcrCaptioner) -> None:
    frames = (page([]), page(["NOT READ: neither first, middle nor last"] * 9), page(["48213"]), page([]), page([]))
    assert captioner(Video(frames, (0.0, 1.0, 2.0, 3.0, 4.0))) == "little text, one line, digits"


def test_threads_get_what_one_thread_gets(captioner: OcrCaptioner) -> None:
    pictures = [Picture(page(["Item 48213"] * n)) for n in (0, 1, 3, 6)]
    alone = [captioner(picture) for picture in pictures]
    together: dict[int, str] = {}

    def work(i: int) -> None:
        together[i] = captioner(pictures[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(pictures))] == alone
    assert len(set(alone)) == 4


def test_a_router_decides_by_it(captioner: OcrCaptioner) -> None:
    router = Router.from_pretrained(captioner=captioner)
    decision = router.decide("Add the numbers.", page(["48213", "97750"]))
    assert decision.caption == "little text, 2 to 3 lines, digits"


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_words_side_by_side_are_one_line() -> None:
    boxes = np.asarray([box(0.5, 0.11, 0.9, 0.19), box(0, 0.1, 0.4, 0.2), box(0, 0.3, 0.4, 0.4)])
    assert describe(["two", "one", "three"], boxes) == "some text, 2 to 3 lines, letters"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("总价 128 元", "digits, Chinese"),
        ("今天的会议改到下午", "Chinese"),
        ("ご注文ありがとう", "Japanese"),
        ("안녕하세요", "Korean"),
        ("3x = 12 − 4", "digits, letters, formulas"),
        ("ABCDEFGHIJKLMNOPQRST 1", "letters"),
        ("ｱｲｳ", "other letters"),
    ],
)
def test_kinds_of_characters(text: str, kinds: str) -> None:
    assert describe([text], np.asarray([box(0, 0, 1, 0.1)])) == f"some text, one line, {kinds}"


def test_marks_alone_are_no_text() -> None:
    assert describe(["▲ …"], np.asarray([box(0, 0, 1, 1)])) == "no text"


def test_without_the_extra_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['rapidocr'] = None\nfrom vlroute.decision.captions import OcrCaptioner\nOcrCaptioner()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "rapidocr is missing: pip install 'vlroute[ocr]'" in done.stderr
