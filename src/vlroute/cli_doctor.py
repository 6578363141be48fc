"""`vlroute doctor`: what was found, as a table or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from vlroute.cli_options import AsJson, Pair, RouterFolder, StoreAt
from vlroute.doctor import examine
from vlroute.finding import Finding

MARKS = {"fine": "[green]✓[/]", "note": "[yellow]•[/]", "problem": "[red]✗[/]"}


def doctor(pair: Pair = None, router: RouterFolder = None, store: StoreAt = None, as_json: AsJson = False) -> None:
    """Say what is here and what is wrong with it.

    Packages and extras, devices, the pair and its towers, the router, the store, caches. Loads and fetches nothing.
    Ends with 1 if something prevents answering.

    vlroute doctor

    vlroute doctor --pair Qwen/Qwen3-VL-2B --store answers.db
    """
    with Progress(SpinnerColumn(), TextColumn("looking…"), console=Console(stderr=True), transient=True) as progress:
        progress.add_task("")
        findings = list(examine(pair, router, store))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2))
    else:
        _print(findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _print(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    section = ""
    for finding in findings:
        head = f"[bold]{finding.section}[/]" if finding.section != section else ""
        section = finding.section
        table.add_row(head, MARKS[finding.state], finding.what, _said(finding.found, finding.advice))
    console.print(table)


def _said(found: str, advice: str) -> Text:
    said = Text(found)
    if advice:
        said.append(f"\n→ {advice}", style="dim")
    return said
