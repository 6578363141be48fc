"""How a user puts a question: what stands around it, how options are laid out, and now and then a slip.

Every benchmark's questions get the same styles equally often, so that a style says nothing about which mode is right.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from training.prior.prompts_draw import Both, Drawn

OPENINGS: tuple[Both, ...] = (
    ("Please help me with this: ", "请帮我看一下："),
    ("Hi! ", "你好！"),
    ("Quick question: ", "问个小问题："),
    ("Could you tell me? ", "请问，"),
    ("Have a look. ", "看一下，"),
    ("I have no idea, so: ", "我不太懂，"),
    ("Question: ", "问题："),
    ("Based on what you see: ", "根据你看到的内容："),
)
CLOSINGS: tuple[Both, ...] = (
    ("Answer with a single word or number.", "用一个词或数字回答。"),
    ("Just the answer, please.", "只要答案。"),
    ("Keep it short.", "简短回答。"),
    ("Explain your answer.", "请说明理由。"),
    ("Thanks!", "谢谢！"),
    ("Be careful.", "请仔细看。"),
)
LETTER_ONLY: tuple[Both, ...] = (
    ("Answer with the letter only.", "只回答选项字母。"),
    ("Reply with the letter of the right option.", "请直接给出正确选项的字母。"),
    ("Pick one.", "选一个。"),
)
#: (before the letter, behind it, between options) in each language.
LAYOUTS: tuple[tuple[tuple[str, str, str], tuple[str, str, str]], ...] = (
    (("(", ") ", "\n"), ("(", ") ", "\n")),
    (("", ". ", "\n"), ("", ". ", "\n")),
    (("", ") ", "  "), ("", "．", "　")),
    (("", ": ", "; "), ("", "：", "；")),
)
MIXED = {
    "图表": "chart",
    "截图": "screenshot",
    "照片": "photo",
    "视频": "video",
    "片段": "clip",
    "图片": "image",
    "机器人": "robot",
    "信息图": "infographic",
    "流程图": "flowchart",
    "按钮": "button",
    "菜单": "menu",
    "图例": "legend",
    "坐标": "coordinates",
}
MISHEARD = {"哪": "那", "在": "再", "的": "地", "做": "作"}


def put(drawn: Drawn, rng: random.Random) -> Both:
    """The whole prompt in both languages: the same style, but slips and English words in Chinese fall apart."""
    with_options = bool(drawn.options) and rng.random() < 0.6
    opening = rng.choice(OPENINGS) if rng.random() < 0.25 else ("", "")
    closing = rng.choice(LETTER_ONLY if with_options else CLOSINGS) if rng.random() < 0.3 else ("", "")
    layout = rng.choice(LAYOUTS)
    headed = rng.random() < 0.3
    english, chinese = drawn.question
    if rng.random() < 0.08:
        english = english.lower().rstrip(".?")
    if rng.random() < 0.08:
        chinese = chinese.rstrip("。？")
    if rng.random() < 0.08:
        chinese = re.sub("|".join(sorted(MIXED, key=len, reverse=True)), lambda m: f" {MIXED[m[0]]} ", chinese)
    if rng.random() < 0.03:
        english = swap_letters(english, rng)
    if rng.random() < 0.03:
        chinese = re.sub("|".join(MISHEARD), lambda m: MISHEARD[m[0]], chinese, count=1)
    texts = []
    for language, question in enumerate((english, chinese)):
        parts = [opening[language] + question.strip()]
        if with_options:
            heading = [("Options:", "选项：")[language]] if headed else []
            parts += [*heading, lay_out([option[language] for option in drawn.options], layout[language])]
        space = "\n" if with_options else (" ", "")[language]
        if closing[language] and not with_options and parts[0][-1].isalnum():
            parts[0] += (".", "。")[language]
        texts.append(space.join([*parts, closing[language]] if closing[language] else parts))
    return texts[0], texts[1]


def lay_out(options: Sequence[str], layout: tuple[str, str, str]) -> str:
    """Options with the letters A, B, C … in front."""
    before, behind, between = layout
    return between.join(f"{before}{chr(ord('A') + i)}{behind}{option}" for i, option in enumerate(options))


def swap_letters(text: str, rng: random.Random) -> str:
    """Two neighbouring letters inside one longer word change places."""
    words = list(re.finditer(r"[a-z]{5,}", text))
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
