"""A thousand turns within a budget: does memory stay flat? `python -m training.bench.resident`

The pocket pair with its processor set to larger pictures, so that all of them together outgrow the budget.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import transformers

from training.bench.measure import draw_picture, in_own_process, resident
from vlroute import Chat, Router
from vlroute.engine.prefix_cache import PrefixCache
from vlroute.engine.vision_cache import MiB, VisionCache
from vlroute.modes import MODES
from vlroute.shipped import shipped

TURNS, PICTURES, BUDGET, SIDE, LONGEST = 1000, 50, 64 * MiB, 768, 5
QUESTIONS = ("How many circles?", "Read the text.", "What is the total?", "数字加起来是多少？")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Turns up to `turn`: most bytes held within the stretch, and what the caches did since the start.

    `resident` is the mean over the stretch, sampled after each turn.
    """

    turn: int
    resident: float
    resident_most: int
    vision_most: int
    prefix_most: int
    encodes: int
    evictions: int
    hits: int


@dataclass(frozen=True, slots=True)
class Soak:
    """`all_features`: what the features of all pictures together take; `bound`: the budget of each cache."""

    turns: int
    pictures: int
    side: int
    bound: int
    all_features: int
    stretches: list[Stretch]


def larger_pictures(folder: Path, side: int) -> None:
    """Copies of the pocket pair whose processors keep pictures of `side` pixels as they are."""
    for mode in MODES:
        shutil.copytree(shipped(f"pocket/{mode}"), folder / mode)
        file = folder / mode / "processor_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["image_processor"]["size"] = {"shortest_edge": side * side, "longest_edge": side * side}
        file.write_text(json.dumps(settings), encoding="utf-8")


def soak(turns: int, pictures: int, bound: int, side: int, report: Callable[[str], None] = lambda step: None) -> Soak:
    """Conversations of up to five turns, both modes, at random; each ends and is forgotten."""
    with tempfile.TemporaryDirectory() as temporary:
        larger_pictures(Path(temporary), side)
        router = Router.from_pretrained(
            instruct=Path(temporary, "instruct"), thinking=Path(temporary, "thinking"),
            vision_cache=VisionCache(bound), prefix_cache=PrefixCache(bound),
        ).load()  # fmt: skip
    rng = random.Random(0)
    drawn = [draw_picture(side, 100 + number) for number in range(pictures)]
    chat: Chat = router.chat()
    left = 0
    samples: list[tuple[int, int, int]] = []
    stretches: list[Stretch] = []
    for turn in range(1, turns + 1):
        image = None
        if not left:
            chat, left, image = router.chat(), rng.randint(1, LONGEST), rng.choice(drawn)
        left -= 1
        chat.send(rng.choice(QUESTIONS), image, mode=rng.choice(MODES), do_sample=False, max_new_tokens=4)
        vision, prefix = router.cache.stats(), router.prefixes.stats()
        samples.append((resident("VmRSS") or 0, vision.bytes, prefix.bytes))
        if turn % (turns // 10) == 0:
            memory, held, read = zip(*samples, strict=True)
            stretches.append(
                Stretch(turn, sum(memory) / len(memory), max(memory), max(held), max(read), vision.encodes,
                        vision.evictions, vision.hits)
            )  # fmt: skip
            samples.clear()
            report(f"turn {turn}: {memory[-1] / 1e6:.0f} MB")
    one = vision.bytes // max(1, vision.items)
    return Soak(turns, pictures, side, bound, pictures * one, stretches)


def soak_apart(report: Callable[[str], None]) -> Soak:
    """`soak` in a fresh process, whose memory is its own."""
    found = in_own_process("training.bench.resident", [], report)
    return Soak(**{**found, "stretches": [Stretch(**each) for each in found["stretches"]]})


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(asdict(soak(TURNS, PICTURES, BUDGET, SIDE, lambda step: print(step, flush=True)))))


if __name__ == "__main__":
    main()
