"""Example questions for the empty conversation: drawn pictures that the pocket models can read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from vlroute.pocket.tasks import LANGUAGES, draw_scene

#: Kind, level and seed of the drawn pictures.
DRAWN = (("ocr", "medium", 0), ("count", "medium", 0), ("math", "hard", 3), ("hop", "medium", 1))


@dataclass(frozen=True, slots=True)
class Example:
    """A question about one picture. `file`: path of the picture."""

    text: str
    file: str


def draw_examples(folder: Path) -> dict[str, tuple[Example, ...]]:
    """Draw the pictures.

    Args:
        folder: Where the pictures are written.

    Returns:
        The same questions in each language.
    """
    drawn: dict[str, list[Example]] = {language: [] for language in LANGUAGES}
    for kind, level, seed in DRAWN:
        scene = draw_scene(random.Random(seed), kind, level)
        file = folder / f"{kind}.png"
        scene.canvases[0].image.save(file)
        for language in LANGUAGES:
            drawn[language].append(Example(scene.task(random.Random(seed), language).prompt, str(file)))
    return {language: tuple(examples) for language, examples in drawn.items()}
