"""One question asked from the page: files read, the answer shown as it grows, errors in words."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import gradio as gr

from vlroute.answer import Answer, AnswerDelta, Finished, ThinkingDelta
from vlroute.answering import Wish
from vlroute.errors import EndpointError, InputError, LimitError, ModeUnavailable, VLRouteError
from vlroute.files import read_at_most
from vlroute.limits import Limits
from vlroute.media import FrameSampling, Picture, Video, load_picture, load_video
from vlroute.messages import Conversation
from vlroute.serving.page_badge import badge, stopped_badge
from vlroute.serving.page_words import Words

if TYPE_CHECKING:
    from vlroute.serving.page import Answerer

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
    answerer: Answerer, conversation: Conversation, wish: Wish, stop: threading.Event, words: Words
) -> Iterator[tuple[list[Shown], Answer | None]]:
    """The answer's messages as they grow; with the last of them the whole answer, or None if it was stopped.

    Once `stop` is set, or when this iterator is closed, the stream is closed. Errors as of `stream_turn`.
    """
    predicted = answerer.judge.classifier is not None
    thinking, text, drawn = "", "", 0.0
    with closing(answerer.stream_turn(conversation, wish)) as events:
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
    if not isinstance(error, VLRouteError) or isinstance(error, ModeUnavailable | EndpointError):
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
