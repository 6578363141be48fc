"""Memory of a thousand conversation turns whose pictures do not fit into the caches.

The processor of the pocket pair is set to larger pictures, so that their features exceed the limit of the cache.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from training.bench.real_size import draw_picture, resident
from training.page import POCKET, step
from vlroute import Chat, PrefixCache, Router, VisionCache
from vlroute.engine.cache.vision import MiB
from vlroute.types import MODES

TURNS, PICTURES, LIMIT, SIDE, LONGEST = 1000, 50, 64 * MiB, 768, 5
QUESTIONS = ("How many circles?", "Read the text.", "What is the total?", "数字加起来是多少？")


@dataclass(frozen=True, slots=True)
class Stretch:
    """The turns up to `turn`: highest bytes within the stretch, and counters of the vision cache since the start.

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
    """`all_features`: bytes of the features of all pictures; `limit`: bytes of each cache."""

    turns: int
    pictures: int
    side: int
    longest: int
    limit: int
    all_features: int
    stretches: list[Stretch]


def copy_pair(folder: Path, side: int) -> None:
    """Copy the pocket pair; the processors of the copy keep pictures of `side` pixels as they are."""
    for mode in MODES:
        shutil.copytree(POCKET / mode, folder / mode)
        file = folder / mode / "processor_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["image_processor"]["size"] = {"shortest_edge": side * side, "longest_edge": side * side}
        file.write_text(json.dumps(settings), encoding="utf-8")


def soak(turns: int = TURNS, pictures: int = PICTURES, limit: int = LIMIT, side: int = SIDE) -> Soak:
    """Run conversations of up to five turns, with random modes and pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        copy_pair(Path(temporary), side)
        router = Router.from_pretrained(
            instruct=Path(temporary, "instruct"), thinking=Path(temporary, "thinking"),
            vision_cache=VisionCache(limit), prefix_cache=PrefixCache(limit),
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
        chat.send(
            rng.choice(QUESTIONS), image, mode=rng.choice(MODES), do_sample=False, max_new_tokens=4, answer_reserve=0
        )
        vision, prefix = router.cache.stats(), router.prefixes.stats()
        samples.append((resident("VmRSS") or 0, vision.bytes, prefix.bytes))
        if turn % (turns // 10) == 0:
            memory, *caches = zip(*samples, strict=True)
            held, read = map(max, caches)
            counts = (vision.encodes, vision.evictions, vision.hits)
            stretches.append(Stretch(turn, sum(memory) / len(memory), max(memory), held, read, *counts))
            samples.clear()
            step(f"turn {turn}: {memory[-1] / 1e6:.0f} MB")
    one = vision.bytes // max(1, vision.items)
    return Soak(turns, pictures, side, LONGEST, limit, pictures * one, stretches)
