"""The last number in a text, as models and data sets write numbers in English and Chinese."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from vlroute.errors import InputError

_WORDS = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        ]
    )
}
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
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_ENGLISH = re.compile(rf"\b({'|'.join(_WORDS)})\b", re.IGNORECASE)
_TEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.]+)\s*\}\s*\{\s*([\d.]+)\s*\}"), r"\1/\2"),
    (re.compile(r"\{,\}|\\[,!;]"), ","),
    (re.compile(r"\\times|\\cdot"), "×"),
    (re.compile(r"[{}\\]"), " "),
)


@dataclass(frozen=True, slots=True)
class Numeral:
    """`value` as written: 45 for "45 %", with `percent` true."""

    value: float
    percent: bool = False


def number_of(text: str) -> Numeral | None:
    """The last number in `text`, or None. Inside the last `\\boxed{…}`, if there is one.

    Read are thousands separators (1,234; a comma before three digits is never a decimal one), decimals, exponents
    (1e-3, 2×10^5), fractions (3/4, 1 1/2, \\frac{3}{4}, ½), percent, 万 and 亿. Chinese numerals count only where
    there are no digits, English words (zero to twenty) only where there are neither. InputError if a Chinese numeral
    is met and the package cn2an is missing.
    """
    for part in (*_BOXED.findall(text)[-1:], text):
        found = _arabic(part) or _chinese(part) or _english(part)
        if found is not None:
            return found
    return None


def _tidy(text: str) -> str:
    """Superscripts and vulgar fractions spelt out before NFKC would make "102" of "10²" and "31⁄2" of "3½"."""
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda run: "^" + unicodedata.normalize("NFKC", run[0]), text)
    text = re.sub("[¼-¾⅐-⅞]", lambda one: " " + one[0], text)
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f'’](?=\d{3}(?!\d))", "", text)  # thousands in Swiss and SI style
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
    """The last run of numerals that is a number: words such as 统一 and 千万 hold their characters too."""
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
        raise InputError("Chinese numerals need cn2an: pip install 'vlroute[collect]'") from error
    return float(cn2an.cn2an(numerals, "smart"))


def _english(text: str) -> Numeral | None:
    found = _ENGLISH.findall(text)
    return Numeral(float(_WORDS[found[-1].lower()])) if found else None
