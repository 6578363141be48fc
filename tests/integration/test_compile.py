"""`compile="max"`: the same answers from compiled steps, and a fallback where nothing can be compiled.

The compiler of torch needs minutes. `make test` runs it for one answer of a pair, except for its last step, which
generates C++ (`aot_eager`). `VLROUTE_TEST_COMPILE=inductor pytest tests/integration/test_compile.py` runs everything.
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
BACKEND = os.environ.get("VLROUTE_TEST_COMPILE", "aot_eager")
ALL = BACKEND == "inductor"
#: No token ends the answer.
SETTINGS: dict[str, Any] = {"do_sample": False, "answer_reserve": 0, "max_new_tokens": 12, "eos_token_id": -1}
REQUESTS = [
    {"prompt": "How many circles? " * (1 + i), "images": PICTURES[i], "mode": mode, **SETTINGS}
    for i in range(3) for mode in MODES
]  # fmt: skip


def said(*answers: Answer) -> list[tuple[str, str]]:
    return [(answer.thinking, answer.text) for answer in answers]


def compile_with(backend: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that gets an item for each graph that is compiled."""
    graphs: list[int] = []
    compile, lookup = torch.compile, torch._dynamo.lookup_backend  # noqa: SLF001
    made = lookup(backend) if isinstance(backend, str) else backend

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return made(graph, inputs)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", lambda step, options, **rest: compile(step, backend=counted, **rest))
    return graphs


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_5"] if ALL else ["qwen3_vl"])
def test_compiled_steps_give_the_same_answers(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    graphs = compile_with(BACKEND, monkeypatch)
    folder = write_tiny(family, tmp_path / family)
    caplog.set_level(logging.INFO, logger="vlroute")
    texts = []
    for compile in ("off", "max"):
        with Router.from_pretrained(folder, compile=compile) as router:
            texts.append(said(router.ask(**REQUESTS[0])))
            if ALL:
                texts[-1] += said(*router.ask_many(REQUESTS))
    assert texts[0] == texts[1]
    assert len(graphs) >= 1 + ALL  # for one answer and for several
    assert "compiling the decode step" in caplog.text
    assert "cannot be compiled" not in caplog.text


def test_without_a_compiler_steps_run_as_they_are(
    router: Router, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin PATH")

    compile_with(fail, monkeypatch)
    with Router.from_pretrained(compile="max") as compiled:
        assert said(*compiled.ask_many(REQUESTS)) == said(*router.ask_many(REQUESTS))
    said_so = "the decode step cannot be compiled, so it runs as with compile='auto': No working C++ compiler found"
    assert [line for line in caplog.messages if said_so in line] == [said_so] * 2  # one for each mode
