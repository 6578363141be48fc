"""Thumbs up and down below an answer, into the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from vlroute.serving.page_turn import Noticed
from vlroute.serving.page_words import Words

if TYPE_CHECKING:
    from vlroute.serving.page import Answerer


def add_thumbs(
    view: gr.Chatbot, state: gr.State, answer_id: Callable[[Any, int], str | None], answerer: Answerer, words: Words
) -> None:
    """`answer_id`: from the state and the place of an answer's first message; None where nothing is to be judged."""

    def judge(held: Any, like: gr.LikeData) -> None:
        answer = answer_id(held, like.index) if isinstance(like.index, int) else None
        if answer is None or not isinstance(like.liked, bool):
            return
        with Noticed(words):
            answerer.feedback(answer, correct=like.liked)
            gr.Info(words.thanks, title=words.notice, duration=3)

    view.like(judge, [state], None, concurrency_limit=None, show_progress="hidden", api_visibility="private")
