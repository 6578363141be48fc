"""Answer every row of a data set in both modes and record how they did."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vlroute.checks import Whole
from vlroute.decision.text_encoder import STATIC, load_text_encoder
from vlroute.engine.settings import checked
from vlroute.errors import CheckpointError, InputError
from vlroute.file_lock import locked
from vlroute.files import check_outputs, make_folder, replace_file, sweep_drafts
from vlroute.inputs.messages import Conversation, parse
from vlroute.learning.choose import choose_requests
from vlroute.learning.dataset import Example, Source, examples
from vlroute.learning.evidence import EvidenceRow, Watch, evidence_file, write_evidence
from vlroute.learning.grading import Agreement, Grader, exact
from vlroute.learning.report import collection_report, collection_table
from vlroute.pipeline import RequestOptions
from vlroute.records import Outcome, Record, Skipped, append_lines, read_records, warn, write_records
from vlroute.steps import run
from vlroute.types import MODES, Answer, Mode

if TYPE_CHECKING:
    from vlroute.router import Router

#: If so many rows fail and none succeeds, the cause is not the rows.
HOPELESS = 20
KEPT_REASONS = 20
#: Ending of the file beside the records with the ids of the chosen rows.
CHOSEN = "chosen.json"


@dataclass(slots=True)
class Collected:
    """What one run did.

    Attributes:
        recorded: Rows recorded by this run.
        skipped: Rows recorded by an earlier run.
        failed: Rows that failed.
        without_gold: Recorded rows without a gold answer, labeled by agreement.
        rescued: Recorded rows in which Thinking gave no answer, so that the answer of Instruct is recorded for it.
        reasons: Why the first rows failed.
    """

    recorded: int = 0
    skipped: int = 0
    failed: int = 0
    without_gold: int = 0
    rescued: int = 0
    reasons: list[str] = field(default_factory=list)

    def fail(self, reason: str) -> None:
        """Count a row that failed.

        Args:
            reason: Where and why.
        """
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
    choose: int | None = None,
    answers: str | Path | None = None,
    strict: bool = False,
    console: Console | None = None,
) -> Collected:
    """Answer every row in both modes, append a record of it to `out`, and write a report beside it.

    The outcome of Thinking is what a user gets if Thinking is chosen. If Thinking gives no answer, this is the answer
    of Instruct that replaces it (`Decision.rescued`), with the tokens and seconds of both modes. Without a gold answer,
    such a row counts as equally right in both modes, and not as agreement.

    Nothing is cached between the modes and requests run one at a time, so the recorded seconds are those of a single
    user. Started again with the same settings, the function continues the earlier run: each row is on disk before the
    next one is asked, so a killed process loses only the row in progress. A row that fails is reported and left out;
    the next run tries it again.

    Args:
        router: The model that answers, and the source of captions.
        source: A path or name, or a `Source` with split and config.
        out: A `.jsonl` file. `….settings.json`, which a continued run must match, and `….report.md` are written beside
            it, and `….evidence.jsonl` with the evidence of the model for later stages.
        grader: Compares answers with gold answers.
        agreement: Labels rows without a gold answer. Without it, such rows fail.
        columns: Our names of columns → those of the data set, see `dataset.to_example`.
        generation: Generation settings of both modes, which override those of the router and the checkpoints.
        limit: Maximum number of rows.
        choose: Of the rows that are not recorded yet, answer only so many, which are typical and differ from each
            other, see `choose_examples`. `….chosen.json` is written beside `out`, so that an interrupted run continues
            with the same rows.
        answers: A `.jsonl` file for the texts of the answers, which are needed to check the grader. If a process is
            killed between this file and `out`, the row gets a second line here; the last one belongs to the record.
        strict: Stop at the first row that fails and at the first unusable line of `out`, instead of skipping it.
        console: Shows progress and the table of results.

    Returns:
        Counts and the reasons of failures.

    Raises:
        SettingsError: `limit`, `choose` or a generation setting is unknown or out of range.
        OutputError: A file cannot be written, or another process collects to `out`; this is checked first.
        InputError: The source cannot be read, the settings differ from those of the earlier run, or all rows failed.
            The last case is reported as soon as the first 20 rows have failed.
        CheckpointError: A checkpoint cannot be loaded.
        OSError: Writing fails.
    """
    if limit is not None:
        limit = Whole(1).read("limit", limit)
    if choose is not None:
        choose = Whole(1).read("choose", choose)
    notes = console or Console(stderr=True)
    console = console or Console()
    source = source if isinstance(source, Source) else Source(str(source))
    generation = checked(generation or {}, endpoints=router.remote is not None)
    out, settings = Path(out), run_settings(router, source, grader, agreement, columns, generation)
    check_outputs(*outputs(out, answers), inputs=[source.name])
    make_folder(out.parent, private=True)
    with locked(_beside(out, "settings.json"), wait=0):  # two runs would answer the same rows twice
        sweep_drafts(out.parent, *(glob.escape(one.name) for one in outputs(out)[2:]))
        done = _begin(out, settings, strict, notes)
        result, total = Collected(), source.count()
        total = limit if total is None else min(total, total if limit is None else limit)
        wanted = None
        if choose is not None:
            wanted = _chosen(out, choose, done, lambda: choose_examples(router, source, out, choose, columns, limit))
            total = len(wanted)
            if total < choose:
                notes.print(fewer_rows(total), markup=False, soft_wrap=True)
        job, pictured = _Job(router, grader, agreement, generation, result), False
        with _progress(notes, disable=total == 0) as progress:
            task = progress.add_task("both modes", total=total)
            for found in examples(source, columns, limit):
                if isinstance(found, InputError):
                    if strict:
                        raise found
                    result.fail(str(found))
                elif wanted is not None and found.id not in wanted:
                    continue
                elif found.id in done:
                    result.skipped += 1
                else:
                    pictured = pictured or bool(found.images) or found.video is not None
                    router.load()  # only when there is a usable row
                    if (answered := job.run(found)) is not None:
                        _write(out, None if answers is None else Path(answers), *answered)
                        done.add(found.id)
                        result.recorded += 1
                # rows of an earlier run take no time and would distort the estimate of the time left
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
        raise InputError(f"{source.name}: contains no rows")
    if result.recorded and not pictured:  # a column of another name would be ignored
        notes.print(
            f"warning: {source.name}: no row has a picture or video. If rows should have one, name the column: "
            "--map image=COLUMN",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
    replace_file(_beside(out, "report.md"), collection_report(records, settings, asdict(result)).encode(), private=True)
    console.print(collection_table(records))
    return result


def choose_examples(
    router: Router,
    source: Source,
    out: str | Path,
    count: int,
    columns: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Choose examples that are typical and differ from each other, see `choose_requests`.

    Args:
        router: The more uncertain its artifact is about the outcome of an example, the more this example counts.
        source: The data set. Gold answers are not used, and pictures are not opened.
        out: Records so far, if the file exists; their examples are not chosen again.
        count: How many are chosen.
        columns: As in `collect_records`.
        limit: As there.

    Returns:
        The examples, in the order of the choice.

    Raises:
        InputError: The source cannot be read, or `count` is not positive.
    """
    records = list(read_records(out, skipped=Skipped())) if Path(out).exists() else []
    done = {record.id for record in records}
    found = {one.id: one for one in examples(source, columns, limit) if isinstance(one, Example)}
    pool = [example for id_, example in found.items() if id_ not in done]
    chosen = choose_requests(
        [(one.prompt, one.caption) for one in pool], count, load_text_encoder(STATIC),
        labeled=[(one.prompt, one.caption) for one in records], classifier=router.selector.classifier,
    )  # fmt: skip
    return [pool[at] for at in chosen]


def fewer_rows(left: int) -> str:
    """The note if fewer rows can be chosen than wanted.

    Args:
        left: Number of usable rows without a record.

    Returns:
        A sentence for the user.
    """
    if left == 0:
        return "note: no row is left to choose: all usable rows have records"
    return f"note: only {left} usable {'row has' if left == 1 else 'rows have'} no record yet; all of them are chosen"


def chosen_ids(out: str | Path) -> list[str]:
    """Read the ids of the rows that `collect_records` chose for a file of records.

    Args:
        out: The file of records.

    Returns:
        Ids of the rows of the latest choice; empty if there was none.
    """
    try:
        ids: list[str] = json.loads(_beside(Path(out), CHOSEN).read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return ids


def _chosen(out: Path, count: int, done: set[str], choose: Callable[[], Sequence[Example]]) -> set[str]:
    """The ids of the chosen rows. An unfinished choice of as many rows is continued."""
    ids = chosen_ids(out)
    if len(ids) != count or done.issuperset(ids):
        ids = [example.id for example in choose()]
        replace_file(_beside(out, CHOSEN), json.dumps(ids, ensure_ascii=False).encode(), private=True)
    return set(ids)


@dataclass(frozen=True, slots=True)
class _Job:
    """Answers one example after the other."""

    router: Router
    grader: Grader
    agreement: Agreement | None
    generation: dict[str, Any]
    result: Collected

    def run(self, example: Example) -> tuple[Record, dict[str, Any], EvidenceRow | None] | None:
        """The record, the texts of both answers and the evidence of Instruct's answer.

        None if the example failed, which `result` counts.
        """
        try:
            if not example.answers and self.agreement is None:
                raise InputError("no gold answer; give one in 'answer', or label by agreement (--agreement)")
            videos = None if example.video is None else [example.video]
            conversation = parse(
                example.prompt, list(example.images), videos, None, self.router.limits, self.router.sampling
            )
            if not self.result.recorded:
                self._warm_up(conversation)
            watch = Watch()
            instruct = self._ask(conversation, "instruct", watch)
            thinking = self._ask(conversation, "thinking")
            right = self._right(example, instruct, thinking)
            turns = list(conversation.messages)
            caption = self.router.decide(turns, caption=example.caption).caption
            record = Record(
                example.id, example.prompt, caption, outcome_of(right[0], instruct), outcome_of(right[1], thinking),
                set=example.set, topic=example.topic, level=example.level, language=example.language,
                model=self.router.identity.name, fingerprint=self.router.identity.fingerprint or "",
            )  # fmt: skip
        except CheckpointError:  # every other row would fail, too
            raise
        except Exception as error:  # anything that a single row can cause, out of memory for a huge picture included
            self.result.fail(f"{example.place} ({example.id}): {str(error) or type(error).__name__}")
            return None
        self.result.without_gold += not example.answers
        self.result.rescued += thinking.decision.rescued
        texts = {mode: answer.text for mode, answer in zip(MODES, (instruct, thinking), strict=True)}
        right_by_mode = dict(zip(MODES, right, strict=True))
        evidence = watch.row(example.id, *model_of_evidence(self.router))
        written = {"id": example.id, "gold": example.answers, "answers": texts, "right": right_by_mode}
        return record, written | {"rescued": thinking.decision.rescued}, evidence

    def _warm_up(self, conversation: Conversation) -> None:
        """Answer once without recording: the first answers of a process are slower than later ones."""
        for mode in MODES:
            short = {"min_new_tokens": 0, "max_new_tokens": 2, "answer_reserve": 0}
            self.router.ask(list(conversation.messages), mode=mode, **{**self.generation, **short})

    def _ask(self, conversation: Conversation, mode: Mode, watch: Watch | None = None) -> Answer:
        self.router.forget()  # otherwise the second mode would find the picture in the cache
        options = RequestOptions(mode=mode, generation=self.generation, trial=None if watch is None else watch.trial)
        return run(self.router.pipeline.answer(conversation, options))

    def _right(self, example: Example, instruct: Answer, thinking: Answer) -> tuple[float | bool, float | bool]:
        if example.answers or self.agreement is None:
            texts = instruct.text, thinking.text
            right = [bool(text.strip()) and self.grader(text, example) for text in texts]
            return right[0], right[1]
        if thinking.decision.rescued:  # both answers are from Instruct, so they are right equally often
            share, _ = self.agreement(instruct.text, "", example)
            return share, share
        return self.agreement(instruct.text, thinking.text, example)


def _write(
    out: Path, answers: Path | None, record: Record, texts: dict[str, Any], evidence: EvidenceRow | None
) -> None:
    """Append one row to the files. The record is the last: without it, a continued run answers the row again."""
    if answers is not None:
        make_folder(answers.parent, private=True)
        append_lines(answers, (json.dumps(texts, ensure_ascii=False) + "\n").encode())
    if evidence is not None:
        write_evidence(evidence_file(out), [evidence], append=True)
    write_records(out, [record], append=True)


def model_of_evidence(router: Router) -> tuple[str, bool]:
    """Properties of the loaded model that its evidence depends on.

    Args:
        router: A loaded router.

    Returns:
        The number type of the model, and whether both modes share a prompt; "" and False over endpoints.
    """
    if router.scheduler is None:
        return "", False
    instruct, thinking = (router.pair[mode].model for mode in MODES)
    return str(instruct.dtype).removeprefix("torch."), instruct is thinking


def outcome_of(right: float | bool, answer: Answer) -> Outcome:
    """Combine a grade with the tokens and seconds of the answer, without the seconds of caption and decision.

    Args:
        right: Whether the answer is right, or its score from 0 to 1.
        answer: The answer.

    Returns:
        The outcome for a record.
    """
    prefill = answer.timing.vision + answer.timing.prefill
    seconds = round(prefill + answer.timing.decode, 5)
    return Outcome(right, answer.usage.completion_tokens, seconds, round(prefill, 5))


def outputs(out: str | Path, answers: str | Path | None = None) -> list[Path]:
    """List the files that `collect_records` writes.

    Args:
        out: As there.
        answers: As there.

    Returns:
        Their paths.
    """
    beside = [_beside(Path(out), ending) for ending in ("settings.json", "report.md", CHOSEN)]
    files = [Path(out), evidence_file(out), *beside]
    return files if answers is None else [*files, Path(answers)]


def _begin(out: Path, settings: dict[str, Any], strict: bool, console: Console) -> set[str]:
    """The ids recorded so far. InputError if `out` belongs to a run with other settings or to another program."""
    if out.suffix != ".jsonl":
        raise InputError(f"{out}: records are appended to a .jsonl file; compress it when it is complete")
    kept = _beside(out, "settings.json")
    if not out.exists():
        replace_file(kept, json.dumps(settings, ensure_ascii=False, indent=2).encode(), private=True)
        return set()
    try:
        before = json.loads(kept.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{out} exists, but its settings cannot be read ({kept.name}: {error}); choose another file"
        ) from error
    if isinstance(before, dict) and "judge" in before:  # written with the names before this version
        before["model"], before["grader"] = before.pop("pair", None), str(before.pop("judge"))
        before["grader"] = before["grader"].replace("vlroute.learning.judges:", "vlroute.learning.grading:")
    changed = [name for name in settings if before.get(name) != settings[name]]
    if changed:
        name = changed[0]
        raise InputError(
            f"{out} was collected with {name} {before.get(name)!r}, not {settings[name]!r}; "
            "use the same settings to continue, or choose another file"
        )
    write_records(out, [], append=True)  # removes an incomplete last line
    skipped = Skipped()
    done = {record.id for record in read_records(out, skipped=None if strict else skipped)}
    warn(console, skipped)  # the rows of these lines are answered again
    return done


def run_settings(
    router: Router,
    source: Source,
    grader: Grader,
    agreement: Agreement | None,
    columns: Mapping[str, Sequence[str]] | None,
    generation: Mapping[str, Any],
) -> dict[str, Any]:
    """Describe everything that the labels depend on.

    Args:
        router: As in `collect_records`, like the other arguments.
        source: The data set.
        grader: The grader.
        agreement: Labels rows without a gold answer.
        columns: The column mapping.
        generation: Checked generation settings.

    Returns:
        Plain JSON values; a continued run must have equal ones.
    """
    found = {
        "source": asdict(source),
        "model": [str(router.instruct), str(router.thinking)],
        "generation": {**router.generation, **generation},
        "grader": _name(grader),
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


def _progress(console: Console, *, disable: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, speed_estimate_period=3600, disable=disable)
