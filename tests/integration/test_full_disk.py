"""A server whose store is on a full disk answers, and acknowledges nothing that it did not store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.test_responses_api import scripted
from tests.unit.test_disk_errors import full_disk

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")


def vote(http: httpx.Client, id: str) -> httpx.Response:
    return http.post("/v1/feedback", json={"id": id, "correct": True})


def failures(http: httpx.Client) -> float:
    name = 'vlroute_store_errors_total{operation="write"}'
    return sum(float(line.split()[-1]) for line in http.get("/metrics").text.splitlines() if line.startswith(name))


def test_votes_and_responses_are_refused_until_there_is_room(tmp_path: Path) -> None:
    with scripted(tmp_path / "answers.db") as (served, store), served.http() as http:

        def ask() -> httpx.Response:
            body: dict[str, Any] = {"model": "instruct", "messages": [{"role": "user", "content": "Add 1 and 1."}]}
            return http.post("/v1/chat/completions", json=body)

        def respond() -> httpx.Response:
            return http.post("/v1/responses", json={"model": "instruct", "input": "Add 1 and 1."})

        before = ask().headers["X-VLRoute-Id"]
        assert failures(http) == 0
        with full_disk(0):
            during = ask()
            assert during.json()["choices"][0]["message"]["content"] == "2"
            for refused in (vote(http, before), respond()):
                assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_failed")
            assert http.get("/ready").status_code == 200
            assert failures(http) == 4  # of two answers, a response and a vote
        assert store.count() == (1, 0)
        after = ask().headers["X-VLRoute-Id"]
        kept = respond()
        assert [vote(http, id).status_code for id in (before, after)] == [200, 200]
        assert vote(http, during.headers["X-VLRoute-Id"]).status_code == 404
        assert http.get(f"/v1/responses/{kept.json()['id']}").json() == kept.json()
        assert store.count() == (3, 2)
