"""What the server costs: overhead of an answer, decisions a second, a crowd. `python -m training.bench.server`

The server runs in a process of its own, as `vlroute serve` starts it; a minute and a half with the crowd. Figures go
to docs/benchmarks/server_speed.json and docs/benchmarks/server_speed.md. Every figure is of one run on one machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.load_client import Connection, Tally, crowd, rate, request
from training.bench.page import PAGES, hardware, table, versions
from vlroute import Router
from vlroute.files import replace_file
from vlroute.pocket import Task, draw_task
from vlroute.pocket.trial import media

OUT = PAGES / "server_speed.json"
FAMILIES = ("ocr", "count", "math", "gui", "hop")
ANSWERS, DECIDING_SECONDS, CONNECTIONS, CLIENTS = 200, 10.0, 8, 200
REST = 0.05
MOST_OVERHEAD, LEAST_DECISIONS, MOST_GROWTH = 0.005, 500.0, 0.05
PAGE = """\
# The server's speed

Written by `python -m training.bench.server` from `server_speed.json`: `vlroute serve` with the pocket pair in one
process, clients in another, on the same cores. What falls short of what was asked is bold.

{table}

*Overhead*: median of the differences of {answers} pairs, a fresh picture each: the same question over HTTP and by
`Router.ask` in the client's process, 50 ms apart, turn about. *Decisions*: `/v1/route` with prompt and
caption, {connections} connections that ask again at once. *Crowd*: {clients} clients stream answers for
{seconds:.0f} s, and wait when told to (429); lost is a stream without its end. *Memory*: the server's, from
{settled:.0f} s after the crowd came until it left.

Taken on: {where}
"""


def tasks(count: int, seed: str) -> list[Task]:
    chance = random.Random(seed)
    return [
        draw_task(
            chance, chance.choice(FAMILIES), chance.choice(("easy", "medium", "hard")), chance.choice(("en", "zh"))
        )
        for _ in range(count)
    ]


def user_message(task: Task) -> dict[str, Any]:
    """The task's pictures and question in OpenAI's form."""
    parts: list[dict[str, Any]] = []
    for frame in task.frames:
        buffer = io.BytesIO()
        frame.save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": uri}})
    return {"role": "user", "content": [*parts, {"type": "text", "text": task.prompt}]}


def message(task: Task, key: str | None = None, **fields: Any) -> bytes:
    """One question over HTTP; `key`: an API key."""
    return request("/v1/chat/completions", json.dumps({"messages": [user_message(task)], **fields}).encode(), key)


@contextmanager
def serving(keys: Sequence[str] = ()) -> Iterator[tuple[int, psutil.Process]]:
    """Port and process of a server that is ready; with `keys` it asks for one of them."""
    command = [sys.executable, "-m", "vlroute", "serve", "--port", "0", "--no-page"]
    known = {**os.environ, "VLROUTE_API_KEYS": ",".join(keys)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=known) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r"http://127\.0\.0\.1:(\d+)", line) for line in process.stderr)))
            port = int(found[1])
            while asyncio.run(_status(port)) != 200:
                time.sleep(0.2)
            # what it writes from now on is read, lest it wait for a reader
            drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield port, psutil.Process(process.pid)
            drained.terminate()
        finally:
            process.terminate()


async def _status(port: int) -> int:
    connection = await Connection(port).open()
    status, *_ = await connection.send(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
    connection.close()
    return status


async def overhead(port: int, router: Router, asked: Sequence[Task]) -> tuple[float, float]:
    """Median seconds of `Router.ask`, and of what the server takes beyond it."""
    connection = await Connection(port).open()
    inside, beyond = [], []
    for i, task in enumerate(asked):
        sent, seconds = message(task), {}
        for way in ("http", "ask") if i % 2 else ("ask", "http"):
            await asyncio.sleep(REST)  # idle threads of the other process spin for a while: not at this one's cost
            began = time.perf_counter()
            if way == "http":
                status, *_ = await connection.send(sent)
                assert status == 200
            else:
                router.ask(task.prompt, **media(task))
            seconds[way] = time.perf_counter() - began
        inside.append(seconds["ask"])
        beyond.append(seconds["http"] - seconds["ask"])
    connection.close()
    return statistics.median(inside[10:]), statistics.median(beyond[10:])


async def watched_crowd(port: int, server: psutil.Process, seconds: float) -> tuple[Tally, list[int]]:
    """The crowd, and the server's resident bytes each second."""
    messages = [message(task, stream=True) for task in tasks(400, "crowd")]
    resident: list[int] = []

    async def watch() -> None:
        while True:
            resident.append(server.memory_info().rss)
            await asyncio.sleep(1.0)

    watching = asyncio.ensure_future(watch())
    tally = await crowd(port, messages, CLIENTS, seconds)
    watching.cancel()
    return tally, resident


def measure(seconds: float) -> dict[str, Any]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as progress, serving() as (port, process):
        step = progress.add_task("overhead", total=None)
        router = Router.from_pretrained().load()
        inside, beyond = asyncio.run(overhead(port, router, tasks(ANSWERS + 10, "overhead")))
        progress.update(step, description="decisions")
        body = {"messages": [{"role": "user", "content": "Add the numbers."}], "vlroute": {"caption": "three numbers"}}
        decisions = asyncio.run(
            rate(port, request("/v1/route", json.dumps(body).encode()), CONNECTIONS, DECIDING_SECONDS)
        )
        progress.update(step, description=f"a crowd of {CLIENTS}")
        tally, resident = asyncio.run(watched_crowd(port, process, seconds))
    ordered = sorted(tally.seconds)
    return {
        "where": f"{hardware()}; {versions()}", "seconds": seconds, "ask": inside, "overhead": beyond,
        "decisions": decisions, "answers": len(ordered), "statuses": {str(k): v for k, v in tally.statuses.items()},
        "lost": tally.lost, "p50": statistics.median(ordered), "p95": ordered[int(0.95 * len(ordered))],
        "first": statistics.median(tally.first), "resident": resident,
    }  # fmt: skip


def render(found: dict[str, Any]) -> str:
    """The page; what misses its bar is bold."""
    settled = min(20, len(found["resident"]) // 3)
    resident = found["resident"][settled:]
    growth = statistics.fmean(resident[-5:]) / statistics.fmean(resident[:5]) - 1
    errors = sum(count for status, count in found["statuses"].items() if status not in ("200", "429"))
    refused = found["statuses"].get("429", 0)

    def row(what: str, value: str, asked: str, met: bool) -> list[str]:
        return [what, value if met else f"**{value}**", asked]

    rows = [
        row(f"overhead of an answer ({1e3 * found['ask']:.1f} ms in process)", f"{1e3 * found['overhead']:.2f} ms",
            f"≤ {1e3 * MOST_OVERHEAD:.0f} ms", found["overhead"] <= MOST_OVERHEAD),
        row("decisions a second", f"{found['decisions']:.0f}", f"≥ {LEAST_DECISIONS:.0f}",
            found["decisions"] >= LEAST_DECISIONS),
        row(f"crowd: answers ({refused} times told to wait)", f"{found['answers']}", "–", True),
        row("crowd: errors other than 429", str(errors), "0", errors == 0),
        row("crowd: lost streams", str(found["lost"]), "0", found["lost"] == 0),
        row("crowd: seconds to the first event, median", f"{found['first']:.2f}", "–", True),
        row("crowd: seconds of an answer, median and p95", f"{found['p50']:.2f}, {found['p95']:.2f}", "–", True),
        row(f"memory: growth of {resident[0] / 2**20:,.0f} MiB", f"{growth:+.1%}", f"≤ {MOST_GROWTH:.0%}",
            growth <= MOST_GROWTH),
    ]  # fmt: skip
    return PAGE.format(
        table="\n".join(table(["", "measured", "asked"], rows)), answers=ANSWERS, connections=CONNECTIONS,
        clients=CLIENTS, seconds=found["seconds"], settled=settled, where=found["where"],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the crowd stays")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = measure(options.seconds)
    replace_file(options.out, (json.dumps(found, indent=1) + "\n").encode())
    replace_file(options.out.with_suffix(".md"), render(found).encode())


if __name__ == "__main__":
    main()
