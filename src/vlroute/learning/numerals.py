"""The last number in a text, as models and data sets write numbers in English, Chinese and LaTeX.

Math-Verify evaluates LaTeX formulas and cn2an reads Chinese numerals. Math-Verify does not read the other forms:
thousands separated by an apostrophe or a thin space, scientific notation, mixed numbers, vulgar fractions, full-width
digits, 万 and 亿, and numbers within sentences. `number_of` reads them itself.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass

from vlroute.errors import InputError

INSTALL = "pip install 'vlroute[collect]'"
_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = re.findall(r"\w+", "twenty thirty forty fifty sixty seventy eighty ninety")
_UNITS = {"万": 1e4, "亿": 1e8}
_ARABIC = re.compile(
    r"""
    (?P<sign>(?<![\w)\]])[-+])?            # between two numbers a hyphen is no sign
    (?<![A-Za-z\d.^])(?:(?P<whole>\d+)\s+(?=\d+\s*/\s*\d+(?![\d/])))?   # the 3 of 3 1/2; not the 2 of cm2 and cm^2
    (?P<value>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
    (?:e(?P<exponent>[-+]?\d{1,3})(?!\d)|\s*[×x*]\s*10\s*\^\s*(?P<power>[-+]?\d{1,3})(?!\d))?
    (?:\s*/\s*(?P<below>\d+(?:\.\d+)?)(?![\d/]))?
    \s*(?P<unit>%|[万亿])?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HAN = "零〇一二两三四五六七八九十百千万亿廿点"
_CHINESE = re.compile(rf"(?P<sign>负)?(?:(?P<percent>百分之)|(?P<below>[{_HAN}]+)分之)?(?P<value>[{_HAN}]+)")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
#: A tuple or an interval, which is not one number; a comma before three digits separates thousands.
_TUPLE = re.compile(r"(?:\\left)?[(\[][^()\[\]]*(?:;|,(?!\d{3}(?!\d)))[^()\[\]]*[)\]]")
_ENGLISH = re.compile(rf"\b(?:({'|'.join(_TENS)})(?:[-\s]({'|'.join(_WORDS[1:10])}))?|({'|'.join(_WORDS)}))\b")
_LARGE = re.compile("hundred|thousand|million|billion")
#: Number words in a row, such as "two hundred and five".
_ROW = re.compile(r"\b(?:{0})(?:[-\s]+(?:and\s+)?(?:{0}))*\b".format("|".join([*_WORDS, *_TENS, _LARGE.pattern])))
_TEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}"), r"\1/\2"),
    (re.compile(r"\{,\}|\\[,!;]"), ","),
    (re.compile(r"\\times|\\cdot"), "×"),
    (re.compile(r"[{}\\]"), " "),
)
_MATH = re.compile(r"\$\$?([^$]+)\$\$?|\\\(((?:(?!\\\)).)+)\\\)|\\\[((?:(?!\\\]).)+)\\\]", re.DOTALL)
#: Formulas that are evaluated contain only these symbols, and at most two powers, whose exponents have two digits.
_MAX_FORMULA = 100
_FORMULA = re.compile(
    r"(?:\\[dt]?frac|\\sqrt|\\pi|\\times|\\cdot|\\left|\\right|\^\s*(?:\{\s*-?\d{1,2}\s*\}|\d{1,2}(?!\d))"
    r"|[\d.+\-*/(){}\[\]\s])+"
)
_OPERATOR = re.compile(r"\\[dt]?frac|\\sqrt|\\pi|\^")


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number in a text.

    Attributes:
        value: As written: 45 for "45 %".
        percent: Whether it has a percent sign.
    """

    value: float
    percent: bool = False


def number_of(text: str) -> Numeral | None:
    r"""Find the last number in a text; in the last `\boxed{…}`, if there is one.

    Thousands separators (1,234; a comma before three digits is never a decimal comma), decimals, exponents (1e-3,
    2×10^5), fractions (3/4, 1 1/2, ½), percent, 万 and 亿, and LaTeX formulas of numbers (\frac{3}{4}, 2\sqrt{3},
    2^{10}) are read. Chinese numerals count only if there are no digits; English words (zero to ninety-nine) count only
    if there are neither. A tuple or interval such as (2, 3) is not a number.

    Args:
        text: Any text.

    Returns:
        The number; None if there is none.

    Raises:
        InputError: The text has a formula or a Chinese numeral, and the package that reads it is missing.
    """
    for part in (*_BOXED.findall(text)[-1:], text):
        plain = unicodedata.normalize("NFKC", part).replace("$", "").replace("\\right", "")
        if _TUPLE.fullmatch(plain.strip(" .。")):
            return None
        evaluated = _evaluated(part)
        found = _arabic(evaluated) or _chinese(evaluated) or _english(evaluated)
        if found is not None:
            return found
    return None


def _evaluated(text: str) -> str:
    """The text with its formulas replaced by their values."""
    if (value := _formula(text)) is not None:
        return value
    return _MATH.sub(lambda found: _formula(found[1] or found[2] or found[3]) or found[0], text)


def _formula(text: str) -> str | None:
    """The value of a formula without letters; None for other texts and for formulas that are plain numbers."""
    formula = text.strip().rstrip(".").rpartition("=")[2].replace("≈", "")
    if len(formula) > _MAX_FORMULA or formula.count("^") > 2 or not _OPERATOR.search(formula):
        return None
    if not _FORMULA.fullmatch(formula):
        return None
    try:
        from math_verify import LatexExtractionConfig, parse
    except ImportError as error:
        raise InputError(f"LaTeX formulas need math-verify: {INSTALL}") from error
    logging.getLogger("math_verify.parser").setLevel(logging.ERROR)  # it warns of the missing timeout
    try:  # a timeout would work in the main thread only; short formulas without large powers need none
        found = parse(f"${formula}$", [LatexExtractionConfig()], parsing_timeout=None)
        return f"{float(found[0]):.17g}"
    except (IndexError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _tidy(text: str) -> str:
    """Write superscripts and vulgar fractions out: NFKC would turn "10²" into "102" and "3½" into "31⁄2"."""
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = re.sub("[¼-¾⅐-⅞]", lambda one: " " + one[0], text)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))", "", text)  # Swiss and SI thousands separators
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("⁄", "/")
    for pattern, plain in _TEX:
        text = pattern.sub(plain, text)
    return text


def _arabic(text: str) -> Numeral | None:
    every = list(_ARABIC.finditer(_tidy(text)))
    if not every:
        return None
    found = every[-1]
    value = float(found["value"].replace(",", ""))
    value *= 10.0 ** int(found["exponent"] or found["power"] or 0)
    if found["below"] is not None:
        below = float(found["below"])
        if below == 0:
            return None
        value /= below
    value += float(found["whole"] or 0)
    value *= _UNITS.get(found["unit"] or "", 1.0)
    return Numeral(-value if found["sign"] == "-" else value, found["unit"] == "%")


def _chinese(text: str) -> Numeral | None:
    """The last run of numerals that is a number; words such as 统一 and 千万 contain numerals, too."""
    for found in reversed(list(_CHINESE.finditer(text))):
        try:
            value = _from_chinese(found["value"])
            below = _from_chinese(found["below"]) if found["below"] else 1.0
        except ValueError:
            continue
        if below:
            value = value / below
            return Numeral(-value if found["sign"] else value, found["percent"] is not None)
    return None


def _from_chinese(numerals: str) -> float:
    try:
        import cn2an
    except ImportError as error:
        raise InputError(f"Chinese numerals need cn2an: {INSTALL}") from error
    return float(cn2an.cn2an(numerals, "smart"))


def _english(text: str) -> Numeral | None:
    rows = _ROW.findall(text.lower())
    if not rows or _LARGE.search(rows[-1]):  # a part of "two hundred and five" is another number
        return None
    tens, ones, small = _ENGLISH.findall(rows[-1])[-1]
    value = 10 * _TENS.index(tens) + 20 if tens else 0
    return Numeral(float(value + _WORDS.index(ones or small or "zero")))
