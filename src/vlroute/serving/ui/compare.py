"""The Compare tab: one question, both modes side by side."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from vlroute.inputs.messages import parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.components import (
    ANSWERING,
    INSTANT,
    LATEX,
    SESSION_SECONDS,
    Answerer,
    ErrorNotice,
    Texts,
    add_votes,
    answer_messages,
    load_files,
    question_input,
    ready_input,
    signed,
    stop_session,
    visitor_namespace,
    why,
)
from vlroute.types import MODES, Mode


@dataclass(frozen=True, slots=True)
class CompareState:
    """The ids of both answers of one browser session. `stop` ends the running answer when set."""

    answers: Mapping[Mode, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


def add_compare(answerer: Answerer, texts: Texts, price: gr.State) -> None:
    """Add the tab to the current Blocks. `price`: the price of this session, or None for that of the policy."""
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    gr.Markdown(texts.compare_start, elem_classes="lead")
    question = question_input(texts.ask_compare, "ask-both")
    chosen = gr.Markdown("", elem_id="chosen", visible=False)
    views: dict[Mode, gr.Chatbot] = {}
    with gr.Row():
        for mode in MODES:
            with gr.Column(min_width=300, elem_classes="side-column"):
                gr.HTML(f'<h2 class="side-head {mode}">{texts.modes[mode]}</h2>', padding=False)
                views[mode] = gr.Chatbot(
                    label=texts.modes[mode], show_label=False, elem_id=f"side-{mode}", elem_classes="side",
                    height=None, placeholder=texts.compare_empty, buttons=["copy"], latex_delimiters=LATEX,
                )  # fmt: skip

    def both(asked: dict[str, Any], price: float | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Yield page updates: both answers, Instruct first, then the mode that Auto would have chosen."""
        with ErrorNotice(texts):
            pictures, videos = load_files(asked["files"], answerer.limits, answerer.sampling())
            conversation = parse(asked["text"], pictures, videos, None, answerer.limits)
            now = CompareState()
            asking = [{"role": "assistant", "content": "…"}]
            yield {
                **{view: asking if mode == MODES[0] else [] for mode, view in views.items()},
                chosen: gr.Markdown(visible=False),
                state: now,
                question: gr.MultimodalTextbox(submit_btn=False, stop_btn=True),
            }
            ids: dict[Mode, str] = {}
            for mode, view in views.items():
                if now.stop.is_set():
                    break
                options = RequestOptions(mode=mode, namespace=visitor_namespace(request))
                for messages, answer in answer_messages(answerer, conversation, options, now.stop, texts):
                    yield {view: messages}
                    if answer is not None:
                        ids[mode] = answer.id
            decision = answerer.decide_on(
                conversation, RequestOptions(price=price, namespace=visitor_namespace(request))
            )
            reason = why(decision, texts, answerer.selector.classifier is not None)
            message = texts.chosen.format(mode=texts.modes[decision.mode], gain=signed(decision.gain), why=reason)
            yield {
                state: CompareState(ids, now.stop),
                question: ready_input(),
                chosen: gr.Markdown(message, visible=True),
            }
            return
        yield {question: ready_input(asked)}

    question.submit(both, [question, price], [question, state, chosen, *views.values()], **ANSWERING)
    question.stop(stop_session, [state], None, **INSTANT)
    if answerer.store is not None:
        for mode, view in views.items():
            add_votes(view, state, partial(_answer_id, mode), answerer, texts)
    else:
        gr.Markdown(texts.no_store, elem_classes="lead")


def _answer_id(mode: Mode, compared: CompareState | None, place: int) -> str | None:
    return compared.answers.get(mode) if compared else None
