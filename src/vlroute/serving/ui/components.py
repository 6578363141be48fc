"""The line below an answer: which mode, what gain, how many seconds, what was found again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import gradio as gr

from vlroute.decision.selector import ModeSelector
from vlroute.errors import EndpointError, InputError, LimitError, ModeUnavailableError, VLRouteError
from vlroute.files import read_at_most
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import FrameSampling, Picture, Video, load_picture, load_video
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.serving.ui.texts import Words
from vlroute.types import MODES, Answer, AnswerDelta, Decision, Events, Finished, Mode, ThinkingDelta

if TYPE_CHECKING:
    from vlroute.store import Store


class Answerer(Protocol):
    """Who answers for the page: a `Router`, or what stands before one. Errors are `VLRouteError`."""

    @property
    def limits(self) -> Limits: ...

    def sampling(self) -> FrameSampling: ...

    @property
    def selector(self) -> ModeSelector: ...

    @property
    def store(self) -> Store | None: ...

    def stream_turn(self, conversation: Conversation, options: RequestOptions) -> Events:
        """Closing the iterator cancels the generation."""
        ...

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """Which mode should answer?"""
        ...

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        """Say how right an answer was."""
        ...


def badge(answer: Answer, words: Words, predicted: bool) -> str:
    """As HTML. `predicted`: whether a router artifact stands behind the gain."""
    decision, usage, timing = answer.decision, answer.usage, answer.timing
    items = [_item(words.modes[decision.mode], decision.mode)]
    if predicted:
        help = words.gain_help.format(decision.p_instruct, decision.p_thinking)
        items.append(_item(words.gain.format(signed(decision.gain)), "gain", help))
    items.append(_item(words.seconds.format(timing.total), "seconds"))
    if usage.vision_tokens and usage.encoded is not None:
        spent = timing.caption + timing.vision  # the encoder runs for the captioner where that comes first
        read = words.read.format(spent) if usage.encoded else words.known
        items.append(_item(read, "read" if usage.encoded else "known"))
    if usage.cached_tokens:
        items.append(_item(words.kept.format(usage.cached_tokens, usage.prompt_tokens), "kept", words.kept_help))
    if answer.finish_reason == "length":
        items.append(_item(words.cut, "warn"))
    items.append(_item(why(decision, words, predicted), "why"))
    return f'<div class="badge">{"".join(items)}</div>'


def stopped_badge(words: Words) -> str:
    """Below an answer that was stopped."""
    return f'<div class="badge">{_item(words.stopped, "warn")}</div>'


def why(decision: Decision, words: Words, predicted: bool) -> str:
    """The reason of a decision in the language of the page."""
    extra = decision.seconds_thinking - decision.seconds_instruct
    worth = decision.gain > decision.threshold
    if decision.forced or decision.fallback:
        reason = "forced" if decision.forced else "fallback"
    elif not predicted:
        reason = "no_artifact"
    elif worth != (decision.mode == "thinking"):
        reason = "unsure"
    elif decision.gain <= 0:
        reason = "no_gain"
    elif extra <= 0:
        reason = "free"
    else:
        reason = "over" if worth else "under"
    return words.why[reason].format(extra=extra, threshold=decision.threshold)


def signed(gain: float) -> float:
    """Two decimals, and never the minus zero that `format` would show."""
    return round(gain, 2) + 0.0


def _item(text: str, kind: str, help: str = "") -> str:
    title = f' title="{escape(help)}"' if help else ""
    return f'<span class="{kind}"{title}>{escape(text)}</span>'


log = logging.getLogger("vlroute")

Shown: TypeAlias = dict[str, Any]
"""One message as `gr.Chatbot` takes it."""

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
REDRAW_SECONDS = 0.08
#: A session that rests so long is forgotten: pictures take memory.
SESSION_SECONDS = 3600
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def attached(files: Sequence[str], limits: Limits, sampling: FrameSampling) -> tuple[list[Picture], list[Video]]:
    """Uploaded files as pictures and videos, told apart by the ending. InputError names the file at fault."""
    clips = [file for file in files if file.lower().endswith(VIDEOS)]
    stills = [file for file in files if file not in clips]
    if len(stills) > limits.max_images or len(clips) > limits.max_videos:
        raise LimitError(
            f"{len(stills)} pictures and {len(clips)} videos in one question, over the limit of {limits.max_images} "
            f"and {limits.max_videos}; send fewer"
        )
    pictures, videos = [], []
    for file in files:
        try:
            if file in clips:
                videos.append(load_video(read_at_most(file, limits.max_video_bytes), limits, sampling=sampling))
            else:
                pictures.append(load_picture(read_at_most(file, limits.max_bytes), limits))
        except InputError as error:
            raise type(error)(f"{Path(file).name}: {error}") from error
    return pictures, videos


def tenant(request: gr.Request) -> str:
    """The namespace of a visitor's caches: where people log in, a session of its own, as names are not secret."""
    return f"page {request.session_hash}" if request.username else ""


def told(
    answerer: Answerer, conversation: Conversation, options: RequestOptions, stop: threading.Event, words: Words
) -> Iterator[tuple[list[Shown], Answer | None]]:
    """The answer's messages as they grow; with the last of them the whole answer, or None if it was stopped.

    Once `stop` is set, or when this iterator is closed, the stream is closed. Errors as of `stream_turn`.
    """
    predicted = answerer.selector.classifier is not None
    thinking, text, drawn = "", "", 0.0
    with closing(answerer.stream_turn(conversation, options)) as events:
        for event in events:
            if stop.is_set():
                break
            match event:
                case ThinkingDelta(piece):
                    thinking += piece
                case AnswerDelta(piece):
                    text += piece
                case Finished(answer) if answer.finish_reason == "cancelled":
                    break
                case Finished(answer):
                    body = answer.text or words.no_text[answer.finish_reason]
                    tokens = words.tokens.format(answer.usage.thinking_tokens)
                    below = badge(answer, words, predicted)
                    yield _messages(answer.thinking, body, below, words, tokens), answer
                    return
            if time.monotonic() - drawn > REDRAW_SECONDS:
                drawn = time.monotonic()
                yield _messages(thinking, text, "", words), None
    yield _messages(thinking, text or words.no_text["cancelled"], stopped_badge(words), words), None


class Noticed:
    """A block whose errors become notices on the page; what is not of vlroute goes to the log as well."""

    def __init__(self, words: Words) -> None:
        self.words = words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        gr.Warning(escape(error_words(error, self.words)), title=self.words.notice, duration=10)
        return True


def error_words(error: Exception, words: Words) -> str:
    """What to tell a visitor of an error. What is not made to be read by others goes to the log instead."""
    if not isinstance(error, VLRouteError) or isinstance(error, ModeUnavailableError | EndpointError):
        unexpected = None if isinstance(error, VLRouteError) else error
        log.error("the web page could not answer: %s", error, exc_info=unexpected)
        return words.failed
    names = [kind.__name__ for kind in type(error).__mro__]
    head = next((words.errors[name] for name in names if name in words.errors), "")
    return f"{head}{error.public}"


def _messages(thinking: str, text: str, badge: str, words: Words, tokens: str = "") -> list[Shown]:
    """Reasoning in a fold, open as long as there is no answer, and the answer with its badge below."""
    shown: list[Shown] = []
    if thinking:
        pending = not text and not badge
        fold = {"title": words.thinks if pending else words.reasoning, "status": "pending" if pending else "done"}
        fold |= {"log": tokens} if tokens else {}
        shown.append({"role": "assistant", "content": thinking, "metadata": fold})
    if text or badge or not thinking:
        content = [text, gr.HTML(badge, padding=False, render=False)] if badge else text or "…"
        shown.append({"role": "assistant", "content": content})
    return shown


#: Events of these settings share one queue in the server: answers at a time, of all sessions.
ANSWERING: dict[str, Any] = {
    "concurrency_id": "answers", "concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip
#: Events that answer at once and wait for no model.
INSTANT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class Stoppable(Protocol):
    @property
    def stop(self) -> Event: ...


def question_box(placeholder: str, name: str) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        placeholder=placeholder, label=placeholder, show_label=False, file_types=["image", "video"], max_lines=8,
        file_count="multiple", sources=["upload"], elem_id=name, submit_btn=True, stop_btn=False,
    )  # fmt: skip


def waiting_box() -> gr.MultimodalTextbox:
    """Emptied, with a button to stop instead of one to send."""
    return gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)


def open_box(asked: dict[str, Any] | None = None) -> gr.MultimodalTextbox:
    """Ready for the next question; `asked` puts a failed one back."""
    if asked is None:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
    return gr.MultimodalTextbox(value=asked, submit_btn=True, stop_btn=False)


def mode_choice(words: Words, name: str) -> gr.Dropdown:
    named = [(words.auto, "auto"), *((words.modes[mode], mode) for mode in MODES)]
    choices = [(f"{words.mode}{words.colon}{name}", value) for name, value in named]
    return gr.Dropdown(
        choices, value="auto", label=words.mode, filterable=False, min_width=140, elem_id=name, elem_classes="mode",
        container=False,
    )  # fmt: skip


def wished(choice: str) -> Mode | None:
    """The mode that the drop-down forces; None for Auto."""
    return next((mode for mode in MODES if mode == choice), None)


def halt(state: Stoppable | None) -> None:
    """What runs in this session ends within one token."""
    if state is not None:
        state.stop.set()


def add_thumbs(
    view: gr.Chatbot, state: gr.State, answer_id: Callable[[Any, int], str | None], answerer: Answerer, words: Words
) -> None:
    """`answer_id`: from the state and the place of an answer's first message; None where nothing is to be judged."""

    def selector(held: Any, like: gr.LikeData) -> None:
        answer = answer_id(held, like.index) if isinstance(like.index, int) else None
        if answer is None or not isinstance(like.liked, bool):
            return
        with Noticed(words):
            answerer.feedback(answer, correct=like.liked)
            gr.Info(words.thanks, title=words.notice, duration=3)

    view.like(selector, [state], None, concurrency_limit=None, show_progress="hidden", api_visibility="private")
