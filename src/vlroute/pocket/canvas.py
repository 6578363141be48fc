"""A canvas of 96×96 pixels that records each drawn glyph and its position.

The recorded glyphs are the labels of the dense training task of the tower: which glyph lies in which patch.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE, CELL = 96, 24  # four by four cells; the tower merges each into one token, so one glyph per cell is read reliably
SPOT = 16  # center of a glyph within its cell, inside one patch
Ink = tuple[int, int, int]
PAPERS: tuple[Ink, ...] = ((255, 255, 255), (245, 240, 225), (225, 238, 250))
INKS: tuple[Ink, ...] = ((20, 20, 20), (180, 30, 30), (30, 60, 180), (20, 120, 50))
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # without I, O and Q, which look like 1 and 0 at this size
DIGITS = "0123456789"
#: Pairs of glyphs that differ in a few pixels only.
LOOK_ALIKE = ("8B", "5S", "2Z", "6G")
CIRCLE, SQUARE, TRIANGLE, LAMP_LIT = "o", "s", "t", "*"
SHAPES = (CIRCLE, SQUARE, TRIANGLE)
GLYPHS = tuple(LETTERS + DIGITS + "?" + CIRCLE + SQUARE + TRIANGLE + LAMP_LIT)
FONT_SIZE = 13
GRAY: Ink = (130, 130, 135)
#: Ways in which a picture is made hard to see.
CORRUPTIONS = ("blur", "noise", "contrast")


@cache
def font(path: str | None = None) -> ImageFont.FreeTypeFont:
    """Load a font so that its capitals are as high as those of Pillow's own font in 13 pixels.

    Args:
        path: A TrueType file; None for Pillow's own font.

    Returns:
        The font.

    Raises:
        RuntimeError: If this Pillow has no FreeType support.
    """
    own = ImageFont.load_default(size=FONT_SIZE)
    if not isinstance(own, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow has no FreeType support; install a Pillow wheel from PyPI")
    if path is None:
        return own

    def height(one: ImageFont.FreeTypeFont) -> float:
        _, top, _, bottom = one.getbbox("H")
        return bottom - top

    large = ImageFont.load_default(size=100)
    assert isinstance(large, ImageFont.FreeTypeFont)
    size = FONT_SIZE * height(large) / height(ImageFont.truetype(path, 100))
    return ImageFont.truetype(path, size)


@dataclass(frozen=True, slots=True)
class Style:
    """Font and colors of a picture.

    Attributes:
        paper: The background.
        inks: Colors of text.
        shape_inks: Fill of circles, squares and triangles.
        font: A TrueType file; None for Pillow's own font.
    """

    paper: Ink = PAPERS[0]
    inks: tuple[Ink, ...] = INKS
    shape_inks: tuple[Ink, Ink, Ink] = (INKS[1], INKS[2], INKS[3])
    font: str | None = None


def plain_style(rng: random.Random) -> Style:
    """The style of the shipped drawings: Pillow's own font, four inks, one of three papers.

    Args:
        rng: Source of randomness.

    Returns:
        The style.
    """
    return Style(rng.choice(PAPERS))


@dataclass(frozen=True, slots=True)
class Glyph:
    """One drawn glyph: its label and its center in pixels."""

    label: str
    x: float
    y: float


@dataclass
class Canvas:
    """A picture that is being drawn. Every glyph is moved by up to a pixel at random, so that pictures differ.

    Attributes:
        rng: Source of randomness.
        style: Font and colors.
        image: The picture so far.
        glyphs: The glyphs drawn so far.
    """

    rng: random.Random
    style: Style
    image: Image.Image = field(init=False)
    glyphs: list[Glyph] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (SIDE, SIDE), self.style.paper)
        self.draw = ImageDraw.Draw(self.image)
        # the number of the shape that is visible at each pixel, 0 for none, and the area of each shape
        self._shapes, self._areas = np.zeros((SIDE, SIDE), np.uint8), list[int]()

    def text(self, column: float, row: float, text: str, ink: Ink | None = None, pitch: int = CELL) -> None:
        """Write a text with its first glyph in the lower right of a cell.

        Args:
            column: Column of the cell, from 0.
            row: Row of the cell, from 0.
            text: The text.
            ink: The color; by default a random one of the style.
            pitch: Distance between the centers of neighboring glyphs in pixels.
        """
        x = CELL * column + SPOT + self.rng.randint(-1, 1) + (CELL - pitch) // 2
        y = CELL * row + SPOT + self.rng.randint(-1, 1)
        ink = ink or self.rng.choice(self.style.inks)
        for i, char in enumerate(text):
            self._glyph(x + pitch * i, y, char, ink)

    def _glyph(self, x: float, y: float, char: str, ink: Ink) -> None:
        # placed by the baseline, because the middle of a line of text differs between fonts
        self.draw.text((x, y + 5), char, font=font(self.style.font), fill=ink, anchor="ms")
        self.glyphs.append(Glyph(char, x, y))

    def arrow(self, column: int, row: int, start: str, end: str) -> None:
        """Draw an arrow from a letter in the upper left of a cell to a letter in the lower right.

        Args:
            column: Column of the cell, from 0.
            row: Row of the cell, from 0.
            start: The letter at the start of the arrow.
            end: The letter at its end.
        """
        x, y = CELL * column, CELL * row
        ink = self.rng.choice(self.style.inks)
        self.draw.line([(x + 13, y + 5), (x + 19, y + 5), (x + 19, y + 9)], fill=GRAY)
        self.draw.polygon([(x + 17, y + 8), (x + 21, y + 8), (x + 19, y + 11)], fill=GRAY)
        self._glyph(x + 6 + self.rng.randint(-1, 1), y + 6 + self.rng.randint(-1, 1), start, ink)
        self._glyph(x + 17 + self.rng.randint(-1, 1), y + 17 + self.rng.randint(-1, 0), end, ink)

    def button(self, column: int, row: int, screen: str, label: str) -> None:
        """Draw a button in a cell: its label in the lower right, the name of its screen in the upper left.

        Args:
            column: Column of the cell, from 0.
            row: Row of the cell, from 0.
            screen: Letter of the screen that the button is on.
            label: Letter of the button.
        """
        x, y = CELL * column, CELL * row
        box = [x + 10, y + 10, x + 23, y + 23]
        dark = sum(self.style.paper) < 3 * 128
        fill = tuple(c + 40 if dark else 255 for c in self.style.paper)
        self.draw.rounded_rectangle(box, radius=3, fill=fill, outline=(150, 150, 160))
        self._glyph(x + 6 + self.rng.randint(-1, 1), y + 6 + self.rng.randint(-1, 1), screen, self.style.inks[0])
        self._glyph(x + 17, y + 17 + self.rng.randint(-1, 0), label, self.style.inks[2 % len(self.style.inks)])

    def shape(self, kind: str, column: int, row: int, size: int = 18, ink: Ink | None = None, shift: int = 0) -> None:
        """Draw a filled circle, square or triangle at a random place in a cell.

        Args:
            kind: One of `SHAPES`.
            column: Column of the cell, from 0.
            row: Row of the cell, from 0.
            size: Height and width in pixels.
            ink: The color; by default that of its kind.
            shift: Number of pixels by which it may reach beyond its cell.
        """

        def place(cell: int) -> int:
            place = CELL * cell + self.rng.randint(1 - shift, CELL - size - 1 + shift)
            return min(max(place, 1), SIDE - size - 2)

        x, y = place(column), place(row)
        mask = Image.new("1", (SIDE, SIDE))
        draw = ImageDraw.Draw(mask)
        if kind == CIRCLE:
            draw.ellipse([x, y, x + size, y + size], fill=1)
        elif kind == SQUARE:
            draw.rectangle([x + 1, y + 1, x + size - 1, y + size - 1], fill=1)
        else:
            draw.polygon([(x + size // 2, y), (x, y + size), (x + size, y + size)], fill=1)
        self.image.paste(ink or self.style.shape_inks[SHAPES.index(kind)], mask=mask)
        self._areas.append(int(np.asarray(mask).sum()))
        self._shapes[np.asarray(mask)] = len(self._areas)
        # a shape within its cell has its label in the lower right patch, like the glyphs of the other tasks
        center = (x + size / 2, y + size / 2) if shift else (CELL * column + SPOT, CELL * row + SPOT)
        self.glyphs.append(Glyph(kind, *center))

    def cover(self, column: int, row: int, share: float) -> None:
        """Cover a part of a cell with a gray strip along a random side.

        Args:
            column: Column of the cell, from 0.
            row: Row of the cell, from 0.
            share: The covered share of the height or width, from 0 to 1.
        """
        x, y, depth = CELL * column, CELL * row, round(share * CELL)
        left, top, right, bottom = x, y, x + CELL - 1, y + CELL - 1
        side = self.rng.randrange(4)
        box = [
            (left, top, left + depth, bottom),
            (right - depth, top, right, bottom),
            (left, top, right, top + depth),
            (left, bottom - depth, right, bottom),
        ][side]
        if depth:
            self.draw.rectangle(box, fill=(165, 165, 170))
            left, top, right, bottom = box
            self._shapes[top : bottom + 1, left : right + 1] = 0

    def visible_shares(self) -> list[float]:
        """Return the share of each shape that no other shape and no strip covers, in the order of drawing."""
        counts = np.bincount(self._shapes.ravel(), minlength=len(self._areas) + 1)[1:]
        return [int(count) / area for count, area in zip(counts, self._areas, strict=True)]

    def scribble(self, lines: int) -> None:
        """Draw thin gray lines across the picture, each between two opposite edges.

        Args:
            lines: Number of lines.
        """
        for _ in range(lines):
            ends = [(self.rng.randint(0, SIDE), 0), (self.rng.randint(0, SIDE), SIDE)]
            if self.rng.random() < 0.5:
                ends = [(y, x) for x, y in ends]
            self.draw.line(ends, fill=GRAY)

    def lamp(self, x: int, y: int, lit: bool, radius: int = 13, brightness: float = 1.0) -> None:
        """Draw a lamp, yellow when lit and gray when dark.

        Args:
            x: Horizontal position of its center in pixels.
            y: Vertical position of its center in pixels.
            lit: Whether it is lit.
            radius: Its radius in pixels.
            brightness: Color of a lit lamp, from 0 (gray) to 1 (yellow).
        """
        box = [x - radius, y - radius, x + radius, y + radius]
        dark, light = (120, 120, 125), (255, 205, 30)
        fill = tuple(round(d + brightness * (b - d)) for d, b in zip(dark, light, strict=True)) if lit else dark
        self.draw.ellipse(box, fill=fill, outline=(60, 60, 60), width=2)
        self.draw.rectangle([x - 5, y + radius, x + 5, y + radius + 5], fill=(60, 60, 60))
        if lit:
            self.glyphs.append(Glyph(LAMP_LIT, x, y))

    def corrupt(self, way: str, severity: float) -> None:
        """Make the whole picture harder to see.

        Args:
            way: One of `CORRUPTIONS`.
            severity: From 0, which leaves the picture as it is, to 1, at which a person can only just read it.
        """
        if severity <= 0:
            return
        if way == "blur":
            self.image = self.image.filter(ImageFilter.GaussianBlur(1.85 * severity))
        elif way == "noise":
            noise = np.random.default_rng(self.rng.getrandbits(32)).normal(0, 110 * severity, (SIDE, SIDE, 3))
            self.image = Image.fromarray(np.clip(np.asarray(self.image) + noise, 0, 255).astype(np.uint8))
        else:
            paper = Image.new("RGB", (SIDE, SIDE), self.style.paper)
            grain = np.random.default_rng(self.rng.getrandbits(32)).normal(0, 8 * severity, (SIDE, SIDE, 1))
            faint = np.asarray(Image.blend(self.image, paper, 0.82 * severity))
            self.image = Image.fromarray(np.clip(faint + grain, 0, 255).astype(np.uint8))
