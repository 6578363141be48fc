"""What a server keeps after floods, and after many requests: resident memory, threads and open files. For Linux."""

from __future__ import annotations

import base64
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx

from training.bench.servers import draw_pictures, user_message, vlroute_server
from training.chaos.media import picture_bombs, resident, video_bomb

#: The memory at the end may be so many times that before. Threads of pools start when they are first needed, so that
#: there may be more of them after a flood, and a few more in the second half of ordinary requests; pools are bounded.
MOST, AFTER_FLOOD, LATER = 1.10, 16, 2
#: Seconds from the end of a flood to the measurement, for each request of the argument `requests`: 10 000 requests and
#: 10 minutes, 500 requests and half a minute.
SECONDS_PER_REQUEST = 0.06
#: Ordinary requests before a flood, and between two measurements for 10 000 requests.
WARM_UP, SHARES = 100, 10
CLIENTS = 6
#: Until closed connections have ended.
REST_SECONDS = 3.0
#: Large bodies: how many at once, and the size of each in MiB.
BODIES, MEGABYTES = 24, 60
PATIENCE_SECONDS = 120.0


class Used(NamedTuple):
    """What a process uses.

    Attributes:
        megabytes: Resident memory in MiB.
        threads: Number of threads.
        files: Number of open file descriptors.
    """

    megabytes: float
    threads: int
    files: int


@dataclass(slots=True)
class Kept:
    """Result of one check.

    Attributes:
        check: Its name.
        seconds: Time from the end of the flood to the last measurement; 0 without a flood.
        statuses: Number of replies with each status; 0: of requests without a reply.
        used: Measurements. Of a flood: before it and at the end.
        peak: The highest resident memory meanwhile, in MiB.
        holds: Whether the memory at the end is at most `MOST` times that at the beginning, and there are no more
            threads and files, except for threads of pools.
    """

    check: str
    seconds: float
    statuses: dict[str, int]
    used: list[Used]
    peak: float
    holds: bool = field(init=False)

    def __post_init__(self) -> None:
        first, last = self.used[0], self.used[-1]
        threads = max(one.threads for one in self.used[: len(self.used) // 2]) + (
            AFTER_FLOOD if self.seconds else LATER
        )
        self.holds = last.megabytes <= MOST * first.megabytes and last.threads <= threads and last.files <= first.files


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: Its name in the table.
        flood: Floods the server at this address with this process id, and returns the number of replies with each
            status. None: ordinary requests are the subject.
    """

    name: str
    flood: Callable[[str, int], dict[str, int]] | None


def run(check: Check, requests: int, seed: int = 0, advance: Callable[[], object] = lambda: None) -> Kept:
    """Run one check on a server of its own.

    Args:
        check: The check.
        requests: Number of ordinary requests, from which the seconds after a flood follow, see `SECONDS_PER_REQUEST`.
        seed: Of the ordinary requests.
        advance: Called `requests` times in all.

    Returns:
        The result.
    """
    with vlroute_server() as (url, pid), _peak(pid) as peak:
        if check.flood is None:
            statuses, measured, share = Counter[str](), list[Used](), max(requests // SHARES, 1)
            for number in range(SHARES):
                statuses += ordinary_requests(url, share, seed + number, advance)
                measured.append(_used_at_rest(pid))
            return Kept(check.name, 0.0, dict(statuses), measured, peak())
        ordinary_requests(url, WARM_UP, seed)
        before = _used_at_rest(pid)
        found = check.flood(url, pid)
        for _ in range(requests):
            time.sleep(SECONDS_PER_REQUEST)
            advance()
        return Kept(check.name, requests * SECONDS_PER_REQUEST, found, [before, _used_at_rest(pid)], peak())


def ordinary_requests(
    url: str, count: int, seed: int = 0, advance: Callable[[], object] = lambda: None
) -> Counter[str]:
    """Send requests as clients do: to each API, with pictures, as streams, with errors, and some clients disconnect.

    Args:
        url: Address of the server.
        count: Number of requests.
        seed: Of the order of the requests.
        advance: Called after each request.

    Returns:
        Number of replies with each status; "disconnected" for clients that left.
    """
    rng, lock, statuses = random.Random(seed), threading.Lock(), Counter[str]()
    kinds = [one for one, weight in _ORDINARY for _ in range(weight)]
    tasks = draw_pictures(8, "memory")
    pictures = [user_message(task.frames, task.prompt)["content"] for task in tasks]
    works = iter([(rng.choice(kinds), rng.choice(pictures), rng.random() < 0.4) for _ in range(count)])

    def send() -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            while True:
                with lock:
                    work = next(works, None)
                if work is None:
                    return
                kind, content, stream = work
                status = kind(client, content, stream)
                with lock:
                    statuses[status] += 1
                advance()

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(send) for _ in range(CLIENTS)]:
            done.result()
    return statuses


def large_bodies(url: str, pid: int) -> dict[str, int]:
    """Send large JSON bodies at once, each with a picture that is none.

    Args:
        url: Address of the server.
        pid: Not used.

    Returns:
        Number of replies with each status; 0: of requests without a reply.
    """
    data = base64.b64encode(bytes(3 * MEGABYTES * 2**18)).decode()
    content = _chat([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}])

    def send(_: int) -> str:
        try:
            return str(httpx.post(f"{url}/v1/chat/completions", json=content, timeout=PATIENCE_SECONDS).status_code)
        except httpx.HTTPError:
            return "0"

    with ThreadPoolExecutor(BODIES) as pool:
        return dict(Counter(pool.map(send, range(BODIES))))


def used(pid: int) -> Used:
    """What a process uses now.

    Args:
        pid: The process.

    Returns:
        Its memory, threads and files.
    """
    return Used(resident(pid), len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))


def _used_at_rest(pid: int) -> Used:
    """Memory, threads and open files of a process, after its connections were closed."""
    time.sleep(REST_SECONDS)
    return used(pid)


@contextmanager
def _peak(pid: int) -> Iterator[Callable[[], float]]:
    """The highest resident memory of a process within the context, in MiB."""
    highest, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.05):
            highest = max(highest, resident(pid))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield lambda: highest
    finally:
        ended.set()
        watching.join()


def _picture_bombs(url: str, pid: int) -> dict[str, int]:
    return _statuses(picture_bombs(url, "none", pid))


def _video_bombs(url: str, pid: int) -> dict[str, int]:
    return _statuses(video_bomb(url, "none", pid))


def _statuses(found: dict[str, float]) -> dict[str, int]:
    return {name: int(found[name]) for name in ("answered", "refused", "late")}


def _chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "instruct", "max_tokens": 4, "messages": [{"role": "user", "content": content}], **more}


def _post(client: httpx.Client, path: str, body: dict[str, Any], stream: bool) -> str:
    reply = client.post(path, json={**body, "stream": stream})
    return str(reply.status_code)


def _ask_chat(client: httpx.Client, content: Any, stream: bool) -> str:
    return _post(client, "/v1/chat/completions", _chat(content), stream)


def _ask_responses(client: httpx.Client, content: Any, stream: bool) -> str:
    parts = [
        {"type": "input_text", "text": part["text"]} if part["type"] == "text"
        else {"type": "input_image", "image_url": part["image_url"]["url"]}
        for part in content
    ]  # fmt: skip
    body = {"model": "instruct", "max_output_tokens": 16, "input": [{"role": "user", "content": parts}]}
    return _post(client, "/v1/responses", body, stream)


def _ask_messages(client: httpx.Client, content: Any, stream: bool) -> str:
    blocks = [
        part if part["type"] == "text"
        else {"type": "image", "source": {
            "type": "base64", "media_type": "image/png", "data": part["image_url"]["url"].partition(",")[2],
        }}
        for part in content
    ]  # fmt: skip
    return _post(client, "/v1/messages", _chat(blocks), stream)


def _think(client: httpx.Client, content: Any, stream: bool) -> str:
    return _post(client, "/v1/chat/completions", {**_chat("Add 2 and 3."), "model": "thinking"}, stream)


def _let_decide(client: httpx.Client, content: Any, stream: bool) -> str:
    return str(client.post("/v1/route", json={"messages": [{"role": "user", "content": content}]}).status_code)


def _leave(client: httpx.Client, content: Any, stream: bool) -> str:
    """Disconnect after the first bytes of a stream, or before the answer."""
    body = {**_chat(content, stream=stream), "model": "thinking", "max_tokens": 200}
    try:
        with client.stream(
            "POST", "/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS if stream else 0.02
        ) as it:
            next(it.iter_raw(), None)
    except httpx.TimeoutException:
        pass
    return "disconnected"


def _wrong_field(client: httpx.Client, content: Any, stream: bool) -> str:
    return _post(client, "/v1/chat/completions", _chat(content, odd=1), stream)


def _damaged_picture(client: httpx.Client, content: Any, stream: bool) -> str:
    uri = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(2000)).decode()
    return _ask_chat(client, [{"type": "image_url", "image_url": {"url": uri}}], stream)


def _no_json(client: httpx.Client, content: Any, stream: bool) -> str:
    headers = {"Content-Type": "application/json"}
    return str(client.post("/v1/messages", content=b'{"messages": [', headers=headers).status_code)


def _new_connection(client: httpx.Client, content: Any, stream: bool) -> str:
    return str(httpx.get(client.base_url.join("/metrics"), timeout=PATIENCE_SECONDS).status_code)


#: Kinds of ordinary requests, and how often each is sent.
_ORDINARY: tuple[tuple[Callable[[httpx.Client, Any, bool], str], int], ...] = (
    (_ask_chat, 6), (_ask_responses, 4), (_ask_messages, 4), (_think, 1), (_let_decide, 2), (_leave, 2),
    (_wrong_field, 1), (_damaged_picture, 1), (_no_json, 1), (_new_connection, 1),
)  # fmt: skip
CHECKS = (
    Check("8 pictures of 8,192 × 8,192 pixels at once", _picture_bombs),
    Check("a video of 3,000 frames of 2,048 × 2,048 pixels", _video_bombs),
    Check(f"{BODIES} bodies of {MEGABYTES} MiB at once", large_bodies),
    Check("ordinary requests", None),
)
