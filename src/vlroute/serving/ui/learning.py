"""The Learning tab: what `vlroute learn` did with the answers of this server, and how requests have drifted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from vlroute.errors import StoreError
from vlroute.learned import MEASURING, LearningEvent, LearningHistory
from vlroute.serving.ui.page import Drawing, Page
from vlroute.serving.ui.session import Caught, Session
from vlroute.serving.ui.texts import Texts
from vlroute.store import Store

#: Number of steps that are shown.
SHOWN = 20


def is_learned(store: Store) -> bool:
    """Whether `vlroute learn` has used a store.

    Args:
        store: The store of the answers.

    Returns:
        Whether its history has a step; False if it cannot be read now.
    """
    try:
        return LearningHistory(store).latest() is not None
    except StoreError:
        return False


def add_learning(page: Page, tab: gr.Tab, store: Store) -> None:
    """Add the tab to the current Blocks.

    Args:
        page: The page.
        tab: The tab, which is drawn when it is opened.
        store: The store of the answers.
    """
    history = LearningHistory(store)
    page.add(gr.Markdown, lambda texts: {"value": texts.learning_start}, elem_classes="lead")
    problem = page.problem("learning")
    view = gr.HTML("", elem_id="learning-steps", padding=False)

    def drawn(session: Session) -> Drawing:
        with Caught(session, "learning"):
            measured = history.events(1, *MEASURING)
            shown = steps_html(history.events(SHOWN), measured[0] if measured else None, session.texts)
            return {view: {"value": shown}, problem: {"value": ""}}
        return {view: {"value": ""}, problem: {"value": session.problem("learning")}}

    def open_tab(session: Session) -> dict[Any, Any]:
        return {component: gr.update(**arguments) for component, arguments in drawn(session).items()}

    tab.select(
        open_tab, [page.session], [view, problem], show_progress="hidden", api_visibility="private",
        concurrency_limit=None,
    )  # fmt: skip
    page.redraw([view], [view, problem], lambda session, shown: drawn(session) if shown else {})


def steps_html(events: Sequence[LearningEvent], measured: LearningEvent | None, texts: Texts) -> str:
    """The drift and the latest steps as HTML.

    Args:
        events: The latest steps, the latest one first.
        measured: The latest step that measured the drift.
        texts: The texts in the language of the visitor.

    Returns:
        The HTML.
    """
    if not events:
        return f'<p class="note">{escape(texts.nothing_learned)}</p>'
    parts = [] if measured is None else [_drift(measured, texts)]
    rows = "".join(
        f"<tr><td>{time.strftime('%Y-%m-%d %H:%M', time.gmtime(one.created))}</td>"
        f"<td>{escape(texts.learning_actions[one.action])}</td>"
        f"<td>{escape(str(one.details.get('ratings', '')))}</td><td>{escape(_difference(one))}</td>"
        f"<td><code>{escape(one.fingerprint)}</code></td></tr>"
        for one in events
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in texts.learning_columns)
    return f'{"".join(parts)}<div class="steps"><table><tr>{head}</tr>{rows}</table></div>'


def _difference(event: LearningEvent) -> str:
    found = event.details.get("comparison")
    return "" if found is None else f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f})"


def _drift(event: LearningEvent, texts: Texts) -> str:
    drift = event.details["drift"]
    coverage, trained = (_percent(drift[name]) for name in ("coverage", "coverage_in_training"))
    error = "–" if drift["calibration"] is None else f"{100 * drift['calibration']:+.1f}"
    latency = "–" if drift["latency"] is None else f"{drift['latency']:.2f} ×"
    figures = {"coverage": f"{coverage} / {trained}", "calibration": error, "latency": latency}
    interval = drift.get("calibration_interval")
    ends = "" if interval is None else f" (95 %: {100 * interval[0]:+.1f} … {100 * interval[1]:+.1f})"
    tiles = "".join(
        f"<div><b>{escape(value)}</b>"
        f"<small>{escape(texts.drift_figures[name] + (ends if name == 'calibration' else ''))}</small></div>"
        for name, value in figures.items()
    )
    sentences = "".join(f"<li>{escape(one)}.</li>" for one in event.details.get("cannot_learn", ()))
    cannot = (
        f'<p class="note">{escape(texts.cannot_learn)}</p><ul class="note" lang="en">{sentences}</ul>'
        if sentences
        else ""
    )
    return f'<div class="figures">{tiles}</div>{cannot}'


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
