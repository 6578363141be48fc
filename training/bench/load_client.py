"""Clients of a server on this machine, cheap enough to leave the cores to the server."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What many requests came to. `seconds`: of each that was answered whole."""

    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    """Streams without a finish_reason or without their end."""


def request(path: str, body: bytes, key: str | None = None) -> bytes:
    """One HTTP/1.1 POST of JSON over a connection that stays open."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *([f"Authorization: Bearer {key}"] if key else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection:
    """One open connection; requests follow one another."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def open(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**24)
        return self

    async def send(self, message: bytes) -> tuple[int, dict[str, str], bytes, float]:
        """Status, headers, body, and seconds until the headers were there."""
        began = time.perf_counter()
        self.writer.write(message)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headed = time.perf_counter() - began
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body = bytearray()
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
            return int(head[0].split()[1]), headers, bytes(body), headed
        return int(head[0].split()[1]), headers, await self.reader.readexactly(int(headers["content-length"])), headed

    def close(self) -> None:
        self.writer.close()


async def rate(port: int, message: bytes, connections: int, seconds: float) -> float:
    """Requests a second that `connections` clients get answered, each asking again at once."""
    done, until = 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal done
        connection = await Connection(port).open()
        while time.perf_counter() < until:
            status, *_ = await connection.send(message)
            if status != 200:
                raise RuntimeError(f"status {status}")
            done += 1
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(connections)))
    return done / (time.perf_counter() - began)


async def crowd(port: int, messages: Sequence[bytes], clients: int, seconds: float) -> Tally:
    """`clients` that stream one answer after the other for `seconds`, and wait as told when refused with 429."""
    tally, until = Tally(), time.perf_counter() + seconds

    async def client(seed: int) -> None:
        chance = random.Random(seed)
        connection = await Connection(port).open()
        while (began := time.perf_counter()) < until:
            status, headers, body, headed = await connection.send(chance.choice(messages))
            tally.statuses[status] += 1
            if status == 429:
                await asyncio.sleep(min(float(headers["retry-after"]), until - time.perf_counter()) * chance.random())
                continue
            tally.seconds.append(time.perf_counter() - began)
            tally.first.append(headed)
            tally.lost += not _whole(body)
        connection.close()

    await asyncio.gather(*(client(seed) for seed in range(clients)))
    return tally


def _whole(body: bytes) -> bool:
    events = [event[6:] for event in body.decode().split("\n\n") if event.startswith("data: ")]
    if len(events) < 2 or events[-1] != "[DONE]":
        return False
    reasons = [choice["finish_reason"] for event in events[:-1] for choice in json.loads(event).get("choices", [])]
    return bool(reasons) and reasons[-1] in ("stop", "length")
