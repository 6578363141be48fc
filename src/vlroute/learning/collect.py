"""What each mode was worth on a data set, family by family: a table for the terminal and a page of Markdown."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from vlroute.checks import Whole
from vlroute.decision.artifact import artifact_files
from vlroute.decision.wilson import share_interval
from vlroute.engine.settings import checked
from vlroute.errors import CheckpointError, InputError, VLRouteError
from vlroute.files import check_outputs, replace_file
from vlroute.inputs.messages import Conversation, parse
from vlroute.learning.dataset import Example, Source, examples, parse_columns
from vlroute.learning.grading import Agreement, Grader, exact, grader_named, load_grader
from vlroute.learning.intervals import Interval, Sampling, Values
from vlroute.records import Outcome, Record, Skipped, outcomes, read_records, write_records
from vlroute.types import MODES, Mode

if TYPE_CHECKING:
    from vlroute.router import Router
    from vlroute.types import Answer

_COLUMNS = (
    "family",
    "records",
    "accuracy Instruct",
    "accuracy Thinking",
    "seconds Instruct",
    "seconds Thinking",
)
_NOTE = """\
Accuracy: mean of `correct`. Seconds: mean of what a user waits for one answer, picture and prefill included, with one
request at a time. Brackets are 95 % intervals (Wilson for accuracy). They cover the sampling of the records, as if each
were drawn alone, and not other kinds of questions: where those of the two modes overlap widely, the table cannot tell
which is better. `vlroute train` learns a router from the records."""
_AGREEMENT = """\
Rows without a gold answer were labelled by whether the two modes agree, at the shares in the settings below. Their
accuracies are therefore assumed and not measured: only the share of agreement is. See `learning.judges.Agreement`."""


def collected_table(records: Sequence[Record]) -> Table:
    """Accuracy and seconds by family and mode, for the terminal."""
    table = Table(
        title=f"{len(records)} records",
        caption="brackets: 95 % intervals · seconds: what a user waits",
    )
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in _rows(records):
        table.add_row(*row, style="bold" if row[0] == "all" else None)
    return table


def collected_page(records: Sequence[Record], settings: Mapping[str, Any], result: Collected) -> str:
    """The whole report. `result`: of the run that wrote it; `settings`: what all its runs shared."""
    lines = [
        _COLUMNS,
        ("---",) * len(_COLUMNS),
        *(tuple(map(_escaped, row)) for row in _rows(records)),
    ]
    parts = [
        "# What each mode is worth here",
        "\n".join("| " + " | ".join(line) + " |" for line in lines),
        _NOTE,
    ]
    if settings.get("agreement"):
        parts.append(_AGREEMENT)
    parts += [
        "## This run",
        f"{result.recorded} recorded, {result.without_gold} of them without gold; {result.skipped} were recorded "
        f"before; {result.failed} failed and are not in the table.",
    ]
    if result.reasons:
        parts.append("\n".join(f"* {_escaped(reason)}" for reason in result.reasons))
    parts += ["## Settings", "```json\n" + json.dumps(settings, ensure_ascii=False, indent=2) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """One row a family, the largest first, and one for all of them if there are several."""
    families: dict[str, list[Record]] = {}
    for record in records:
        families.setdefault(record.family or record.set or "unnamed", []).append(record)
    rows = [_row(name, some) for name, some in sorted(families.items(), key=lambda item: (-len(item[1]), item[0]))]
    return rows if len(rows) == 1 else [*rows, _row("all", records)]


def _row(name: str, records: Sequence[Record]) -> tuple[str, ...]:
    right = [[float(one.correct) for one in outcomes(records, mode)] for mode in MODES]
    seconds = [[one.seconds for one in outcomes(records, mode) if one.seconds is not None] for mode in MODES]
    return (
        name,
        str(len(records)),
        *(_mean(values, share_interval, "{:.1%}", "{:.0%}") for values in right),
        *(_mean(values, _of_seconds, "{:.2f}", "{:.2f}") for values in seconds),
    )


def _of_seconds(values: Values) -> Interval | None:
    return Sampling(len(values)).positive_mean(values)


def _mean(values: Sequence[float], interval_of: Callable[[Values], Interval | None], form: str, bound: str) -> str:
    """Mean and its interval."""
    if not values:
        return "–"
    array = np.asarray(values, np.float64)
    interval = interval_of(array)
    bounds = "" if interval is None else f" ({bound.format(interval[0])} – {bound.format(interval[1])})"
    return form.format(array.mean()) + bounds


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


BATCH = 16  # rows
FLUSH_SECONDS = 10.0
HOPELESS = 20  # rows that all fail at the start: something else than the rows is wrong
KEPT_REASONS = 20


@dataclass(slots=True)
class Collected:
    """What one run did: rows recorded, done before, failed, and judged by agreement; the first reasons for failing."""

    recorded: int = 0
    skipped: int = 0
    failed: int = 0
    without_gold: int = 0
    reasons: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        self.failed += 1
        if len(self.reasons) < KEPT_REASONS:
            self.reasons.append(reason)


def collect_records(
    router: Router,
    source: Source | str | Path,
    out: str | Path,
    *,
    grader: Grader = exact,
    agreement: Agreement | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    generation: Mapping[str, Any] | None = None,
    limit: int | None = None,
    answers: str | Path | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Collected:
    """Answer every row in both modes and append a record of it to `out`; then write the report beside it.

    Each mode is run as if the picture were new, one request at a time, so that its seconds are those a user waits.
    Started again with the same settings, it goes on where it stopped: a kill costs at most the rows of the last
    `FLUSH_SECONDS` or the row that runs. A row that fails is reported and left out, and tried again by the next run.

    Args:
        source: see `rows.Source`; with a path or name, of a data set without splits.
        out: a `.jsonl` file. Beside it come `….settings.json` (what a resumed run must share) and `….report.md`.
        judge: compares answers with gold.
        agreement: judges rows without gold; without it they fail.
        columns: our names → the data set's, see `dataset.to_example`.
        generation: settings for both modes, over the router's; without any, each checkpoint's own.
        limit: stop after so many rows of the data set.
        answers: a `.jsonl` file for what the modes said, to check the judge by.
        strict: stop at the first row that fails or line of `out` that cannot be read, instead of skipping it.

    Raises:
        SettingsError: a generation setting that is unknown or has an impossible value.
        OutputError: a file cannot be written; checked first.
        InputError: the source cannot be read, the settings differ from those `out` was begun with, or every row
            failed (already when the first 20 did).
        CheckpointError: a checkpoint cannot be loaded.
        OSError: the disk refuses.
    """
    if limit is not None:
        limit = Whole(1).read("limit", limit)
    notes = console or Console(stderr=True)
    console = console or Console()
    source = source if isinstance(source, Source) else Source(str(source))
    generation = checked(generation or {}, endpoints=router.remote is not None)
    out, settings = Path(out), _settings(router, source, grader, agreement, columns, generation)
    check_outputs(*outputs(out, answers), inputs=[source.name])
    done = _begin(out, settings, strict, notes)
    result, total = Collected(), source.count()
    total = limit if total is None else min(total, total if limit is None else limit)
    job = _Job(router, grader, agreement, generation, result)
    with _Output(out, None if answers is None else Path(answers)) as output, _progress(notes) as progress:
        task = progress.add_task("both modes", total=total)
        for found in examples(source, columns, limit):
            if isinstance(found, InputError):
                if strict:
                    raise found
                result.fail(str(found))
            elif found.id in done:
                result.skipped += 1
            else:
                router.load()  # not before a row can be used
                if (answered := job.run(found)) is not None:
                    done.add(found.id)
                    result.recorded += 1
                    output.add(*answered)
            # rows done before leave the total, or the time left would be reckoned at their speed
            left = None if total is None else total - result.skipped
            ran, note = result.recorded + result.failed, f"both modes, {result.failed} failed"
            progress.update(task, total=left, completed=ran, description=note)
            if strict and result.failed:
                raise InputError(result.reasons[0])
            if result.failed >= HOPELESS and not result.recorded and not result.skipped:
                break
    if result.failed and not result.recorded and not result.skipped:
        raise InputError(f"all of the first {result.failed} rows failed; the first: {result.reasons[0]}")
    records = list(read_records(out, skipped=Skipped())) if out.exists() else []
    if not records:
        raise InputError(f"{source.name}: holds no rows")
    replace_file(_beside(out, "report.md"), collected_page(records, settings, result).encode())
    console.print(collected_table(records))
    return result


@dataclass(frozen=True, slots=True)
class _Job:
    """Runs one example; gives its record and both answers, or None after noting why not."""

    router: Router
    grader: Grader
    agreement: Agreement | None
    generation: dict[str, Any]
    result: Collected

    def run(self, example: Example) -> tuple[Record, dict[str, Any]] | None:
        try:
            if not example.answers and self.agreement is None:
                raise InputError("no gold answer; give one in 'answer', or judge by agreement (--agreement)")
            videos = None if example.video is None else [example.video]
            conversation = parse(
                example.prompt, list(example.images), videos, None, self.router.limits, self.router.sampling
            )
            if not self.result.recorded:
                self._warm_up(conversation)
            instruct, thinking = (self._ask(conversation, mode) for mode in MODES)
            right = self._right(example, instruct.text, thinking.text)
            turns = list(conversation.messages)
            caption = self.router.decide(turns, caption=example.caption).caption
            record = Record(
                example.id, example.prompt, caption, _outcome(right[0], instruct), _outcome(right[1], thinking),
                set=example.set, family=example.family, grade=example.grade, language=example.language,
                pair=self.router.identity.name, fingerprint=self.router.identity.fingerprint or "",
            )  # fmt: skip
        except CheckpointError:  # no row can do better
            raise
        except Exception as error:  # whatever one row meets, memory run out for a huge picture too
            self.result.fail(f"{example.place} ({example.id}): {str(error) or type(error).__name__}")
            return None
        self.result.without_gold += not example.answers
        said = {mode: answer.text for mode, answer in zip(MODES, (instruct, thinking), strict=True)}
        right_by_mode = dict(zip(MODES, right, strict=True))
        return record, {"id": example.id, "gold": example.answers, "said": said, "right": right_by_mode}

    def _warm_up(self, conversation: Conversation) -> None:
        """A process's first answers are slow, for memory and kernels are set up: they are not recorded."""
        for mode in MODES:
            self.router.ask(
                list(conversation.messages), mode=mode, **{**self.generation, "min_new_tokens": 0, "max_new_tokens": 2}
            )

    def _ask(self, conversation: Conversation, mode: Mode) -> Answer:
        self.router.forget()  # each mode pays for its own picture
        return self.router.ask(list(conversation.messages), mode=mode, **self.generation)

    def _right(self, example: Example, instruct: str, thinking: str) -> tuple[float | bool, float | bool]:
        if example.answers:
            right = [bool(text.strip()) and self.grader(text, example) for text in (instruct, thinking)]
            return right[0], right[1]
        if self.agreement is None:
            raise InputError("no gold answer")
        return self.agreement(instruct, thinking, example)


class _Output:
    """Appends in batches; a batch is on the disk once it was written."""

    def __init__(self, records: Path, answers: Path | None) -> None:
        self._records, self._answers = records, answers
        self._batch: list[Record] = []
        self._said: list[dict[str, Any]] = []
        self._written = time.monotonic()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, record: Record, said: dict[str, Any]) -> None:
        self._batch.append(record)
        self._said.append(said)
        if len(self._batch) >= BATCH or time.monotonic() - self._written > FLUSH_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if self._answers is not None and self._said:
            self._answers.parent.mkdir(parents=True, exist_ok=True)
            with self._answers.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in self._said)
        if self._batch:
            write_records(self._records, self._batch, append=True)
        self._batch, self._said, self._written = [], [], time.monotonic()


def _outcome(right: float | bool, answer: Answer) -> Outcome:
    prefill = answer.timing.vision + answer.timing.prefill
    seconds = round(prefill + answer.timing.decode, 5)
    return Outcome(right, answer.usage.completion_tokens, seconds, round(prefill, 5))


def outputs(out: str | Path, answers: str | Path | None = None) -> list[Path]:
    """The files that `collect` writes."""
    files = [Path(out), *(_beside(Path(out), ending) for ending in ("settings.json", "report.md"))]
    return files if answers is None else [*files, Path(answers)]


def _begin(out: Path, settings: dict[str, Any], strict: bool, console: Console) -> set[str]:
    """The ids recorded so far. InputError if `out` was begun with other settings, or by something else."""
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: records are appended to a .jsonl file; compress it when it is whole")
    kept = _beside(out, "settings.json")
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, json.dumps(settings, ensure_ascii=False, indent=2).encode())
        return set()
    try:
        before = json.loads(kept.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{out} is there, but what it was made with is not ({kept.name}: {error}); choose another file"
        ) from error
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        name = changed[0]
        raise InputError(
            f"{out} was begun with {name} {before.get(name)!r}, not {settings[name]!r}; "
            "go on with the same settings, or choose another file"
        )
    write_records(out, [], append=True)  # mends a last line that a kill tore
    skipped = Skipped()
    done = {record.id for record in read_records(out, skipped=None if strict else skipped)}
    if skipped.count:  # the rows of these lines are answered again
        console.print(f"warning: {skipped}", style="yellow", markup=False, soft_wrap=True)
    return done


def _settings(
    router: Router,
    source: Source,
    grader: Grader,
    agreement: Agreement | None,
    columns: Mapping[str, Sequence[str]] | None,
    generation: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the labels depend on, as plain JSON values."""
    found = {
        "source": asdict(source),
        "pair": [str(router.instruct), str(router.thinking)],
        "generation": {**router.generation, **generation},
        "judge": _name(grader),
        "agreement": None if agreement is None else {**asdict(agreement), "alike": _name(agreement.alike)},
        "columns": {name: list(theirs) for name, theirs in (columns or {}).items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def _name(grader: Grader) -> str:
    module, name = getattr(grader, "__module__", ""), getattr(grader, "__qualname__", None)
    return repr(grader) if name is None else f"{module}:{name}"


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.stem}.{ending}")


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, speed_estimate_period=3600)


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
    grader = chosen_grader(options.grader, options.tolerance)
    agreement = None if options.agreement is None else parse_agreement(options.agreement, grader)
    columns = parse_columns(options.map)
    settings = parse_settings(options.set)
    read = [Path(options.source), *([] if options.router is None else artifact_files(options.router))]
    read += [] if options.model is None else [Path(options.model)]
    check_outputs(*outputs(options.out, options.answers), inputs=read)
    from vlroute.router import Router

    router = Router.from_pretrained(
        options.model, router=options.router, device=options.device, dtype=options.dtype,
        generation=settings,
    )  # fmt: skip
    return collect_records(
        router,
        Source(options.source, options.split, options.config),
        options.out,
        grader=grader,
        agreement=agreement,
        columns=columns,
        limit=options.limit,
        answers=options.answers,
        strict=options.strict,
    )


def chosen_grader(name: str, tolerance: float) -> Grader:
    """A judge by its name, or the user's own by module:function, with the working folder to import from."""
    if ":" not in name:
        return grader_named(name, tolerance)
    sys.path.insert(0, os.getcwd())
    try:
        return load_grader(name)
    finally:
        sys.path.remove(os.getcwd())


def parse_agreement(text: str, grader: Grader) -> Agreement:
    """ "0.8,0.2,0.5": how often agreed answers are right, and Instruct and Thinking where they differ. InputError."""
    try:
        agree, instruct, thinking = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"cannot read the shares {text!r}; expected three such as 0.8,0.2,0.5") from error
    return Agreement(grader, agree, instruct, thinking)


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
    add("--model", help="hub name such as Qwen/Qwen3-VL-2B, or a folder with instruct/ and thinking/")
    add("--router", type=Path, help="folder of a router artifact")
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
