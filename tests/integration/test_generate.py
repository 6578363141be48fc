"""One decoding call: penalties by hand, cancelling, exceptions, settings."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tests.conftest import media, reply, task
from vlroute import Router
from vlroute.engine.local.sampling import Penalties, resolve_settings
from vlroute.engine.settings import RECOMMENDED
from vlroute.inputs.messages import parse

SOME = task("hop")


def test_presence_penalty_by_hand() -> None:
    penalty = Penalties(prompt_length=2, presence=1.5)
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    # token 0 stands in the prompt only, token 2 was written twice: lowered once; token 3 once
    assert penalty(torch.tensor([[0, 1, 2, 2, 3]]), scores).tolist() == [[0.0, 1.0, 0.5, 1.5]]
    assert penalty(torch.tensor([[0, 1]]), scores).tolist() == scores.tolist()


def test_a_large_presence_penalty_forbids_repetition(router: Router) -> None:
    settings = {"presence_penalty": 1e4, "max_new_tokens": 30}
    thinking = reply(router, parse(SOME.prompt, SOME.frames[0]), "thinking", settings).thinking
    ids = router.pair.thinking.tokenizer(thinking, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(set(ids))


def test_cancel_ends_within_one_token(router: Router) -> None:
    cancel = threading.Event()
    pieces: list[str] = []

    def stop_after_three(channel: str, piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            cancel.set()

    stopped = reply(router, parse(SOME.prompt, SOME.frames[0]), "thinking", {}, stop_after_three, cancel)
    assert stopped.finish_reason == "cancelled"
    assert 3 <= len(pieces) <= 4
    assert stopped.text == ""


def test_what_a_listener_raises_is_raised(router: Router) -> None:
    def fail(channel: str, piece: str) -> None:
        raise KeyError("listener")

    with pytest.raises(KeyError, match="listener"):
        reply(router, parse(SOME.prompt, SOME.frames[0]), "instruct", {}, fail)


def test_settings_merge_in_order(router: Router) -> None:
    pocket = router.pair.instruct
    settings = resolve_settings(pocket, {"max_new_tokens": 7}, {"max_new_tokens": 9})
    assert settings["max_new_tokens"] == 9
    assert settings["do_sample"] is False  # the checkpoint's own word
    assert "temperature" not in settings
    assert "presence_penalty" not in settings  # belongs to the sampling recipe only
    assert settings["eos_token_id"] == pocket.tokenizer.eos_token_id
    assert resolve_settings(pocket, {"presence_penalty": 0.3})["presence_penalty"] == 0.3


def test_recommended_sampling_reaches_generate(router: Router) -> None:
    settings = resolve_settings(router.pair.thinking, {"do_sample": True})
    for name in ("temperature", "top_p", "top_k", "presence_penalty"):
        assert settings[name] == RECOMMENDED["thinking"][name]
    torch.manual_seed(0)
    texts = {
        router.ask("?", **media(SOME), mode="instruct", do_sample=True, temperature=50.0, top_k=0, top_p=1.0).text
        for _ in range(4)
    }
    assert len(texts) > 1


@pytest.mark.parametrize("bad", [{"max_tokens": 5}, {"temprature": 1.0}])
def test_unknown_settings_are_named(router: Router, bad: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(bad))):
        router.ask(SOME.prompt, **media(SOME), mode="instruct", **bad)
