"""Streams that vLLM and llama.cpp sent, recorded by `training.bench.record_streams`, against what the pair answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_endpoint import Scripted, scripted_endpoint
from vlroute.errors import InputError
from vlroute.types import AnswerDelta, Finished, ThinkingDelta

STREAMS = Path(__file__).with_name("streams")
EXPECTED: dict[str, dict[str, Any]] = json.loads((STREAMS / "expected.json").read_text("utf-8"))
SERVERS = ("vllm", "llama_cpp")


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted_endpoint() as script:
        yield script


def recorded(name: str) -> tuple[int, str]:
    """Status and body of a response."""
    head, _, body = (STREAMS / f"{name}.txt").read_bytes().decode().partition("\n\n")
    return int(head.split()[0]), body


def answered(server: Scripted, name: str, mode: Any, **options: Any) -> Any:
    """The answer, whose pieces are checked."""
    status, body = recorded(name)
    assert status == 200
    # Instruct answers if Thinking has left no answer
    server.play([body], [recorded(f"{name.partition('_length')[0]}_instruct")[1]] if "_length" in name else [])
    with server.router(**options) as router:
        *events, last = router.stream("?", mode=mode)
    assert isinstance(last, Finished)
    assert last.answer.text == "".join(one.text for one in events if isinstance(one, AnswerDelta))
    assert last.answer.thinking == "".join(one.text for one in events if isinstance(one, ThinkingDelta))
    return last.answer


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("reasoning", ["auto", "parsed"])
@pytest.mark.parametrize("case", ["instruct", "thinking", "length"])
def test_answers(server: Scripted, name: str, case: str, reasoning: str) -> None:
    mode = "instruct" if case == "instruct" else "thinking"
    answer, expected = answered(server, f"{name}_{case}", mode, reasoning=reasoning), dict(EXPECTED[case])
    assert answer.decision.rescued == (case == "length")
    if case == "length":
        second = EXPECTED["instruct"]
        expected |= {"text": second["text"], "finish_reason": second["finish_reason"]}
        expected |= {name: expected[name] + second[name] for name in expected if name.endswith("_tokens")}
    for part in ("text", "thinking", "finish_reason"):
        assert getattr(answer, part) == expected[part]
    usage = answer.usage
    assert usage.prompt_tokens == expected["prompt_tokens"]
    assert abs(usage.completion_tokens - expected["completion_tokens"]) <= 1  # the end of the answer
    assert abs(usage.thinking_tokens - expected["thinking_tokens"]) <= 3  # tags and line breaks
    if name == "vllm" and case == "thinking":
        assert usage.vision_tokens == expected["vision_tokens"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_budget(server: Scripted, name: str) -> None:
    answer = answered(server, f"{name}_budget", "thinking")
    assert EXPECTED["thinking"]["thinking"].startswith(answer.thinking.rstrip())
    assert 0 < answer.usage.thinking_tokens <= 7
    assert (bool(answer.text), answer.finish_reason) == (True, "stop")


@pytest.mark.parametrize("name", SERVERS)
def test_a_refusal(server: Scripted, name: str) -> None:
    status, body = recorded(f"{name}_refusal")
    server.play([json.loads(body) if status != 200 else body], status=status)
    with server.router() as router:
        with pytest.raises(InputError, match="refuses the request"):
            router.ask("?", mode="instruct")
        assert router.remote is not None
        assert router.remote.breakers["instruct"].state == "closed"
