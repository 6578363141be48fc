"""A client that sends short requests as fast as the server answers them, until its stdin is closed.

It is a process of its own, with a low priority, so that the clients that measure do not wait for it. For a server on
this machine only: `python -m training.chaos.short_requests http://127.0.0.1:8000 KEY wrong --connections 60`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import closing

import httpx

from training.chaos.attacks import BODIES, CHAT
from training.chaos.fairness import chat_body

#: Method, path and body of each kind.
KINDS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "wrong": ("POST", CHAT, lambda: b'{"model": "unknown", "messages": []}'),
    "models": ("GET", "/v1/models", lambda: b""),
    "fields": ("POST", CHAT, lambda: BODIES["fields"](2**19)),
    "answers": ("POST", CHAT, lambda: json.dumps(chat_body("instruct", 30)).encode()),
}


def main() -> None:
    """Flood a server as the arguments say; print how often it got which status, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of the server")
    parser.add_argument("key", help="a valid key")
    parser.add_argument("kind", choices=KINDS, help="what is sent")
    parser.add_argument("--connections", type=int, default=60, help="connections, each with one request at a time")
    options = parser.parse_args()
    os.nice(10)
    print(json.dumps(asyncio.run(_flood(options.url, options.key, options.kind, options.connections))), flush=True)


async def _flood(url: str, key: str, kind: str, connections: int) -> Counter[int]:
    parts, (method, path, body) = httpx.URL(url), KINDS[kind]
    content, got = body(), Counter[int]()
    head = f"{method} {path} HTTP/1.1\r\nHost: {parts.host}\r\nAuthorization: Bearer {key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"

    async def send() -> None:
        while True:
            try:
                await answered(*await asyncio.open_connection(parts.host, parts.port))
            except (OSError, asyncio.IncompleteReadError):
                got[0] += 1  # the server has closed the connection
                await asyncio.sleep(0.1)

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            while True:
                writer.write(head.encode() + content)
                reply = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in reply.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                got[int(reply[9:12])] += 1

    tasks = [asyncio.create_task(send()) for _ in range(connections)]
    print("flooding", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return got


if __name__ == "__main__":
    main()
