"""Training of a router: records in; artifact, report and out-of-fold predictions out."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vlroute.checks import Number, Whole
from vlroute.decision.artifact import CARD_FILE, REPORT_FILE, artifact_files, write_report
from vlroute.decision.policy import Policy
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import InputError
from vlroute.files import check_outputs, replace_file
from vlroute.hub import identify, resolve_pair
from vlroute.learning.advice import record_warnings, result_warnings, routing_warnings
from vlroute.learning.assumptions import Assumed, assumed, measure_latency, note
from vlroute.learning.calibration import calibration_set
from vlroute.learning.embeddings import embed_texts
from vlroute.learning.evaluate import Evaluation, evaluate
from vlroute.learning.evidence import evidence_file, read_evidence
from vlroute.learning.fit import Comparison, too_few
from vlroute.learning.folds import Together, folds_of
from vlroute.learning.out_of_fold import OutOfFold, default_seeds, out_of_fold
from vlroute.learning.report import comparison_table, figures_table, router_report, stages_table, ways_table
from vlroute.learning.seen import hash_training_records, training_digest
from vlroute.learning.stages import (
    StageComparison,
    compare_stages,
    evidence_warnings,
    fit_stages,
    recommended,
)
from vlroute.learning.start import load_start, refuse_same_files, refuse_same_records, start_warnings
from vlroute.records import Record, Skipped, read_all
from vlroute.sharing import router_folder
from vlroute.types import MODES, ModelIdentity, Stage

MIN_RECORDS = 50


def train_router(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    oof: str | Path | None = None,
    price: float = 0.1,
    folds: int = 5,
    seeds: int | None = None,
    together: Together = "text",
    encoder: str | None = STATIC,
    cache: str | Path | None = None,
    learner: str | None = None,
    jobs: int | None = None,
    model: str | Path | None = None,
    start: str | Path | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Train a router on record files and write it with its `report.md` into the folder `out`.

    The result is deterministic except for the date.

    Args:
        paths: Record files, `.jsonl` or `.jsonl.gz`. Later stages are trained if their evidence files exist, see
            `evidence_file`.
        out: Folder of the artifact.
        oof: A file for the out-of-fold predictions of each record, means over the seeds: the probabilities
            `p_instruct` and `p_thinking`, and the expected tokens `tokens_instruct` and `tokens_thinking`. It also
            contains `folds` and `together`, from which `vlroute curves` computes intervals, and in `record` a digest by
            which `curves` recognizes the records.
        price: Price of the routed rows of the report; the artifact works with any price.
        folds: Number of folds.
        seeds: How many times the records are assigned to folds. Default: 2; 1 for many records.
        together: What shares a fold, see `folds_of`.
        encoder: Name or folder of a text encoder, see `load_text_encoder`; None: words only.
        cache: A folder that stores the embeddings for the next run.
        learner: The only base learner to consider, see `fit_classifier`.
        jobs: Number of processes, see `out_of_fold`.
        model: The model that gave the answers, as `name` of `Router.from_pretrained`, if the records do not name it.
            The artifact records it, so that a router over another model can warn.
        start: Router to start from, see `router_folder`: its logits are the offset to which the new heads add. Useful
            with few records.
        strict: Raise an error for an unusable line, instead of skipping and counting it.
        console: Where everything is printed. Default: tables on stdout, progress and warnings on stderr. Warnings
            are also written into the report.

    Returns:
        The out-of-fold evaluation.

    Raises:
        OutputError: `out`, `oof` or `cache` cannot be written; this is checked before anything is read.
        SettingsError: A setting is out of range.
        InputError: The records cannot be used or are fewer than 50, or `start` cannot be used with these records.
        ArtifactError: There is no router `start`, or its files cannot be used.
        HubError: `start` is a name on the hub and cannot be loaded from there.
    """
    notes = console or Console(stderr=True)
    console = console or Console()
    folds = Whole(2).read("folds", folds)
    if seeds is not None:
        seeds = Whole(1).read("seeds", seeds)
    policy = Policy(price=Number(0).read("price", price))
    named = None if model is None else identify(*resolve_pair(model, None, None, out)[:2])
    out = Path(out)
    outputs = [out / name for name in (CARD_FILE, REPORT_FILE)]
    outputs += [] if oof is None else [Path(oof)]
    outputs += [] if cache is None else [Path(cache) / "new"]
    check_outputs(*outputs, inputs=[*paths, *map(evidence_file, paths)])
    before, overlap = None, []
    if start is not None:
        folder = router_folder(start)
        before = load_start(folder)
        overlap = start_warnings(before, start, folder)
        refuse_same_files(before, start, _hashes(paths))
        check_outputs(*outputs, inputs=artifact_files(folder))
    records, skipped = read_all(paths, strict=strict, console=notes)
    if before is not None and start is not None:
        refuse_same_records(before, start, records)
    if len(records) < MIN_RECORDS:
        why = f" ({skipped})" if skipped.count else ""
        raise InputError(too_few(len(records), "record", MIN_RECORDS, "to learn from") + why)
    warnings = [str(skipped)] * (skipped.count > 0)
    warnings += _print_warnings(notes, overlap)
    unusable = Skipped()
    evidence = read_evidence(paths, None if strict else unusable)
    if unusable.count:
        warnings += _print_warnings(notes, [f"evidence: {unusable}"])
    if evidence:
        warnings += _print_warnings(notes, evidence_warnings(records, evidence))
    warnings += _print_warnings(notes, record_warnings(records, together))
    latency = measure_latency(records)
    text = load_text_encoder(encoder) if encoder else None
    embedded = embed_texts(records, text, cache=cache, console=notes) if text else None
    seeds = seeds or default_seeds(records)
    with Progress(console=notes) as progress:
        task = progress.add_task("training", total=folds * seeds + 1)
        classifier, unseen = out_of_fold(
            records,
            folds=folds,
            seeds=seeds,
            together=together,
            text=embedded,
            learner=learner,
            jobs=jobs,
            start=None if before is None else (str(start), before),
            advance=lambda: progress.advance(task),
        )
    if classifier.encoder.text is not None:  # other texts have to be embedded from now on
        classifier.encoder = classifier.encoder.with_text(text)
    classifier.record_hashes = hash_training_records(classifier, records, before)
    evaluation = evaluate(records, unseen, policy, latency)
    settings = {
        "price": price, "folds": folds, "seeds": seeds, "folds keep together": together,
        "encoder offered": encoder or "none", "learner": learner or "the best",
    }  # fmt: skip
    if before is not None:
        settings["started from"] = f"{start} ({before.fingerprint})"
    provenance = {**_provenance(paths, records, settings), "skipped lines": skipped.count}
    if (found := assumed(records)) != Assumed({}, {}):
        provenance["assumed"] = {
            "tokens of an answer": found.tokens,
            "prefill and seconds per token": {mode: list(figures) for mode, figures in found.seconds.items()},
        }
    answered = named or _model_of(records, notes)
    fitted = None
    if evidence:
        fold = folds_of(records, folds, 0, together=together)
        fingerprint = answered.fingerprint if answered and answered.fingerprint else ""
        fitted = fit_stages(records, unseen.given[0], evidence, fold, fingerprint)
    rows, later = (None, None) if fitted is None else (fitted.rows, fitted.later)
    classifier.calibration = calibration_set(records, unseen.given[0], rows, later)
    stages: list[StageComparison] = []
    chosen: tuple[Stage, ...] = ("prompt",)
    if fitted is not None:
        shared = any(row.shared_prompt for row in evidence.values())
        stages = compare_stages(classifier.calibration, latency, shared)
        chosen = recommended(stages)
        classifier.stages = replace(fitted.heads, recommended=chosen)
        provenance["evidence"] = {"records": len(fitted.rows), **asdict(fitted.heads.source)}
    advice = result_warnings(evaluation) + routing_warnings(unseen.given[0], classifier.calibration, latency, price)
    comparisons = [Comparison(**one) for one in classifier.card["model_selection"]]
    if answered is not None:
        classifier.card["model"] = answered.as_card()
    classifier.card |= {"provenance": provenance, "metrics": asdict(evaluation), "warnings": warnings + advice}
    classifier.save(out)
    report = router_report(evaluation, provenance, note(records), comparisons, warnings + advice, stages, chosen)
    write_report(out, report)
    if oof is not None:
        _write_predictions(Path(oof), records, unseen)
    console.print(ways_table(evaluation), figures_table(evaluation), comparison_table(comparisons))
    if stages:
        console.print(stages_table(stages, chosen))
    console.print(note(records), markup=False, soft_wrap=True)
    _print_warnings(notes, advice)
    return evaluation


def _model_of(records: Sequence[Record], console: Console) -> ModelIdentity | None:
    """The model that the records name, if all name the same one."""
    named = {ModelIdentity(record.model, record.fingerprint or None) for record in records if record.model}
    if len(named) > 1:
        several = ", ".join(sorted(map(str, named)))
        console.print(f"warning: the records come from several models: {several}", style="yellow", markup=False)
    return named.pop() if len(named) == 1 else None


def _print_warnings(console: Console, warnings: list[str]) -> list[str]:
    """Print `warnings`, and return them."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    return warnings


def _provenance(paths: Sequence[str | Path], records: Sequence[Record], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": _hashes(paths),
        "records": len(records),
        "sets": dict(sorted(Counter(record.set for record in records).items())),
        "settings": settings,
        "libraries": {
            "python": platform.python_version(),
            **{
                name: metadata.version(name) for name in ("numpy", "scipy", "scikit-learn", "safetensors", "tokenizers")
            },
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _hashes(paths: Sequence[str | Path]) -> list[dict[str, str]]:
    """Name and SHA-256 of each file."""
    return [{"file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()} for path in paths]


def _write_predictions(path: Path, records: Sequence[Record], unseen: OutOfFold) -> None:
    lines = []
    for record, *seeds in zip(records, *unseen.given, strict=True):
        names = [f"{kind}_{mode}" for kind in ("p", "tokens") for mode in MODES]
        mean = {name: sum(getattr(one, name) for one in seeds) / len(seeds) for name in names}
        how = {"folds": unseen.folds, "together": unseen.together}
        line = {"id": record.id, **mean, **how, "record": training_digest(record)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(lines).encode())
