"""Graders: functions that tell whether an answer is right, from gold answers or from the agreement of the modes."""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TypeAlias

from vlroute.errors import InputError
from vlroute.learning.dataset import Example
from vlroute.learning.numerals import number_of

Grader: TypeAlias = Callable[[str, Example], bool | float]
"""Takes the text of an answer and its example; returns True, False or a share 0 to 1."""

# Symbols that may matter at an end (+, %, $, a minus, the point of ".5") are not among them.
_ENDS = r"[\s\"'`*_,;:!?…。、，；：！？“”‘’«»「」『』《》【】()\[\]{}]|\.(?!\d)"
_AT_ENDS = re.compile(rf"^(?:{_ENDS})+|(?:{_ENDS})+$")

_LEAD = r"(?:answer|option|choice|答案|选项|选择|应选|故选|选)"
_LETTER = r"\(?\*{0,2}\(?([A-Z]|[a-z](?=\**\s*(?:[).:,]|$)))\)?(?![A-Za-z'’])"
#: Forms in which models write a choice, the most reliable first. Of several matches of a form the last one counts.
_CHOICES = (
    re.compile(r"^\W*([A-Za-z])\W*$"),
    re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}"),
    re.compile(rf"(?i:{_LEAD})\s*(?:(?i:is|should be|would be|为|是|:)\s*)*{_LETTER}"),
    re.compile(r"^\W*([A-Z])[).:、](?=\s|[^\x00-\x7f])"),
    re.compile(r"(?<!\w)\(([A-Za-z])\)"),
)
# "A" before a lower-case word is an article, and "I" a pronoun.
_ALONE = re.compile(r"(?<![\w'’])(?:[B-HJ-Z]|A(?!\s+[a-z])|I(?=\s*[.)]?\s*$))(?![\w'’])")


def plain(text: str) -> str:
    """Normalize a text for comparison: NFKC, case folding, single spaces, no punctuation at the ends.

    Args:
        text: Any text.

    Returns:
        The normalized text.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _AT_ENDS.sub("", text)


def choice_of(text: str, options: Sequence[str] = ()) -> str | None:
    """Find the option that a text chooses.

    Args:
        text: Such as "(B)", "Answer: B", "B. …", "选B", or the words of an option.
        options: The options without letters. If given, only their letters count.

    Returns:
        A letter from A to Z; None if the text makes no choice or an ambiguous one.
    """
    text = unicodedata.normalize("NFKC", text).strip()
    letters = ascii_uppercase[: len(options)] or ascii_uppercase
    for pattern in _CHOICES:
        found = [match[1].upper() for match in pattern.finditer(text) if match[1].upper() in letters]
        if found:
            return found[-1]
    by_words = _option_in(text, options)
    if by_words is not None:
        return by_words
    alone = {match[0] for match in _ALONE.finditer(text)} & set(letters)
    return alone.pop() if len(alone) == 1 else None


def exact(text: str, example: Example) -> bool:
    """Compare texts; case, spaces, Unicode forms and punctuation at the ends do not matter.

    Args:
        text: The answer.
        example: Its example.

    Returns:
        Whether the answer equals a gold answer.
    """
    return plain(text) in {plain(answer) for answer in example.answers}


@dataclass(frozen=True, slots=True)
class Number:
    """Compares the last number of the answer with that of a gold answer; see `numerals.number_of`.

    If only one of the two has a percent sign, 45 % equals both 45 and 0.45.

    Attributes:
        tolerance: Accepted relative error. The relaxed accuracy of ChartQA (Masry et al. 2022) uses 0.05.

    Raises:
        InputError: The tolerance is negative or not finite.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise InputError(f"tolerance must be a finite number of at least 0, such as 0.05, not {self.tolerance!r}")

    def __call__(self, text: str, example: Example) -> bool:
        """Compare the numbers.

        Args:
            text: The answer.
            example: Its example.

        Returns:
            Whether the numbers are equal within the tolerance.

        Raises:
            InputError: A gold answer contains no number.
        """
        found = number_of(text)
        for answer in example.answers:
            gold = number_of(answer)
            if gold is None:
                raise InputError(f"the gold answer {answer[:60]!r} contains no number; use another grader")
            if found is None:
                continue
            values = {found.value}
            if found.percent != gold.percent:
                values.add(found.value / 100 if found.percent else found.value * 100)
            if any(math.isclose(value, gold.value, rel_tol=1e-9, abs_tol=self._slack(gold.value)) for value in values):
                return True
        return False

    def _slack(self, gold: float) -> float:
        return self.tolerance * abs(gold) + 1e-12


def choice(text: str, example: Example) -> bool:
    """Compare the chosen options; see `choice_of`.

    Args:
        text: The answer.
        example: Its example; gold answers are letters or the words of options.

    Returns:
        Whether the answer chooses the same option as a gold answer.

    Raises:
        InputError: A gold answer chooses none.
    """
    letters = {answer: choice_of(answer, example.options) for answer in example.answers}
    for answer, letter in letters.items():
        if letter is None:
            raise InputError(f"the gold answer {answer[:60]!r} is neither a letter nor one of the options")
    return choice_of(text, example.options) in letters.values()


def regex(text: str, example: Example) -> bool:
    """Search the answer for a gold answer, which is a regular expression.

    Args:
        text: The answer.
        example: Its example.

    Returns:
        Whether one of the expressions matches somewhere.

    Raises:
        InputError: An expression is invalid.
    """
    try:
        return any(re.search(pattern, text) is not None for pattern in example.answers)
    except re.error as error:
        raise InputError(f"a gold answer is not a valid regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class Agreement:
    """Labels rows without a gold answer by whether the two modes agree. The labels are shares, never True or False.

    Agreement alone implies only that equal answers are equally right, so the gain is 0. Three shares are assumptions:
    how often agreed answers are right, and how often each mode is right if they differ. Models that are both wrong give
    the same wrong answer about 60 % of the time (Kim et al., Correlated errors in large language models, ICML 2025).
    Four public sets of direct answers and reasoning give 0.18–0.22 for Instruct, 0.16–0.74 for Thinking and 0.1–0.9
    for agreed answers; the pocket pair gives 0.15, 0.85 and 1. The defaults lie between these. Measure your own on rows
    with gold answers. Such labels can show where thinking changes nothing, but never that it does harm.

    Attributes:
        alike: Grader that compares the answer of Thinking with that of Instruct.
        agree: Share of agreed answers that are right.
        instruct: Share of answers of Instruct that are right if the modes differ.
        thinking: The same for Thinking. At most one of both can be right.

    Raises:
        InputError: The shares are outside 0 to 1, the last two exceed 1 together, or `alike` is `regex`.
    """

    alike: Grader = exact
    agree: float = 0.8
    instruct: float = 0.2
    thinking: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.agree, self.instruct, self.thinking)
        if not all(0 <= share <= 1 for share in shares) or self.instruct + self.thinking > 1:
            raise InputError(
                f"agreement needs shares 0 to 1; those of Instruct and Thinking add up to at most 1; found {shares}"
            )
        if self.alike is regex:
            raise InputError("agreement cannot compare answers by regex; use exact, number, choice or a function")

    def __call__(self, instruct: str, thinking: str, example: Example) -> tuple[float, float]:
        """Estimate how right both modes are.

        Args:
            instruct: Answer of Instruct.
            thinking: Answer of Thinking.
            example: The example.

        Returns:
            The shares of Instruct and of Thinking. An empty answer is wrong, no other one is for certain.
        """
        if not instruct.strip() or not thinking.strip():
            return (self.instruct if instruct.strip() else 0.0), (self.thinking if thinking.strip() else 0.0)
        try:
            alike = self.alike(thinking, replace(example, answers=(instruct,)))
        except InputError:  # the answer of Instruct contains no number or letter
            alike = False
        return (self.agree, self.agree) if alike else (self.instruct, self.thinking)


def parse_agreement(shares: str, grader: Grader) -> Agreement:
    """Parse the shares of `Agreement`.

    Args:
        shares: Three numbers such as "0.8,0.2,0.5", for agreed answers, Instruct and Thinking.
        grader: Compares the answers.

    Returns:
        The labeler.

    Raises:
        InputError: The text is not three valid shares.
    """
    try:
        agree, instruct, thinking = (float(part) for part in shares.split(","))
    except ValueError as error:
        raise InputError(f"cannot read the shares {shares!r}; expected three such as 0.8,0.2,0.5") from error
    return Agreement(grader, agree, instruct, thinking)


def load_grader(name: str, tolerance: float = 0.0) -> Grader:
    """Return a grader by its name.

    Args:
        name: "exact", "number", "choice", "regex", or "module:function". The last form imports the module, which is
            searched for in the working directory, too: use it only for names that the user typed.
        tolerance: Relative error that "number" accepts.

    Returns:
        The grader.

    Raises:
        InputError: An unknown name, a module or function that does not exist, or an invalid tolerance.
    """
    graders: dict[str, Grader] = {"exact": exact, "number": Number(tolerance), "choice": choice, "regex": regex}
    module, colon, function = name.partition(":")
    if not colon:
        if name not in graders:
            raise InputError(f"unknown grader {name!r}; known: {', '.join(graders)}, or your own as module:function")
        return graders[name]
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load the grader {name!r}: {error}; expected module:function") from error
    finally:
        sys.path.remove(os.getcwd())
    if not callable(found):
        raise InputError(f"the grader {name!r} is a {type(found).__name__}; expected a function (text, example)")
    return found  # type: ignore[no-any-return]


def _option_in(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that equals the text or, if none does, of the only option that the text contains."""
    words = plain(text)
    by_letter = {letter: plain(option) for letter, option in zip(ascii_uppercase, options, strict=False)}
    same = [letter for letter, option in by_letter.items() if option == words]
    if same:
        return same[0] if len(same) == 1 else None
    contained = {letter: option for letter, option in by_letter.items() if option and _contains(words, option)}
    # "dark red" contains "red", too: an option that is part of another contained one does not count
    contained = {
        letter: option
        for letter, option in contained.items()
        if not any(option != other and option in other for other in contained.values())
    }
    return next(iter(contained)) if len(contained) == 1 else None


def _contains(words: str, option: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(option)}(?![a-z0-9])", words) is not None
