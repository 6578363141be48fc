"""The whole offline job: records in; artifact, report and out-of-fold predictions out."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vlroute.decision.artifact import CARD_FILE, REPORT_FILE, WEIGHTS_FILE
from vlroute.decision.classifier import Prediction
from vlroute.decision.policy import Policy
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.decision.tradeoff import CalibrationSet
from vlroute.errors import InputError
from vlroute.files import check_outputs, replace_file
from vlroute.hub import identify, resolve_pair
from vlroute.learning.advice import of_records, of_result, of_routing
from vlroute.learning.assumptions import Assumed, assumed, note
from vlroute.learning.embeddings import remember
from vlroute.learning.evaluate import Evaluation, evaluate
from vlroute.learning.fit import measure_latency
from vlroute.learning.folds import Together
from vlroute.learning.model_selection import Comparison
from vlroute.learning.out_of_fold import Unseen, cross_fit
from vlroute.learning.report import as_json, as_markdown, as_table, candidates_table, figures_table
from vlroute.records import Record, read_all
from vlroute.types import MODES, ModelIdentity

MIN_RECORDS = 50
MAX_CALIBRATION = 4096
MANY_RECORDS = 5000


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
    candidate: str | None = None,
    jobs: int | None = None,
    model: str | Path | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Learn a router from record files and write it with its `report.md` into the folder `out`.

    Tables are printed on `console` (default: stdout), progress and warnings too (default: stderr). Warnings are also
    written into the report: equal labels, a ranking no better than chance, a mode that gets no request.

    `price` is only for the routed rows of the report: the artifact serves any price. `oof`: a file for each
    record's out-of-fold p_instruct and p_thinking, means over the seeds. `seeds`: see `default_seeds`. `together`:
    what shares a fold, see `design.folds_of`. `encoder`: a text encoder by name or folder, see `load_text_encoder`;
    None: words only. `cache`: a folder that keeps its vectors for the next run. `candidate`: the
    only one to consider. `jobs`: processes at the same time, see
    `cross_fit`. `model`: the pair that gave the answers, as `name` of `Router.from_pretrained`, if the records do not
    name it; the artifact records it, so that a router over another pair can warn. `strict`: raise an error for a line
    that cannot be used, instead of skipping and counting it. Deterministic except for the date.

    Raises:
        OutputError: `out`, `oof` or `cache` cannot be written; checked before anything is read.
        InputError: the records cannot be used or are fewer than 50, or a setting is out of range.
    """
    notes = console or Console(stderr=True)
    console = console or Console()
    if folds < 2 or (seeds is not None and seeds < 1) or not 0 <= price < math.inf:
        raise InputError(f"need folds >= 2, seeds >= 1 and a finite price >= 0, not {folds}, {seeds} and {price}")
    policy = Policy(price=price)
    named = None if model is None else identify(*resolve_pair(model, None, None, out)[:2])
    out = Path(out)
    outputs = [out / name for name in (CARD_FILE, WEIGHTS_FILE, REPORT_FILE)]
    outputs += [] if oof is None else [Path(oof)]
    outputs += [] if cache is None else [Path(cache) / "new"]
    check_outputs(*outputs, inputs=paths)
    records, skipped = read_all(paths, strict=strict, console=notes)
    if len(records) < MIN_RECORDS:
        why = f" ({skipped})" if skipped.count else ""
        raise InputError(f"{len(records)} records are too few to learn from: at least {MIN_RECORDS} are needed{why}")
    warnings = [str(skipped)] * (skipped.count > 0)
    warnings += _said(notes, of_records(records, together))
    latency = measure_latency(records)
    text = load_text_encoder(encoder) if encoder else None
    remembered = remember(records, text, cache=cache, console=notes) if text else None
    seeds = seeds or default_seeds(records)
    with Progress(console=notes) as progress:
        task = progress.add_task("training", total=folds * seeds + 1)
        classifier, unseen = cross_fit(
            records,
            folds=folds,
            seeds=seeds,
            together=together,
            text=remembered,
            only=candidate,
            jobs=jobs,
            advance=lambda: progress.advance(task),
        )
    if classifier.encoder.text is not None:  # from now on texts come that were not in the records
        classifier.encoder = classifier.encoder.with_text(text)
    evaluation = evaluate(records, unseen, policy, latency)
    settings = {
        "price": price, "folds": folds, "seeds": seeds, "folds keep together": together,
        "encoder offered": encoder or "none", "candidate": candidate or "the best",
    }  # fmt: skip
    provenance = {**_provenance(paths, records, settings), "skipped lines": skipped.count}
    if (found := assumed(records)) != Assumed({}, {}):
        provenance["assumed"] = {
            "tokens of an answer": found.tokens,
            "prefill and seconds per token": {mode: list(figures) for mode, figures in found.seconds.items()},
        }
    classifier.calibration = calibration_set(records, unseen.given[0])
    advice = of_result(evaluation) + of_routing(unseen.given[0], classifier.calibration, latency, price)
    candidates = [Comparison(**one) for one in classifier.card["candidates"]]
    if (answered := named or _answered(records, notes)) is not None:
        classifier.card["pair"] = answered.as_card()
    classifier.card |= {"provenance": provenance, "metrics": as_json(evaluation), "warnings": warnings + advice}
    classifier.save(out)
    report = as_markdown(evaluation, provenance, note(records), candidates, warnings + advice)
    replace_file(out / REPORT_FILE, report.encode())
    if oof is not None:
        _write_unseen(Path(oof), records, unseen)
    console.print(as_table(evaluation), figures_table(evaluation), candidates_table(candidates))
    console.print(note(records), markup=False, soft_wrap=True)
    _said(notes, advice)
    return evaluation


def _answered(records: Sequence[Record], console: Console) -> ModelIdentity | None:
    """The pair that the records name, if all name the same one."""
    named = {ModelIdentity(record.pair, record.fingerprint or None) for record in records if record.pair}
    if len(named) > 1:
        several = ", ".join(sorted(map(str, named)))
        console.print(f"warning: the records come from several pairs: {several}", style="yellow", markup=False)
    return named.pop() if len(named) == 1 else None


def _said(console: Console, warnings: list[str]) -> list[str]:
    """Print `warnings` on the console, and return them."""
    for warning in warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    return warnings


def default_seeds(records: Sequence[Record]) -> int:
    """Two ways of cutting folds; of many records one says enough."""
    return 1 if len(records) >= MANY_RECORDS else 2


def calibration_set(records: Sequence[Record], predictions: Sequence[Prediction]) -> CalibrationSet:
    """What targets are resolved on: at most `MAX_CALIBRATION` records, drawn at random, as predicted unseen."""
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(records))[:MAX_CALIBRATION]).tolist()
    kept = [(predictions[i], records[i].instruct, records[i].thinking) for i in chosen]
    expected = [(p.tokens_instruct, p.tokens_thinking) for p, _, _ in kept]
    written = [
        tuple(likely if o.tokens is None else o.tokens for o, likely in zip(both, tokens, strict=True))
        for (_, *both), tokens in zip(kept, expected, strict=True)
    ]
    return CalibrationSet(
        p=np.asarray([(p.p_instruct, p.p_thinking) for p, _, _ in kept], np.float32),
        expected=np.asarray(expected, np.float32),
        right=np.asarray([(float(i.correct), float(t.correct)) for _, i, t in kept], np.float32),
        tokens=np.asarray(written, np.float32),
        known=np.asarray([p.known for p, _, _ in kept], np.float32),
    )


def _provenance(paths: Sequence[str | Path], records: Sequence[Record], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "data": [
            {"file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()} for path in paths
        ],
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


def _write_unseen(path: Path, records: Sequence[Record], unseen: Unseen) -> None:
    lines = []
    for record, *seeds in zip(records, *unseen.given, strict=True):
        mean = {f"p_{mode}": sum(getattr(one, f"p_{mode}") for one in seeds) / len(seeds) for mode in MODES}
        lines.append(json.dumps({"id": record.id, **mean}, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, "".join(lines).encode())
