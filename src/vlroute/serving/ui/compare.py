"""The Compare tab: one question, both modes side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from vlroute.inputs.messages import Conversation, parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.components import (
    ANSWERING,
    INSTANT,
    LATEX,
    SESSION_SECONDS,
    Reply,
    add_votes,
    load_files,
    question_input,
    ready_input,
    replies,
    shown_votes,
    signed,
    stop_session,
    visitor_namespace,
    why,
)
from vlroute.serving.ui.page import Drawing, Page
from vlroute.serving.ui.problems import PageError
from vlroute.serving.ui.session import Caught, Session
from vlroute.serving.ui.texts import Texts
from vlroute.types import MODES, Decision, Mode


@dataclass(frozen=True, slots=True)
class CompareState:
    """The latest question of one browser session.

    Attributes:
        replies: The answer of each mode that was asked.
        decision: What Auto would have done.
        votes: Whether an answer is right, by its id.
        stop: Ends the running answer when set.
    """

    replies: Mapping[Mode, Reply] = field(default_factory=dict)
    decision: Decision | None = None
    votes: dict[str, bool] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def answers(self, mode: Mode) -> Mapping[int, str | None]:
        """The id of the answer of this mode by the index of its first message; None if it was stopped."""
        reply = self.replies.get(mode)
        return {} if reply is None else {0: reply.answer.id if reply.answer else None}


def add_compare(page: Page) -> None:
    """Add the tab to the current Blocks."""
    answerer = page.answerer
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    page.add(gr.Markdown, lambda texts: {"value": texts.compare_start}, elem_classes="lead")
    question = question_input(page, lambda texts: str(texts.ask_compare), "ask-both")
    problem = page.problem("ask-both")
    chosen = gr.HTML("", elem_id="chosen", padding=False, visible=False)
    views: dict[Mode, gr.Chatbot] = {}
    with gr.Row():
        for mode in MODES:
            with gr.Column(min_width=300, elem_classes="side-column"):
                page.add(gr.HTML, partial(_head, mode), padding=False)
                views[mode] = page.add(
                    gr.Chatbot, partial(_empty, mode), show_label=False, elem_id=f"side-{mode}", elem_classes="side",
                    height=None, buttons=[], latex_delimiters=LATEX,
                )  # fmt: skip

    def shown(session: Session, now: CompareState) -> Drawing:
        """The answers and what Auto would have chosen."""
        drawn: Drawing = {}
        for mode, view in views.items():
            reply = now.replies.get(mode)
            messages = reply.messages(session.texts, page.predicted, compared=True) if reply else []
            drawn[view] = {"value": messages, "feedback_value": shown_votes(now.votes, now.answers(mode))}
        line = "" if now.decision is None else _chosen(now.decision, session.texts, page.predicted)
        return drawn | {chosen: {"value": line, "visible": bool(line)}}

    def both(
        asked: dict[str, Any], session: Session, price: float | None, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Yield page updates: both answers, Instruct first, then the mode that Auto would have chosen."""
        with Caught(session, "ask-both"):
            if len(asked["text"]) > page.settings.max_prompt:
                raise PageError("long_text", most=page.settings.max_prompt)
            conversation: Conversation | None = None

            def prepare() -> Conversation:
                nonlocal conversation
                pictures, videos = load_files(asked["files"], answerer.limits, answerer.sampling())
                conversation = parse(asked["text"], pictures, videos, None, answerer.limits)
                return conversation

            now = CompareState({MODES[0]: Reply()})
            updates = {component: gr.update(**drawn) for component, drawn in shown(session, now).items()}
            yield {**updates, state: now, problem: "", question: gr.update(submit_btn=False, stop_btn=True)}
            for mode, view in views.items():
                if now.stop.is_set():
                    break
                options = RequestOptions(mode=mode, namespace=visitor_namespace(request))
                for reply in replies(answerer, prepare, options, now.stop):
                    now = replace(now, replies={**now.replies, mode: reply})
                    yield {view: reply.messages(session.texts, page.predicted, compared=True)}
            if conversation is not None:
                options = RequestOptions(price=price, namespace=visitor_namespace(request))
                now = replace(now, decision=answerer.decide_on(conversation, options))
            updates = {component: gr.update(**drawn) for component, drawn in shown(session, now).items()}
            yield {**updates, state: now, question: ready_input()}
            return
        yield {question: ready_input(asked), problem: session.problem("ask-both")}

    inputs, outputs = [question, page.session, page.price], [question, state, chosen, problem, *views.values()]
    question.submit(both, inputs, outputs, **ANSWERING)
    question.stop(stop_session, [state], None, **INSTANT)
    page.redraw([state], [chosen, *views.values()], lambda session, now: shown(session, now) if now is not None else {})
    if answerer.store is not None:
        for mode, view in views.items():
            add_votes(page, view, state, partial(_answers, mode), problem, "ask-both")
    else:
        page.add(gr.Markdown, lambda texts: {"value": texts.no_store}, elem_classes="lead")


def _head(mode: Mode, texts: Texts) -> dict[str, Any]:
    return {"value": f'<h2 class="side-head {mode}">{escape(texts.modes[mode])}</h2>'}


def _empty(mode: Mode, texts: Texts) -> dict[str, Any]:
    return {"label": texts.modes[mode], "placeholder": texts.compare_empty}


def _answers(mode: Mode, now: CompareState) -> Mapping[int, str | None]:
    return now.answers(mode)


def _chosen(decision: Decision, texts: Texts, predicted: bool) -> str:
    """What Auto would have chosen, with the one gain of the question."""
    gain = texts.gain.format(signed(decision.gain)) if predicted else ""
    mode = f'<b class="{decision.mode}">{escape(texts.modes[decision.mode])}</b>'
    line = texts.chosen.format(mode="\0", gain=gain, why=why(decision, texts, predicted))
    return f'<p role="status">{escape(line).replace(chr(0), mode)}</p>'
