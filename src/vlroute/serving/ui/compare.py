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
    Noticed,
    add_thumbs,
    attached,
    halt,
    open_box,
    question_box,
    signed,
    tenant,
    told,
    why,
)
from vlroute.serving.ui.texts import Words
from vlroute.types import MODES, Mode


@dataclass(frozen=True, slots=True)
class Compared:
    """Both answers of one browser session by their ids. `stop`: once set, what runs ends."""

    answers: Mapping[Mode, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


def add_compare(answerer: Answerer, words: Words, price: gr.State) -> None:
    """Lays out the tab in the Blocks at hand. `price`: of this session, None for the policy's own."""
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    gr.Markdown(words.compare_start, elem_classes="lead")
    box = question_box(words.ask_compare, "ask-both")
    chosen = gr.Markdown("", elem_id="chosen", visible=False)
    views: dict[Mode, gr.Chatbot] = {}
    with gr.Row():
        for mode in MODES:
            with gr.Column(min_width=300, elem_classes="side-column"):
                gr.HTML(f'<h2 class="side-head {mode}">{words.modes[mode]}</h2>', padding=False)
                views[mode] = gr.Chatbot(
                    label=words.modes[mode], show_label=False, elem_id=f"side-{mode}", elem_classes="side",
                    height=None, placeholder=words.compare_empty, buttons=["copy"], latex_delimiters=LATEX,
                )  # fmt: skip

    def both(asked: dict[str, Any], price: float | None, request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Both answers as they grow, Instruct first; then which mode Auto would have chosen."""
        with Noticed(words):
            pictures, videos = attached(asked["files"], answerer.limits, answerer.sampling())
            conversation = parse(asked["text"], pictures, videos, None, answerer.limits)
            now = Compared()
            asking = [{"role": "assistant", "content": "…"}]
            yield {
                **{view: asking if mode == MODES[0] else [] for mode, view in views.items()},
                chosen: gr.Markdown(visible=False),
                state: now,
                box: gr.MultimodalTextbox(submit_btn=False, stop_btn=True),
            }
            ids: dict[Mode, str] = {}
            for mode, view in views.items():
                if now.stop.is_set():
                    break
                options = RequestOptions(mode=mode, namespace=tenant(request))
                for messages, answer in told(answerer, conversation, options, now.stop, words):
                    yield {view: messages}
                    if answer is not None:
                        ids[mode] = answer.id
            decision = answerer.decide_on(conversation, RequestOptions(price=price, namespace=tenant(request)))
            reason = why(decision, words, answerer.selector.classifier is not None)
            said = words.chosen.format(mode=words.modes[decision.mode], gain=signed(decision.gain), why=reason)
            yield {state: Compared(ids, now.stop), box: open_box(), chosen: gr.Markdown(said, visible=True)}
            return
        yield {box: open_box(asked)}

    box.submit(both, [box, price], [box, state, chosen, *views.values()], **ANSWERING)
    box.stop(halt, [state], None, **INSTANT)
    if answerer.store is not None:
        for mode, view in views.items():
            add_thumbs(view, state, partial(_answer_id, mode), answerer, words)
    else:
        gr.Markdown(words.no_store, elem_classes="lead")


def _answer_id(mode: Mode, compared: Compared | None, place: int) -> str | None:
    return compared.answers.get(mode) if compared else None
