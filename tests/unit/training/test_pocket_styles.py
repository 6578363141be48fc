"""Fonts and palettes of the drawings: training and test share none, and all stay legible."""

from __future__ import annotations

import colorsys
import random

import pytest
from training.pocket.styles import (
    TEST_FONTS,
    TEST_PALETTE,
    TRAIN_FONTS,
    TRAIN_PALETTE,
    Palette,
    contrast,
    distance,
    draw_style,
    font_path,
)

from vlroute.pocket.canvas import DIGITS, INKS, LETTERS, PAPERS, Ink, font


def holds(palette: Palette, ink: Ink) -> bool:
    """Whether a color lies in a palette, up to rounding."""
    hue, lightness, _ = colorsys.rgb_to_hls(*(c / 255 for c in ink))
    if max(ink) == min(ink):
        return any(low - 0.01 <= lightness <= high + 0.01 for low, high in palette.grays)
    return any(low - 2.5 <= 360 * hue <= high + 2.5 for low, high in palette.hues)


def test_contrast_of_known_colors() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((255, 255, 255), (119, 119, 119)) == pytest.approx(4.48, abs=0.01)


def test_fonts_are_disjoint_and_have_the_height_of_the_own_font() -> None:
    assert not set(TRAIN_FONTS) & set(TEST_FONTS)
    for name in TRAIN_FONTS + TEST_FONTS:
        loaded = font(font_path(name))
        _, top, _, bottom = loaded.getbbox("H")
        assert bottom - top == pytest.approx(9, abs=1), name
        masks = [bytes(loaded.getmask(glyph)) for glyph in LETTERS + DIGITS]
        assert len(set(masks)) == len(masks), name


def test_missing_font_tells_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"vlroute\[fonts,train\]"):
        font_path("Nonexistent-Regular")


def test_default_colors_belong_to_training() -> None:
    assert all(holds(TRAIN_PALETTE, ink) and not holds(TEST_PALETTE, ink) for ink in PAPERS + INKS)


@pytest.mark.parametrize(
    ("fonts", "palette", "other"),
    [(TRAIN_FONTS, TRAIN_PALETTE, TEST_PALETTE), (TEST_FONTS, TEST_PALETTE, TRAIN_PALETTE)],
    ids=["train", "test"],
)
def test_styles_are_legible_and_of_one_palette(fonts: tuple[str | None, ...], palette: Palette, other: Palette) -> None:
    styles = [draw_style(random.Random(seed), fonts, palette) for seed in range(300)]
    assert styles == [draw_style(random.Random(seed), fonts, palette) for seed in range(300)]
    assert {style.font for style in styles} == {font_path(name) for name in fonts}
    dark = [sum(style.paper) < 3 * 128 for style in styles]
    assert sum(dark) == pytest.approx(105, abs=40)
    for style in styles:
        for ink in (style.paper, *style.inks, *style.shape_inks):
            assert (holds(palette, ink), holds(other, ink)) == (True, False), ink
        assert all(contrast(ink, style.paper) >= 4.5 for ink in style.inks)
        circle, square, triangle = style.shape_inks
        pairs = ((circle, square), (circle, triangle), (square, triangle))
        assert min(distance(a, b) for a, b in pairs) >= 120
        assert min(distance(ink, style.paper) for ink in style.shape_inks) >= 120
