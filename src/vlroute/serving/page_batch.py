"""The Batch tab: a table of questions, answered row by row, results to download."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlroute.answer import Finished
from vlroute.answering import Wish
from vlroute.media import load_picture
from vlroute.messages import parse
from vlroute.serving.page_badge import signed
from vlroute.serving.page_box import ANSWERING, INSTANT, halt, mode_choice, wished
from vlroute.serving.page_table import TABLES, Job, Row, read_job
from vlroute.serving.page_turn import REDRAW_SECONDS, SESSION_SECONDS, Noticed, error_words, tenant
from vlroute.serving.page_words import Words

if TYPE_CHECKING:
    from vlroute.serving.page import Answerer


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the results; its fields are the columns. `seconds`: of the whole answer."""

    prompt: str
    image: str
    mode: str = ""
    answer: str = ""
    gain: float | None = None
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Running:
    """A batch of one browser session. `stop`: once set, it ends."""

    stop: threading.Event = field(default_factory=threading.Event)


COLUMNS = tuple(one.name for one in fields(Result))
WIDTHS: list[str | int] = [210, 130, 100, 200, 80, 105, 210]


def add_batch(answerer: Answerer, words: Words, price: gr.State) -> None:
    """Lays out the tab in the Blocks at hand. `price`: of this session, None for the policy's own."""
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    gr.Markdown(words.batch_start, elem_classes="lead")
    files = gr.File(
        label=words.files, file_count="multiple", file_types=["image", ".zip", *TABLES], elem_id="batch-files",
        elem_classes=["drop", f"drop-{words.language}"], height=150,
    )  # fmt: skip
    with gr.Row(elem_classes=["tools", "batch-tools"]):
        mode = mode_choice(words, "batch-mode")
        run = gr.Button(words.run, variant="primary", elem_id="run", size="md")
        stop = gr.Button(words.stop, elem_id="stop", size="md", visible=False)
        download = gr.DownloadButton(words.download, elem_id="download", size="md", visible=False)
    status = gr.HTML("", elem_id="batch-status", padding=False)
    table = gr.Dataframe(
        headers=[words.columns[name] for name in COLUMNS], elem_id="results", interactive=False, wrap=True,
        visible=False, column_widths=WIDTHS, max_height=420, datatype="str", buttons=[],
    )  # fmt: skip

    def answer_all(
        paths: list[str] | None, choice: str, price: float | None, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """The table as it fills; at the end, stopped or not, the results as a file."""
        began = drawn = time.monotonic()
        results: list[Result] = []
        with Noticed(words):
            job = read_job(paths or [])
            total, now = len(job.rows), Running()
            yield {
                state: now, status: _bar(0, total, words.running.format(done=0, total=total, errors=0)),
                table: gr.Dataframe(value=[], visible=True), run: gr.Button(visible=False),
                stop: gr.Button(visible=True), download: gr.DownloadButton(visible=False),
            }  # fmt: skip
            for row in job.rows:
                wish = Wish(mode=wished(choice), price=price, namespace=tenant(request))
                result = _answer(answerer, job, row, wish, now.stop, words)
                if result is None:
                    break
                results.append(result)
                if time.monotonic() - drawn > REDRAW_SECONDS:
                    drawn = time.monotonic()
                    said = words.running.format(done=len(results), total=total, errors=_errors(results))
                    yield {status: _bar(len(results), total, said), table: _shown(results, words)}
            ended = words.done if len(results) == total else words.halted
            said = ended.format(
                done=len(results), total=total, errors=_errors(results), seconds=time.monotonic() - began
            )
            folder = Path(tempfile.mkdtemp(prefix="vlroute-"))
            try:
                file = folder / "answers.csv"
                file.write_bytes(as_csv(results))
                yield {  # Gradio copies the file while it takes this
                    status: _bar(len(results), total, said), table: _shown(results, words),
                    run: gr.Button(visible=True), stop: gr.Button(visible=False),
                    download: gr.DownloadButton(value=str(file), visible=True),
                }  # fmt: skip
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return
        yield {run: gr.Button(visible=True), stop: gr.Button(visible=False)}

    run.click(answer_all, [files, mode, price], [state, status, table, run, stop, download], **ANSWERING)
    stop.click(halt, [state], None, **INSTANT)


def as_csv(results: list[Result]) -> bytes:
    """UTF-8 with a mark that Excel needs to know it. Words that a spreadsheet would take for a formula are quoted."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for result in results:
        writer.writerow([_harmless(cell) if isinstance(cell, str) else cell for cell in astuple(result)])
    return text.getvalue().encode("utf-8-sig")


def _answer(answerer: Answerer, job: Job, row: Row, wish: Wish, stop: threading.Event, words: Words) -> Result | None:
    """One row; what goes wrong becomes the row's error. None if the batch was stopped."""
    try:
        pictures = []
        if row.image:
            data = job.picture(row.image, answerer.limits.max_bytes)
            pictures.append(load_picture(data, answerer.limits))
        conversation = parse(row.prompt, pictures, None, None, answerer.limits)
        with closing(answerer.stream_turn(conversation, wish)) as events:
            for event in events:
                if stop.is_set():
                    return None
                if isinstance(event, Finished):
                    answer, decision = event.answer, event.answer.decision
                    missing = (
                        "" if answer.text or answer.finish_reason == "stop" else words.no_text[answer.finish_reason]
                    )
                    return Result(
                        row.prompt, row.image, decision.mode, answer.text, round(decision.gain, 4),
                        round(answer.timing.total, 3), missing,
                    )  # fmt: skip
    except Exception as error:
        return Result(row.prompt, row.image, error=error_words(error, words))
    return None


def _shown(results: list[Result], words: Words) -> list[list[str]]:
    """The table on the page: long words cut, numbers rounded."""
    rows = []
    for one in results:
        mode = words.modes[wished(one.mode) or "instruct"] if one.mode else ""
        gain, seconds = (f"{signed(one.gain):+.2f}" if one.gain is not None else ""), one.seconds
        rows.append([
            _cut(one.prompt), _cut(one.image), mode, _cut(one.answer), gain,
            "" if seconds is None else f"{seconds:.2f}", _cut(one.error),
        ])  # fmt: skip
    return rows


def _cut(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}…"


def _bar(done: int, total: int, said: str) -> str:
    bar = f'role="progressbar" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}"'
    filled = f'<i style="width: {100 * done / total:.1f}%"></i>'
    return f'<div class="bar"><div class="track" {bar}>{filled}</div><span>{escape(said)}</span></div>'


def _errors(results: list[Result]) -> int:
    return sum(bool(result.error) for result in results)


def _harmless(cell: str) -> str:
    """With a quote before what begins like a formula; a plain number like -5 stays."""
    if not cell.lstrip().startswith(("=", "+", "-", "@")) and not cell.startswith(("\t", "\r", "\n")):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
