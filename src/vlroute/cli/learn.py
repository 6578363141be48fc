"""The commands that gather labels and learn from them: collect, probe, feedback, export, train, eval, curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from vlroute.cli.options import Device, Wanted, check_price
from vlroute.errors import InputError, MissingExtraError
from vlroute.files import check_outputs, replace_file

if TYPE_CHECKING:
    from vlroute.store import Store

Records = Annotated[list[Path], typer.Argument(help=".jsonl or .jsonl.gz files of labelled records.")]
Together = Annotated[
    Literal["text", "record"],
    typer.Option(help='What shares a fold: "text" predicts texts never seen, "record" suits prompts from templates.'),
]
Folds = Annotated[int, typer.Option(min=2, help="How many parts; each is predicted by a model that saw the others.")]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="How many ways of cutting the parts are averaged: two; of many records one.")
]
Encoder = Annotated[
    str,
    typer.Option(help='A text encoder by name or folder beside the words; "static" is shipped, "none": words only.'),
]
Strict = Annotated[bool, typer.Option(help="Make a line that cannot be used an error. Default: skip and count it.")]
StoreAt = Annotated[str, typer.Option("--store", help="The file of the store, or a postgresql:// URL.")]


def train(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for router.json, weights.safetensors and report.md.")],
    oof: Annotated[Path | None, typer.Option(help="File for each record's out-of-fold probabilities.")] = None,
    price: Annotated[float, typer.Option(help="For the routed rows of the report only.")] = 0.1,
    folds: Folds = 5,
    seeds: Seeds = None,
    together: Together = "text",
    encoder: Encoder = "static",
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps the embeddings for the next run.")] = None,
    learner: Annotated[
        str | None,
        typer.Option(help='Use only this base learner, e.g. "words + embedding". For prompts made from few templates.'),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at the same time; by default one a core.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub name or folder of the pair that gave the answers, if the records lack it.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Retrain the router from records of what each mode got right; see docs/decision.md for their form.

    vlroute train records.jsonl --out my-router
    """
    try:
        from vlroute.learning.train import train_router
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "train") from error
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
        strict=strict,
    )
    typer.echo(f"wrote {out}")


def evaluate(
    records: Records,
    router: Annotated[Path, typer.Option(help="Folder of the trained router artifact.")],
    price: Annotated[float | None, typer.Option(help="What a second is worth, in probability. Default: 0.1.")] = None,
    policy: Wanted = None,
    together: Annotated[
        Literal["text", "record"],
        typer.Option(help='What counts as one draw in intervals: each "record", or all records of the same "text".'),
    ] = "record",
    out: Annotated[Path | None, typer.Option(help="Markdown file for the report.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="File for all figures as JSON.")] = None,
    strict: Strict = False,
) -> None:
    """Report what a trained router is worth on new records: accuracy, seconds, calibration, by family.

    vlroute eval new-records.jsonl --router my-router --out report.md
    """
    try:
        from vlroute.decision.artifact import artifact_files
        from vlroute.learning.assess import as_page, as_values, evaluate_router
        from vlroute.learning.report import as_table, families_table, figures_table
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "train") from error
    check_price(price, policy)
    check_outputs(*filter(None, (out, as_json)), inputs=[*records, *artifact_files(router)])
    console, notes = Console(), Console(stderr=True)
    target = policy or (0.1 if price is None else price)
    found = evaluate_router(records, router, target, together=together, strict=strict, console=notes)
    for warning in found.warnings:
        notes.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(as_table(found.evaluation, found.kind))
    if found.families:
        console.print(families_table(found.families))
    console.print(figures_table(found.evaluation))
    for path, text in (
        (out, as_page(found, router)),
        (as_json, json.dumps(as_values(found, router), ensure_ascii=False, indent=1) + "\n"),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, text.encode())
            typer.echo(f"wrote {path}")


def curves(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for curves.html and the figures as PNG.")],
    oof: Annotated[Path | None, typer.Option(help="What `vlroute train --oof` wrote; else models are trained.")] = None,
    folds: Folds = 5,
    seeds: Seeds = None,
    together: Together = "text",
    encoder: Encoder = "static",
    language: Annotated[Literal["en", "zh"], typer.Option(help="Of the page and its figures.")] = "en",
    strict: Strict = False,
) -> None:
    """Draw accuracy against latency and thinking share, and how well calibrated the probabilities are.

    vlroute train records.jsonl --out my-router --oof oof.jsonl

    vlroute curves records.jsonl --oof oof.jsonl --out curves
    """
    try:
        import numpy as np

        from vlroute.decision.text_encoder import load_text_encoder
        from vlroute.learning.assess import read_oof, write_curves
        from vlroute.learning.embeddings import embed_texts
        from vlroute.learning.metrics import Values
        from vlroute.learning.out_of_fold import OutOfFold, default_seeds, out_of_fold
        from vlroute.learning.report import PAGE
        from vlroute.records import Skipped, read_all
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "train") from error
    check_outputs(out / PAGE, inputs=[*records, *filter(None, [oof])])
    console = Console(stderr=True)
    found, _ = read_all(records, strict=strict, console=console)
    predicted: OutOfFold | Values
    if oof is not None:
        broken = Skipped()
        predicted = read_oof(oof, found, skipped=None if strict else broken)
        known = ~np.isnan(predicted[0])
        predicted, found = predicted[:, known], [one for one, there in zip(found, known, strict=True) if there]
        if broken.count:
            console.print(f"warning: {broken}", style="yellow", markup=False, soft_wrap=True)
    else:
        text = None if encoder == "none" else embed_texts(found, load_text_encoder(encoder), console=console)
        seeds = seeds or default_seeds(found)
        with Progress(console=console) as progress:
            task = progress.add_task("training", total=1 + folds * seeds)
            _, predicted = out_of_fold(
                found, folds=folds, seeds=seeds, together=together, text=text, advance=lambda: progress.advance(task)
            )
    with console.status("drawing"):
        written = write_curves(found, predicted, out, language=language, folds=folds, together=together)
    typer.echo(f"wrote {written[-1]}")


def collect(context: typer.Context) -> None:
    """Run both modes over your own questions and pictures, and record what each got right.

    vlroute collect questions.jsonl --out records.jsonl
    """
    if {"-h", "--help"} & {*context.args}:  # its parser knows no examples
        typer.echo("vlroute collect questions.jsonl --out records.jsonl\n")
    from vlroute.learning.collect import main

    raise typer.Exit(main(context.args))


def probe(
    source: Annotated[str, typer.Argument(help="The data set that was collected: a file, folder or hub name.")],
    records: Annotated[Path, typer.Option(help="What `vlroute collect` wrote of it: captions are taken from there.")],
    router: Annotated[Path, typer.Option(help="Folder of the router artifact that gets the probe.")],
    model: Annotated[str | None, typer.Option(help="Hub name, or a folder with instruct/ and thinking/.")] = None,
    device: Device = None,
    split: Annotated[str | None, typer.Option(help="Of a data set that has several.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a hub data set that has several.")] = None,
    columns: Annotated[str, typer.Option("--map", help="Columns named otherwise: prompt=question.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows.")] = None,
    strict: Strict = False,
) -> None:
    """Teach a vision probe to caption from the tower's features, instead of the Instruct model: nearly free.

    vlroute probe questions.jsonl --records records.jsonl --router my-router
    """
    try:
        from vlroute.learning.probe import learn_probe
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "train") from error
    from vlroute.decision.artifact import CARD_FILE, WEIGHTS_FILE
    from vlroute.decision.vision_probe import PROBE_FOLDER
    from vlroute.learning.dataset import Source, parse_columns
    from vlroute.router import Router

    loaded = Router.from_pretrained(model, router=router, device=device)
    check_outputs(*(router / PROBE_FOLDER / name for name in (CARD_FILE, WEIGHTS_FILE)), inputs=[source, records])
    learnt = learn_probe(
        loaded, Source(source, split, config), records, columns=parse_columns(columns), limit=limit, strict=strict
    )
    learnt.save(router / PROBE_FOLDER)
    (name, value), *_ = learnt.card["out of fold"].items()
    typer.echo(f"wrote {router / PROBE_FOLDER}: {len(learnt.texts)} texts, {name} {value:.1%} out of fold")


def feedback(
    answer: Annotated[str, typer.Argument(help="The id of an answer, `Answer.id`.")],
    store: StoreAt,
    correct: Annotated[bool, typer.Option("--correct", help="It was right.")] = False,
    wrong: Annotated[bool, typer.Option("--wrong", help="It was wrong.")] = False,
    comment: Annotated[str | None, typer.Option(help="Why; it is kept beside the judgement.")] = None,
) -> None:
    """Say whether a stored answer was right.

    vlroute feedback 4f0c… --wrong --store answers.db
    """
    if correct == wrong:
        raise InputError("was the answer right? Give exactly one of --correct and --wrong")
    with _store(store) as opened:
        opened.feedback(answer, correct=correct, comment=comment)


def export(
    out: Annotated[Path, typer.Argument(help="The file of records to write, .jsonl or .jsonl.gz.")], store: StoreAt
) -> None:
    """Turn stored answers and the feedback on them into records for training.

    vlroute export records.jsonl --store answers.db
    """
    check_outputs(out, inputs=_files_of_store(store))
    with _store(store) as opened:
        from vlroute.records import write_records
        from vlroute.store import export as records_of

        found = records_of(opened)
        out.parent.mkdir(parents=True, exist_ok=True)
        written = write_records(out, found.records)
    typer.echo(f"wrote {written} records; {found.one_sided} requests have feedback on one mode only and were left out")


def _store(where: str) -> Store:
    """One that is there: a slip in its name must not make an empty one."""
    try:
        from vlroute.store import Store
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "store") from error
    return Store(where, create=False)


def _files_of_store(where: str) -> list[str]:
    """The files of an SQLite store, its write-ahead log included."""
    try:
        from vlroute.store import read_url
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "store") from error
    url = read_url(where)
    if url.get_backend_name() != "sqlite" or not url.database:
        return []
    return [url.database + ending for ending in ("", "-wal", "-shm", "-journal")]
