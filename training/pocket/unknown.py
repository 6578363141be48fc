"""Pictures outside the drawn tasks, made by code. The kinds of `TEST_PICTURES` are not used in training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from training.pocket.sketch import LIMIT, Sketch, norm
from training.pocket.styles import TEST_FONTS, TRAIN_FONTS
from vlroute.pocket.canvas import SIDE

SIGNS = "αβγδεζθλμπσφψωΔΣΩ∞√∑≤≥≠±→←↑↓½%&@#§©{}[]()<>*/+=!"
Kind = Callable[[Sketch], None]
TRAIN_PICTURES: dict[str, Kind] = {}
TEST_PICTURES: dict[str, Kind] = {}


def _train(kind: Kind) -> Kind:
    TRAIN_PICTURES[kind.__name__] = kind
    return kind


def _test(kind: Kind) -> Kind:
    TEST_PICTURES[kind.__name__] = kind
    return kind


def draw_size(rng: random.Random, largest: int = 400) -> tuple[int, int]:
    """Draw the size of a picture: 60 % have the size of the drawings, the others sides from 64 to `largest` pixels.

    Args:
        rng: Source of randomness.
        largest: Longest side in pixels.

    Returns:
        Width and height; the longer side is at most three times the shorter one.
    """
    if rng.random() < 0.6:
        return SIDE, SIDE
    longer = round(math.exp(rng.uniform(math.log(72), math.log(largest))))
    shorter = max(64, round(longer / rng.choice((1, 1.33, 1.5, 1.78, rng.uniform(1, 3)))))
    return (longer, shorter) if rng.random() < 0.5 else (shorter, longer)


def draw_unknown(
    rng: random.Random, kinds: dict[str, Kind] = TRAIN_PICTURES, size: tuple[int, int] | None = None
) -> Image.Image:
    """Draw a picture that belongs to none of the drawn tasks. The same state of `rng` gives the same picture.

    Args:
        rng: Source of randomness.
        kinds: The kinds to choose from.
        size: Width and height in pixels; by default drawn by `draw_size`.

    Returns:
        The picture, in RGB.
    """
    name = rng.choice(tuple(kinds))
    width, height = size or draw_size(rng)
    # some pictures are drawn larger and then reduced, as a processor does with a large screenshot
    scale = 2 if max(width, height) < 150 and rng.random() < 0.15 else 1
    sketch = Sketch(rng, (scale * width, scale * height), TEST_FONTS if name in TEST_PICTURES else TRAIN_FONTS)
    kinds[name](sketch)
    image = sketch.image
    if scale > 1:
        image = image.resize((width, height), Image.Resampling.BOX)
    if rng.random() < 0.15:
        image = Image.merge("RGB", rng.sample(image.split(), 3))
    if rng.random() < 0.1:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 2)))
    return image


# ---- seen in training: computed textures


@_train
def patterns(s: Sketch) -> None:
    """Gradients, stripes, checkers, plaid, dots and rings."""
    x, y = s.plane()
    turn, k, n = s.between(0, 2 * math.pi), s.between(3, 35), s.rng.choice((0, 1)) * s.noise(3)
    u, v = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    r = np.hypot(x - s.between(-1, 1), y - s.between(-1, 1))
    smooth = (u, r, u + r, u * v, np.arctan2(v, u))
    waves = (np.sin(k * u + 6 * n), np.sin(k * r + n), np.sin(k * r * r), np.sin(k * u) + np.sin(s.between(3, 20) * v))
    grid = (np.cos(k * u) * np.cos(k * v) - n, (np.floor(k / 3 * u) + np.floor(k / 3 * v)) % 2)
    kind = s.rng.choice((smooth, waves, grid))
    values = norm(s.rng.choice(kind))
    hard = kind is not smooth and s.chance(0.6)  # a smooth one with one edge could pass for a drawn shape
    s.show(s.shade(values > s.between(0.3, 0.7), s.color(), s.color()) if hard else s.shade(values))


@_train
def marble(s: Sketch) -> None:
    x, y = s.plane()
    s.show(s.shade(np.sin(s.between(0, 6) * x + s.between(0, 6) * y + s.between(4, 16) * s.clouds()) / 2 + 0.5))


@_train
def terrain(s: Sketch) -> None:
    height = s.clouds(s.rng.randint(2, 4), 5)
    sun = np.gradient(height, axis=1) * 12
    earth = ((20, 50, 110), (60, 130, 180), (220, 205, 150), (80, 140, 60), (110, 90, 70), (245, 245, 250))
    s.show((s.shade(height, *earth) if s.chance(0.5) else s.shade(height)) + np.asarray(sun)[..., None])


@_train
def sky(s: Sketch) -> None:
    _, y = s.plane()
    blue = s.shade(norm(y), s.color(0.3, 0.7), s.color(0.6, 0.95))
    s.show(blue + np.clip(s.clouds(2, 5) - s.between(0.3, 0.7), 0, 1)[..., None] * 2)


@_train
def photo(s: Sketch) -> None:
    """Large soft areas with light from one side and grain."""
    s.show(s.shade(s.clouds(2, 2)))
    for _ in range(s.rng.randint(2, 9)):
        x, y = s.spot()
        if s.chance(0.5):
            s.oval(x, y, s.between(0.05, 0.5), s.between(0.05, 0.5), s.color())
        else:
            s.blot(x, y, 0.4)
    s.blur(s.between(0.01, 0.08))
    across, down = s.plane()
    light = 1 - s.between(0, 0.5) * np.hypot(across - s.between(-1, 1), down - s.between(-1, 1)) / 2
    grain = s.numbers.normal(0, s.between(0, 0.06), (*light.shape, 1))
    s.show(s.pixels() * light[..., None] + grain)


@_train
def bokeh(s: Sketch) -> None:
    s.clear(s.color(0, 0.4))
    for _ in range(s.rng.randint(20, 50)):
        r = s.between(0.03, 0.16)
        s.oval(*s.spot(), r, r, s.color(0.3, 0.9))
    s.blur(s.between(0.02, 0.06))


@_train
def static(s: Sketch) -> None:
    """Noise of single pixels: uniform, normal, black and white, or salt and pepper."""
    h, w = s.plane()[0].shape
    shape = (h, w, 1 if s.chance(0.5) else 3)
    even, share = s.numbers.random(shape), s.between(0.1, 0.8)
    normal = s.numbers.normal(s.between(0.2, 0.8), s.between(0.15, 0.4), shape)
    pepper = np.where(even < share / 2, s.numbers.integers(0, 2, shape), s.between(0.2, 0.9))
    values = s.rng.choice((even, normal, np.where(even < share, 1.0, 0.0), pepper))
    s.show(np.broadcast_to(values, (h, w, 3)))


@_train
def mosaic(s: Sketch) -> None:
    cells = s.rng.randint(3, 24)
    if s.chance(0.5):
        s.show(s.shade(s.noise(cells, smooth=False)))
    else:
        s.show(np.stack([s.noise(cells, smooth=s.chance(0.2)) for _ in range(3)], axis=2))


@_train
def blank(s: Sketch) -> None:
    """One color: any, or a usual paper or ink."""
    s.clear(s.rng.choice((s.color(), s.color(), s.paper, (255, 255, 255), (0, 0, 0), s.ink())))


@_train
def faint(s: Sketch) -> None:
    """Nearly one color: with grain, a shadow, dust, a fold or a blurred spot."""
    x, y = s.plane()
    s.clear(s.rng.choice((s.paper, s.color())))
    kind = s.rng.randrange(4)
    if kind == 0:
        s.line([(-0.1, s.between(0, 1)), (1.1, s.between(0, 1))], s.color())
    elif kind == 1:
        for _ in range(s.rng.randint(1, 12)):
            s.oval(*s.spot(), 0.005, 0.005, s.color())
    elif kind == 2:
        s.oval(*s.spot(), s.between(0.1, 0.6), s.between(0.1, 0.6), s.color(0.5, 1))
        s.blur(s.between(0.1, 0.2))
    shadow = s.between(0, 0.2) * np.hypot(x, y)
    s.show(s.pixels() - shadow[..., None] + s.numbers.normal(0, s.between(0.0, 0.08), (*x.shape, 1)))


# ---- seen in training: lines and shapes without order


@_train
def scribble(s: Sketch) -> None:
    for _ in range(s.rng.randint(2, 30)):
        kind, ink, wide = s.rng.randrange(3), s.ink(), s.between(0.005, 0.04)
        if kind == 0:
            s.curve([s.spot() for _ in range(s.rng.randint(3, 5))], ink, wide)
        elif kind == 1:
            s.line([s.spot(), s.spot()], ink, wide)
        else:
            steps = s.numbers.normal(0, 0.12, (s.rng.randint(5, 25), 2)).cumsum(0) + s.spot()
            s.line([(float(x), float(y)) for x, y in np.clip(steps, 0, 1)], ink, wide)


@_train
def shapes(s: Sketch) -> None:
    """Polygons and ellipses of all forms, one over the other."""
    polygons, most = s.chance(0.5), s.rng.choice((20, 50))
    for _ in range(s.rng.randint(12, most)):
        (x, y), reach = s.spot(), s.between(0.1, 0.5)
        if polygons != s.chance(0.1):
            s.blot(x, y, reach)
        else:
            fill = None if s.chance(0.3) else s.color()
            s.oval(x, y, reach, s.between(0.05, 0.4), fill, s.color(), s.between(0, 0.05))


@_train
def pile(s: Sketch) -> None:
    """Circles, squares and triangles that cover each other: no person could count them."""
    inks = [s.color() for _ in range(s.rng.randint(2, 6))]
    spread = s.between(0.15, 0.35)
    for _ in range(s.rng.randint(40, 90)):
        x, y = s.rng.gauss(0.5, spread), s.rng.gauss(0.5, spread)
        s.star(x, y, s.between(0.08, 0.2), s.rng.choice((3, 4, 24)), 1, s.rng.choice(inks), s.between(0, 6))


@_train
def symbols(s: Sketch) -> None:
    """Clean shapes that the tasks do not have, mostly in a grid."""
    cells = s.rng.randint(2, 4)
    kinds = s.rng.sample(("star", "cross", "ring", "heart", "moon", "bolt", "hexagon", "spark"), s.rng.randint(1, 4))
    inks = [s.ink() for _ in range(s.rng.randint(1, 4))]
    for cell in s.rng.sample(range(cells * cells), s.rng.randint(1, cells * cells)):
        x, y, r = (cell % cells + 0.5) / cells, (cell // cells + 0.5) / cells, s.between(0.33, 0.48) / cells
        x, y, kind, ink = (
            x + s.between(-0.03, 0.03),
            y + s.between(-0.03, 0.03),
            s.rng.choice(kinds),
            s.rng.choice(inks),
        )
        w, h = r * s.unit / s.width, r * s.unit / s.height
        if kind == "star":
            s.star(x, y, r, 5, 0.42, ink, s.between(0, 6) if s.chance(0.3) else 0)
        elif kind == "spark":
            s.star(x, y, r, s.rng.choice((4, 8, 12)), s.between(0.3, 0.5), ink)
        elif kind == "hexagon":
            s.star(x, y, r, 6, 1, ink)
            s.star(x, y, r * 0.65, 6, 1, s.paper)
        elif kind == "cross":
            s.box(x - w, y - h / 3.5, x + w, y + h / 3.5, ink)
            s.box(x - w / 3.5, y - h, x + w / 3.5, y + h, ink)
        elif kind == "ring":
            s.oval(x, y, r, r, None, ink, 0.4 * r)
        elif kind == "heart":
            s.oval(x - w / 2.1, y - h / 3, 0.52 * r, 0.52 * r, ink)
            s.oval(x + w / 2.1, y - h / 3, 0.52 * r, 0.52 * r, ink)
            s.area([(x - 0.95 * w, y - h / 9), (x + 0.95 * w, y - h / 9), (x, y + h)], ink)
        elif kind == "moon":
            s.oval(x, y, r, r, ink)
            s.oval(x + w / 1.7, y - h / 4, 0.8 * r, 0.8 * r, s.paper)
        else:
            bolt = ((0.2, -1), (-0.6, 0.15), (-0.05, 0.15), (-0.3, 1), (0.6, -0.2), (0.05, -0.2), (0.5, -1))
            s.area([(x + a * w, y + b * h) for a, b in bolt], ink)


@_train
def spiral(s: Sketch) -> None:
    turns, waves, ink = s.between(3, 12), s.rng.choice((0, 0, s.rng.randint(3, 9))), s.ink()
    angles = np.linspace(0, 2 * math.pi * turns, 200)
    r = np.linspace(0.02, 0.48, 200) if not waves else 0.3 + 0.17 * np.sin(waves * angles / turns)
    s.line(
        [(float(0.5 + a * math.cos(t)), float(0.5 + a * math.sin(t))) for a, t in zip(r, angles, strict=True)],
        ink,
        0.02,
    )


# ---- seen in training: scenes


@_train
def face(s: Sketch) -> None:
    skin, ink, x, r = s.color(0.5, 0.9), s.color(0, 0.3), s.between(0.4, 0.6), s.between(0.3, 0.48)
    w, h = r * s.unit / s.width, r * s.unit / s.height
    s.oval(x, 0.5, r, r * s.between(0.9, 1.15), skin, ink)
    for side in (-1, 1):
        s.oval(x + side * 0.4 * w, 0.5 - 0.25 * h, 0.17 * r, s.between(0.1, 0.25) * r, (255, 255, 255), ink)
        s.oval(x + side * 0.4 * w, 0.5 - 0.25 * h, 0.08 * r, 0.08 * r, ink)
    smile = s.between(-0.3, 0.5)
    s.curve([(x - 0.5 * w, 0.5 + 0.4 * h), (x, 0.5 + (0.4 + smile) * h), (x + 0.5 * w, 0.5 + 0.4 * h)], ink, 0.03)
    if s.chance(0.5):
        hair = s.color(0, 0.6)
        for i in range(9):
            s.line(
                [(x + (i - 4) * 0.2 * w, 0.5 - 0.9 * h), (x + (i - 4) * 0.26 * w, 0.5 - s.between(1, 1.3) * h)],
                hair,
                0.05,
            )


@_train
def house(s: Sketch) -> None:
    s.clear(s.color(0.6, 0.9))
    ground, x, wide, top = s.between(0.65, 0.85), s.between(0.1, 0.4), s.between(0.3, 0.5), s.between(0.35, 0.5)
    s.box(0, ground, 1, 1, s.color(0.25, 0.6))
    s.oval(s.rng.choice((0.1, 0.9)), 0.12, 0.1, 0.1, (250, 210, 60))
    s.box(x, top, x + wide, ground + 0.05, s.color(0.4, 0.9), 0, s.color(0, 0.3))
    s.area([(x - 0.05, top), (x + wide / 2, top - s.between(0.15, 0.3)), (x + wide + 0.05, top)], s.color(0.2, 0.6))
    s.box(x + wide * 0.4, ground - 0.15, x + wide * 0.6, ground + 0.05, s.color(0.1, 0.5))
    for side in (0.1, 0.7):
        s.box(x + wide * side, top + 0.06, x + wide * (side + 0.2), top + 0.16, s.color(0.7, 1), 0, s.color(0, 0.3))
    _tree(s, x + wide + s.between(0.1, 0.2), ground + 0.05, s.between(0.2, 0.4))


def _tree(s: Sketch, x: float, y: float, size: float) -> None:
    s.box(x - 0.06 * size, y - 0.5 * size, x + 0.06 * size, y, (100, 70, 40))
    leaves = (s.rng.randint(20, 90), s.rng.randint(90, 160), s.rng.randint(20, 80))
    if s.chance(0.5):
        for i in range(3):
            top, half = y - size * (1 - 0.2 * i), size * (0.15 + 0.07 * i)
            s.area([(x, top), (x - half, top + 0.35 * size), (x + half, top + 0.35 * size)], leaves)
    else:
        for _ in range(5):
            spot = (x + s.between(-0.15, 0.15) * size, y - s.between(0.5, 0.85) * size)
            s.oval(*spot, 0.2 * size, 0.2 * size, leaves)


@_train
def forest(s: Sketch) -> None:
    s.clear(s.color(0.6, 0.95))
    s.box(0, 0.55, 1, 1, (s.rng.randint(60, 120), s.rng.randint(120, 170), 70))
    for i in range(n := s.rng.randint(5, 14)):
        _tree(s, s.between(0, 1), 0.55 + 0.45 * i / n, 0.2 + 0.4 * i / n)


@_train
def hills(s: Sketch) -> None:
    _, y = s.plane()
    s.show(s.shade(norm(y), s.color(0.2, 0.7), s.color(0.6, 0.95)))
    r = s.between(0.05, 0.12)
    s.oval(s.between(0.1, 0.9), s.between(0.1, 0.35), r, r, s.color(0.7, 1))
    for layer in range(n := s.rng.randint(2, 5)):
        level, rough, points = 0.35 + 0.5 * layer / n, s.between(0.05, 0.2), []
        steps = s.rng.randint(4, 16)
        for i in range(steps + 1):
            points.append((i / steps, level + s.between(-rough, rough)))
        s.area([(0, 1), *points, (1, 1)], s.color(0.6 - 0.5 * layer / n, 0.7 - 0.5 * layer / n))


@_train
def skyline(s: Sketch) -> None:
    night = s.chance(0.5)
    s.clear(s.color(0, 0.3) if night else s.color(0.6, 0.95))
    x = 0.0
    while x < 1:
        wide, top, wall = s.between(0.1, 0.25), s.between(0.15, 0.75), s.color(0.1, 0.5)
        s.box(x, top, x + wide, 1, wall)
        for row in range(int((1 - top) / 0.08)):
            for column in range(3):
                if s.chance(0.6):
                    left, upper = x + wide * (0.12 + 0.3 * column), top + 0.03 + 0.08 * row
                    s.box(left, upper, left + wide * 0.15, upper + 0.03, (250, 220, 120) if night else (190, 210, 230))
        x += wide + s.between(-0.01, 0.03)


@_train
def flowers(s: Sketch) -> None:
    s.clear(s.color(0.7, 1))
    for _ in range(s.rng.randint(1, 7)):
        x, y, r = s.between(0.1, 0.9), s.between(0.15, 0.7), s.between(0.07, 0.2)
        s.curve([(x, y), (x + s.between(-0.1, 0.1), 0.8), (x + s.between(-0.1, 0.1), 1)], (50, 130, 50), 0.03)
        petals, ink = s.rng.randint(4, 9), s.color(0.4, 0.8)
        for i in range(petals):
            s.oval(*s.polar(x, y, r, 2 * math.pi * i / petals), 0.5 * r, 0.5 * r, ink)
        s.oval(x, y, 0.5 * r, 0.5 * r, (250, 210, 60))


@_train
def sprite(s: Sketch) -> None:
    """Symmetric pixel art."""
    n = s.rng.randint(7, 14)
    half = s.numbers.integers(0, 4, (n, (n + 1) // 2)) * (s.numbers.random((n, (n + 1) // 2)) < 0.65)
    grid = np.concatenate([half, half[:, : n // 2][:, ::-1]], axis=1)
    inks = np.array([s.paper, s.ink(), s.color(), s.color()], dtype=np.uint8)
    margin = s.rng.randint(0, 3)
    image = Image.fromarray(inks[np.pad(grid, margin)])
    s.put(image.resize((s.width, s.height), Image.Resampling.NEAREST))


# ---- seen in training: screens and documents


@_train
def window(s: Sketch) -> None:
    s.clear(s.color(0.1, 0.9))
    light = s.chance(0.7)
    page, ink, bars = ((250, 250, 252), (70, 70, 80), s.chance(0.5)) if light else ((35, 37, 42), (190, 190, 200), True)
    for _ in range(s.rng.randint(1, 2)):
        x, y = s.between(0, 0.3), s.between(0, 0.3)
        right, low = x + s.between(0.6, 0.8), y + s.between(0.5, 0.8)
        s.box(x, y, right, low, page, 0.02, (120, 120, 125))
        s.box(x, y, right, y + 0.09, s.color(0.2, 0.85))
        for i, dot in enumerate(((240, 90, 80), (245, 190, 70), (90, 200, 90))):
            s.oval(x + 0.05 + 0.05 * i, y + 0.045, 0.017, 0.017, dot)
        side = x + (0.2 if s.chance(0.6) else 0)
        s.box(x, y + 0.09, side, low, s.color(0.8, 0.95) if light else (50, 52, 60))
        s.lines(x + 0.02, y + 0.13, side - 0.03, low, 0.08, s.color(0.4, 0.6), bars=True)
        s.lines(side + 0.03, y + 0.13, right - 0.03, low - 0.02, s.between(0.05, 0.09), ink, bars)


@_train
def paragraphs(s: Sketch) -> None:
    pitch, bars, ink, y = s.between(0.05, 0.09), s.chance(0.2), s.ink(), 0.04
    if s.chance(0.4):
        s.text(0.05, y, s.words(2), 0.11, ink)
        y += 0.18
    columns = s.rng.choice((1, 1, 2))
    for column in range(columns):
        s.lines(0.04 + column / columns, y, (column + 1) / columns - 0.03, 0.98, pitch, ink, bars)


@_train
def table(s: Sketch) -> None:
    columns, rows, ink, rule = s.rng.randint(3, 6), s.rng.randint(6, 12), s.ink(), s.color(0.4, 0.8)
    head = s.color(0.6, 0.9)
    s.box(0.03, 0.03, 0.97, 0.03 + 0.94 / rows, head)
    for row in range(rows + 1):
        y = 0.03 + 0.94 * row / rows
        s.line([(0.03, y), (0.97, y)], rule, 0)
        for column in range(columns if row < rows else 0):
            word = str(s.rng.randint(0, 9999)) if row and column else s.words(1)[:7]
            s.text(0.05 + 0.94 * column / columns, y + 0.01, word, 0.55 / rows, ink)
    for column in range(columns + 1):
        x = 0.03 + 0.94 * column / columns
        s.line([(x, 0.03), (x, 0.97)], rule, 0)


@_train
def terminal(s: Sketch) -> None:
    s.clear(s.color(0, 0.12))
    s.font, ink, pitch = "DejaVuSansMono", s.color(0.6, 0.95), s.between(0.06, 0.09)
    for row in range(int(s.between(0.5, 1) / pitch)):
        prompt = s.rng.choice(("$ ", "> ", "", "", "  "))
        s.text(
            0.03,
            0.03 + row * pitch,
            prompt + s.words(s.rng.randint(1, 4)),
            pitch * 0.8,
            s.color(0.5, 0.9) if prompt else ink,
        )


@_train
def chat(s: Sketch) -> None:
    s.clear(s.color(0.85, 1) if s.chance(0.7) else s.color(0, 0.2))
    mine, other, y = s.color(0.4, 0.8), s.color(0.75, 0.95), 0.03
    while y < 0.95:
        high, wide, own = s.rng.randint(1, 3) * 0.06 + 0.04, s.between(0.35, 0.7), s.chance(0.5)
        x = 0.97 - wide if own else 0.12
        if not own:
            s.oval(0.06, y + 0.05, 0.04, 0.04, s.color(0.3, 0.7))
        s.box(x, y, x + wide, y + high, mine if own else other, 0.03)
        s.lines(x + 0.03, y + 0.025, x + wide - 0.03, y + high, 0.06, s.color(0, 0.3), s.chance(0.5))
        y += high + 0.03


@_train
def webpage(s: Sketch) -> None:
    s.clear((255, 255, 255) if s.chance(0.7) else s.color(0, 0.2))
    tone = s.color(0.2, 0.7)
    s.box(0, 0, 1, 0.1, tone)
    s.box(0.03, 0.03, 0.2, 0.07, (255, 255, 255))
    s.lines(0.55, 0.04, 0.95, 0.09, 0.05, s.color(0.8, 1), bars=True)
    s.box(0, 0.1, 1, 0.4, s.color(0.3, 0.9))
    s.text(0.08, 0.16, s.words(2), 0.1, (255, 255, 255))
    s.box(0.08, 0.3, 0.3, 0.36, tone, 0.02)
    cards = s.rng.randint(2, 4)
    for i in range(cards):
        x = 0.03 + 0.95 * i / cards
        s.box(x, 0.45, x + 0.88 / cards, 0.68, s.color(0.3, 0.9))
        s.lines(x, 0.72, x + 0.85 / cards, 0.98, 0.06, s.color(0.3, 0.6), bars=True)


@_train
def phone(s: Sketch) -> None:
    """A home screen: wallpaper, rows of icons, a dock."""
    s.show(s.shade(s.clouds(2, 2)))
    s.lines(0.75, 0.02, 0.97, 0.06, 0.04, (255, 255, 255), bars=True)
    columns, rows = s.rng.randint(3, 5), s.rng.randint(3, 6)
    for row in range(rows):
        for column in range(columns):
            x, y, w, h = (column + 0.2) / columns, 0.08 + 0.9 * row / rows, 0.6 / columns, 0.5 / rows
            s.box(x, y, x + w, y + h, s.color(0.2, 0.95), 0.03)
            if s.chance(0.6):
                s.star(x + w / 2, y + h / 2, 0.2 / columns, s.rng.randint(4, 9), s.between(0.3, 0.8), s.color(0.7, 1))
            s.box(x, y + h * 1.15, x + w, y + h * 1.3, (235, 235, 240))


@_train
def form(s: Sketch) -> None:
    s.box(0, 0, 1, 0.13, s.color(0.3, 0.8))
    s.text(0.05, 0.02, s.words(2), 0.08, (255, 255, 255))
    rows = s.rng.randint(3, 5)
    for row in range(rows):
        y = 0.18 + 0.65 * row / rows
        s.text(0.05, y, s.words(1)[:8], 0.07, s.ink())
        s.box(0.4, y, 0.95, y + 0.4 / rows, (255, 255, 255), 0.01, (150, 150, 150))
        if s.chance(0.6):
            s.text(0.42, y + 0.01, s.words(1)[:8], 0.06, (110, 110, 110))
    s.box(0.55, 0.86, 0.95, 0.96, s.color(0.3, 0.6), 0.02)
    s.text(0.75, 0.91, s.words(1)[:6], 0.06, (255, 255, 255), "mm")


@_train
def bars(s: Sketch) -> None:
    n, ink, upright = s.rng.randint(4, 12), s.ink(), s.chance(0.7)
    inks = [s.color() for _ in range(s.rng.choice((1, 2, n)))]
    for i in range(n):
        a, b, reach = 0.13 + 0.83 * i / n, 0.13 + 0.83 * (i + s.between(0.6, 0.8)) / n, s.between(0.05, 0.75)
        s.box(*((a, 0.88 - reach, b, 0.88) if upright else (0.12, 1 - b, 0.12 + reach, 1 - a)), inks[i % len(inks)])
    s.line([(0.12, 0.05), (0.12, 0.88), (0.97, 0.88)], ink)
    s.lines(0.02, 0.08, 0.09, 0.85, s.between(0.1, 0.2), ink, bars=True)


@_train
def pie(s: Sketch) -> None:
    r, start, box = s.between(0.3, 0.45), s.between(0, 360), s.between(0.42, 0.55) * s.width
    inks = [s.color(0.3, 0.8) for _ in range(s.rng.randint(3, 9))]
    cuts = [0, *sorted(s.between(20, 340) for _ in inks[1:]), 360]
    middle, radius = s.height / 2, r * s.unit
    area = (box - radius, middle - radius, box + radius, middle + radius)
    for a, b, ink in zip(cuts, cuts[1:], inks, strict=False):
        s.draw.pieslice(area, start + a, start + b, ink, s.paper)
    if s.chance(0.3):
        s.oval(box / s.width, 0.5, r / 2, r / 2, s.paper)


@_train
def axes(s: Sketch) -> None:
    """Plots of functions, of series and of points."""
    ink, kind = s.ink(), s.rng.randrange(3)
    if s.chance(0.6):
        for i in range(1, 8):
            s.line([(i / 8, 0), (i / 8, 1)], (205, 205, 210), 0)
            s.line([(0, i / 8), (1, i / 8)], (205, 205, 210), 0)
    at = s.rng.choice((0.08, 0.5))
    s.line([(at, 0.02), (at, 0.98)], ink)
    s.line([(0.02, 1 - at), (0.98, 1 - at)], ink)
    for _ in range(s.rng.randint(1, 3)):
        t = np.linspace(0, 1, 40)
        a, b, c = s.between(-1.5, 1.5), s.between(-0.5, 0.5), s.between(2, 25)
        y = 0.5 + s.rng.choice(
            (a * (t - 0.5) + b * 4 * (t - 0.5) ** 2, 0.35 * np.sin(c * t + a), a * (t - 0.5) ** 3 * 8 + b * t)
        )
        if kind:
            y = y + s.numbers.normal(0, s.between(0.02, 0.08), 40)
        tone = s.color(0.2, 0.6)
        if kind == 2:
            for x, v in zip(t, y, strict=True):
                s.oval(float(x), float(v), 0.012, 0.012, tone)
        else:
            s.line([(float(x), float(v)) for x, v in zip(t, y, strict=True)], tone, 0.02)


@_train
def streets(s: Sketch) -> None:
    s.clear(s.color(0.85, 0.95))
    for _ in range(s.rng.randint(1, 4)):
        s.area([s.spot() for _ in range(4)], s.rng.choice(((200, 225, 180), (170, 205, 235), (230, 220, 200))))
    for _ in range(s.rng.randint(5, 16)):
        ends = [(0.0, s.between(-0.2, 1.2)), (1.0, s.between(-0.2, 1.2))]
        if s.chance(0.5):
            ends = [(y, x) for x, y in ends]
        wide = s.between(0.01, 0.06)
        s.line(ends, (150, 150, 150), wide + 0.02)
        s.line(ends, s.rng.choice(((255, 255, 255), (250, 220, 130))), wide)
    for _ in range(s.rng.randint(0, 4)):
        s.text(*s.spot(), s.words(1), 0.06, (90, 90, 90))


@_train
def qr(s: Sketch) -> None:
    """A grid of dark and light modules with three finder marks, as in QR codes."""
    n = s.rng.choice((21, 25, 29))
    grid = s.numbers.integers(0, 2, (n, n)).astype(bool)
    mark = np.pad(np.pad(np.zeros((3, 3), bool), 1, constant_values=True), 1)
    for y, x in ((0, 0), (0, n - 7), (n - 7, 0)):
        grid[y : y + 7, x : x + 7] = mark
    pixels = np.where(
        np.pad(grid, s.rng.randint(1, 4), constant_values=True)[..., None], 255, np.array(s.color(0, 0.3))
    )
    s.put(Image.fromarray(pixels.astype(np.uint8)).resize((s.width, s.height), Image.Resampling.BILINEAR))


@_train
def barcode(s: Sketch) -> None:
    s.clear((255, 255, 255))
    x, left, top = s.between(0.05, 0.12), s.between(0.03, 0.3), s.between(0.03, 0.3)
    low, ink = s.between(0.7, 0.85), s.color(0, 0.2)
    while x < 0.93:
        wide = 0.012 * s.rng.randint(1, 4)
        s.box(x, top, x + wide * 0.8, low, ink)
        x += wide + 0.012 * s.rng.randint(1, 3)
    s.text(left, low + 0.02, " ".join(str(s.rng.randint(0, 9)) for _ in range(12)), 0.08, ink)


@_train
def giant(s: Sketch) -> None:
    """A letter or sign that is larger than the picture, or thick strokes by hand."""
    if s.chance(0.7):
        sign = s.rng.choice(SIGNS + "0123456789ABCDEFGHJKLMNPRSTUVWXYZabdefghkmnqrty")
        s.font = s.rng.choice(("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif"))
        s.text(s.between(0.3, 0.7), s.between(0.3, 0.7), sign, s.rng.choice((1.5, 1.8, 2.3)), s.ink(), "mm")
        return
    start, ink = s.spot(), s.ink()
    for _ in range(s.rng.randint(1, 3)):
        path = [start, *(s.spot() for _ in range(s.rng.randint(2, 4)))]
        s.curve(path, ink, s.between(0.05, 0.12))
        start = path[-1]


@_train
def strokes(s: Sketch) -> None:
    """Characters of straight strokes, like Chinese ones, in a grid or as one large character."""
    n, ink = s.rng.choice((1, 2, 3, 5, 7)), s.ink()
    for cell in range(n * n):
        left, top, side = (cell % n + 0.1) / n, (cell // n + 0.1) / n, 0.8 / n
        for _ in range(s.rng.randint(4, 9)):
            a, b, c = sorted(s.rng.choice((0, 0.25, 0.5, 0.75, 1)) + s.between(-0.05, 0.05) for _ in range(3))
            kind = s.rng.random()
            ends = (
                [(a, b), (c, b)]
                if kind < 0.45
                else [(b, a), (b, c)]
                if kind < 0.8
                else [(b, a), (s.rng.choice((a, c)), c)]
            )
            s.line([(left + side * x, top + side * y) for x, y in ends], ink, max(0.01, 0.06 / n))


@_train
def handwriting(s: Sketch) -> None:
    ink, rows = s.ink(), s.rng.randint(3, 9)
    for row in range(rows):
        y = (row + 0.6) / rows
        if s.chance(0.4):
            s.line([(0, y + 0.2 / rows), (1, y + 0.2 / rows)], (190, 200, 220), 0)
        t = np.linspace(0.04, s.between(0.5, 0.96), 60)
        wave = np.sin(t * s.between(60, 110)) * s.numbers.uniform(0.05, 0.4, 60) / rows
        s.line([(float(x + v * 0.3), float(y + v)) for x, v in zip(t, wave, strict=True)], ink, 0.01)


@_train
def glossary(s: Sketch) -> None:
    """Signs, small letters and mathematics in any size."""
    for _ in range(s.rng.randint(8, 30)):
        s.font = s.rng.choice(("DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold", "DejaVuSans-Oblique"))
        text = s.rng.choice((s.words(1), "".join(s.rng.choices(SIGNS, k=s.rng.randint(1, 5)))))
        s.text(*s.spot(), text, s.between(0.06, 0.3), s.ink(), "mm")


@_train
def maze(s: Sketch) -> None:
    n = s.rng.randint(5, 16)
    walls = np.ones((2 * n + 1, 2 * n + 1), dtype=bool)
    walls[1::2, 1::2] = False
    for y in range(1, 2 * n, 2):
        for x in range(1, 2 * n, 2):
            dy, dx = s.rng.choice(((0, 1), (1, 0)))
            walls[y + dy if y + dy < 2 * n else y, x + dx if x + dx < 2 * n else x] = False
    inks = np.array([s.paper, s.ink()], dtype=np.uint8)
    s.put(Image.fromarray(inks[walls.astype(int)]).resize((s.width, s.height), Image.Resampling.NEAREST))


@_train
def board(s: Sketch) -> None:
    """Boards of games: chess, go, crosswords."""
    n, kind, ink = s.rng.randint(6, 12), s.rng.randrange(3), s.ink()
    tones = (s.color(0.6, 0.95), s.color(0.2, 0.6))
    s.clear(tones[0])
    for y in range(n):
        for x in range(n):
            if (kind == 0 and (x + y) % 2) or (kind == 2 and s.chance(0.3)):
                s.box(x / n, y / n, (x + 1) / n, (y + 1) / n, tones[1] if kind == 0 else (20, 20, 20))
            if kind < 2 and s.chance(0.45):
                s.oval((x + 0.5) / n, (y + 0.5) / n, 0.4 / n, 0.4 / n, s.rng.choice(((20, 20, 20), (245, 245, 245))))
        if kind:
            s.line([(0, y / n), (1, y / n)], ink, 0)
            s.line([(y / n, 0), (y / n, 1)], ink, 0)


# ---- seen in training: several of the above


def _inside(s: Sketch, x: int, y: int, width: int, height: int) -> None:
    """Draw another kind into a part of the picture."""
    name = s.rng.choice([name for name in TRAIN_PICTURES if name not in {"blank", "faint", "framed", "collage"}])
    part = Sketch(s.rng, (max(width, 16), max(height, 16)), s.fonts)
    TRAIN_PICTURES[name](part)
    s.image.paste(part.image, (x, y))


@_train
def framed(s: Sketch) -> None:
    left, top = (round(s.between(0.05, 0.25) * side) for side in (s.width, s.height))
    s.draw.rectangle((left - 3, top - 3, s.width - left + 2, s.height - top + 2), s.ink())
    _inside(s, left, top, s.width - 2 * left, s.height - 2 * top)
    if s.chance(0.4):
        s.text(0.5, 0.93, s.words(2), 0.07, s.ink(), "mm")


@_train
def collage(s: Sketch) -> None:
    x, y = (round(s.between(0.35, 0.65) * side) for side in (s.width, s.height))
    cut = s.rng.randrange(3)
    for left, width in ((0, x), (x, s.width - x)) if cut != 1 else ((0, s.width),):
        for top, height in ((0, y), (y, s.height - y)) if cut != 2 else ((0, s.height),):
            _inside(s, left, top, width, height)


# ---- never seen in training


@_test
def fractal(s: Sketch) -> None:
    """The Mandelbrot set or a Julia set."""
    x, y = s.plane()
    zoom = s.between(0.3, 1.4)
    z = np.asarray(x + 1j * y) * zoom
    c = z - 0.6 if s.chance(0.5) else np.full_like(z, 0.7885 * np.exp(1j * s.between(0, 6.28)))
    steps = np.zeros(x.shape, dtype=np.float32)
    for _ in range(30):
        z = np.where(np.abs(z) < 2, z * z + c, z)
        steps += np.abs(z) < 2
    s.show(s.shade((steps / 30) ** 0.5))


@_test
def voronoi(s: Sketch) -> None:
    x, y = s.plane()
    seeds = s.numbers.uniform(-1.3, 1.3, (s.rng.randint(8, 60), 2))
    distances = np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1])
    first, second = np.partition(distances, 1, axis=2)[..., :2].transpose(2, 0, 1)
    inks = s.numbers.random((len(seeds), 3))
    edge = (second - first > 0.03)[..., None]
    s.show(inks[distances.argmin(2)] * edge if s.chance(0.7) else s.shade(norm(first)))


@_test
def reaction(s: Sketch) -> None:
    """Spots and labyrinths as they grow in reaction-diffusion systems, from a repeated band-pass filter."""
    values, size, bias = s.noise(LIMIT // 2), s.between(1.5, 3), s.between(-0.2, 0.2)
    for _ in range(8):
        image = Image.fromarray((norm(values) * 255).astype(np.uint8))
        near, far = (np.asarray(image.filter(ImageFilter.GaussianBlur(r)), np.float32) for r in (size, 1.7 * size))
        values = np.tanh((near - far) / 8 + bias)
    s.show(s.shade(norm(values), s.color(0, 0.4), s.color(0.6, 1)))


@_test
def spreadsheet(s: Sketch) -> None:
    s.clear((255, 255, 255))
    s.box(0, 0, 1, 0.1, (33, 115, 70))
    s.lines(0.03, 0.13, 0.9, 0.18, 0.05, (120, 120, 120), bars=True)
    columns, rows = s.rng.randint(3, 6), s.rng.randint(9, 16)
    letters = int(s.width / columns / max(5, 0.5 / rows * s.unit) / 0.65)
    s.box(0, 0.2, 1, 0.26, (230, 230, 230))
    s.box(0, 0.2, 0.07, 1, (230, 230, 230))
    for column in range(columns):
        x, numeric = 0.07 + 0.93 * column / columns, s.chance(0.6)
        s.text(x + 0.4 / columns, 0.21, chr(65 + column), 0.045, (90, 90, 90))
        for row in range(rows):
            y = 0.26 + 0.74 * row / rows
            s.line([(0, y), (1, y)], (210, 210, 210), 0)
            if s.chance(0.75):
                word = f"{s.between(0, 999):.2f}" if numeric else s.words(1)
                s.text(x + 0.01, y + 0.005, word[:letters], 0.5 / rows, (40, 40, 40))
        s.line([(x, 0.2), (x, 1)], (210, 210, 210), 0)


@_test
def calendar(s: Sketch) -> None:
    s.clear((252, 252, 252))
    tone, start = s.color(0.3, 0.6), s.rng.randint(0, 6)
    s.box(0, 0, 1, 0.16, tone)
    s.text(0.5, 0.08, s.rng.choice(("January", "March", "June 2024", "October")), 0.1, (255, 255, 255), "mm")
    for cell in range(7):
        s.text((cell + 0.5) / 7, 0.21, "MTWTFSS"[cell], 0.06, tone, "mm")
    for day in range(1, 32):
        column, row = (day + start) % 7, (day + start) // 7
        x, y = (column + 0.5) / 7, 0.3 + 0.13 * row
        if s.chance(0.08):
            s.oval(x, y, 0.055, 0.055, s.color(0.7, 0.9))
        s.text(x, y, str(day), 0.06, (200, 60, 60) if column == 6 else (60, 60, 60), "mm")


@_test
def score(s: Sketch) -> None:
    """Music on staves."""
    s.clear((250, 248, 240))
    staves = s.rng.randint(2, 4)
    for staff in range(staves):
        top, gap = (staff + 0.25) / staves, 0.11 / staves
        for line in range(5):
            s.line([(0.03, top + gap * line), (0.97, top + gap * line)], (60, 60, 60), 0)
        s.curve([(0.06, top + 5 * gap), (0.02, top), (0.12, top - gap), (0.04, top + 3 * gap)], (20, 20, 20))
        x = 0.15
        while x < 0.95:
            y = top + gap * s.rng.randint(-1, 9) / 2
            s.oval(x, y, 0.65 * gap * s.height / s.unit, 0.5 * gap * s.height / s.unit, (20, 20, 20))
            s.line([(x + 0.6 * gap, y), (x + 0.6 * gap, y - 3 * gap)], (20, 20, 20))
            if s.chance(0.3):
                s.line([(x + 0.6 * gap, y - 3 * gap), (x + 0.1, y - 3 * gap)], (20, 20, 20), 0.025)
            x += s.between(0.05, 0.12)


@_test
def sunset(s: Sketch) -> None:
    """The sun over the sea, with its reflection."""
    x, y = s.plane()
    level, at, high = s.between(-0.1, 0.4), s.between(-0.6, 0.6), s.between(0, 0.5)
    warm = (40, 30, 90), (200, 80, 90), (255, 170, 70), (255, 225, 140)
    pale = (90, 110, 160), (190, 160, 180), (250, 200, 170), (255, 235, 200)
    dusk = s.shade(norm(np.minimum(y, level)), *s.rng.choice((warm, pale)))
    sun = np.exp(-((((x - at) ** 2 + (y - level + high) ** 2) / s.between(0.01, 0.05)) ** 2))
    ripple = np.sin(s.between(30, 70) * np.log1p(np.abs(y - level) * 4) + 9 * s.noise(12)) / 2 + 0.5
    glitter = np.exp(-((x - at) ** 2) / s.between(0.02, 0.1)) * ripple
    sea = s.shade(norm(y), (120, 60, 90), (20, 30, 70)) + glitter[..., None] * (0.8, 0.5, 0.2)
    s.show(np.where((y > level)[..., None], sea, dusk + sun[..., None] * (1, 0.9, 0.6)))


@_test
def starfield(s: Sketch) -> None:
    x, y = s.plane()
    r = np.hypot(x, y)
    arms = np.exp(-r * s.between(1.5, 3)) * (1 + 0.7 * np.sin(2 * np.arctan2(y, x) + s.between(2, 5) * np.log(r + 0.1)))
    light = 0.8 * arms * s.chance(0.5) + s.numbers.random(x.shape) ** s.between(60, 300)
    s.show(s.shade(s.clouds(2, 5) ** 3 * 0.5, (3, 3, 12), s.color(0.2, 0.6)) + light[..., None])


@_test
def wood(s: Sketch) -> None:
    x, y = s.plane()
    if s.chance(0.5):
        x, y = y, x
    rough, wide = s.between(2, 8), s.between(8, 40)
    grain = np.sin(wide * (y + 0.4 * s.noise(2) + 0.1 * np.sin(2 * x)) + rough * s.noise(3)) / 2 + 0.5
    planks = 0.12 * (np.floor((y + 1) * s.between(1, 3)) % 3)
    tones = [(90, 55, 25), (150, 100, 55), (205, 160, 105), (60, 35, 20), (230, 200, 160)]
    s.show(s.shade(0.7 * grain + planks, *s.rng.sample(tones, 3)) + s.numbers.normal(0, 0.03, (*x.shape, 1)))


@_test
def editor(s: Sketch) -> None:
    """Source code with colored words, line numbers and an overview at the right."""
    light = s.chance(0.3)
    s.clear((252, 252, 250) if light else (30, 31, 38))
    inks = [s.color(0.2, 0.45) if light else s.color(0.6, 0.85) for _ in range(5)]
    s.box(0, 0, 1, 0.07, (215, 215, 220) if light else (20, 20, 25))
    pitch, depth, y, row = s.between(0.045, 0.07), 0, 0.09, 1
    while y < 0.97:
        s.text(0.01, y, str(row), pitch * 0.8, (130, 130, 140))
        x = 0.12 + 0.06 * depth
        for _ in range(s.rng.randint(0, 5)):
            word = s.rng.choice((s.words(1), "def", "if", "return", "=", "(x)", "[0]", ":", '"a"', "+ 1"))
            if x + len(word) * pitch * 0.45 < 0.85:
                s.text(x, y, word, pitch * 0.8, s.rng.choice(inks))
                s.box(0.88 + 0.12 * x, y, 0.9 + 0.12 * x, y + 0.01, s.rng.choice(inks))
            x += (len(word) + 1) * pitch * 0.45
        depth = min(max(depth + s.rng.choice((-1, 0, 0, 1)), 0), 4)
        y, row = y + pitch, row + 1


@_test
def sign(s: Sketch) -> None:
    """A road sign on a pole before a blurred road."""
    sky(s)
    s.area([(0.3, 0.65), (0.7, 0.65), (1.3, 1), (-0.3, 1)], (95, 95, 100))
    s.box(0, 0.6, 1, 0.67, (70, 110, 60))
    s.blur(0.02)
    x, r = s.between(0.35, 0.65), s.between(0.2, 0.3)
    s.box(x - 0.015, 0.4, x + 0.015, 1, (120, 120, 125))
    corners, tone = s.rng.choice((3, 4, 8, 24)), s.rng.choice(((200, 30, 40), (30, 80, 180), (235, 190, 40)))
    turn = math.pi / corners if corners == 8 else 0
    s.star(x, 0.35, r, corners, 1, tone, turn)
    s.star(x, 0.35, 0.75 * r, corners, 1, (250, 250, 250), turn)
    s.text(x, 0.36, s.rng.choice(("STOP", "60", "!", "P", "30 km")), 0.5 * r, (20, 20, 20), "mm")


@_test
def clock(s: Sketch) -> None:
    r, ink = s.between(0.35, 0.48), s.ink()
    s.oval(0.5, 0.5, r, r, s.color(0.85, 1), ink, 0.03)
    for hour in range(1, 13):
        a = math.pi * hour / 6
        s.text(*s.polar(0.5, 0.5, 0.8 * r, a), str(hour), 0.08, (40, 40, 40), "mm")
        s.line([s.polar(0.5, 0.5, 0.92 * r, a), s.polar(0.5, 0.5, r, a)], ink)
    for reach, width in ((0.45, 0.04), (0.7, 0.025), (0.75, 0.01)):
        end = s.polar(0.5, 0.5, reach * r, s.between(0, 2 * math.pi))
        s.line([(0.5, 0.5), end], (20, 20, 20) if width > 0.01 else (200, 30, 30), width)


@_test
def tinted_noise(s: Sketch) -> None:
    """Noise with the color cast and the interference lines of a broken television."""
    h, w = s.plane()[0].shape
    rows = s.numbers.normal(0, s.between(0.05, 0.25), (h, 1, 1))
    grain = s.numbers.normal(0.5, 0.25, (h, w, 1)) + rows + (s.numbers.random((h, 1, 1)) < 0.06)
    s.show(np.broadcast_to(grain, (h, w, 3)) * (np.array(s.color(0.5, 0.8)) / 255 * 1.4))


@_test
def spheres(s: Sketch) -> None:
    """Shaded balls with shadows on a floor, as a ray tracer renders them."""
    x, y = s.plane()
    pixels = s.shade(norm(np.maximum(y, s.between(-0.3, 0.1))), s.color(0.5, 0.9), s.color(0.2, 0.6))
    light = np.array((s.between(-0.7, 0.7), -0.6, 0.6))
    light /= np.linalg.norm(light)
    for i in range(n := s.rng.randint(1, 6)):
        cx, cy, r = s.between(-0.7, 0.7), -0.2 + 0.8 * i / n, s.between(0.18, 0.45)
        shadow = np.exp(-(((x - cx + light[0] * r) / r) ** 2 + ((y - cy - r) / (0.3 * r)) ** 2))
        pixels = pixels * (1 - 0.6 * shadow[..., None])
        u, v = (x - cx) / r, (y - cy) / r
        inside = u * u + v * v < 1
        depth = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
        shine = np.clip(u * light[0] + v * light[1] + depth * light[2], 0, 1)
        ball = (np.array(s.color(0.4, 0.7)) / 255) * (0.25 + 0.75 * shine[..., None]) + shine[..., None] ** 30 * 0.8
        pixels = np.where(inside[..., None], ball, pixels)
    s.show(pixels)


@_test
def newspaper(s: Sketch) -> None:
    s.clear((242, 238, 228))
    s.text(0.5, 0.08, s.words(2).title()[:16], 0.14, (20, 20, 20), "mm")
    s.line([(0.03, 0.16), (0.97, 0.16)], (20, 20, 20))
    columns = s.rng.randint(2, 4)
    picture = s.rng.randrange(columns)
    for column in range(columns):
        left, right, y = 0.03 + 0.95 * column / columns, 0.95 * (column + 1) / columns, 0.2
        if column == picture:
            s.box(left, y, right, y + 0.3, (150, 150, 150))
            s.oval((left + right) / 2, y + 0.15, 0.08, 0.1, (80, 80, 80))
            y += 0.34
        s.lines(left, y, right, 0.98, s.between(0.045, 0.07), (50, 50, 50))


@_test
def portrait(s: Sketch) -> None:
    """Head and shoulders before an unsharp background."""
    s.show(s.shade(s.clouds(2, 3)))
    s.blur(0.05)
    red, green, blue = s.rng.randint(150, 240), s.rng.randint(110, 180), s.rng.randint(80, 140)
    hair, x = s.color(0, 0.4), s.between(0.4, 0.6)
    s.oval(x, 0.36, 0.25, 0.29, hair)
    s.oval(x, 1.05, 0.45, 0.4, s.color(0.1, 0.8))
    s.box(x - 0.07, 0.5, x + 0.07, 0.72, (red - 20, green - 20, blue - 20))
    s.oval(x, 0.42, 0.18, 0.24, (red, green, blue))
    for side in (-0.08, 0.08):
        s.oval(x + side, 0.39, 0.025, 0.015, (40, 30, 30))
    s.oval(x, 0.54, 0.05, 0.015, (170, 80, 80))
    s.blur(s.between(0.005, 0.02))
    light = 1 + s.between(-0.4, 0.4) * s.plane()[0]
    s.show(s.pixels() * light[..., None] + s.numbers.normal(0, 0.02, (*light.shape, 1)))
