"""Texts from data within Markdown pages, where they must have no effect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

#: Characters that begin tables, links, pictures, code and HTML.
_MARKUP = re.compile(r"[\\`\[\]<>|]")


def cell(text: str) -> str:
    """A text in one line of Markdown, in which it has no effect: topics, ids and prompts come from data."""
    return " ".join(_MARKUP.sub(r"\\\g<0>", text).split())


def code(text: str) -> str:
    """A text within backticks."""
    return " ".join(text.replace("`", "'").split())


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are texts from data."""
    lines = [headings, ["---"] * len(headings), *([cell(text) for text in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
