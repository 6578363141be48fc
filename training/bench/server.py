"""Overhead, decision rate and behavior under load of `vlroute serve`: `python -m training.bench.server`

The server runs in a process of its own, on the same cores as the clients. Takes a minute and a half.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import psutil

from training.bench.servers import draw_pictures, user_message, vlroute_server
from training.page import argument_parser, environment, publish, step
from vlroute import Router
from vlroute.learning.trial import media
from vlroute.pocket import Task

ANSWERS, WARM_UP, DECIDING_SECONDS, CONNECTIONS, CLIENTS = 200, 10, 10.0, 8, 200
REST = 0.05
CHAT, ROUTE = "/v1/chat/completions", "/v1/route"


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply. `first`: seconds until its headers arrived; `seconds`: until its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    first: float
    seconds: float

    @property
    def complete(self) -> bool:
        """Whether a stream has a finish reason and its end."""
        events = [event[6:] for event in self.body.decode().split("\n\n") if event.startswith("data: ")]
        if len(events) < 2 or events[-1] != "[DONE]":
            return False
        reasons = [choice["finish_reason"] for event in events[:-1] for choice in json.loads(event).get("choices", [])]
        return bool(reasons) and reasons[-1] in ("stop", "length")


class Connection(http.client.HTTPConnection):
    """One open connection; requests follow one another."""

    def __init__(self, url: str) -> None:
        super().__init__(url.partition("//")[2], timeout=600)

    def post(self, path: str, body: bytes) -> Reply:
        began = time.perf_counter()
        self.request("POST", path, body, {"Content-Type": "application/json"})
        response = self.getresponse()
        first = time.perf_counter() - began
        content = response.read()
        return Reply(response.status, response.headers, content, first, time.perf_counter() - began)


def question(task: Task, **fields: Any) -> bytes:
    """The body of a chat completion."""
    return json.dumps({"messages": [user_message(task.frames, task.prompt)], **fields}).encode()


def measure_overhead(url: str, tasks: Sequence[Task], as_sent: bool = False) -> tuple[float, float]:
    """Median seconds of `Router.ask` in this process, and of what the same question takes more over HTTP.

    Args:
        url: The server.
        tasks: The questions; the first ones warm up.
        as_sent: `Router.ask` gets the messages of the request with their data URIs, and not the pictures.

    Returns:
        Both medians.
    """
    router, connection = Router.from_pretrained().load(), Connection(url)
    inside, beyond = [], []
    for i, task in enumerate(tasks):
        body, seconds = question(task), {}
        messages = json.loads(body)["messages"]
        for way in ("http", "ask") if i % 2 else ("ask", "http"):
            time.sleep(REST)  # idle threads of the other process spin for a while
            began = time.perf_counter()
            if way == "http":
                assert connection.post(CHAT, body).status == 200
            elif as_sent:
                router.ask(messages)
            else:
                router.ask(task.prompt, **media(task))
            seconds[way] = time.perf_counter() - began
        inside.append(seconds["ask"])
        beyond.append(seconds["http"] - seconds["ask"])
    return statistics.median(inside[WARM_UP:]), statistics.median(beyond[WARM_UP:])


def crowd(url: str, path: str, bodies: Sequence[bytes], clients: int, seconds: float) -> list[Reply]:
    """Replies to clients that each send one request after the other. They wait as told when refused with 429."""
    until = time.perf_counter() + seconds

    def client(seed: int) -> list[Reply]:
        chance, connection, replies = random.Random(seed), Connection(url), []
        while time.perf_counter() < until:
            replies.append(reply := connection.post(path, chance.choice(bodies)))
            if reply.status == 429:
                left = until - time.perf_counter()
                time.sleep(max(0.0, min(float(reply.headers["retry-after"]), left)) * chance.random())
        connection.close()
        return replies

    with ThreadPoolExecutor(clients) as pool:
        return [reply for replies in pool.map(client, range(clients)) for reply in replies]


def measure(seconds: float, clients: int = CLIENTS) -> dict[str, Any]:
    """The figures of the page. `seconds`: how long the crowd sends requests."""
    where = environment()
    with vlroute_server() as (url, process):
        step("overhead")
        inside, beyond = measure_overhead(url, draw_pictures(ANSWERS + WARM_UP, "overhead"))
        step("decisions")
        body = {"messages": [{"role": "user", "content": "Add the numbers."}], "vlroute": {"caption": "three numbers"}}
        decided = crowd(url, ROUTE, [json.dumps(body).encode()], CONNECTIONS, min(DECIDING_SECONDS, seconds))
        assert {reply.status for reply in decided} == {200}
        step(f"a crowd of {clients} clients")
        bodies, resident = [question(task, stream=True) for task in draw_pictures(400, "crowd")], []
        with ThreadPoolExecutor(1) as pool:
            crowding = pool.submit(crowd, url, CHAT, bodies, clients, seconds)
            while not crowding.done():
                resident.append(psutil.Process(process).memory_info().rss)
                time.sleep(1.0)
    replies = crowding.result()
    answered = [reply for reply in replies if reply.status != 429]
    ordered = sorted(reply.seconds for reply in answered)
    settled = min(20, len(resident) // 3)
    return {
        "where": where, "seconds": seconds, "ask": inside, "overhead": beyond,
        "decisions": len(decided) / min(DECIDING_SECONDS, seconds), "answers": len(ordered),
        "statuses": {str(status): count for status, count in Counter(reply.status for reply in replies).items()},
        "lost": sum(not reply.complete for reply in answered), "p50": statistics.median(ordered),
        "p95": ordered[int(0.95 * len(ordered))], "first": statistics.median(reply.first for reply in answered),
        "settled": settled, "memory": resident[settled],
        "growth": statistics.fmean(resident[-5:]) / statistics.fmean(resident[settled : settled + 5]) - 1,
    }  # fmt: skip


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the crowd sends requests")
    options = parser.parse_args()
    publish("server_speed", measure(options.seconds), options.out)


if __name__ == "__main__":
    main()
