"""The page of the simulated coverage of intervals: docs/benchmarks/intervals.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.bench.page import table
from vlroute.decision.wilson import wilson_interval

PAGE = """\
# Do the intervals hold their level?

Written by `python -m training.bench.coverage` from `intervals.json`. Every interval that vlroute prints is a 95 %
interval. This simulation draws samples from populations with known true values and counts how often the interval
contains the true value.

## What an interval covers

* **`vlroute eval`, `collect`, `demo`, `Router.outlook`**: the sampling of the records, with the router as it is.
* **`vlroute train` and `curves`**: also the randomness of fitting. The folds share training records, and the prediction
  for one record depends on the labels of others. Therefore the variance that is due to the predictions is multiplied by
  1 + folds / (folds - 1), the corrected variance of Nadeau and Bengio (2003). For five folds such intervals are 1.5
  times as wide.
* No interval covers other kinds of requests, another pair of models, or the choice of the best of several routers.
* Records count as independent draws. With `--together text` (the default of `train`) all records of one prompt and
  caption count as one draw.

## How they are computed

| figure | interval |
| --- | --- |
| accuracies, Brier score, area of the oracle | Wilson (1927), effective sample size of Korn and Graubard (1998) |
| area over random | variance of the influence values (Hampel 1974; for the AUC DeLong et al. 1988), Student's t |
| gain AUC | Wilson, at the larger one of DeLong's variance and Newcombe's (2006, method 5) |
| differences of accuracies | paired, Student's t, after Agresti and Min (2005) |
| headroom captured, share of the oracle's area | Fieller (1954); none if the denominator may be 0 |
| seconds | Student's t on the logarithm of the mean |

Half a record (or one) of each kind is added to the variances, so that a sample without variation does not give an
interval of width 0; for the headroom captured, two answers that the router lost are added as well. These two answers
and the larger variance of the gain AUC keep the intervals of very good routers at their level; intervals of other
routers become slightly too wide. Wilson's interval covers less than 95 % where hardly one failure is expected, for
example 86 % for a true accuracy of 0.9995 and 300 records: one failure already excludes this value (Brown, Cai and
DasGupta 2001). It also covers less (90 %) for the Brier score of a very good router on 100 records, because few records
make up most of this score.

An ECE has no interval, because it is above 0 by chance alone. Reports show its *chance level* instead: 95 % of samples
of this size stay below it if the probabilities are right (Bröcker and Smith 2007). APGR, CPT, AIQ, nAUC and QNC have no
interval: they divide by a gap that may be 0, or take a minimum or a hull of a noisy curve.
The code is `vlroute.learning.intervals`.

{parts}
"""

FIXED = """\
## Fixed scores, as in `vlroute eval`

Share of {simulations:,} simulated samples whose interval contains the true value, in percent, with the 95 % interval of
this share. **Bold**: significantly outside 93 to 97. *Given*: how often there is an interval, if not always; the share
is of these. Where the modes differ on one record of twenty, 100 records hold five such records: counts so small cannot
give exactly 95 %, and the intervals are rather too wide than too narrow."""
FOLDED = """\
## Out-of-fold area, as in `vlroute train`

Ridge regression of the gain on 300 features, five folds cut in two ways. *Noise*: no feature tells anything. *Signal*:
one of them does. *Uncorrected*: as if the scores were fixed. *Holds the mean*: how often the interval holds the mean
area of all files."""
REAL = """\
## The real classifier

`vlroute train` with its defaults, on files of {records} drawn questions each. *Noise*: labels by chance. *Signal*:
three of 60 words make a question hard for Instruct."""


def render(found: Mapping[str, Mapping[str, Any]], about: Mapping[str, str]) -> str:
    """The page. `about`: what each scenario is, by its name."""
    parts = _fixed(found["fixed"], about) if found["fixed"] else []
    if found["folds"]:
        parts += [FOLDED, "\n".join(_folded(found["folds"]))]
    for records in sorted({int(name.split(", ")[1]) for name in found["real"]}):
        parts += [REAL.format(records=records), "\n".join(_real(found["real"], records))]
    return PAGE.format(parts="\n\n".join(parts))


def share(held: int, of: int) -> str:
    """A percentage with its Wilson interval; bold where that lies outside 93 to 97."""
    low, high = _bounds(held, of)
    text = f"{held / of:.1%} ({low:.1%} – {high:.1%})".replace("%", "")
    return f"**{text}**" if high < 0.93 or low > 0.97 else text


def _bounds(held: int, of: int) -> tuple[float, float]:
    mean = held / of
    return wilson_interval(mean, mean * (1 - mean) / of, of)


def _fixed(found: Mapping[str, Any], about: Mapping[str, str]) -> list[str]:
    scenarios: dict[str, dict[int, dict[str, list[int]]]] = {}
    for name, held in found.items():
        scenario, n = name.rsplit(", ", 1)
        scenarios.setdefault(scenario, {})[int(n)] = held
    simulations = max(of for by_size in scenarios.values() for held in by_size.values() for _, _, of in held.values())
    parts = [FIXED.format(simulations=simulations)]
    for scenario in [*(name for name in about if name in scenarios), "seconds"]:
        by_size = scenarios.get(scenario, {})
        if not by_size:
            continue
        sizes = sorted(by_size)
        rows = [[quantity, *(_cell(by_size[n].get(quantity)) for n in sizes)] for quantity in by_size[sizes[0]]]
        text = about.get(scenario, "log-normal, with a standard deviation of 0.7 of the logarithm")
        head = ["quantity", *(f"{n} records" for n in sizes)]
        parts += [f"**{scenario.capitalize()}**: {text}.", "\n".join(table(head, rows))]
    return parts


def _cell(counts: Sequence[int] | None) -> str:
    if counts is None or not counts[1]:
        return "–"
    held, given, samples = counts
    return share(held, given) + (f", given {given / samples:.0%}" if given < samples else "")


def _folded(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, one in sorted(found.items(), key=lambda item: (item[0].split(", ")[0], int(item[0].split(", ")[1]))):
        kind, n = name.split(", ")
        for how in ("uncorrected", "corrected"):
            counts = one[how]
            cells = [_percent(counts[key], one["files"]) for key in ("above zero", "below zero", "holds the mean area")]
            rows.append([kind, n, str(one["files"]), f"{one['mean area']:.2f}", how, *cells])
    head = ["kind", "records", "files", "mean area", "interval", "above zero", "below zero", "holds the mean"]
    return table(head, rows)


def _real(found: Mapping[str, Any], records: int) -> list[str]:
    rows = []
    for kind in ("noise", "signal"):
        some = [one for name, one in found.items() if name.startswith(f"{kind}, {records},")]
        if some:
            above = sum(one["interval"][0] > 0 for one in some)
            below = sum(one["interval"][1] < 0 for one in some)
            mean = sum(one["area"] for one in some) / len(some)
            width = sum(one["interval"][1] - one["interval"][0] for one in some) / len(some)
            counts = (_percent(above, len(some)), _percent(below, len(some)))
            rows.append([kind, str(len(some)), f"{mean:.2f}", f"{width:.2f}", *counts])
    return table(["kind", "files", "mean area", "mean width of the interval", "above zero", "below zero"], rows)


def _percent(held: int, of: int) -> str:
    low, high = _bounds(held, of)
    return f"{held / of:.1%} ({low:.1%} – {high:.1%})"
