"""Write the figures into the README of the real pair's prior: `python -m training.prior.card`

They show the decisions of the router on prompts that it was not trained on, in two languages and at the default price,
next to the published scores of their kind. They do not show whether Qwen3-VL is right more often with this router.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import mean
from typing import Any

from training.page import ROOT, put_section, render
from training.prior.scores import BENCHMARKS
from vlroute import ComplexityClassifier, Mode, Policy, Prediction

PARALLEL = ROOT / "tests" / "parallel_prompts.jsonl"
FOLDER = ROOT / "models" / "qwen3-vl-2b"
BEGIN, END = "<!-- figures: written by script, do not edit by hand -->", "<!-- /figures -->"


@dataclass(frozen=True, slots=True)
class Parallel:
    """One prompt in English and Chinese: its topic, and the router's modes and predictions in each language."""

    topic: str
    modes: tuple[Mode, Mode]
    predictions: tuple[Prediction, Prediction]

    @property
    def agree(self) -> bool:
        return self.modes[0] == self.modes[1]


def parallel(classifier: ComplexityClassifier, policy: Policy, router: str) -> list[Parallel]:
    """Decisions on the parallel prompts that are meant for `router`."""
    found = []
    for row in map(json.loads, PARALLEL.read_text("utf-8").splitlines()):
        if row["router"] == router:
            english, chinese = (classifier.predict(row[language], row["caption"]) for language in ("en", "zh"))
            modes = policy.decide(english, classifier.latency).mode, policy.decide(chinese, classifier.latency).mode
            found.append(Parallel(row["family"], modes, (english, chinese)))
    return found


def section(prompts: list[Parallel]) -> str:
    """The section between the marks."""

    def row(topic: str) -> dict[str, Any]:
        some = [one for one in prompts if one.topic == topic]
        published = [one.thinking - one.instruct for one in BENCHMARKS if one.topic == topic]
        return {
            "topic": topic,
            "prompts": len(some),
            "published": mean(published) if published else None,
            "gain": mean(prediction.gain for one in some for prediction in one.predictions),
            "thinking": mean(mode == "thinking" for one in some for mode in one.modes),
            "agree": mean(one.agree for one in some),
        }

    rows = [row(topic) for topic in sorted({one.topic for one in prompts})]
    agree = mean(one.agree for one in prompts)
    return render("prior_figures.md", prompts=len(prompts), price=Policy().price, agree=agree, rows=rows)


def main() -> None:
    classifier = ComplexityClassifier.load(FOLDER / "router")
    put_section(FOLDER / "README.md", BEGIN, END, section(parallel(classifier, Policy(), FOLDER.name)))


if __name__ == "__main__":
    main()
