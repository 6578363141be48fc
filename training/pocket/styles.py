"""Fonts and colors of the drawings: one set for training, and one for tests only."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vlroute.pocket.canvas import Ink, Style

#: Names of font files; None is Pillow's own font. Matplotlib ships the others.
TRAIN_FONTS: tuple[str | None, ...] = (
    None,
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmss10",
    "cmr10",
    "cmb10",
    "cmtt10",
)
#: Names of font files in the packages of the extra `fonts`.
TEST_FONTS: tuple[str | None, ...] = (
    "Lato-Regular",
    "Lato-Bold",
    "Manrope-Regular",
    "Manrope-Bold",
    "HankenGrotesk-Medium",
    "HankenGrotesk-Bold",
    "RedHatDisplay-Medium",
    "RedHatDisplay-Bold",
    "Caladea-Regular",
    "Caladea-Bold",
    "FredokaOne-Regular",
)
PACKAGES = {
    "Lato": "font_lato",
    "Manrope": "font_manrope",
    "HankenGrotesk": "font_hanken_grotesk",
    "RedHatDisplay": "font_rhd",
    "Caladea": "font_caladea",
    "FredokaOne": "font_fredoka_one",
}


@cache
def font_path(name: str | None) -> str | None:
    """Path of a font file, for `Style.font`.

    Args:
        name: One of `TRAIN_FONTS` or `TEST_FONTS`.

    Returns:
        The path; None for Pillow's own font.

    Raises:
        FileNotFoundError: If the package of the font is not installed.
    """
    if name is None:
        return None
    package = PACKAGES.get(name.split("-")[0])
    spec = find_spec(package or "matplotlib")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / ("files" if package else "mpl-data/fonts/ttf")
        for path in (folder / f"{name}.ttf", folder / f"{name}.otf"):
            if path.exists():
                return str(path)
    raise FileNotFoundError(f"font {name!r} not found; install the extras: pip install 'vlroute[fonts,train]'")


@dataclass(frozen=True, slots=True)
class Palette:
    """A region of the color space.

    Attributes:
        hues: Ranges of hues in degrees, for saturated colors.
        grays: Ranges of lightness from 0 to 1, for gray colors.
    """

    hues: tuple[tuple[float, float], ...]
    grays: tuple[tuple[float, float], ...]

    def color(self, rng: random.Random, lightness: tuple[float, float], gray: float = 0.3) -> Ink:
        """Draw a color.

        Args:
            rng: Source of randomness.
            lightness: Range of lightness of saturated colors, within 0.08 to 0.93, where 8 bits still keep the hue.
                Grays come from the nearest of `grays`.
            gray: Probability of a gray.

        Returns:
            The color.
        """
        if rng.random() < gray:
            band = min(self.grays, key=lambda one: abs(sum(one) - sum(lightness)))
            return (round(255 * rng.uniform(*band)),) * 3
        widths = [high - low for low, high in self.hues]
        hue = rng.uniform(*rng.choices(self.hues, widths)[0])
        red, green, blue = colorsys.hls_to_rgb(hue / 360, rng.uniform(*lightness), rng.uniform(0.5, 1.0))
        return round(255 * red), round(255 * green), round(255 * blue)


# The hues are 5 degrees apart, so that rounding to 8 bits does not mix them. The colors of `Style` belong to training.
TRAIN_PALETTE = Palette(hues=((0, 53), (89, 143), (179, 233), (269, 293), (329, 360)), grays=((0, 0.12), (0.88, 1)))
TEST_PALETTE = Palette(hues=((58, 84), (148, 174), (238, 264), (298, 324)), grays=((0.15, 0.25), (0.75, 0.85)))


def contrast(a: Ink, b: Ink) -> float:
    """Contrast ratio of two colors by WCAG 2, from 1 to 21."""

    def luminance(ink: Ink) -> float:
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in ink]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def distance(a: Ink, b: Ink) -> float:
    """Euclidean distance of two colors in RGB."""
    return math.dist(a, b)


def draw_style(
    rng: random.Random, fonts: Sequence[str | None] = TRAIN_FONTS, palette: Palette = TRAIN_PALETTE
) -> Style:
    """Draw a font, a light or dark paper, and inks that can be told from it and from each other.

    Args:
        rng: Source of randomness.
        fonts: Names of fonts to choose from.
        palette: Region of the colors.

    Returns:
        The style: four inks of text with a contrast of at least 4.5, the level that WCAG 2 requires of text, and
        three colors of shapes.
    """
    dark = rng.random() < 0.35
    paper = palette.color(rng, (0.08, 0.2) if dark else (0.86, 0.93), gray=0.4)
    inks: list[Ink] = []
    while len(inks) < 4:
        ink = palette.color(rng, (0.6, 0.93) if dark else (0.1, 0.45))
        if contrast(ink, paper) >= 4.5:
            inks.append(ink)
    shapes: list[Ink] = []
    while len(shapes) < 3:
        ink = palette.color(rng, (0.3, 0.75), gray=0.1)
        if contrast(ink, paper) >= 2 and all(distance(ink, other) >= 120 for other in (paper, *shapes)):
            shapes.append(ink)
    return Style(
        paper=paper,
        inks=tuple(inks),
        shape_inks=(shapes[0], shapes[1], shapes[2]),
        font=font_path(rng.choice(fonts)),
    )
