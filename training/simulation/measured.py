"""A real server as a client sees it: `vlroute serve` with the pocket pair, asked by `training.simulate_check`.

Each part of the measurement comes with an API key of its own. The server keeps the caches of keys apart, so the same
pictures are new to it every time.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from training.bench.load_client import Connection
from training.bench.server import message
from training.simulation.calibrate import Answered
from training.simulation.run import Times
from vlroute.modes import other
from vlroute.pocket import Task

#: Mean seconds of rest between requests of the idle server: users pause, and whoever wakes up is slower than who runs.
REST_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Seen(Answered):
    """An answer, and what only its client knows: seconds `spent` until all of it was there. `caption`: what the
    decision had read."""

    spent: float = 0.0
    caption: str | None = None

    @classmethod
    def of(cls, spent: float, body: bytes) -> Seen:
        said = json.loads(body)
        decision, timing = said["vlroute"]["decision"], said["vlroute"]["timing"]
        seeing, prefill, decode = timing["caption"] + timing["vision"], timing["prefill"], timing["decode"]
        inside = timing["total"] - timing["decide"]
        return cls(
            said["model"], said["usage"]["completion_tokens"], spent - inside, seeing, prefill, decode,
            inside - seeing - prefill - decode, spent, decision["caption"],
        )  # fmt: skip


BothWays = tuple[Seen, Seen]
"""A task asked as the router chooses, and in the other mode."""


async def _ask(connection: Connection, asked: bytes, planned: float) -> Seen | None:
    """None if refused for want of room. `planned`: `time.perf_counter` when it was to be sent."""
    status, _, body, _ = await connection.send(asked)
    ended = time.perf_counter()
    if status not in (200, 429):
        raise RuntimeError(f"the server answered {status}: {body.decode(errors='replace')[:200]}")
    return Seen.of(ended - planned, body) if status == 200 else None


async def both_ways(port: int, tasks: Sequence[Task], keys: tuple[str, str], seed: int) -> list[BothWays]:
    """Every task by both keys, one request after the other, with rests."""
    chance, connection = random.Random(seed), await Connection(port).open()

    async def ask(asked: bytes) -> Seen:
        await asyncio.sleep(chance.expovariate(1 / REST_SECONDS))
        seen = await _ask(connection, asked, time.perf_counter())
        assert seen is not None  # nobody else is inside
        return seen

    found = []
    for one in tasks:
        routed = await ask(message(one, keys[0]))
        found.append((routed, await ask(message(one, keys[1], model=other(routed.mode)))))
    connection.close()
    return found


async def crowd(port: int, clients: int, model: str, tasks: Sequence[Task], key: str) -> list[tuple[int, Seen]]:
    """Number of the task and answer, in the order of their end, when so many clients ask again at once. `model`:
    "auto", or a mode."""
    coming = iter([message(one, key, model=model) for one in tasks])
    numbers, ended = iter(range(len(tasks))), list[tuple[int, Seen]]()

    async def client() -> None:
        connection = await Connection(port).open()
        for asked in coming:
            number = next(numbers)
            seen = await _ask(connection, asked, time.perf_counter())
            assert seen is not None  # so few find room
            ended.append((number, seen))
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return ended


async def load(port: int, arrivals: Times, tasks: Sequence[Task], key: str) -> list[Seen | None]:
    """Answers in the order of arrival, None where refused; a late client delays no other."""
    sent = [message(one, key) for one in tasks]
    idle: list[Connection] = []
    start = time.perf_counter() + 0.5

    async def one(at: float, asked: bytes) -> Seen | None:
        await asyncio.sleep(start + at - time.perf_counter())
        connection = idle.pop() if idle else await Connection(port).open()
        seen = await _ask(connection, asked, start + at)
        idle.append(connection)
        return seen

    found = await asyncio.gather(*(one(float(at), asked) for at, asked in zip(arrivals, sent, strict=True)))
    for connection in idle:
        connection.close()
    return found
