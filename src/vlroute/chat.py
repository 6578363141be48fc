"""A conversation with the router: its turns, and its files on disk."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from vlroute.checks import refused
from vlroute.errors import ChatBusyError, ChatFileError
from vlroute.files import check_outputs, make_folder, read_regular, replace_file, sweep_drafts, sync_folder
from vlroute.inputs.limits import DEFAULT_LIMITS, Limits
from vlroute.inputs.media import Picture, PixelBudget, Video, load_picture
from vlroute.inputs.messages import Conversation, Message, Part, parse_tool_call
from vlroute.inputs.tools import Tools, checked_tools
from vlroute.pipeline import EitherEvent, Pipeline, RequestOptions
from vlroute.steps import run
from vlroute.stream import Stream, Work
from vlroute.types import (
    Answer,
    Decision,
    Event,
    Events,
    Finished,
    ModeChoice,
    PassedStage,
    Timing,
    TokenLogprob,
    ToolCall,
    Usage,
    forced_mode,
)

#: Version of the files; a saved conversation of another version is refused.
FORMAT = 1
FILE, MEDIA = "chat.json", "media"
#: A longer file is not read, in bytes.
MAX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer.

    Attributes:
        message: The message that was answered.
        answer: The answer, with its reasoning and decision.
        before: Messages that were sent together with `message`, before it.
    """

    message: Message
    answer: Answer
    before: tuple[Message, ...] = ()


class Chat:
    """A conversation, created by `Router.chat` or `Router.resume`. Thread-safe: turns are answered one at a time.

    A mode receives the earlier questions and answers, but not their reasoning. Vision features and KV entries of
    earlier turns are reused. A cancelled or failed turn is not added to `history`; a turn that ran out of tokens is.

    An answer with tool calls is continued by a turn that contains only their results:
    `chat.send([{"role": "tool", "tool_call_id": …, "content": …}], tools=…)`.

    Args:
        pipeline: Answers the turns.
        turns: The turns so far.
        system: A system prompt.

    Raises:
        MessageError: The system prompt contains control tokens.
        SettingsError: The system prompt is not a string.
    """

    def __init__(self, pipeline: Pipeline, turns: tuple[Turn, ...] = (), system: str | None = None) -> None:
        if not isinstance(system, str | None):
            raise refused("system", system, "a string or None")
        self.pipeline, self.system = pipeline, system
        self._head = (Message("system", (system,)),) if system else ()
        self._turns = turns
        self._lock = threading.Lock()
        self._holder: threading.Thread | None = None  # the thread that reads the open stream, or that sends
        self._worker: threading.Thread | None = None  # the thread that produces the events of the latest stream

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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **generation: Any,
    ) -> Answer:
        """Send the next turn and wait for its answer. Arguments are those of `Router.ask`.

        Args:
            prompt: The question. A list of messages is appended to the history, and its last message is answered.
            images: Pictures of the question.
            videos: Videos of the question.
            caption: A description of the media, instead of the captioner's.
            mode: Forces a mode.
            price: Replaces the price of the policy for this turn, even if the policy is a target.
            cancel: Cancels the answer once it is set.
            tools: Tools that the model may call. The next turn sends the results, as a list of messages of the role
                "tool".
            tool_choice: See `Router.ask`.
            parallel_tool_calls: See `Router.ask`.
            **generation: Generation settings.

        Returns:
            The answer.

        Raises:
            ChatBusyError: This thread has an open stream of this chat.
        """
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        offered = checked_tools(tools, tool_choice, parallel_tool_calls)
        self._take()
        try:
            conversation = self._conversation(prompt, images, videos, offered)
            answer = run(self.pipeline.answer(conversation, options))
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
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        **generation: Any,
    ) -> Events:
        """Send the next turn and return its events. Arguments are those of `send`.

        The turn begins when the first event is requested, and ends with `Finished`, an error or `close`. Until then
        another turn waits if it is sent by another thread, and raises a ChatBusyError in this thread.

        Args:
            prompt: The question, or a list of messages.
            images: Pictures of the question.
            videos: Videos of the question.
            caption: A description of the media, instead of the captioner's.
            mode: Forces a mode.
            price: Replaces the price of the policy for this turn, even if the policy is a target.
            cancel: Cancels the answer once it is set.
            tools: Tools that the model may call. The next turn sends the results, as a list of messages of the role
                "tool".
            tool_choice: See `Router.ask`.
            parallel_tool_calls: See `Router.ask`.
            **generation: Generation settings.

        Returns:
            The events; see `Router.stream`. Closing them cancels the answer. An invalid message raises when the first
            event is requested.

        Raises:
            InputError: The mode, price, caption or a generation setting is invalid.
            RuntimeError: The captioner of the router has made the call.
        """
        options = RequestOptions(caption, forced_mode(mode), price, cancel, generation)
        offered = checked_tools(tools, tool_choice, parallel_tool_calls)
        self.pipeline.selector.check_not_captioning()
        return _TurnStream(self, partial(self._conversation, prompt, images, videos, offered), options)

    def fork(self) -> Chat:
        """Another chat that starts with the history of this one.

        Returns:
            A chat that is independent of this one from here on.
        """
        return Chat(self.pipeline, self._turns, self.system)

    def save(self, folder: str | Path) -> Path:
        """Write the conversation to a folder, from which `Router.resume` reads it.

        Args:
            folder: Receives `chat.json` and the folder `media` with the pictures as PNG files named by content.

        Returns:
            The folder.

        Raises:
            OutputError: The folder cannot be written.
        """
        return write_chat(folder, self.system, self._turns)

    def _take(self) -> None:
        """Wait until no other turn is running. Raises ChatBusyError if that would be a deadlock."""
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
        return run(self.pipeline.answer(conversation, options, emit))

    def _conversation(self, prompt: str | Sequence[Any], images: Any, videos: Any, tools: Tools | None) -> Conversation:
        return self.pipeline.parse(prompt, images, videos, self._messages(), tools)

    def _messages(self) -> list[Message]:
        messages = [*self._head]
        for turn in self._turns:
            answer = turn.answer
            # chat templates render the reasoning only between a question and its answer, for results of tools
            said = Message("assistant", (answer.text,), answer.thinking, answer.tool_calls)
            messages += [*turn.before, turn.message, said]
        return messages

    def _add(self, conversation: Conversation, answer: Answer) -> None:
        if answer.finish_reason != "cancelled":
            *before, last = conversation.messages[len(self._messages()) :]
            self._turns = (*self._turns, Turn(last, answer, tuple(before)))


class _TurnStream(Stream):
    """The events of a turn. Other turns wait from its first event until `Finished`, an error or `close`."""

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
        if self._turn:  # this thread must not wait for the stream that it reads
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


def check_chat_output(folder: str | Path) -> Path:
    """Check that a conversation can be saved to a folder.

    Args:
        folder: The folder, which need not exist.

    Returns:
        Its path.

    Raises:
        OutputError: A file cannot be written there.
    """
    folder = Path(folder)
    check_outputs(folder / FILE, folder / MEDIA / "new")
    return folder


def write_chat(folder: str | Path, system: str | None, turns: tuple[Turn, ...]) -> Path:
    """Write the pictures, then `chat.json` atomically: if the process is killed, the previous chat remains readable."""
    folder = check_chat_output(folder)
    make_folder(folder / MEDIA, private=True)
    for part in (folder, folder / MEDIA):
        sweep_drafts(part)
    written = [
        {
            "before": [_saved(folder, one) for one in turn.before],
            **_saved(folder, turn.message),
            "answer": {**turn.answer.as_dict(), "tool_calls": [call.as_dict() for call in turn.answer.tool_calls]},
        }
        for turn in turns
    ]
    # if an earlier call failed after it wrote a picture, the name of that picture may not be on disk yet
    sync_folder(folder / MEDIA)
    text = json.dumps({"format": FORMAT, "system": system, "turns": written}, ensure_ascii=False, indent=1)
    replace_file(folder / FILE, (text + "\n").encode(), private=True)
    return folder


def read_chat(folder: str | Path, limits: Limits = DEFAULT_LIMITS) -> tuple[str | None, tuple[Turn, ...]]:
    """Read what `write_chat` wrote. Nothing in the folder can run code.

    Args:
        folder: A folder of `Chat.save`.
        limits: Limits for the pictures.

    Returns:
        System prompt and turns.

    Raises:
        ChatFileError: A file is missing, damaged or of another format.
    """
    if not isinstance(folder, str | Path):
        raise refused("folder", folder, "a folder that Chat.save wrote")
    folder = Path(folder)
    try:
        chat = json.loads(read_regular(folder / FILE, MAX_BYTES).decode("utf-8-sig"))
        json.dumps(chat, ensure_ascii=False).encode()  # half of a surrogate pair could not be saved again
    except (OSError, ValueError, RecursionError) as error:
        raise ChatFileError(
            f"cannot read {FILE} in {folder.name!r}: {error}; expected a folder of Chat.save"
        ) from error
    if not isinstance(chat, dict) or chat.get("format") != FORMAT:
        raise ChatFileError(
            f"{FILE} in {folder.name!r} is not in format {FORMAT}; read it with the vlroute version that wrote it"
        )
    try:
        system = None if chat["system"] is None else _string(chat["system"], "system")
        return system, tuple(_turn(folder, turn, limits) for turn in chat["turns"])
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ChatFileError(f"{FILE} in {folder.name!r} is damaged: {error}; save the chat again") from error


def _saved(folder: Path, message: Message) -> dict[str, Any]:
    saved: dict[str, Any] = {"role": message.role, "parts": [_part(folder, part) for part in message.parts]}
    if message.thinking:
        saved["thinking"] = message.thinking
    if message.tool_calls:
        saved["tool_calls"] = [call.as_dict() for call in message.tool_calls]
    if message.tool_call_id:
        saved["tool_call_id"] = message.tool_call_id
    return saved


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
        replace_file(path, png.getvalue(), private=True)
    return name


def _turn(folder: Path, turn: dict[str, Any], limits: Limits) -> Turn:
    answer = dict(turn["answer"])
    _string(answer["text"], "text of an answer")
    _string(answer["thinking"], "reasoning of an answer")
    decision = dict(answer["decision"])
    decision["stages"] = tuple(PassedStage(**one) for one in decision.get("stages", ()))
    decision["later_stages"] = tuple(decision.get("later_stages", ()))
    answer["decision"] = Decision(**decision)
    answer["usage"] = Usage(**answer["usage"])
    answer["timing"] = Timing(**answer["timing"])
    answer["tool_calls"] = _calls(answer)
    if (logprobs := answer.get("logprobs")) is not None:
        answer["logprobs"] = tuple(TokenLogprob.from_dict(one) for one in logprobs)
    before = tuple(_message(folder, one, limits) for one in turn.get("before", ()))
    return Turn(_message(folder, turn, limits), Answer(**answer), before)


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"the {name} is not a string")
    return value


def _message(folder: Path, saved: dict[str, Any], limits: Limits) -> Message:
    parts = tuple(_load(folder, part, limits) for part in saved["parts"])
    texts = (_string(saved.get(name, ""), name) for name in ("thinking", "tool_call_id"))
    thinking, result_of = texts
    return Message(saved.get("role", "user"), parts, thinking, _calls(saved), result_of)


def _calls(saved: dict[str, Any]) -> tuple[ToolCall, ...]:
    """Tool calls of an answer or a message; earlier versions wrote none."""
    return tuple(parse_tool_call(call) for call in saved.get("tool_calls", ()))


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
