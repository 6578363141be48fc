"""How each question is put, in English and Chinese. Several wordings each; none says how hard the picture is."""

from __future__ import annotations

import random

WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "ocr": {
        "en": (
            "Read the text.",
            "What does it say?",
            "Transcribe the text in the picture.",
            "What is written here?",
        ),
        "zh": ("读出文字。", "上面写着什么？", "图中的文字是什么？"),
    },
    "count": {
        "en": ("How many {shape}?", "Count the {shape}.", "How many {shape} are in the picture?"),
        "zh": ("有几个{shape}？", "数一数{shape}。", "图中有多少个{shape}？"),
    },
    "sum": {
        "en": (
            "Add the numbers.",
            "What is the total?",
            "Sum up the numbers shown.",
            "What do the numbers add up to?",
        ),
        "zh": ("求和。", "数字的总和是多少？", "把数字加起来。"),
    },
    "angle": {
        "en": ("Find the missing angle.", "How large is the angle marked ?", "What is the unknown angle?"),
        "zh": ("求未知的角。", "问号处的角是多少度？"),
    },
    "gui": {
        "en": (
            "You are on screen {start}. Which taps lead to {goal}?",
            "From {start}, what do I tap to open {goal}?",
            "Show the taps from {start} to {goal}.",
        ),
        "zh": ("从{start}怎么点到{goal}？", "现在在屏幕{start}，依次点什么能打开{goal}？"),
    },
    "hop": {
        "en": (
            "Start at {start} and follow {count} arrows.",
            "Where do {count} hops from {start} lead?",
            "From {start}, take {count} steps along the arrows. Where are you?",
        ),
        "zh": ("从{start}出发，沿箭头走{count}步，到哪里？", "从{start}跟着{count}个箭头走。"),
    },
    "lamp": {
        "en": ("How often did the lamp light?", "How many times does the lamp flash?", "Count the flashes."),
        "zh": ("灯亮了几次？", "数一数灯闪了多少次。"),
    },
    "letter": {
        "en": (
            "At which second does {letter} show?",
            "When does {letter} appear?",
            "Which second shows {letter}?",
        ),
        "zh": ("{letter}在第几秒出现？", "字母{letter}什么时候出现？"),
    },
}

SHAPE_NAMES = {
    "en": {"o": "circles", "s": "squares", "t": "triangles"},
    "zh": {"o": "圆形", "s": "方形", "t": "三角形"},
}

#: Asks the Instruct model for its short caption; a trained task of its own, used by the captioner.
CAPTION_PROMPT = "Describe the picture in a few words."
#: Asks for everything that is there to read, symbol by symbol; used in training only.
TRANSCRIPT_PROMPT = "List everything in the picture."
#: Asks for how many there are of each kind of shape; used in training only.
TALLY_PROMPT = "Count everything in the picture."
#: Asks where every arrow or button belongs, in any order; used in training only.
LINKS_PROMPT = "Follow everything in the picture."

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def counted(count: int, noun: str) -> str:
    """`counted(3, "number")` is "three numbers"."""
    return f"{NUMBER_WORDS[count]} {noun}{'' if count == 1 else 's'}"


def ask(question: str, language: str, rng: random.Random, **words: object) -> str:
    """One of the wordings of `question`, filled in."""
    return rng.choice(WORDINGS[question][language]).format(**words)
