"""The simulator against a real server: `python -m training.simulate_check` (five minutes; better on a quiet machine)

`vlroute serve` with the pocket pair runs in a process of its own. Measured first, and all that the simulator is told:
what single requests cost on the idle server, what a token costs with 1, 2, 4 and 8 rows, and how many answers a second
16 clients get. Then three loads with fresh pictures, arriving by chance; each is predicted from its rate alone.
Figures go to docs/scaling_check.json, from there to a section of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from training.bench.load_client import Connection
from training.bench.measure import ROOT
from training.bench.page import hardware, table, versions
from training.bench.server import message, serving, tasks
from training.simulation.run import drawn, poisson, saturated, simulate
from training.simulation.work import Machine, Work
from vlroute.files import replace_file

OUT, PAGE = ROOT / "docs" / "scaling_check.json", ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- written by training.simulate_check -->", "<!-- end of what training.simulate_check wrote -->"
LOADS, ROWS, MOST_ERROR = (0.3, 0.6, 0.85), (1, 2, 4, 8), 0.15
SINGLE, CLIENTS, SATURATED, LOAD_SECONDS, SIMULATED = 300, 16, 1500, 60.0, 40_000
SECTION = """\
Written by `python -m training.simulate_check` from `docs/scaling_check.json`: `vlroute serve` with the pocket pair,
loads in parts of what {clients} clients get that ask again at once ({capacity:.0f} answers a second), {seconds:.0f} s
each, arrivals by chance. The simulator is told what single requests cost on the idle server, what a token costs with
several rows, and that capacity; not the seconds it predicts. Asked: within {asked:.0%}; what misses is bold. In
brackets: 95 % bootstrap interval of what was measured (by blocks of a second, as neighbours wait together).

{table}

Taken on: {where}
"""


def token_seconds() -> list[float]:
    """Median seconds of a token with so many rows, each in `ROWS`; run in a process of its own by `main`."""
    from concurrent.futures import ThreadPoolExecutor

    from vlroute import Router

    endless = {"thinking": {"eos_token_id": -1, "max_new_tokens": 200, "do_sample": False}}
    router = Router.from_pretrained(rows=max(ROWS), generation=endless).load()

    def one(_: int) -> float:
        answer = router.ask("Add the numbers.", mode="thinking", caption="")
        return answer.timing.decode / (answer.usage.completion_tokens - 1)

    found = []
    with ThreadPoolExecutor(max(ROWS)) as pool:
        list(pool.map(one, range(max(ROWS))))
        for rows in ROWS:
            found.append(statistics.median(statistics.median(pool.map(one, range(rows))) for _ in range(5)))
    return found


async def singles(port: int) -> list[Work]:
    """What each of `SINGLE` requests costs on the idle server."""
    connection, found = await Connection(port).open(), []
    for one in tasks(SINGLE + 20, "singles"):
        sent = message(one)
        began = time.perf_counter()
        status, _, body, _ = await connection.send(sent)
        spent = time.perf_counter() - began
        assert status == 200, body
        said = json.loads(body)
        timing, tokens = said["vlroute"]["timing"], said["usage"]["completion_tokens"]
        before = spent - timing["vision"] - timing["prefill"] - timing["decode"]
        found.append(Work(said["model"], max(before, 0.0), timing["vision"] + timing["prefill"], max(tokens - 1, 0)))
    connection.close()
    return found[20:]  # the first ones warm it up


async def most(port: int) -> float:
    """Answers a second when `CLIENTS` ask again at once, each time about a fresh picture."""
    coming, ended = iter([message(one) for one in tasks(SATURATED, "saturated")]), list[float]()

    async def client() -> None:
        connection = await Connection(port).open()
        for asked in coming:
            status, _, body, _ = await connection.send(asked)
            assert status == 200, body
            ended.append(time.perf_counter())
        connection.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    kept = ended[len(ended) // 5 : -CLIENTS]  # from when all were at it until the first had nothing more to ask
    return (len(kept) - 1) / (kept[-1] - kept[0])


async def load(port: int, rate: float, seconds: float, seed: str) -> list[tuple[float, float, bool]]:
    """Arrival, seconds and whether Thinking answered, of each request; a late client delays no other."""
    count = int(rate * seconds)
    arrivals, sent = poisson(rate, count, len(seed) + int(rate)), [message(one) for one in tasks(count, seed)]
    idle: list[Connection] = []
    found: list[tuple[float, float, bool]] = []
    start = time.perf_counter() + 0.5

    async def one(at: float, asked: bytes) -> None:
        await asyncio.sleep(start + at - time.perf_counter())
        connection = idle.pop() if idle else await Connection(port).open()
        status, headers, body, _ = await connection.send(asked)
        idle.append(connection)
        if status == 429:
            return  # the simulator knows those, too; fewer requests than were sent show in the table
        assert status == 200, body
        found.append((at, time.perf_counter() - start - at, headers["x-vlroute-mode"] == "thinking"))

    await asyncio.gather(*(one(float(at), asked) for at, asked in zip(arrivals, sent, strict=True)))
    for connection in idle:
        connection.close()
    return found


def fitted(steps: tuple[float, ...], sample: list[Work], capacity: float) -> Machine:
    """The machine whose cores give the capacity that was measured, by halving."""
    low, high, requests = 0.2, 8.0, drawn(sample, 4000)
    for _ in range(20):
        middle = (low + high) / 2
        slow = saturated(Machine(steps, middle), requests, CLIENTS) < capacity
        low, high = (middle, high) if slow else (low, middle)
    return Machine(steps, high)


def interval(found: list[tuple[float, float, bool]], share: float) -> tuple[float, float]:
    """95 % bootstrap interval of a quantile, by blocks of one second."""
    blocks: dict[int, list[float]] = {}
    for at, spent, _ in found:
        blocks.setdefault(int(at), []).append(spent)
    chance, each = np.random.default_rng(0), [*blocks.values()]
    quantiles = [
        float(np.quantile(np.concatenate([each[i] for i in chance.integers(len(each), size=len(each))]), share))
        for _ in range(500)
    ]
    return float(np.quantile(quantiles, 0.025)), float(np.quantile(quantiles, 0.975))


def measure(seconds: float) -> dict[str, Any]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns) as progress:
        step = progress.add_task("seconds of a token", total=None)
        told = subprocess.run(
            [sys.executable, "-m", "training.simulate_check", "--token-seconds"], check=True, capture_output=True
        ).stdout
        measured = json.loads(told.splitlines()[-1])
        steps = tuple(float(np.interp(k, ROWS, measured)) for k in range(1, max(ROWS) + 1))
        with serving() as (port, _):
            progress.update(step, description="single requests")
            sample = asyncio.run(singles(port))
            progress.update(step, description=f"{CLIENTS} clients at once")
            capacity = asyncio.run(most(port))
            machine = fitted(steps, sample, capacity)
            loads = []
            for part in LOADS:
                progress.update(step, description=f"a load of {part:.0%}")
                loads.append(
                    _compared(
                        part,
                        asyncio.run(load(port, part * capacity, seconds, f"load {part}")),
                        machine,
                        sample,
                        part * capacity,
                    )
                )
    return {
        "where": f"{hardware()}; load average before the start {os.getloadavg()[2]:.1f}; {versions()}",
        "seconds": seconds,
        "token_seconds": dict(zip(map(str, ROWS), measured, strict=True)),
        "capacity": capacity,
        "cores": machine.cores,
        "loads": loads,
    }


def _compared(
    part: float, found: list[tuple[float, float, bool]], machine: Machine, sample: list[Work], rate: float
) -> dict[str, Any]:
    predicted = simulate(machine, poisson(rate, SIMULATED, seed=11), drawn(sample, SIMULATED, seed=12))
    kept = sorted(found)[len(found) // 10 :]
    spent = [one[1] for one in kept]
    quantiles = {
        name: {
            "measured": float(np.quantile(spent, share)),
            "interval": interval(kept, share),
            "predicted": predicted.quantile(share),
        }
        for name, share in (("p50", 0.5), ("p95", 0.95))
    }
    thinking = {"measured": statistics.fmean(one[2] for one in kept), "predicted": predicted.thinking}
    return {"part": part, "rate": rate, "requests": len(found), **quantiles, "thinking": thinking}


def render(found: dict[str, Any]) -> str:
    rows = []
    for one in found["loads"]:
        for name in ("p50", "p95"):
            value = one[name]
            error = value["predicted"] / value["measured"] - 1
            low, high = value["interval"]
            said = f"{error:+.1%}" if abs(error) <= MOST_ERROR else f"**{error:+.1%}**"
            rows.append(
                [
                    f"{one['part']:.0%}",
                    f"{one['rate']:.1f}",
                    f"{one['requests']:,}",
                    name,
                    f"{1e3 * value['measured']:.0f} ({1e3 * low:.0f} – {1e3 * high:.0f})",
                    f"{1e3 * value['predicted']:.0f}",
                    said,
                    f"{one['thinking']['measured']:.0%}, {one['thinking']['predicted']:.0%}",
                ]
            )
    head = [
        "load",
        "a second",
        "requests",
        "",
        "measured, ms",
        "predicted, ms",
        "error",
        "thinking, measured, predicted",
    ]
    return SECTION.format(
        table="\n".join(table(head, rows)),
        clients=CLIENTS,
        capacity=found["capacity"],
        seconds=found["seconds"],
        asked=MOST_ERROR,
        where=found["where"],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=LOAD_SECONDS, help="of each load")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--token-seconds", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.token_seconds:
        print(json.dumps(token_seconds()))
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # of server and token bench: two threads a model would contend for two cores
    found = measure(options.seconds)
    replace_file(options.out, (json.dumps(found, indent=1) + "\n").encode())
    before, _, rest = options.page.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    replace_file(options.page, f"{before}{BEGIN}\n{render(found)}{END}{after}".encode())


if __name__ == "__main__":
    main()
