"""How many replicas does a load need, and what will its users wait?

    python -m training.simulate --records records.jsonl --rate 20 --p95 3

Requests arrive by chance (Poisson) or as a trace says, and cost what the records of `vlroute collect` cost on an idle
machine; answers that are written together share forward passes, as in `vlroute serve`. docs/scaling.md says what this
does not see.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from training.simulation.choosing import ByRouter, ByShare
from training.simulation.run import Chooses, Times, drawn, poisson, replicas_needed, simulate
from training.simulation.work import Machine, Request, requests_of
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.errors import InputError, VLRouteError
from vlroute.learning.records import read_records

RUNS, ROW_COST = 5, 0.05


def trace(path: Path) -> Times:
    """`[n]` times of arrival in seconds, one a line, from 0. InputError for anything else."""
    try:
        found = np.array([float(line) for line in path.read_text("utf-8").split()], np.float64)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; expected seconds of arrival, one number a line") from error
    if not found.size or not np.isfinite(found).all() or np.any(np.diff(found) < 0):
        raise InputError(f"{path}: times of arrival must be finite and never fall, and there must be one at least")
    return np.asarray(found - found[0], np.float64)


def machine_of(path: Path) -> Machine:
    """The machine that `training.simulate_check` fitted. InputError if there is none."""
    try:
        written = json.loads(path.read_text("utf-8"))["fitted"]["machine"]
        return Machine(**{**written, "growth": tuple(written["growth"]), "speeds": tuple(written["speeds"])})
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}: {error!r}; expected what training.simulate_check wrote with --out") from error


def forecast(
    machine: Machine, arrivals: Sequence[Times], sample: Sequence[Request], chooses: Chooses, replicas: int,
    p95: float | None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of one load: the mean of a run for each of `arrivals`, [lowest, highest] of them for the seconds; with
    `p95` the replicas that all runs need."""
    requests = [drawn(sample, len(times), seed) for seed, times in enumerate(arrivals)]
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("simulating", total=sum(map(len, arrivals)))
        found = [
            simulate(machine, times, asked, chooses, replicas, seed, advance=lambda n: progress.advance(task, n))
            for seed, (times, asked) in enumerate(zip(arrivals, requests, strict=True))
        ]
        needed: list[int | None] = []
        for seed, (times, asked) in enumerate(zip(arrivals, requests, strict=True)):
            if p95 is not None:

                def trying(replicas: int, seed: int = seed) -> None:
                    progress.update(task, description=f"{replicas} replicas, arrivals {seed + 1}", total=None)

                needed.append(replicas_needed(machine, times, asked, chooses, p95, seed=seed, trying=trying))
    each = {name: [run.quantile(share) for run in found] for name, share in (("p50", 0.5), ("p95", 0.95))}
    most = None if None in needed else max((one for one in needed if one), default=None)
    return {
        "rate": float(np.mean([(len(times) - 1) / times[-1] for times in arrivals])), "replicas": replicas,
        **{name: float(np.mean(values)) for name, values in each.items()},
        **{f"{name}_runs": [min(values), max(values)] for name, values in each.items()},
        "thinking": float(np.mean([run.thinking for run in found])),
        "busy": float(np.mean([run.busy for run in found])),
        "refused": sum(run.refused for run in found) / sum(map(len, arrivals)),
        **({} if p95 is None else {"asked_p95": p95, "needed": most}),
    }  # fmt: skip


def show(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['rate']:.3g} requests a second on {found['replicas']} replicas")
    for name, justify in (("", "left"), ("predicted", "right"), ("lowest and highest run", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for name, key in (("seconds of an answer, median", "p50"), ("95 % take at most", "p95")):
        low, high = found[f"{key}_runs"]
        table.add_row(name, f"{found[key]:.3g}", f"{low:.3g} – {high:.3g}")
    table.add_row("thinking share", f"{found['thinking']:.0%}", "")
    table.add_row("machines busy", f"{found['busy']:.0%}", "")
    table.add_row("refused (429)", f"{found['refused']:.1%}", "")
    if "needed" in found:
        said = str(found["needed"]) if found["needed"] else "more than 256"
        table.add_row(f"replicas for 95 % within {found['asked_p95']:g} s", said, "")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--records", type=Path, required=True, help="what `vlroute collect` wrote: tokens and seconds of both modes"
    )
    arriving = parser.add_mutually_exclusive_group(required=True)
    arriving.add_argument("--rate", type=float, help="requests a second, of all users")
    arriving.add_argument("--trace", type=Path, help="seconds of arrival instead, one number a line")
    parser.add_argument("--requests", type=int, default=4000, help="in each of the runs")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8, help="answers written together in each mode")
    parser.add_argument("--max-waiting", type=int, default=64, help="of a replica, beyond those; more get 429")
    parser.add_argument(
        "--row-cost", type=float, default=ROW_COST, help="what each further row adds to a token's seconds (assumed)"
    )
    parser.add_argument("--machine", type=Path, help="what simulate_check measured, instead of --row-cost")
    parser.add_argument("--p95", type=float, help="seconds: say how many replicas keep 95 %% within them")
    parser.add_argument("--json", action="store_true")
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--share", type=float, help="thinking share, instead of decisions (default 0.5)")
    by.add_argument("--router", type=Path, help="folder of a router artefact that decides")
    parser.add_argument("--price", type=float, default=Policy().price, help="of a second, for --router")
    parser.add_argument(
        "--follow-load", action="store_true", help="with --router: seconds until a row is free count as expected"
    )
    options = parser.parse_args()
    try:
        found = predicted(options)
    except (VLRouteError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(found))
    else:
        Console().print(show(found))


def predicted(options: argparse.Namespace) -> dict[str, Any]:
    """What the command shows. InputError, ValueError or ArtefactError for what cannot be simulated."""
    if options.requests < 100 or options.max_waiting < 0:
        raise InputError("--requests must be at least 100 and --max-waiting 0 or more")
    if options.follow_load and options.router is None:
        raise InputError("--follow-load is about the router's decisions: give --router, too")
    records = list(read_records(options.records))
    classifier = ComplexityClassifier.load(options.router) if options.router else None
    sample = requests_of(records, classifier)
    if classifier is None:
        share = 0.5 if options.share is None else options.share
        ByShare(share)  # says so here, if there is no such share

        def chooses(number: int) -> ByShare | ByRouter:
            return ByShare(share, number)
    else:
        choosing = ByRouter(Policy(price=options.price), classifier.pace, options.follow_load)

        def chooses(number: int) -> ByShare | ByRouter:
            return choosing.again()

    inside = 2 * options.rows + options.max_waiting
    if options.machine:
        machine = replace(machine_of(options.machine), rows=options.rows, inside=inside)
    else:
        growth = tuple(1 + options.row_cost * k for k in range(max(options.rows, 1)))
        machine = Machine(growth, rows=options.rows, inside=inside)
    if options.trace:
        arrivals = [trace(options.trace)] * RUNS
    else:
        arrivals = [poisson(options.rate, options.requests, seed) for seed in range(RUNS)]
    return forecast(machine, arrivals, sample, chooses, options.replicas, options.p95)


if __name__ == "__main__":
    main()
