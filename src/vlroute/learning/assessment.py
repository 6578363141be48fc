"""Assess a trained router on files of records that it has not seen: `vlroute eval`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vlroute.decision.classifier import ComplexityClassifier, Prediction
from vlroute.decision.latency import LatencyModel
from vlroute.decision.policy import Policy
from vlroute.decision.selector import ModeSelector
from vlroute.decision.target import Target
from vlroute.learning.advice import few_records, result_warnings
from vlroute.learning.assumptions import measure_latency
from vlroute.learning.calibration import calibration_set
from vlroute.learning.evaluate import Evaluation, by_topic, evaluate, sampling_of
from vlroute.learning.evidence import read_evidence
from vlroute.learning.folds import Together
from vlroute.learning.out_of_fold import OutOfFold
from vlroute.learning.seen import seen_records
from vlroute.learning.stages import StageComparison, compare_stages, later_probabilities
from vlroute.records import Record, Skipped, outcomes, read_all
from vlroute.types import MODES, Preset, Stage

_NOT_NEW = (
    "{}: not new. The router was trained on this file, so its figures are too good; give records that it has not seen, "
    "or read the out-of-fold figures in the report.md of the router"
)
_SOME_NOT_NEW = (
    "not all records are new. The router was trained on {} of these {} records, such as {!r}, so its figures are too "
    "good; give records that it has not seen, or read the out-of-fold figures in the report.md of the router"
)
_UNKNOWN = (
    "the router does not recognize all records that it was trained on, so it is unknown whether all of these records "
    "are new to it"
)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What `evaluate_router` found.

    Attributes:
        evaluation: Figures of all records.
        topics: Figures of each topic with at least `LEAST` records, the largest first; empty if there is only one.
        files: SHA-256 of each file of records, by its path.
        warnings: Why the figures may be too good.
        target: What the policy was computed from.
        policy: The policy.
        timed: Whether the records contain seconds of both modes. Otherwise the latency model of the router gives the
            seconds of the tokens.
        skipped: Number of lines that could not be used.
        stages: What each set of stages of the router adds at the target, on the records with evidence; empty if the
            router has no later stages or the records have no evidence for them.
        notes: What could not be evaluated, in sentences without a full stop.
        recommended: The stages that the router recommends.
        advice: Warnings about the router and about few records, in sentences without a full stop.
    """

    evaluation: Evaluation
    topics: dict[str, Evaluation]
    files: dict[str, str]
    warnings: list[str]
    target: float | Preset
    policy: Policy
    timed: bool
    skipped: int = 0
    stages: Sequence[StageComparison] = ()
    notes: Sequence[str] = ()
    recommended: Sequence[Stage] = ("prompt",)
    advice: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """How the records relate to the training of the router, for titles."""
        if not self.warnings:
            return "new records"
        return "perhaps new" if self.warnings == [_UNKNOWN] else "not all new"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values.

        Returns:
            Values that can be written as JSON.
        """
        return {
            "files": self.files,
            "warnings": self.warnings,
            "advice": list(self.advice),
            "target": self.target,
            "policy": asdict(self.policy),
            "seconds_measured": self.timed,
            "skipped_lines": self.skipped,
            **asdict(self.evaluation),
            "stages": [asdict(one) for one in self.stages],
            "recommended_stages": list(self.recommended),
            "notes": list(self.notes),
            "topics": {name: asdict(one) for name, one in self.topics.items()},
        }


def evaluate_router(
    paths: Sequence[str | Path],
    router: str | Path,
    target: float | Preset,
    *,
    together: Together = "record",
    strict: bool = False,
    console: Console | None = None,
) -> Assessment:
    """Evaluate a trained router on records, with and without captions.

    The latency model is that of the records if they were timed, otherwise that of the router. Later stages are compared
    if the router has them and the evidence files of the records exist, see `evidence_file`.

    Args:
        paths: Files of records.
        router: Folder of the router.
        target: A price, or a preset, which the calibration set of the router turns into a price.
        together: "text" if records of equal prompt and caption depend on each other, such as repetitions of a
            question: intervals then count them as one draw. "record" if each was drawn alone.
        strict: Raise an error for the first unusable line, instead of skipping it.
        console: Shows progress and warnings.

    Returns:
        The figures.

    Raises:
        InputError: A file cannot be read or contains no usable record.
        ArtifactError: The router cannot be used, or a preset needs its calibration set and it has none.
        ValueError: An invalid price.
    """
    console = console or Console(stderr=True)
    classifier = ComplexityClassifier.load(router)
    records, skipped = read_all(paths, strict=strict, console=console)
    files = {str(path): hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    timed = all(any(o.seconds is not None and o.tokens for o in outcomes(records, mode)) for mode in MODES)
    latency = measure_latency(records) if timed else classifier.latency
    policy = _policy(target, classifier, latency)
    topics = by_topic([record.topic for record in records])
    with Progress(console=console) as progress:
        given, bare = [], []
        for record in progress.track(records, description="predicting"):
            given.append(classifier.predict(record.prompt, record.caption, record.tools))
            bare.append(classifier.predict(record.prompt, tools=record.tools) if record.caption else given[-1])
        task = progress.add_task("intervals", total=1 + len(topics))

        def on(at: Sequence[int]) -> Evaluation:
            unseen = OutOfFold([[given[index] for index in at]], [[bare[index] for index in at]], together=together)
            found = evaluate([records[index] for index in at], unseen, policy, latency)
            progress.advance(task)
            return found

        everything = on(range(len(records)))
        of_topics = {name: on(at) for name, at in topics.items()}
    heads = classifier.stages
    return Assessment(
        everything, of_topics, files, _warnings(files, classifier, records), target, policy, timed, skipped.count,
        *_stages(paths, records, given, classifier, target, latency, together, strict),
        recommended=heads.recommended if heads else ("prompt",),
        advice=few_records(len(records)) + result_warnings(everything),
    )  # fmt: skip


def _stages(
    paths: Sequence[str | Path],
    records: Sequence[Record],
    given: Sequence[Prediction],
    classifier: ComplexityClassifier,
    target: float | Preset,
    latency: LatencyModel,
    together: Together,
    strict: bool,
) -> tuple[list[StageComparison], list[str]]:
    """Compare the stages of a router on the records with evidence. The sentences say what cannot be compared."""
    heads, calibration = classifier.stages, classifier.calibration
    if heads is None or calibration is None:
        return [], []
    skipped = Skipped()
    evidence = read_evidence(paths, None if strict else skipped)
    notes = [f"evidence: {skipped}"] if skipped.count else []
    expected = heads.source.fingerprint
    own_model = [i for i, one in enumerate(records) if not expected or one.fingerprint in ("", expected)]
    rows = [i for i in own_model if records[i].id in evidence]
    if not rows:
        if evidence and not own_model:
            notes.append("stages are not compared: the records come from other checkpoints than the router's evidence")
        elif heads.recommended != ("prompt",):
            stages = ", ".join(heads.recommended)
            notes.append(
                f"the router recommends the stages {stages}; the records have no evidence, so only prompt is evaluated"
            )
        return [], notes
    if len(rows) < len(records):
        notes.append(f"stages are compared on the {len(rows)} records with evidence of the router's model")
    own = [evidence[records[i].id] for i in rows]
    later = later_probabilities(heads, [given[i] for i in rows], own)
    measured = calibration_set(records, given, np.asarray(rows), later, limit=None)
    sampling = sampling_of([records[i] for i in rows], OutOfFold([], [], together=together))
    shared = any(row.shared_prompt for row in own)
    return compare_stages(calibration, latency, shared, target, measured, sampling), notes


def _policy(target: float | Preset, classifier: ComplexityClassifier, latency: LatencyModel) -> Policy:
    if not isinstance(target, str):
        return Policy(price=target)
    selector = ModeSelector(classifier, Policy(), None)
    selector.latency = latency
    return Policy(price=selector.operating_point(Target(preset=target)).price)


def _warnings(files: Mapping[str, str], classifier: ComplexityClassifier, records: Sequence[Record]) -> list[str]:
    try:
        seen = {one["sha256"] for one in classifier.card["provenance"]["data"]}
    except (KeyError, TypeError):
        seen = set()
    if found := [_NOT_NEW.format(name) for name, digest in files.items() if digest in seen]:
        return found
    hashes = classifier.record_hashes
    complete = hashes is not None and hashes.complete
    if some := seen_records(classifier, records):
        least = "" if complete else "at least "
        return [_SOME_NOT_NEW.format(f"{least}{len(some)}", len(records), some[0].id)]
    return [] if complete else [_UNKNOWN]
