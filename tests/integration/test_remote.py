"""Two real servers as endpoints: their answers equal those of the models in this process; faults of servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from training.bench.second_turn import transformers_server

from tests.commands import command
from tests.conftest import DEVICE, VIDEO, media, task
from tests.endpoints import Server, free_port
from tests.serving import served, until, user
from vlroute import Policy, Router
from vlroute.engine.remote.breaker import Breaker
from vlroute.engine.remote.endpoint import Endpoint
from vlroute.errors import EndpointError, InputError, ModeUnavailableError, SettingsError
from vlroute.files import shipped
from vlroute.inputs.messages import parse
from vlroute.serving.app import create_app
from vlroute.serving.settings import ServerSettings
from vlroute.types import MODES, AnswerDelta, Decided, Finished, ThinkingDelta

SOME = task("math", "easy")  # both modes answer it
KINDS = ("math hard en", "ocr medium zh", "count easy en", "gui hard zh", "hop easy en")
TASKS = [task(kind, level, 0, language) for kind, level, language in (kind.split() for kind in KINDS)]
EAGER = Policy(price=0.0, fallback_mode="thinking")  # prefers Thinking


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    pair = Server().begin(), Server().begin()
    try:
        yield pair[0].wait(), pair[1].wait()
    finally:
        for server in pair:
            server.kill()


@pytest.fixture(scope="module")
def remote(servers: tuple[Server, Server]) -> Router:
    return over(*servers)


@pytest.fixture(scope="module")
def third() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def endless(third: Server) -> Server:
    """One server for several tests, because each start takes seconds; started again if a test has changed it."""
    if not third.endless:
        third.kill()
        third.endless = True
        third.begin()
    return third


def over(instruct: Server, thinking: Server, policy: Policy | None = None, **options: Any) -> Router:
    ends = Endpoint(instruct.url, "instruct", **options), Endpoint(thinking.url, "thinking", **options)
    return Router.from_endpoints(*ends, policy=policy, do_sample=False).load()


def thinks_first(instruct: Server, thinking: Server, **options: Any) -> Router:
    """A router without an artifact, whose fallback mode is Thinking."""
    return over(instruct, thinking, EAGER, **options)


def test_greedy_answers_are_those_of_the_pair_in_this_process(router: Router, remote: Router) -> None:
    for one in TASKS:
        for mode in MODES:
            here = router.ask(one.prompt, **media(one), mode=mode, do_sample=False)
            there = remote.ask(one.prompt, **media(one), mode=mode)
            assert (there.text, there.thinking, there.finish_reason) == (here.text, here.thinking, here.finish_reason)
            there_usage, here_usage = (replace(a.usage, cached_tokens=0, encoded=None) for a in (there, here))
            assert there_usage == here_usage  # each side has caches of its own


def test_a_conversation_and_its_pictures_are_read_once(router: Router, remote: Router) -> None:
    here, there = router.chat("Be brief."), remote.chat("Be brief.")
    for i, one in enumerate(task("count", "easy", 70 + seed) for seed in range(3)):
        pictures = media(one) if i != 1 else {}
        asked: Any = {**pictures, "mode": "instruct"}
        assert there.send(one.prompt, **asked).text == here.send(one.prompt, **asked, do_sample=False).text
    assert [turn.answer.usage.encoded for turn in there.history[1:]] == [0, 1]  # this server says so
    usage = there.history[1].answer.usage
    assert usage.cached_tokens > usage.vision_tokens > 0  # the same bytes again: the server's own cache hits


def test_streams(remote: Router) -> None:
    for mode in MODES:
        events = list(remote.stream(SOME.prompt, **media(SOME), mode=mode))
        first, *pieces, last = events
        assert isinstance(first, Decided)
        assert isinstance(last, Finished)
        assert last.answer.text == "".join(piece.text for piece in pieces if isinstance(piece, AnswerDelta))
        assert last.answer.thinking == "".join(piece.text for piece in pieces if isinstance(piece, ThinkingDelta))
        assert bool(last.answer.thinking) == (mode == "thinking")
        assert 0 < last.answer.timing.prefill < last.answer.timing.total


def test_stop_strings_end_the_answer_and_not_the_thought(router: Router, remote: Router) -> None:
    whole = router.ask(SOME.prompt, **media(SOME), mode="thinking", do_sample=False)
    stop = whole.text[-1]
    cut = remote.ask(SOME.prompt, **media(SOME), mode="thinking", stop=[stop])
    assert (cut.thinking, cut.text, cut.finish_reason) == (whole.thinking, whole.text[: whole.text.index(stop)], "stop")


def test_a_server_without_a_reasoning_parser(servers: tuple[Server, Server]) -> None:
    folder, router = shipped("pocket/thinking"), Router.from_pretrained(dtype="float32")
    with router, transformers_server(folder, "float32", str(DEVICE)) as (url, _):
        there = Router.from_endpoints(
            (servers[0].url, "instruct"), (f"{url}/v1", str(folder)), max_new_tokens=320, do_sample=False
        )
        for one in TASKS:
            here = router.ask(one.prompt, **media(one), mode="thinking", do_sample=False)
            answer = there.ask(one.prompt, **media(one), mode="thinking")
            assert (answer.text, answer.thinking) == (here.text, here.thinking)


def test_a_budget_is_sent_where_the_server_has_one_and_else_refused(
    router: Router, servers: tuple[Server, Server]
) -> None:
    asked: Any = {**media(SOME), "mode": "thinking", "thinking_budget": 3}
    here = router.ask(SOME.prompt, **asked, do_sample=False)
    there = over(*servers, budget_field="thinking_budget").ask(SOME.prompt, **asked)
    assert (there.text, there.thinking) == (here.text, here.thinking)
    with pytest.raises(SettingsError, match="takes no thinking_budget"):
        over(*servers).ask(SOME.prompt, **asked)
    assert over(*servers).ask(SOME.prompt, **{**asked, "mode": "instruct"}).text  # which ignores a budget
    within = Endpoint("http://127.0.0.1/v1", "m", budget_field="custom_params.thinking_budget")  # as SGLang has it
    extra = within.body(parse("?"), {"thinking_budget": 3, "top_k": 5}, "thinking")["extra_body"]
    assert extra == {"top_k": 5, "custom_params": {"thinking_budget": 3}}


def test_endpoints_refuse_videos_and_unknown_settings(remote: Router) -> None:
    with pytest.raises(TypeError, match="typical_p"):
        remote.ask(SOME.prompt, mode="instruct", typical_p=0.5)
    with pytest.raises(InputError, match="takes no videos"):
        remote.ask("What happens?", videos=VIDEO, mode="instruct")
    with pytest.raises(ValueError, match="endpoints"):
        _ = remote.pair


@pytest.mark.parametrize(
    ("model", "mode", "error", "said"),
    [("gpt-4", "thinking", EndpointError, "answers 404"), ("thinking", "instruct", EndpointError, "answers 404")],
)
def test_a_refusal_is_not_an_outage(
    servers: tuple[Server, Server], model: str, mode: Any, error: type[Exception], said: str
) -> None:
    there = Router.from_endpoints((servers[0].url, "no-such"), (servers[1].url, model), policy=EAGER)
    for _ in range(5):
        with pytest.raises(error, match=said):
            there.ask(SOME.prompt, caption="three numbers", mode=mode)
    assert there.remote is not None
    assert there.remote.breakers[mode].state == "closed"
    assert not there.remote.health()["instruct"].listed


def test_a_request_that_the_server_refuses(remote: Router) -> None:
    with pytest.raises(InputError, match="refuses the request"):
        remote.ask("word " * 100_000, mode="instruct")


def test_the_page_and_the_api_over_endpoints(servers: tuple[Server, Server]) -> None:
    dead = Server(port=free_port())
    there = thinks_first(servers[0], dead, retries=0)
    with served(ServerSettings(), router=there) as front:
        client = front.openai()
        whole = client.chat.completions.with_raw_response.create(model="auto", messages=[user(SOME)])
        assert whole.headers["x-vlroute-mode"] == "instruct"
        completion: Any = whole.parse()
        assert completion.choices[0].message.content == SOME.answer
        assert completion.vlroute["decision"]["fallback"]
        chunks: list[Any] = list(client.chat.completions.create(model="auto", messages=[user(SOME)], stream=True))
        assert [one.vlroute["decision"]["mode"] for one in chunks[:2]] == ["thinking", "instruct"]
        assert "".join(one.choices[0].delta.content or "" for one in chunks) == SOME.answer
        with pytest.raises(openai.InternalServerError) as refused:
            client.chat.completions.create(model="thinking", messages=[user(SOME)])
        assert refused.value.status_code == 503
        assert str(dead.port) not in refused.value.message  # no addresses
        assert front.http().get("/metrics").status_code == 200


def test_a_frozen_server_is_given_up_after_read_seconds(servers: tuple[Server, Server]) -> None:
    there = thinks_first(*servers, retries=0, read_seconds=1.0)
    servers[1].freeze()
    try:
        decision = there.ask(SOME.prompt, **media(SOME)).decision
        assert decision.fallback
        assert "no token for 1 s" in decision.reason
    finally:
        servers[1].thaw()


def test_without_the_instruct_server_thinking_answers_without_a_caption(servers: tuple[Server, Server]) -> None:
    there = thinks_first(Server(port=free_port()), servers[1], retries=0)
    answer = there.ask(SOME.prompt, **media(SOME))
    assert (answer.decision.mode, answer.decision.caption, answer.text) == ("thinking", None, SOME.answer)


def test_cancelling_ends_the_answer_here_and_on_the_server(servers: tuple[Server, Server], endless: Server) -> None:
    there = over(servers[0], endless.wait())
    cancel, answers = threading.Event(), []

    def ask() -> None:
        answers.append(there.ask(SOME.prompt, **media(SOME), mode="thinking", cancel=cancel))

    thread = threading.Thread(target=ask)
    thread.start()
    metrics = f"{endless.url.removesuffix('/v1')}/metrics"
    until(lambda: "vlroute_requests_running 1.0" in httpx.get(metrics).text)
    cancel.set()
    thread.join(10)
    assert answers[0].finish_reason == "cancelled"
    until(lambda: "vlroute_requests_running 0.0" in httpx.get(metrics).text)


def test_closing_the_router_cancels_its_streams(servers: tuple[Server, Server], endless: Server) -> None:
    there = over(servers[0], endless.wait())
    events = there.stream(SOME.prompt, **media(SOME), mode="thinking")
    assert isinstance(next(events), Decided)
    assert isinstance(next(events), ThinkingDelta)
    there.close()
    assert [*events][-1].answer.finish_reason == "cancelled"
    with pytest.raises(RuntimeError, match="closed"):
        there.ask(SOME.prompt, mode="instruct")


def test_a_server_killed_in_the_middle_and_started_again(servers: tuple[Server, Server], endless: Server) -> None:
    there = thinks_first(servers[0], endless.wait(), retries=0)
    assert there.remote is not None
    breaker = there.remote.breakers["thinking"] = Breaker(pause=1.0)
    events = there.stream(SOME.prompt, **media(SOME))
    seen = [next(events) for _ in range(5)]
    assert isinstance(seen[-1], ThinkingDelta)
    endless.kill()
    with pytest.raises(ModeUnavailableError, match="ended its stream") as broken:  # text was passed on already
        list(events)
    assert broken.value.begun

    for _ in range(2):  # no text was passed on: the other mode answers
        answer = there.ask(SOME.prompt, **media(SOME))
        assert (answer.decision.mode, answer.decision.fallback, answer.text) == ("instruct", True, SOME.answer)
        assert "cannot be reached" in answer.decision.reason
    assert breaker.state == "open"
    assert "skipped" in there.ask(SOME.prompt, **media(SOME)).decision.reason
    with pytest.raises(ModeUnavailableError, match="skipped"):  # a forced mode is not replaced by the other one
        there.ask(SOME.prompt, mode="thinking")

    endless.endless = False
    endless.begin().wait()
    time.sleep(1.0)
    assert breaker.state == "half-open"
    back = there.ask(SOME.prompt, **media(SOME))
    assert (back.decision.mode, back.decision.fallback, back.text) == ("thinking", False, SOME.answer)
    assert breaker.state == "closed"


def test_headers_keep_a_conversation_together(servers: tuple[Server, Server]) -> None:
    told: list[dict[str, str]] = []

    def headers(conversation: Any) -> dict[str, str]:
        told.append({"x-session-id": conversation.key})
        return told[-1]

    chat = over(*servers, headers=headers).chat()
    for one in TASKS[:2]:
        chat.send(one.prompt, **media(one), mode="instruct")
    assert told[0] == told[1]
    over(*servers, headers=headers).ask(TASKS[1].prompt, **media(TASKS[1]), mode="instruct")
    assert told[2] != told[0]


def test_a_file_of_endpoints_serves_every_command(servers: tuple[Server, Server], tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    file.write_text(json.dumps({
        mode: {"base_url": server.url, "model": mode} for mode, server in zip(MODES, servers, strict=True)
    }))  # fmt: skip
    SOME.frames[0].save(tmp_path / "one.png")
    code = (
        "import sys; from vlroute.cli.app import run; sys.argv = ['vlroute', *sys.argv[1:]]\n"
        "try: run()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was brought'"
    )
    asked = ["ask", SOME.prompt, "-i", str(tmp_path / "one.png"), "--model", str(file), "--mode", "instruct", "--json"]
    asking = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert asking.returncode == 0, asking.stderr
    assert json.loads(asking.stdout)["text"] == SOME.answer
    done = command("doctor", "--model", str(file))
    assert f"{servers[1].url} answers" in " ".join(done.stdout.split())
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": SOME.prompt, "image": "one.png", "answer": SOME.answer}) + "\n")
    out = tmp_path / "records.jsonl"
    done = command("collect", str(rows), "--out", str(out), "--model", str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["instruct"]["correct"]


def test_when_thinking_is_congested_fewer_requests_think(servers: tuple[Server, Server]) -> None:
    there = Router.from_endpoints(
        (servers[0].url, "instruct"), (servers[1].url, "thinking"), router=shipped("pocket/router"),
        policy=Policy(price=0.5), do_sample=False,
    )  # fmt: skip

    def share() -> float:
        modes = [there.decide(one.prompt, caption="three numbers").mode for one in hard]
        return modes.count("thinking") / len(modes)

    hard = [task("math", "hard", seed) for seed in range(20)]
    for one in hard[:12]:
        there.ask(one.prompt, **media(one), mode="thinking")
    quiet = share()
    servers[1].freeze()  # whoever asks now waits
    thaw = threading.Timer(6.0, servers[1].thaw)
    thaw.start()
    crowd = [
        threading.Thread(target=lambda one=one: there.ask(one.prompt, **media(one), mode="thinking"))  # type: ignore[misc]
        for one in hard[:6]
    ]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    congested = share()
    assert congested < quiet


def test_invalid_files_of_endpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    for found, said in (
        ("{", "not JSON"),
        ([], "'instruct' and 'thinking'"),
        ({"instruct": good}, "'instruct' and 'thinking'"),
        ({"instruct": good, "thinking": {"model": "m"}}, "base_url and model"),
        ({"instruct": good, "thinking": {**good, "api_key": "secret"}}, "api_key_env"),
        ({"instruct": good, "thinking": {**good, "api_key_env": "NO_SUCH_KEY"}}, "is not set"),
        ({"instruct": good, "thinking": {**good, "base_url": "file:///etc"}}, "must be http"),
        ({"instruct": good, "thinking": {**good, "base_url": 5}}, "thinking"),
    ):
        file = tmp_path / "ends.json"
        file.write_text(found if isinstance(found, str) else json.dumps(found))
        with pytest.raises(InputError, match=said):
            Router.from_pretrained(file)
    monkeypatch.setenv("SOME_KEY", "secret")
    file.write_text(json.dumps({"instruct": good, "thinking": {**good, "api_key_env": "SOME_KEY"}}))
    there = Router.from_pretrained(file)
    assert there.remote is not None
    assert there.remote.endpoints["thinking"].api_key == "secret"
    assert "secret" not in repr(there.remote.endpoints)
    with pytest.raises(ValueError, match="cannot be used with endpoints"):
        Router.from_pretrained(file, device="cpu")
    assert create_app(there)
