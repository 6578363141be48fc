"""A real server as a client sees it: `vlroute serve` with the pocket pair, asked by `training.simulate_check`."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from dataclasses import dataclass

from training.bench.load_client import Connection
from training.bench.server import message, tasks
from training.simulation.calibrate import Answered
from training.simulation.run import poisson
from vlroute.modes import other
from vlroute.pocket import Task


@dataclass(frozen=True, slots=True)
class Seen(Answered):
    """An answer, and what only its client knows: seconds `at` which its request was to be sent and `spent` until all of
    it was there. `caption`: what the decision had read; `text`: what was answered."""

    at: float
    spent: float
    caption: str | None
    text: str

    @classmethod
    def of(cls, at: float, spent: float, body: bytes) -> Seen:
        said = json.loads(body)
        decision, timing = said["vlroute"]["decision"], said["vlroute"]["timing"]
        return cls(
            said["model"], said["usage"]["completion_tokens"], spent - timing["total"] + timing["decide"],
            timing["caption"] + timing["vision"], timing["prefill"], timing["decode"], at, spent,
            decision["caption"], said["choices"][0]["message"]["content"] or "",
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class BothWays:
    """A task asked as the router chooses, and then in the other mode, of an idle server."""

    task: Task
    routed: Seen
    forced: Seen


async def _sent(connection: Connection, asked: bytes) -> tuple[int, float, bytes]:
    """Status, `time.perf_counter` when all of it was there, and body."""
    status, _, body, _ = await connection.send(asked)
    if status not in (200, 429):
        raise RuntimeError(f"the server answered {status}: {body.decode(errors='replace')[:200]}")
    return status, time.perf_counter(), body


async def both_ways(port: int, count: int, seed: str) -> list[BothWays]:
    """So many tasks, one request after the other."""
    connection, found = await Connection(port).open(), []

    async def ask(asked: bytes) -> Seen:
        began = time.perf_counter()
        _, ended, body = await _sent(connection, asked)
        return Seen.of(0.0, ended - began, body)

    for one in tasks(count, seed):
        routed = await ask(message(one))
        found.append(BothWays(one, routed, await ask(message(one, model=other(routed.mode)))))
    connection.close()
    return found


async def crowd(port: int, clients: int, count: int, seed: str) -> tuple[float, list[Seen]]:
    """Answers a second, and the answers, when so many clients ask again at once, each time about a fresh picture. Both
    of the time in which all clients were at it."""
    coming, ended = iter([message(one) for one in tasks(count, seed)]), list[tuple[float, float, bytes]]()

    async def client() -> None:
        connection = await Connection(port).open()
        for asked in coming:
            began = time.perf_counter()
            _, over, body = await _sent(connection, asked)
            ended.append((over, over - began, body))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    kept = ended[min(2 * clients, count // 4) : count - clients]
    rate = (len(kept) - 1) / (kept[-1][0] - kept[0][0])
    return rate, [Seen.of(over, spent, body) for over, spent, body in kept]


async def load(port: int, rate: float, seconds: float, seed: str) -> tuple[list[Seen], int]:
    """Answers in the order of arrival, and how many were refused; a late client delays no other."""
    count = round(rate * seconds)
    arrivals = poisson(rate, count, zlib.crc32(seed.encode()))
    sent = [message(one) for one in tasks(count, f"load {seed}")]
    idle: list[Connection] = []
    found: list[tuple[float, float, bytes]] = []
    start = time.perf_counter() + 0.5

    async def one(at: float, asked: bytes) -> None:
        await asyncio.sleep(start + at - time.perf_counter())
        connection = idle.pop() if idle else await Connection(port).open()
        status, ended, body = await _sent(connection, asked)
        idle.append(connection)
        if status == 200:
            found.append((at, ended - start - at, body))

    await asyncio.gather(*(one(float(at), asked) for at, asked in zip(arrivals, sent, strict=True)))
    for connection in idle:
        connection.close()
    return [Seen.of(*one) for one in sorted(found)], count - len(found)
