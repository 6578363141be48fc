"""One key floods a server while another one asks now and then; and a client that guesses keys."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

#: Seconds after which a client gives up.
PATIENCE_SECONDS = 120.0
QUESTION = "Add 2 and 3."


def flood_of_one_key(
    url: str,
    flooding: str,
    other: str,
    requests: int = 100,
    model: str = "thinking",
    max_tokens: int = 2000,
    asked: int = 45,
) -> dict[str, float]:
    """Let one key send many requests at once, and again whenever one ends, while another key asks Instruct.

    Args:
        url: Address of the server.
        flooding: The key that floods.
        other: The other key.
        requests: Number of requests of the flood at a time.
        model: Mode of the requests of the flood.
        max_tokens: Length of their answers.
        asked: Number of requests of the other key, one after the other, before and during the flood.

    Returns:
        Seconds of the other key's answers (95th percentile, longest) on the idle server and during the flood, how many
        were refused, and how many answers of the flood began and were refused.
    """
    idle, _ = ask(url, other, asked)
    with flood(url, flooding, requests, model, max_tokens) as got:
        time.sleep(1.0)
        busy, refused = ask(url, other, asked)
    return summary(idle, busy, refused, got)


def summary(idle: list[float], busy: list[float], refused: int, got: Counter[int]) -> dict[str, float]:
    """The figures of `flood_of_one_key`.

    Args:
        idle: Seconds of the other key's answers on the idle server.
        busy: The same during the flood.
        refused: Number of its refused requests during the flood.
        got: Statuses of the requests of the flood.

    Returns:
        The figures.
    """
    return {
        "idle p95 s": percentile(idle), "flood p95 s": percentile(busy), "flood longest s": max(busy, default=0.0),
        "ratio": percentile(busy) / max(percentile(idle), 1e-9), "asked": len(busy) + refused, "refused": refused,
        "flood begun": got[200], "flood refused": got[429],
    }  # fmt: skip


def wrong_keys(url: str, key: str, guesses: int = 200) -> dict[str, float]:
    """Send wrong keys, then the right one, from one address.

    Args:
        url: Address of the server.
        key: A valid key.
        guesses: Number of wrong keys.

    Returns:
        How many wrong keys got which status, the longest time to wait that the server asked for, and the status of the
        right key.
    """
    statuses, longest = Counter[int](), 0.0
    with httpx.Client(base_url=url, timeout=30) as client:
        for guess in range(guesses):
            reply = client.get("/v1/models", headers=bearer(f"a wrong key {guess:08}"))
            statuses[reply.status_code] += 1
            longest = max(longest, float(reply.headers.get("retry-after", 0)))
        right = client.get("/v1/models", headers=bearer(key)).status_code
    return {"401": statuses[401], "429": statuses[429], "retry-after s": longest, "right key": right}


def bearer(key: str) -> dict[str, str]:
    """The header with a key.

    Args:
        key: The key.

    Returns:
        The headers.
    """
    return {"Authorization": f"Bearer {key}"}


def percentile(seconds: list[float], share: float = 0.95) -> float:
    """A percentile of durations.

    Args:
        seconds: The durations.
        share: Which percentile.

    Returns:
        The value; 0 if there are none.
    """
    if len(seconds) < 2:
        return max(seconds, default=0.0)
    return statistics.quantiles(seconds, n=100, method="inclusive")[round(share * 100) - 1]


def _body(model: str, max_tokens: int, min_tokens: int = 0) -> dict[str, Any]:
    message = {"role": "user", "content": QUESTION}
    return {"model": model, "messages": [message], "max_tokens": max_tokens, "min_tokens": min_tokens}


def ask(url: str, key: str, times: int) -> tuple[list[float], int]:
    """Ask Instruct again and again.

    Args:
        url: Address of the server.
        key: A valid key.
        times: Number of requests, one after the other.

    Returns:
        Seconds of the answers, and the number of refusals.
    """
    seconds, refused = list[float](), 0
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, headers=bearer(key)) as client:
        for _ in range(times):
            began = time.perf_counter()
            try:
                reply = client.post("/v1/chat/completions", json=_body("instruct", 30))
            except httpx.TimeoutException:
                seconds.append(PATIENCE_SECONDS)
                continue
            if reply.status_code == 200:
                seconds.append(time.perf_counter() - began)
            else:
                refused += 1
                time.sleep(0.05)
    return seconds, refused


@contextmanager
def flood(url: str, key: str, requests: int, model: str, max_tokens: int) -> Iterator[Counter[int]]:
    """Send requests with long answers until the block ends, a new one whenever one ends.

    Args:
        url: Address of the server.
        key: A valid key.
        requests: Number of requests at a time.
        model: Their mode.
        max_tokens: Length of their answers.

    Yields:
        How many requests got which status so far.
    """
    ended, got = threading.Event(), Counter[int]()

    def send() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, headers=bearer(key)) as client:
            while not ended.is_set():
                body = {**_body(model, max_tokens, max_tokens), "stream": True}
                try:
                    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
                        got[reply.status_code] += 1
                        for _ in reply.iter_bytes():
                            if ended.is_set():  # leaving the stream cancels the answer
                                break
                except httpx.HTTPError:
                    continue
                if reply.status_code != 200:
                    ended.wait(0.5)

    threads = [threading.Thread(target=send, daemon=True) for _ in range(requests)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        ended.set()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
