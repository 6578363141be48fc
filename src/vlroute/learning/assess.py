"""`vlroute eval`: what a trained router is worth on records that it was not trained on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.selector import ModeSelector
from vlroute.decision.target import Preset, Target
from vlroute.errors import InputError
from vlroute.learning.assumptions import measure_latency
from vlroute.learning.evaluate import Evaluation, evaluate, sampling_of, seconds_of, trade_offs
from vlroute.learning.folds import Together
from vlroute.learning.metrics import Values
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.learning.plots import Language
from vlroute.learning.report import as_json, sections, write_page
from vlroute.records import Record, Skipped, outcomes, read_all
from vlroute.types import MODES

LEAST = 20  # records; of fewer a family's figures say nothing

_NOT_NEW = (
    "{}: not new. The router was trained on this very file, so its figures are flattered; give records that it has not "
    "seen, or read the out-of-fold figures in the router's own report.md"
)
_UNKNOWN = "the router does not say what it was trained on: whether these records are new to it cannot be told"


@dataclass(frozen=True, slots=True)
class Assessment:
    """A router on `records` records. `families`: by name, the largest first; none if there is only one.

    `files`: SHA-256 of each record file, by its path. `warnings`: why the figures may be too good.
    `target`: what `policy` was computed from. `timed`: whether the records hold seconds for both modes; otherwise
    the seconds follow from tokens and the router's latency model.
    `skipped`: lines that could not be used.
    """

    evaluation: Evaluation
    families: dict[str, Evaluation]
    files: dict[str, str]
    warnings: list[str]
    target: float | Preset
    policy: Policy
    timed: bool
    skipped: int = 0

    @property
    def kind(self) -> str:
        """How the records relate to the router's training, for titles."""
        if not self.warnings:
            return "new records"
        return "perhaps new" if self.warnings == [_UNKNOWN] else "not all new"


def evaluate_router(
    paths: Sequence[str | Path],
    router: str | Path,
    target: float | Preset,
    *,
    together: Together = "record",
    strict: bool = False,
    console: Console | None = None,
) -> Assessment:
    """Let the artifact in the folder `router` predict every record, with and without its caption, and compare.

    `target`: a price, or a preset, which becomes a price on the router's calibration set. The latency model is
    that of the records where they were timed, otherwise the router's. `together`: "text" if
    records of equal prompt and caption depend on each other (the same question several times): intervals then count
    them as one draw; "record" if each was drawn alone.
    `strict`: raise an error for a line that cannot be used, instead of skipping and counting it.
    InputError for files that cannot be used or hold no record; ArtifactError for a router that cannot be used, or has
    nothing to resolve a preset on; ValueError for an impossible price.
    """
    classifier = ComplexityClassifier.load(router)
    records, skipped = read_all(paths, strict=strict, console=console or Console())
    files = {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    timed = all(any(o.seconds is not None and o.tokens for o in outcomes(records, mode)) for mode in MODES)
    latency = measure_latency(records) if timed else classifier.latency
    policy = _policy(target, classifier, latency)
    families = {name: at for name, at in _families(records).items() if len(at) >= LEAST}
    with Progress(console=console) as progress:
        given, bare = [], []
        for record in progress.track(records, description="predicting"):
            given.append(classifier.predict(record.prompt, record.caption))
            bare.append(classifier.predict(record.prompt) if record.caption else given[-1])
        task = progress.add_task("intervals", total=1 + len(families))

        def on(at: Sequence[int]) -> Evaluation:
            unseen = OutOfFold([[given[index] for index in at]], [[bare[index] for index in at]], together=together)
            found = evaluate([records[index] for index in at], unseen, policy, latency)
            progress.advance(task)
            return found

        everything = on(range(len(records)))
        by_family = {name: on(at) for name, at in families.items()}
    return Assessment(
        everything, by_family, files, _warnings(files, classifier.card), target, policy, timed, skipped.count
    )


def as_page(found: Assessment, router: str | Path) -> str:
    """The report as Markdown."""
    files = ", ".join(f"`{Path(name).name}` ({digest[:12]}…)" for name, digest in found.files.items())
    seconds = "measured" if found.timed else "as many tokens take at the router's pace: the records are not timed"
    wished = f"policy {found.target}, " if isinstance(found.target, str) else ""
    parts = [
        f"# Router report: {found.kind}",
        *(f"> **{warning}.**" for warning in found.warnings),
        f"{found.evaluation.records} records from {files}; router `{Path(router).name}`, "
        f"{wished}price {found.policy.price:.4g}. Seconds are {seconds}."
        + (f" Skipped lines that could not be used: {found.skipped}." if found.skipped else ""),
        *sections(found.evaluation, found.families),
    ]
    return "\n\n".join(parts) + "\n"


def as_values(found: Assessment, router: str | Path) -> dict[str, Any]:
    """The same as plain values, ready for JSON."""
    return {
        "router": str(router),
        "files": found.files,
        "warnings": found.warnings,
        "wish": found.target,
        "policy": asdict(found.policy),
        "seconds_measured": found.timed,
        "skipped_lines": found.skipped,
        **as_json(found.evaluation),
        "families": {name: as_json(one) for name, one in found.families.items()},
    }


def _policy(target: float | Preset, classifier: ComplexityClassifier, latency: LatencyModel) -> Policy:
    if not isinstance(target, str):
        return Policy(price=target)
    grader = ModeSelector(classifier, Policy(), None)
    grader.latency = latency
    return Policy(price=grader.operating_point(Target(preset=target)).price)


def _families(records: Sequence[Record]) -> dict[str, list[int]]:
    """Places of the records by family, the largest first; nothing if there is only one."""
    places: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        places.setdefault(record.family or "unnamed", []).append(index)
    return dict(sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))) if len(places) > 1 else {}


def _warnings(files: Mapping[str, str], card: Mapping[str, Any]) -> list[str]:
    try:
        seen = {one["sha256"] for one in card["provenance"]["data"]}
    except (KeyError, TypeError):
        return [_UNKNOWN]
    return [_NOT_NEW.format(name) for name, digest in files.items() if digest in seen]


def write_curves(
    records: Sequence[Record],
    unseen: OutOfFold | Values,
    out: str | Path,
    *,
    language: Language = "en",
    folds: int = 5,
    together: Together = "text",
) -> list[Path]:
    """Write the figures and `curves.html` for `records` into the folder `out`; the paths written, the page last.

    `unseen`: predictions by models that had not seen the records, from `out_of_fold` or `read_oof` (`[2, n]`).
    Those of several seeds are averaged. Seconds are as recorded; where only tokens are known, what they take at
    the records' own pace. `folds`, `together`: how the records were cut for predictions that come as an array;
    `OutOfFold` says it itself. InputError for no records, or predictions for another number.
    """
    p = _mean_over_seeds(unseen) if isinstance(unseen, OutOfFold) else unseen
    if not records or p.shape != (2, len(records)):
        raise InputError(f"need at least one record and two probabilities each, not {len(records)} and {p.shape}")
    sampling = sampling_of(records, unseen if isinstance(unseen, OutOfFold) else OutOfFold([], [], folds, together))
    right = np.asarray([[float(o.correct) for o in outcomes(records, mode)] for mode in MODES])
    found = trade_offs(
        p[1] - p[0],
        right,
        seconds_of(records, measure_latency(records)),
        np.asarray([float(len(record.prompt)) for record in records]),
        [record.family for record in records],
        sampling=sampling,
    )
    measured = all(any(o.seconds is not None for o in outcomes(records, mode)) for mode in MODES)
    return write_page(Path(out), found, p, right, language=language, measured=measured, sampling=sampling)


def read_oof(path: str | Path, records: Sequence[Record], *, skipped: Skipped | None = None) -> Values:
    """p_instruct and p_thinking `[2, n]` in the order of `records`, from the file that `train(oof=…)` writes.

    Lines for other records are left out.

    Args:
        path: the file.
        records: those to find.
        skipped: collects lines that cannot be used. These lines are left out, and the same number of records may lack a
            line and get NaN. Without `skipped`, such lines raise.

    Raises:
        InputError: the file cannot be read, or a record has no line. Without `skipped`, also if a line is not `{"id":
            …, "p_instruct": …, "p_thinking": …}` with probabilities, or repeats an id; the error names file and line.
    """
    path = Path(path)
    found: dict[str, tuple[float, float]] = {}
    broken = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the file that retraining wrote") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            try:
                name, p = _prediction(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}:{number}: {error}") from error
            if name in found:
                raise InputError(f"{path}:{number}: id {name!r} came before")
        except InputError as error:
            if skipped is None:
                raise
            broken += 1
            skipped.add(error)
            continue
        found[name] = p
    if not found:
        why = f" ({skipped})" if skipped is not None and skipped.count else ""
        raise InputError(f"{path}: no out-of-fold predictions; expected the file that vlroute train --oof wrote{why}")
    missing = [record.id for record in records if record.id not in found]
    if len(missing) > broken:
        raise InputError(
            f"{path}: no prediction for {len(missing)} of {len(records)} records, the first {missing[0]!r}; "
            "give the records that the router was trained from"
        )
    nothing = (math.nan, math.nan)
    return np.asarray([[found.get(record.id, nothing)[mode] for record in records] for mode in (0, 1)])


def _prediction(row: Any) -> tuple[str, tuple[float, float]]:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise InputError("expected a JSON object with a string 'id'")
    for name in ("p_instruct", "p_thinking"):
        p = row.get(name)
        if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
            raise InputError(f"{name!r} must be a number 0 to 1, not {p!r}")
    return row["id"], (float(row["p_instruct"]), float(row["p_thinking"]))


def _mean_over_seeds(unseen: OutOfFold) -> Values:
    p = np.asarray([[(one.p_instruct, one.p_thinking) for one in seed] for seed in unseen.given], dtype=float)
    return np.asarray(p.mean(axis=0).T)
