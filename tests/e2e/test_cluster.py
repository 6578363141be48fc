"""A cluster on this machine: Ray, two replicas of the pocket pair, requests over HTTP."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from training.bench.servers import free_port

from tests.artifacts import weights_of
from tests.conftest import lacking, media, task
from tests.integration.test_store import drop_tables, postgres  # noqa: F401 - a fixture
from tests.serving import KEY, data_uri, png, until, user
from vlroute import Router
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.engine.cache.prefix import BLOCK
from vlroute.errors import ArtifactError
from vlroute.files import shipped
from vlroute.inputs.messages import parse
from vlroute.pocket import Task, draw_task
from vlroute.serving.settings import ClusterSettings, ServerSettings
from vlroute.store import Store

pytestmark = pytest.mark.float32
#: Greedy, and decided without a price, so that the latency of this machine has no influence.
EXACT: dict[str, Any] = {"temperature": 0, "vlroute": {"price": 0}}
#: Frequent tokens become more likely, so that the reasoning never ends.
ENDLESS: dict[str, Any] = {"model": "thinking", "temperature": 0, "frequency_penalty": -2, "max_tokens": 20_000}
QUESTIONS = ("Read the text.", "How many circles?", "Read the text again.")
TASKS = ("ocr", "count", "math", "gui", "hop")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster under test, with Ray's handle of its replicas."""

    url: str
    settings: ClusterSettings
    handle: Any
    store: str

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=180, headers={"Authorization": f"Bearer {KEY}"})

    def stats(self) -> list[dict[str, Any]]:
        found = self.handle.broadcast("stats").results(timeout_s=10, return_exceptions=True)
        return [one for one in found if isinstance(one, dict)]

    def total(self, cache: str, count: str) -> int:
        return sum(one["caches"][cache][count] for one in self.stats())

    def running(self) -> list[int]:
        return [one["running"] for one in self.stats()]

    def deploy(self, **changed: Any) -> None:
        from ray import serve

        from vlroute.serving.cluster.app import NAME, build

        serve.run(build(replace(self.settings, **changed)), name=NAME)


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """PostgreSQL if it is installed, otherwise a file."""
    if not Path("/usr/lib/postgresql").is_dir():
        yield str(tmp_path_factory.mktemp("cluster") / "answers.db")
        return
    url = request.getfixturevalue("postgres")
    yield url
    drop_tables(url)


@pytest.fixture(scope="module")
def cluster(store: str) -> Iterator[Cluster]:
    if importlib.util.find_spec("ray") is None:
        lacking("Ray is not installed: pip install 'vlroute[cluster]'")
    from vlroute.serving.cluster.start import start_here

    start_here(num_cpus=4, object_store_memory=100 * 2**20, log_to_driver=False, logging_level="ERROR")
    import ray
    from ray import serve

    port = free_port()
    server = ServerSettings(api_keys=(KEY,), deadline=60)
    settings = ClusterSettings(replicas=2, max_num_seqs=4, cpus=0.5, store=store, server=server)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
        made = Cluster(f"http://127.0.0.1:{port}", settings, None, store)
        made.deploy()
        made = replace(made, handle=serve.get_deployment_handle("Replica", "vlroute"))
        with made.http() as http:
            until(lambda: http.get("/ready").status_code == 200, 60)
        yield made
        serve.shutdown()
    finally:
        ray.shutdown()


def drawn(seed: int) -> Task:
    return draw_task(random.Random(seed), TASKS[seed % len(TASKS)], "hard", "en")


def answered(reply: httpx.Response) -> Any:
    assert reply.status_code == 200, reply.text
    return reply.json()


def talk(http: httpx.Client, about: Task) -> list[dict[str, Any]]:
    """One conversation of several turns, each of which is sent in full."""
    said, answers = [user(about)], []
    for question in (*QUESTIONS, None):
        answers.append(answered(http.post("/v1/chat/completions", json={"messages": said, **EXACT})))
        said.append({"role": "assistant", "content": answers[-1]["choices"][0]["message"]["content"]})
        said.append({"role": "user", "content": question})
    return answers


def test_a_stored_response_is_continued(cluster: Cluster) -> None:
    """The second turn goes to the replica with the caches of the first one."""
    about = drawn(3)
    parts = [{"type": "input_image", "image_url": data_uri(frame)} for frame in about.frames]
    first: dict[str, Any] = {"role": "user", "content": [*parts, {"type": "input_text", "text": about.prompt}]}
    with cluster.http() as http:
        answer = http.post("/v1/responses", json={"input": [first], **EXACT}).json()
        more = {"input": QUESTIONS[0], "previous_response_id": answer["id"], "model": answer["model"], **EXACT}
        lines = http.post("/v1/responses", json={**more, "stream": True}).text.splitlines()
        last = json.loads([line for line in lines if line.startswith("data: ")][-1].removeprefix("data: "))
        assert last["type"] == "response.completed"
        assert last["response"]["usage"]["input_tokens_details"]["cached_tokens"] > 0
        assert last["response"]["vlroute"]["encoded"] == 0
        assert http.get(f"/v1/responses/{last['response']['id']}").json() == last["response"]
        assert http.delete(f"/v1/responses/{answer['id']}").json()["deleted"]
        assert "pocket-thinking" in [model["id"] for model in http.get("/v1/models").json()["data"]]


def talk_here(router: Router, about: Task) -> list[tuple[str, str, str]]:
    chat = router.chat()
    answers = [chat.send(about.prompt, **media(about), price=0, do_sample=False)]
    answers += [chat.send(question, price=0, do_sample=False) for question in QUESTIONS]
    return [(one.decision.mode, one.thinking, one.text) for one in answers]


def said(answer: dict[str, Any]) -> tuple[str, str, str]:
    message = answer["choices"][0]["message"]
    return answer["model"], message.get("reasoning", ""), message["content"]


def lines(reply: httpx.Response, *, may_fail: bool = False) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            assert may_fail or "error" not in event, event
            yield event


def test_a_conversation_stays_with_its_replica(cluster: Cluster, router: Router) -> None:
    tasks = [drawn(1000 + seed) for seed in range(100)]
    pictures = {picture.digest for one in tasks for picture in parse(one.prompt, list(one.frames)).pictures}
    encodes, replicas = cluster.total("vision", "encodes"), len(cluster.stats())
    with cluster.http() as http, ThreadPoolExecutor(8) as pool:
        talks = list(pool.map(lambda one: talk(http, one), tasks))
    assert cluster.total("vision", "encodes") - encodes == len(pictures) >= 100
    for one, answers in list(zip(tasks, talks, strict=True))[:20]:
        assert [said(answer) for answer in answers] == talk_here(router, one)
    for answers in talks:
        for earlier, later in itertools.pairwise(answers):
            assert later["vlroute"]["encoded"] == 0
            if earlier["model"] == later["model"]:  # its prefix is cached as well
                shared = earlier["usage"]["prompt_tokens"] - 5  # all but the opening of a thought
                assert later["usage"]["prompt_tokens_details"]["cached_tokens"] >= shared // BLOCK * BLOCK
    assert replicas == 2
    assert min(one["caches"]["vision"]["encodes"] for one in cluster.stats()) > 10  # both replicas get conversations


def test_a_stream_says_the_same_as_the_whole(cluster: Cluster) -> None:
    body = {"messages": [user(task("math"))], "model": "thinking", **EXACT}
    with cluster.http() as http:
        whole = answered(http.post("/v1/chat/completions", json=body))
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
            assert reply.headers["x-vlroute-mode"] == "thinking"
            chunks = list(lines(reply))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert len(deltas) > 10
    assert "".join(delta.get("reasoning", "") for delta in deltas) == said(whole)[1]
    assert "".join(delta.get("content", "") for delta in deltas) == said(whole)[2]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_log_probabilities_and_several_answers(cluster: Cluster, router: Router) -> None:
    one = task("ocr", "hard", 4)
    expected = router.ask(one.prompt, **media(one), mode="thinking", do_sample=False, logprobs=True).logprobs
    body = {"messages": [user(one)], "model": "thinking", "n": 3, "logprobs": True, **EXACT}
    with cluster.http() as http:
        whole = answered(http.post("/v1/chat/completions", json=body))
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
            chunks = [chunk["choices"][0] for chunk in lines(reply)]
    assert expected
    assert [choice["vlroute"]["encoded"] for choice in whole["choices"]] == [1, 0, 0]
    for choice in whole["choices"]:
        own = [chunk for chunk in chunks if chunk["index"] == choice["index"] and chunk["logprobs"]]
        streamed = [entry for chunk in own for entry in chunk["logprobs"]["content"]]
        for entries in (choice["logprobs"]["content"], streamed):
            assert [entry["token"] for entry in entries] == [entry.token for entry in expected]
            values = [entry.logprob for entry in expected]
            assert [entry["logprob"] for entry in entries] == pytest.approx(values, abs=1e-3)


def test_the_calls_of_one_request_do_not_displace_each_other(cluster: Cluster) -> None:
    """They wait for the same replica at the same time."""
    with cluster.http() as http:
        for seed in range(10):
            body = {"messages": [user(task("ocr", "hard", seed))], "model": "instruct", "n": 4, **EXACT}
            began = time.monotonic()
            assert len(answered(http.post("/v1/chat/completions", json=body))["choices"]) == 4
            assert time.monotonic() - began < cluster.settings.server.deadline / 2


def test_a_disconnected_client_cancels_the_answer(cluster: Cluster) -> None:
    body = {"messages": [user(task("math"))], **ENDLESS}
    with cluster.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
            chunks = lines(reply)
            for _ in range(5):
                next(chunks)
            assert sum(cluster.running()) == 1
        until(lambda: sum(cluster.running()) == 0, 5)
        with pytest.raises(httpx.ReadTimeout):
            http.post("/v1/chat/completions", json=body, timeout=0.7)
        until(lambda: sum(cluster.running()) == 0, 5)


def test_the_next_request_of_a_client_does_not_spill(cluster: Cluster) -> None:
    """As many clients as one replica accepts, all with one picture: it is nearly full, but never overfull."""
    crowd, encodes = cluster.settings.ongoing, cluster.total("vision", "encodes")
    body = {"messages": [user(drawn(3001))], "model": "instruct", "max_tokens": 1}

    def ask(index: int) -> None:
        with cluster.http() as http:
            for _ in range(25):
                assert http.post("/v1/chat/completions", json=body).status_code == 200

    with ThreadPoolExecutor(crowd) as pool:
        list(pool.map(ask, range(crowd)))
    assert cluster.total("vision", "encodes") - encodes == 1


def test_a_full_replica_spills_to_the_next(cluster: Cluster) -> None:
    crowd, encodes = cluster.settings.ongoing + 3, cluster.total("vision", "encodes")
    begun, leave = list[int](), threading.Event()
    body = {"messages": [user(drawn(3002))], **ENDLESS, "stream": True}  # with one picture

    def hold(index: int) -> None:
        with cluster.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as reply:
            chunks = lines(reply)  # a reference keeps the stream open
            next(chunk for chunk in chunks if chunk["choices"][0]["delta"].get("reasoning"))
            begun.append(index)
            leave.wait(30)

    with ThreadPoolExecutor(crowd) as pool:
        holding = pool.map(hold, range(crowd))
        try:
            until(lambda: len(begun) >= cluster.settings.max_num_seqs + 3, 20)  # more than one replica generates
        finally:
            leave.set()
        list(holding)
    until(lambda: sum(cluster.running()) == 0, 10)
    assert cluster.total("vision", "encodes") - encodes == 2  # once on each of two replicas


def test_the_messages_api(cluster: Cluster) -> None:
    about = task("math")
    picture = base64.b64encode(png(about.frames[0])).decode()
    source = {"type": "base64", "media_type": "image/png", "data": picture}
    content = [{"type": "image", "source": source}, {"type": "text", "text": about.prompt}]
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    client = anthropic.Anthropic(base_url=cluster.url, api_key=KEY, max_retries=0, timeout=60)
    with cluster.http() as http:
        chat = http.post("/v1/chat/completions", json={"messages": [user(about)], "model": "thinking", **EXACT}).json()
        assert http.post("/v1/messages", json={}).json()["type"] == "error"
    counted = client.messages.count_tokens(model="thinking", **asked)
    with client.messages.stream(model="thinking", max_tokens=1000, extra_body=EXACT, **asked) as stream:
        final: Any = stream.get_final_message()
    assert (final.model, final.content[0].thinking, final.content[1].text) == said(chat)
    assert counted.input_tokens == final.usage.input_tokens + final.usage.cache_read_input_tokens


def test_the_rest_of_the_server(cluster: Cluster) -> None:
    with cluster.http() as http:
        route = http.post("/v1/route", json={"messages": [user(task("math"))]}).json()
        assert route["decision"]["caption"]  # made with features of a replica
        words = {"role": "user", "content": "Add 2 and 3."}
        assert http.post("/v1/route", json={"messages": [words]}).json()["model"] in ("instruct", "thinking")
        answer = http.post("/v1/chat/completions", json={"messages": [user(task("math"))]}).json()
        judged = {"id": answer["id"], "correct": True}
        assert http.post("/v1/feedback", json=judged).json()["stored"] is True  # the answer was stored
        assert http.post("/v1/feedback", json={**judged, "id": "0" * 32}).status_code == 404
        assert http.post("/v1/chat/completions", json={"messages": []}).status_code == 422
        bad = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": " "}]})
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_message")
        for path in ("/v1/models", "/v1/nothing", "/metrics"):  # Ray's proxy sends the id
            assert http.get(path, headers={"X-Request-Id": "mine"}).headers.get_list("x-request-id") == ["mine"]
            assert len(http.get(path).headers.get_list("x-request-id")) == 1
        until(lambda: 'vlroute_cache_encodes_total{cache="vision"}' in http.get("/metrics").text)
        assert http.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    with Store(cluster.store) as store:
        assert [one.id for one in store.records()] == [answer["vlroute"]["id"]]


def test_the_artifact_is_replaced_while_requests_are_answered(cluster: Cluster, tmp_path: Path) -> None:
    other = ComplexityClassifier.load(shipped("pocket/router"))
    other.heads.bias[:2] += (8.0, -8.0)  # this artifact prefers Instruct
    other.save(tmp_path / "new")
    shutil.copytree(shipped("pocket/router") / "probe", tmp_path / "new" / "probe")
    seen, failed, done, pids = set[str](), list[str](), threading.Event(), {one["pid"] for one in cluster.stats()}

    def ask(seed: int) -> None:
        with cluster.http() as http:
            while not done.is_set():
                reply = http.post("/v1/chat/completions", json={"messages": [user(drawn(seed * 5 + 2))], **EXACT})
                if reply.status_code != 200:
                    failed.append(reply.text)
                    return
                seen.add(reply.json()["model"])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, seed) for seed in range(4)]
        try:
            until(lambda: seen == {"thinking"})
            cluster.deploy(router=str(tmp_path / "new"))
            until(lambda: "instruct" in seen)
        finally:
            done.set()
        for one in asking:
            one.result(30)
    assert failed == []
    assert {one["pid"] for one in cluster.stats()} == pids  # no replica was restarted, so the caches are kept
    with cluster.http() as http:
        for content in (user(drawn(2)), {"role": "user", "content": "What is the total of 3 numbers?"}):
            assert http.post("/v1/route", json={"messages": [content], **EXACT}).json()["model"] == "instruct"
    weights_of(tmp_path / "new").write_bytes(b"x")
    with pytest.raises(ArtifactError):
        cluster.deploy(router=str(tmp_path / "new"))
    cluster.deploy()
    with cluster.http() as http:
        until(
            lambda: http.post("/v1/route", json={"messages": [user(drawn(2))], **EXACT}).json()["model"] == "thinking"
        )


def test_requests_of_a_killed_replica_are_answered_by_another(cluster: Cluster, router: Router) -> None:
    tasks = [drawn(2000 + seed) for seed in range(100)]
    victim = cluster.stats()[0]["pid"]
    finished = 0

    def one_talk(one: Task) -> list[dict[str, Any]]:
        nonlocal finished
        with cluster.http() as http:
            answers = talk(http, one)
        finished += 1
        if finished == 50:
            os.kill(victim, signal.SIGKILL)
        return answers

    with ThreadPoolExecutor(8) as pool:
        talks = list(pool.map(one_talk, tasks))
    for one, answers in zip(tasks, talks, strict=True):
        assert [said(answer) for answer in answers] == talk_here(router, one)
    assert victim not in {one["pid"] for one in cluster.stats()}


def test_a_stream_of_a_killed_replica_ends_with_an_error(cluster: Cluster) -> None:
    body = {"messages": [user(task("math"))], **ENDLESS, "stream": True}
    with cluster.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as reply:
        chunks = lines(reply, may_fail=True)
        for _ in range(20):
            last = next(chunks)
        at_it = next(one["pid"] for one in cluster.stats() if one["running"])
        os.kill(at_it, signal.SIGKILL)
        for chunk in chunks:
            last = chunk
    assert set(last) == {"error"}
    assert last["error"]["code"] == "unavailable"
    assert last["error"]["type"] == "server_error"


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = subprocess.run(
            [sys.executable, "-m", "vlroute", "cluster", "--port", str(taken.getsockname()[1])],
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 2
    assert "(Address already in use); choose another --port" in done.stderr


def test_without_ray_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['ray'] = None; import vlroute.serving.cluster.app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'vlroute[cluster]'" in done.stderr.splitlines()[-1]
