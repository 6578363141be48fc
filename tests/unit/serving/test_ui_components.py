"""What the web page writes below an answer."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from tests.stored import answer
from vlroute.errors import CheckpointError, LimitError, MessageError, StoreError, UnreadableMediaError, VLRouteError
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import load_picture
from vlroute.inputs.messages import parse
from vlroute.serving.errors import APIError
from vlroute.serving.ui.components import badge
from vlroute.serving.ui.problems import PageError, error_text, kept
from vlroute.serving.ui.sampling import read_sampling
from vlroute.serving.ui.texts import TEXTS


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_badge_of_a_rescued_answer_names_both_modes(language: str) -> None:
    texts, plain = TEXTS[language], answer("instruct", forced=True)
    rescued = replace(plain, decision=replace(plain.decision, rescued=True))
    for one, is_rescued in ((plain, False), (rescued, True)):
        found = badge(one, texts, predicted=True)
        assert (f"{texts.modes['thinking']} → {texts.modes['instruct']}<" in found) == is_rescued
        assert (texts.why["rescued"] in found) == is_rescued
        assert (texts.why["forced"] in found) != is_rescued
        assert (texts.rescued_help in found) == is_rescued  # for what a vote counts


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_badge_of_a_comparison_has_no_gain_but_tokens(language: str) -> None:
    texts, plain = TEXTS[language], answer("thinking", forced=True)
    found = badge(plain, texts, predicted=True, compared=True)
    assert texts.gain.partition(" ")[0] not in re.sub("<[^>]*>", " ", found)
    assert texts.why["forced"] not in found
    assert texts.tokens.format(plain.usage.completion_tokens) in found


def test_a_copied_answer_cannot_break_out_of_its_attribute() -> None:
    found = badge(replace(answer(), text='"><script>'), TEXTS["en"], predicted=True)
    assert 'data-copy="&quot;&gt;&lt;script&gt;"' in found


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def failure(work: Any) -> Exception:
    with pytest.raises(VLRouteError) as caught:
        work()
    return kept(caught.value)


def test_frequent_errors_are_translated_completely() -> None:
    errors = [
        failure(lambda: load_picture(b"no picture", Limits())),
        failure(lambda: load_picture(bytes(100), Limits(max_bytes=10))),
        failure(lambda: load_picture(png(9, 9), Limits(max_pixels=10))),
        failure(lambda: load_picture(png(400, 1), Limits())),
        failure(lambda: parse("", None, None, None, Limits())),
        failure(lambda: parse("x", [Image.new("RGB", (9, 9))] * 3, None, None, Limits(max_images=2))),
        *(APIError(503, "x", code) for code in ("loading", "failed", "too_many_requests", "deadline_exceeded")),
        StoreError("/secret/answers.db is locked"),
        RuntimeError("/secret"),
        PageError("number", field="temperature", low=0, high=2),
    ]
    for error in errors:
        chinese, english = (error_text(error, TEXTS[language]) for language in ("zh", "en"))
        assert not re.search(r"[a-z]{4}", chinese), chinese
        assert "英文" not in chinese
        assert not re.search("[\u4e00-\u9fff]", english), english
        assert "secret" not in chinese + english


def test_other_errors_keep_their_details_without_exception_names() -> None:
    for kind in (LimitError, MessageError, UnreadableMediaError, CheckpointError):
        error = kind("something rare (ValueError)")
        assert error_text(error, TEXTS["en"]) == "something rare"
        assert error_text(error, TEXTS["zh"]).endswith("（英文详情：something rare）")


def test_sampling_is_read_or_refused() -> None:
    assert read_sampling("", " ", "", "", max_tokens_limit=9) == {}
    read = read_sampling("0.5", "1", "9", "0", max_tokens_limit=9)
    assert read == {"temperature": 0.5, "top_p": 1.0, "max_new_tokens": 9, "seed": 0}
    for given, field in {
        ("2.1", "", "", ""): "Temperature", ("nan", "", "", ""): "Temperature", ("", "0", "", ""): "Top-p",
        ("", "", "10", ""): "Maximum tokens", ("", "", "1.5", ""): "Maximum tokens", ("", "", "", "-1"): "Seed",
        ("", "", "", "x"): "Seed", ("0", "0.5", "", ""): "Top-p",
    }.items():  # fmt: skip
        with pytest.raises(PageError, match=field):
            read_sampling(*given, max_tokens_limit=9)
