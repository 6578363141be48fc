"""One key floods a server in every way at once, while another one asks now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from training.chaos import attacks, fairness, media


def flood_of_everything(
    url: str, flooding: str, other: str, streams: int = 40, silent: int = 200, asked: int = 45
) -> dict[str, float]:
    """Let one key send long thoughts, bodies of 60 MiB, bombs and silent connections, while another key asks Instruct.

    Args:
        url: Address of the server.
        flooding: The key that floods.
        other: The other key.
        streams: Number of requests with long thoughts at a time.
        silent: Number of silent connections.
        asked: Number of requests of the other key, one after the other, before and during the flood.

    Returns:
        See `fairness.flood_of_one_key`; and the 95th percentile of the delay of `/health` during the flood, in seconds.
    """
    bodies = [
        media.picture_body(8192), media.video_body(3000, 2048),
        *(attacks.BODIES[kind](60 * 2**20) for kind in ("text", "fields")),
    ]  # fmt: skip
    idle, _ = fairness.ask(url, other, asked)
    health = attacks.Figures()
    with (
        attacks.silent(url, silent), _repeated(url, flooding, bodies), attacks.health(url, health),
        fairness.flood(url, flooding, streams, "thinking", 2000) as got,
    ):  # fmt: skip
        time.sleep(3.0)
        busy, refused = fairness.ask(url, other, asked)
    return {**fairness.summary(idle, busy, refused, got), "health p95 s": health.p95 / 1000}


@contextmanager
def _repeated(url: str, key: str, bodies: list[bytes]) -> Iterator[None]:
    """Send each body again and again, in a thread of its own, until the block ends."""
    ended = threading.Event()
    headers = fairness.bearer(key) | {"Content-Type": "application/json"}

    def send(body: bytes) -> None:
        with httpx.Client(base_url=url, timeout=fairness.PATIENCE_SECONDS, headers=headers) as client:
            while not ended.is_set():
                try:
                    status = client.post("/v1/chat/completions", content=body).status_code
                except httpx.HTTPError:  # the server closes the connection of a body that it refuses
                    status = 0
                if status != 200:
                    ended.wait(0.5)

    threads = [threading.Thread(target=send, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(fairness.PATIENCE_SECONDS)
