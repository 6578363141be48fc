"""Several answers to one chat request (`n`): one decision, one reading of the prompt, and everything counted."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import task
from tests.forcing import scripted, token_ids
from tests.recording import model_calls
from tests.scripted_endpoint import DONE, USAGE, chunk, scripted_endpoint
from tests.serving import KEY, Served, served, until, user
from tests.stages import certain
from vlroute import Policy
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.selector import ModeSelector
from vlroute.engine.cache.prefix import BLOCK
from vlroute.files import shipped
from vlroute.pipeline import Pipeline
from vlroute.serving.choices import MAX_CHOICES
from vlroute.serving.request_log import log as access_log
from vlroute.serving.settings import ServerSettings
from vlroute.types import MODES, Mode

pytestmark = pytest.mark.float32
SOME = task("ocr", "hard", 1)
HOT: dict[str, Any] = {"temperature": 2.0, "top_p": 1.0, "extra_body": {"top_k": 0}}
#: Reasoning that ends only when it is cancelled.
ENDLESS: dict[str, Any] = {"ignore_eos": True, "vlroute": {"answer_reserve": 0, "close_loops": False}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store = tmp_path_factory.mktemp("store") / "answers.db"
    with served(ServerSettings(api_keys=(KEY,), max_num_seqs=4, max_waiting=2), store=store) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Served) -> openai.OpenAI:
    return server.openai()


def ask(client: openai.OpenAI, n: int, **fields: Any) -> Any:
    body = {"model": "instruct", "messages": [user(SOME)], "max_tokens": 30, **fields}
    return client.chat.completions.create(n=n, **body)


def texts(reply: Any) -> list[str]:
    return [f"{choice.message.model_extra.get('reasoning', '')}|{choice.message.content}" for choice in reply.choices]


def value(server: Served, name: str, **labels: str) -> float:
    """The value of a metric."""
    return server.service.metrics.registry.get_sample_value(f"vlroute_{name}", labels) or 0.0


def running(server: Served) -> float:
    return value(server, "requests_running")


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The fields of the log line of each request."""
    found = list[dict[str, Any]]()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.fields)  # type: ignore[attr-defined]

    handler, level = Handler(), access_log.level
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    yield found
    access_log.removeHandler(handler)
    access_log.setLevel(level)


@pytest.mark.parametrize("mode", MODES)
def test_greedy_answers_are_equal_and_counted_once(
    client: openai.OpenAI, server: Served, mode: Mode, lines: list[dict[str, Any]]
) -> None:
    def counted() -> tuple[float, ...]:
        return tuple(value(server, "tokens_total", mode=mode, kind=kind) for kind in ("prompt", "completion"))

    before = counted()
    one, three = ask(client, 1, model=mode, temperature=0), ask(client, 3, model=mode, temperature=0)
    assert texts(three) == 3 * texts(one)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    used, alone = three.usage, one.usage
    assert (used.prompt_tokens, used.completion_tokens) == (alone.prompt_tokens, 3 * alone.completion_tokens)
    reasoning = alone.completion_tokens_details.reasoning_tokens
    assert used.completion_tokens_details.reasoning_tokens == 3 * reasoning
    ids = [choice.model_extra["vlroute"]["id"] for choice in three.choices]
    assert len({*ids}) == 3
    assert three.id == f"chatcmpl-{ids[0]}"
    assert three.model_extra["vlroute"]["id"] == ids[0]
    for id in ids:  # each is stored
        assert server.router.store is not None
        server.router.feedback(id, correct=True)
    until(lambda: len(lines) == 2)
    assert (lines[1]["prompt_tokens"], lines[1]["completion_tokens"]) == (used.prompt_tokens, used.completion_tokens)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [
        2 * used.prompt_tokens, 4 * alone.completion_tokens
    ]  # fmt: skip


def test_seeds(client: openai.OpenAI) -> None:
    one, four = ask(client, 1, model="thinking", seed=5, **HOT), ask(client, 4, model="thinking", seed=5, **HOT)
    assert texts(four)[0] == texts(one)[0]
    assert len({*texts(four)}) == 4
    assert texts(ask(client, 4, model="thinking", seed=5, **HOT)) == texts(four)
    assert texts(ask(client, 2, model="thinking", seed=5, **HOT)) == texts(four)[:2]
    assert texts(ask(client, 4, model="thinking", seed=6, **HOT))[1:] != texts(four)[1:]
    assert len({*texts(ask(client, 4, model="thinking", **HOT))}) > 1


@pytest.mark.parametrize("model", ["pocket", "pocket-hybrid"])
def test_the_prompt_is_read_once_and_its_pictures_are_encoded_once(model: str) -> None:
    history = [{"role": "user", "content": "Look at the picture. " * 20}, {"role": "assistant", "content": "Yes."}]
    with served(ServerSettings(max_num_seqs=8), name=model) as one:
        for mode in MODES:
            one.router.forget()
            with model_calls() as calls:
                reply = ask(one.openai(), 5, model=mode, messages=[*history, user(SOME)], **HOT)
            length = reply.usage.prompt_tokens
            read = sum(one.length for chunks in calls.prompts for one in chunks)
            assert length > 100
            assert length <= read <= length + 4 * BLOCK  # further answers read what does not fill a block of the cache
            assert sum(calls.towers) == 1
            assert max(calls.steps) >= 4  # and they are generated together
            assert [choice.model_extra["vlroute"]["encoded"] for choice in reply.choices] == [1, 0, 0, 0, 0]


def test_a_stream(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "thinking", "seed": 5, "logprobs": True, "top_logprobs": 2, **HOT}
    whole = ask(client, 3, **options)
    chunks = [*ask(client, 3, stream=True, stream_options={"include_usage": True}, **options)]
    said, reasons, roles, entries = {}, {}, [], dict[int, list[Any]]()
    for one in chunks[:-1]:
        (choice,) = one.choices
        more = choice.delta.model_extra or {}
        channels = said.setdefault(choice.index, ["", ""])
        channels[0] += more.get("reasoning") or ""
        channels[1] += choice.delta.content or ""
        roles += [choice.index] if choice.delta.role else []
        entries.setdefault(choice.index, []).extend((choice.logprobs and choice.logprobs.content) or ())
        if choice.finish_reason:
            assert choice.index not in reasons
            reasons[choice.index] = choice.finish_reason, (one.model_extra or {})["vlroute"]["id"]
    assert ["|".join(said[index]) for index in range(3)] == texts(whole)
    assert sorted(roles) == [0, 1, 2]
    assert [reasons[index][0] for index in range(3)] == [choice.finish_reason for choice in whole.choices]
    assert len({id for _, id in reasons.values()}) == 3
    assert {one.id for one in chunks} == {f"chatcmpl-{reasons[0][1]}"}
    for choice in whole.choices:
        assert [one.token for one in entries[choice.index]] == [one.token for one in choice.logprobs.content]
    assert chunks[-1].usage is not None
    assert not chunks[-1].choices
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (
        whole.usage.prompt_tokens, whole.usage.completion_tokens
    )  # fmt: skip


@pytest.mark.parametrize("stage", ["prefill", "answer"])
@pytest.mark.parametrize("mode", MODES)
def test_all_answers_have_the_mode_that_a_later_stage_decides(
    client: openai.OpenAI, server: Served, stage: Any, mode: Mode
) -> None:
    router, sure = server.router, (0.99, 0.01) if mode == "instruct" else (0.01, 0.99)
    fingerprint, width = router.identity.fingerprint, router.pair.instruct.model.config.text_config.hidden_size
    own = certain(ComplexityClassifier.load(shipped("pocket/router")), fingerprint or "", width, **{stage: sure})
    policy = Policy(price=0.001, stages=("prompt", "prefill", "answer"))
    selector = ModeSelector(own, policy, probe=router.selector.probe, available=("prefill", "answer"))
    selector.check_evidence(fingerprint)
    before = router.selector
    router.selector = selector
    try:
        reply = ask(client, 3, model="auto", temperature=0, logprobs=True)
    finally:
        router.selector = before
    assert len({choice.model_extra["vlroute"]["id"] for choice in reply.choices}) == 3
    assert all(choice.logprobs.content for choice in reply.choices)
    decision = reply.model_extra["vlroute"]["decision"]
    assert (decision["mode"], decision["stage"], decision["forced"], reply.model) == (mode, stage, False, mode)
    assert texts(reply) == 3 * texts(ask(client, 1, model=mode, temperature=0))


def test_tools_and_formats(client: openai.OpenAI, server: Served) -> None:
    tools = [{"type": "function", "function": {"name": "tap", "parameters": {"type": "object", "properties": {}}}}]
    called = ask(client, 3, tools=tools, tool_choice="required", temperature=0)
    assert [choice.finish_reason for choice in called.choices] == 3 * ["tool_calls"]
    assert len({choice.message.tool_calls[0].id for choice in called.choices}) == 3
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["ab", "cd", 7]}}}
    formed = ask(client, 4, response_format=form, **HOT)
    assert all(json.loads(choice.message.content) in ("ab", "cd", 7) for choice in formed.choices)


def test_answers_without_text(client: openai.OpenAI, server: Served) -> None:
    """The first one passes on nothing that would begin the others."""
    with scripted(server.router, "instruct", token_ids(server.router, "\n\n", "instruct")):
        reply = ask(client, 2, max_tokens=1, logprobs=True)
    assert [choice.message.content for choice in reply.choices][:1] == [""]
    assert len(reply.choices) == 2


def test_rescued_answers(client: openai.OpenAI) -> None:
    reply = ask(client, 3, model="thinking", max_tokens=2, temperature=0)
    assert [choice.message.content for choice in reply.choices] == 3 * [reply.choices[0].message.content]
    assert [choice.model_extra["vlroute"]["id"] for choice in reply.choices]


def test_a_client_that_leaves_ends_all(client: openai.OpenAI, server: Served, lines: list[dict[str, Any]]) -> None:
    for stream in (True, False):
        if stream:
            with ask(client, 3, model="thinking", max_tokens=5000, stream=True, extra_body=ENDLESS) as events:
                seen = set[int]()
                while len(seen) < 3:
                    seen.add(next(events).choices[0].index)
                assert running(server) == 3
        else:
            with pytest.raises(openai.APITimeoutError):
                ask(client.with_options(timeout=0.5), 3, model="thinking", max_tokens=5000, extra_body=ENDLESS)
        until(lambda: not running(server))
    until(lambda: len(lines) == 2)
    assert all(line["disconnected"] and line["completion_tokens"] > 0 for line in lines)


def test_an_answer_that_fails_ends_all(client: openai.OpenAI, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    further = Pipeline.further_options

    def failing(self: Any, options: Any, decision: Any, index: int) -> Any:
        if index == 2:
            raise RuntimeError("no third answer")
        return further(self, options, decision, index)

    monkeypatch.setattr(Pipeline, "further_options", failing)
    with pytest.raises(openai.InternalServerError):
        ask(client, 3, model="thinking", max_tokens=5000, extra_body=ENDLESS)
    with pytest.raises(openai.APIError):
        list(ask(client, 3, model="thinking", max_tokens=5000, extra_body=ENDLESS, stream=True))
    until(lambda: not running(server))


def test_limits(client: openai.OpenAI, server: Served) -> None:
    for count in (MAX_CHOICES + 1, 10**6):
        with pytest.raises(openai.BadRequestError, match=f"n must be at most {MAX_CHOICES} here") as caught:
            ask(client, count)
        assert (caught.value.code, caught.value.param) == ("limit_exceeded", "n")
    for wrong in (0, -1, 1.5, "2", True):
        with pytest.raises(openai.UnprocessableEntityError, match="n"):
            ask(client, 1, extra_body={"n": wrong})
    assert len(ask(client, MAX_CHOICES, max_tokens=2).choices) == MAX_CHOICES
    with ask(client, 6, model="thinking", max_tokens=5000, stream=True, extra_body=ENDLESS) as events:
        next(events)
        with pytest.raises(openai.RateLimitError):  # each answer takes a place; ten are admitted
            ask(client, 5)
        assert len(ask(client, 4, max_tokens=2).choices) == 4
    until(lambda: not running(server))


def test_a_small_server_and_its_deadline() -> None:
    with served(ServerSettings(max_num_seqs=1, max_waiting=0, deadline=1.0)) as one:
        client = one.openai()
        assert len(ask(client, 2, max_tokens=3).choices) == 2  # more than run at the same time
        with pytest.raises(openai.BadRequestError, match="n must be at most 2 here"):
            ask(client, 3)
        began = time.monotonic()
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, 2, model="thinking", max_tokens=30_000, extra_body=ENDLESS)
        assert (caught.value.status_code, time.monotonic() - began < 5) == (504, True)


def test_tokens_of_keys(tmp_path: Path) -> None:
    file, key = tmp_path / "keys.toml", "the key of a team, long enough"
    file.write_text(f'[team]\nkey = "{key}"\ntokens_per_day = 100000\n')
    file.chmod(0o600)
    with served(ServerSettings(key_file=file), store=tmp_path / "answers.db") as one:
        used = ask(one.openai(key), 3, model="thinking").usage
        assert one.service.limiter.tokens.today("team") == used.total_tokens


def test_endpoints() -> None:
    with scripted_endpoint() as end:
        end.play([chunk("7"), chunk("", end="stop"), USAGE, DONE])
        with served(router=end.router()) as one:
            reply = ask(one.openai(), 3, seed=1)
    assert [choice.message.content for choice in reply.choices] == ["7", "7", "7"]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (20, 27)
    seeds = [body["seed"] for body in end.bodies]
    assert (len(seeds), len({*seeds}), min(seeds), max(seeds) < 2**63) == (3, 3, 1, True)
