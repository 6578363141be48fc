"""One key floods a server while another one asks now and then; and a client that guesses keys."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from training.chaos import attacks

#: Seconds after which a client gives up.
PATIENCE_SECONDS = 120.0
QUESTION = "Add 2 and 3."


def flood_of_one_key(
    url: str,
    flooding: str,
    other: str,
    requests: int = 100,
    max_tokens: int = 2000,
    asked: int = 200,
    tokens: int = 0,
    more: Sequence[str] = (),
) -> dict[str, float]:
    """Let one key send many requests at once, and again whenever one ends, while another key asks Instruct.

    Args:
        url: Address of the server.
        flooding: The key that floods.
        other: The other key.
        requests: Number of requests with long thoughts at a time.
        max_tokens: Length of their answers.
        asked: See `beside`.
        tokens: See `beside`.
        more: Further options of `training.chaos.flood`.

    Returns:
        See `beside`.
    """
    command = ["training.chaos.flood", url, flooding, "--requests", str(requests), "--max-tokens", str(max_tokens)]
    return beside([*command, *more], url, other, asked, tokens)


def beside(flood: Sequence[str], url: str, other: str, asked: int = 200, tokens: int = 0) -> dict[str, float]:
    """Let a key ask Instruct, on the idle server and during a flood.

    Args:
        flood: Module of the flood, and its arguments. It prints a line when it has begun, and how often it got which
            status when its stdin is closed.
        url: Address of the server.
        other: The key.
        asked: Number of its requests, one after the other, before and during the flood.
        tokens: Minimum number of tokens of its answers.

    Returns:
        Seconds of the key's answers (95th percentile, longest) on the idle server and during the flood, how many were
        refused, the 95th percentile of the delay of `/health` during the flood in seconds, and how many requests of
        the flood were refused with status 429.

    Raises:
        RuntimeError: The flood got no response.
    """
    health = attacks.Figures()
    ask(url, other, 10, tokens)  # the first requests of a process take longer
    idle, _ = ask(url, other, asked, tokens)
    command = [sys.executable, "-m", *flood]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        with attacks.health(url, health):
            time.sleep(2.0)
            busy, refused = ask(url, other, asked, tokens)
        process.stdin.close()
        got = json.loads(process.stdout.read())
    if not sum(got.values()):
        raise RuntimeError("the flood did not reach the server")
    return {
        "idle p95 s": percentile(idle), "flood p95 s": percentile(busy), "flood longest s": max(busy, default=0.0),
        "ratio": percentile(busy) / max(percentile(idle), 1e-9), "asked": asked, "refused": refused,
        "health p95 s": health.p95 / 1000, "flood refused": got.get("429", 0),
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


def chat_body(model: str, max_tokens: int, min_tokens: int = 0) -> dict[str, Any]:
    """A chat request.

    Args:
        model: A mode.
        max_tokens: Maximum number of tokens of the answer.
        min_tokens: Minimum number of them.

    Returns:
        The JSON.
    """
    message = {"role": "user", "content": QUESTION}
    return {"model": model, "messages": [message], "max_tokens": max_tokens, "min_tokens": min_tokens}


def ask(url: str, key: str, times: int, tokens: int = 0) -> tuple[list[float], int]:
    """Ask Instruct again and again.

    Args:
        url: Address of the server.
        key: A valid key.
        times: Number of requests, one after the other.
        tokens: Minimum number of tokens of an answer, up to 30.

    Returns:
        Seconds of the answers, and the number of refusals.
    """
    seconds, refused = list[float](), 0
    with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS, headers=bearer(key)) as client:
        for _ in range(times):
            began = time.perf_counter()
            try:
                reply = client.post("/v1/chat/completions", json=chat_body("instruct", 30, tokens))
            except httpx.TimeoutException:
                seconds.append(PATIENCE_SECONDS)
                continue
            if reply.status_code == 200:
                seconds.append(time.perf_counter() - began)
            else:
                refused += 1
                time.sleep(0.05)
    return seconds, refused
