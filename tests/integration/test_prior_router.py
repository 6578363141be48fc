"""The shipped routers: the same meaning gets the same decision in both languages, and the prior says what it is."""

from __future__ import annotations

import logging
from statistics import mean

import pytest
from training.prior.card import FOLDER, parallel, section

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.files import shipped
from vlroute.hub import resolve_pair


@pytest.mark.parametrize("pair", ["qwen3-vl-2b", "pocket"])
def test_the_same_meaning_gets_the_same_decision(pair: str) -> None:
    found = parallel(ComplexityClassifier.load(shipped(f"{pair}/router")), Policy(), pair)
    assert len(found) >= {"qwen3-vl-2b": 200, "pocket": 40}[pair]
    assert mean(one.agree for one in found) >= 0.9
    assert len({mode for one in found for mode in one.modes}) == 2  # agreeing by never deciding would be easy


def test_the_prior_knows_which_kinds_gain() -> None:
    found = parallel(ComplexityClassifier.load(shipped("qwen3-vl-2b/router")), Policy(), "qwen3-vl-2b")

    def gain(*topics: str) -> float:
        return mean(p.gain for one in found if one.topic in topics for p in one.predictions)

    assert gain("math", "multi_image", "robotics") > 0.1
    assert gain("ocr", "document", "count", "blind") < 0.02


def test_the_readme_says_first_what_it_was_not_trained_on_and_holds_todays_figures() -> None:
    page = (FOLDER / "README.md").read_text("utf-8")
    assert page.startswith("**This router was not trained on Qwen3-VL's own answers.**")
    assert section(parallel(ComplexityClassifier.load(FOLDER / "router"), Policy(), "qwen3-vl-2b")) in page


def test_the_pairs_name_brings_it_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="vlroute"):
        *_, router = resolve_pair("Qwen/Qwen3-VL-2B", None, None, None)
    assert router == shipped("qwen3-vl-2b/router")
    assert "published scores" in caplog.text
    assert resolve_pair("Qwen/Qwen3-VL-4B", None, None, None)[2] is None
    assert resolve_pair("Qwen/Qwen3-VL-2B", None, None, "mine")[2] == "mine"
