"""Both modes over a user's data set: records to learn from, and a table of what each mode is worth."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlroute.checks import Whole
from vlroute.engine.settings import checked
from vlroute.errors import CheckpointError, InputError
from vlroute.files import check_outputs, replace_file
from vlroute.learning.collect_report import as_markdown, as_table
from vlroute.learning.dataset import Example, examples
from vlroute.learning.judges import Agreement, AnswerJudge, exact
from vlroute.learning.records import Outcome, Record, Skipped, read_records, write_records
from vlroute.learning.rows import Source
from vlroute.messages import Conversation, parse
from vlroute.modes import MODES, Mode

if TYPE_CHECKING:
    from vlroute.answer import Answer
    from vlroute.router import Router

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


def collect(
    router: Router,
    source: Source | str | Path,
    out: str | Path,
    *,
    judge: AnswerJudge = exact,
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
    out, settings = Path(out), _settings(router, source, judge, agreement, columns, generation)
    check_outputs(*outputs(out, answers), inputs=[source.name])
    done = _begin(out, settings, strict, notes)
    result, total = Collected(), source.count()
    total = limit if total is None else min(total, total if limit is None else limit)
    job = _Job(router, judge, agreement, generation, result)
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
    replace_file(_beside(out, "report.md"), as_markdown(records, settings, result).encode())
    console.print(as_table(records))
    return result


@dataclass(frozen=True, slots=True)
class _Job:
    """Runs one example; gives its record and both answers, or None after noting why not."""

    router: Router
    judge: AnswerJudge
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
            right = [bool(text.strip()) and self.judge(text, example) for text in (instruct, thinking)]
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
    judge: AnswerJudge,
    agreement: Agreement | None,
    columns: Mapping[str, Sequence[str]] | None,
    generation: Mapping[str, Any],
) -> dict[str, Any]:
    """All that the labels depend on, as plain JSON values."""
    found = {
        "source": asdict(source),
        "pair": [str(router.instruct), str(router.thinking)],
        "generation": {**router.generation, **generation},
        "judge": _name(judge),
        "agreement": None if agreement is None else {**asdict(agreement), "alike": _name(agreement.alike)},
        "columns": {name: list(theirs) for name, theirs in (columns or {}).items()},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


def _name(judge: AnswerJudge) -> str:
    module, name = getattr(judge, "__module__", ""), getattr(judge, "__qualname__", None)
    return repr(judge) if name is None else f"{module}:{name}"


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.stem}.{ending}")


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, speed_estimate_period=3600)
