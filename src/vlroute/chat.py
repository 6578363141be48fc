"""A conversation: each turn is decided anew, may bring new pictures and may change the mode."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlroute.answer import Answer, Events, Finished
from vlroute.answering import Wish
from vlroute.messages import Conversation, Message, parse
from vlroute.modes import Mode

if TYPE_CHECKING:
    from vlroute.router import Router


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user sent and what came back, with its reasoning and decision."""

    message: Message
    answer: Answer


class Chat:
    """Made by `Router.chat()`. Thread-safe: turns sent at the same time are answered one after the other.

    A mode is given the earlier questions and answers, never the other mode's reasoning nor its own; pictures seen and
    tokens read in earlier turns are not encoded or read again. A cancelled or failed turn leaves no trace in
    `history`; one that ran out of tokens stays, as far as it came.
    """

    def __init__(self, router: Router, turns: tuple[Turn, ...] = (), system: str | None = None) -> None:
        """MessageError for a system prompt that holds control tokens."""
        self.router, self.system = router, system
        self._head = (Message("system", (system,)),) if system else ()
        self._turns = turns
        self._lock = threading.Lock()

    @property
    def history(self) -> tuple[Turn, ...]:
        """The turns so far."""
        return self._turns

    def send(
        self,
        prompt: str,
        images: Any = None,
        *,
        videos: Any = None,
        caption: str | None = None,
        mode: Mode | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Answer:
        """The next turn: arguments, answer and errors as of `Router.ask`."""
        with self._lock:
            conversation = self._conversation(prompt, images, videos)
            answer = self.router.answer_turn(conversation, Wish(caption, mode, price, cancel, generation))
            self._add(conversation, answer)
            return answer

    def stream(
        self,
        prompt: str,
        images: Any = None,
        *,
        videos: Any = None,
        caption: str | None = None,
        mode: Mode | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Events:
        """As `send`, as events: see `Router.stream`. Other turns of this chat wait until the iterator is exhausted or
        closed; bad input raises at the first event."""
        with self._lock:
            conversation = self._conversation(prompt, images, videos)
            for event in self.router.stream_turn(conversation, Wish(caption, mode, price, cancel, generation)):
                if isinstance(event, Finished):
                    self._add(conversation, event.answer)
                yield event

    def fork(self) -> Chat:
        """Another chat with the same history so far; from here on the two go their own ways."""
        return Chat(self.router, self._turns, self.system)

    def save(self, folder: str | Path) -> Path:
        """Write `chat.json` and the pictures beside it; see `Router.resume`. OSError if the disk refuses."""
        from vlroute.chat_file import write_chat

        return write_chat(folder, self.system, self._turns)

    def _conversation(self, prompt: str, images: Any, videos: Any) -> Conversation:
        return parse(prompt, images, videos, self._messages(), self.router.limits)

    def _messages(self) -> list[Message]:
        messages = [*self._head]
        for turn in self._turns:
            messages += [turn.message, Message("assistant", (turn.answer.text,))]
        return messages

    def _add(self, conversation: Conversation, answer: Answer) -> None:
        if answer.finish_reason != "cancelled":
            self._turns = (*self._turns, Turn(conversation.messages[-1], answer))
