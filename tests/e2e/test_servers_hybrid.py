"""One server for both modes: the pocket hybrid behind llama.cpp and vLLM, see `conftest.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from training.bench.endpoint_servers import BUDGET_FIELDS, EndpointServer, launch_hybrid
from training.bench.peer_servers import LLAMA, VLLM

from tests.conftest import media, task
from tests.e2e.conftest import SERVERS
from vlroute import Endpoint, Router
from vlroute.files import shipped
from vlroute.types import MODES

#: vLLM's kernels of gated delta networks for CPUs exist only in bfloat16.
DTYPES = {LLAMA: "float32", VLLM: "bfloat16"}
GREEDY: dict[str, Any] = {"do_sample": False, "answer_reserve": 0}
#: No two tokens have equal scores in bfloat16 for these, so that rounding decides nothing.
KINDS = ("math easy en", "ocr hard zh", "gui hard en", "count easy zh", "hop easy en", "math hard zh")
TASKS = [task(kind, level, 1, language) for kind, level, language in (line.split() for line in KINDS)]


@dataclass(frozen=True, slots=True)
class Both:
    """Routers of the same checkpoint: in this process, and through a server."""

    name: str
    inner: Router
    outer: Router
    endpoint: Endpoint


@pytest.fixture(scope="module", params=SERVERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    name, folder = request.param, tmp_path_factory.mktemp("hybrid")
    checkpoint = shipped("pocket-hybrid")
    server = EndpointServer(name, launch_hybrid(name, checkpoint, folder))
    endpoint = server.endpoint(family="qwen3_5", budget_field=BUDGET_FIELDS[name], retries=0)
    inner = Router.from_pretrained(checkpoint, device="cpu", dtype=DTYPES[name])
    try:
        server.begin()
        with inner, Router.from_endpoints(endpoint) as outer:
            yield Both(name, inner, outer, endpoint)
    finally:
        server.end()


def test_greedy_text_is_that_of_the_model_in_this_process(both: Both) -> None:
    for one in TASKS:
        for mode in MODES:
            ours = both.inner.ask(one.prompt, **media(one), mode=mode, **GREEDY)
            theirs = both.outer.ask(one.prompt, **media(one), mode=mode, **GREEDY)
            assert (theirs.thinking, theirs.text) == (ours.thinking, ours.text)
            assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens
            assert bool(theirs.thinking) == (mode == "thinking")


def test_the_answer_of_instruct_is_not_taken_for_reasoning(both: Both) -> None:
    answer = both.outer.ask(TASKS[0].prompt, **media(TASKS[0]), mode="instruct", **GREEDY)
    assert (bool(answer.text), answer.thinking) == (True, "")


def test_health(both: Both) -> None:
    assert both.outer.remote is not None
    assert [health.message for health in both.outer.remote.health().values()] == ["ok", "ok"]
