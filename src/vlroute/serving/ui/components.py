"""Parts that the tabs of the page share: texts, colors, inputs, answers with their badge, votes, error notices."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import gradio as gr

from vlroute.decision.selector import ModeSelector
from vlroute.errors import EndpointError, InputError, LimitError, ModeUnavailableError, VLRouteError
from vlroute.files import read_at_most
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import FrameSampling, Picture, Video, load_picture, load_video
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.types import MODES, Answer, AnswerDelta, Decision, Events, Finished, Mode, ThinkingDelta

if TYPE_CHECKING:
    from vlroute.store import Store


#: Colors of the modes and of the router, on the page and in the plot.
COLORS = {"instruct": "#0f766e", "thinking": "#7c3aed", "router": "#2563eb"}

FONTS = (
    "system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC",
    "Noto Sans SC", "sans-serif",
)  # fmt: skip
MONO_FONTS = ("ui-monospace", "SF Mono", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace")
FONT = ", ".join(f'"{name}"' if " " in name else name for name in FONTS)


class Texts(SimpleNamespace):
    """All texts of the page in one language; `{…}` are filled in with `str.format`. The languages are in texts.json."""

    @classmethod
    def load(cls) -> dict[str, Texts]:
        """The texts of each language by its BCP 47 code."""
        file = Path(__file__).with_name("texts.json")
        return {language: cls(**texts) for language, texts in json.loads(file.read_text(encoding="utf-8")).items()}


TEXTS = Texts.load()


class Answerer(Protocol):
    """What answers for the page: a `Router`, or a `Service` in front of one. Errors are `VLRouteError`."""

    @property
    def limits(self) -> Limits:
        """Limits of a request."""
        ...

    def sampling(self) -> FrameSampling:
        """Frame sampling of videos."""
        ...

    @property
    def selector(self) -> ModeSelector:
        """Decides the mode."""
        ...

    @property
    def store(self) -> Store | None:
        """The store of answers; None if answers are not stored."""
        ...

    def stream_turn(self, conversation: Conversation, options: RequestOptions) -> Events:
        """The events of an answer; closing the iterator cancels the generation."""
        ...

    def decide_on(self, conversation: Conversation, options: RequestOptions) -> Decision:
        """The decision for `conversation`, without an answer."""
        ...

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None) -> None:
        """Store whether an answer was right."""
        ...


def badge(answer: Answer, texts: Texts, predicted: bool) -> str:
    """The line below an answer as HTML: mode, gain, seconds, caching, reason. `predicted`: by an artifact."""
    decision, usage, timing = answer.decision, answer.usage, answer.timing
    if decision.rescued:
        change = f"{texts.modes['thinking']} → {texts.modes['instruct']}"
        items = [_item(change, decision.mode, texts.rescued_help)]
    else:
        items = [_item(texts.modes[decision.mode], decision.mode)]
    if predicted:
        help = texts.gain_help.format(decision.p_instruct, decision.p_thinking)
        items.append(_item(texts.gain.format(signed(decision.gain)), "gain", help))
    items.append(_item(texts.seconds.format(timing.total), "seconds"))
    if usage.vision_tokens and usage.encoded is not None:
        spent = timing.caption + timing.vision  # the tower runs during captioning if the captioner needs it
        read = texts.encoded.format(spent) if usage.encoded else texts.cached
        items.append(_item(read, "read" if usage.encoded else "known"))
    if usage.cached_tokens:
        items.append(_item(texts.reused.format(usage.cached_tokens, usage.prompt_tokens), "kept", texts.reused_help))
    if answer.finish_reason == "length":
        items.append(_item(texts.cut, "warn"))
    items.append(_item(why(decision, texts, predicted), "why"))
    return f'<div class="badge">{"".join(items)}</div>'


def stopped_badge(texts: Texts) -> str:
    """The line below an answer that was stopped."""
    return f'<div class="badge">{_item(texts.stopped, "warn")}</div>'


def why(decision: Decision, texts: Texts, predicted: bool) -> str:
    """The reason of a decision in the language of the page."""
    extra = decision.seconds_thinking - decision.seconds_instruct
    worth = decision.gain > decision.threshold
    if decision.rescued or decision.forced or decision.fallback:
        reason = "rescued" if decision.rescued else "forced" if decision.forced else "fallback"
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
    return str(texts.why[reason]).format(extra=extra, threshold=decision.threshold)


def signed(gain: float) -> float:
    """`gain` rounded to two decimals, without negative zero."""
    return round(gain, 2) + 0.0


def _item(text: str, kind: str, help: str = "") -> str:
    title = f' title="{escape(help)}"' if help else ""
    return f'<span class="{kind}"{title}>{escape(text)}</span>'


log = logging.getLogger("vlroute")

ChatMessage: TypeAlias = dict[str, Any]
"""One message in the form of `gr.Chatbot`."""

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
REDRAW_SECONDS = 0.08
#: An idle session is deleted after this time, because pictures take memory.
SESSION_SECONDS = 3600
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def load_files(files: Sequence[str], limits: Limits, sampling: FrameSampling) -> tuple[list[Picture], list[Video]]:
    """Load uploaded files as pictures and videos, by their extension.

    Args:
        files: paths of the uploaded files.
        limits: limits of a request.
        sampling: frame sampling of videos.

    Returns:
        The pictures and the videos, in order.

    Raises:
        LimitError: too many files.
        InputError: a file cannot be loaded; the message begins with its name.
    """
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


def visitor_namespace(request: gr.Request) -> str:
    """Namespace of the caches: one per session if visitors log in, because user names are not secret."""
    return f"page {request.session_hash}" if request.username else ""


def answer_messages(
    answerer: Answerer, conversation: Conversation, options: RequestOptions, stop: threading.Event, texts: Texts
) -> Iterator[tuple[list[ChatMessage], Answer | None]]:
    """Yield the messages of a growing answer, the last time with the `Answer` (None if it was stopped).

    The stream is closed when `stop` is set or this iterator is closed.
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
                    body = answer.text or texts.no_text[answer.finish_reason]
                    tokens = texts.tokens.format(answer.usage.thinking_tokens)
                    below = badge(answer, texts, predicted)
                    yield _messages(answer.thinking, body, below, texts, tokens), answer
                    return
            if time.monotonic() - drawn > REDRAW_SECONDS:
                drawn = time.monotonic()
                yield _messages(thinking, text, "", texts), None
    yield _messages(thinking, text or texts.no_text["cancelled"], stopped_badge(texts), texts), None


class ErrorNotice:
    """Context manager that shows errors as notices on the page; unexpected errors are also logged."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        gr.Warning(escape(error_text(error, self.texts)), title=self.texts.notice, duration=10)
        return True


def error_text(error: Exception, texts: Texts) -> str:
    """The message for the visitor. Errors with internal details are logged, and the visitor gets a general message."""
    if not isinstance(error, VLRouteError) or isinstance(error, ModeUnavailableError | EndpointError):
        unexpected = None if isinstance(error, VLRouteError) else error
        log.error("the web page could not answer: %s", error, exc_info=unexpected)
        return str(texts.failed)
    names = [kind.__name__ for kind in type(error).__mro__]
    head = next((texts.errors[name] for name in names if name in texts.errors), "")
    return f"{head}{error.public}"


def _messages(thinking: str, text: str, badge: str, texts: Texts, tokens: str = "") -> list[ChatMessage]:
    """The reasoning in a collapsible message, open until the answer begins, and the answer with its badge."""
    shown: list[ChatMessage] = []
    if thinking:
        pending = not text and not badge
        fold = {"title": texts.thinking if pending else texts.reasoning, "status": "pending" if pending else "done"}
        fold |= {"log": tokens} if tokens else {}
        shown.append({"role": "assistant", "content": thinking, "metadata": fold})
    if text or badge or not thinking:
        content = [text, gr.HTML(badge, padding=False, render=False)] if badge else text or "…"
        shown.append({"role": "assistant", "content": content})
    return shown


#: Settings of events that generate answers: all sessions share one queue.
ANSWERING: dict[str, Any] = {
    "concurrency_id": "answers", "concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip
#: Settings of events that do not wait for a model.
INSTANT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class SessionState(Protocol):
    """State of a tab in one browser session."""

    @property
    def stop(self) -> Event:
        """Ends the running answer when set."""
        ...


def question_input(placeholder: str, name: str) -> gr.MultimodalTextbox:
    """An input for text, pictures and videos."""
    return gr.MultimodalTextbox(
        placeholder=placeholder, label=placeholder, show_label=False, file_types=["image", "video"], max_lines=8,
        file_count="multiple", sources=["upload"], elem_id=name, submit_btn=True, stop_btn=False,
    )  # fmt: skip


def busy_input() -> gr.MultimodalTextbox:
    """The input while an answer is generated: empty, with a stop button instead of the send button."""
    return gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)


def ready_input(asked: dict[str, Any] | None = None) -> gr.MultimodalTextbox:
    """The input when it is ready; `asked` restores a question that failed."""
    if asked is None:
        return gr.MultimodalTextbox(submit_btn=True, stop_btn=False)
    return gr.MultimodalTextbox(value=asked, submit_btn=True, stop_btn=False)


def mode_choice(texts: Texts, name: str) -> gr.Dropdown:
    """A dropdown with Auto and both modes."""
    named = [(texts.auto, "auto"), *((texts.modes[mode], mode) for mode in MODES)]
    choices = [(f"{texts.mode}{texts.colon}{name}", value) for name, value in named]
    return gr.Dropdown(
        choices, value="auto", label=texts.mode, filterable=False, min_width=140, elem_id=name, elem_classes="mode",
        container=False,
    )  # fmt: skip


def forced(choice: str) -> Mode | None:
    """The mode chosen in the dropdown; None for Auto."""
    return next((mode for mode in MODES if mode == choice), None)


def stop_session(state: SessionState | None) -> None:
    """Stop the running answers of the session within one token."""
    if state is not None:
        state.stop.set()


def add_votes(
    view: gr.Chatbot, state: gr.State, answer_id: Callable[[Any, int], str | None], answerer: Answerer, texts: Texts
) -> None:
    """Add votes to `view`. `answer_id` maps the state and a message index to the id of an answer, or to None."""

    def vote(held: Any, like: gr.LikeData) -> None:
        answer = answer_id(held, like.index) if isinstance(like.index, int) else None
        if answer is None or not isinstance(like.liked, bool):
            return
        with ErrorNotice(texts):
            answerer.feedback(answer, correct=like.liked)
            gr.Info(texts.thanks, title=texts.notice, duration=3)

    view.like(vote, [state], None, concurrency_limit=None, show_progress="hidden", api_visibility="private")
