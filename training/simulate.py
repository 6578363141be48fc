"""Estimate seconds, thinking share and the number of replicas for an expected load.

    python -m training.simulate --records records.jsonl --rate 20 --p95 3

Requests arrive at random (Poisson process) or at the times of a trace. Each one costs what a record of
`vlroute collect` cost on an idle machine. docs/benchmarks/scaling.md describes the model and its limits.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from training.simulation import (
    Decider,
    Limits,
    Request,
    RouterDecider,
    ShareDecider,
    Times,
    poisson,
    replicas_needed,
    requests_from,
    sample,
    simulate,
)
from vlroute import ComplexityClassifier, InputError, Policy, VLRouteError, read_records

RUNS = 5


def read_trace(path: Path) -> Times:
    """`[n]` arrival times in seconds, one a line in the file; the first becomes 0. InputError if they are invalid."""
    try:
        times = np.array([float(line) for line in path.read_text("utf-8").split()], np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected seconds of arrival, one number a line") from error
    if not times.size or not np.isfinite(times).all() or np.any(np.diff(times) < 0):
        raise InputError(f"{path}: at least one arrival time is needed, and times must be finite and never decrease")
    return np.asarray(times - times[0], np.float64)


def forecast(
    limits: Limits, arrivals: Sequence[Times], requests: Sequence[Request], decider: Callable[[int], Decider],
    replicas: int, p95: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Means over one simulation for each of `arrivals`, with the range of p50 and p95.

    With `p95`: also the number of replicas that is enough in all simulations.
    """
    results, needed = [], []
    for seed, times in enumerate(track(arrivals, "simulating", transient=True, console=Console(stderr=True))):
        drawn = sample(requests, len(times), seed)
        results.append(simulate(limits, times, drawn, decider, replicas, seed))
        if p95 is not None:
            needed.append(replicas_needed(limits, times, drawn, decider, p95, seed=seed))
    each = {name: [one.quantile(share) for one in results] for name, share in (("p50", 0.5), ("p95", 0.95))}
    return {
        "rate": float(np.mean([(len(times) - 1) / times[-1] for times in arrivals])),
        "replicas": replicas,
        **{name: float(np.mean(values)) for name, values in each.items()},
        **{f"{name}_runs": [min(values), max(values)] for name, values in each.items()},
        "thinking": float(np.mean([one.thinking for one in results])),
        "busy": float(np.mean([one.busy for one in results])),
        "refused": sum(one.refused for one in results) / sum(map(len, arrivals)),
        **({"target_p95": p95, "needed": None if None in needed else max(filter(None, needed))} if needed else {}),
    }


def summary(result: dict[str, Any]) -> Table:
    table = Table("", title=f"{result['rate']:.3g} requests a second on {result['replicas']} replicas")
    table.add_column("predicted", justify="right")
    table.add_column("range of runs", justify="right")
    for name in ("p50", "p95"):
        low, high = result[f"{name}_runs"]
        table.add_row(f"seconds of an answer, {name}", f"{result[name]:.3g}", f"{low:.3g} – {high:.3g}")
    table.add_row("thinking share", f"{result['thinking']:.0%}")
    table.add_row("busy share of replicas", f"{result['busy']:.0%}")
    table.add_row("refused (429)", f"{result['refused']:.1%}")
    if "needed" in result:
        needed = result["needed"] or "more than 256"
        table.add_row(f"replicas for 95 % within {result['target_p95']:g} s", str(needed))
    return table


def predict(options: argparse.Namespace) -> dict[str, Any]:
    """The forecast for the options of the command."""
    if options.requests < 100:
        raise InputError("--requests must be at least 100")
    if options.follow_load and options.router is None:
        raise InputError("--follow-load needs --router")
    limits = Limits(options.max_num_seqs, options.max_waiting, options.sequence_cost)
    classifier = ComplexityClassifier.load(options.router) if options.router else None
    requests = requests_from(read_records(options.records), classifier)

    def decider(number: int) -> Decider:
        if classifier is None:
            return ShareDecider(options.share, number)
        return RouterDecider(Policy(price=options.price), classifier.latency, options.follow_load)

    if options.trace:
        arrivals = [read_trace(options.trace)] * RUNS
    else:
        arrivals = [poisson(options.rate, options.requests, seed) for seed in range(RUNS)]
    return forecast(limits, arrivals, requests, decider, options.replicas, options.p95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--records", type=Path, required=True, help="output of `vlroute collect`, with tokens and seconds")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--rate", type=float, help="requests a second, of all users")
    load.add_argument("--trace", type=Path, help="file of arrival times in seconds, one a line")
    add("--requests", type=int, default=4000, help="number of requests in each run")
    add("--replicas", type=int, default=1)
    add("--max-num-seqs", type=int, default=8, help="answers of each mode generated as one batch")
    add("--max-waiting", type=int, default=64, help="waiting requests of a replica; more are refused (429)")
    add("--sequence-cost", type=float, default=0.05, help="share of a token's time that a further sequence adds")
    add("--p95", type=float, help="seconds: also print how many replicas answer 95 %% within them")
    add("--json", action="store_true")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--share", type=float, default=0.5, help="thinking share, without a router")
    mode.add_argument("--router", type=Path, help="folder of the router artifact that decides")
    add("--price", type=float, default=Policy().price, help="price of a second, with --router")
    add("--follow-load", action="store_true", help="with --router: include the wait for a free sequence")
    options = parser.parse_args()
    try:
        result = predict(options)
    except (VLRouteError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(result))
    else:
        Console().print(summary(result))


if __name__ == "__main__":
    main()
