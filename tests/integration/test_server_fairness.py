"""One key floods a server; another one is answered as on an idle server. Wrong keys are slowed down."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from training.chaos.fairness import bearer, flood_of_one_key, wrong_keys

from tests.conftest import task
from tests.serving import Served, served, until
from vlroute.serving.app import mount_page
from vlroute.serving.settings import ServerSettings

HEAVY, LIGHT = "the key of a heavy user", "the key of a light user"
LONG: dict[str, Any] = {"thinking": {"eos_token_id": -1}, "instruct": {"eos_token_id": -1, "do_sample": False}}
SOME = task("math")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    file.touch(mode=0o600)
    file.write_text(f'[heavy]\nkey = "{HEAVY}"\n[light]\nkey = "{LIGHT}"\nweight = 2\n')
    with served(ServerSettings(key_file=file, max_num_seqs=4, max_waiting=8), mount_page, generation=LONG) as one:
        yield one


def body(model: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": SOME.prompt}], "max_tokens": tokens}


def post(server: Served, key: str, model: str, tokens: int) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body(model, tokens), headers=bearer(key), timeout=60)


def test_a_flood_of_one_key_refuses_no_request_of_another_one(server: Served) -> None:
    figures = flood_of_one_key(server.url, HEAVY, LIGHT, requests=30, max_tokens=120, asked=8)
    assert figures["refused"] == 0
    assert figures["flood refused"] > 0
    assert figures["flood longest s"] < 5  # far below the time of the flood; the ratio is measured on a quiet machine
    until(lambda: server.service._queue._placed.total() == 0, 30)


@pytest.mark.parametrize("model", ["instruct", "thinking"])
def test_another_key_gets_a_slot_of_a_full_batch_and_no_answer_changes(server: Served, model: str) -> None:
    alone = post(server, HEAVY, model, 150).json()["choices"][0]["message"]
    with ThreadPoolExecutor(12) as pool:
        many = [pool.submit(post, server, HEAVY, model, 150) for _ in range(8)]
        until(lambda: sum(len(lane.running) for lane in server.router.scheduler._lanes.values()) == 4)
        began = time.perf_counter()
        light = post(server, LIGHT, model, 8)
        seconds = time.perf_counter() - began
        still = sum(not one.done() for one in many)
        replies = [one.result(60) for one in many]
    assert light.status_code == 200
    assert still >= 4, seconds  # it did not wait for the end of a long answer
    assert light.json()["usage"]["completion_tokens"] == 8
    assert {one.status_code for one in replies} == {200}
    if model == "instruct":  # greedy; an interrupted answer is the same as one alone
        assert all(one.json()["choices"][0]["message"]["content"] == alone["content"] for one in replies)


def test_the_last_waiting_request_of_the_heaviest_key_is_replaced(server: Served) -> None:
    with ThreadPoolExecutor(20) as pool:
        # so long that none ends before the requests of the other key arrive
        many = [pool.submit(post, server, HEAVY, "thinking", 600) for _ in range(16)]
        until(lambda: len(server.service._queue) == 16)
        light = [pool.submit(post, server, LIGHT, "thinking", 20) for _ in range(3)]
        assert {one.result(30).status_code for one in light} == {200}
        refused = [one.result(60) for one in many if one.result(60).status_code == 429]
        assert len(refused) == 3
        assert all(one.json()["error"]["code"] == "too_many_requests" and one.headers["retry-after"] for one in refused)


def test_wrong_keys_get_429_and_the_right_one_is_accepted(server: Served) -> None:
    figures = wrong_keys(server.url, LIGHT, 30)
    assert figures == {"401": 10, "429": 20, "retry-after s": 60, "right key": 200}
    # a missing key is no guess, and a client behind the same proxy is another address
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    headers = {**bearer("wrong again, wrong again"), "X-Forwarded-For": "192.0.2.7"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 401


def test_wrong_log_ins_of_the_page_get_429(server: Served) -> None:
    def log_in(key: str, address: str) -> int:
        headers = {"X-Forwarded-For": address}
        form = {"username": "anyone", "password": key}
        return httpx.post(f"{server.url}/login", data=form, headers=headers, timeout=30).status_code

    assert [log_in(f"wrong {n}", "192.0.2.8") for n in range(12)] == [400] * 10 + [429] * 2
    assert log_in(LIGHT, "192.0.2.8") == 200
    assert log_in("wrong", "192.0.2.9") == 400


@pytest.mark.parametrize("weight", ["0", "-1", '"2"', "true", "1e9", "nan"])
def test_a_wrong_weight_is_refused(tmp_path: Path, weight: str) -> None:
    from vlroute.errors import SettingsError
    from vlroute.serving.keys import read_key_file

    file = tmp_path / "keys.toml"
    file.write_text(f'[one]\nkey = "{HEAVY}"\nweight = {weight}\n')
    with pytest.raises(SettingsError, match=r"one: weight must be a number from 0.01 to 100"):
        read_key_file(file)
