"""Model cards: what they say of an artifact, and that texts from data have no effect in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import ROOT
from vlroute import ComplexityClassifier
from vlroute.decision.classifier import Start
from vlroute.errors import ArtifactError
from vlroute.model_card import base_models, model_card, vocabulary_of

PAIR = ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-2B-Thinking"]


def changed(card: dict[str, Any]) -> ComplexityClassifier:
    """The router that was made from published scores, with changes in its card."""
    found = ComplexityClassifier.load(ROOT / "models" / "qwen3-vl-2b" / "router")
    found.card |= card
    return found


@pytest.mark.parametrize(
    ("name", "checkpoints"),
    [
        ("Qwen/Qwen3-VL-2B", PAIR),
        ("Qwen/Qwen3.5-2B", ["Qwen/Qwen3.5-2B"]),
        ("Qwen/Qwen3-VL-2B-Instruct-FP8 + Qwen/Qwen3-VL-2B-Thinking-FP8",
         ["Qwen/Qwen3-VL-2B-Instruct-FP8", "Qwen/Qwen3-VL-2B-Thinking-FP8"]),
        ("fast + Qwen/Qwen3-VL-2B-Thinking", ["Qwen/Qwen3-VL-2B-Thinking"]),
        ("pocket", []),
        ("somebody/unknown-kind", []),
        ("not a/hub id", []),
    ],
)  # fmt: skip
def test_base_models(name: str, checkpoints: list[str]) -> None:
    assert base_models(name) == checkpoints


def test_metadata() -> None:
    text = model_card(changed({}), None, "user/name", license="apache-2.0")
    fence, metadata, body = text.split("---\n", 2)
    assert not fence
    assert yaml.safe_load(metadata) == {
        "base_model": PAIR, "library_name": "vlroute", "license": "apache-2.0", "pipeline_tag": "text-classification",
        "tags": ["vlroute", "router", "routing", "vision-language", "reasoning"],
    }  # fmt: skip
    assert 'Router.from_pretrained("Qwen/Qwen3-VL-2B", router="user/name")' in body
    assert "license" not in yaml.safe_load(model_card(changed({}), None, "x").split("---\n")[1])


def test_texts_from_data_have_no_effect() -> None:
    evil = "a | b\n---\n# [x](http://y) <script> `"
    card = changed({})
    provenance = card.card["provenance"] | {"sets": {evil: 3}, "data": [{"file": evil, "sha256": "0" * 64}]}
    text = model_card(changed({"provenance": provenance, "warnings": [evil], "model": {"name": evil}}), None, "x")
    assert text.count("\n---\n") == 1  # the end of the metadata
    assert "\n# [x]" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert r"a \| b --- # \[x\](http://y) \<script\> \`" in text


def test_what_is_not_recorded_is_not_invented() -> None:
    bare = changed({})
    bare.card.clear()
    text = model_card(bare, None, "x")
    assert "# Router for a vision-language model" in text
    assert "The artifact does not record its training data." in text
    assert "## Results" not in text
    assert "base_model" not in text
    huge = {"provenance": changed({}).card["provenance"] | {"settings": {"price": 10**400}}}
    for wrong in ({"provenance": {"records": 3}}, {"provenance": 7}, {"metrics": {"rows": 7}}, {"warnings": 7}, huge):
        with pytest.raises(ArtifactError, match="train the router again"):
            model_card(changed(wrong), None, "x")


def test_assumed_seconds_are_named() -> None:
    both = {"instruct": [0.2, 0.02], "thinking": [0.21, 0.025]}
    assumed = {"tokens of an answer": {}, "prefill and seconds per token": both}
    text = card_with({"assumed": assumed})
    assert (
        "Seconds are assumed where the records contain none: Instruct 0.2 s of prefill and 0.02 s per token, "
        "Thinking 0.21 s of prefill and 0.025 s per token."
    ) in text
    assert "Tokens of an answer are assumed" not in text
    text = card_with({"assumed": {**assumed, "tokens of an answer": {"thinking": 90.0}}})
    assert "Tokens of an answer are assumed where the records contain none: Thinking 90. Seconds" in text
    assert "assumed" not in model_card(changed({}), None, "x")


def card_with(provenance: dict[str, Any]) -> str:
    return model_card(changed({"provenance": changed({}).card["provenance"] | provenance}), None, "x")


def test_the_model_is_named_where_it_matters() -> None:
    text = model_card(changed({}), None, "x")
    assert "training records, for Qwen/Qwen3-VL-2B." in text
    assert "trained for Qwen/Qwen3-VL-2B." in text
    unknown = model_card(changed({"model": None}), None, "x")
    assert unknown.count("for a model that the artifact does not name.") == 2


@pytest.mark.parametrize("private", [False, True])
def test_the_router_of_the_start_is_named_once(private: bool) -> None:
    started = changed({})
    started.start = Start(changed({}), np.ones(2, np.float32), "first")
    started.card["provenance"]["settings"]["started from"] = "first (0123)"
    card = model_card(started.with_hashed_vocabulary() if private else started, None, "x")
    assert card.count("started from") == card.count("first (0123)") == 1
    del started.card["provenance"]["settings"]["started from"]
    assert "| started from | first |" in model_card(started, None, "x")


def test_the_rarest_words_are_shown_first() -> None:
    classifier = changed({})
    found = vocabulary_of(classifier)
    assert (found.hashed, found.prompt, found.captions) == (False, classifier.encoder.prompt.width, 0)
    lengths = [len(word) for word in found.rare]
    assert lengths == sorted(lengths, reverse=True)
    assert not [word for word in found.rare if " " in word]
    hashed = vocabulary_of(classifier.with_hashed_vocabulary())
    assert (hashed.hashed, hashed.rare) == (True, ())
    assert "as hashes" in hashed.counts
