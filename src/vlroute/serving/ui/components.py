"""Parts that the tabs of the page share: inputs, answers with their badge, votes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, Protocol, TypeAlias

import gradio as gr

from vlroute.errors import InputError
from vlroute.files import read_at_most
from vlroute.inputs.limits import Limits
from vlroute.inputs.media import FrameSampling, Picture, Video, load_picture, load_video
from vlroute.inputs.messages import Conversation
from vlroute.pipeline import RequestOptions
from vlroute.serving.keys import key_name, session_namespace
from vlroute.serving.ui.page import Answerer, Page
from vlroute.serving.ui.problems import PageError
from vlroute.serving.ui.session import Caught, Session
from vlroute.serving.ui.texts import Texts
from vlroute.types import MODES, Answer, AnswerDelta, Decision, Finished, Mode, ThinkingDelta

COPY_ICON = (
    '<svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true" fill="none" stroke="currentColor" '
    'stroke-width="1.5"><rect x="5.5" y="5.5" width="8" height="8" rx="1.5"/>'
    '<path d="M10.5 5.5v-2A1.5 1.5 0 0 0 9 2H3.5A1.5 1.5 0 0 0 2 3.5V9a1.5 1.5 0 0 0 1.5 1.5h2"/></svg>'
)


def badge(answer: Answer, texts: Texts, predicted: bool, *, compared: bool = False) -> str:
    """The line below an answer as HTML: mode, gain, seconds, tokens, caching, reason, and a button that copies it.

    Args:
        answer: The answer.
        texts: The language.
        predicted: Whether an artifact predicted the gain.
        compared: Whether the answer is one of two to the same question, whose gain is shown once for both.

    Returns:
        The HTML. Its attribute `data-answer` is the id of the answer.
    """
    decision, usage, timing = answer.decision, answer.usage, answer.timing
    if decision.rescued:
        change = f"{texts.modes['thinking']} → {texts.modes['instruct']}"
        items = [_item(change, decision.mode, texts.rescued_help)]
    else:
        items = [_item(texts.modes[decision.mode], decision.mode)]
    if predicted and not compared:
        help = texts.gain_help.format(decision.p_instruct, decision.p_thinking)
        items.append(_item(texts.gain.format(signed(decision.gain)), "gain", help))
    items.append(_item(texts.seconds.format(timing.total), "seconds"))
    items.append(_item(texts.tokens.format(usage.completion_tokens), "tokens"))
    if usage.vision_tokens and usage.encoded is not None:
        spent = timing.caption + timing.vision  # the tower runs during captioning if the captioner needs it
        read = texts.encoded.format(spent) if usage.encoded else texts.cached
        items.append(_item(read, "read" if usage.encoded else "known"))
    if usage.cached_tokens:
        items.append(_item(texts.reused.format(usage.cached_tokens, usage.prompt_tokens), "kept", texts.reused_help))
    if answer.finish_reason == "length":
        items.append(_item(texts.cut, "warn"))
    if answer.text:
        named = f'title="{escape(texts.copy)}" aria-label="{escape(texts.copy)}" data-copied="{escape(texts.copied)}"'
        items.append(
            f'<button type="button" class="copy" {named} data-copy="{escape(answer.text)}">{COPY_ICON}</button>'
        )
    if not compared or decision.rescued or decision.fallback:
        items.append(_item(why(decision, texts, predicted), "why"))
    return f'<div class="badge" data-answer="{escape(answer.id)}">{"".join(items)}</div>'


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


ChatMessage: TypeAlias = dict[str, Any]
"""One message in the form of `gr.Chatbot`."""

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
#: Seconds between two drawings of an answer, while at most `FEW` are drawn.
REDRAW_SECONDS = 0.08
FEW = 4
#: Values of an idle session are deleted after this time.
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
        PageError: too many files, or one is no longer there.
        InputError: a file cannot be loaded; the message begins with its name.
    """
    clips = [file for file in files if file.lower().endswith(VIDEOS)]
    stills = [file for file in files if file not in clips]
    if len(stills) > limits.max_images or len(clips) > limits.max_videos:
        raise PageError(
            "too_many_files", pictures=len(stills), videos=len(clips), most_pictures=limits.max_images,
            most_videos=limits.max_videos,
        )  # fmt: skip
    pictures, videos = [], []
    for file in files:
        try:
            if file in clips:
                videos.append(load_video(read_at_most(file, limits.max_video_bytes), limits, sampling=sampling))
            else:
                pictures.append(load_picture(read_at_most(file, limits.max_bytes), limits))
        except FileNotFoundError:
            raise PageError("missing_file", name=Path(file).name) from None
        except InputError as error:
            raise type(error)(f"{Path(file).name}: {error}") from error
    return pictures, videos


def visitor_namespace(request: gr.Request) -> str:
    """Namespace of the caches: one per session if visitors log in, because user names are not secret."""
    return session_namespace(str(request.session_hash), request.username) if request.username else ""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on the page: growing, stopped, or finished.

    Attributes:
        thinking: The reasoning so far.
        text: The answer so far.
        stopped: Whether the visitor stopped it.
        answer: The finished answer.
    """

    thinking: str = ""
    text: str = ""
    stopped: bool = False
    answer: Answer | None = None

    def messages(self, texts: Texts, predicted: bool, *, compared: bool = False) -> list[ChatMessage]:
        """The reasoning in a collapsible message, open until the answer begins, and the answer with its badge.

        Args:
            texts: The language.
            predicted: See `badge`, as `compared`.
            compared: See `badge`.

        Returns:
            The messages.
        """
        text, below, tokens = self.text, "", ""
        if self.answer is not None:
            text = self.answer.text or texts.no_text[self.answer.finish_reason]
            below = badge(self.answer, texts, predicted, compared=compared)
            tokens = texts.tokens.format(self.answer.usage.thinking_tokens)
        elif self.stopped:
            text, below = self.text or texts.no_text["cancelled"], stopped_badge(texts)
        shown: list[ChatMessage] = []
        if self.thinking:
            pending = not text and not below
            fold = {"title": texts.thinking if pending else texts.reasoning, "status": "pending" if pending else "done"}
            fold |= {"log": tokens} if tokens else {}
            shown.append({"role": "assistant", "content": self.thinking, "metadata": fold})
        if text or not self.thinking:
            content = [text, gr.HTML(below, padding=False, render=False)] if below else text or "…"
            shown.append({"role": "assistant", "content": content})
        return shown


class Pace:
    """Limits how often a growing output is drawn again: less often, the more outputs grow in this process.

    Gradio needs some milliseconds for each drawing, in which the server answers nothing else.

    Args:
        seconds: Time between two drawings while at most `FEW` things are drawn.
    """

    _running: ClassVar[set[Pace]] = set()

    def __init__(self, seconds: float = REDRAW_SECONDS) -> None:
        self._seconds, self._drawn = seconds, 0.0

    def __enter__(self) -> Pace:
        self._running.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.discard(self)

    def is_due(self) -> bool:
        """Whether to draw now."""
        now = time.monotonic()
        due = now - self._drawn > self._seconds * max(1, len(self._running) / FEW)
        self._drawn = now if due else self._drawn
        return due


def replies(
    answerer: Answerer, prepare: Callable[[], Conversation], options: RequestOptions, stop: threading.Event
) -> Iterator[Reply]:
    """Yield the growing answer; the last one is finished or stopped. See `Answerer.stream_turn`.

    The stream is closed when `stop` is set or this iterator is closed.
    """
    thinking, text = "", ""
    with closing(answerer.stream_turn(prepare, replace(options, cancel=stop))) as events, Pace() as pace:
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
                    yield Reply(answer.thinking, answer.text, answer=answer)
                    return
            if pace.is_due():
                yield Reply(thinking, text)
    yield Reply(thinking, text, stopped=True)


#: Settings of events that generate answers. The server shares its places among visitors; Gradio would not.
ANSWERING: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
#: Settings of events that do not wait for a model.
INSTANT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class SessionState(Protocol):
    """State of a tab in one browser session."""

    @property
    def stop(self) -> Event:
        """Ends the running answer when set."""
        ...


def question_input(page: Page, placeholder: Callable[[Texts], str], name: str) -> gr.MultimodalTextbox:
    """An input for text, pictures and videos."""
    box: gr.MultimodalTextbox = page.add(
        gr.MultimodalTextbox, lambda texts: {"placeholder": placeholder(texts), "label": placeholder(texts)},
        show_label=False, file_types=["image", "video"], max_lines=8, file_count="multiple", sources=["upload"],
        elem_id=name, submit_btn=True, stop_btn=False,
    )  # fmt: skip
    return box


def busy_input(clear: bool = True) -> Any:
    """The input while an answer is generated: with a stop button instead of the send button, and empty if `clear`."""
    emptied: dict[str, Any] = {"value": {"text": "", "files": []}} if clear else {}
    return gr.update(submit_btn=False, stop_btn=True, **emptied)


def ready_input(asked: Mapping[str, Any] | None = None) -> Any:
    """The input when it is ready; `asked` restores a question that failed."""
    restored: dict[str, Any] = {} if asked is None else {"value": dict(asked)}
    return gr.update(submit_btn=True, stop_btn=False, **restored)


def mode_choice(page: Page, name: str) -> gr.Dropdown:
    """A dropdown with Auto and both modes."""

    def words(texts: Texts) -> dict[str, Any]:
        named = [(texts.auto, "auto"), *((texts.modes[mode], mode) for mode in MODES)]
        return {
            "label": texts.mode,
            "choices": [(f"{texts.mode}{texts.colon}{name}", value) for name, value in named],
        }

    dropdown: gr.Dropdown = page.add(
        gr.Dropdown, words, value="auto", filterable=False, min_width=140, elem_id=name, elem_classes="mode",
        container=False,
    )  # fmt: skip
    page.redraw([dropdown], [dropdown], lambda session, chosen: {dropdown: {"value": chosen}})
    return dropdown


def forced(choice: str) -> Mode | None:
    """The mode chosen in the dropdown; None for Auto."""
    return next((mode for mode in MODES if mode == choice), None)


def stop_session(state: SessionState | None) -> None:
    """Stop the running answers of the session within one token."""
    if state is not None:
        state.stop.set()


class Votable(SessionState, Protocol):
    """State of a tab with answers that can be voted on. `votes`: whether each answer is right, by its id."""

    @property
    def votes(self) -> dict[str, bool]:
        """The votes of this session. The dict is shared by all copies of the state, so that no vote is lost."""
        ...


def add_votes(
    page: Page, view: gr.Chatbot, state: gr.State, answers: Callable[[Any], Mapping[int, str | None]], problem: gr.HTML,
    name: str,
) -> None:  # fmt: skip
    """Add votes to `view`.

    Args:
        page: The page.
        view: The conversation.
        state: Its state.
        answers: Returns for a state the id of each answer by the index of its first message, None for stopped ones.
        problem: Shows errors.
        name: Name of `problem`.
    """

    def vote(
        held: Votable | None, session: Session, like: gr.LikeData, request: gr.Request
    ) -> Iterator[dict[Any, Any]]:
        found = answers(held) if held is not None else {}
        answer = found.get(like.index) if isinstance(like.index, int) else None
        if held is None or answer is None:
            yield {view: gr.update(feedback_value=[]), problem: session.problem(name)}
            return
        if isinstance(like.liked, bool):
            with Caught(session, name):
                page.answerer.feedback(answer, correct=like.liked, key=key_name(request.username or ""))
                held.votes[answer] = like.liked
                session.notes[name] = "thanks"
        else:  # the second click on the same thumb: Gradio shows no vote, but the store keeps it
            yield {view: gr.update(feedback_value=[None] * len(found)), problem: session.problem(name)}
        yield {view: gr.update(feedback_value=shown_votes(held.votes, found)), problem: session.problem(name)}

    view.like(vote, [state, page.session], [view, problem], concurrency_limit=None, show_progress="hidden",
              api_visibility="private")  # fmt: skip


def shown_votes(votes: Mapping[str, bool], answers: Mapping[int, str | None]) -> list[str | None]:
    """The votes of a conversation as `gr.Chatbot` takes them: one entry for each answer."""
    names = {True: "Like", False: "Dislike", None: None}
    return [names[votes.get(answer or "")] for answer in answers.values()]
