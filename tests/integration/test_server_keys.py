"""A key file of a running server: limits, counts, and changes while requests are answered."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from tests.commands import command
from tests.serving import KEY, Served, served, until
from vlroute import Router
from vlroute.errors import InputError
from vlroute.inputs.messages import parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.app import create_app, mount_page
from vlroute.serving.errors import APIError
from vlroute.serving.key_limits import utc_day
from vlroute.serving.keys import session_namespace
from vlroute.serving.settings import ServerSettings

KEY_NAMES = ("minute", "busy", "daily", "plenty", "free", "gone", "deleting")
KEYS = {name: f"the key of {name}, long enough" for name in KEY_NAMES}
PLENTY = {"tokens_per_day": 10**9}
QUESTION = [{"role": "user", "content": "Add 2 and 3."}]


def long(tokens: int) -> dict[str, Any]:
    """A request for an answer of this length."""
    return {"model": "thinking", "messages": QUESTION, "max_tokens": tokens, "extra_body": {"min_tokens": tokens}}


def table(name: str, **limits: int) -> str:
    return "\n".join([f"[{name}]", f'key = "{KEYS[name]}"', *(f"{field} = {n}" for field, n in limits.items()), ""])


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    path.touch(mode=0o600)
    path.write_text(
        table("minute", requests_per_minute=2) + table("busy", concurrent_requests=1)
        + table("daily", tokens_per_day=50) + table("plenty", **PLENTY)
        + table("free") + table("gone", **PLENTY) + table("deleting", requests_per_minute=2, tokens_per_day=1)
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[Served]:
    settings = ServerSettings(key_file=file, api_keys=(KEY,), max_num_seqs=4)
    with served(settings, mount_page, store=file.with_name("answers.db")) as one:
        yield one


def visitor(server: Served, name: str) -> str:
    """The namespace of a visitor of the page."""
    return session_namespace("1", server.service.keys.find(KEYS[name]).login)


def counted(server: Served, name: str) -> int:
    store = server.router.store
    assert store is not None
    return store.tokens_of(name, utc_day())


def queued(server: Served) -> int:
    with server.http(headers=bearer("free")) as http:
        lines = http.get("/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith("vlroute_requests_queued ")).split()[1]))


def test_requests_a_minute(server: Served) -> None:
    with server.openai(KEYS["minute"]) as client:
        for left in ("1", "0"):
            raw = client.chat.completions.with_raw_response.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
            assert raw.headers["x-ratelimit-remaining-requests"] == left
            assert raw.headers["x-ratelimit-limit-requests"] == "2"
        client.models.list()  # costs nothing
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
    assert error.value.code == "requests_per_minute_exceeded"
    assert 1 <= int(error.value.response.headers["retry-after"]) <= 60
    assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    with server.http(headers=bearer("minute")) as http:
        assert http.post("/v1/route", json={"model": "auto", "messages": QUESTION}).status_code == 429
        assert http.post("/api/predict", json={"data": [None, "Add 2 and 3."]}).status_code == 429
    with server.http(headers=bearer("free")) as http:
        found = http.post("/v1/route", json={"model": "auto", "messages": QUESTION})
        assert found.status_code == 200
        assert not [name for name in found.headers if name.startswith("x-ratelimit")]


def test_requests_at_the_same_time(server: Served) -> None:
    with server.openai(KEYS["busy"]) as client:
        with client.chat.completions.create(**long(1500), stream=True) as stream:
            next(iter(stream))
            with pytest.raises(openai.RateLimitError) as error:
                client.chat.completions.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
            assert error.value.code == "concurrent_requests_exceeded"
            with server.openai(KEYS["free"]) as other:
                other.chat.completions.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
        # the client left: the request has ended
        until(lambda: _status(server, "busy") == 200)
        assert _status(server, "busy", {"model": "nonsense"}) == 404  # a refused request gives its place back
        assert _status(server, "busy") == 200


def test_a_client_that_sends_one_stream_after_the_other_is_not_refused(server: Served) -> None:
    body = {"model": "instruct", "messages": QUESTION, "stream": True}
    with server.http(headers=bearer("busy")) as http:
        for _ in range(40):
            with http.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                assert "data: [DONE]" in response.iter_lines()


def _status(server: Served, name: str, more: Any = None) -> int:
    with server.http(headers=bearer(name)) as http:
        body = {"model": "instruct", "messages": QUESTION, **(more or {})}
        return http.post("/v1/chat/completions", json=body).status_code


def test_tokens_a_day(server: Served) -> None:
    with server.openai(KEYS["daily"]) as client:
        spent = 0
        while spent < 50:
            answer = client.chat.completions.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
            assert answer.usage is not None
            spent += answer.usage.total_tokens
            assert counted(server, "daily") == spent
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
    assert error.value.code == "tokens_per_day_exceeded"
    headers = error.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 86_400
    assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("50", "0")


def test_deleting_counts_as_a_request_and_needs_no_tokens(server: Served) -> None:
    with server.http(headers=bearer("deleting")) as http:
        id = http.post("/v1/responses", json={"model": "instruct", "input": "Add 2 and 3."}).json()["id"]
        assert http.get(f"/v1/responses/{id}").status_code == 200
        assert http.delete(f"/v1/responses/{id}").status_code == 200
        assert http.delete(f"/v1/responses/{id}").json()["error"]["code"] == "requests_per_minute_exceeded"


@pytest.mark.parametrize("deletes", [True, False])
def test_writes_of_one_key_do_not_block_other_keys(server: Served, deletes: bool) -> None:
    """Requests of all keys shared Python's few threads, in the order in which they came."""
    store = server.router.store
    assert store is not None
    assert store.file is not None
    writes = 50
    with server.http(headers=bearer("free")) as http:
        id = http.post("/v1/responses", json={"model": "instruct", "input": "Add 2 and 3."}).json()["id"]

        def write() -> int:
            if deletes:
                return http.delete(f"/v1/responses/{id}").status_code
            return http.post("/v1/feedback", json={"id": id, "correct": True}).status_code

        with ThreadPoolExecutor(writes) as pool:
            with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # no write can go on
                running = [pool.submit(write) for _ in range(writes)]
                until(lambda: queued(server) >= writes - 1)
                with server.http(headers=bearer("plenty")) as another:
                    body = {"model": "auto", "messages": QUESTION}
                    # the limit of tokens of this key needs the store, too
                    assert another.post("/v1/route", json=body, timeout=10).status_code == 200
            found = sorted(one.result() for one in running)
    assert found == ([200, *[404] * (writes - 1)] if deletes else [200] * writes)


def test_a_stream_that_the_client_left_counts(server: Served) -> None:
    before = counted(server, "plenty")
    with server.openai(KEYS["plenty"]) as client, client.chat.completions.create(**long(1500), stream=True) as stream:
        for _ in zip(stream, range(10), strict=False):
            pass
    until(lambda: counted(server, "plenty") > before + 9)
    until(lambda: server.service.metrics.running.collect()[0].samples[0].value == 0)
    assert counted(server, "plenty") < before + 1500


def test_a_removed_key_stops_and_its_running_answer_ends(server: Served, file: Path) -> None:
    text = file.read_text()
    answers: list[Any] = []
    with server.openai(KEYS["gone"]) as client:
        thread = threading.Thread(target=lambda: answers.append(client.chat.completions.create(**long(400))))
        thread.start()
        until(lambda: server.service.metrics.running.collect()[0].samples[0].value == 1)
        file.write_text(text.replace(table("gone", **PLENTY), ""))
        removed = time.monotonic()
        until(lambda: _status(server, "gone", {"model": "none"}) == 401, 5)
        assert time.monotonic() - removed < 3
        thread.join(60)
        assert answers[0].usage.completion_tokens == 400
        assert counted(server, "gone") >= 400
        file.write_text("[broken")
        time.sleep(1.2)
        assert _status(server, "free") == 200
        file.write_text(text)
        until(lambda: _status(server, "gone") == 200, 5)


def test_without_a_limit_nothing_is_counted(server: Served) -> None:
    assert _status(server, "free") == 200
    assert counted(server, "free") == 0


def test_keys_of_the_environment_have_no_limits_and_a_name(server: Served) -> None:
    with server.openai() as client:
        client.chat.completions.create(model="instruct", messages=QUESTION)  # type: ignore[arg-type]
        assert not [name for name in client.models.with_raw_response.list().headers if name.startswith("x-ratelimit")]


def test_a_visitor_of_the_page_is_the_key_and_not_the_chosen_name(server: Served) -> None:
    page = server.app.routes[-1].app.app  # within its guard
    with server.http() as http:
        elsewhere = {"X-Forwarded-For": "192.0.2.1"}  # other tests have sent many wrong keys
        wrong = {"username": "free", "password": "wrong"}
        assert http.post("/login", data=wrong, headers=elsewhere).status_code == 400
        assert http.post("/login", data={"username": "daily", "password": KEYS["free"]}).status_code == 200
        token = http.cookies[f"access-token-{page.cookie_id}"]
    assert page.tokens == {token: server.service.keys.find(KEYS["free"]).login}
    turn = server.service.stream_turn(lambda: parse("Add 2 and 3."), RequestOptions(namespace=visitor(server, "daily")))
    with pytest.raises(APIError, match="tokens of this day"):
        next(turn)
    for login in ("removed:0123456789abcdef", "free:0123456789abcdef"):  # the other one was replaced
        with pytest.raises(APIError, match="no valid API key"):
            next(
                server.service.stream_turn(lambda: parse("Hi"), RequestOptions(namespace=session_namespace("1", login)))
            )


@pytest.mark.parametrize("stopped", [False, True])
def test_a_turn_on_the_page_counts(server: Served, stopped: bool) -> None:
    before = counted(server, "plenty")
    options = RequestOptions(
        mode="thinking",
        namespace=visitor(server, "plenty"),
        generation={"min_new_tokens": 400, "max_new_tokens": 400},
    )
    turn = server.service.stream_turn(lambda: parse("Add 2 and 3."), options)
    events = list(islice(turn, 10)) if stopped else list(turn)
    turn.close()
    assert len(events) >= 10
    used = counted(server, "plenty") - before
    assert (9 < used < 400) if stopped else used > 400


def test_tokens_a_day_need_a_store(file: Path) -> None:
    with pytest.raises(InputError, match="--store"):
        create_app(Router.from_pretrained(), ServerSettings(key_file=file))
    done = command("serve", "--no-page", "--port", "0", "--key-file", str(file))
    assert (done.returncode, "--store" in done.stderr) == (2, True)


def test_a_wrong_key_file_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("[ann]\nkey = 5")
    done = command("serve", "--no-page", "--port", "0", "--key-file", str(tmp_path / "keys.toml"))
    assert (done.returncode, "ann: key is missing" in done.stderr) == (2, True)


def test_a_key_file_is_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(table("free"))
    app = create_app(Router.from_pretrained(), ServerSettings(host="0.0.0.0", key_file=tmp_path / "keys.toml"))
    assert TestClient(app).get("/v1/models").status_code == 401
