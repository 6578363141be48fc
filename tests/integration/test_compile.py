"""`compile="max"` with the real compiler of torch: the same answers, and a fallback where nothing can be compiled.

Steps are compiled once for one answer and once for several. Each time takes half a minute or more, so `make test`
compiles one kind of step; `VLROUTE_COMPILE=all pytest tests/integration/test_compile.py` compiles all.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PICTURES
from tests.tiny import write_tiny
from vlroute import Answer, Router
from vlroute.types import MODES

pytestmark = pytest.mark.float32
ALL = os.environ.get("VLROUTE_COMPILE") == "all"
#: No token ends the answer.
SETTINGS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": -1}
REQUESTS = [
    {"prompt": "How many circles? " * (1 + i), "images": PICTURES[i], "mode": mode, **SETTINGS}
    for i in range(3) for mode in MODES
]  # fmt: skip


def said(*answers: Answer) -> list[tuple[str, str]]:
    return [(answer.thinking, answer.text) for answer in answers]


@pytest.mark.parametrize("together", [False, True] if ALL else [False])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"] if ALL else ["qwen3_vl"])
def test_compiled_steps_give_the_same_answers(
    family: str, together: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    folder = write_tiny(family, tmp_path / family)
    caplog.set_level(logging.INFO, logger="vlroute")
    texts = []
    for compile in ("off", "max"):
        with Router.from_pretrained(folder, compile=compile) as router:
            asked = REQUESTS if together else [one for one in REQUESTS if one["mode"] == "instruct"][:1]
            texts.append(said(*router.ask_many(asked)))
    assert texts[0] == texts[1]
    assert "compiling the decode step" in caplog.text
    assert "cannot be compiled" not in caplog.text


def test_without_a_compiler_steps_run_as_they_are(
    router: Router, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with Router.from_pretrained(compile="max") as compiled:
        assert said(*compiled.ask_many(REQUESTS)) == said(*router.ask_many(REQUESTS))
    assert "the decode step cannot be compiled, so it runs as with compile='off': No working C++" in caplog.text
