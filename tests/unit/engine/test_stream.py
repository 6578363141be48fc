"""Separation of reasoning and answer, independent of how a server divides its stream."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlroute.engine.remote.endpoint import Reasoning
from vlroute.engine.remote.stream import RemoteText

CUTS = st.lists(st.integers(0, 60), max_size=12)


def pieces(text: str, cuts: list[int]) -> list[str]:
    at = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(at)]


def texts(text: RemoteText) -> dict[str, str]:
    return {"thinking": text.text("thinking"), "answer": text.text("answer")}


@given(CUTS)
def test_a_mark_in_the_content(cuts: list[int]) -> None:
    text = RemoteText(thinking=True)
    said: dict[str, str] = {"thinking": "", "answer": ""}
    for piece in pieces("\na < b </thin </thought\n</think>\n\nfour </think> five \n", cuts):
        for channel, part in text.push("", piece):
            said[channel] += part
    for channel, part in text.flush(complete=False):
        said[channel] += part
    assert said == texts(text) == {"thinking": "a < b </thin </thought", "answer": "four  five"}


@given(CUTS, CUTS)
def test_a_field_of_its_own(thought_cuts: list[int], answer_cuts: list[int]) -> None:
    text = RemoteText(thinking=True, stops=["END"])
    for piece in pieces("\n<b> END of it\n", thought_cuts):
        list(text.push(piece, ""))
    for piece in pieces("\n\nfour EN END five", answer_cuts):
        list(text.push("", piece))
    list(text.flush(complete=False))
    assert (text.text("thinking"), text.text("answer").strip()) == ("<b> END of it", "four EN")
    assert text.stop.found


@pytest.mark.parametrize(
    ("thinking", "reasoning", "expected"),
    [
        (True, "auto", ("cut off", "")),  # truncated reasoning is not an answer
        (True, "raw", ("cut off", "")),
        (True, "parsed", ("", "cut off")),
        (False, "auto", ("", "cut off")),
    ],
)
def test_content_without_a_mark(thinking: bool, reasoning: str, expected: tuple[str, str]) -> None:
    text = RemoteText(thinking, reasoning)  # type: ignore[arg-type]
    list(text.push("", "cut off"))
    list(text.flush(complete=False))
    assert (text.text("thinking"), text.text("answer")) == expected


@pytest.mark.parametrize(
    ("thinking", "reasoning", "expected"),
    [(True, "auto", ("", "whole")), (True, "raw", ("whole", "")), (True, "parsed", ("", "whole"))],
)
def test_complete_content_without_a_mark(thinking: bool, reasoning: str, expected: tuple[str, str]) -> None:
    text = RemoteText(thinking, reasoning)  # type: ignore[arg-type]
    list(text.push("", "whole"))
    list(text.flush(complete=True))
    assert (text.text("thinking"), text.text("answer")) == expected


@pytest.mark.parametrize(
    "chunk", [" ", "a", "`", "<", "</think>", "<think>", "a `</think>", "```\n", "``a`", "</think><think>"]
)
@pytest.mark.parametrize("reasoning", ["auto", "parsed"])
def test_long_streams_take_linear_time(chunk: str, reasoning: Reasoning) -> None:
    def seconds(chunks: int) -> float:
        text, began = RemoteText(True, reasoning, stops=["END"]), time.process_time()
        for _ in range(chunks):
            list(text.push("", chunk))
        list(text.push(chunk * chunks, ""))
        list(text.flush(complete=True))
        return time.process_time() - began

    short = min(seconds(2_500) for _ in range(3))
    assert seconds(10_000) < 4 * 3 * short
