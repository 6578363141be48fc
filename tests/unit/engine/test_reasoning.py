"""Reasoning and answer are told apart by token id, however the text is cut into tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import media, task
from vlroute import Router
from vlroute.engine.local.reasoning import OutputControl, Splitter
from vlroute.engine.text import Trimmed


@pytest.fixture(scope="module")
def tokenizer(router: Router) -> Any:
    return router.pair.thinking.tokenizer


def split(tokenizer: Any, text: str, thinking: bool) -> Splitter:
    splitter = Splitter(tokenizer, thinking)
    pieces: dict[str, str] = {"thinking": "", "answer": ""}
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        for channel, piece in splitter.push(token):
            pieces[channel] += piece
    assert pieces == splitter.texts
    return splitter


def test_thinking_and_answer(tokenizer: Any) -> None:
    splitter = split(tokenizer, "[AB] A>B\n</think>\n\nB", thinking=True)
    assert splitter.texts == {"thinking": "[AB] A>B", "answer": "B"}
    assert splitter.thinking_tokens == len(tokenizer("[AB] A>B\n</think>", add_special_tokens=False)["input_ids"])


def test_a_thought_without_end_is_no_answer(tokenizer: Any) -> None:
    assert split(tokenizer, "[AB] A>B so it must be B", thinking=True).texts["answer"] == ""


def test_a_repeated_opening_tag_is_dropped(tokenizer: Any) -> None:
    assert split(tokenizer, "<think>\nA</think>B", thinking=True).texts == {"thinking": "A", "answer": "B"}


def test_bytes_that_make_no_character_do_no_harm(tokenizer: Any) -> None:
    splitter = Splitter(tokenizer, thinking=False)
    for token in tokenizer.convert_tokens_to_ids(["<0xE5>", "<0xE5>", "<0x8F>", "A", "图"]):
        list(splitter.push(token))
    assert splitter.texts["answer"].endswith("A图")


def test_instruct_output_is_answer_throughout(tokenizer: Any) -> None:
    splitter = split(tokenizer, "a 三角形 好 naïve", thinking=False)
    assert splitter.texts == {"thinking": "", "answer": "a 三角形 好 naïve"}
    assert splitter.thinking_tokens == 0


@given(st.lists(st.text(alphabet=" \nab", max_size=4), max_size=12))
def test_trimmed_is_strip(pieces: list[str]) -> None:
    trimmed = Trimmed()
    assert "".join(trimmed.push(piece) for piece in pieces) == "".join(pieces).strip()


def test_budget_ends_the_thought_and_an_answer_follows(router: Router) -> None:
    some = task("math")
    free = router.ask(some.prompt, **media(some), mode="thinking")
    short = router.ask(some.prompt, **media(some), mode="thinking", thinking_budget=6)
    assert short.finish_reason == "stop"
    assert short.text
    assert short.usage.thinking_tokens == 6 + 2  # the closing line break and </think>
    assert free.thinking.startswith(short.thinking)
    ample = router.ask(some.prompt, **media(some), mode="thinking", thinking_budget=10_000)
    assert (ample.thinking, ample.text) == (free.thinking, free.text)


def test_a_negative_budget_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        OutputControl(tokenizer, True, frozenset(), -1)


def test_a_thought_is_closed_before_the_tokens_end(router: Router) -> None:
    some = task("hop")
    answer = router.ask(some.prompt, **media(some), mode="thinking", max_new_tokens=8)
    assert answer.thinking
    assert answer.text
    assert answer.usage.completion_tokens <= 8
