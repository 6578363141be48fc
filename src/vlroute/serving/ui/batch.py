"""The Batch tab: answers a table of questions about pictures.

Table and pictures come from uploaded files and zip files. Nothing is unpacked to disk, and picture names in the table
are only looked up among the uploaded files.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any

import gradio as gr

from vlroute.errors import InputError, LimitError, UnreadableMediaError
from vlroute.files import read_at_most
from vlroute.inputs.media import load_picture
from vlroute.inputs.messages import parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.components import (
    ANSWERING,
    INSTANT,
    REDRAW_SECONDS,
    SESSION_SECONDS,
    Answerer,
    ErrorNotice,
    Texts,
    error_text,
    forced,
    mode_choice,
    signed,
    stop_session,
    visitor_namespace,
)
from vlroute.types import Finished

MAX_ROWS = 1000
MAX_MEMBERS = 5000
MAX_TABLE_BYTES = 8 * 2**20
MAX_UNPACKED_BYTES = 2**31
TABLES = (".csv", ".jsonl")
PROMPTS, IMAGES = ("prompt", "question"), ("image", "picture")


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One question and the name of its picture; "" for none."""

    prompt: str
    image: str


Reader = Callable[[int], bytes]
"""Reads at most this many bytes of a file, plus one if the file is longer."""


@dataclass(frozen=True, slots=True)
class Job:
    """A table and its pictures.

    Attributes:
        rows: the questions.
        pictures: readers by full name, and by file name if it is unique; None for an ambiguous name.
    """

    rows: tuple[BatchRow, ...]
    pictures: dict[str, Reader | None]

    def picture(self, name: str, most: int) -> bytes:
        """Read one picture.

        Args:
            name: name in the table.
            most: maximum size in bytes.

        Returns:
            The bytes, at most `most` + 1.

        Raises:
            UnreadableMediaError: the picture was not uploaded, its name is ambiguous, or the zip file is damaged.
        """
        plain = _plain(name)
        reader = self.pictures.get(plain) or self.pictures.get(PurePosixPath(plain).name)
        if reader is None:
            many = plain in self.pictures or PurePosixPath(plain).name in self.pictures
            why = "is there more than once; name it with its folder" if many else "was not uploaded with the table"
            raise UnreadableMediaError(f"the picture {name[:100]!r} {why}")
        return reader(most)


def read_job(files: Sequence[str]) -> Job:
    """Find the table and the pictures in uploaded files and zip files.

    Args:
        files: paths of the uploaded files.

    Returns:
        The job.

    Raises:
        InputError: there is no table or more than one, the table cannot be read, or a zip file is damaged.
        LimitError: too many rows or files, or the table or a zip file is too large.
    """
    found: list[tuple[str, Reader]] = []
    for file in files:
        if file.lower().endswith(".zip"):
            found += _members(file)
        else:
            found.append((Path(file).name, partial(read_at_most, file)))
    if len(found) > MAX_MEMBERS:
        raise LimitError(f"{len(found)} files are over the limit of {MAX_MEMBERS}; split the batch")
    tables = [(name, reader) for name, reader in found if name.lower().endswith(TABLES)]
    if len(tables) != 1:
        names = ", ".join(name for name, _ in tables[:5]) or "none"
        raise InputError(f"a batch needs exactly one table (.csv or .jsonl), found: {names}")
    name, reader = tables[0]
    data = reader(MAX_TABLE_BYTES)
    if len(data) > MAX_TABLE_BYTES:
        raise LimitError(f"{name} is over the limit of {MAX_TABLE_BYTES} bytes; split the batch")
    rows = tuple(_rows(name, data))
    if not rows:
        raise InputError(f"{name} holds no rows; expected one question a row")
    return Job(rows, _by_name([(name, reader) for name, reader in found if not name.lower().endswith(TABLES)]))


def _by_name(found: list[tuple[str, Reader]]) -> dict[str, Reader | None]:
    """Readers by full name and by file name; None for an ambiguous name."""
    pictures: dict[str, Reader | None] = {}
    for name, reader in found:
        for key in {name, PurePosixPath(name).name}:
            pictures[key] = None if key in pictures else reader
    for name, reader in found:  # a unique full name takes precedence over a file name
        if sum(other == name for other, _ in found) == 1:
            pictures[name] = reader
    return pictures


def _members(file: str) -> Iterator[tuple[str, Reader]]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{Path(file).name} cannot be read as a zip, it may be damaged ({error})") from error
    if len(members) > MAX_MEMBERS:
        raise LimitError(f"{Path(file).name} holds {len(members)} files, over the limit of {MAX_MEMBERS}")
    if sum(one.file_size for one in members) > MAX_UNPACKED_BYTES:
        raise LimitError(f"{Path(file).name} holds more than {MAX_UNPACKED_BYTES} bytes unpacked; split it")
    for one in members:
        name = _plain(one.filename)
        if not name.startswith("__MACOSX/") and not PurePosixPath(name).name.startswith("."):
            yield name, partial(_read_member, file, one)


def _read_member(file: str, member: zipfile.ZipInfo, most: int) -> bytes:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(member) as stream:
            return stream.read(most + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UnreadableMediaError(f"{member.filename[:100]!r} cannot be unpacked ({error})") from error


def _rows(name: str, data: bytes) -> Iterator[BatchRow]:
    lines = _jsonl(name, _text(name, data)) if name.lower().endswith(".jsonl") else _csv(name, _text(name, data))
    for number, line in enumerate(lines, start=1):
        if number > MAX_ROWS:
            raise LimitError(f"{name} holds more than {MAX_ROWS} rows; split the batch")
        yield BatchRow(_field(line, PROMPTS), _field(line, IMAGES))


def _csv(name: str, text: str) -> Iterator[dict[str, object]]:
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        titles = {str(title).strip().lower() for title in reader.fieldnames or ()}
        if not titles & set(PROMPTS):
            raise InputError(f"{name} needs a column 'prompt' (and 'image' for pictures); found: {sorted(titles)[:10]}")
        for line in reader:
            yield {str(key).strip().lower(): value for key, value in line.items()}
    except csv.Error as error:
        raise InputError(f"{name} cannot be read as CSV ({error})") from error


def _jsonl(name: str, text: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}, line {number}: not JSON ({error})") from error
        if not isinstance(value, dict):
            raise InputError(f"{name}, line {number}: expected an object with 'prompt' and 'image'")
        yield value


def _field(line: dict[str, object], names: Sequence[str]) -> str:
    value = next((line[name] for name in names if line.get(name) is not None), "")
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(name: str, data: bytes) -> str:
    for encoding in ("utf-8-sig", "gb18030"):  # the second: what Excel writes in China
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise InputError(f"{name} is not text in UTF-8; save it as UTF-8 and send it again")


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").strip()


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the results; its fields are the columns. `seconds`: duration of the answer."""

    prompt: str
    image: str
    mode: str = ""
    answer: str = ""
    gain: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch of one browser session. `stop` ends it when set."""

    stop: threading.Event = field(default_factory=threading.Event)


COLUMNS = tuple(one.name for one in fields(Result))
WIDTHS: list[str | int] = [210, 130, 100, 200, 80, 105, 210]


def add_batch(answerer: Answerer, texts: Texts, price: gr.State) -> None:
    """Add the tab to the current Blocks. `price`: the price of this session, or None for that of the policy."""
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    gr.Markdown(texts.batch_start, elem_classes="lead")
    files = gr.File(
        label=texts.files, file_count="multiple", file_types=["image", ".zip", *TABLES], elem_id="batch-files",
        elem_classes=["drop", f"drop-{texts.language}"], height=150,
    )  # fmt: skip
    with gr.Row(elem_classes=["tools", "batch-tools"]):
        mode = mode_choice(texts, "batch-mode")
        run = gr.Button(texts.run, variant="primary", elem_id="run", size="md")
        stop = gr.Button(texts.stop, elem_id="stop", size="md", visible=False)
        download = gr.DownloadButton(texts.download, elem_id="download", size="md", visible=False)
    status = gr.HTML("", elem_id="batch-status", padding=False)
    table = gr.Dataframe(
        headers=[texts.columns[name] for name in COLUMNS], elem_id="results", interactive=False, wrap=True,
        visible=False, column_widths=WIDTHS, max_height=420, datatype="str", buttons=[],
    )  # fmt: skip

    def answer_all(
        paths: list[str] | None, choice: str, price: float | None, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Yield page updates; the last one has the results as a file, also if the batch was stopped."""
        began = drawn = time.monotonic()
        results: list[Result] = []
        with ErrorNotice(texts):
            job = read_job(paths or [])
            total, now = len(job.rows), BatchState()
            yield {
                state: now, status: _bar(0, total, texts.running_batch.format(done=0, total=total, errors=0)),
                table: gr.Dataframe(value=[], visible=True), run: gr.Button(visible=False),
                stop: gr.Button(visible=True), download: gr.DownloadButton(visible=False),
            }  # fmt: skip
            for row in job.rows:
                options = RequestOptions(mode=forced(choice), price=price, namespace=visitor_namespace(request))
                result = _answer(answerer, job, row, options, now.stop, texts)
                if result is None:
                    break
                results.append(result)
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    message = texts.running_batch.format(done=len(results), total=total, errors=_errors(results))
                    yield {status: _bar(len(results), total, message), table: _table_rows(results, texts)}
            ended = texts.finished_batch if len(results) == total else texts.stopped_batch
            message = ended.format(
                done=len(results), total=total, errors=_errors(results), seconds=time.monotonic() - began
            )
            folder = Path(tempfile.mkdtemp(prefix="vlroute-"))
            try:
                file = folder / "answers.csv"
                file.write_bytes(as_csv(results))
                yield {  # Gradio copies the file during this yield
                    status: _bar(len(results), total, message), table: _table_rows(results, texts),
                    run: gr.Button(visible=True), stop: gr.Button(visible=False),
                    download: gr.DownloadButton(value=str(file), visible=True),
                }  # fmt: skip
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return
        yield {run: gr.Button(visible=True), stop: gr.Button(visible=False)}

    run.click(answer_all, [files, mode, price], [state, status, table, run, stop, download], **ANSWERING)
    stop.click(stop_session, [state], None, **INSTANT)


def as_csv(results: list[Result]) -> bytes:
    """The results as CSV: UTF-8 with a byte order mark for Excel; texts that look like formulas are quoted."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for result in results:
        writer.writerow([_escape_formula(cell) if isinstance(cell, str) else cell for cell in astuple(result)])
    return text.getvalue().encode("utf-8-sig")


def _answer(
    answerer: Answerer, job: Job, row: BatchRow, options: RequestOptions, stop: threading.Event, texts: Texts
) -> Result | None:
    """The result of one row; an exception becomes its error. None if the batch was stopped."""
    try:
        pictures = []
        if row.image:
            data = job.picture(row.image, answerer.limits.max_bytes)
            pictures.append(load_picture(data, answerer.limits))
        conversation = parse(row.prompt, pictures, None, None, answerer.limits)
        with closing(answerer.stream_turn(conversation, options)) as events:
            for event in events:
                if stop.is_set():
                    return None
                if isinstance(event, Finished):
                    answer, decision = event.answer, event.answer.decision
                    missing = (
                        "" if answer.text or answer.finish_reason == "stop" else texts.no_text[answer.finish_reason]
                    )
                    return Result(
                        row.prompt, row.image, decision.mode, answer.text, round(decision.gain, 4),
                        round(answer.timing.total, 3), missing,
                    )  # fmt: skip
    except Exception as error:
        return Result(row.prompt, row.image, error=error_text(error, texts))
    return None


def _table_rows(results: list[Result], texts: Texts) -> list[list[str]]:
    """The rows of the table on the page: long texts shortened, numbers rounded."""
    rows = []
    for one in results:
        mode = texts.modes[forced(one.mode) or "instruct"] if one.mode else ""
        gain, seconds = (f"{signed(one.gain):+.2f}" if one.gain is not None else ""), one.seconds
        rows.append([
            _shorten(one.prompt), _shorten(one.image), mode, _shorten(one.answer), gain,
            "" if seconds is None else f"{seconds:.2f}", _shorten(one.error),
        ])  # fmt: skip
    return rows


def _shorten(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


def _bar(done: int, total: int, message: str) -> str:
    bar = f'role="progressbar" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}"'
    filled = f'<i style="width: {100 * done / total:.1f}%"></i>'
    return f'<div class="bar"><div class="track" {bar}>{filled}</div><span>{escape(message)}</span></div>'


def _errors(results: list[Result]) -> int:
    return sum(bool(result.error) for result in results)


def _escape_formula(cell: str) -> str:
    """Put a quote before a text that begins like a formula; a number such as -5 is unchanged."""
    if not cell.lstrip().startswith(("=", "+", "-", "@")) and not cell.startswith(("\t", "\r", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
