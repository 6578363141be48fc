"""vLLM and llama.cpp as endpoints: the pocket pair answers there as in this process, and faults are handled.

`make test` runs llama.cpp, `make test-servers` both, see `conftest.py`.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from training.bench.endpoint_servers import BUDGET_FIELDS, KEY
from training.bench.peer_servers import LLAMA, VLLM
from training.bench.servers import draw_pictures

from tests.commands import command
from tests.conftest import VIDEO, media, task
from tests.e2e.conftest import RealServers
from tests.serving import until
from tests.stages import certain
from vlroute import Answer, Policy, Router
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.engine.protocol import Evidence, Trial
from vlroute.engine.remote.breaker import Breaker
from vlroute.engine.remote.client import RemoteEngine
from vlroute.errors import EndpointError, InputError, ModeUnavailableError, SettingsError
from vlroute.files import shipped
from vlroute.inputs.messages import parse
from vlroute.pocket import Task
from vlroute.pocket.screens import TOOLS, App, ScreenTask, draw_screen_task, opening
from vlroute.steps import run
from vlroute.types import MODES, AnswerDelta, Decided, Finished, Mode, ThinkingDelta

pytestmark = pytest.mark.float32
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 200}
WHOLE: dict[str, Any] = {"answer_reserve": 0}  # each server closes reasoning in its own way
TASKS = draw_pictures(32, "real servers")
SOME = task("math", "easy")  # both modes answer it
LONGER = task("math", "hard")
EAGER = Policy(price=0.0, fallback_mode="thinking")  # prefers Thinking
LONG = "word " * 5_000  # longer than the context of the servers
#: Number of requests that are being answered, in /metrics.
RUNNING = {LLAMA: "llamacpp:requests_processing", VLLM: "vllm:num_requests_running"}


@pytest.fixture(scope="module")
def here(router: Router) -> dict[Mode, list[Answer]]:
    """Answers of the pair in this process."""
    return {mode: ask_all(router, TASKS, mode, 16, **GREEDY, **WHOLE) for mode in MODES}


@pytest.fixture(scope="module")
def there(real: RealServers) -> Iterator[Router]:
    with real.router() as router:
        yield router.load()


def ask_all(router: Router, tasks: list[Task], mode: Mode, clients: int, **settings: Any) -> list[Answer]:
    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(lambda one: router.ask(one.prompt, **media(one), mode=mode, **settings), tasks))


def said(answers: list[Answer]) -> list[tuple[str, str, str]]:
    return [(answer.text, answer.thinking, answer.finish_reason) for answer in answers]


def metric(real: RealServers, mode: Mode, name: str) -> float:
    server = real.modes[mode]
    text = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_greedy_answers_are_those_of_the_pair_in_this_process(there: Router, here: dict[Mode, list[Answer]]) -> None:
    assert {one.language for one in TASKS[:12]} == {"en", "zh"}
    for mode in MODES:
        answers = ask_all(there, TASKS[:12], mode, 2, **WHOLE)
        assert said(answers) == said(here[mode][:12])
        assert all(bool(answer.thinking) == (mode == "thinking") for answer in answers)


def tool_steps(router: Router, one: ScreenTask) -> list[Any]:
    """What the model says and calls in each step of a loop with tools."""
    app, messages, steps = App(one), opening(one), []
    for _ in range(8):
        answer = router.ask(messages, tools=TOOLS, mode="thinking", **GREEDY, **WHOLE)
        calls = [(call.name, call.arguments) for call in answer.tool_calls]
        steps.append((answer.text, answer.thinking, calls, answer.finish_reason))
        messages.append(answer.message)
        for call in answer.tool_calls:
            result = app.call(call.name, call.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
        if not calls:
            break
    return steps


def test_tools_are_used_as_in_this_process(router: Router, there: Router) -> None:
    chance = random.Random(0)
    for steps in (2, 3, 4):
        one = draw_screen_task(chance, steps)
        far = tool_steps(there, one)
        assert far == tool_steps(router, one)
        assert far[-1][0] == one.answer


def test_evidence_is_that_of_the_pair_in_this_process(router: Router, real: RealServers) -> None:
    """Both servers report probabilities before temperature and penalties; vLLM alone reports the end token."""
    ends = real.endpoint("instruct"), real.endpoint("thinking")
    for settings in (GREEDY, GREEDY | {"max_new_tokens": 3}):
        for one in TASKS[:6]:
            seen: list[Evidence] = []
            trial = Trial(lambda evidence, seen=seen: seen.append(evidence), answer=True)
            for engine in (router._local, RemoteEngine.over(*ends)):  # noqa: SLF001 (evidence is not public)
                with engine.request(parse(one.prompt, **media(one)), "") as request:
                    run(request.answer("instruct", settings, trial=trial))
            ours, theirs = seen
            assert len(ours.log_probs) == len(theirs.log_probs) > 0
            assert theirs.log_probs == pytest.approx(ours.log_probs, abs=1e-2)
            assert theirs.entropies == pytest.approx(ours.entropies, abs=1e-2)
            assert theirs.complete == ours.complete


@pytest.mark.parametrize("mode", MODES)
def test_log_probabilities_are_those_of_the_pair_in_this_process(router: Router, there: Router, mode: Mode) -> None:
    """Servers may leave out the white space between reasoning and answer."""
    asked = {"mode": mode, "logprobs": True, "top_logprobs": 3}
    for one in TASKS[:8]:
        ours = router.ask(one.prompt, **media(one), **asked, **GREEDY, **WHOLE).logprobs
        events = [*there.stream(one.prompt, **media(one), **asked, **WHOLE)]
        assert isinstance(events[-1], Finished)
        theirs = events[-1].answer.logprobs
        assert ours
        assert theirs
        ours, theirs = ([one for one in found if one.token.strip()] for found in (ours, theirs))
        assert [(one.token, one.bytes) for one in theirs] == [(one.token, one.bytes) for one in ours]
        assert [one.logprob for one in theirs] == pytest.approx([one.logprob for one in ours], abs=1e-2)
        for own, other in zip(ours, theirs, strict=True):
            values = [alternative.logprob for alternative in own.top_logprobs]
            assert [alternative.logprob for alternative in other.top_logprobs] == pytest.approx(values, abs=2e-2)
        sent = [entry for event in events if isinstance(event, AnswerDelta) for entry in event.logprobs]
        assert [one for one in sent if one.token.strip()] == theirs


@pytest.mark.parametrize("chosen", MODES)
def test_an_answer_is_decided_on_its_log_probabilities(
    real: RealServers, here: dict[Mode, list[Answer]], chosen: Mode
) -> None:
    p = {"instruct": (0.99, 0.01), "thinking": (0.01, 0.99)}[chosen]
    ends = real.endpoint("instruct"), real.endpoint("thinking")
    with Router.from_endpoints(
        *ends, policy=Policy(price=0.001, stages=("prompt", "answer")), **GREEDY, **WHOLE
    ) as staged:
        staged.use(certain(ComplexityClassifier.load(shipped("pocket/router")), "", 0, answer=p))
        for one, inner in zip(TASKS[:3], here[chosen], strict=False):
            first, *_, last = staged.stream(one.prompt, **media(one), caption=one.caption)
            assert isinstance(first, Decided)
            assert isinstance(last, Finished)
            answer = last.answer
            assert (answer.decision.mode, answer.decision.stage) == (chosen, "answer")
            assert (answer.text, first.decision) == (inner.text, answer.decision)


def test_tokens_are_counted(real: RealServers, there: Router, here: dict[Mode, list[Answer]]) -> None:
    for mode in MODES:
        for one, inner in zip(TASKS[:3], here[mode], strict=False):
            usage = there.ask(one.prompt, **media(one), mode=mode).usage
            assert usage.prompt_tokens == inner.usage.prompt_tokens
            assert abs(usage.completion_tokens - inner.usage.completion_tokens) <= 1  # the end of the answer
            assert abs(usage.thinking_tokens - inner.usage.thinking_tokens) <= 3  # tags and line breaks
            if real.name == VLLM and mode == "thinking":  # llama.cpp does not report them
                assert usage.vision_tokens == inner.usage.vision_tokens


def test_streams(there: Router) -> None:
    for mode in MODES:
        first, *pieces, last = there.stream(SOME.prompt, **media(SOME), mode=mode)
        assert isinstance(first, Decided)
        assert isinstance(last, Finished)
        assert last.answer.text == "".join(piece.text for piece in pieces if isinstance(piece, AnswerDelta))
        assert last.answer.thinking == "".join(piece.text for piece in pieces if isinstance(piece, ThinkingDelta))
        assert last.answer.text == SOME.answer
        assert bool(last.answer.thinking) == (mode == "thinking")
        assert 0 < last.answer.timing.prefill < last.answer.timing.total


def test_32_clients_get_their_own_answers(there: Router, here: dict[Mode, list[Answer]]) -> None:
    modes: list[Mode] = [MODES[i // 2 % 2] for i in range(len(TASKS))]

    def ask(i: int) -> Answer:
        return there.ask(TASKS[i].prompt, **media(TASKS[i]), mode=modes[i], **WHOLE)

    with ThreadPoolExecutor(len(TASKS)) as pool:
        answers = list(pool.map(ask, range(len(TASKS))))
    assert said(answers) == said([here[mode][i] for i, mode in enumerate(modes)])


def test_a_conversation_of_two_turns(router: Router, there: Router) -> None:
    inner, outer = router.chat("Be brief."), there.chat("Be brief.")
    for seed, mode in enumerate(MODES):
        one = task("count", "easy", 70 + seed)
        ours = inner.send(one.prompt, **media(one), mode=mode, **GREEDY)
        theirs = outer.send(one.prompt, **media(one), mode=mode)
        assert (theirs.text, theirs.thinking) == (ours.text, ours.thinking)
        assert theirs.usage.prompt_tokens == ours.usage.prompt_tokens


def test_budgets(real: RealServers, there: Router) -> None:
    whole = there.ask(LONGER.prompt, **media(LONGER), mode="thinking")
    assert whole.usage.thinking_tokens > 8
    short = there.ask(LONGER.prompt, **media(LONGER), mode="thinking", thinking_budget=5)
    assert whole.thinking.startswith(short.thinking.rstrip())
    assert 0 < short.usage.thinking_tokens <= 7  # the budget, and what ends the reasoning
    assert (bool(short.text), short.finish_reason, "think>" in short.text) == (True, "stop", False)
    with real.router(budget_field=None) as without, pytest.raises(SettingsError, match="takes no thinking_budget"):
        without.ask(SOME.prompt, mode="thinking", thinking_budget=5)


def test_stop_strings_end_the_answer_and_not_the_thought(there: Router) -> None:
    whole = there.ask(SOME.prompt, **media(SOME), mode="thinking")
    stop = whole.text[-1]
    cut = there.ask(SOME.prompt, **media(SOME), mode="thinking", stop=[stop])
    assert (cut.thinking, cut.text, cut.finish_reason) == (whole.thinking, whole.text[: whole.text.index(stop)], "stop")


def test_answers_that_are_cut_off(there: Router) -> None:
    cut = there.ask(LONGER.prompt, **media(LONGER), mode="thinking", max_new_tokens=8, answer_reserve=0)
    assert (cut.text, bool(cut.thinking), cut.finish_reason) == ("", True, "length")
    assert (cut.usage.completion_tokens, cut.decision.rescued) == (8, False)


@pytest.mark.parametrize("most", [8, 12, 20])
def test_an_answer_within_few_tokens(real: RealServers, there: Router, most: int) -> None:
    """The server closes the reasoning at its budget; without a budget, the stream is ended and Instruct answers."""
    for budget_field in (True, False):
        with nullcontext(there) if budget_field else real.router(budget_field=None) as router:
            answer = router.ask(LONGER.prompt, **media(LONGER), mode="thinking", max_new_tokens=most)
        assert answer.text
        assert answer.thinking
        assert answer.usage.completion_tokens <= most
        if not budget_field:
            assert (answer.closed, answer.decision.rescued) == ("reserve", True)


@pytest.mark.parametrize("mode", MODES)
def test_refused_requests(real: RealServers, mode: Mode) -> None:
    for options, prompt, error in (
        ({}, LONG, InputError),
        ({"extra_body": {"response_format": {"type": "nonsense"}}}, SOME.prompt, InputError),
        ({"api_key": "wrong"}, SOME.prompt, EndpointError),
        ({"base_url": f"{real.modes[mode].url}/nowhere"}, SOME.prompt, EndpointError),
    ):
        with real.router(**options) as there:
            for _ in range(4):
                with pytest.raises(error):
                    there.ask(prompt, mode=mode)
            assert there.remote is not None
            assert there.remote.breakers[mode].state == "closed"  # the server is not down


def test_a_model_that_the_server_does_not_have(real: RealServers) -> None:
    with real.router(model="another") as there:
        assert there.remote is not None
        assert not there.remote.health()["instruct"].listed
        if real.name == LLAMA:  # it answers with its model, whatever the name
            assert there.ask(SOME.prompt, **media(SOME), mode="instruct").text == SOME.answer
        else:
            with pytest.raises(EndpointError, match="404"):
                there.ask(SOME.prompt, mode="instruct")


def test_a_cancelled_answer_ends_on_the_server(real: RealServers) -> None:
    """`ignore_eos` makes the answer long: its end would come much later than the cancellation."""
    running = RUNNING[real.name]
    with real.router(extra_body={"ignore_eos": True}) as there:
        began = time.monotonic()
        whole = there.ask(SOME.prompt, **media(SOME), mode="thinking", max_new_tokens=600)
        seconds = time.monotonic() - began
        assert whole.usage.completion_tokens == 600
        until(lambda: metric(real, "thinking", running) == 0)

        cancel, answers = threading.Event(), []

        def ask() -> None:
            answers.append(there.ask(SOME.prompt, **media(SOME), mode="thinking", cancel=cancel, max_new_tokens=600))

        began = time.monotonic()
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: metric(real, "thinking", running) == 1)
        cancel.set()
        thread.join(10)
        assert answers[0].finish_reason == "cancelled"
        until(lambda: metric(real, "thinking", running) == 0)
        assert time.monotonic() - began < seconds / 2


def test_a_server_that_is_killed_and_started_again(real: RealServers) -> None:
    server = real.modes["thinking"]
    with real.router(policy=EAGER, extra_body={"ignore_eos": True}) as endless:
        events = endless.stream(SOME.prompt, **media(SOME), max_new_tokens=600)
        while not isinstance(next(events), ThinkingDelta):
            pass
        server.kill()
        try:
            with pytest.raises(ModeUnavailableError) as broken:  # text was passed on already
                list(events)
            assert broken.value.begun
            _survive(real)
        finally:
            server.begin()


def _survive(real: RealServers) -> None:
    """Instruct answers for a dead Thinking server, which then starts again."""
    with real.router(policy=EAGER) as there:
        assert there.remote is not None
        breaker = there.remote.breakers["thinking"] = Breaker(pause=3.0)
        for _ in range(3):
            answer = there.ask(SOME.prompt, **media(SOME))
            assert (answer.decision.mode, answer.decision.fallback, answer.text) == ("instruct", True, SOME.answer)
            assert "cannot be reached" in answer.decision.reason
        assert breaker.state == "open"
        assert not there.remote.health()["thinking"].reachable
        with pytest.raises(ModeUnavailableError, match="skipped"):  # a forced mode is not replaced by the other one
            there.ask(SOME.prompt, mode="thinking")
        real.modes["thinking"].begin()
        until(lambda: breaker.state == "half-open")
        back = there.ask(SOME.prompt, **media(SOME))
        assert (back.decision.mode, back.decision.fallback, back.text) == ("thinking", False, SOME.answer)
        assert breaker.state == "closed"


def test_health(there: Router) -> None:
    assert there.remote is not None
    for health in there.remote.health().values():
        assert (health.reachable, health.listed, health.breaker, health.message) == (True, True, "closed", "ok")


def test_doctor(real: RealServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(json.dumps({
        mode: {
            "base_url": f"{server.url}/v1", "model": server.launch.model, "api_key_env": "SERVER_KEY",
            "budget_field": BUDGET_FIELDS[real.name],
        }
        for mode, server in real.modes.items()
    }))  # fmt: skip
    monkeypatch.setenv("SERVER_KEY", KEY)
    done = command("doctor", "--model", str(file), "--json")
    found = [one for one in json.loads(done.stdout) if one["section"] == "model"]
    assert [(one["what"], one["state"]) for one in found] == [(mode, "fine") for mode in MODES]
    for server, one in zip(real.modes.values(), found, strict=True):
        assert f"{server.url}/v1 answers" in one["found"]


def test_videos_as_frames(real: RealServers) -> None:
    with real.router(videos="frames") as there:
        for mode in MODES:
            answer = there.ask("Which letters are shown?", videos=VIDEO, mode=mode, max_new_tokens=20)
            assert answer.text or answer.thinking
            assert (answer.usage.prompt_tokens or 0) > 16 * len(VIDEO)
