"""The Chat tab: a conversation in which the mode is chosen for each turn."""

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
    ChatMessage,
    ErrorNotice,
    Texts,
    add_votes,
    answer_messages,
    busy_input,
    forced,
    load_files,
    mode_choice,
    question_input,
    ready_input,
    stop_session,
    visitor_namespace,
)


@dataclass(frozen=True, slots=True)
class ChatState:
    """A conversation in one browser session.

    Attributes:
        messages: the conversation for the models.
        shown: the messages on the page.
        answers: answer ids by the index of their first message in `shown`.
        stop: ends the running turn when set.
    """

    messages: tuple[Message, ...] = ()
    shown: tuple[ChatMessage, ...] = ()
    answers: Mapping[int, str] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)


def add_chat(answerer: Answerer, texts: Texts, price: gr.State) -> None:
    """Add the tab to the current Blocks. `price`: the price of this session, or None for that of the policy."""
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    with gr.Row(elem_classes="tools"):
        mode = mode_choice(texts, "mode")
        new = gr.Button(texts.new_chat, elem_id="new", size="md", min_width=100)
    view = gr.Chatbot(
        label=texts.conversation, show_label=False, elem_id="talk", elem_classes="talk", height=None,
        placeholder=texts.chat_start, buttons=["copy"], latex_delimiters=LATEX, layout="bubble",
    )  # fmt: skip
    question = question_input(texts.ask, "ask")
    if answerer.store is None:
        gr.Markdown(texts.no_store, elem_classes="lead")

    def turn(
        asked: dict[str, Any], chat: ChatState | None, choice: str, price: float | None, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        """Yield page updates. A turn that fails leaves the page, the input and the conversation unchanged."""
        before = chat or ChatState()
        with ErrorNotice(texts):
            pictures, videos = load_files(asked["files"], answerer.limits, answerer.sampling())
            conversation = parse(asked["text"], pictures, videos, before.messages, answerer.limits)
            files = [{"path": file, "alt_text": Path(file).name} for file in asked["files"]]
            shown = (*before.shown, {"role": "user", "content": [*files, asked["text"]]})
            after = (*shown, {"role": "assistant", "content": "…"})
            now = replace(before, stop=threading.Event())
            yield {view: list(after), state: now, question: busy_input(), new: gr.Button(interactive=False)}
            options = RequestOptions(mode=forced(choice), price=price, namespace=visitor_namespace(request))
            for messages, answer in answer_messages(answerer, conversation, options, now.stop, texts):
                after = (*shown, *messages)
                yield {view: list(after)}
                if answer is not None:
                    message = Message("assistant", (answer.text,))
                    messages_now = (*before.messages, conversation.messages[-1], message)
                    ids = {**now.answers, len(shown): answer.id}
                    now = replace(now, messages=messages_now, answers=ids)
            yield {state: replace(now, shown=after), question: ready_input(), new: gr.Button(interactive=True)}
            return
        yield {view: list(before.shown), state: before, question: ready_input(asked), new: gr.Button(interactive=True)}

    question.submit(turn, [question, state, mode, price], [view, state, question, new], **ANSWERING)
    question.stop(stop_session, [state], None, **INSTANT)
    new.click(lambda: ([], None), None, [view, state], **INSTANT)
    if answerer.store is not None:
        add_votes(view, state, _answer_id, answerer, texts)


def _answer_id(chat: ChatState | None, place: int) -> str | None:
    return chat.answers.get(place) if chat else None
