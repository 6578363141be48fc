"""The commands that gather labels and learn from them: collect, feedback, export, train, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from vlroute.errors import VLRouteError

Records = Annotated[list[Path], typer.Argument(help=".jsonl or .jsonl.gz files of labelled records.")]
Together = Annotated[
    Literal["text", "record"],
    typer.Option(help='What shares a fold: "text" predicts texts never seen, "record" suits prompts from templates.'),
]
Folds = Annotated[int, typer.Option(min=2, help="How many parts; each is predicted by a model that saw the others.")]
Seeds = Annotated[int, typer.Option(min=1, help="How many ways of cutting the parts are averaged.")]
StoreAt = Annotated[str, typer.Option("--store", help="The file of the store, or a postgresql:// URL.")]


class TrainingExtraMissing(VLRouteError):
    """Training needs packages that answering does not."""

    def __init__(self, error: ModuleNotFoundError) -> None:
        super().__init__(f"{error}: training needs more than running; pip install 'vlroute[train]'")


def train(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for router.json, weights.safetensors and report.md.")],
    oof: Annotated[Path | None, typer.Option(help="File for each record's out-of-fold probabilities.")] = None,
    price: Annotated[float, typer.Option(help="For the routed rows of the report only.")] = 0.1,
    folds: Folds = 5,
    seeds: Seeds = 2,
    together: Together = "text",
) -> None:
    """Retrain the router from records of what each mode got right; see docs/decision.md for their form.

    vlroute train records.jsonl --out my-router
    """
    try:
        from vlroute.learning.train import train as learn
    except ModuleNotFoundError as error:
        raise TrainingExtraMissing(error) from error
    learn(records, out, oof=oof, price=price, folds=folds, seeds=seeds, together=together)
    typer.echo(f"wrote {out}")


def curves(
    records: Records,
    out: Annotated[Path, typer.Option(help="Folder for curves.html and the figures as PNG.")],
    oof: Annotated[Path | None, typer.Option(help="What `vlroute train --oof` wrote; else models are trained.")] = None,
    folds: Folds = 5,
    seeds: Seeds = 2,
    together: Together = "text",
    language: Annotated[Literal["en", "zh"], typer.Option(help="Of the page and its figures.")] = "en",
) -> None:
    """Draw accuracy against latency and thinking share, and how well calibrated the probabilities are.

    vlroute train records.jsonl --out my-router --oof oof.jsonl

    vlroute curves records.jsonl --oof oof.jsonl --out curves
    """
    try:
        from vlroute.learning.curves_command import read_oof, write_curves
        from vlroute.learning.evaluate import predict_unseen
        from vlroute.learning.records import read_records
    except ModuleNotFoundError as error:
        raise TrainingExtraMissing(error) from error
    found = list(read_records(*records))
    console = Console()
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=folds * seeds, visible=oof is None)
        predicted = (
            read_oof(oof, found)
            if oof is not None
            else predict_unseen(
                found, folds=folds, seeds=seeds, together=together, advance=lambda: progress.advance(task)
            )
        )
    with console.status("drawing"):
        written = write_curves(found, predicted, out, language=language)
    typer.echo(f"wrote {written[-1]}")


def collect(context: typer.Context) -> None:
    """Run both modes over your own questions and pictures, and record what each got right. More: --help.

    vlroute collect questions.jsonl --out records.jsonl
    """
    from vlroute.learning.collect_command import main

    raise typer.Exit(main(context.args))


def feedback(
    answer: Annotated[str, typer.Argument(help="The id of an answer, `Answer.id`.")],
    store: StoreAt,
    correct: Annotated[bool, typer.Option("--correct/--wrong", help="Was it right?")],
    comment: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Say whether a stored answer was right.

    vlroute feedback 4f0c… --wrong --store answers.db
    """
    from vlroute.store import Store

    Store(store).feedback(answer, correct=correct, comment=comment)


def export(
    out: Annotated[Path, typer.Argument(help="The file of records to write, .jsonl or .jsonl.gz.")], store: StoreAt
) -> None:
    """Turn stored answers and the feedback on them into records for training.

    vlroute export records.jsonl --store answers.db
    """
    from vlroute.learning.records import write_records
    from vlroute.store import Store
    from vlroute.store import export as records_of

    found = records_of(Store(store))
    written = write_records(out, found.records)
    typer.echo(f"wrote {written} records; {found.one_sided} requests have feedback on one mode only and were left out")
