"""Pictures for practice alone: links that follow from nothing but a look at the picture.

In a ring of arrows, or on screens of three buttons, the set of letters alone gives half the answer away, and training
stays there. Where every link has two letters of its own, looking up is all that helps.
"""

from __future__ import annotations

import random

from vlroute.pocket.canvas import LETTERS, Canvas
from vlroute.pocket.tasks import Task


def draw_links(rng: random.Random, family: str, count: int) -> Task:
    """One to eleven arrows (`family` hop) or buttons (gui) that share no letter, scattered over a picture."""
    names = rng.sample(LETTERS, 2 * count)
    canvas, links = Canvas(rng), []
    for cell, name, other in zip(rng.sample(range(16), count), names[:count], names[count:], strict=True):
        (canvas.arrow if family == "hop" else canvas.button)(cell % 4, cell // 4, name, other)
        links.append(f"{name}>{other}" if family == "hop" else f"{other}<{name}")
    return Task(
        family, "practice", "easy", "en", prompt="", answer="", thinking="", caption="", transcript=" ".join(links),
        frames=(canvas.image,), glyphs=(tuple(canvas.glyphs),),
    )  # fmt: skip
