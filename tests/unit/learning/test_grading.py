"""Graders: what counts as the right answer, and what agreement of the modes is taken to say."""

from __future__ import annotations

import math

import pytest

from vlroute.errors import InputError
from vlroute.learning.dataset import Example
from vlroute.learning.grading import (
    Agreement,
    Number,
    choice,
    choice_of,
    exact,
    load_grader,
    parse_agreement,
    plain,
    regex,
)
from vlroute.learning.numerals import Numeral, number_of


def gold(*answers: str, options: tuple[str, ...] = ()) -> Example:
    return Example("1", "?", answers=answers, options=options)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("  Dark   RED. ", "dark red"),
        ("**Paris**", "paris"),
        ("“Straße”", "STRASSE"),
        ("ＡＢＣ１２", "abc12"),
        ("红色。", "红色"),
        ("（三角形）", "三角形"),
        ("line\nbreak", "line break"),
    ],
)
def test_exact_overlooks_form(text: str, answer: str) -> None:
    assert exact(text, gold("something else", answer))


@pytest.mark.parametrize(
    ("text", "answer"), [("-5", "5"), ("C++", "C"), (".5", "5"), ("45%", "45"), ("red car", "red"), ("$5", "5")]
)
def test_exact_keeps_meaning(text: str, answer: str) -> None:
    assert not exact(text, gold(answer))


def test_plain_of_nothing() -> None:
    assert plain(" .. ") == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is 42.", 42),
        ("3 apples and 4 pears make 7", 7),
        ("1,234,567 people", 1234567),
        ("1{,}234", 1234),
        ("12’500", 12500),
        ("12\u202f500", 12500),
        ("-3.5", -3.5),
        ("−3", -3),
        ("10-20", 20),
        ("x = .5", 0.5),
        ("1e-3", 0.001),
        ("2.5×10^4", 25000),
        (r"2 \times 10^{-2}", 0.02),
        ("6.02×10²³", 6.02e23),
        ("3/4", 0.75),
        ("1 1/2 cups", 1.5),
        ("3½", 3.5),
        (r"\frac{3}{4}", 0.75),
        (r"so \boxed{12} because 3 + 9", 12),
        (r"\boxed{\frac{1}{2}}", 0.5),
        ("25 cm^2", 25),
        ("25 cm²", 25),
        ("25 m2", 25),
        ("１２", 12),
        ("3万", 30000),
        ("1.5亿人", 150000000),
        ("答案是十二", 12),
        ("三百零五个", 305),
        ("两千", 2000),
        ("负三点一四", -3.14),
        ("二分之一", 0.5),
        ("二〇二四年", 2024),
        ("答案是12，两个都一样", 12),
        ("There are three circles.", 3),
        ("Twenty-one dots", 21),
        ("ninety nine", 99),
        ("the fifty", 50),
        ("5.", 5),
    ],
)
def test_numbers_as_they_are_written(text: str, value: float) -> None:
    found = number_of(text)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-12)
    assert not found.percent


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"The area is $\frac{\sqrt{2}}{2}$.", 2**0.5 / 2),
        (r"\boxed{2\pi}", 2 * math.pi),
        (r"$A = \frac{3\pi}{4}$", 0.75 * math.pi),
        (r"\boxed{1\frac{1}{2}}", 1.5),
        (r"\boxed{\frac12}", 0.5),
        (r"\boxed{-\dfrac{1}{3}}", -1 / 3),
        (r"\(\sqrt{16}\)", 4),
        (r"\[x = 3^4\]", 81),
        (r"2^{10}", 1024),
        (r"\boxed{\left(\frac{3}{4}\right)^2}", 0.5625),
        (r"The side is $2\sqrt{3}$ and the area is $12$.", 12),
        (r"$25\ \text{cm}^2$", 25),
        (r"$\dfrac{1}{2}\%$", 0.5),
        (r"$x^2 = 4$, so x is 2", 2),
        ("It costs $5 and then $7", 7),
        (r"$\sqrt{-4}$ has no real value", -4),
        ("-40°F", -40),
        ("5:30", 30),
        ("3–5", 5),
        ("约 1.2e3 米", 1200),
        ("12 1/2 %", 12.5),
        ("一百二十", 120),
    ],
)
def test_formulas_and_everyday_numbers(text: str, value: float) -> None:
    found = number_of(text)
    assert found is not None
    assert found.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", [r"$\frac{1}{0}$", r"$(99^{99})^{99}$", "$" + r"\sqrt{" * 500 + "$", "^" * 500])
def test_formulas_without_a_value_are_no_numbers(text: str) -> None:
    assert number_of(text) is None


@pytest.mark.parametrize("text", ["(2, 3)", "[3, 5]", r"\boxed{(2,3)}", r"$\left[0, 1\right)$", "（2，3）", "(-1; 1)"])
def test_tuples_and_intervals_are_no_numbers(text: str) -> None:
    assert number_of(text) is None
    assert not Number()(text, gold("3", "5", "1"))


@pytest.mark.parametrize(
    ("text", "value"), [("(1,234)", 1234), ("(-3)", -3), (r"\boxed{1,234}", 1234), ("(3/4)", 0.75)]
)
def test_numbers_in_brackets(text: str, value: float) -> None:
    assert number_of(text) == Numeral(value)


@pytest.mark.parametrize(
    "text", ["", "none at all", "1/0", "see H2O", "five hundred", "two hundred and five", "twenty-one thousand"]
)
def test_no_number(text: str) -> None:
    assert number_of(text) is None


def test_percent() -> None:
    assert number_of("about 45 %") == Numeral(45, percent=True)
    assert number_of("百分之四十") == Numeral(40, percent=True)
    same = Number()
    for text, answer in (("45%", "45"), ("45%", "0.45"), ("0.45", "45%"), ("45", "45%"), ("45 ％", "45%")):
        assert same(text, gold(answer)), (text, answer)
    assert not same("45", gold("0.45"))
    assert not same("0.45%", gold("45%"))


def test_tolerance_is_relative_to_gold() -> None:
    assert Number(0.05)("104", gold("100"))
    assert not Number(0.05)("106", gold("100"))
    assert Number()("0.30000000000000004", gold("0.3"))
    assert Number()("0", gold("0.0"))
    assert Number(0.05)("7", gold("9", "7"))
    assert not Number()("no idea", gold("3"))
    with pytest.raises(InputError, match="contains no number"):
        Number()("3", gold("red"))
    with pytest.raises(InputError, match="tolerance"):
        Number(-1)


FRUIT = ("apple", "pear", "red grape", "grape")


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        (" B. ", "B"),
        ("**B**", "B"),
        ("B. pear", "B"),
        ("B、梨", "B"),
        ("Answer: B", "B"),
        ("The answer is **(B)**.", "B"),
        ("The correct option is B because A is wrong", "B"),
        ("I first thought the answer is A. No: the answer is B.", "B"),
        ("答案：B", "B"),
        ("选B", "B"),
        ("应选（B）", "B"),
        ("正确答案是 B。", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("It must be (B) and nothing else", "B"),
        ("I think it is B", "B"),
        ("answer: b.", "B"),
        ("pear", "B"),
        ("It is a pear.", "B"),
        ("A red grape, I think", "C"),
        ("the grape", "D"),
        ("梨", None),
        ("A cat is not among them", None),
        ("apple or pear", None),
        ("The answer is a fruit", None),
        ("(E)", None),
        ("", None),
    ],
)
def test_letters_as_models_write_them(text: str, letter: str | None) -> None:
    assert choice_of(text, FRUIT) == letter


def test_choice_by_letter_and_by_words() -> None:
    assert choice("The answer is D", gold("grape", options=FRUIT))
    assert choice("pear", gold("B", options=FRUIT))
    assert choice("Z", gold("(Z)"))
    assert choice("B. 梨", gold("梨", options=("苹果", "梨")))
    assert choice("选项是梨", gold("B", options=("苹果", "梨")))
    assert not choice("no idea", gold("B", options=FRUIT))
    with pytest.raises(InputError, match="neither a letter nor one of the options"):
        choice("B", gold("banana", options=FRUIT))


def test_regex() -> None:
    assert regex("It says STOP here", gold("^no", r"(?i)\bstop\b"))
    assert not regex("go", gold("stop"))
    with pytest.raises(InputError, match="regular expression"):
        regex("x", gold("("))


def test_agreement_labels_in_shares() -> None:
    agreement = Agreement(Number(), agree=0.9, instruct=0.1, thinking=0.6)
    row = gold()
    assert agreement("it is 7", "7", row) == (0.9, 0.9)
    assert agreement("7", "8", row) == (0.1, 0.6)
    assert agreement("no number", "8", row) == (0.1, 0.6)
    assert agreement("7", "", row) == (0.1, 0.0)
    assert agreement("", "8", row) == (0.0, 0.6)
    assert agreement("", " ", row) == (0.0, 0.0)
    assert Agreement(choice)("B", "(B) pear", gold(options=FRUIT)) == (0.8, 0.8)


@pytest.mark.parametrize("shares", [(0.8, 0.6, 0.6), (1.1, 0, 0), (0.5, -0.1, 0.5)])
def test_agreement_refuses_what_cannot_be(shares: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="shares 0 to 1"):
        Agreement(exact, *shares)


def test_agreement_on_the_command_line() -> None:
    assert parse_agreement("0.9,0.1,0.6", exact) == Agreement(exact, 0.9, 0.1, 0.6)
    with pytest.raises(InputError, match="three"):
        parse_agreement("0.9", exact)
    with pytest.raises(InputError, match="regex"):
        parse_agreement("0.9,0.1,0.6", regex)


def test_graders_by_name(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert load_grader("exact") is exact
    assert load_grader("number", 0.1) == Number(0.1)
    with pytest.raises(InputError, match="known: exact, number, choice, regex"):
        load_grader("nosuch")
    (tmp_path / "my_grader.py").write_text("SCORE = 1\ndef half(text, example):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    assert load_grader("my_grader:half")("x", gold()) == 0.5
    for wrong, why in (("my_grader:none", "cannot load"), ("nosuch_module:f", "cannot load"), (":", "cannot load")):
        with pytest.raises(InputError, match=why):
            load_grader(wrong)
    with pytest.raises(InputError, match="is a int"):
        load_grader("my_grader:SCORE")
