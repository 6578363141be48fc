"""The Chat tab: a conversation in which the mode is chosen for each turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from vlroute.inputs.decoding import decoding
from vlroute.inputs.messages import Conversation, Message, parse
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.components import (
    ANSWERING,
    INSTANT,
    LATEX,
    SESSION_SECONDS,
    ChatMessage,
    Reply,
    add_votes,
    busy_input,
    forced,
    load_files,
    mode_choice,
    question_input,
    ready_input,
    replies,
    shown_votes,
    stop_session,
    visitor_namespace,
)
from vlroute.serving.ui.page import Answerer, Page
from vlroute.serving.ui.problems import PageError
from vlroute.serving.ui.sampling import add_sampling, read_sampling
from vlroute.serving.ui.session import Caught, Session
from vlroute.serving.ui.texts import Texts


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """A question and its answer.

    Attributes:
        text: The text of the question.
        files: Paths of its pictures and videos.
        reply: The answer.
    """

    text: str
    files: tuple[str, ...]
    reply: Reply

    @property
    def asked(self) -> dict[str, Any]:
        """The question as the input returns it."""
        return {"text": self.text, "files": list(self.files)}

    @property
    def answer_id(self) -> str | None:
        """The id of the answer; None if it was stopped."""
        return None if self.reply.answer is None else self.reply.answer.id

    def shown(self, texts: Texts, predicted: bool) -> list[ChatMessage]:
        """The messages on the page."""
        files = [{"path": file, "alt_text": Path(file).name} for file in self.files]
        content = [*files, self.text] if self.text else files
        return [{"role": "user", "content": content}, *self.reply.messages(texts, predicted)]


@dataclass(frozen=True, slots=True)
class ChatState:
    """A conversation in one browser session.

    Attributes:
        turns: What was asked and answered.
        votes: Whether an answer is right, by its id.
        running: Whether an answer is being generated.
        stop: Ends the running turn when set.
    """

    turns: tuple[ChatTurn, ...] = ()
    votes: dict[str, bool] = field(default_factory=dict)
    running: bool = False
    stop: threading.Event = field(default_factory=threading.Event)

    def shown(self, texts: Texts, predicted: bool) -> dict[str, Any]:
        """Messages and votes, as arguments of `gr.Chatbot`."""
        messages = [message for turn in self.turns for message in turn.shown(texts, predicted)]
        return {"value": messages, "feedback_value": shown_votes(self.votes, self.answers())}

    def answers(self) -> Mapping[int, str | None]:
        """The id of each answer by the index of its first message; None for stopped ones."""
        found: dict[int, str | None] = {}
        index = 0
        for turn in self.turns:
            found[index + 1] = turn.answer_id
            index += 2 + bool(turn.reply.thinking)
        return found


def add_chat(page: Page) -> None:
    """Add the tab to the current Blocks."""
    answerer = page.answerer
    state = gr.State(None, time_to_live=SESSION_SECONDS)
    with gr.Row(elem_classes="tools"):
        mode = mode_choice(page, "mode")
        new = page.add(
            gr.Button, lambda texts: {"value": texts.new_chat}, elem_id="new", size="md", min_width=100
        )  # fmt: skip
    view = page.add(
        gr.Chatbot, lambda texts: {"label": texts.conversation, **_placeholder(page, texts)}, show_label=False,
        elem_id="talk", elem_classes="talk", height=None, buttons=[], latex_delimiters=LATEX, layout="bubble",
    )  # fmt: skip
    problem = page.problem("ask")
    question = question_input(page, lambda texts: str(texts.ask), "ask")
    wrong_settings = page.problem("settings")
    sampling = add_sampling(page)
    if answerer.store is None:
        page.add(gr.Markdown, lambda texts: {"value": texts.no_store}, elem_classes="lead")
    outputs = [view, state, question, new, problem, wrong_settings]

    def answer(
        kept: ChatState, asked: Mapping[str, Any], before: ChatState, typed: bool, session: Session, choice: str,
        price: float | None, sampling: Sequence[str], request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        """Yield page updates. A turn that fails leaves the page, the input and the conversation unchanged.

        Args:
            kept: The conversation before this turn.
            asked: The question.
            before: What is restored if the turn fails.
            typed: Whether the question is in the input.
            session: The visitor.
            choice: The chosen mode.
            price: The price of this session.
            sampling: The values of `add_sampling`.
            request: The request of the browser.
        """
        if before.running:
            yield {problem: session.problem("ask")}
            return
        system, *numbers = sampling
        generation: dict[str, float | int] | None = None
        with Caught(session, "settings"):
            generation = read_sampling(*numbers, max_tokens_limit=page.settings.max_tokens)
        yield {wrong_settings: session.problem("settings")}
        if generation is None:
            return
        with Caught(session, "ask"):
            text, files = asked["text"], tuple(asked["files"])
            if len(text) + len(system) > page.settings.max_prompt:
                raise PageError("long_text", most=page.settings.max_prompt)
            turn = ChatTurn(text, files, Reply())
            prepare = partial(_conversation, answerer, system, (*kept.turns, turn))
            now = replace(kept, running=True, stop=threading.Event())
            drawn = replace(now, turns=(*kept.turns, turn)).shown(session.texts, page.predicted)
            yield {
                view: gr.update(**drawn), state: now, question: busy_input(clear=typed),
                new: gr.update(interactive=False), problem: "",
            }  # fmt: skip
            options = RequestOptions(
                mode=forced(choice), price=price, generation=generation, namespace=visitor_namespace(request)
            )
            for reply in replies(answerer, prepare, options, now.stop):
                turn = replace(turn, reply=reply)
                if reply.answer is None and not reply.stopped:
                    drawn = replace(now, turns=(*kept.turns, turn)).shown(session.texts, page.predicted)
                    yield {view: drawn["value"]}
            after = replace(kept, turns=(*kept.turns, turn))
            yield {
                view: gr.update(**after.shown(session.texts, page.predicted)), state: after, question: ready_input(),
                new: gr.update(interactive=True),
            }  # fmt: skip
            return
        yield {
            view: gr.update(**before.shown(session.texts, page.predicted)), state: replace(before, running=False),
            question: ready_input(asked if typed else None), new: gr.update(interactive=True),
            problem: session.problem("ask"),
        }  # fmt: skip

    def submit(
        asked: dict[str, Any], session: Session, chat: ChatState | None, choice: str, price: float | None, system: str,
        temperature: str, top_p: str, max_tokens: str, seed: str, request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        before, given = chat or ChatState(), (system, temperature, top_p, max_tokens, seed)
        yield from answer(before, asked, before, True, session, choice, price, given, request)

    def regenerate(
        session: Session, chat: ChatState | None, choice: str, price: float | None, system: str, temperature: str,
        top_p: str, max_tokens: str, seed: str, request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        if chat is None or not chat.turns:
            yield {problem: session.problem("ask")}
            return
        kept, given = replace(chat, turns=chat.turns[:-1]), (system, temperature, top_p, max_tokens, seed)
        yield from answer(kept, chat.turns[-1].asked, chat, False, session, choice, price, given, request)

    def ask_example(
        session: Session, chat: ChatState | None, choice: str, price: float | None, system: str, temperature: str,
        top_p: str, max_tokens: str, seed: str, chosen: gr.SelectData, request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:  # fmt: skip
        examples = page.examples.get(session.language, ())
        if type(chosen.index) is not int or not 0 <= chosen.index < len(examples):  # no example of the page
            yield {problem: session.problem("ask")}
            return
        example = examples[chosen.index]
        asked = {"text": example.text, "files": [example.file]}
        before, given = chat or ChatState(), (system, temperature, top_p, max_tokens, seed)
        yield from answer(before, asked, before, False, session, choice, price, given, request)

    options = [page.session, state, mode, page.price, *sampling]
    question.submit(submit, [question, *options], outputs, **ANSWERING)
    view.retry(regenerate, options, outputs, **ANSWERING)
    view.example_select(ask_example, options, outputs, **ANSWERING)
    question.stop(stop_session, [state], None, **INSTANT)

    def forget(session: Session) -> dict[Any, Any]:
        session.clear("ask")
        return {view: gr.update(value=[], feedback_value=[]), state: None, problem: ""}

    new.click(forget, [page.session], [view, state, problem], **INSTANT)
    page.redraw(
        [state], [view], lambda session, chat: {view: chat.shown(session.texts, page.predicted)} if chat else {}
    )
    if answerer.store is not None:
        add_votes(page, view, state, lambda chat: chat.answers(), problem, "ask")


def _conversation(answerer: Answerer, system: str, turns: Sequence[ChatTurn]) -> Conversation:
    """The conversation that the last turn continues, without turns whose answers were stopped.

    Pictures and videos are decoded for each answer: a session that held them would hold gigabytes.
    """
    *earlier, last = turns
    messages = [Message("system", (system,))] if system.strip() else []

    def asked(turn: ChatTurn, history: Sequence[Message]) -> Conversation:
        pictures, videos = load_files(turn.files, answerer.limits, answerer.sampling())
        return parse(turn.text, pictures, videos, history, answerer.limits)

    with decoding():  # the pixels of all turns are counted together
        for turn in earlier:
            if turn.reply.answer is not None:
                messages += [*asked(turn, ()).messages, Message("assistant", (turn.reply.answer.text,))]
        return asked(last, messages)


def _placeholder(page: Page, texts: Texts) -> dict[str, Any]:
    """What the empty conversation shows: an introduction, and the examples if there are any."""
    examples = page.examples.get(texts.language, ())
    if not examples:
        return {"placeholder": texts.chat_start}
    return {
        "placeholder": f"{texts.chat_start}\n\n{texts.pocket}",
        "examples": [{"text": one.text, "files": [one.file]} for one in examples],
    }
