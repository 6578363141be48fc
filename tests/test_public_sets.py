"""The table of the public sets: written from its figures, what falls short in bold."""

from __future__ import annotations

import json

from training.bench.public_sets import OUT, render

NAMES = ("gain AUC", "ECE instruct", "ECE thinking", "area of the longest prompts", "area of the oracle")


def test_what_falls_short_is_bold() -> None:
    def one(area: float) -> dict[str, object]:
        figures = {"area over random": [area, 1, 4]} | {n: [0.5] for n in NAMES}
        return {"records": 1000, "seeds": 2, "covers": "", "figures": figures}

    page = render({"gsm8k, static": one(2.7), "gsm8k, other": one(2.7), "math_v, static": one(-0.1)})
    assert "| gsm8k | static | 1,000 | 2 | 2.70 (1.00 – 4.00) | 2.7 |" in page
    assert "| **2.70 (1.00 – 4.00)** | 3.3 |" in page
    assert "| **-0.10 (1.00 – 4.00)** | 0.0 |" in page


def test_the_committed_page_is_that_of_its_figures() -> None:
    assert OUT.with_suffix(".md").read_text("utf-8") == render(json.loads(OUT.read_text("utf-8")))
