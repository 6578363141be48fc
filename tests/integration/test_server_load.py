"""The server under load: bounded queue, deadlines, disconnected clients, and shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import task
from tests.serving import Served, served, until, user
from vlroute.pocket import draw_task
from vlroute.serving.settings import ServerSettings

SOME = task("math")
#: Reasoning that never ends unless a request limits it: no token is an end of sequence.
LONG: dict[str, Any] = {"thinking": {"eos_token_id": -1, "max_new_tokens": 6000}}
SHORT: dict[str, Any] = {"model": "thinking", "max_tokens": 30}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(ServerSettings(max_num_seqs=2, max_waiting=2), generation=LONG) as one:
        yield one


def gauge(server: Served, name: str) -> float:
    """Value of one gauge, as /metrics shows it."""
    with server.http() as http:
        line = next(line for line in http.get("/metrics").text.splitlines() if line.startswith(name))
    return float(line.rpartition(" ")[2])


def running(server: Served) -> int:
    return int(gauge(server, "vlroute_requests_running"))


def long_stream(client: openai.OpenAI) -> Any:
    return client.chat.completions.create(model="thinking", messages=[user(SOME)], stream=True)


def test_loaded_objects_are_excluded_from_garbage_collection(server: Served) -> None:
    assert gc.get_freeze_count() > 100_000


def test_long_reasoning_does_not_block_other_requests(server: Served) -> None:
    client = server.openai()
    with long_stream(client) as thought:
        next(iter(thought))
        quick = client.chat.completions.create(model="instruct", messages=[user(SOME)])
        other = client.chat.completions.create(messages=[user(SOME)], **SHORT)  # two answers fit into one mode
        assert (quick.choices[0].finish_reason, other.choices[0].finish_reason) == ("stop", "length")
        assert running(server) == 1  # the first answer is not finished
    until(lambda: running(server) == 0)


def test_closing_a_stream_cancels_the_answer(server: Served) -> None:
    with long_stream(server.openai()) as thought:
        chunks = iter(thought)
        for _ in range(4):
            next(chunks)
    until(lambda: running(server) == 0, 2)


def test_a_disconnected_client_cancels_the_answer(server: Served) -> None:
    body = {"messages": [user(SOME)], "model": "thinking"}
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, timeout=0.7)
    until(lambda: running(server) == 0, 2)


def test_a_full_queue_is_429_with_retry_after(server: Served) -> None:
    client = server.openai()
    with ThreadPoolExecutor(2) as pool:
        held = [long_stream(client) for _ in range(4)]  # twice `max_num_seqs`: decided before they wait
        later = [pool.submit(long_stream, client) for _ in range(2)]  # `max_waiting`: not even decoded yet
        until(lambda: running(server) == server.service.max_admitted == 6)
        until(lambda: gauge(server, 'vlroute_requests_waiting{mode="thinking"}') == 2)
        assert gauge(server, "vlroute_requests_queued") == 2
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="instruct", messages=[user(SOME)])
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.code == "too_many_requests"
        for stream in held:
            stream.close()
        for one in later:
            one.result(10).close()
    until(lambda: running(server) == 0)
    assert client.chat.completions.create(model="instruct", messages=[user(SOME)]).choices[0].finish_reason == "stop"


def test_concurrent_requests_get_the_same_answers_as_single_ones(server: Served) -> None:
    client = server.openai()
    tasks = [draw_task(random.Random(seed), "gui", "hard", "en") for seed in range(20)]

    def ask(index: int) -> Any:
        while True:
            try:
                fields = (SHORT, {"model": "instruct"})[index % 2]
                return client.chat.completions.create(messages=[user(tasks[index])], **fields).choices[0].message
            except openai.RateLimitError:
                time.sleep(0.05)

    alone = [ask(index) for index in range(20)]
    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == alone


def test_the_deadline_is_an_error() -> None:
    with served(ServerSettings(deadline=0.5, max_num_seqs=2), generation=LONG) as server:
        client = server.openai()
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(messages=[user(SOME)], model="thinking")
        assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")
        with pytest.raises(openai.APIError, match=r"not answered within 0.5 s"):
            for _ in long_stream(client):
                pass
        until(lambda: running(server) == 0)
        counted = server.http().get("/metrics").text
        assert 'vlroute_errors_total{code="deadline_exceeded",status="504"} 2.0' in counted


def test_an_answer_under_way_is_finished_before_the_server_stops() -> None:
    with served(ServerSettings(max_num_seqs=2)) as server:
        client, got = server.openai(), list[Any]()
        stream = client.chat.completions.create(model="thinking", messages=[user(SOME)], stream=True)
        chunks = iter(stream)
        got.append(next(chunks))
        server.server.should_exit = True
        got += chunks
        assert got[-1].choices[0].finish_reason == "stop"


def test_an_answer_cut_off_by_a_stop_is_an_error() -> None:
    with served(ServerSettings(max_num_seqs=2), generation=LONG) as server, ThreadPoolExecutor(2) as pool:
        client = server.openai()
        whole = pool.submit(client.chat.completions.create, model="thinking", messages=[user(SOME)])
        stream = pool.submit(list, long_stream(client))
        until(lambda: running(server) == 2)
        asyncio.run(server.service.drain(0.0))
        with pytest.raises(openai.InternalServerError) as caught:
            whole.result(10)
        assert caught.value.code == "shutting_down"
        with pytest.raises(openai.APIError, match="shutting down"):
            stream.result(10)


def test_a_disconnected_client_cancels_a_prediction(server: Served) -> None:
    with server.http() as http, pytest.raises(httpx.ReadTimeout):
        http.post("/api/predict", json={"data": [None, SOME.prompt, "thinking"]}, timeout=0.7)
    until(lambda: running(server) == 0, 2)


def test_ready_only_while_requests_are_taken() -> None:
    with served(ServerSettings()) as server:
        service = server.service
        with server.http() as http:
            assert http.get("/ready").json() == {"status": "ready"}
            service.draining = True
            assert http.get("/ready").status_code == 503
            said = http.post("/v1/chat/completions", json={"messages": [user(SOME)]})
            assert (said.status_code, said.json()["error"]["code"]) == (503, "shutting_down")
            service.draining, service.ready = False, False
            assert http.get("/ready").json() == {"status": "loading"}
            assert http.post("/v1/chat/completions", json={"messages": [user(SOME)]}).headers["retry-after"] == "5"
            assert http.get("/health").status_code == 200
            service.ready = True


def test_threads_do_not_pile_up(server: Served) -> None:
    client = server.openai()
    for _ in range(3):
        client.chat.completions.create(model="instruct", messages=[user(SOME)])
    before = threading.active_count()
    for _ in range(30):
        list(client.chat.completions.create(model="instruct", messages=[user(SOME)], stream=True))
    assert threading.active_count() <= before + server.service.max_admitted


def test_many_streams_send_several_tokens_at_once_and_lose_none() -> None:
    body = {**SHORT, "messages": [user(SOME)], "max_tokens": 120, "stream": True, "temperature": 0}

    def read(http: httpx.Client) -> tuple[str, int, int]:
        """The thought, the number of its events, and the number of pieces in which the body came."""
        with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            pieces = list(reply.iter_raw())
        lines = [line[6:] for line in b"".join(pieces).decode().split("\n") if line.startswith('data: {"id"')]
        choices = [found[0] for line in lines if (found := json.loads(line)["choices"])]
        thought = [text for one in choices if (text := one["delta"].get("reasoning_content"))]
        return "".join(thought), len(thought), len(pieces)

    with served(ServerSettings(max_num_seqs=12), generation=LONG) as server, server.http() as http:
        alone, expected, _ = read(http)
        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(lambda _: read(http), range(12)))
    assert {(thought, events) for thought, events, _ in found} == {(alone, expected)}
    assert sum(pieces for *_, pieces in found) < 12 * expected * 0.8
