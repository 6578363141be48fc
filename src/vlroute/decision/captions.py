"""What is in the picture, in a few words: made once per picture by whatever captioner is plugged in."""

from __future__ import annotations

import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from vlroute.errors import SettingsError
from vlroute.inputs.media import Picture, Video


class HasDigest(Protocol):
    """Anything that names its content: equal digests mean equal pictures."""

    @property
    def digest(self) -> str:
        """Digest of the content."""
        ...


P = TypeVar("P", bound=HasDigest)
#: Describes one picture or video in a few words. May be slow and may raise.
Captioner = Callable[[Picture | Video], str]


class CachedCaptioner(Generic[P]):
    """Runs `captioner` once per picture; the `max_items` captions used last are kept. Thread-safe.

    Two threads that ask for the same picture share one run and its outcome, captions and failures alike. A
    failure propagates and is not kept: the next call tries again.
    """

    def __init__(self, captioner: Callable[[P], str], max_items: int = 4096) -> None:
        """ValueError if `max_items` < 1."""
        if max_items < 1:
            raise ValueError(f"max_items must be at least 1, not {max_items}")
        self._captioner = captioner
        self._max_items = max_items
        self._captions: OrderedDict[str, str] = OrderedDict()
        self._running: dict[str, Future[str]] = {}
        self._lock = threading.Lock()

    def __call__(self, picture: P, /) -> str:
        """The caption, stripped. SettingsError if the captioner gives no string; else whatever it raises."""
        digest = picture.digest
        with self._lock:
            caption = self._kept(digest)
            if caption is not None:
                return caption
            run = self._running.get(digest)
            mine = run is None
            if run is None:
                run = self._running[digest] = Future()
        if mine:
            self._run(picture, digest, run)
        return run.result()

    def cached(self, picture: P) -> str | None:
        """The caption if it is there; never runs the captioner, never waits for it."""
        with self._lock:
            return self._kept(picture.digest)

    def describe(self, pictures: Iterable[P]) -> str:
        """The captions of several pictures in their order, joined with "; "; empty ones are left out."""
        return "; ".join(caption for picture in pictures if (caption := self(picture)))

    def _kept(self, digest: str) -> str | None:
        caption = self._captions.get(digest)
        if caption is not None:
            self._captions.move_to_end(digest)
        return caption

    def _run(self, picture: P, digest: str, run: Future[str]) -> None:
        try:
            caption = self._captioner(picture)
            if not isinstance(caption, str):
                raise SettingsError(f"a captioner must return a string, not {type(caption).__name__}")
        except BaseException as error:
            with self._lock:
                del self._running[digest]
            run.set_exception(error)
            return
        with self._lock:
            self._captions[digest] = caption.strip()
            if len(self._captions) > self._max_items:
                self._captions.popitem(last=False)
            del self._running[digest]
        run.set_result(caption.strip())


#: Share of the picture that boxes around text cover, from which on it counts as such.
DENSITIES = ((0.2, "dense text"), (0.05, "some text"), (0.0, "little text"))
#: Buckets of lines, by their lowest count: a classifier learns little from exact numbers.
LINES = ((32, "32 lines or more"), (16, "16 to 31 lines"), (8, "8 to 15 lines"), (4, "4 to 7 lines"),
         (2, "2 to 3 lines"), (0, "one line"))  # fmt: skip
#: Scripts by the first word of a letter's Unicode name; other letters count as "other letters".
SCRIPTS = {
    "LATIN": "letters", "FULLWIDTH": "letters", "CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese",
    "HANGUL": "Korean", "CYRILLIC": "Cyrillic", "GREEK": "Greek", "ARABIC": "Arabic",
}  # fmt: skip
KINDS = ("digits", *dict.fromkeys(SCRIPTS.values()), "other letters", "formulas")
LEAST_SHARE = 0.1  # of the characters: what is rarer is left out, misreadings above all

Boxes = NDArray[np.floating[Any]]


class OcrCaptioner:
    """Describes the text in a picture or video in a few buckets: "dense text, 32 lines or more, digits, Chinese".

    Thread-safe.
    """

    def __init__(self, reader: Callable[..., Any] | None = None) -> None:
        """Load the models.

        Args:
            reader: A `rapidocr.RapidOCR` with other models. The models in its wheel read Chinese, Japanese and English;
                text that they cannot read counts as no text.

        Raises:
            ImportError: The extra `ocr` is not installed.
        """
        if reader is None:
            try:
                from rapidocr import RapidOCR
            except ImportError as error:
                raise ImportError(
                    f"OcrCaptioner reads with RapidOCR, but {error.name} is missing: pip install 'vlroute[ocr]'"
                ) from error
            reader = RapidOCR(params={"Global.log_level": "error"})
        self._read: Callable[..., Any] = reader

    def __call__(self, media: Picture | Video, /) -> str:
        """The caption; "no text" where none is found. Of a video the frame with the most text speaks."""
        if isinstance(media, Picture):
            return describe(*self._found(media.image))
        last = len(media.frames) - 1
        frames = [media.frames[i] for i in sorted({0, last // 2, last})]
        return describe(*max(map(self._found, frames), key=lambda found: len("".join(found[0]))))

    def _found(self, image: Image) -> tuple[tuple[str, ...], Boxes]:
        found = self._read(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))  # it takes arrays as BGR
        if found.txts is None:
            return (), np.zeros((0, 4, 2))
        return tuple(found.txts), found.boxes / np.asarray(image.size)


def describe(texts: Sequence[str], boxes: Boxes) -> str:
    """The caption from what was read: `boxes[i]` `[n, 4, 2]`, the corners around `texts[i]`, x and y 0 to 1."""
    signs = Counter(kind for kind in map(_kind, "".join(texts)) if kind)
    if not signs:
        return "no text"
    if signs["Japanese"]:  # kana stand among characters that Chinese uses too
        signs["Japanese"] += signs.pop("Chinese", 0)
    covered = float(sum(np.prod(np.ptp(box, axis=0)) for box in boxes))
    density = next(name for least, name in DENSITIES if covered >= least)
    rows = _rows(boxes)
    lines = next(name for least, name in LINES if rows >= least)
    kinds = [kind for kind in KINDS if signs[kind] >= LEAST_SHARE * signs.total()]
    return ", ".join([density, lines, *kinds])


def _rows(boxes: Boxes) -> int:
    """How many lines the boxes stand in: words side by side are one."""
    tops, bottoms = boxes[:, :, 1].min(axis=1), boxes[:, :, 1].max(axis=1)
    rows, reach = 0, -1.0
    for top, bottom in sorted(zip(tops.tolist(), bottoms.tolist(), strict=True), key=sum):
        middle = (top + bottom) / 2
        if middle > reach:
            rows, reach = rows + 1, bottom
    return rows


def _kind(char: str) -> str | None:
    """Which of `KINDS` a character is; None for blanks and punctuation."""
    category = unicodedata.category(char)
    if category == "Nd":
        return "digits"
    if category == "Sm":
        return "formulas"
    if category[0] != "L":
        return None
    return SCRIPTS.get(unicodedata.name(char, "").split(" ")[0], "other letters")
