"""The whole offline job: records in; artefact, report and out-of-fold predictions out."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vlroute.decision.classifier import Prediction
from vlroute.decision.frontier import CalibrationSet
from vlroute.decision.policy import Policy
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.errors import CheckpointError, InputError
from vlroute.learning.candidates import Comparison
from vlroute.learning.cross_fit import Unseen, cross_fit
from vlroute.learning.design import Together
from vlroute.learning.embeddings import remember
from vlroute.learning.evaluate import Evaluation, evaluate
from vlroute.learning.fit import measure_pace
from vlroute.learning.records import Record, outcomes, read_records
from vlroute.learning.report import as_json, as_markdown, as_table, candidates_table, figures_table
from vlroute.modes import MODES
from vlroute.pair_identity import PairIdentity, identify
from vlroute.pair_names import resolve_pair

MIN_RECORDS = 50
MAX_CALIBRATION = 4096
MANY_RECORDS = 5000


def train(
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
    samples: int = 1000,
    pair: str | Path | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Learn a router from record files and write it with its `report.md` into the folder `out`.

    `price` is only for the routed rows of the report: the artefact serves any price. `oof`: a file for each
    record's out-of-fold p_instruct and p_thinking, means over the seeds. `seeds`: see `default_seeds`. `together`:
    what shares a fold, see `design.folds_of`. `encoder`: a text encoder by name or folder, see `load_text_encoder`;
    None: words only. `cache`: a folder that keeps its vectors for the next run. `candidate`: the
    only one to consider. `jobs`: processes at the same time, see
    `cross_fit`. `samples`: bootstrap draws. `pair`: the pair that answered, as `name` of `Router.from_pretrained`,
    where the records do not say; the artifact records it, so that a router over another pair can warn. Deterministic
    but for the date. InputError for unusable records, fewer than 50 of them, or a setting out of range.
    """
    console = console or Console()
    if folds < 2 or (seeds is not None and seeds < 1) or not 0 <= price < math.inf:
        raise InputError(f"need folds >= 2, seeds >= 1 and a finite price >= 0, not {folds}, {seeds} and {price}")
    policy = Policy(price=price)
    named = None if pair is None else identify(*resolve_pair(pair, None, None, out)[:2])
    records = list(read_records(*paths))
    if len(records) < MIN_RECORDS:
        raise InputError(f"{len(records)} records are too few to learn from: at least {MIN_RECORDS} are needed")
    pace = measure_pace(records)
    text = load_text_encoder(encoder) if encoder else None
    remembered = remember(records, text, cache=cache, console=console) if text else None
    seeds = seeds or default_seeds(records)
    with Progress(console=console) as progress:
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
    with console.status("bootstrap intervals"):
        evaluation = evaluate(records, unseen, policy, pace, samples=samples)
    settings = {
        "price": price, "folds": folds, "seeds": seeds, "folds keep together": together,
        "encoder offered": encoder or "none", "candidate": candidate or "the best",
    }  # fmt: skip
    provenance = _provenance(paths, records, settings)
    classifier.calibration = calibration_set(records, unseen.given[0])
    candidates = [Comparison(**one) for one in classifier.card["candidates"]]
    if (answered := named or _answered(records, console)) is not None:
        classifier.card["pair"] = answered.as_card()
    classifier.card |= {"provenance": provenance, "metrics": as_json(evaluation)}
    classifier.save(out)
    report = as_markdown(evaluation, provenance, pace_note(records), candidates)
    (Path(out) / "report.md").write_text(report, "utf-8")
    if oof is not None:
        _write_unseen(Path(oof), records, unseen)
    console.print(as_table(evaluation), figures_table(evaluation), candidates_table(candidates), pace_note(records))
    return evaluation


def _answered(records: Sequence[Record], console: Console) -> PairIdentity | None:
    """The pair that the records name, if it is one."""
    named = {PairIdentity(record.pair, record.fingerprint or None) for record in records if record.pair}
    if len(named) > 1:
        several = ", ".join(sorted(map(str, named)))
        console.print(f"warning: the records are of several pairs: {several}", style="yellow", markup=False)
    return named.pop() if len(named) == 1 else None


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


def pace_note(records: Sequence[Record]) -> str:
    """One sentence: whether the seconds were measured."""
    timed = all(any(o.seconds is not None and o.tokens for o in outcomes(records, mode)) for mode in MODES)
    return f"Seconds are {'measured' if timed else 'assumed: the records hold none for one mode or both'}."


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of `training/retrain.py`; gives the exit status."""
    parser = argparse.ArgumentParser(description="Retrain the complexity classifier from labelled records.")
    parser.add_argument("records", nargs="+", type=Path, help=".jsonl or .jsonl.gz files")
    parser.add_argument("--out", type=Path, required=True, help="folder for router.json, weights, report.md")
    parser.add_argument("--oof", type=Path, help="file for each record's out-of-fold probabilities")
    parser.add_argument("--price", type=float, default=0.1, help="probability a second is worth, in the report")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--seeds", type=int, help="how many ways of cutting folds are averaged (two; many records: one)"
    )
    parser.add_argument("--encoder", default=STATIC, help='a text encoder by name or folder; "none": words only')
    parser.add_argument(
        "--together",
        choices=get_args(Together),
        default="text",
        help='what shares a fold: "text" predicts texts never seen, "record" suits prompts made from templates',
    )
    parser.add_argument("--pair", help="the pair that answered, where the records do not say: a hub name or a folder")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        train(
            options.records,
            options.out,
            pair=options.pair,
            oof=options.oof,
            price=options.price,
            folds=options.folds,
            seeds=options.seeds,
            together=options.together,
            encoder=None if options.encoder == "none" else options.encoder,
            console=console,
        )
    except (InputError, CheckpointError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        return 2
    console.print(f"wrote {options.out}", markup=False)
    return 0


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
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def _write_unseen(path: Path, records: Sequence[Record], unseen: Unseen) -> None:
    lines = []
    for record, *seeds in zip(records, *unseen.given, strict=True):
        mean = {f"p_{mode}": sum(getattr(one, f"p_{mode}") for one in seeds) / len(seeds) for mode in MODES}
        lines.append(json.dumps({"id": record.id, **mean}, ensure_ascii=False) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), "utf-8")
