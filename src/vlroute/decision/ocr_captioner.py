"""A captioner that reads: how much text a picture holds, of what kind and script. For `captioner=OcrCaptioner()`.

Brings RapidOCR with the models inside its wheel: offline, on the CPU, without torch. `pip install 'vlroute[ocr]'`.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from vlroute.media import Picture, Video

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
        """`reader`: a `rapidocr.RapidOCR` with other models. The ones in its wheel read Chinese, Japanese and English;
        what they cannot read counts as no text. ImportError, saying what to install, without the extra `ocr`."""
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
