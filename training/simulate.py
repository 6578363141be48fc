"""How many replicas does a load need, and what will its users wait? `python -m training.simulate RECORDS --rate 20`

Requests arrive by chance (Poisson) and cost what the records of `vlroute collect` cost on an idle machine; answers that
are written together share forward passes, as in `vlroute serve`. docs/scaling.md says what this does not see.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from training.simulation.run import drawn, poisson, replicas_needed, simulate
from training.simulation.work import Machine, Work, per_token, works
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Policy
from vlroute.errors import InputError, VLRouteError
from vlroute.learning.records import Record, read_records
from vlroute.modes import Mode

REQUESTS = 4000


def chosen(records: list[Record], share: float | None, router: Path | None, price: float) -> list[Mode]:
    """The mode of each record: so many by chance, or as the router artefact decides at this price and its pace."""
    if router is None:
        thinks = np.random.default_rng(0).random(len(records)) < (0.5 if share is None else share)
        return ["thinking" if one else "instruct" for one in thinks]
    classifier = ComplexityClassifier.load(router)
    policy, pace = Policy(price=price), classifier.pace or Pace()
    predictions = [classifier.predict(record.prompt, record.caption) for record in records]
    return [policy.decide(one, pace, record.caption).mode for one, record in zip(predictions, records, strict=True)]


def forecast(machine: Machine, sample: list[Work], rate: float, replicas: int, p95: float | None) -> dict[str, Any]:
    """Figures of one load, and with `p95` the replicas it needs."""
    arrivals, requests = poisson(rate, REQUESTS), drawn(sample, REQUESTS)
    with Progress(transient=True, console=Console(stderr=True)) as progress:
        task = progress.add_task("simulating", total=REQUESTS)
        found = simulate(machine, arrivals, requests, replicas, advance=lambda n: progress.advance(task, n))
        needed = None if p95 is None else replicas_needed(machine, arrivals, requests, p95)
    return {
        "rate": rate, "replicas": replicas, "p50": found.quantile(0.5), "p95": found.quantile(0.95),
        "thinking": found.thinking, "busy": found.busy, "refused": found.refused / len(arrivals),
        **({} if p95 is None else {"asked_p95": p95, "needed": needed}),
    }  # fmt: skip


def show(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['rate']:g} requests a second on {found['replicas']} replicas")
    table.add_column("")
    table.add_column("predicted", justify="right")
    for name, value in (
        ("seconds of an answer, median", f"{found['p50']:.2f}"), ("95 % take at most", f"{found['p95']:.2f}"),
        ("thinking share", f"{found['thinking']:.0%}"), ("machines busy", f"{found['busy']:.0%}"),
        ("refused (429)", f"{found['refused']:.1%}"),
    ):  # fmt: skip
        table.add_row(name, value)
    if "needed" in found:
        said = str(found["needed"]) if found["needed"] else "more than 256"
        table.add_row(f"replicas for 95 % within {found['asked_p95']:g} s", said)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="what `vlroute collect` wrote: tokens and seconds of both modes")
    parser.add_argument("--rate", type=float, required=True, help="requests a second, of all users")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rows", type=int, default=8, help="answers written together in each mode")
    parser.add_argument("--row-cost", type=float, default=0.05, help="what each further row adds to a token's seconds")
    parser.add_argument(
        "--cores", type=float, default=1.0, help="what proceeds at the same time at full speed; 1: a GPU"
    )
    parser.add_argument("--p95", type=float, help="seconds: say how many replicas keep 95 %% within them")
    parser.add_argument("--json", action="store_true")
    by = parser.add_mutually_exclusive_group()
    by.add_argument("--share", type=float, help="thinking share, instead of decisions")
    by.add_argument("--router", type=Path, help="folder of a router artefact that decides")
    parser.add_argument("--price", type=float, default=Policy().price, help="of a second, for --router")
    options = parser.parse_args()
    try:
        if options.share is not None and not 0 <= options.share <= 1:
            raise InputError(f"--share must lie in 0..1, not {options.share:g}")
        records = list(read_records(options.records))
        token = per_token(records)
        steps = tuple(token * (1 + options.row_cost * k) for k in range(options.rows))
        machine = Machine(steps, options.cores, options.rows)
        sample = works(records, chosen(records, options.share, options.router, options.price))
        found = forecast(machine, sample, options.rate, options.replicas, options.p95)
    except (VLRouteError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(found))
    else:
        Console().print(show(found))


if __name__ == "__main__":
    main()
