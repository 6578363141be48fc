"""Commands for learning: collect, train, probe, eval, curves, feedback, export, learn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from vlroute.cli.options import MODEL_HELP, ROUTER_HELP, Device, RouterOption, Wanted, check_price
from vlroute.errors import InputError, MissingExtraError
from vlroute.files import check_outputs, make_folder, replace_file
from vlroute.types import MODES

if TYPE_CHECKING:
    from vlroute.store import Store

Records = Annotated[list[Path], typer.Argument(help=".jsonl or .jsonl.gz files of labeled records.")]
Together = Annotated[
    Literal["text", "record"],
    typer.Option(help='What shares a fold: "text" tests on unseen texts, "record" suits prompts from templates.'),
]
Folds = Annotated[int, typer.Option(min=2, help="Number of folds; a model trained on the others predicts each.")]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Number of ways to cut folds, averaged. Default: 2, for many records 1.")
]
Encoder = Annotated[
    str,
    typer.Option(help='Text encoder beside words: a name or folder; "static" is included, "none" uses words only.'),
]
NewRecords = Annotated[
    list[Path] | None, typer.Argument(help=".jsonl or .jsonl.gz files of labeled records; not with --shadow.")
]
Strict = Annotated[bool, typer.Option(help="Stop at the first line that cannot be used. Default: skip and count it.")]
StoreAt = Annotated[str, typer.Option("--store", help="File of the store, or a postgresql:// URL.")]
DataSet = Annotated[str, typer.Argument(help="A .jsonl(.gz), .csv(.gz) or .parquet file, a folder, or a hub data set.")]
Model = Annotated[str | None, typer.Option(help=MODEL_HELP)]
Split = Annotated[str | None, typer.Option(help="Split of a data set that has several.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a hub data set that has several.")]
Map = Annotated[str, typer.Option("--map", metavar="NAME=COLUMN,…", help="Columns with other names: prompt=question.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use only the first rows.")]
DEFAULT_SHARES = "0.8,0.2,0.5"


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Name the extra to install if an import fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, extra) from error


def train(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for router.json, its weights and report.md.")],
    oof: Annotated[Path | None, typer.Option(help="File for each record's out-of-fold probabilities.")] = None,
    price: Annotated[float, typer.Option(help="Price for the routed rows of the report only.")] = 0.1,
    folds: Folds = 5,
    seeds: Seeds = None,
    together: Together = "text",
    encoder: Encoder = "static",
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps embeddings for the next run.")] = None,
    learner: Annotated[
        str | None,
        typer.Option(help='Use only this base learner, e.g. "words + embedding". For prompts made from few templates.'),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that gave the answers, if the records do not name it.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="ROUTER",
            help="Start from this router: a folder, a name like qwen3-vl-2b, or one on the hub.",
        ),
    ] = None,
    strict: Strict = False,
) -> None:
    """Train a router on records of what each mode answered correctly.

    vlroute train records.jsonl --out my-router
    """
    with _needs("train"):
        from vlroute.learning.train import train_router
    train_router(
        records,
        out,
        oof=oof,
        price=price,
        folds=folds,
        seeds=seeds,
        together=together,
        encoder=None if encoder == "none" else encoder,
        cache=cache,
        learner=learner,
        jobs=jobs,
        model=model,
        start=start,
        strict=strict,
    )
    typer.echo(f"wrote {out}")


def evaluate(
    records: NewRecords = None,
    router: RouterOption = None,
    price: Annotated[float | None, typer.Option(help="What one second is worth, in probability. Default: 0.1.")] = None,
    policy: Wanted = None,
    together: Annotated[
        Literal["text", "record"],
        typer.Option(help='What intervals count as one draw: each "record", or all records of the same "text".'),
    ] = "record",
    out: Annotated[Path | None, typer.Option(help="Markdown file for the report.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for all figures as JSON.")] = None,
    shadow: Annotated[
        str | None,
        typer.Option(metavar="STORE", help="File or URL of a store: report what the shadow there would have changed."),
    ] = None,
    strict: Strict = False,
) -> None:
    """Evaluate a trained router on new records: accuracy, seconds and calibration, also by topic.

    vlroute eval new-records.jsonl --router my-router --out report.md

    vlroute eval --shadow answers.db
    """
    if shadow is not None:
        if records or router or policy is not None or price is not None:
            raise InputError(
                "--shadow reads everything from the store: leave out records, --router, --price and --policy"
            )
        _evaluate_shadow(shadow, out, as_json)
        return
    if not records or router is None:
        raise InputError("expected files of records and --router, or --shadow with a store")
    with _needs("train"):
        from vlroute.decision.artifact import artifact_files
        from vlroute.learning.assessment import evaluate_router
        from vlroute.learning.report import evaluation_report, figures_table, stages_table, topics_table, ways_table
        from vlroute.sharing import router_folder
    check_price(price, policy)
    folder = router_folder(router)
    check_outputs(*filter(None, (out, as_json)), inputs=[*records, *artifact_files(folder)])
    console, notes = Console(), Console(stderr=True)
    target = policy or (0.1 if price is None else price)
    found = evaluate_router(records, folder, target, together=together, strict=strict, console=notes)
    for warning in [*found.warnings, *found.advice, *found.notes]:
        notes.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(ways_table(found.evaluation, found.kind))
    if found.topics:
        console.print(topics_table(found.topics))
    console.print(figures_table(found.evaluation))
    if found.stages:
        wanted = target if isinstance(target, str) else f"price {target:g}"
        console.print(stages_table(found.stages, found.recommended, f"stages, {wanted}, {found.kind}"))
    _write(out, evaluation_report(found, router))
    _write(as_json, json.dumps({"router": str(router), **found.as_dict()}, ensure_ascii=False, indent=1) + "\n")


def _evaluate_shadow(store: str, out: Path | None, as_json: Path | None) -> None:
    with _needs("train"):
        from vlroute.learning.report import shadow_report, shadow_tables
        from vlroute.learning.shadow import evaluate_shadow
    check_outputs(*filter(None, (out, as_json)), inputs=_files_of_store(store))
    with _store(store) as opened:
        found = evaluate_shadow(opened)
    console = Console()
    for table in shadow_tables(found):
        console.print(table)
    if found.other_artifacts:
        line = (
            f"left out: {found.other_artifacts} requests on which other artifacts had decided, or which another model "
            "had answered"
        )
        Console(stderr=True).print(line, style="yellow", soft_wrap=True)
    _write(out, shadow_report(found))
    _write(as_json, json.dumps(found.as_dict(), ensure_ascii=False, indent=1) + "\n")


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
        typer.echo(f"wrote {path}")


def curves(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for curves.html and the figures as PNG.")],
    oof: Annotated[Path | None, typer.Option(help="File that `vlroute train --oof` wrote. Default: train.")] = None,
    router: Annotated[
        str | None,
        typer.Option(metavar="ROUTER", help="The router that was trained on these records: also draw its stages."),
    ] = None,
    price: Annotated[float | None, typer.Option(help="The price in force, which figures mark. Default: 0.1.")] = None,
    policy: Wanted = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Number of folds. Default: that of the --oof file; without one, 5.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="As in train; not with --oof.")] = None,
    together: Annotated[
        Literal["text", "record"] | None,
        typer.Option(help='As in train. Default: that of the --oof file; without one, "text".'),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="As in train; not with --oof.")] = None,
    language: Annotated[Literal["en", "zh"], typer.Option(help="Language of page and figures.")] = "en",
    strict: Strict = False,
) -> None:
    """Draw accuracy against the share of Thinking and against seconds, and the calibration of the probabilities.

    vlroute train records.jsonl --out my-router --oof oof.jsonl

    vlroute curves records.jsonl --oof oof.jsonl --router my-router --out curves
    """
    with _needs("train"):
        import numpy as np

        from vlroute.decision.artifact import artifact_files
        from vlroute.decision.classifier import ComplexityClassifier
        from vlroute.decision.text_encoder import STATIC, load_text_encoder
        from vlroute.learning.assumptions import measure_latency
        from vlroute.learning.curves import PAGE, write_curves
        from vlroute.learning.embeddings import embed_texts
        from vlroute.learning.evaluate import DEFAULT_PRICE
        from vlroute.learning.evidence import read_evidence
        from vlroute.learning.metrics import Values
        from vlroute.learning.out_of_fold import OutOfFold, default_seeds, out_of_fold
        from vlroute.learning.prediction_file import read_oof
        from vlroute.learning.stages import stage_curves
        from vlroute.records import Skipped, read_all, warn
        from vlroute.sharing import router_folder
    if oof is not None and (seeds is not None or encoder is not None):
        raise InputError("--seeds and --encoder have no effect with --oof, whose predictions are final; leave them out")
    folder = None if router is None else router_folder(router)
    check_price(price, policy)
    inputs = [*records, *filter(None, [oof]), *(artifact_files(folder) if folder else [])]
    check_outputs(out / PAGE, inputs=inputs)
    classifier = None if folder is None else ComplexityClassifier.load(folder)
    if classifier is not None and (classifier.calibration is None or not classifier.calibration.later):
        raise InputError(
            f"{router} has no later stages to draw; leave --router out, or train with the evidence that vlroute "
            "collect writes"
        )
    console = Console(stderr=True)
    found, _ = read_all(records, strict=strict, console=console)
    predicted: OutOfFold | Values
    tokens = None
    if oof is not None:
        broken = Skipped()
        read = read_oof(oof, found, skipped=None if strict else broken)
        for option, wanted, actual in (("--folds", folds, read.folds), ("--together", together, read.together)):
            if None not in (wanted, actual) and wanted != actual:
                raise InputError(f"{oof} was written with {option} {actual}, not {wanted}; leave {option} out")
        folds, together = read.folds or folds, read.together or together
        if folds is None or together is None:
            console.print(
                f"warning: {oof} does not say how folds were made, because an earlier version wrote it; intervals "
                f"assume --folds {folds or 5} --together {together or 'text'}. Pass the options of the training",
                style="yellow", markup=False, soft_wrap=True,
            )  # fmt: skip
        if read.tokens is None:
            console.print(
                f"warning: {oof} contains no expected tokens, because an earlier version wrote it. Presets and prices "
                "assume equal expected seconds for all requests, so their shares and accuracies are not those of the "
                "router. Train again, or leave --oof out",
                style="yellow", markup=False, soft_wrap=True,
            )  # fmt: skip
        known = ~np.isnan(read.p[0])
        predicted, found = read.p[:, known], [one for one, there in zip(found, known, strict=True) if there]
        tokens = None if read.tokens is None else read.tokens[:, known]
        warn(console, broken)
    folds, together = folds or 5, together or "text"
    if oof is None:
        text = None if encoder == "none" else embed_texts(found, load_text_encoder(encoder or STATIC), console=console)
        seeds = seeds or default_seeds(found)
        with Progress(console=console) as progress:
            task = progress.add_task("training", total=1 + folds * seeds)
            _, predicted = out_of_fold(
                found, folds=folds, seeds=seeds, together=together, text=text, advance=lambda: progress.advance(task)
            )
    with console.status("drawing"):
        stages = None
        if classifier is not None and classifier.calibration is not None:
            shared = any(one.shared_prompt for one in read_evidence(records, Skipped()).values())
            stages = stage_curves(classifier.calibration, measure_latency(found), shared)
        written = write_curves(
            found, predicted, out, language=language, folds=folds, together=together, tokens=tokens, stages=stages,
            in_force=policy or (DEFAULT_PRICE if price is None else price),
        )  # fmt: skip
    typer.echo(f"wrote {written[-1]}")


def collect(
    source: DataSet,
    out: Annotated[Path, typer.Option(help=".jsonl file for the records; an earlier run is continued.")],
    model: Model = None,
    router: RouterOption = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="Type of the weights, such as bfloat16.")] = None,
    split: Split = None,
    config: Config = None,
    columns: Map = "",
    grader: Annotated[
        str, typer.Option(help="exact, number, choice, regex, or your own function as module:function.")
    ] = "exact",
    tolerance: Annotated[float, typer.Option(help="Relative error that the grader number accepts.")] = 0.0,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="Label rows without a gold answer by whether the modes agree.")
    ] = False,
    agreement_shares: Annotated[
        str,
        typer.Option(
            metavar="AGREED,INSTRUCT,THINKING",
            help="For --agreement: how often agreed answers are right, and each mode if they differ.",
        ),
    ] = DEFAULT_SHARES,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Generation setting, thinking.NAME for one mode. Repeatable."),
    ] = None,
    limit: Limit = None,
    choose: Annotated[
        int | None, typer.Option(min=1, help="Answer only so many rows, which are typical and differ from each other.")
    ] = None,
    chosen: Annotated[
        Path | None,
        typer.Option("--list-chosen", help="With --choose: write the chosen rows to a .jsonl file, and answer none."),
    ] = None,
    width: Annotated[
        float | None,
        typer.Option(help="Estimate how many more records give an interval of this width, in points of area."),
    ] = None,
    together: Annotated[
        Literal["text", "record"] | None, typer.Option(help='With --width: as in train. Default: "text".')
    ] = None,
    answers: Annotated[Path | None, typer.Option(help=".jsonl file for the texts of the answers.")] = None,
    strict: Annotated[bool, typer.Option(help="Stop at the first row or line that cannot be used.")] = False,
) -> None:
    """Run both modes over your own questions and pictures, and record what each answered correctly.

    vlroute collect questions.jsonl --out records.jsonl

    vlroute collect questions.jsonl --out records.jsonl --width 2 --together record

    vlroute collect questions.jsonl --choose 200 --list-chosen chosen.jsonl --out records.jsonl
    """
    from vlroute.decision.artifact import artifact_files
    from vlroute.learning.collect import choose_examples, collect_records, fewer_rows, outputs
    from vlroute.learning.dataset import Source, parse_columns, row_to_label
    from vlroute.learning.grading import load_grader, parse_agreement
    from vlroute.router import Router
    from vlroute.sharing import router_folder

    graded_by = load_grader(grader, tolerance)
    if agreement_shares != DEFAULT_SHARES and not agreement:
        raise InputError("--agreement-shares has an effect only with --agreement; add it, or leave the shares out")
    by_agreement = parse_agreement(agreement_shares, graded_by) if agreement else None
    mapping = parse_columns(columns)
    folder = None if router is None else router_folder(router)
    if chosen is not None and choose is None:
        raise InputError("--list-chosen has an effect only with --choose; add it, or leave the list out")
    if chosen is not None and answers is not None:
        raise InputError("--answers has no effect with --list-chosen, which answers no rows; leave one of them out")
    if chosen is not None and chosen.suffix != ".jsonl":
        raise InputError(f"--list-chosen writes JSON lines, so its file must end in .jsonl, not {chosen.name!r}")
    if together is not None and width is None:
        raise InputError("--together has an effect only with --width; add it, or leave --together out")
    if width is not None:  # before questions are answered
        with _needs("train"):
            from vlroute.learning.sample_size import check_width
        check_width(width)
    inputs = [Path(source), *(artifact_files(folder) if folder else []), *([Path(model)] if model else [])]
    check_outputs(*outputs(out, answers), *filter(None, [chosen]), inputs=inputs)
    loaded = Router.from_pretrained(
        model, router=folder, device=device, dtype=dtype, generation=parse_settings(setting or [])
    )
    rows = Source(source, split, config)
    if chosen is not None and choose is not None:
        found = choose_examples(loaded, rows, out, choose, mapping, limit)
        listed = [row_to_label(one, chosen.parent, mapping) for one in found]
        lines = "".join(json.dumps(one, ensure_ascii=False, default=str) + "\n" for one in listed)
        make_folder(chosen.parent, private=True)
        replace_file(chosen, lines.encode(), private=True)  # it contains questions and pictures
        typer.echo(f"wrote {chosen}: {len(listed)} rows")
        if len(listed) < choose:
            typer.echo(fewer_rows(len(listed)), err=True)
        _estimate(out, width, together or "text")
        return
    try:
        result = collect_records(
            loaded, rows, out, grader=graded_by, agreement=by_agreement, columns=mapping,
            limit=limit, choose=choose, answers=answers, strict=strict,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues from here", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"wrote {out}: {result.recorded} new records")
    if result.failed:
        typer.echo(f"{result.failed} rows failed, such as {result.reasons[0]}", err=True)
    _estimate(out, width, together or "text")


def _estimate(records: Path, width: float | None, together: Literal["text", "record"]) -> None:
    """Say how many more records narrow the interval of the area over random to `width`."""
    if width is None:
        return
    with _needs("train"):
        from vlroute.decision.text_encoder import STATIC, load_text_encoder
        from vlroute.learning.collect import chosen_ids
        from vlroute.learning.sample_size import records_for_area
        from vlroute.records import Skipped, read_records
    known = list(read_records(records, skipped=Skipped())) if records.exists() else []
    try:
        now, needed = records_for_area(known, width, together=together, text=load_text_encoder(STATIC))
    except InputError as error:  # the records are complete, although nothing can be estimated from them
        typer.echo(f"note: no estimate for --width: {error}", err=True)
        return
    low, high = now.interval or (now.area, now.area)
    more = f"about {needed.more} more records" if needed.more else "no more records"
    tested = (
        "texts that training has not seen" if together == "text" else "new records whose texts training may have seen"
    )
    typer.echo(
        f"area over random {now.area:.1f} points ({low:.1f} – {high:.1f}) with {needed.records} records, on {tested}: "
        f"a width of {width:g} points needs {more}, if they are of the same kinds as these"
    )
    if not {record.id for record in known}.isdisjoint(chosen_ids(records)):
        typer.echo(
            "note: some of these records were chosen (--choose). Unless all rows have records now, they are not drawn "
            "like the requests in use, and the area, its interval and the estimate hold for such records only",
            err=True,
        )


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse generation settings.

    Args:
        pairs: Such as "do_sample=false" and "thinking.max_new_tokens=4096".

    Returns:
        The settings as `Router.from_pretrained(generation=…)` takes them.

    Raises:
        InputError: A pair has no "=", or a mode is unknown.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        mode, dot, rest = name.partition(".")
        if not equals or (dot and mode not in MODES):
            raise InputError(f"cannot read the setting {pair!r}; expected name=value or thinking.name=value")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if dot:
            settings.setdefault(mode, {})[rest] = value
        else:
            settings[name] = value
    return settings


def probe(
    source: DataSet,
    records: Annotated[Path, typer.Option(help="Records that `vlroute collect` wrote for it; they give the captions.")],
    router: Annotated[Path, typer.Option(help="Folder of the router artifact that gets the probe.")],
    model: Model = None,
    device: Device = None,
    split: Split = None,
    config: Config = None,
    columns: Map = "",
    limit: Limit = None,
    strict: Strict = False,
) -> None:
    """Train a vision probe, which captions pictures from vision features, nearly without cost.

    vlroute probe questions.jsonl --records records.jsonl --router my-router
    """
    with _needs("train"):
        from vlroute.learning.probe import learn_probe
    from vlroute.decision.artifact import CARD_FILE
    from vlroute.decision.captions import PROBE_FOLDER
    from vlroute.learning.dataset import Source, parse_columns
    from vlroute.router import Router

    loaded = Router.from_pretrained(model, router=router, device=device)
    check_outputs(router / PROBE_FOLDER / CARD_FILE, inputs=[source, records])
    learnt = learn_probe(
        loaded, Source(source, split, config), records, columns=parse_columns(columns), limit=limit, strict=strict
    )
    learnt.save(router / PROBE_FOLDER)
    (name, value), *_ = learnt.card["out of fold"].items()
    typer.echo(f"wrote {router / PROBE_FOLDER}: {len(learnt.texts)} texts, {name} {value:.1%} out of fold")


def feedback(
    answer: Annotated[str, typer.Argument(help="Id of an answer, `Answer.id`.")],
    store: StoreAt,
    correct: Annotated[bool, typer.Option("--correct", help="The answer was right.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="The answer was wrong.")] = False,
    comment: Annotated[str | None, typer.Option(help="Comment, stored with the feedback.")] = None,
) -> None:
    """Rate a stored answer.

    vlroute feedback 4f0c… --wrong --store answers.db
    """
    if correct == wrong:
        raise InputError("give exactly one of --correct and --wrong")
    with _store(store) as opened:
        opened.feedback(answer, correct=correct, comment=comment)


def export(
    out: Annotated[Path, typer.Argument(help="File of records to write, .jsonl or .jsonl.gz.")], store: StoreAt
) -> None:
    """Write stored answers with feedback on both modes as records for training.

    vlroute export records.jsonl --store answers.db
    """
    check_outputs(out, inputs=_files_of_store(store))
    with _store(store) as opened:
        from vlroute.records import write_records
        from vlroute.store import export_feedback

        found = export_feedback(opened)
        make_folder(out.parent, private=True)
        written = write_records(out, found.records)
    typer.echo(f"wrote {written} records; left out {found.one_sided} requests with feedback on one mode only")


#: Seconds of each unit in which --every may be given.
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _interval(text: str) -> timedelta:
    """The interval in words such as 90s, 30m, 1h and 2d."""
    number, unit = text[:-1], text[-1:]
    if not (number.isdecimal() and len(number) <= 6 and int(number) > 0 and unit in _UNITS):
        raise typer.BadParameter(
            f"{text!r} is not an interval; expected a number up to 999999 and a unit, such as 90s, 30m, 1h or 1d"
        )
    return timedelta(seconds=int(number) * _UNITS[unit])


def learn(
    store: StoreAt,
    router: Annotated[
        str | None, typer.Option(metavar="ROUTER", help=f"The artifact to begin with. {ROUTER_HELP} Later runs go on.")
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin again with --router. --rollback undoes this.")
    ] = False,
    every: Annotated[
        Any | None,
        typer.Option(
            parser=_interval, metavar="INTERVAL", help="Time between two steps: 90s, 30m, 1h, 1d. Default: 1h."
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder for the artifacts. Default: beside the file of the store.")
    ] = None,
    most_per_key: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum number of ratings of one API key that count, the latest ones. Default: 50."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Run one step and end.")] = False,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Use the previous artifact again and end; a learner may be running.")
    ] = False,
    history: Annotated[bool, typer.Option("--history", help="Print all steps as JSON lines and end.")] = False,
) -> None:
    """Learn from feedback while a server answers: train, compare with the router in use, and replace it if better.

    vlroute learn --store answers.db --router my-router --every 1h

    vlroute learn --store answers.db --restart --router new-router

    vlroute learn --store answers.db --rollback
    """
    if once + rollback + history > 1:
        raise InputError("give at most one of --once, --rollback and --history")
    if rollback or history:
        ignored = {
            "--router": router is not None, "--restart": restart, "--every": every is not None,
            "--most-per-key": most_per_key is not None,
        }  # fmt: skip
    else:
        ignored = {"--every": once and every is not None}
    if unused := [name for name, given in ignored.items() if given]:
        action = "--rollback" if rollback else "--history" if history else "--once"
        raise InputError(
            f"{action} does not use {' and '.join(unused)}: leave {'them' if len(unused) > 1 else 'it'} out"
        )
    with _needs("train"), _needs("store"):
        from vlroute.learned import LearningHistory
        from vlroute.learning.continual import MOST_PER_KEY, ContinualLearner, roll_back, summary
    if history:
        with _store(store) as opened:
            for event in reversed(LearningHistory(opened, folder).events()):
                typer.echo(json.dumps(event.as_dict()))
        return
    if rollback:
        with _store(store) as opened:
            typer.echo(summary(roll_back(opened, folder)))
        return
    with ContinualLearner(
        router, store, every=every or timedelta(hours=1), folder=folder, most_per_key=most_per_key or MOST_PER_KEY,
        restart=restart,
    ) as learner:  # fmt: skip
        if not once:
            try:
                learner.run()
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
        event = learner.step()
        typer.echo(summary(event))
        for sentence in event.details.get("cannot_learn", ()):
            typer.echo(f"{sentence}.", err=True)
    if event.action == "failed":
        raise typer.Exit(1)


def _store(where: str) -> Store:
    """Open an existing store. A mistyped name must not create an empty one."""
    with _needs("store"):
        from vlroute.store import Store
    return Store(where, create=False)


def _files_of_store(where: str) -> list[str]:
    """Files of an SQLite store, write-ahead log included."""
    with _needs("store"):
        from vlroute.store import read_url
    url = read_url(where)
    if url.get_backend_name() != "sqlite" or not url.database:
        return []
    return [url.database + ending for ending in ("", "-wal", "-shm", "-journal")]
