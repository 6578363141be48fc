"""Parses messages: every field is obeyed, accepted without effect, or refused by name."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from vlroute.checks import refused, shown, type_of
from vlroute.errors import LimitError, MessageError
from vlroute.inputs.control_tokens import CONTROL, split_control
from vlroute.inputs.decoding import decoding
from vlroute.inputs.encoded import decode_base64, is_data_uri
from vlroute.inputs.limits import whole_number
from vlroute.inputs.media import (
    DEFAULT_LIMITS,
    FrameSampling,
    Limits,
    Picture,
    PictureSource,
    PixelBudget,
    Video,
    VideoSource,
    is_encoded,
    is_timed,
    load_picture,
    load_video,
)
from vlroute.inputs.think_tags import without_reasoning
from vlroute.inputs.tools import MAX_CALLS, NAME, Tools, mode_of_call, read_object
from vlroute.types import Mode, ToolCall, ToolUse

BUDGET = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "detail")
IMAGE = ("min_pixels", "max_pixels", "resized_height", "resized_width", "detail", "channel_axis")
VIDEO = (
    "fps", "nframes", "num_frames", "min_frames", "max_frames", "video_start", "video_end", "sample_fps",
    "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width", "channel_axis",
)  # fmt: skip
#: Accepted without effect.
_WITHOUT_EFFECT = ("type", "cache_control")
_MESSAGE = ("role", "content", "name", "id", "images")
#: Fields that servers add to answers and that clients send back.
_ANSWER = (
    "tool_calls", "refusal", "reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks",
    "annotations", "parsed", "provider_specific_fields", "status",
)  # fmt: skip
_TEXTS = ("name", "refusal", "reasoning", "reasoning_content", "thinking", "tool_call_id")


def known_fields(given: Mapping[Any, Any], where: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields that are not None. MessageError for an unknown field."""
    fields = {}
    for name, value in given.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        if name not in known:
            raise MessageError(f"{where} has the unknown field {str(name)[:40]!r}; known: {', '.join(known)}")
        fields[name] = value
    return fields


def message_fields(message: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a message that have a value; empty lists, dicts and strings (except the content) count as absent.

    MessageError for an unknown field, and for a field that vlroute cannot obey.
    """
    filled = {name: value for name, value in message.items() if name == "content" or not _is_empty(value)}
    if "function_call" in filled:
        raise MessageError("function_call is an older form that is not supported; send tool_calls")
    role = str(filled.get("role"))[:40]
    known = (*_MESSAGE, *{"assistant": _ANSWER, "tool": ("tool_call_id",)}.get(role, ()))
    fields = known_fields(filled, f"a message of the role {role!r}", known)
    for name in _TEXTS:
        if not isinstance(fields.get(name, ""), str):
            raise MessageError(f"{name} must be a str, got {type_of(fields[name])}")
    return fields


def nested_fields(part: Mapping[Any, Any], key: str, known: Iterable[str]) -> dict[str, Any]:
    """The fields of a part in OpenAI's form, `{"type": key, key: {"url": …}}`. Options may be in either object.

    MessageError for an unknown field, and for a field with different values in both objects.
    """
    where = f"a part of type {part['type']!r}"
    fields = known_fields(part, where, (key, *known))
    if isinstance(fields.get(key), Mapping):
        inside = known_fields(fields[key], f"{key} of {where}", ("url", *known))
        fields[key] = inside.pop("url", None)
        for name, value in inside.items():
            if name in fields and not np.array_equal(fields[name], value):
                raise MessageError(f"{where} contains {name} twice, with different values; send it once")
            fields[name] = value
    return fields


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Part: TypeAlias = str | Picture | Video

_BYTES = bytes | bytearray | memoryview
_SOURCES = ("url", "path", "base64")
_TAGS = re.compile(r"</?think>")
#: Fields for the text of reasoning; the first one that is not empty counts.
REASONING_TEXTS = ("reasoning_content", "reasoning", "thinking")
#: Maximum length of the id of a tool call.
MAX_ID = 256
#: Fields for reasoning: with one of them, the content is the answer alone.
_REASONING = (*REASONING_TEXTS, "reasoning_details", "thinking_blocks")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its role, and its texts, pictures and videos in the order of the prompt.

    Messages of the user and results of tools have pictures and videos. The text of an assistant message is the answer
    without its reasoning. A control token in an answer or in the result of a tool, which may come from a picture or a
    page, is split by a space.

    Attributes:
        role: Who wrote it.
        parts: Texts, pictures and videos.
        thinking: The reasoning before an answer. Chat templates render it only after the last question.
        tool_calls: The tools that an answer calls.
        tool_call_id: For the result of a tool: which call it belongs to; "" if unknown.

    Raises:
        MessageError: the role or a part is wrong, or the text of another role contains a control token such as
            `<|im_end|>`.
    """

    role: Role
    parts: tuple[Part, ...]
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise MessageError(f"role must be system, user, assistant or tool, got {str(self.role)[:40]!r}")
        if not isinstance(self.parts, tuple):
            raise MessageError(f"parts must be a tuple, got {type_of(self.parts)}")
        for part in self.parts:
            if not isinstance(part, str | Picture | Video):
                raise MessageError(f"a part must be a str, Picture or Video, got {type_of(part)}")
            if self.role not in ("user", "tool") and not isinstance(part, str):
                raise MessageError(f"a message of the {self.role} can contain only text; pictures come from the user")
        if self.role == "assistant":
            answer = split_control(self.text)
            object.__setattr__(self, "parts", (answer,) if answer else ())
            object.__setattr__(self, "thinking", split_control(self.thinking))
            object.__setattr__(self, "tool_calls", tuple(map(_checked_call, self.tool_calls)))
        elif self.thinking or self.tool_calls:
            raise MessageError(f"a message of the {self.role} has no reasoning and no tool calls")
        elif self.role == "tool":
            object.__setattr__(self, "parts", _joined_texts(self.parts))
        if self.tool_call_id and self.role != "tool":
            raise MessageError(f"a message of the {self.role} has no tool_call_id")
        if len(self.tool_call_id) > MAX_ID:
            raise MessageError(f"a tool_call_id has at most {MAX_ID} characters, got {len(self.tool_call_id)}")
        # The template joins adjacent texts, so a token that is split over two of them would be complete again.
        joined = "".join(part if isinstance(part, str) else " " for part in self.parts)
        if token := CONTROL.search(joined):
            raise MessageError(f"text contains the control token {token[0]}, which would forge a turn or a picture")
        try:
            for text in (joined, self.thinking, self.tool_call_id, *(call.id for call in self.tool_calls)):
                text.encode()
        except UnicodeEncodeError as error:
            raise MessageError("text contains half of a surrogate pair; send valid Unicode") from error

    @property
    def text(self) -> str:
        """All text of the message, joined as the template renders it."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures of the message."""
        return tuple(part for part in self.parts if isinstance(part, Picture))

    @property
    def videos(self) -> tuple[Video, ...]:
        """The videos of the message."""
        return tuple(part for part in self.parts if isinstance(part, Video))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to answer.

    Attributes:
        messages: The messages. The last one is a question, or the result of a tool. Answers before the last question
            have no reasoning, because chat templates do not render it.
        tools: The tools that the model may call.
        prefix: The beginning of the answer, which the model continues; "" if it begins anew.

    Raises:
        MessageError: there is no question, it has neither text nor media, the last message has another role, or the
            result of a tool follows no call.
    """

    messages: tuple[Message, ...]
    tools: Tools | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role not in ("user", "tool"):
            raise MessageError("the last message must have the role user or tool; otherwise there is nothing to answer")
        object.__setattr__(self, "messages", _with_results(self.messages))
        if all(message.role != "user" for message in self.messages):
            raise MessageError("there is no message of the role user; otherwise there is nothing to answer")
        asked = self.messages[self.question]
        if not (self.prompt.strip() or asked.pictures or asked.videos):
            raise MessageError("the prompt is empty; describe what to do, or send a picture")
        earlier, turn = self.messages[: self.question], self.messages[self.question :]
        if any(message.thinking for message in earlier):
            earlier = tuple(replace(message, thinking="") if message.thinking else message for message in earlier)
            object.__setattr__(self, "messages", (*earlier, *turn))

    @property
    def question(self) -> int:
        """Index of the last message of the user."""
        return max(i for i, message in enumerate(self.messages) if message.role == "user")

    @property
    def prompt(self) -> str:
        """Text of the last question; "" if it consists of media only."""
        return self.messages[self.question].text

    @property
    def tool_use(self) -> ToolUse:
        """What a decision sees of tools: whether they are offered, or the last message is the result of one."""
        if self.messages[-1].role == "tool":
            return "result"
        return "offered" if self.tools is not None else ""

    @property
    def previous_mode(self) -> Mode | None:
        """The mode whose calls the last messages answer; None if they are no results, or if the mode is unknown.

        The mode is known from the ids of the calls, or from reasoning in the message with the calls.
        """
        if self.messages[-1].role != "tool":
            return None
        asked = next(message for message in reversed(self.messages) if message.tool_calls)
        modes = {mode for call in asked.tool_calls if (mode := mode_of_call(call.id)) is not None}
        if len(modes) == 1:
            return modes.pop()
        return "thinking" if asked.thinking else None

    @property
    def key(self) -> str:
        """Identifies the conversation: SHA-256 of all content up to the first user message; 64 hex characters.

        All turns of a conversation have the same key.
        """
        digest = hashlib.sha256(b"vlroute conversation")
        for message in self.messages:
            for part in (message.role, *message.parts):
                said = (part if isinstance(part, str) else part.digest).encode()
                digest.update(len(said).to_bytes(8, "big") + said)
            if message.role == "user":
                break
        return digest.hexdigest()

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, in the order of their placeholders in the prompt."""
        return tuple(picture for message in self.messages for picture in message.pictures)

    @property
    def videos(self) -> tuple[Video, ...]:
        """All videos, in the order of their placeholders in the prompt."""
        return tuple(video for message in self.messages for video in message.videos)

    @property
    def last_pictures(self) -> tuple[Picture, ...]:
        """Pictures of the last question, or of the last result of a tool that has some."""
        return self._last_with_media.pictures

    @property
    def last_videos(self) -> tuple[Video, ...]:
        """Videos of the same message."""
        return self._last_with_media.videos

    @property
    def _last_with_media(self) -> Message:
        turn = self.messages[self.question :]
        return next((message for message in reversed(turn) if message.pictures or message.videos), turn[0])

    def template(self, parsed: bool = False) -> list[dict[str, Any]]:
        """The argument of `processor.apply_chat_template`, with placeholders for pictures and videos.

        Answers always have a `reasoning_content`. Without it, the published templates search the answer for tags and
        cut it there.

        Args:
            parsed: Whether the template takes the arguments of tool calls as a dict, not as the text that was written.

        Returns:
            The messages.
        """
        rendered = []
        for turn in self.messages:
            message: dict[str, Any] = {"role": turn.role, "content": [_slot(part) for part in turn.parts]}
            if turn.role == "assistant":
                message["reasoning_content"] = turn.thinking
            if turn.tool_calls:
                message["tool_calls"] = [
                    {"function": {"name": call.name, "arguments": dict(call.arguments) if parsed else call.text}}
                    for call in turn.tool_calls
                ]
            rendered.append(message)
        return rendered


def parse(
    prompt: str | Sequence[Message | Mapping[str, Any]],
    images: PictureSource | Sequence[PictureSource] | None = None,
    videos: VideoSource | Sequence[VideoSource] | None = None,
    history: Sequence[Message | Mapping[str, Any]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    sampling: Callable[[], FrameSampling] = FrameSampling,
    tools: Tools | None = None,
) -> Conversation:
    """Check and load the input of a request.

    Pictures and videos are placed before the text of the last user message, pictures first.

    Args:
        prompt: text, or a list of messages: `Message` objects or dicts in the form of OpenAI. If the last one is an
            answer, the model continues it.
        images: one source for `load_picture`, or a list of them.
        videos: one source for `load_video`, or a list of them. A list that contains only pictures, arrays or bytes is
            one video.
        history: earlier messages.
        limits: limits of the request.
        sampling: called for each video file. Returns the frame sampling, which options of a part override.
        tools: the tools that the model may call, see `checked_tools`.

    Returns:
        The conversation.

    Raises:
        InputError: the input cannot be used; the subclasses `MessageError`, `LimitError` and `UnreadableMediaError`
            tell why.
    """
    with decoding():  # the pixels of the request are counted together
        return _parse(_Loader(limits, sampling), prompt, images, videos, history, tools)


def _parse(
    loader: _Loader,
    prompt: str | Sequence[Message | Mapping[str, Any]],
    images: PictureSource | Sequence[PictureSource] | None,
    videos: VideoSource | Sequence[VideoSource] | None,
    history: Sequence[Message | Mapping[str, Any]] | None,
    tools: Tools | None,
) -> Conversation:
    given = [*_listed(history or (), "history must be")]
    if isinstance(prompt, str):
        given.append(Message("user", (prompt,) if prompt else ()))
    else:
        given += _listed(prompt, "prompt must be a str or")
    question = last_question(given)
    turns = [loader.message(turn, with_reasoning=index > question) for index, turn in enumerate(given)]
    prefix = _prefix(turns.pop()) if turns and turns[-1].role == "assistant" and not turns[-1].tool_calls else ""
    pictures, clips = _image_sources(images), _video_sources(videos)
    if (pictures or clips) and turns and turns[-1].role == "user":
        if turns[-1].text.strip():
            Conversation(tuple(turns), tools, prefix)  # refuses an invalid conversation before media are loaded
        media: list[Part] = [loader.picture(source) for source in pictures]
        media += [loader.video(source) for source in clips]
        turns[-1] = Message("user", (*media, *turns[-1].parts))
    conversation = Conversation(tuple(turns), tools, prefix)
    if (pictures or clips) and turns[-1].role == "tool":
        raise MessageError(
            "images= and videos= belong to a question; put those of a tool into the content of its result"
        )
    return conversation


def last_question(messages: Sequence[Any]) -> int:
    """Index of the last message of the user, in any form that `parse` takes; -1 if there is none."""
    for index in reversed(range(len(messages))):
        message = messages[index]
        role = message.role if isinstance(message, Message) else isinstance(message, Mapping) and message.get("role")
        if role == "user":
            return index
    return -1


def _prefix(message: Message) -> str:
    """The text of an answer that the model continues. MessageError if it cannot."""
    if not message.text.strip():
        raise MessageError("the last message is an answer without text; leave it out, or send the text to continue")
    if message.thinking or _TAGS.search(message.text):
        raise MessageError("the last message is an answer to continue; it cannot contain reasoning")
    return message.text


class _Loader:
    """Loads the messages of one request. Items beyond a limit are not decoded."""

    def __init__(self, limits: Limits, sampling: Callable[[], FrameSampling]) -> None:
        if not isinstance(limits, Limits):
            raise refused("limits", limits, "a vlroute.Limits")
        self.limits, self.sampling = limits, sampling
        self.pictures = self.videos = 0

    def picture(self, source: PictureSource, options: Mapping[str, Any] | None = None) -> Picture:
        """`options`: further fields of the part."""
        self.pictures += 1
        if self.pictures > self.limits.max_images:
            raise LimitError(f"more than {self.limits.max_images} pictures in one request; send fewer")
        return load_picture(source, self.limits, **_with_budget(options or {}))

    def video(self, source: VideoSource, options: Mapping[str, Any] | None = None) -> Video:
        """`options`: further fields of the part."""
        self.videos += 1
        if self.videos > self.limits.max_videos:
            raise LimitError(f"more than {self.limits.max_videos} videos in one request; send fewer")
        arguments = _with_budget(options or {})
        if "num_frames" in arguments:
            if "nframes" in arguments:
                raise MessageError("num_frames and nframes have the same meaning: send one of them")
            arguments["nframes"] = arguments.pop("num_frames")
        loading = {name: arguments.pop(name) for name in ("budget", "channel_axis") if name in arguments}
        if not is_encoded(source):
            return load_video(source, self.limits, _spacing(source, arguments), **loading)
        if "sample_fps" in arguments:
            raise MessageError("sample_fps is the frame rate of a list of frames; for a video file send fps")
        least = whole_number(arguments.get("min_frames"), "min_frames")
        if least is not None and least > self.limits.max_frames:
            raise LimitError(f"min_frames asks for {least} frames, more than the limit of {self.limits.max_frames}")
        return load_video(source, self.limits, sampling=self.sampling().asked(**arguments), **loading)

    def message(self, message: Message | Mapping[str, Any], with_reasoning: bool) -> Message:
        """`with_reasoning`: whether the reasoning of an answer is rendered, so that it has to be read."""
        if isinstance(message, Message):
            for part in message.parts:
                if isinstance(part, Picture):
                    self.picture(part)
                elif isinstance(part, Video):
                    self.video(part)
            return message
        if not isinstance(message, Mapping):
            raise MessageError(f"a message must be a Message or a dict, got {type_of(message)}")
        fields = message_fields(message)
        role, content, name = fields.get("role"), fields.get("content"), fields.get("name")
        if content is None and role == "assistant":
            content = ""  # an answer that only calls tools
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list | tuple):
            raise MessageError(f"content must be a str or a list of parts, got {type_of(content)}")
        parts: tuple[Part, ...] = tuple(self.part(part) for part in content)
        if "refusal" in fields:
            if any(parts):
                raise MessageError("refusal and content are both given: send one of them")
            parts = (fields["refusal"],)
        texts, thinking = [part for part in parts if isinstance(part, str)], ""
        if role == "assistant":
            separated = any(message.get(key) not in (None, []) for key in _REASONING)
            thinking = next((fields[key] for key in REASONING_TEXTS if fields.get(key)), "")
            if not separated and len(texts) == len(parts):
                whole = "".join(texts)
                parts = (answer := without_reasoning(whole),)
                thinking = _TAGS.sub("", whole[: len(whole) - len(answer)]).strip()
        elif role != "tool" and name and any(text.strip() for text in texts):
            parts = (f"{name}: ", *parts)
        if "images" in fields:
            parts = (*self._ollama_images(fields["images"]), *parts)
        calls, result_of = _tool_calls(fields.get("tool_calls", ())), fields.get("tool_call_id", "")
        role = "system" if role == "developer" else role
        return Message(role, parts, thinking if with_reasoning else "", calls, result_of)  # type: ignore[arg-type]

    def _ollama_images(self, images: object) -> list[Picture]:
        """Pictures in base64 next to a text, as Ollama's clients send them."""
        if not isinstance(images, list | tuple) or not all(isinstance(image, str | bytes) for image in images):
            raise MessageError("images of a message must be a list of pictures in base64")
        return [self.picture(self._base64(image, "images", self.limits.max_bytes)) for image in images]

    def part(self, part: Mapping[str, Any]) -> Part:
        kind = part.get("type") if isinstance(part, Mapping) else None
        where = f"a part of type {str(kind)[:40]!r}"
        match kind:
            case "text" | "input_text" | "output_text":
                return _text(known_fields(part, where, ("text", "annotations", "logprobs")), where, "text")
            case "refusal":
                return _text(known_fields(part, where, ("refusal",)), where, "refusal")
            case "image_url" | "input_image":
                fields = nested_fields(part, "image_url", IMAGE)
                return self.picture(_data_uri(fields.pop("image_url", None), "image_url"), fields)
            case "video_url":
                fields = nested_fields(part, "video_url", VIDEO)
                return self.video(_data_uri(fields.pop("video_url", None), "video_url"), fields)
            case "image":
                fields = known_fields(part, where, ("image", *_SOURCES, *IMAGE))
                return self.picture(self._source(fields, "image", self.limits.max_bytes), fields)
            case "video":
                fields = known_fields(part, where, ("video", *_SOURCES, *VIDEO))
                return self.video(self._source(fields, "video", self.limits.max_video_bytes), fields)
        if not isinstance(part, Mapping):
            raise MessageError(f"a part must be a dict such as {{'type': 'text', 'text': '…'}}, got {shown(part)}")
        if kind is None:
            raise MessageError(f"a part needs a type, such as {{'type': 'text', 'text': '…'}}, got {shown(part)}")
        raise MessageError(f"unknown part (type {str(kind)[:40]!r}); known: text, image_url, image, video_url, video")

    def _source(self, fields: dict[str, Any], kind: str, most: int) -> Any:
        """Remove and return the source of a picture or video from a part in the form of transformers."""
        given = [name for name in (kind, *_SOURCES) if name in fields]
        if len(given) != 1:
            raise MessageError(f"a part of type {kind!r} must hold one of {kind}, {', '.join(_SOURCES)}; got {given}")
        source = fields.pop(given[0])
        if given[0] == "base64":
            return self._base64(source, f"base64 of a part of type {kind!r}", most)
        if given[0] != kind and not isinstance(source, str | os.PathLike):
            raise MessageError(f"{given[0]} of a part of type {kind!r} must be a str, got {type_of(source)}")
        return source

    def _base64(self, text: object, name: str, most: int) -> bytes:
        if not isinstance(text, str | bytes):
            raise MessageError(f"{name} must be a str, got {type_of(text)}")
        return decode_base64(text if isinstance(text, str) else text.decode("latin-1"), name, most)


def _tool_calls(calls: object) -> tuple[ToolCall, ...]:
    """The tool calls of an answer in OpenAI's form. MessageError if they have another one."""
    if not isinstance(calls, list | tuple):
        raise MessageError(f"tool_calls must be a list, got {type_of(calls)}")
    if len(calls) > MAX_CALLS:
        raise MessageError(f"more than {MAX_CALLS} tool calls in one answer")
    return tuple(parse_tool_call(call) for call in calls)


def parse_tool_call(call: object) -> ToolCall:
    """Check and convert a tool call.

    Args:
        call: A call in OpenAI's form, see `ToolCall.as_dict`. The arguments may be a dict.

    Returns:
        The call.

    Raises:
        MessageError: It has another form, or its arguments are no JSON object.
    """
    if not isinstance(call, Mapping) or call.get("type") not in (None, "function"):
        raise MessageError(
            "a tool call must be a dict such as {'id': '…', 'type': 'function', 'function': {'name': '…', 'arguments': "
            f"'{{}}'}}}}, got {shown(call)}"
        )
    fields = known_fields(call, "a tool call", ("id", "index", "function", "name", "arguments"))
    function = fields.get("function", {name: fields[name] for name in ("name", "arguments") if name in fields})
    if not isinstance(function, Mapping):
        raise MessageError(f"the function of a tool call must be a dict, got {type_of(function)}")
    function = known_fields(function, "the function of a tool call", ("name", "arguments"))
    id, name, arguments = fields.get("id", ""), function.get("name"), function.get("arguments", "")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise MessageError(f"a tool call needs the name of a tool, got {shown(name)}")
    if not isinstance(id, str) or len(id) > MAX_ID:
        raise MessageError(f"the id of a tool call must be a str of at most {MAX_ID} characters, got {shown(id)}")
    try:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = "not JSON"
    text = text if text.strip() else "{}"
    if (parsed := read_object(text)) is None:
        raise MessageError(f"the arguments of the call of {name!r} must be a JSON object, got {shown(arguments)}")
    return ToolCall(id, name, parsed, text)


def _checked_call(call: Any) -> ToolCall:
    """`call` with split control tokens in its arguments, also in those that are escaped in its text."""
    if not isinstance(call, ToolCall):
        raise MessageError(f"a tool call of a Message must be a ToolCall, got {type_of(call)}")
    checked = parse_tool_call(call.as_dict())
    # some templates write `<parameter=name>`: the `>` could complete a name to a control token
    arguments = {key.replace("<|", "< |"): value for key, value in checked.arguments.items()}
    plain = json.dumps(arguments, ensure_ascii=False)
    if CONTROL.search(checked.text) or CONTROL.search(plain) or arguments.keys() != checked.arguments.keys():
        text = split_control(plain)
        return replace(checked, text=text, arguments=json.loads(text))
    return checked


#: Tags that end the result of a tool in chat templates.
_RESULT = re.compile(r"<(/?tool_response>)")


def _joined_texts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """`parts` of a result with adjacent texts joined, and split tokens and tags that would end it."""
    groups = itertools.groupby(parts, key=lambda part: isinstance(part, str))
    joined: list[Part] = []
    for is_text, group in groups:
        if is_text:
            text = "".join(part for part in group if isinstance(part, str))
            joined.append(_RESULT.sub(r"< \1", split_control(text)))
        else:
            joined += group
    return tuple(joined)


def _with_results(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """`messages` with the results of tools in the order of their calls, and with ids for those that have none.

    MessageError if results do not belong to the calls before them.
    """
    if not any(message.tool_calls or message.role == "tool" for message in messages):
        return messages
    ordered: list[Message] = []
    rest = list(messages)
    while rest:
        message = rest.pop(0)
        if message.role == "tool":
            raise MessageError("a message of the role tool must follow an answer with tool_calls")
        results = [*itertools.takewhile(lambda one: one.role == "tool", rest)] if message.tool_calls else []
        del rest[: len(results)]
        if message.tool_calls:
            message, results = _matched(message, results, len(ordered))
        ordered += [message, *results]
    return tuple(ordered)


def _matched(message: Message, results: Sequence[Message], number: int) -> tuple[Message, list[Message]]:
    """An answer and the results of its calls, in the order of the calls."""
    ids, given = [call.id for call in message.tool_calls], [result.tool_call_id for result in results]
    if twice := sorted({id for some in (ids, given) for id in some if id and some.count(id) > 1}):
        raise MessageError(f"the tool_call_id {twice[0]!r} occurs twice")
    if all(ids) and (unknown := [id for id in given if id and id not in ids]):
        raise MessageError(f"tool_call_id {unknown[0]!r} is none of the calls before it: {', '.join(ids)[:200]}")
    if results and len(results) != len(ids):
        raise MessageError(f"an answer has {len(ids)} tool calls, but {len(results)} results follow it")
    if all(ids) and all(given):
        return message, sorted(results, key=lambda result: ids.index(result.tool_call_id))
    ids = [id or f"call_{number}_{i}" for i, id in enumerate(ids)]
    calls = tuple(replace(call, id=id) for call, id in zip(message.tool_calls, ids, strict=True))
    named = [replace(result, tool_call_id=id) for result, id in zip(results, ids, strict=False)]
    return replace(message, tool_calls=calls), named


def _with_budget(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with those for the size of a picture or video combined into one value."""
    arguments = dict(options)
    if sizes := {name: arguments.pop(name) for name in BUDGET if name in arguments}:
        arguments["budget"] = PixelBudget(**sizes)
    return arguments


def _spacing(source: VideoSource, options: Mapping[str, Any]) -> float | None:
    """Frame rate of a video that is sent as frames. MessageError for options that choose frames of a file."""
    if wrong := sorted(set(options) - {"fps", "sample_fps"}):
        raise MessageError(f"{wrong[0]} applies to video files, but this video is sent as frames; leave it out")
    if options and (isinstance(source, Video) or is_timed(source)):
        raise MessageError(f"{min(options)} has no effect on a video that is sent with its times; leave it out")
    if len(options) > 1:
        raise MessageError("fps and sample_fps have the same meaning for a list of frames: send one of them")
    return next(iter(options.values()), None)


def _text(fields: Mapping[str, Any], where: str, key: str) -> str:
    if not isinstance(fields.get(key), str):
        raise MessageError(f"{where} must hold a str as {key!r}")
    return str(fields[key])


def _data_uri(url: object, key: str) -> str:
    """The data URI of an OpenAI part. Such parts may come from remote clients, so paths and URLs are refused."""
    if not is_data_uri(url):
        example = "data:video/mp4" if key == "video_url" else "data:image/png"
        raise MessageError(f"{key} must be a data URI ({example};base64,...): addresses are not fetched")
    return url


def _slot(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, Picture) else "video"}


def _listed(messages: object, must_be: str) -> Iterable[Any]:
    if not isinstance(messages, list | tuple):
        raise MessageError(f"{must_be} a list of messages, got {type_of(messages)}")
    return messages


def _image_sources(images: Any) -> Sequence[Any]:
    if images is None:
        return ()
    return images if isinstance(images, list | tuple) else (images,)


def _video_sources(videos: Any) -> Sequence[Any]:
    """One source per video. A list of frames is one video; a list of videos is several."""
    if videos is None:
        return ()
    if not isinstance(videos, list | tuple) or is_timed(videos):
        return (videos,)
    whole = [_is_whole_video(item) for item in videos]
    if any(whole) and not all(whole):
        raise MessageError("videos mixes frames with whole videos; put the frames of each video in a list")
    return videos if all(whole) else (videos,)


def _is_whole_video(item: object) -> bool:
    """Paths, data URIs and open files are video files, lists hold frames; all else (PIL, array, bytes) is one frame."""
    return isinstance(item, str | os.PathLike | Video | list | tuple) or (
        item.ndim == 4 if isinstance(item, np.ndarray) else is_encoded(item) and not isinstance(item, _BYTES)
    )
