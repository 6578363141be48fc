"""The Chat tab: a conversation, each turn decided anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from vlroute.inputs.messages import Message, parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.components import (
    ANSWERING,
    INSTANT,
    LATEX,
    SESSION_SECONDS,
    Answerer,
    Noticed,
    Shown,
    add_thumbs,
    attached,
    halt,
    mode_choice,
    open_box,
    question_box,
    tenant,
    told,
    waiting_box,
    wished,
)
from vlroute.serving.ui.texts import Words


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation in one browser session.

    `messages`: what the models are told. `shown`: what is on the page. `answers`: ids by the place of their first
    message in `shown`.
    `stop`: once set, the running turn ends.
    """

    messages: tuple[Message, ...] = ()
    shown: tuple[Shown, ...] = ()
    answers: Mapping[int, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


def add_chat(answerer: Answerer, words: Words, price: gr.State) -> None:
    """Lays out the tab in the Blocks at hand. `price`: of this session, None for the policy's own."""
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    with gr.Row(elem_classes="tools"):
        mode = mode_choice(words, "mode")
        new = gr.Button(words.new_chat, elem_id="new", size="md", min_width=100)
    view = gr.Chatbot(
        label=words.conversation, show_label=False, elem_id="talk", elem_classes="talk", height=None,
        placeholder=words.chat_start, buttons=["copy"], latex_delimiters=LATEX, layout="bubble",
    )  # fmt: skip
    box = question_box(words.ask, "ask")
    if answerer.store is None:
        gr.Markdown(words.no_store, elem_classes="lead")

    def turn(
        asked: dict[str, Any], talk: Talk | None, choice: str, price: float | None, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """The page as it grows. A turn that fails leaves page, box and conversation as they were."""
        before = talk or Talk()
        with Noticed(words):
            pictures, videos = attached(asked["files"], answerer.limits, answerer.sampling())
            conversation = parse(asked["text"], pictures, videos, before.messages, answerer.limits)
            files = [{"path": file, "alt_text": Path(file).name} for file in asked["files"]]
            shown = (*before.shown, {"role": "user", "content": [*files, asked["text"]]})
            after = (*shown, {"role": "assistant", "content": "…"})
            now = replace(before, stop=threading.Event())
            yield {view: list(after), state: now, box: waiting_box(), new: gr.Button(interactive=False)}
            options = RequestOptions(mode=wished(choice), price=price, namespace=tenant(request))
            for messages, answer in told(answerer, conversation, options, now.stop, words):
                after = (*shown, *messages)
                yield {view: list(after)}
                if answer is not None:
                    said = Message("assistant", (answer.text,))
                    messages_now = (*before.messages, conversation.messages[-1], said)
                    ids = {**now.answers, len(shown): answer.id}
                    now = replace(now, messages=messages_now, answers=ids)
            yield {state: replace(now, shown=after), box: open_box(), new: gr.Button(interactive=True)}
            return
        yield {view: list(before.shown), state: before, box: open_box(asked), new: gr.Button(interactive=True)}

    box.submit(turn, [box, state, mode, price], [view, state, box, new], **ANSWERING)
    box.stop(halt, [state], None, **INSTANT)
    new.click(lambda: ([], None), None, [view, state], **INSTANT)
    if answerer.store is not None:
        add_thumbs(view, state, _answer_id, answerer, words)


def _answer_id(talk: Talk | None, place: int) -> str | None:
    return talk.answers.get(place) if talk else None
