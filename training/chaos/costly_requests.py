"""Requests that are small or allowed but cost much, and what others notice of them.

Like `attacks`, for a server on this machine.
"""

from __future__ import annotations

import io
import json
import os
import random
import string
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from training.chaos.attacks import CHAT, Figures, connected, health
from training.chaos.fairness import ask, bearer, percentile
from training.chaos.media import resident

#: The longest answer of the pocket pair, about.
TOKENS = 900


def pipelined(url: str, connections: int = 8, seconds: float = 5.0) -> Figures:
    """Send thousands of requests at once on each connection, without waiting for responses, again and again."""
    return _sent(url, connections, seconds, b"", b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n" * 13_000)


def tiny_chunks(url: str, key: str = "none", connections: int = 4, seconds: float = 5.0) -> Figures:
    """Send bodies in chunks of one byte."""
    header = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    header += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return _sent(url, connections, seconds, header.encode(), b"1\r\n \r\n" * 40_000)


def large_replies(url: str, key: str = "none", count: int = 8) -> Figures:
    """Ask for several long answers with 20 log-probabilities for each token, in one reply."""
    body = _chat("x", n=count, max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True, logprobs=True, top_logprobs=20)
    figures = Figures()
    with health(url, figures):
        _post(url, key, body, figures)
    return figures


def nested_json(url: str, key: str = "none", count: int = 10) -> Figures:
    """Send tool calls whose arguments are texts with a million brackets."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": [' + "[]," * 400_000 + "1]}"}}
    messages = [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]  # fmt: skip
    figures = Figures()
    with health(url, figures):
        for _ in range(count):
            _post(url, key, {"model": "instruct", "messages": messages, "max_tokens": 1}, figures)
    return figures


def long_reasoning(url: str, key: str = "none", count: int = 8) -> Figures:
    """Ask for decisions on conversations with 2.4 MB of control tokens in the reasoning of earlier answers."""
    question, token = {"role": "user", "content": "x"}, "<|im_end|>"
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "a", "content": "x"}
    one = {"role": "assistant", "content": "a", "reasoning_content": token * 240_000}
    some = {"role": "assistant", "content": "", "reasoning_content": token * 300}
    figures = Figures()
    with health(url, figures):
        for _ in range(count):
            for messages in (
                [question, one, question], [question, one | {"tool_calls": [call]}, result],
                [question, *[some] * 800, question],
            ):  # fmt: skip
                _post(url, key, {"model": "instruct", "messages": messages}, figures, "/v1/route")
    return figures


def referred_answers(url: str, key: str, pid: int, count: int = 300) -> dict[str, float]:
    """Store responses of 1.1 MB each; then refer to the answers of all of them in one request.

    Args:
        url: Address of the server.
        key: A valid key.
        pid: The server's process.
        count: Number of responses.

    Returns:
        The status of the request, the memory of the server at the peak in MiB more than before, and the 95th percentile
        of `/health` in seconds.
    """
    tool = {"type": "function", "name": "f", "description": "\u4f60" * 190_000, "parameters": {}}
    first = {"model": "instruct", "max_output_tokens": 1, "input": "x", "tools": [tool], "tool_choice": "none"}
    figures = Figures()
    with httpx.Client(base_url=url, headers=bearer(key), timeout=120) as client, ThreadPoolExecutor(4) as threads:
        replies = [*threads.map(lambda _: client.post("/v1/responses", json=first).raise_for_status(), range(count))]
        references = [{"type": "item_reference", "id": one.json()["output"][-1]["id"]} for one in replies]
        del replies
        asked = {"model": "instruct", "max_output_tokens": 1, "store": False}
        asked["input"] = [*references, {"role": "user", "content": "x"}]
        before = peak = resident(pid)
        with health(url, figures):
            sent = threads.submit(client.post, "/v1/responses", json=asked)
            while not sent.done():
                peak = max(peak, resident(pid))
                time.sleep(0.01)
    return {"status": sent.result().status_code, "peak MiB": peak - before, "health p95 s": figures.p95 / 1000}


def stored_pictures(url: str, key: str = "none", count: int = 8, megabytes: int = 15) -> Figures:
    """Store a response about large pictures; then continue it, and read its input, many times at once."""
    uri = "data:image/png;base64," + b64encode(large_png(megabytes << 20)).decode()
    pictures = [{"type": "input_image", "image_url": uri}] * 3
    content = [*pictures, {"type": "input_text", "text": "x"}]
    first = {"model": "instruct", "max_output_tokens": 1, "input": [{"role": "user", "content": content}]}
    figures = Figures()
    headers = bearer(key)
    with httpx.Client(base_url=url, headers=headers, timeout=120) as client, health(url, figures):
        id = client.post("/v1/responses", json=first).raise_for_status().json()["id"]
        figures.milliseconds.clear()  # of the time before the attack
        after = {"model": "instruct", "max_output_tokens": 1, "input": "x", "store": False, "previous_response_id": id}
        with ThreadPoolExecutor(2 * count) as threads:
            sent = [threads.submit(client.get, f"/v1/responses/{id}/input_items") for _ in range(count)]
            sent += [threads.submit(client.post, "/v1/responses", json=after) for _ in range(count)]
        for one in sent:
            status = one.result().status_code
            figures.statuses[status] = figures.statuses.get(status, 0) + 1
    return figures


def slow_formats(url: str, flooding: str, other: str, count: int = 24, seconds: float = 8.0) -> dict[str, float]:
    """Let one key send formats and tools that are costly to compile, while another key asks with a simple format.

    Args:
        url: Address of the server.
        flooding: The key that floods.
        other: The other key.
        count: Number of requests at the same time.
        seconds: Duration.

    Returns:
        The longest answer of the other key with a format in seconds, how many were refused, and the 95th percentile of
        `/health` in seconds.
    """
    figures, longest, refused = Figures(), 0.0, 0
    with _repeated(count, lambda at: _post(url, flooding, _slow_format(at), Figures())), health(url, figures):
        until = time.monotonic() + seconds
        time.sleep(1.0)
        while time.monotonic() < until:
            began = time.perf_counter()
            said = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": random.random()}}}
            reply = httpx.post(
                f"{url}{CHAT}", json=_chat("x", max_tokens=2, response_format=said), headers=bearer(other), timeout=60
            )
            refused += reply.status_code != 200
            longest = max(longest, time.perf_counter() - began)
    return {"longest s": longest, "refused": refused, "health p95 s": figures.p95 / 1000}


def excluded_words(url: str, flooding: str, other: str, asked: int = 30) -> dict[str, float]:
    """Let one key exclude as many words as allowed, in 8 long answers, while another one asks Instruct.

    Args:
        url: Address of the server.
        flooding: The key that floods.
        other: The other key.
        asked: Number of requests of the other key.

    Returns:
        Seconds of the other key's answers beside plain long answers and beside those (95th percentiles).
    """
    words = ["".join(random.choices(string.ascii_lowercase, k=length)) for length in range(1, 97)]
    found = {}
    for name, more in (("plain p95 s", {}), ("words p95 s", {"bad_words": words})):
        long = _chat("x", max_tokens=TOKENS, min_tokens=TOKENS, ignore_eos=True, **more)
        with _repeated(8, partial(_flood, url, flooding, long)):
            time.sleep(1.0)
            busy, _ = ask(url, other, asked, 30)
        found[name] = percentile(busy)
    return found


def _flood(url: str, key: str, body: dict[str, Any], at: int) -> None:
    _post(url, key, body, Figures())


def _slow_format(at: int) -> dict[str, Any]:
    """A request with a format, or with tools, that take hours to compile. Each call makes different ones."""
    mark = random.random()
    schema = {"allOf": [{"type": "string", "pattern": f".*{index}.*{mark}"} for index in range(25)]}
    if at % 2:
        return _chat("x", max_tokens=2, guided_json=schema)
    tools = [
        {"type": "function", "function": {"name": f"f{index}", "parameters": {"properties": {f"a{index}": schema}}}}
        for index in range(50)
    ]
    return _chat("x", max_tokens=2, tools=tools, tool_choice="required")


def _chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "instruct", "messages": [{"role": "user", "content": text}], **more}


def _post(url: str, key: str, body: dict[str, Any], figures: Figures, path: str = CHAT) -> None:
    try:
        status = httpx.post(f"{url}{path}", content=json.dumps(body), headers=_headers(key), timeout=120).status_code
    except httpx.HTTPError:
        status = 0
    figures.statuses[status] = figures.statuses.get(status, 0) + 1


def _headers(key: str) -> dict[str, str]:
    return {**bearer(key), "Content-Type": "application/json"}


@contextmanager
def _repeated(count: int, work: Callable[[int], Any]) -> Iterator[None]:
    """Repeat work in threads until the block ends."""
    stop = threading.Event()

    def repeat(at: int) -> None:
        while not stop.is_set():
            work(at)

    threads = [threading.Thread(target=repeat, args=(at,), daemon=True) for at in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()


def _sent(url: str, connections: int, seconds: float, begin: bytes, block: bytes) -> Figures:
    """Send `begin`, then `block` again and again, on connections that are opened anew when they are closed."""
    until = time.monotonic() + seconds

    def send() -> None:
        while time.monotonic() < until:
            with closing(connected(url)) as client, suppress(OSError):
                client.sendall(begin)
                while time.monotonic() < until:
                    client.sendall(block)

    figures = Figures()
    with health(url, figures):
        threads = [threading.Thread(target=send) for _ in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    figures.seconds = seconds
    return figures


def large_png(size: int) -> bytes:
    """A small picture in a file of about `size` bytes."""
    junk, buffer = PngInfo(), io.BytesIO()
    junk.add(b"juNk", os.urandom(size))
    Image.new("RGB", (32, 32)).save(buffer, "PNG", pnginfo=junk)
    return buffer.getvalue()
