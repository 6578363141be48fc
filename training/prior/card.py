"""Write the figures into the README of the real pair's prior.

    python -m training.prior.card

What the router makes of prompts that it was not trained on, in two languages, at the default price, and how that fits
the published scores of their kind. Whether Qwen3-VL is right more often for it, these figures cannot say.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from training.prior.scores import BENCHMARKS
from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.policy import Policy
from vlroute.files import replace_file
from vlroute.types import Mode

ROOT = Path(__file__).resolve().parents[2]
PARALLEL = ROOT / "tests" / "parallel_prompts.jsonl"
FOLDER = ROOT / "models" / "qwen3-vl-2b"
NAME = FOLDER.name
BEGIN, END = "<!-- figures: written by script, do not edit by hand -->", "<!-- /figures -->"


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt in both languages, as the router saw it: modes and predictions in English, then in Chinese."""

    family: str
    modes: tuple[Mode, Mode]
    predictions: tuple[Prediction, Prediction]

    @property
    def agree(self) -> bool:
        return self.modes[0] == self.modes[1]


def parallel(classifier: ComplexityClassifier, policy: Policy, router: str) -> list[Pair]:
    """Decisions on the parallel prompts that are meant for `router`."""
    pairs = []
    for row in map(json.loads, PARALLEL.read_text("utf-8").splitlines()):
        if row["router"] == router:
            english, chinese = (classifier.predict(row[language], row["caption"]) for language in ("en", "zh"))
            modes = policy.decide(english, classifier.latency).mode, policy.decide(chinese, classifier.latency).mode
            pairs.append(Pair(row["family"], modes, (english, chinese)))
    return pairs


def figures(pairs: list[Pair]) -> str:
    """The section between the marks."""
    by_family: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_family[pair.family].append(pair)
    lines = [
        f"On {len(pairs)} prompts that were not trained on, each in English and in Chinese, at the default price of "
        f"{Policy().price:g}:",
        f"the decision is the same in both languages for {mean(p.agree for p in pairs):.1%}. *Published*: mean gain of "
        "Thinking over the benchmarks of the kind, in points.",
        "",
        "| kind | prompts | published gain | predicted gain | to Thinking | same in both |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for family, some in sorted(by_family.items()):
        known = [b.thinking - b.instruct for b in BENCHMARKS if b.family == family]
        gains = [one.gain for pair in some for one in pair.predictions]
        thinks = [mode == "thinking" for pair in some for mode in pair.modes]
        published = f"{100 * mean(known):+.1f}" if known else "–"
        lines.append(
            f"| {family} | {len(some)} | {published} | {100 * mean(gains):+.1f} | {mean(thinks):.0%} | "
            f"{mean(pair.agree for pair in some):.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    classifier = ComplexityClassifier.load(FOLDER / "router")
    readme = FOLDER / "README.md"
    before, rest = readme.read_text("utf-8").split(BEGIN)
    section = figures(parallel(classifier, Policy(), NAME))
    page = f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}"
    replace_file(readme, page.encode())
    print(section)


if __name__ == "__main__":
    main()
