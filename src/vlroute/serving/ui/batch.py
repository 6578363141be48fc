"""The Batch tab: answers a table of questions about pictures."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from html import escape
from operator import attrgetter
from pathlib import Path
from typing import Any

import gradio as gr

from vlroute.inputs.media import load_picture
from vlroute.inputs.messages import Conversation, parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.batch_table import NO_PICTURES, TABLES, Mapping, Table, read_table
from vlroute.serving.ui.components import (
    ANSWERING,
    INSTANT,
    SESSION_SECONDS,
    Pace,
    forced,
    mode_choice,
    signed,
    stop_session,
    visitor_namespace,
)
from vlroute.serving.ui.page import Answerer, Drawing, Page
from vlroute.serving.ui.problems import PageError, error_text, kept
from vlroute.serving.ui.session import Caught, Session
from vlroute.serving.ui.texts import Texts
from vlroute.types import Answer, Finished


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one row: its answer, or why there is none."""

    prompt: str
    image: str
    answer: Answer | None = None
    error: Exception | None = None

    def problem(self, texts: Texts) -> str:
        """Why there is no answer; "" if there is one."""
        if self.answer is None:
            return "" if self.error is None else error_text(self.error, texts)
        reason = self.answer.finish_reason
        return "" if self.answer.text or reason == "stop" else str(texts.no_text[reason])


@dataclass(slots=True)
class BatchState:
    """The batch of one browser session.

    Attributes:
        total: Number of rows.
        results: The results so far.
        seconds: Duration of the batch; None while it runs.
        stop: Ends the batch when set.
    """

    total: int
    results: list[Result] = field(default_factory=list)
    seconds: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def message(self, texts: Texts) -> str:
        """How far the batch is."""
        done, errors = len(self.results), sum(bool(r.problem(texts)) for r in self.results)
        if self.seconds is None:
            return str(texts.running_batch.format(done=done, total=self.total, errors=errors))
        ended = texts.finished_batch if done == self.total else texts.stopped_batch
        return str(ended.format(done=done, total=self.total, errors=errors, seconds=self.seconds))

    def bar(self, texts: Texts) -> str:
        """How far the batch is, as HTML."""
        done, message = len(self.results), escape(self.message(texts))
        value = f'aria-valuemin="0" aria-valuemax="{self.total}" aria-valuenow="{done}"'
        filled = f'<i style="width: {100 * done / self.total:.1f}%"></i>'
        track = f'<div class="track" role="progressbar" aria-label="{message}" {value}>{filled}</div>'
        return f'<div class="bar">{track}<span>{message}</span></div>'


TABLE_SECONDS = 1.0  # between two drawings of the table, which may have a thousand rows
#: The columns that are added to those of the table.
ADDED = ("mode", "answer", "gain", "seconds", "error")
COLUMNS = ("prompt", "image", *ADDED)
WIDTHS: list[str | int] = [210, 130, 100, 200, 80, 105, 210]


def add_batch(page: Page) -> None:
    """Add the tab to the current Blocks."""
    answerer = page.answerer
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    page.add(gr.Markdown, lambda texts: {"value": texts.batch_start}, elem_classes="lead")
    files = page.add(
        gr.File, lambda texts: {"label": texts.files}, file_count="multiple", file_types=["image", ".zip", *TABLES],
        elem_id="batch-files", elem_classes=["drop"], height=150,
    )  # fmt: skip
    # Gradio would add an empty temporary file for each uploaded one at every call. `read_table` checks the types
    vars(files)["_process_single_file"] = attrgetter("path")
    problem = page.problem("batch")
    with gr.Row(visible=False, elem_classes="mapping") as chooser:
        prompt = page.add(
            gr.Dropdown, lambda texts: {"label": texts.prompt_column}, choices=[], value=None, filterable=False,
            min_width=220, elem_id="prompt-column",
        )  # fmt: skip
        image = page.add(
            gr.Dropdown, lambda texts: {"label": texts.image_column}, choices=[], value=None, filterable=False,
            min_width=220, elem_id="image-column",
        )  # fmt: skip
    summary = gr.HTML("", elem_id="batch-summary", padding=False)
    with gr.Row(elem_classes=["tools", "batch-tools"]):
        mode = mode_choice(page, "batch-mode")
        run = page.add(gr.Button, lambda texts: {"value": texts.run}, variant="primary", elem_id="run", size="md")
        stop = page.add(gr.Button, lambda texts: {"value": texts.stop}, elem_id="stop", size="md", visible=False)
        download = page.add(
            gr.DownloadButton, lambda texts: {"label": texts.download}, elem_id="download", size="md", visible=False
        )
    status = gr.HTML("", elem_id="batch-status", padding=False)
    table = page.add(
        gr.Dataframe, lambda texts: {"headers": [texts.columns[name] for name in COLUMNS], "label": texts.results},
        show_label=False, elem_id="results",
        interactive=False, wrap=True, visible=False, column_widths=WIDTHS, max_height=420, datatype="str", buttons=[],
    )  # fmt: skip

    uploaded = gr.State((), time_to_live=SESSION_SECONDS)  # the paths

    def shown_mapping(session: Session, found: Table | None, mapping: Mapping) -> Drawing:
        """The choice of columns, and what it means for the table."""
        if found is None:
            return {chooser: {"visible": False}, summary: {"value": ""}}
        named = [(name or f"#{place + 1}", place) for place, name in enumerate(found.columns)]
        none = (session.texts.no_pictures, NO_PICTURES)
        return {
            chooser: {"visible": True},
            prompt: {"choices": named, "value": mapping.prompt},
            image: {"choices": [none, *named], "value": mapping.image},
            summary: {"value": summarize(found, mapping, session.texts)},
        }

    def read(paths: list[str] | None, session: Session) -> dict[Any, Any]:
        found = None
        with Caught(session, "batch"):
            found = read_table(paths) if paths else None
        mapping = found.propose() if found is not None else Mapping(None, None)
        drawn = shown_mapping(session, found, mapping)
        updates = {component: gr.update(**arguments) for component, arguments in drawn.items()}
        return {**updates, uploaded: tuple(paths or ()), problem: session.problem("batch")}

    def remap(paths: Sequence[str], prompt: int | None, image: int | None, session: Session) -> dict[Any, Any]:
        text = ""
        with Caught(session, "batch"):
            text = summarize(read_table(paths), Mapping(prompt, image), session.texts) if paths else ""
        return {summary: text, problem: session.problem("batch")}

    def redrawn(session: Session, paths: Sequence[str], prompt: int | None, image: int | None) -> Drawing:
        """The choice of columns in another language. A table that cannot be read is a problem that is shown already."""
        found = None
        with suppress(PageError):
            found = read_table(paths) if paths else None
        return shown_mapping(session, found, Mapping(prompt, image))

    def answer_all(
        paths: list[str] | None, prompt: int | None, image: int | None, choice: str, session: Session,
        price: float | None, request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        """Yield page updates; the last one has the results as a file, also if the batch was stopped."""
        began = time.monotonic()
        with Caught(session, "batch"), Pace() as bar, Pace(TABLE_SECONDS) as rows:
            found = read_table(paths or [])
            mapping, now = found.checked(Mapping(prompt, image)), BatchState(len(found.rows))
            yield {
                state: now, status: now.bar(session.texts), table: gr.update(value=[], visible=True), problem: "",
                run: gr.update(visible=False), stop: gr.update(visible=True), download: gr.update(visible=False),
            }  # fmt: skip
            options = RequestOptions(mode=forced(choice), price=price, namespace=visitor_namespace(request))
            for row in found.rows:
                result = _answer(answerer, found, mapping, row, options, now.stop)
                if result is None:
                    break
                now.results.append(result)
                if bar.is_due():
                    drawn = {table: table_rows(now.results, session.texts)} if rows.is_due() else {}
                    yield {status: now.bar(session.texts), **drawn}
            now.seconds = time.monotonic() - began
            folder = Path(tempfile.mkdtemp(prefix="vlroute-"))
            try:
                file = folder / "answers.csv"
                file.write_bytes(as_csv(found, now.results, session.texts))
                yield {  # Gradio copies the file during this yield
                    status: now.bar(session.texts), table: table_rows(now.results, session.texts),
                    run: gr.update(visible=True), stop: gr.update(visible=False),
                    download: gr.update(value=str(file), visible=True),
                }  # fmt: skip
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return
        yield {run: gr.update(visible=True), stop: gr.update(visible=False), problem: session.problem("batch")}

    files.change(
        read, [files, page.session], [uploaded, problem, chooser, prompt, image, summary], concurrency_limit=4,
        show_progress="hidden", api_visibility="private",
    )  # fmt: skip
    for column in (prompt, image):
        column.input(remap, [uploaded, prompt, image, page.session], [summary, problem], **INSTANT)
    run.click(
        answer_all, [files, prompt, image, mode, page.session, page.price],
        [state, status, table, run, stop, download, problem], **ANSWERING,
    )  # fmt: skip
    stop.click(stop_session, [state], None, **INSTANT)
    page.redraw([uploaded, prompt, image], [chooser, prompt, image, summary], redrawn)
    page.redraw(
        [state], [status, table],
        lambda session, now: {
            status: {"value": now.bar(session.texts)}, table: {"value": table_rows(now.results, session.texts)},
        } if now is not None else {},
    )  # fmt: skip


def summarize(table: Table, mapping: Mapping, texts: Texts) -> str:
    """What the mapping means for the table, as HTML: rows with pictures, missing pictures, columns without a use.

    Args:
        table: The table.
        mapping: Its columns.
        texts: The language.

    Returns:
        The HTML.
    """
    lines = []
    if mapping.prompt is None:
        lines.append(("warn", texts.problems["no_prompt_column"].format(columns=", ".join(table.columns[:20]))))
    if mapping.image is None:
        lines.append(("warn", texts.problems["no_image_column"].format(columns=", ".join(table.columns[:20]))))
        named = []
    else:
        names = [] if mapping.image == NO_PICTURES else [row[mapping.image].strip() for row in table.rows]
        named = [name for name in names if name]
        lines.append(("", texts.rows_with_pictures.format(rows=len(table.rows), pictures=len(named))))
    if missing := [name for name in named if not table.has_picture(name)]:
        examples = ", ".join(name[:60] for name in missing[:3])
        lines.append(("warn", texts.missing_pictures.format(count=len(missing), examples=examples)))
    used = {mapping.prompt, mapping.image}
    if others := [name for place, name in enumerate(table.columns) if place not in used]:
        lines.append(("", texts.passed_through.format(columns=", ".join(others[:20]) + ("…" if others[20:] else ""))))
    shown = "".join(f'<p class="{kind}">{escape(line)}</p>' for kind, line in lines)
    return f'<div class="summary" role="status">{shown}</div>'


def as_csv(table: Table, results: Sequence[Result], texts: Texts) -> bytes:
    """All columns of the table and the results as CSV, in UTF-8 with a byte order mark for Excel.

    A text that looks like a formula is quoted.

    Args:
        table: The table.
        results: The results of its first rows.
        texts: The language of errors.

    Returns:
        The file.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    taken = {column.lower() for column in table.columns}
    writer.writerow([
        *(_escape_formula(column) for column in table.columns),
        *(f"vlroute_{name}" if name in taken else name for name in ADDED),
    ])  # fmt: skip
    for row, result in zip(table.rows, results, strict=False):  # a stopped batch has fewer results
        cells: list[Any] = [*row, "", "", None, None, result.problem(texts)]
        if result.answer is not None:
            decision = result.answer.decision
            cells[-5:-1] = [
                decision.mode, result.answer.text, round(decision.gain, 4), round(result.answer.timing.total, 3),
            ]  # fmt: skip
        writer.writerow([_escape_formula(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue().encode("utf-8-sig")


def _answer(
    answerer: Answerer, table: Table, mapping: Mapping, row: Sequence[str], options: RequestOptions,
    stop: threading.Event,
) -> Result | None:  # fmt: skip
    """The result of one row; an exception becomes its error. None if the batch was stopped."""
    prompt = row[mapping.prompt or 0].strip()
    image = row[mapping.image].strip() if mapping.image is not None and mapping.image != NO_PICTURES else ""

    def prepare() -> Conversation:
        pictures = []
        if image:
            pictures.append(load_picture(table.picture(image, answerer.limits.max_bytes), answerer.limits))
        return parse(prompt, pictures, None, None, answerer.limits)

    try:
        with closing(answerer.stream_turn(prepare, options)) as events:
            for event in events:
                if stop.is_set():
                    return None
                if isinstance(event, Finished):
                    return Result(prompt, image, event.answer)
    except Exception as error:
        return Result(prompt, image, error=kept(error))
    return None


def table_rows(results: Sequence[Result], texts: Texts) -> list[list[str]]:
    """The rows of the table on the page: long texts shortened, numbers rounded."""
    rows = []
    for one in results:
        mode = answer = gain = seconds = ""
        if one.answer is not None:
            decision = one.answer.decision
            mode, answer = texts.modes[decision.mode], one.answer.text
            gain, seconds = f"{signed(decision.gain):+.2f}", f"{one.answer.timing.total:.2f}"
        rows.append([
            _shorten(one.prompt), _shorten(one.image), mode, _shorten(answer), gain, seconds,
            _shorten(one.problem(texts)),
        ])  # fmt: skip
    return rows


def _shorten(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


#: Signs with which formulas begin in spreadsheets, some of which also take the full-width ones.
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def _escape_formula(cell: str) -> str:
    """Put a quote before a text that begins like a formula; a number such as -5 is unchanged."""
    if not cell.lstrip().startswith(FORMULA) and not cell.startswith(("\t", "\r", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
