"""Faults of a server while many clients use it: out of memory, a peer that is stuck, and jumps of the clock.

Answers are greedy, so each is compared with the answer to the same request on an idle server.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx

from training.bench.servers import data_uri
from training.chaos import stalling_peer
from training.chaos.fairness import bearer, percentile
from training.chaos.servers import Server, serving
from vlroute.pocket import draw_task
from vlroute.types import MODES

CLIENTS = 200
DEADLINE_SECONDS = 20.0
#: A request that takes longer than the deadline by this time counts as a hang.
GRACE_SECONDS = 10.0
MAX_TOKENS = 48
KEYS = ("the first key of the load", "the second key of the load", "the key with a limit")
#: Requests in a minute with the last of these keys.
LIMIT = 30
#: Answers at a time and requests that wait: fewer than there are clients, so that some are refused.
QUEUE = ("--max-num-seqs", "16", "--max-waiting", "96", "--deadline", f"{DEADLINE_SECONDS:g}")
LIBRARIES = ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")
HOUR, DAYS = 3600, 40 * 86_400
JUMPS = (HOUR, 0, -HOUR, 0, DAYS, 0)
#: Least time between two jumps: libfaketime looks at the clock's file once a second.
JUMP_SECONDS = 2.0
#: Answers of the first server while it is idle, by name of the request and mode. All servers have the same models.
_expected: dict[tuple[str, str], str] = {}


@dataclass(slots=True)
class Target:
    """A server under load.

    Attributes:
        server: The server.
        disturb: Causes the fault for this number of seconds, and ends it.
        problems: What its own checks found to be wrong.
        note: What happened, for the table.
    """

    server: Server
    disturb: Callable[[float], Awaitable[object]]
    problems: list[str] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Attributes:
        name: Its name in the table.
        target: Runs the server, with a folder for its files.
    """

    name: str
    target: Callable[[Path], AbstractContextManager[Target]]


@dataclass(slots=True)
class UnderLoad:
    """Result of one fault.

    Attributes:
        fault: Its name.
        requests: Number of requests.
        right: Number of right answers.
        wrong: Number of answers that differ from that of the idle server.
        left: Number of requests whose client left on purpose.
        public_errors: Number of public errors by status and code.
        untyped: Number of other errors, and of tracebacks in the log.
        hangs: Number of requests that took longer than the deadline.
        health_p95_ms: 95th percentile of the duration of `/health`, in milliseconds.
        next_answered: Whether the next requests after the fault were answered right.
        details: The first unexpected replies.
        note: What happened.
    """

    fault: str
    requests: int = 0
    right: int = 0
    wrong: int = 0
    left: int = 0
    public_errors: dict[str, int] = field(default_factory=dict)
    untyped: int = 0
    hangs: int = 0
    health_p95_ms: float = 0.0
    next_answered: bool = False
    details: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing unexpected happened."""
        return not (self.wrong or self.untyped or self.hangs or self.details) and self.next_answered


@dataclass(frozen=True, slots=True)
class Request:
    """One kind of request.

    Attributes:
        name: Its name in messages.
        path: Path of the endpoint.
        body: Its body without the model.
    """

    name: str
    path: str
    body: Mapping[str, Any]


class PublicError(Exception):
    """An error in the form of the API. The text is its status and code."""

    def __init__(self, status: int | str, code: str, wait: float = 0.0) -> None:
        super().__init__(f"{status} {code}")
        self.wait = wait


class UnexpectedError(Exception):
    """A reply that no client must get."""


def run(fault: Fault, seconds: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> UnderLoad:
    """Let clients use a server for some seconds while a fault happens.

    Args:
        fault: The fault.
        seconds: Duration of the load.
        seed: Of the choice of requests.
        advance: Called every second.

    Returns:
        What happened.
    """
    with tempfile.TemporaryDirectory(prefix="vlroute-load-") as folder, fault.target(Path(folder)) as target:
        return asyncio.run(_load(fault.name, target, seconds, seed, advance))


async def _load(name: str, target: Target, seconds: int, seed: int, advance: Callable[[], object]) -> UnderLoad:
    result, requests = UnderLoad(name), _requests()
    limits = httpx.Limits(max_connections=2 * CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=target.server.url, limits=limits, timeout=None) as client:
        if not _expected:
            _expected.update(await _references(client, requests))
        end = time.monotonic() + seconds
        with _health(target.server.url, seconds) as milliseconds:
            load = [
                _client(client, result, requests, _expected, random.Random(f"{seed} {number}"), end)
                for number in range(CLIENTS)
            ]
            await asyncio.gather(target.disturb(seconds), _ticks(seconds, advance), *load)
        result.health_p95_ms = round(percentile(milliseconds()), 1)
        result.next_answered = await _answers_again(client, requests, _expected)
    for trace in target.server.new_log().split("Traceback")[1:]:
        result.untyped += 1
        _note(result, f"in the log: {' '.join(trace.split())[-250:]}")
    result.details += target.problems
    result.details = sorted(set(result.details))[:10]
    result.public_errors = dict(sorted(result.public_errors.items()))
    result.note = target.note
    return result


async def _ticks(seconds: int, advance: Callable[[], object]) -> None:
    for _ in range(seconds):
        await asyncio.sleep(1)
        advance()


def _requests() -> list[Request]:
    """Questions with and without pictures, in the form of each API, as a whole and as a stream."""
    rng, made = random.Random(0), []
    for kind in ("ocr", "math", "count", ""):
        task = draw_task(rng, kind, "easy") if kind else None
        pictures = list(task.frames[:1]) if task else []
        text = task.prompt if task else "Add 2 and 3."
        chat = [{"type": "image_url", "image_url": {"url": data_uri(one)}} for one in pictures]
        responses = [{"type": "input_image", "image_url": data_uri(one)} for one in pictures]
        messages = [{"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": data_uri(one).partition(",")[2],
        }} for one in pictures]  # fmt: skip
        parts = {"type": "text", "text": text}
        for stream in (False, True):
            name, more = f"{kind or 'text'}{' stream' if stream else ''}", {"temperature": 0, "stream": stream}
            user: list[dict[str, Any]] = [{"role": "user", "content": [*chat, parts]}]
            made.append(Request(f"chat {name}", "/v1/chat/completions", {
                **more, "max_tokens": MAX_TOKENS, "messages": user,
            }))  # fmt: skip
            user = [{"role": "user", "content": [*responses, {"type": "input_text", "text": text}]}]
            made.append(Request(f"responses {name}", "/v1/responses", {
                **more, "max_output_tokens": MAX_TOKENS, "input": user, "store": not stream,
            }))  # fmt: skip
            user = [{"role": "user", "content": [*messages, parts]}]
            made.append(Request(f"messages {name}", "/v1/messages", {
                **more, "max_tokens": MAX_TOKENS, "messages": user,
            }))  # fmt: skip
    return made


async def _references(client: httpx.AsyncClient, requests: list[Request]) -> dict[tuple[str, str], str]:
    """The answer to each request in each mode, on the idle server."""
    expected = dict[tuple[str, str], str]()
    for request, mode in itertools.product(requests, MODES):
        _, text, _ = await _ask(client, request, mode, KEYS[0])
        expected[request.name, mode] = text
    return expected


async def _client(
    client: httpx.AsyncClient,
    result: UnderLoad,
    requests: list[Request],
    expected: Mapping[tuple[str, str], str],
    rng: random.Random,
    end: float,
) -> None:
    """One client, which sends one request after the other until the end."""
    key, known = rng.choice(KEYS[:2]), ""
    while time.monotonic() < end:
        request, model = rng.choice(requests), rng.choice(("auto", *MODES))
        kind = rng.random()
        result.requests += 1
        wait = 0.0
        try:
            async with asyncio.timeout(DEADLINE_SECONDS + GRACE_SECONDS):
                if kind < 0.08:
                    await _leave(client, request, model, key, rng.uniform(0.05, 1.0))
                    result.left += 1
                elif kind < 0.2 and known:
                    await _vote(client, known, key)
                    result.right += 1
                else:
                    mode, text, known = await _ask(client, request, model, key)
                    if _is_right(expected, request, model, mode, text):
                        result.right += 1
                    else:
                        result.wrong += 1
                        _note(result, f"{request.name} as {model}, {mode}: {text!r}")
        except TimeoutError:
            result.hangs += 1
            _note(result, f"{request.name} as {model} hangs")
        except PublicError as error:
            result.public_errors[str(error)] = result.public_errors.get(str(error), 0) + 1
            wait = min(error.wait, 2.0)
        except (UnexpectedError, httpx.HTTPError) as error:
            result.untyped += 1
            _note(result, f"{request.name} as {model}: {type(error).__name__}: {error}")
        if wait:
            await asyncio.sleep(wait * rng.uniform(0.5, 1.0))


def _note(result: UnderLoad, line: str) -> None:
    if len(result.details) < 20:
        result.details.append(line[:300])


def _is_right(expected: Mapping[tuple[str, str], str], request: Request, model: str, mode: str, text: str) -> bool:
    """Whether an answer is that of the idle server. A stream may fall back to the other mode after its header."""
    modes = MODES if model == "auto" and request.body["stream"] else (mode,)
    return text in [expected[request.name, one] for one in modes]


async def _ask(client: httpx.AsyncClient, request: Request, model: str, key: str) -> tuple[str, str, str]:
    """Mode, text with reasoning, and id of an answer. Raises PublicError or UnexpectedError."""
    body = {**request.body, "model": model}
    async with client.stream("POST", request.path, json=body, headers=bearer(key)) as reply:
        data = await reply.aread()
    if reply.status_code != 200:
        raise _error(reply, data)
    headers = reply.headers
    mode, id = headers["x-vlroute-mode"], headers["x-vlroute-id"]
    if request.body["stream"]:
        return mode, _streamed(data.decode()), id
    return mode, _whole(json.loads(data)), id


def _error(reply: httpx.Response, data: bytes) -> Exception:
    """The error of a reply."""
    try:
        error = json.loads(data)["error"]
        code = error["code"] if "code" in error else error["details"]["error_code"]
    except (ValueError, KeyError, TypeError):
        return UnexpectedError(f"status {reply.status_code}: {data[:200]!r}")
    if code == "internal_error":
        return UnexpectedError(f"status {reply.status_code}: {error['message']}")
    wait = float(reply.headers.get("retry-after", 0))
    if wait < 0 or (reply.status_code == 429 and wait < 1):
        return UnexpectedError(f"Retry-After: {wait:g}")
    return PublicError(reply.status_code, code, wait)


def _whole(body: Mapping[str, Any]) -> str:
    """Reasoning and text of a reply of any of the APIs."""
    if "choices" in body:
        message = body["choices"][0]["message"]
        return f"{message.get('reasoning_content') or ''}|{message['content'] or ''}"
    if "output" in body:
        parts = {"reasoning_text": "", "output_text": ""}
        for item in body["output"]:
            for part in (*(item.get("content") or ()), *(item.get("summary") or ())):
                kind = "output_text" if part["type"] == "output_text" else "reasoning_text"
                parts[kind] += part["text"]
        return "|".join(parts.values())
    parts = {"thinking": "", "text": ""}
    for block in body["content"]:
        parts[block["type"]] += block[block["type"]]
    return "|".join(parts.values())


def _streamed(text: str) -> str:
    """Reasoning and text of a stream of any of the APIs. Raises PublicError or UnexpectedError."""
    thinking, answer, ended = "", "", False
    for line in text.splitlines():
        if line == "data: [DONE]":
            ended = True
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event and event.get("type", "error") == "error":
            error = event["error"]
            code = error["code"] if "code" in error else error["details"]["error_code"]
            if code == "internal_error":
                raise UnexpectedError(f"in a stream: {error['message']}")
            raise PublicError("stream", code)
        kind = event.get("type")
        if kind in ("response.completed", "response.incomplete"):
            return _whole(event["response"])
        if kind == "message_stop":
            ended = True
        delta = event.get("delta") if kind else event["choices"] and event["choices"][0]["delta"]
        if isinstance(delta, dict):
            thinking += delta.get("reasoning_content") or delta.get("thinking") or ""
            answer += delta.get("content") or delta.get("text") or ""
    if not ended:
        raise UnexpectedError(f"a stream was cut off: {text[-200:]!r}")
    return f"{thinking}|{answer}"


async def _leave(client: httpx.AsyncClient, request: Request, model: str, key: str, seconds: float) -> None:
    """Disconnect in the middle of a request."""
    with suppress(TimeoutError, PublicError):
        async with asyncio.timeout(seconds):
            await _ask(client, request, model, key)


async def _vote(client: httpx.AsyncClient, id: str, key: str) -> None:
    reply = await client.post("/v1/feedback", json={"id": id, "correct": True}, headers=bearer(key))
    if reply.status_code != 200:
        raise _error(reply, reply.content)


async def _answers_again(
    client: httpx.AsyncClient, requests: list[Request], expected: Mapping[tuple[str, str], str]
) -> bool:
    """Whether each kind of request is answered right after the fault."""
    for request in requests[:6]:  # of one question
        try:
            async with asyncio.timeout(DEADLINE_SECONDS + GRACE_SECONDS):
                mode, text, _ = await _ask(client, request, "auto", KEYS[0])
        except (TimeoutError, PublicError, UnexpectedError, httpx.HTTPError):
            return False
        if not _is_right(expected, request, "auto", mode, text):
            return False
    return True


@contextmanager
def _health(url: str, seconds: float) -> Iterator[Callable[[], list[float]]]:
    """Ask for /health in a process of its own. Yields a function that returns the durations, in milliseconds."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool.submit(ask_health, url, seconds).result


def ask_health(url: str, seconds: float) -> list[float]:
    """Ask for /health again and again.

    Args:
        url: Address of the server.
        seconds: For how long.

    Returns:
        Duration of each request in milliseconds.
    """
    end, found = time.monotonic() + seconds, []
    with httpx.Client(base_url=url, timeout=60) as client:
        while time.monotonic() < end:
            began = time.perf_counter()
            client.get("/health").raise_for_status()
            found.append((time.perf_counter() - began) * 1000)
            time.sleep(0.05)
    return found


def _environment(folder: Path, **more: str) -> dict[str, str]:
    file = folder / "keys.toml"
    lines = [f'[key{number}]\nkey = "{key}"\n' for number, key in enumerate(KEYS)]
    file.write_text("".join(lines) + f"requests_per_minute = {LIMIT}\n")
    file.chmod(0o600)
    return {"VLROUTE_KEY_FILE": str(file), "OMP_NUM_THREADS": "1", **more}


def _store(folder: Path) -> tuple[str, ...]:
    return "--store", str(folder / "answers.db"), "--retention-days", "30"


@contextmanager
def _quiet(folder: Path) -> Iterator[Target]:
    with serving(folder, [*QUEUE, *_store(folder)], _environment(folder)) as server:
        yield Target(server, asyncio.sleep)


@contextmanager
def _without_memory(place: str, share: float, folder: Path) -> Iterator[Target]:
    count = folder / "failures"
    program = ("-m", "training.chaos.failing_memory", place, str(share), str(count))
    with serving(folder, [*QUEUE, *_store(folder)], _environment(folder), program) as server:
        target = Target(server, asyncio.sleep)

        async def disturb(seconds: float) -> None:
            server.process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(seconds)
            server.process.send_signal(signal.SIGUSR1)
            while not count.exists():
                await asyncio.sleep(0.05)
            target.note = f"{count.read_text()} failures"

        target.disturb = disturb
        yield target


@contextmanager
def _with_peer(fault: stalling_peer.Fault, folder: Path) -> Iterator[Target]:
    """A server whose answers come from another one: Instruct through a proxy, Thinking without it."""
    behind = folder / "behind"
    behind.mkdir()
    queue = ["--max-num-seqs", "16", "--max-waiting", "400"]
    with (
        serving(behind, queue, {"OMP_NUM_THREADS": "1"}) as peer,
        stalling_peer.stalling_peer(int(peer.url.rpartition(":")[2])) as proxy,
    ):
        waits = {"read_seconds": 6.0, "idle_seconds": 3.0, "connect_seconds": 3.0, "retries": 1}
        endpoints = {
            "instruct": {"base_url": f"{proxy.url}/v1", "model": "instruct", **waits},
            "thinking": {"base_url": f"{peer.url}/v1", "model": "thinking", **waits},
        }
        file = folder / "endpoints.json"
        file.write_text(json.dumps(endpoints))
        options = ["--model", str(file), *QUEUE, *_store(folder)]
        with serving(folder, options, _environment(folder)) as server:

            async def disturb(seconds: float) -> None:
                await asyncio.sleep(seconds / 4)
                proxy.fault = fault
                await asyncio.sleep(seconds / 2)
                proxy.fault = "none"

            yield Target(server, disturb)


@contextmanager
def _with_jumps(folder: Path) -> Iterator[Target]:
    """A server whose clock jumps. Its monotonic clock does not, as in reality."""
    library = next((one for one in LIBRARIES if Path(one).exists()), None)
    if library is None:
        raise RuntimeError("libfaketime is missing: install the package faketime")
    clock = folder / "clock"
    _set_clock(clock, 0)
    environment = _environment(
        folder, LD_PRELOAD=library, FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_CACHE_DURATION="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1", DONT_FAKE_MONOTONIC="1", FAKETIME_FORCE_MONOTONIC_FIX="0",
    )  # fmt: skip
    with serving(folder, [*QUEUE, *_store(folder)], environment) as server:
        target = Target(server, asyncio.sleep)
        target.disturb = partial(_jump, target, clock)
        yield target


async def _jump(target: Target, clock: Path, seconds: float) -> None:
    """Let the clock jump, and check meanwhile what depends on it: rates of requests and stored responses."""
    async with (
        httpx.AsyncClient(base_url=target.server.url, timeout=DEADLINE_SECONDS + GRACE_SECONDS) as client,
        _limited(client, target),
    ):
        id = await _stored(client)
        for offset in JUMPS:
            _set_clock(clock, offset)
            await asyncio.sleep(max(seconds / (len(JUMPS) + 1), JUMP_SECONDS))
            status = (await client.get(f"/v1/responses/{id}", headers=bearer(KEYS[0]))).status_code
            if status != (404 if offset == DAYS else 200):
                target.problems.append(f"a stored response has the status {status} {offset:+d} s later")
    target.note = f"{len(JUMPS)} jumps"


async def _stored(client: httpx.AsyncClient) -> str:
    """The id of a stored response."""
    body = {"model": "instruct", "input": "Add 2 and 3.", "max_output_tokens": MAX_TOKENS, "store": True}
    while (reply := await client.post("/v1/responses", json=body, headers=bearer(KEYS[0]))).status_code == 429:
        await asyncio.sleep(0.2)
    return str(reply.json()["id"])


@asynccontextmanager
async def _limited(client: httpx.AsyncClient, target: Target) -> AsyncIterator[None]:
    """Send requests with the key that has a limit, which must hold in each minute of real time."""

    async def ask() -> None:
        begun, statuses = list[float](), Counter[int]()
        while True:
            began = time.monotonic()
            reply = await client.post("/v1/route", json=body, headers=bearer(KEYS[2]))
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                begun.append(began)
            elif not 1 <= (wait := float(reply.headers["retry-after"])) <= 61:
                target.problems.append(f"Retry-After of a limit per minute: {wait:g}")
            if len([one for one in begun if one > time.monotonic() - 59]) > LIMIT:
                target.problems.append("more requests than the limit in a minute")
                return
            await asyncio.sleep(0.1)

    body = {"model": "auto", "messages": [{"role": "user", "content": "Add 2 and 3."}]}
    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        if asking.done():
            asking.result()
        asking.cancel()


def _set_clock(file: Path, offset: int) -> None:
    """Replace the file as a whole, because the server reads it at any time."""
    new = file.with_suffix(".new")
    new.write_text(f"{offset:+d}\n")
    os.replace(new, file)


FAULTS = (
    Fault("none", _quiet),
    Fault("out of memory in the vision tower", partial(_without_memory, "tower", 0.05)),
    Fault("out of memory in the prefill", partial(_without_memory, "prefill", 0.05)),
    Fault("out of memory in the decode step", partial(_without_memory, "decode", 0.03)),
    Fault("a peer that accepts and never answers", partial(_with_peer, "silent")),
    Fault("a peer that stops within a stream", partial(_with_peer, "stops")),
    Fault("a peer that sends byte after byte", partial(_with_peer, "slow")),
    Fault("a peer that closes connections", partial(_with_peer, "closes")),
    Fault("jumps of the clock: +1 h, -1 h, +40 days, back", _with_jumps),
)
