"""A canvas of 96×96 pixels that records each drawn glyph and its position.

The recorded glyphs are the labels of the dense training task of the tower: which glyph lies in which patch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SIDE, CELL = 96, 24  # four by four cells; the tower merges each into one token, so one glyph per cell is read reliably
SPOT = 16  # center of a glyph within its cell, inside one patch
Ink = tuple[int, int, int]
PAPERS = ((255, 255, 255), (245, 240, 225), (225, 238, 250))
INKS = ((20, 20, 20), (180, 30, 30), (30, 60, 180), (20, 120, 50))
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # without I, O and Q, which look like 1 and 0 at this size
DIGITS = "0123456789"
CIRCLE, SQUARE, TRIANGLE, LAMP_LIT = "o", "s", "t", "*"
SHAPE_INKS = {CIRCLE: INKS[1], SQUARE: INKS[2], TRIANGLE: INKS[3]}
GLYPHS = tuple(LETTERS + DIGITS + "?" + CIRCLE + SQUARE + TRIANGLE + LAMP_LIT)


@cache
def font(size: int = 13) -> ImageFont.FreeTypeFont:
    """Pillow's own font in `size` pixels."""
    loaded = ImageFont.load_default(size=size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow has no FreeType support; install a Pillow wheel from PyPI")
    return loaded


@dataclass(frozen=True, slots=True)
class Glyph:
    """One drawn glyph: its label and its center in pixels."""

    label: str
    x: float
    y: float


class Canvas:
    """A picture that is being drawn. Every glyph is moved by up to a pixel at random, so that pictures differ."""

    def __init__(self, rng: random.Random, paper: Ink | None = None) -> None:
        self.rng = rng
        self.paper = paper or rng.choice(PAPERS)
        self.image = Image.new("RGB", (SIDE, SIDE), self.paper)
        self.draw = ImageDraw.Draw(self.image)
        self.glyphs: list[Glyph] = []

    def text(self, column: float, row: float, text: str, ink: Ink | None = None, pitch: int = CELL) -> None:
        """Write `text` with its first glyph in the lower right of a cell, then one glyph every `pitch` pixels."""
        x = CELL * column + SPOT + self.rng.randint(-1, 1) + (CELL - pitch) // 2
        y = CELL * row + SPOT + self.rng.randint(-1, 1)
        ink = ink or self.rng.choice(INKS)
        for i, char in enumerate(text):
            self._glyph(x + pitch * i, y, char, ink)

    def _glyph(self, x: float, y: float, char: str, ink: Ink) -> None:
        self.draw.text((x, y), char, font=font(), fill=ink, anchor="mm")
        self.glyphs.append(Glyph(char, x, y))

    def arrow(self, column: int, row: int, start: str, end: str) -> None:
        """Write `start` into the upper left of a cell and an arrow from it to `end` in the lower right."""
        x, y = CELL * column, CELL * row
        ink = self.rng.choice(INKS)
        self.draw.line([(x + 13, y + 5), (x + 19, y + 5), (x + 19, y + 9)], fill=(130, 130, 135))
        self.draw.polygon([(x + 17, y + 8), (x + 21, y + 8), (x + 19, y + 11)], fill=(130, 130, 135))
        self._glyph(x + 6 + self.rng.randint(-1, 1), y + 6 + self.rng.randint(-1, 1), start, ink)
        self._glyph(x + 17 + self.rng.randint(-1, 1), y + 17 + self.rng.randint(-1, 0), end, ink)

    def button(self, column: int, row: int, screen: str, label: str) -> None:
        """Draw a button over a cell: its label in the lower right, the screen that it is on in the upper left."""
        x, y = CELL * column, CELL * row
        box = [x + 10, y + 10, x + 23, y + 23]
        self.draw.rounded_rectangle(box, radius=3, fill=(255, 255, 255), outline=(150, 150, 160))
        self._glyph(x + 6 + self.rng.randint(-1, 1), y + 6 + self.rng.randint(-1, 1), screen, INKS[0])
        self._glyph(x + 17, y + 17 + self.rng.randint(-1, 0), label, INKS[2])

    def shape(self, kind: str, column: int, row: int, size: int = 18) -> None:
        """Fill a circle, square or triangle into a cell."""
        x = CELL * column + self.rng.randint(1, CELL - size - 1)
        y = CELL * row + self.rng.randint(1, CELL - size - 1)
        fill = SHAPE_INKS[kind]
        if kind == CIRCLE:
            self.draw.ellipse([x, y, x + size, y + size], fill=fill)
        elif kind == SQUARE:
            self.draw.rectangle([x + 1, y + 1, x + size - 1, y + size - 1], fill=fill)
        else:
            self.draw.polygon([(x + size // 2, y), (x, y + size), (x + size, y + size)], fill=fill)
        self.glyphs.append(Glyph(kind, CELL * column + SPOT, CELL * row + SPOT))

    def lamp(self, x: int, y: int, lit: bool, radius: int = 13) -> None:
        """Draw a lamp around (x, y): yellow with a glow when lit, gray when dark."""
        box = [x - radius, y - radius, x + radius, y + radius]
        self.draw.ellipse(box, fill=(255, 205, 30) if lit else (120, 120, 125), outline=(60, 60, 60), width=2)
        self.draw.rectangle([x - 5, y + radius, x + 5, y + radius + 5], fill=(60, 60, 60))
        if lit:
            self.glyphs.append(Glyph(LAMP_LIT, x, y))
