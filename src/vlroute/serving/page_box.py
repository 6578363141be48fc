"""The box a question is written into, with its pictures, and the buttons that start and stop an answer."""

from __future__ import annotations

from threading import Event
from typing import Any, Protocol

import gradio as gr

from vlroute.modes import MODES, Mode
from vlroute.serving.page_words import Words

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
