"""Faults of the disk that holds the store of a running server: it answers, and acknowledges only what is stored."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx

from training.bench.servers import vlroute_server
from training.chaos.disk_faults import KINDS, Faulty
from training.chaos.faulty_disk import FaultyDisk
from vlroute.conversations import Conversations
from vlroute.files import make_folder
from vlroute.store import Store

#: Requests of each kind before and after a fault, and during it.
HEALTHY, DURING = 1, 4
#: How a write is refused: it could not be stored, or the answer that the vote is for was not stored.
REFUSALS = ((503, "store_failed"), (404, "answer_not_found"))
#: Owner of responses on a server without keys.
OWNER = ""


@dataclass(frozen=True, slots=True)
class ServerCase:
    """One kind of fault."""

    kind: str

    @property
    def name(self) -> str:
        return f"server, {self.kind}"


CASES = [ServerCase(kind) for kind in ("write fails", "fsync fails", "full disk", "read-only disk")]


def run(case: ServerCase, rounds: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> Faulty:
    """Give the disk of one running server this fault `rounds` times, then kill the server and cut the power."""
    result, rng = Faulty("server", case.kind), random.Random(f"{case.name} {seed}")
    mount = Path(tempfile.mkdtemp(prefix="vlroute-disk-"))
    votes, responses = list[str](), list[str]()
    try:
        with FaultyDisk(mount, seed) as disk:
            make_folder(mount / "folder")
            file = mount / "folder" / "answers.db"
            with vlroute_server("--store", str(file)) as (url, pid), httpx.Client(base_url=url, timeout=60) as client:
                for _ in range(rounds):
                    _ask(client, HEALTHY, votes, responses, result)
                    before = _store_errors(client)
                    KINDS[case.kind](disk, rng)
                    result.refused += (refused := _ask(client, DURING, votes, responses, result))
                    result.failed += disk.heal()
                    if refused and _store_errors(client) <= before:
                        result.fault("/metrics does not show the errors of the store")
                    if _ask(client, HEALTHY, votes, responses, result):
                        result.fault("a write still failed after the end of the fault")
                    result.rounds += 1
                    advance()
                os.killpg(pid, signal.SIGKILL)
            disk.cut_power()
            result.acknowledged = len(votes) + len(responses)
            result.check(lambda: _count_lost(file, votes, responses, result))
    finally:
        mount.rmdir()
    return result


def _ask(client: httpx.Client, count: int, votes: list[str], responses: list[str], result: Faulty) -> int:
    """Ask, vote and store responses. Returns how many writes were refused with status 503."""
    refused = 0
    for number in range(count):
        question = f"Add {number} and 3."
        body = {"model": "instruct", "messages": [{"role": "user", "content": question}]}
        answer = client.post("/v1/chat/completions", json=body)
        if answer.status_code != 200 or client.get("/ready").status_code != 200:
            result.fault(f"no answer: {answer.text}")
            continue
        id = answer.headers["X-VLRoute-Id"]
        vote = client.post("/v1/feedback", json={"id": id, "correct": True})
        response = client.post("/v1/responses", json={"model": "instruct", "input": question})
        for reply, kept, name in ((vote, votes, id), (response, responses, response.headers.get("X-VLRoute-Id", ""))):
            if reply.status_code == 200:
                kept.append(name)
            elif (reply.status_code, reply.json()["error"]["code"]) in REFUSALS:
                refused += 1
            else:
                result.fault(f"{reply.request.url.path}: {reply.text}")
    return refused


def _store_errors(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vlroute_store_errors_total"))


def _count_lost(file: Path, votes: list[str], responses: list[str], result: Faulty) -> None:
    with Store(file, create=False) as store:
        kept = Conversations(store, timedelta(days=1))
        result.lost += len(set(votes) - {one.id for one in store.records()})
        result.lost += sum(kept.body(OWNER, id) is None for id in responses)
