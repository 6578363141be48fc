"""The command line of `training/collect.py`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vlroute.decision.artefact import artefact_files
from vlroute.errors import InputError, VLRouteError
from vlroute.files import check_outputs
from vlroute.learning.collect import collect, outputs
from vlroute.learning.dataset import parse_columns
from vlroute.learning.judges import Agreement, AnswerJudge, judge_named, load_judge
from vlroute.learning.rows import Source
from vlroute.modes import MODES

ASSUMED = Agreement()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; gives the exit status: 1 for files that cannot be written, 2 for unusable input, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    console, errors = Console(), Console(stderr=True)
    try:
        result = run(options)
    except (VLRouteError, TypeError, OSError) as error:
        errors.print(f"error: {error}", markup=False, soft_wrap=True)
        return 1 if isinstance(error, OSError) else 2
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here", markup=False)
        return 130
    console.print(f"wrote {options.out}: {result.recorded} new records", markup=False, soft_wrap=True)
    if result.failed:
        errors.print(f"{result.failed} rows failed, such as {result.reasons[0]}", markup=False, soft_wrap=True)
    return 0


def run(options: argparse.Namespace) -> Any:
    """What `main` does, errors left alone."""
    judge = chosen_judge(options.judge, options.tolerance)
    agreement = None if options.agreement is None else parse_agreement(options.agreement, judge)
    columns = parse_columns(options.map)
    settings = parse_settings(options.set)
    read = [Path(options.source), *([] if options.router is None else artefact_files(options.router))]
    read += [] if options.pair is None else [Path(options.pair)]
    check_outputs(*outputs(options.out, options.answers), inputs=read)
    from vlroute.router import Router

    router = Router.from_pretrained(
        options.pair, router=options.router, device=options.device, dtype=options.dtype,
        generation=settings,
    )  # fmt: skip
    return collect(
        router,
        Source(options.source, options.split, options.config),
        options.out,
        judge=judge,
        agreement=agreement,
        columns=columns,
        limit=options.limit,
        answers=options.answers,
        strict=options.strict,
    )


def chosen_judge(name: str, tolerance: float) -> AnswerJudge:
    """A judge by its name, or the user's own by module:function, with the working folder to import from."""
    if ":" not in name:
        return judge_named(name, tolerance)
    sys.path.insert(0, os.getcwd())
    try:
        return load_judge(name)
    finally:
        sys.path.remove(os.getcwd())


def parse_agreement(text: str, judge: AnswerJudge) -> Agreement:
    """ "0.8,0.2,0.5": how often agreed answers are right, and Instruct and Thinking where they differ. InputError."""
    try:
        agree, instruct, thinking = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"cannot read the shares {text!r}; expected three such as 0.8,0.2,0.5") from error
    return Agreement(judge, agree, instruct, thinking)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """["do_sample=false", "thinking.max_new_tokens=4096"] as `Router.from_pretrained(generation=…)` takes it."""
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="collect", description="Run both modes over a data set and record how they did."
    )
    add = parser.add_argument
    add("source", help=".jsonl(.gz), .csv(.gz) or .parquet file, save_to_disk folder, or a hub data set's name")
    add("--split", help="of a data set that has several")
    add("--config", help="of a hub data set that has several")
    add("--out", type=Path, required=True, help=".jsonl file for the records; an earlier run is continued")
    add("--pair", help="hub name such as Qwen/Qwen3-VL-2B, or a folder with instruct/ and thinking/")
    add("--router", type=Path, help="folder of a router artefact")
    add("--device")
    add("--dtype")
    add("--map", default="", help="columns that are named otherwise: prompt=question,answer=label")
    add("--judge", default="exact", help="exact, number, choice, regex, or your own as module:function")
    add("--tolerance", type=float, default=0.0, help="of the judge number, relative to the gold number")
    add(
        "--agreement",
        nargs="?",
        const=f"{ASSUMED.agree},{ASSUMED.instruct},{ASSUMED.thinking}",
        metavar="AGREED,INSTRUCT,THINKING",
        help="judge rows without gold by whether the modes agree: how often agreed answers are taken to be right, "
        "and each mode where they differ (default: %(const)s)",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="generation setting; may be repeated")
    add("--limit", type=int, help="only the first rows")
    add("--answers", type=Path, help=".jsonl file for what the modes said, to check the judge by")
    add("--strict", action="store_true", help="stop at the first row or line that cannot be used; default: skip it")
    return parser
