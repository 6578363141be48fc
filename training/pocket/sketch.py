"""A canvas for pictures of any size, with random colors, words and textures."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from training.pocket.styles import TRAIN_FONTS, font_path
from vlroute.pocket.canvas import INKS, PAPERS, Ink

Floats = NDArray[np.floating[Any]]
Point = tuple[float, float]
LIMIT = 200  # side of the largest computed array; larger pictures are enlarged from it
CONSONANTS, VOWELS = "bcdfghklmnprstvwxz", "aeiou"


@lru_cache(512)
def _font(name: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    path = font_path(name)
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def norm(values: Floats) -> Floats:
    """Scale values to 0 to 1."""
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / (high - low + 1e-6))


class Sketch:
    """A picture of any size that is being drawn. Positions run from 0 to 1, lengths are shares of the shorter side."""

    def __init__(self, rng: random.Random, size: tuple[int, int], fonts: Sequence[str | None] = TRAIN_FONTS) -> None:
        self.rng, self.fonts = rng, fonts
        self.width, self.height = size
        self.unit = min(size)
        self.numbers = np.random.default_rng(rng.getrandbits(64))
        self.font = rng.choice(fonts)
        kind = rng.random()
        self.paper = rng.choice(PAPERS) if kind < 0.35 else self.color(0.85, 1) if kind < 0.75 else self.color()
        self.clear(self.paper)

    def clear(self, ink: Ink) -> None:
        """Start again with an empty picture."""
        self.put(Image.new("RGB", (self.width, self.height), ink))

    def put(self, image: Image.Image) -> None:
        """Replace the picture."""
        self.image = image
        self.draw = ImageDraw.Draw(image)

    # random choices
    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def between(self, low: float, high: float) -> float:
        return self.rng.uniform(low, high)

    def spot(self) -> Point:
        return self.rng.random(), self.rng.random()

    def color(self, low: float = 0.0, high: float = 1.0) -> Ink:
        """A color with a lightness between `low` and `high`."""
        r, g, b = colorsys.hls_to_rgb(self.rng.random(), self.rng.uniform(low, high), self.rng.random() ** 0.7)
        return round(255 * r), round(255 * g), round(255 * b)

    def ink(self) -> Ink:
        """A color that stands out from the paper."""
        dark = sum(self.paper) < 3 * 120
        return self.rng.choice(INKS) if self.chance(0.3) and not dark else self.color(*((0.6, 1) if dark else (0, 0.5)))

    def words(self, count: int) -> str:
        """Random words that look like a language."""
        pick, lengths = self.rng.choice, (self.rng.randint(1, 4) for _ in range(count))
        return " ".join("".join(pick(CONSONANTS) + pick(VOWELS) for _ in range(length)) for length in lengths)

    # shapes
    def box(
        self, x0: float, y0: float, x1: float, y1: float, fill: Ink, radius: float = 0, edge: Ink | None = None
    ) -> None:
        w, h = self.width, self.height
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        self.draw.rounded_rectangle((x0 * w, y0 * h, x1 * w, y1 * h), radius * self.unit, fill, edge)

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: Ink | None, edge: Ink | None = None, width: float = 0.02
    ) -> None:
        cx, cy, rx, ry = x * self.width, y * self.height, rx * self.unit, ry * self.unit
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill, edge, max(1, round(width * self.unit)))

    def line(self, points: Sequence[Point], fill: Ink, width: float = 0.01) -> None:
        pixels = max(1, round(width * self.unit))
        joint = "curve" if pixels > 3 else None
        self.draw.line([(x * self.width, y * self.height) for x, y in points], fill, pixels, joint)

    def area(self, points: Sequence[Point], fill: Ink) -> None:
        self.draw.polygon([(x * self.width, y * self.height) for x, y in points], fill)

    def blot(self, x: float, y: float, reach: float) -> None:
        """A polygon of any form and color around (x, y)."""
        corners = range(self.rng.randint(3, 7))
        points = [(x + self.between(-reach, reach), y + self.between(-reach, reach)) for _ in corners]
        self.area(points, self.color())

    def polar(self, x: float, y: float, r: float, angle: float) -> Point:
        """The point at the distance `r` from (x, y), clockwise from the top."""
        return x + r * math.sin(angle) * self.unit / self.width, y - r * math.cos(angle) * self.unit / self.height

    def star(self, x: float, y: float, r: float, corners: int, inner: float, fill: Ink, turn: float = 0.0) -> None:
        """A star; a regular polygon for `inner` 1."""
        step = math.pi / corners
        ends = [self.polar(x, y, r, turn + 2 * step * i) for i in range(corners)]
        notches = [self.polar(x, y, r * inner, turn + step * (2 * i + 1)) for i in range(corners)]
        self.area([p for pair in zip(ends, notches, strict=True) for p in pair] if inner < 1 else ends, fill)

    def curve(self, points: Sequence[Point], fill: Ink, width: float = 0.015) -> None:
        """A Bézier curve with two or more control points."""
        control, steps = np.array(points), np.linspace(0, 1, 16)[:, None, None]
        path = np.repeat(control[None], 16, axis=0)
        while path.shape[1] > 1:
            path = path[:, :-1] * (1 - steps) + path[:, 1:] * steps
        self.line([(float(x), float(y)) for x, y in path[:, 0]], fill, width)

    def text(self, x: float, y: float, text: str, size: float, fill: Ink, anchor: str = "la") -> None:
        pixels = max(5, round(size * self.unit))
        self.draw.text((x * self.width, y * self.height), text, fill, _font(self.font, pixels), anchor)

    def lines(self, x0: float, y0: float, x1: float, y1: float, pitch: float, fill: Ink, bars: bool = False) -> None:
        """A paragraph of small text, or of bars where letters could not be read."""
        size = 0.8 * pitch * self.height / self.unit
        fitting = (x1 - x0) * self.width / (0.6 * max(5, size * self.unit))
        for row in range(min(60, int((y1 - y0) / pitch + 0.1))):
            y, share = y0 + row * pitch, self.between(0.75, 1) if self.chance(0.8) else self.between(0.2, 0.7)
            if bars:
                self.box(x0, y, x0 + (x1 - x0) * share, y + 0.45 * pitch, fill)
            else:
                letters = max(1, int(fitting * share))
                self.text(x0, y, self.words(2 + letters // 4)[:letters], size, fill)

    # arrays of [height, width] with values from 0 to 1
    def plane(self) -> tuple[Floats, Floats]:
        """Coordinates of the pixels around the center; the shorter side runs from -1 to 1."""
        scale = min(1.0, LIMIT / max(self.width, self.height))
        w, h = max(8, round(self.width * scale)), max(8, round(self.height * scale))
        y, x = np.mgrid[0:h, 0:w].astype(np.float32)
        return (2 * x - w) / min(w, h), (2 * y - h) / min(w, h)

    def noise(self, cells: int, smooth: bool = True) -> Floats:
        """Random values on a grid with `cells` along the shorter side, interpolated."""
        x, _ = self.plane()
        h, w = x.shape
        grid = self.numbers.random((max(2, cells * h // min(w, h)), max(2, cells * w // min(w, h))), dtype=np.float32)
        way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        return np.asarray(Image.fromarray(grid).resize((w, h), way))

    def clouds(self, cells: int = 2, octaves: int = 4) -> Floats:
        """Sum of noises with doubled frequencies, from 0 to 1."""
        total = sum(self.noise(cells << i) / 2**i for i in range(octaves) if cells << i <= LIMIT)
        return norm(np.asarray(total))

    def show(self, pixels: Floats) -> None:
        """Show an array `[height, width, 3]` with values from 0 to 1."""
        image = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
        size = (self.width, self.height)
        self.put(image if image.size == size else image.resize(size, Image.Resampling.BICUBIC))

    def shade(self, values: NDArray[Any], *colors: Ink) -> Floats:
        """Colors for values from 0 to 1, interpolated between `colors`, by default two to five random ones."""
        inks = np.array(colors or [self.color() for _ in range(self.rng.randint(2, 5))]) / 255
        table = np.stack([np.interp(np.linspace(0, 1, 256), np.linspace(0, 1, len(inks)), c) for c in inks.T], axis=1)
        return np.asarray(table.astype(np.float32)[(np.clip(values, 0, 1) * 255).astype(np.uint8)])

    def pixels(self) -> Floats:
        """The picture as an array `[height, width, 3]` in the size of `plane`."""
        h, w = self.plane()[0].shape
        return np.asarray(self.image.resize((w, h)), dtype=np.float32) / 255

    def blur(self, radius: float) -> None:
        self.put(self.image.filter(ImageFilter.BoxBlur(radius * self.unit)))
