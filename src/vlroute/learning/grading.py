"""Was the answer right? Judges that compare with gold answers, and what agreement of the modes says without any."""

from __future__ import annotations

import importlib
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TypeAlias

from vlroute.errors import InputError
from vlroute.learning.dataset import Example
from vlroute.learning.numerals import number_of

Grader: TypeAlias = Callable[[str, Example], bool | float]
"""Takes the answer's text and its example; gives true, false or a share 0 to 1."""

# Symbols that may carry meaning at an end (+, %, $, a minus, the point of ".5") are not among them.
_ENDS = r"[\s\"'`*_,;:!?…。、，；：！？“”‘’«»「」『』《》【】()\[\]{}]|\.(?!\d)"
_AT_ENDS = re.compile(rf"^(?:{_ENDS})+|(?:{_ENDS})+$")

_SAID = r"(?:answer|option|choice|答案|选项|选择|应选|故选|选)"
_LETTER = r"\(?\*{0,2}\(?([A-Z]|[a-z](?=\**\s*(?:[).:,]|$)))\)?(?![A-Za-z'’])"
#: How models write a choice, the surest way first; of several places in a text the last one counts.
_CHOICES = (
    re.compile(r"^\W*([A-Za-z])\W*$"),
    re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{)?\s*\(?([A-Za-z])\)?\s*\}"),
    re.compile(rf"(?i:{_SAID})\s*(?:(?i:is|should be|would be|为|是|:)\s*)*{_LETTER}"),
    re.compile(r"^\W*([A-Z])[).:、](?=\s|[^\x00-\x7f])"),
    re.compile(r"(?<!\w)\(([A-Za-z])\)"),
)
# "A" before a small letter is the article, and "I" the speaker.
_ALONE = re.compile(r"(?<![\w'’])(?:[B-HJ-Z]|A(?!\s+[a-z])|I(?=\s*[.)]?\s*$))(?![\w'’])")


def plain(text: str) -> str:
    """Unicode-normalised (NFKC), lower case, single spaces, without punctuation at the ends."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return _AT_ENDS.sub("", text)


def choice_of(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter, A to Z, that `text` chooses: "(B)", "Answer: B", "B. …", "选B", or the words of one option.

    With `options` only their letters count. None if no choice, or no single one, can be read.
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
    """Equal to a gold answer; case, spaces, Unicode forms and punctuation at the ends aside."""
    return plain(text) in {plain(answer) for answer in example.answers}


@dataclass(frozen=True, slots=True)
class Number:
    """The last number of the answer equals a gold answer's; see `numerals.number_of` for what is read.

    `tolerance`: relative to the gold number, 0.05 as in ChartQA's relaxed accuracy. Where only one of the two has a
    percent sign, 45 % equals both 45 and 0.45. InputError for a negative tolerance and a gold answer without a number.
    """

    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < math.inf:
            raise InputError(f"tolerance must be a number from 0 up, such as 0.05, not {self.tolerance!r}")

    def __call__(self, text: str, example: Example) -> bool:
        found = number_of(text)
        for answer in example.answers:
            gold = number_of(answer)
            if gold is None:
                raise InputError(f"the gold answer {answer[:60]!r} holds no number; use another judge")
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
    """Chooses the same option as a gold answer, which is a letter or an option's words; see `choice_of`.

    InputError for a gold answer that is neither.
    """
    letters = {answer: choice_of(answer, example.options) for answer in example.answers}
    for answer, letter in letters.items():
        if letter is None:
            raise InputError(f"the gold answer {answer[:60]!r} is neither a letter nor one of the options")
    return choice_of(text, example.options) in letters.values()


def regex(text: str, example: Example) -> bool:
    """A gold answer, read as a regular expression, is found in the answer. InputError for a broken expression."""
    try:
        return any(re.search(pattern, text) is not None for pattern in example.answers)
    except re.error as error:
        raise InputError(f"the gold answer is no regular expression: {error}") from error


@dataclass(frozen=True, slots=True)
class Agreement:
    """Labels where there is no gold answer, from whether the two modes agree. A proxy: shares, never true or false.

    Only one thing follows from agreement alone: equal answers are equally right, so the gain is 0. How often agreed
    answers are right (`agree`), and which mode is right where they differ (`instruct`, `thinking`; at most one can be),
    is assumed. Models that are both wrong give the same wrong answer about 60 % of the time (Kim et al., Correlated
    errors in large language models, ICML 2025); with that, four public sets of direct answers against reasoning give
    0.18–0.22 for Instruct, 0.16–0.74 for Thinking and 0.1–0.9 for agreed answers; the pocket pair, measured, gives
    0.15, 0.85 and 1. The defaults lie among these: measure your own on rows with gold.
    Such labels can teach where thinking changes nothing, never that it does harm.

    `alike`: judges one mode's answer as if the other's were gold. InputError for shares that cannot be.
    """

    alike: Grader = exact
    agree: float = 0.8
    instruct: float = 0.2
    thinking: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.agree, self.instruct, self.thinking)
        if not all(0 <= share <= 1 for share in shares) or self.instruct + self.thinking > 1:
            raise InputError(
                f"agreement needs shares 0 to 1, with Instruct's and Thinking's together at most 1, not {shares}"
            )
        if self.alike is regex:
            raise InputError("agreement cannot compare answers by regex; use exact, number, choice or a function")

    def __call__(self, instruct: str, thinking: str, example: Example) -> tuple[float, float]:
        """How right both modes are taken to be. No answer is wrong for sure."""
        if not instruct.strip() or not thinking.strip():
            return (self.instruct if instruct.strip() else 0.0), (self.thinking if thinking.strip() else 0.0)
        try:
            alike = self.alike(thinking, replace(example, answers=(instruct,)))
        except InputError:  # the answer that stands in for gold holds no number or letter
            alike = False
        return (self.agree, self.agree) if alike else (self.instruct, self.thinking)


def grader_named(name: str, tolerance: float = 0.0) -> Grader:
    """ "exact", "number" (with a relative `tolerance`), "choice" or "regex". InputError for any other name."""
    judges: dict[str, Grader] = {"exact": exact, "number": Number(tolerance), "choice": choice, "regex": regex}
    if name not in judges:
        raise InputError(f"unknown judge {name!r}; known: {', '.join(judges)}, or your own as module:function")
    return judges[name]


def load_grader(name: str) -> Grader:
    """The function `name`, "module:function". It runs the module: only for names that the user typed.

    InputError if there is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load the judge {name!r}: {error}; expected module:function") from error
    if not callable(found):
        raise InputError(f"the judge {name!r} is a {type(found).__name__}; expected a function (text, example)")
    return found  # type: ignore[no-any-return]


def _option_in(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option whose words the text is or, failing that, of the only one that it holds."""
    said = plain(text)
    words = {letter: plain(option) for letter, option in zip(ascii_uppercase, options, strict=False)}
    same = [letter for letter, option in words.items() if option == said]
    if same:
        return same[0] if len(same) == 1 else None
    held = {letter: option for letter, option in words.items() if option and _holds(said, option)}
    # "red" is held by "dark red" too: an option within another one held does not count
    held = {
        letter: option
        for letter, option in held.items()
        if not any(option != other and option in other for other in held.values())
    }
    return next(iter(held)) if len(held) == 1 else None


def _holds(said: str, option: str) -> bool:
    return re.search(rf"(?<![a-z0-9]){re.escape(option)}(?![a-z0-9])", said) is not None
