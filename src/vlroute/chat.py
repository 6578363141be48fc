"""A conversation: each turn is decided anew, may bring new pictures and may change the mode."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlroute.answer import Answer, Event, Events, Finished
from vlroute.answering import EitherEvent, Stream, Wish, Work
from vlroute.checks import refused
from vlroute.errors import ChatBusyError
from vlroute.messages import Conversation, Message, parse
from vlroute.modes import ModeChoice, forced_mode

if TYPE_CHECKING:
    from vlroute.router import Router


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user sent and what came back, with its reasoning and decision."""

    message: Message
    answer: Answer
    before: tuple[Message, ...] = ()
    """Messages that were sent together with `message`, before it."""


class Chat:
    """Made by `Router.chat()`. Thread-safe: turns sent at the same time are answered one after the other.

    A mode is given the earlier questions and answers, never the other mode's reasoning nor its own; pictures seen and
    tokens read in earlier turns are not encoded or read again. A cancelled or failed turn leaves no trace in
    `history`; one that ran out of tokens stays, as far as it came.
    """

    def __init__(self, router: Router, turns: tuple[Turn, ...] = (), system: str | None = None) -> None:
        """MessageError for a system prompt that holds control tokens; SettingsError if it is not a string."""
        if not isinstance(system, str | None):
            raise refused("system", system, "a string or None")
        self.router, self.system = router, system
        self._head = (Message("system", (system,)),) if system else ()
        self._turns = turns
        self._lock = threading.Lock()
        self._holder: threading.Thread | None = None  # reads the open stream, or sends
        self._worker: threading.Thread | None = None  # answers the latest stream

    @property
    def history(self) -> tuple[Turn, ...]:
        """The turns so far."""
        return self._turns

    def send(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        caption: str | None = None,
        mode: ModeChoice | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Answer:
        """Send the next turn; arguments, answer and errors are those of `Router.ask`. A list of messages is appended to
        the history, and its last message is answered.

        Raises:
            ChatBusyError: this thread has an open stream of this chat.
        """
        wish = Wish(caption, forced_mode(mode), price, cancel, generation)
        self._take()
        try:
            conversation = self._conversation(prompt, images, videos)
            answer = self.router.answer_turn(conversation, wish)
            self._add(conversation, answer)
            return answer
        finally:
            self._release()

    def stream(
        self,
        prompt: str | Sequence[Any],
        images: Any = None,
        *,
        videos: Any = None,
        caption: str | None = None,
        mode: ModeChoice | None = None,
        price: float | None = None,
        cancel: threading.Event | None = None,
        **generation: Any,
    ) -> Events:
        """As `send`, but returns events; see `Router.stream`. The turn begins with the first event and ends with
        `Finished`, an error or `close`. Until then, a second turn waits in other threads and raises a ChatBusyError in
        this thread. A wrong message raises at the first event; a wrong `mode`, `price` or `caption` raises here."""
        wish = Wish(caption, forced_mode(mode), price, cancel, generation)
        return _TurnStream(self, partial(self._conversation, prompt, images, videos), wish)

    def fork(self) -> Chat:
        """Another chat with the same history so far; from here on the two go their own ways."""
        return Chat(self.router, self._turns, self.system)

    def save(self, folder: str | Path) -> Path:
        """Write `chat.json` and the pictures beside it; see `Router.resume`. OSError if the disk refuses."""
        from vlroute.chat_file import write_chat

        return write_chat(folder, self.system, self._turns)

    def _take(self) -> None:
        """Wait until no other turn is running. ChatBusyError if that would be a deadlock."""
        if not self._lock.acquire(blocking=False):
            if threading.current_thread() in (self._holder, self._worker):
                raise ChatBusyError(
                    "this thread has an open stream of this chat: read it to the end or close it before the next turn, "
                    "or use fork() to continue from the finished turns"
                )
            self._lock.acquire()
        self._holder = threading.current_thread()

    def _release(self) -> None:
        self._holder = None
        self._lock.release()

    def _answer_turn(self, conversation: Conversation, wish: Wish, emit: Callable[[Event], Any]) -> Answer:
        """Answer the turn of a stream, in the thread that produces its events."""
        self._worker = threading.current_thread()
        return self.router.answer_turn(conversation, wish, emit)

    def _conversation(self, prompt: str | Sequence[Any], images: Any, videos: Any) -> Conversation:
        return parse(prompt, images, videos, self._messages(), self.router.limits, self.router.sampling)

    def _messages(self) -> list[Message]:
        messages = [*self._head]
        for turn in self._turns:
            messages += [*turn.before, turn.message, Message("assistant", (turn.answer.text,))]
        return messages

    def _add(self, conversation: Conversation, answer: Answer) -> None:
        if answer.finish_reason != "cancelled":
            *before, last = conversation.messages[len(self._messages()) :]
            self._turns = (*self._turns, Turn(last, answer, tuple(before)))


class _TurnStream(Stream):
    """A turn as events. From its first event to `Finished`, an error or `close`, other turns of the chat wait."""

    def __init__(self, chat: Chat, conversation: Callable[[], Conversation], wish: Wish) -> None:
        closed = threading.Event()
        super().__init__(None, closed)
        self._chat, self._conversation = chat, conversation
        self._wish = replace(wish, cancel=EitherEvent(closed, wish.cancel))
        self._turn: list[Conversation] = []
        """The conversation to answer, while the turn is running; otherwise empty."""

    def _begin(self) -> Work:
        self._chat._take()
        try:
            conversation = self._conversation()
        except BaseException:
            self._chat._release()
            raise
        self._turn.append(conversation)
        return partial(self._chat._answer_turn, conversation, self._wish)

    def send(self, value: None) -> Event:
        if self._turn:  # the thread that reads the stream must not wait for it
            self._chat._holder = threading.current_thread()
        try:
            event = super().send(value)
        except BaseException:
            self._end_turn()
            raise
        if isinstance(event, Finished):
            self._end_turn(event.answer)
        return event

    def _drop(self) -> None:
        super()._drop()
        self._end_turn()

    def _end_turn(self, answer: Answer | None = None) -> None:
        with suppress(IndexError):  # already ended, perhaps by another thread
            conversation = self._turn.pop()
            if answer is not None:
                self._chat._add(conversation, answer)
            self._chat._release()
