"""Requests that are small or allowed but cost much: others are answered meanwhile, and the answers are right."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from training.chaos import costly_requests

from tests.conftest import task
from tests.serving import KEY, Served, data_uri, served, until
from vlroute import Router
from vlroute.serving.app import create_app
from vlroute.serving.settings import ServerSettings

OTHER = "the key of somebody else, long"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = ServerSettings(api_keys=(KEY, OTHER), max_num_seqs=4, max_prompt=50_000)
    with served(settings, store=tmp_path_factory.mktemp("store") / "answers.db") as one:
        yield one


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    with server.http(headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "instruct", "messages": [{"role": "user", "content": "Add 2 and 3."}], "max_tokens": 5, **more}


@pytest.mark.parametrize("key", ["", KEY, "a wrong key"])
def test_many_requests_or_chunks_at_once(server: Served, key: str) -> None:
    run = costly_requests.tiny_chunks if key else costly_requests.pipelined
    found = run(server.url, *([key] if key else []), connections=4, seconds=2.0)
    assert found.failed == 0
    assert len(found.milliseconds) > 10


def test_background_work_of_a_client_that_leaves_gives_its_turn_back(server: Served) -> None:
    schema = {"allOf": [{"type": "string", "pattern": f".*{index}.*left"} for index in range(25)]}
    for at in range(3):
        with suppress(httpx.ReadTimeout):
            body = chat(guided_json=schema | {"title": str(at), "maxLength": at})
            headers = {"Authorization": f"Bearer {OTHER}"}
            httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=0.05)
    until(lambda: len(server.service._checking.queue) == 0, 60)
    until(lambda: server.service._queue._placed.total() == 0, 30)


def test_tools_that_take_hours_are_refused(http: httpx.Client) -> None:
    schema = {"allOf": [{"type": "string", "pattern": f".*{index}.*"} for index in range(25)]}
    tools = [
        {"type": "function", "function": {"name": f"f{at}", "parameters": {"properties": {f"a{at}": schema}}}}
        for at in range(25)
    ]
    began = time.monotonic()
    for strict, message in (
        (False, "the schemas of the tools takes more than 5 s"),
        (True, "is too complex"),
    ):
        for tool in tools:
            tool["function"]["strict"] = strict
        refused = http.post("/v1/chat/completions", json=chat(tools=tools, tool_choice="required"))
        assert refused.status_code == 400
        assert message in refused.json()["error"]["message"]
    assert time.monotonic() - began < 60
    assert http.post("/v1/chat/completions", json=chat(tools=tools)).status_code == 400  # strict tools are checked
    for tool in tools:
        tool["function"]["strict"] = False
    assert http.post("/v1/chat/completions", json=chat(tools=tools[:1], max_tokens=2)).status_code == 200
    assert http.post("/v1/route", json=chat(tools=tools, tool_choice="required")).status_code == 200


def test_formats_of_one_key_that_take_hours_do_not_keep_another_one_waiting(server: Served) -> None:
    found = costly_requests.slow_formats(server.url, KEY, OTHER, count=4, seconds=3.0)
    assert found["refused"] == 0
    assert found["longest s"] < 5


def test_long_arguments_of_tools_are_refused_before_they_are_parsed(http: httpx.Client) -> None:
    def asked(arguments: Any) -> httpx.Response:
        call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        messages = [*chat()["messages"], said, {"role": "tool", "tool_call_id": "a", "content": "x"}]
        return http.post("/v1/chat/completions", json=chat(messages=messages))

    assert asked('{"a": [' + "[]," * 1000 + "1]}").status_code == 200
    refused = asked('{"a": [' + "[]," * 400_000 + "1]}")
    assert (refused.status_code, "over the limit of 50000" in refused.json()["error"]["message"]) == (400, True)
    refused = asked("x" * 60_000)
    assert "over the limit of 50000" in refused.json()["error"]["message"]


def test_stored_pictures_come_back_as_they_were(http: httpx.Client) -> None:
    uris = [data_uri(frame) for name in ("math", "count") for frame in task(name).frames]
    large = "data:image/png;base64," + base64.b64encode(costly_requests.large_png(300_001)).decode()
    content = [{"type": "input_image", "image_url": uri} for uri in (*uris, large)]
    said = [{"role": "user", "content": [*content, {"type": "input_text", "text": 'a "b" \u2028 \u4f60'}]}]
    first = http.post("/v1/responses", json={"model": "instruct", "max_output_tokens": 2, "input": said})
    assert first.status_code == 200, first.text
    id = first.json()["id"]
    page = http.get(f"/v1/responses/{id}/input_items").json()
    assert [part.get("image_url") for part in page["data"][0]["content"]] == [*uris, large, None]
    assert page["data"][0]["content"][-1]["text"] == 'a "b" \u2028 \u4f60'
    assert (page["has_more"], page["first_id"]) == (False, page["last_id"])
    after = {"model": "instruct", "max_output_tokens": 2, "input": "x", "previous_response_id": id}
    with ThreadPoolExecutor(6) as threads:
        sent = [threads.submit(http.get, f"/v1/responses/{id}/input_items") for _ in range(6)]
        sent += [threads.submit(http.post, "/v1/responses", json=after) for _ in range(6)]
        assert {one.result().status_code for one in sent} == {200}
        assert len({one.result().content for one in sent[:6]}) == 1


def test_stored_pictures_count_as_bytes_of_the_request(tmp_path: Path) -> None:
    """The last request continues a conversation with 3 MB, more than half of the pool."""
    settings = ServerSettings(api_keys=(KEY,), max_body=1_500_000, max_total_body=6_000_000)
    headers = {"Authorization": f"Bearer {KEY}"}
    with served(settings, store=tmp_path / "answers.db") as server, server.http(headers=headers) as http:
        body: dict[str, Any] = {"model": "instruct", "max_output_tokens": 1}
        statuses = []
        for at in range(4):
            uri = "data:image/png;base64," + base64.b64encode(costly_requests.large_png(1_000_000 + at)).decode()
            message = {"role": "user", "content": [{"type": "input_image", "image_url": uri}]}
            reply = http.post("/v1/responses", json=body | {"input": [message]})
            statuses.append(reply.status_code)
            body["previous_response_id"] = reply.json().get("id")
        assert statuses == [200, 200, 200, 413]
        assert reply.json()["error"]["code"] == "body_too_large"
        assert http.post("/v1/chat/completions", json=chat()).status_code == 200  # the bytes were given back


def test_stored_answers_that_are_referred_to_count_as_bytes_of_the_request(tmp_path: Path) -> None:
    """The pool has 6 MB; each response contains the description of a tool, which is 0.75 MB of JSON."""
    settings = ServerSettings(api_keys=(KEY,), max_body=1_500_000, max_total_body=6_000_000, max_prompt=200_000)
    headers = {"Authorization": f"Bearer {KEY}"}
    tool = {"type": "function", "name": "f", "description": "\u4f60" * 125_000, "parameters": {}}
    asked = {"model": "instruct", "max_output_tokens": 1, "input": "x", "tools": [tool], "tool_choice": "none"}
    with served(settings, store=tmp_path / "answers.db") as server, server.http(headers=headers) as http:
        stored = [http.post("/v1/responses", json=asked).raise_for_status() for _ in range(5)]
        assert all(750_000 < len(reply.content) < 800_000 for reply in stored)
        references = [{"type": "item_reference", "id": reply.json()["output"][0]["id"]} for reply in stored]
        question = {"role": "user", "content": "x"}
        later: dict[str, Any] = {"model": "instruct", "max_output_tokens": 1, "store": False}
        replies = [http.post("/v1/responses", json=later | {"input": [*references[:n], question]}) for n in (3, 4, 3)]
        assert [reply.status_code for reply in replies] == [200, 413, 200]
        assert replies[1].json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("stored", [True, False])
def test_large_replies_are_the_same_as_small_ones(http: httpx.Client, stored: bool) -> None:
    count = 150
    more = {"max_tokens": count, "min_tokens": count, "ignore_eos": True, "temperature": 0, "logprobs": True}
    both = http.post("/v1/chat/completions", json=chat(n=2, top_logprobs=3, **more)).raise_for_status().json()
    one = http.post("/v1/chat/completions", json=chat(top_logprobs=3, **(more | {"max_tokens": 90, "min_tokens": 90})))
    small = one.raise_for_status().json()["choices"][0]
    for choice in both["choices"]:
        assert [entry["token"] for entry in choice["logprobs"]["content"][:90]] == [
            entry["token"] for entry in small["logprobs"]["content"]
        ]
        assert len(choice["logprobs"]["content"]) == count
        assert {len(entry["top_logprobs"]) for entry in choice["logprobs"]["content"]} == {3}
    asked = {"model": "instruct", "input": "Write much.", "store": stored, "temperature": 0, "top_logprobs": 2}
    asked |= {"max_output_tokens": 400, "include": ["message.output_text.logprobs"]}
    plain = http.post("/v1/responses", json=asked).raise_for_status().json()
    with http.stream("POST", "/v1/responses", json=asked | {"stream": True}) as reply:
        events = [json.loads(line[6:]) for line in reply.iter_lines() if line.startswith("data: ")]
    assert events[-1]["response"]["output"][0]["content"] == plain["output"][0]["content"]


def test_a_mounted_application_loads_the_pair_also_for_a_format() -> None:
    """The start-up of a mounted application is not run."""
    router = Router.from_pretrained()
    app = create_app(router, ServerSettings())

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            statuses = []
            for _ in range(200):
                reply = await client.post("/v1/chat/completions", json=chat(guided_choice=["a", "b"]))
                statuses.append(reply.status_code)
                if reply.status_code != 503:
                    break
                await asyncio.sleep(0.1)
            return statuses

    assert asyncio.run(ask())[-1] == 200
    router.close()


def test_a_large_reply_is_sent_during_the_shutdown(tmp_path: Path) -> None:
    with served(ServerSettings(grace_seconds=20.0), store=tmp_path / "answers.db") as server:
        count = 400
        body = chat(max_tokens=count, min_tokens=count, ignore_eos=True, logprobs=True, top_logprobs=5)
        with ThreadPoolExecutor(1) as thread:
            sent = thread.submit(httpx.post, f"{server.url}/v1/chat/completions", json=body, timeout=60)
            until(lambda: server.service._admitted.total() == 1)
            server.server.handle_exit(signal.SIGTERM, None)
            reply = sent.result()
        assert reply.status_code == 200
        assert len(reply.json()["choices"][0]["logprobs"]["content"]) == count
