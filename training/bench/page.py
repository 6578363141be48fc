"""What the pages of measurements share: tables, and where the figures were taken."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from vlroute.files import replace_file

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "benchmarks"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table: the first column to the left, all others to the right."""
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] + ["---:"] * (len(head) - 1), *rows]]


def put_section(page: Path, begin: str, end: str, section: str) -> None:
    """Write `section` between the marks of `page`, or with them at its end. OSError."""
    before, _, rest = page.read_text("utf-8").partition(begin)
    replace_file(page, f"{before}{begin}\n{section}{end}{rest.partition(end)[2]}".encode())


def hardware() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB of memory"


def versions() -> str:
    """Of what decides the figures, and today's date."""
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{platform.system()}. {time.strftime('%Y-%m-%d')}."
    )
