"""The texts of the page in each language, and its fonts and colors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

#: Colors of the modes and of the router, on the page and in the plot.
COLORS = {"instruct": "#0f766e", "thinking": "#7c3aed", "router": "#2563eb"}

FONTS = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
    "Noto Sans SC", "sans-serif",
)  # fmt: skip
MONO_FONTS = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace")
FONT = ", ".join(f'"{name}"' if " " in name else name for name in FONTS)


class Texts(SimpleNamespace):
    """All texts of the page in one language; `{…}` are filled in with `str.format`. The languages are in texts.json."""

    @classmethod
    def load(cls) -> dict[str, Texts]:
        """The texts of each language by its BCP 47 code."""
        file = Path(__file__).with_name("texts.json")
        return {language: cls(**texts) for language, texts in json.loads(file.read_text(encoding="utf-8")).items()}


TEXTS = Texts.load()
