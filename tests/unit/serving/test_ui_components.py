"""What the web page writes below an answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.stored import answer
from vlroute.serving.ui.components import TEXTS, badge


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
