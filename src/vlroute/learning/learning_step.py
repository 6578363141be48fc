"""One step of continual learning, in a process of its own: `python -m vlroute.learning.learning_step` reads a job.

The process reads the store and writes a candidate into a new folder. It changes nothing else, so it can be killed at
any time. Its result is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from vlroute.decision.artifact import write_report
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.policy import Policy
from vlroute.errors import VLRouteError
from vlroute.files import replace_file
from vlroute.learning.candidate import (
    MIN_NEW,
    MIN_RATINGS,
    MOST_REQUESTS,
    RECENT,
    Candidate,
    HeldOut,
    train_candidate,
)
from vlroute.learning.comparison import Rule
from vlroute.learning.drift import measure_drift
from vlroute.learning.ratings import Ratings, asked, read_ratings
from vlroute.store import Store, StoredAnswer
from vlroute.types import ModelIdentity

#: Beside the artifact: what models that had not seen a rated request predict for it, see `HeldOut`.
HELD_OUT_FILE = "held_out.json"
#: The lowest priority of processes.
NICENESS = 19


@dataclass(frozen=True, slots=True)
class Job:
    """What a step needs.

    Attributes:
        store: File or URL of the store.
        base: Folder of the artifact that ratings correct.
        used: Folder of the artifact in use.
        out: Folder for the candidate; it does not exist yet.
        most_per_key: See `read_ratings`.
        seen: Number of ratings in the store at the last candidate. A further one is trained when `MIN_NEW` more have
            been given, or when old ones were deleted.
        rule: How the router decides, as the fields of a `Rule`; None: the price is read from the recent decisions.
        trust_encoder: See `ComplexityClassifier.load`.
        model: The model that answers now, see `ModelIdentity.as_card`; ratings of others are left out. None: the one
            that gave the latest answer.
    """

    store: str
    base: str
    used: str
    out: str
    most_per_key: int
    seen: int
    rule: Mapping[str, Any] | None = None
    trust_encoder: str | None = None
    model: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step found.

    Attributes:
        details: Figures for the history, as plain values.
        better: Whether the candidate should be used; None if none was trained.
    """

    details: Mapping[str, Any] = field(default_factory=dict)
    better: bool | None = None


def run_step(job: Job, now: float | None = None) -> StepResult:
    """Measure the drift; train a candidate if there are enough new ratings, and write it if it is better.

    Args:
        job: The job.
        now: The present, in seconds since 1970, UTC.

    Returns:
        The result.

    Raises:
        ArtifactError: An artifact cannot be read.
        StoreError: The store cannot be read.
    """
    now = time.time() if now is None else now
    base = ComplexityClassifier.load(job.base, job.trust_encoder)
    used = base if job.used == job.base else ComplexityClassifier.load(job.used, job.trust_encoder)
    with Store(job.store, create=False) as store:
        model = ModelIdentity.from_card(job.model)
        if model is None and (latest := store.recent(0.0, 1)):
            model = latest[0].model
        found = read_ratings(store, job.most_per_key, model)
        answers = store.recent(now - RECENT, MOST_REQUESTS, model)
    ratings = found.used
    recent = [one for one in ratings if one.request.created >= now - RECENT]
    details: dict[str, Any] = {
        "ratings": len(ratings), "given": found.given, "over_limit": found.over_limit,
        "drift": asdict(measure_drift(used, answers, recent)),
        "cannot_learn": cannot_learn(found), "warnings": [],
    }  # fmt: skip
    if model is not None and base.model is not None and base.model.differs(model):
        details["warnings"].append(
            f"The artifact with which learning began was trained for {base.model}, but {model} answers: train one for "
            "this model, and begin again with it (--restart)"
        )
    # of all ratings: the number of those that are used no longer grows when it has reached a limit
    new = found.given - job.seen if found.given >= job.seen else found.given
    if len(ratings) < MIN_RATINGS or new < MIN_NEW:
        return StepResult(details)
    held_out: HeldOut = {}
    if job.used != job.base:
        file = Path(job.used) / HELD_OUT_FILE
        try:
            held_out = _read_held_out(file)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            details["warnings"].append(
                f"{file} cannot be read ({error}). The step goes on without it, which favors the artifact in use. If "
                "you have a backup, restore the file; the next artifact does not need it"
            )
    rule = usual_rule(answers) if job.rule is None else Rule(**job.rule)
    candidate = train_candidate(base, used, held_out, ratings, [asked(one) for one in answers], rule, now - RECENT, now)
    details["comparison"] = candidate.comparison.as_dict()
    if candidate.comparison.is_better:
        _write(Path(job.out), candidate, details, job)
    return StepResult(details, candidate.comparison.is_better)


def usual_rule(answers: Sequence[StoredAnswer]) -> Rule:
    """The rule at the median price of the decisions on recent answers, with the default coverage and fallback mode."""
    prices = []
    for one in answers:
        extra = asked(one).extra_seconds
        if extra > 0 and "threshold" in one.decision:
            prices.append(float(one.decision["threshold"]) / extra)
    return Rule(median(prices)) if prices else Rule.of(Policy())


def cannot_learn(ratings: Ratings) -> list[str]:
    """What the ratings say nothing about, as sentences for the report."""
    found = []
    for mode, count in ratings.alternatives.items():
        if not count:
            chosen = "Thinking" if mode == "instruct" else "Instruct"
            name = mode.capitalize()
            found.append(
                f"No answer of {name} is rated where the router chooses {chosen}: whether {name} would be right there "
                "cannot be learned. Set explore= or label_share=, and ask for ratings of these answers"
            )
    if ratings.other_model:
        found.append(
            f"{ratings.other_model} ratings do not count, because another model than the present one gave the rated "
            "answers"
        )
    if ratings.incomplete:
        found.append(
            f"{ratings.incomplete} labels equal a rated answer, but no label that differs from one is rated: rate some "
            "of these too (vlroute feedback), so that labels can be used"
        )
    return found


def _read_held_out(file: Path) -> HeldOut:
    """The predictions beside a learned artifact. Many types of errors are raised if the file is damaged."""
    found = {
        group: (float(instruct), float(thinking))
        for group, (instruct, thinking) in json.loads(file.read_text("utf-8")).items()
    }
    if not all(0 <= p <= 1 for both in found.values() for p in both):
        raise ValueError("it contains a number that is no probability")
    return found


def _write(folder: Path, candidate: Candidate, details: Mapping[str, Any], job: Job) -> None:
    classifier = candidate.classifier
    classifier.card["learned"] = {"base": ComplexityClassifier.load(job.base, job.trust_encoder).fingerprint, **details}
    classifier.save(folder)
    replace_file(folder / HELD_OUT_FILE, json.dumps(candidate.held_out).encode(), private=True)
    write_report(folder, report(details))


def report(details: Mapping[str, Any]) -> str:
    """The figures of a step as Markdown.

    Args:
        details: See `StepResult`.

    Returns:
        The report.
    """
    drift, lines = details["drift"], ["# What was learned from feedback", ""]
    lines += [f"{details['ratings']} ratings; {details['over_limit']} more were left out, see `--most-per-key`.", ""]
    if (found := details.get("comparison")) is not None:
        low, high = 100 * found["low"], 100 * found["high"]
        lines += [
            f"Accuracy at equal seconds, minus that of the artifact in use before: {100 * found['difference']:+.1f} "
            f"points ({low:+.1f} to {high:+.1f}, 95 %), from {found['requests']} recent requests and "
            f"{found['ratings']} recent ratings. At the same price, {found['seconds']:+.2f} s per request.",
            "",
            "| requests that go | share | ratings of Instruct | of Thinking | gain of Thinking there |",
            "|---|---:|---:|---:|---:|",
        ]  # fmt: skip
        for name, key in (("from Instruct to Thinking", "to_thinking"), ("from Thinking to Instruct", "to_instruct")):
            one = found[key]
            gain = "unknown" if one["gain"] is None else f"{100 * one['gain']:+.0f} points"
            lines.append(
                f"| {name} | {one['share']:.1%} | {one['ratings_instruct']} | {one['ratings_thinking']} | {gain} |"
            )
        lines.append("")
    named = {
        "coverage of recent requests": _share(drift["coverage"]),
        "coverage in training": _share(drift["coverage_in_training"]),
        "expected minus observed accuracy": _points(drift["calibration"], drift["calibration_interval"]),
        "seconds / expected seconds": "unknown" if drift["latency"] is None else f"{drift['latency']:.2f}",
    }
    lines += ["| drift | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in named.items())]
    if remarks := [*details["warnings"], *details["cannot_learn"]]:
        lines += ["", *(f"- {sentence}." for sentence in remarks)]
    return "\n".join(lines) + "\n"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _points(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "unknown"
    ends = "" if interval is None else f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
    return f"{100 * value:+.1f}{ends} points"


def main() -> None:
    """Run the job on stdin. Exit code 2, with the reason on stderr, after an error that vlroute raises on purpose."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    job = Job(**json.load(sys.stdin))
    try:
        result = run_step(job)
    except (VLRouteError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(asdict(replace(result, details=dict(result.details)))))


if __name__ == "__main__":
    main()
