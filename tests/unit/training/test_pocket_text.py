"""Texts of the pocket pair's training: forms of questions, requests without a picture, questions outside the world."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from training.pocket.text import (
    REPLIES,
    REQUESTS,
    SYSTEM_PROMPTS,
    TEST_QUESTIONS,
    TRAIN_QUESTIONS,
    UNSEEN_SYSTEM_PROMPTS,
    WORDS,
    TextRequest,
    draw_text,
    draw_unknown_question,
    fill,
    vary,
)

from vlroute.pocket.tasks import WORDINGS

ENGLISH = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NAMES = {name: i for names in (ENGLISH, "零一二三四五六七八九十") for i, name in enumerate(names)}
SHAPES = {"en": ("circle", "square", "triangle"), "zh": ("圆形", "方形", "三角形")}


def plain(text: str) -> str:
    """Without case, numbers, width of punctuation, and punctuation at the ends."""
    text = text.lower().translate(str.maketrans("，。？！：；＋＝", ",.?!:;+="))
    return re.sub(r"\d+", "#", " ".join(text.split())).strip(" .?!=,")


def numbers_of(prompt: str) -> list[int]:
    text = prompt.lower().replace("一共", "").replace("一下", "")
    found = re.findall(rf"\d+|\b(?:{'|'.join(ENGLISH)})\b|[零一二三四五六七八九十]", text)
    return [int(word) if word.isdigit() else NAMES[word] for word in found]


def counted_in(request: TextRequest) -> tuple[str, int]:
    """The item that is asked for, and how often the prompt lists it."""
    text = request.prompt.lower()
    for shape in SHAPES[request.language]:
        listed = len(re.findall(rf"{shape}(?!s)", text))
        if request.language == "en" and re.search(rf"{shape}s", text):
            return shape, listed
        if re.search(rf"(几个|多少个){shape}", text):
            return shape, listed - 1
    letters = re.findall(r"(?<![a-z])[a-z](?![a-z])", text)
    last = re.search(r"(?<![a-z])[a-z](?![a-z]).*(how many|count|几个|多少个)", text, re.DOTALL)
    asked = letters[-1] if last else letters[0]
    return asked.upper(), letters.count(asked) - 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sums_are_right(language: str) -> None:
    rng, sizes = random.Random(1), Counter[int]()
    for _ in range(1500):
        request = draw_text(rng, language, "sum")
        numbers = numbers_of(request.prompt)
        assert request.answer == str(sum(numbers)), request
        so_far, steps = numbers[0], [f"1){numbers[0]}"]
        for i, number in enumerate(numbers[1:], start=2):
            units, so_far = so_far % 10 + number % 10, so_far + number
            steps.append(f"{i}){number}:{units:02d}={so_far}")
        assert request.thinking == " ".join(steps)
        sizes[len(numbers)] += 1
        assert max(numbers) <= (99 if len(numbers) == 2 else 30)
    assert sizes.keys() == {2, 3}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_counts_are_right(language: str) -> None:
    rng, answers = random.Random(2), Counter[str]()
    for _ in range(1500):
        request = draw_text(rng, language, "count")
        _, count = counted_in(request)
        assert request.answer == str(count), request
        assert request.thinking.endswith(f"={count}")
        answers[request.answer] += 1
    assert {"0", "1", "2", "3", "4", "5"} <= answers.keys()


def test_the_other_requests_have_one_answer_a_language() -> None:
    rng, kinds = random.Random(3), Counter[str]()
    for _ in range(4000):
        request = draw_text(rng)
        kinds[request.kind] += 1
        if request.kind in REPLIES:
            assert request.answer == REPLIES[request.kind][request.language]
            assert plain(request.prompt) in map(plain, REQUESTS[request.kind][request.language].split("|"))
    assert min(kinds[kind] for kind in ("sum", "count", *REPLIES)) > 100


def test_a_text_has_one_kind() -> None:
    """A text is a greeting, a question of the world or an unknown question, but never two of them."""
    groups = [{plain(t) for texts in kind.values() for t in texts.split("|")} for kind in REQUESTS.values()]
    groups.append({plain(t) for texts in WORDINGS.values() for some in texts.values() for t in some})
    drawn = random.Random(4)
    groups += [{plain(draw_unknown_question(drawn, questions=split)) for _ in range(9000)}
               for split in (TRAIN_QUESTIONS, TEST_QUESTIONS)]  # fmt: skip
    texts = Counter(text for group in groups for text in group if re.search(r"\w", text))
    assert [text for text, count in texts.items() if count > 1] == []


def test_test_questions_share_nothing_with_those_of_training() -> None:
    parts = []
    for split in (TRAIN_QUESTIONS, TEST_QUESTIONS):
        every = [part for q in split.values() for pair in q.groups for some in pair for part in some]
        every += [part for questions in split.values() for part in questions.syllables]
        parts.append({part for part in every if part != "{}"})
        for language, least in (("en", 400), ("zh", 200)):
            rng = random.Random(5)
            assert len({draw_unknown_question(rng, language, split) for _ in range(3000)}) > 3 * least
    assert not parts[0] & parts[1]
    assert not set(SYSTEM_PROMPTS) & set(UNSEEN_SYSTEM_PROMPTS)


def test_the_language_of_a_question_can_be_seen() -> None:
    rng = random.Random(6)
    for split in (TRAIN_QUESTIONS, TEST_QUESTIONS):
        assert all(re.search("[一-鿿。？…]", draw_unknown_question(rng, "zh", split)) for _ in range(3000))
        assert not any(re.search("[一-鿿。？]", draw_unknown_question(rng, "en", split)) for _ in range(3000))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_forms_keep_the_fields_and_words(language: str) -> None:
    rng, wordings = random.Random(7), [w for texts in WORDINGS.values() for w in texts[language]]
    same = 0
    for _ in range(3000):
        wording = rng.choice(wordings)
        form = vary(rng, wording, language)
        same += form == wording
        assert re.findall(r"\{\w+\}", form) == re.findall(r"\{\w+\}", wording)
        words = re.findall(r"[a-z]+|[一-鿿]", wording.lower())
        assert " ".join(words) in " ".join(re.findall(r"[a-z]+|[一-鿿]", form.lower()))
    assert 0.4 < same / 3000 < 0.6


def test_forms_of_each_kind_occur() -> None:
    rng = random.Random(8)
    english = {vary(rng, "How many {shape} are in the picture?", "en") for _ in range(2000)}
    assert {
        "how many {shape} are in the picture?", "HOW MANY {shape} ARE IN THE PICTURE?",
        "How many {shape} are in the picture", "Hi, how many {shape} are in the picture?",
        "How many {shape} are in the picture? Thanks.", "How many {shape} are in the picture?\n",
    } < english  # fmt: skip
    assert not any("please how" in text.lower() for text in english)
    chinese = {vary(rng, "读出文字。", "zh") for _ in range(2000)}
    assert {"读出文字", "读出文字.", "请读出文字。", "读出文字。谢谢。", "读出文字。\n"} < chinese
    assert {vary(rng, "{n}=?", "zh") for _ in range(99)} >= {"{n}=?", "{n}="}


def test_drawn_letters_stay_capital_in_most_lower_case_forms() -> None:
    rng, counts = random.Random(9), Counter[str]()
    for _ in range(9000):
        text = fill(rng, "From {start}, count the {shape}.", "en", start="A", shape="circles")
        counts["lower"] += "from a, count" in text
        counts["kept"] += "from A, count" in text and text == text.lower().replace(" a,", " A,")
        assert ("CIRCLES" in text) == ("FROM A, COUNT" in text)
        assert "circles" in text or "CIRCLES" in text
        counts["upper"] += "CIRCLES" in text
    assert 0.28 < counts["lower"] / (counts["lower"] + counts["kept"]) < 0.38
    assert counts["upper"] > 300


def test_the_same_seed_gives_the_same_texts() -> None:
    def texts() -> list[object]:
        rng = random.Random(10)
        return [(draw_text(rng), draw_unknown_question(rng), vary(rng, "Add {n}.", "en")) for _ in range(200)]

    assert texts() == texts()


def test_the_words_of_the_fixed_texts_are_known_and_few() -> None:
    assert len(WORDS) == len(set(WORDS)) <= 350
    texts = [*SYSTEM_PROMPTS, *(text for reply in REPLIES.values() for text in reply.values())]
    found = {word for text in texts for word in re.findall(r"[A-Za-z][a-z]+|[一-鿿]", text)}
    assert {word for word in found if not word.isupper()} <= set(WORDS)
    assert all(re.fullmatch(r"[A-Za-z]?[a-z]+|[^\x00-\x7f]", word) for word in WORDS)
