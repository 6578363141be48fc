"""`vlroute eval`: what a trained router is worth on records that it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vlroute.decision.classifier import ComplexityClassifier
from vlroute.decision.pace import Pace
from vlroute.decision.policy import Policy
from vlroute.decision.target import Preset, Target
from vlroute.judge import Judge
from vlroute.learning.cross_fit import Unseen
from vlroute.learning.design import Together
from vlroute.learning.evaluate import Evaluation, evaluate
from vlroute.learning.fit import measure_pace
from vlroute.learning.records import Record, outcomes, read_all
from vlroute.learning.report import as_json, sections
from vlroute.modes import MODES

LEAST = 20  # records; of fewer a family's figures say nothing

_NOT_NEW = (
    "{}: not new. The router was trained on this very file, so its figures are flattered; give records that it has not "
    "seen, or read the out-of-fold figures in the router's own report.md"
)
_UNKNOWN = "the router does not say what it was trained on: whether these records are new to it cannot be told"


@dataclass(frozen=True, slots=True)
class Assessment:
    """A router on `records` records. `families`: by name, the largest first; none if there is only one.

    `files`: SHA-256 of each record file, by its path. `warnings`: why the figures may flatter. `wish` became `policy`.
    `timed`: whether the records hold seconds for both modes; if not they follow from tokens at the router's pace.
    `skipped`: lines that could not be used.
    """

    evaluation: Evaluation
    families: dict[str, Evaluation]
    files: dict[str, str]
    warnings: list[str]
    wish: float | Preset
    policy: Policy
    timed: bool
    skipped: int = 0

    @property
    def kind(self) -> str:
        """How the records relate to the router's training, for titles."""
        if not self.warnings:
            return "new records"
        return "perhaps new" if self.warnings == [_UNKNOWN] else "not all new"


def assess(
    paths: Sequence[str | Path],
    router: str | Path,
    wish: float | Preset,
    *,
    together: Together = "record",
    strict: bool = False,
    console: Console | None = None,
) -> Assessment:
    """Let the artefact in the folder `router` predict every record, with and without its caption, and compare.

    `wish`: a price, or a preset, which becomes a price on the router's own calibration set. Pace is that of the
    records where they were timed, as a running router follows it; else the router's own. `together`: "text" if
    records of equal prompt and caption depend on each other (the same question several times): intervals then count
    them as one draw; "record" if each was drawn alone.
    `strict`: raise an error for a line that cannot be used, instead of skipping and counting it.
    InputError for files that cannot be used or hold no record; ArtefactError for a router that cannot be used, or has
    nothing to resolve a preset on; ValueError for an impossible price.
    """
    classifier = ComplexityClassifier.load(router)
    records, skipped = read_all(paths, strict=strict, console=console or Console())
    files = {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    timed = all(any(o.seconds is not None and o.tokens for o in outcomes(records, mode)) for mode in MODES)
    pace = measure_pace(records) if timed else classifier.pace
    policy = _policy(wish, classifier, pace)
    families = {name: at for name, at in _families(records).items() if len(at) >= LEAST}
    with Progress(console=console) as progress:
        given, bare = [], []
        for record in progress.track(records, description="predicting"):
            given.append(classifier.predict(record.prompt, record.caption))
            bare.append(classifier.predict(record.prompt) if record.caption else given[-1])
        task = progress.add_task("intervals", total=1 + len(families))

        def on(at: Sequence[int]) -> Evaluation:
            unseen = Unseen([[given[index] for index in at]], [[bare[index] for index in at]], together=together)
            found = evaluate([records[index] for index in at], unseen, policy, pace)
            progress.advance(task)
            return found

        everything = on(range(len(records)))
        by_family = {name: on(at) for name, at in families.items()}
    return Assessment(
        everything, by_family, files, _warnings(files, classifier.card), wish, policy, timed, skipped.count
    )


def as_page(found: Assessment, router: str | Path) -> str:
    """The report as Markdown."""
    files = ", ".join(f"`{Path(name).name}` ({digest[:12]}…)" for name, digest in found.files.items())
    seconds = "measured" if found.timed else "as many tokens take at the router's pace: the records are not timed"
    wished = f"policy {found.wish}, " if isinstance(found.wish, str) else ""
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
        "wish": found.wish,
        "policy": asdict(found.policy),
        "seconds_measured": found.timed,
        "skipped_lines": found.skipped,
        **as_json(found.evaluation),
        "families": {name: as_json(one) for name, one in found.families.items()},
    }


def _policy(wish: float | Preset, classifier: ComplexityClassifier, pace: Pace) -> Policy:
    if not isinstance(wish, str):
        return Policy(price=wish)
    judge = Judge(classifier, Policy(), None)
    judge.pace = pace
    return Policy(price=judge.outlook(Target(preset=wish)).price)


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
