"""A conversation on disk: `chat.json` and the pictures as PNG files named by content. Nothing in it can run code."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlroute.checks import refused
from vlroute.errors import ChatBusyError, ChatFileError
from vlroute.files import check_outputs, replace_file
from vlroute.inputs.limits import DEFAULT_LIMITS, Limits
from vlroute.inputs.media import Picture, PixelBudget, Video, load_picture
from vlroute.inputs.messages import Conversation, Message, Part, Role, parse
from vlroute.pipeline import EitherEvent, RequestOptions, Stream, Work
from vlroute.types import Answer, Decision, Event, Events, Finished, ModeChoice, Timing, Usage, forced_mode

if TYPE_CHECKING:
    from vlroute.router import Router


FORMAT = 1
FILE, MEDIA = "chat.json", "media"


def check_chat_output(folder: str | Path) -> Path:
    """The folder as a path. OutputError if a conversation cannot be saved there."""
    folder = Path(folder)
    check_outputs(folder / FILE, folder / MEDIA / "new")
    return folder


def write_chat(folder: str | Path, system: str | None, turns: tuple[Turn, ...]) -> Path:
    """Write pictures first, `chat.json` last and at once: a killed process leaves the old chat or the new one."""
    folder = check_chat_output(folder)
    (folder / MEDIA).mkdir(parents=True, exist_ok=True)
    kept = [
        {
            "before": [{"role": one.role, "parts": _parts(folder, one)} for one in turn.before],
            "parts": _parts(folder, turn.message),
            "answer": turn.answer.as_dict(),
        }
        for turn in turns
    ]
    text = json.dumps({"format": FORMAT, "system": system, "turns": kept}, ensure_ascii=False, indent=1)
    replace_file(folder / FILE, (text + "\n").encode())
    return folder


def read_chat(folder: str | Path, limits: Limits = DEFAULT_LIMITS) -> tuple[str | None, tuple[Turn, ...]]:
    """System prompt and turns. ChatFileError if something is missing, damaged or of another format."""
    if not isinstance(folder, str | Path):
        raise refused("folder", folder, "a folder that Chat.save wrote")
    folder = Path(folder)
    try:
        chat = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChatFileError(
            f"cannot read {FILE} in {folder.name!r}: {error}; expected a folder of Chat.save"
        ) from error
    if not isinstance(chat, dict) or chat.get("format") != FORMAT:
        raise ChatFileError(f"{FILE} in {folder.name!r} is not of format {FORMAT}, the one this version reads")
    try:
        system = None if chat["system"] is None else _string(chat["system"], "system")
        return system, tuple(_turn(folder, turn, limits) for turn in chat["turns"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ChatFileError(f"{FILE} in {folder.name!r} is damaged: {error}; save the chat again") from error


def _parts(folder: Path, message: Message) -> list[dict[str, Any]]:
    return [_part(folder, part) for part in message.parts]


def _part(folder: Path, part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, Picture):
        kept: dict[str, Any] = {"picture": _keep(folder, part.image)}
    else:
        kept = {"video": [_keep(folder, frame) for frame in part.frames], "times": part.times}
    if budget := part.budget.as_dict():
        kept["budget"] = budget
    return {**kept, "digest": part.digest}


def _keep(folder: Path, image: Image.Image) -> str:
    name = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest() + ".png"
    path = folder / MEDIA / name
    if not path.exists():
        png = io.BytesIO()
        image.save(png, format="PNG")
        replace_file(path, png.getvalue())
    return name


def _turn(folder: Path, turn: dict[str, Any], limits: Limits) -> Turn:
    answer = dict(turn["answer"])
    _string(answer["text"], "text of an answer")
    answer["decision"] = Decision(**answer["decision"])
    answer["usage"] = Usage(**answer["usage"])
    answer["timing"] = Timing(**answer["timing"])
    before = tuple(_message(folder, one["role"], one["parts"], limits) for one in turn.get("before", ()))
    return Turn(_message(folder, "user", turn["parts"], limits), Answer(**answer), before)


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the {name} is not a string")
    return value


def _message(folder: Path, role: Role, parts: list[dict[str, Any]], limits: Limits) -> Message:
    return Message(role, tuple(_load(folder, part, limits) for part in parts))


def _load(folder: Path, part: dict[str, Any], limits: Limits) -> Part:
    if "text" in part:
        return _string(part["text"], "text of a part")
    loaded: Picture | Video
    budget = PixelBudget(**part.get("budget", {}))
    if "picture" in part:
        loaded = load_picture(_picture(folder, part["picture"], limits), limits, budget=budget)
    else:
        frames = tuple(_picture(folder, name, limits).image for name in part["video"])
        loaded = Video(frames, tuple(float(time) for time in part["times"]), budget)
    if loaded.digest != part["digest"]:
        raise KeyError("a picture is not the one that was saved")
    return loaded


def _picture(folder: Path, name: str, limits: Limits) -> Picture:
    if Path(name).name != name:
        raise KeyError("a picture lies outside the folder")
    return load_picture(folder / MEDIA / name, limits)


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
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        self._take()
        try:
            conversation = self._conversation(prompt, images, videos)
            answer = self.router.answer_turn(conversation, options)
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
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        return _TurnStream(self, partial(self._conversation, prompt, images, videos), options)

    def fork(self) -> Chat:
        """Another chat with the same history so far; from here on the two go their own ways."""
        return Chat(self.router, self._turns, self.system)

    def save(self, folder: str | Path) -> Path:
        """Write `chat.json` and the pictures beside it; see `Router.resume`. OSError if the disk refuses."""

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

    def _answer_turn(self, conversation: Conversation, options: RequestOptions, emit: Callable[[Event], Any]) -> Answer:
        """Answer the turn of a stream, in the thread that produces its events."""
        self._worker = threading.current_thread()
        return self.router.answer_turn(conversation, options, emit)

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

    def __init__(self, chat: Chat, conversation: Callable[[], Conversation], options: RequestOptions) -> None:
        closed = threading.Event()
        super().__init__(None, closed)
        self._chat, self._conversation = chat, conversation
        self._options = replace(options, cancel=EitherEvent(closed, options.cancel))
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
        return partial(self._chat._answer_turn, conversation, self._options)

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
