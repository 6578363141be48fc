"""Parses messages: every field is obeyed, accepted without effect, or refused by name."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from vlroute.checks import refused, shown
from vlroute.errors import LimitError, MessageError
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
    "refusal", "reasoning", "reasoning_content", "reasoning_details", "thinking", "thinking_blocks", "annotations",
    "parsed", "provider_specific_fields", "status",
)  # fmt: skip
_TEXTS = ("name", "refusal", "reasoning", "reasoning_content", "thinking")
_TOOLS = ("tool_calls", "tool_call_id", "function_call")


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
    for name in _TOOLS:
        if name in filled:
            raise MessageError(f"{name} is not supported; leave tool calls and results out")
    role = str(filled.get("role"))[:40]
    known = (*_MESSAGE, *_ANSWER) if role == "assistant" else _MESSAGE
    fields = known_fields(filled, f"a message of the role {role!r}", known)
    for name in _TEXTS:
        if not isinstance(fields.get(name, ""), str):
            raise MessageError(f"{name} must be a str, got a {type(fields[name]).__name__}")
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


Role: TypeAlias = Literal["system", "user", "assistant"]
Part: TypeAlias = str | Picture | Video

_BYTES = bytes | bytearray | memoryview
_SOURCES = ("url", "path", "base64")
#: Fields for reasoning: with one of them, the content is the answer alone.
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
# In text these would end a turn, forge another one, or add a placeholder without a picture.
_CONTROL = re.compile(r"<(\|(?:im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>)")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its role, and its texts, pictures and videos in the order of the prompt.

    Only user messages have pictures and videos. The text of an assistant message is the answer without its reasoning.
    A control token in an answer, which the model may have read in a picture, is split by a space.

    Raises:
        MessageError: the role or a part is wrong, or the text of another role contains a control token such as
            `<|im_end|>`.
    """

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise MessageError(f"role must be system, user or assistant, got {str(self.role)[:40]!r}")
        if not isinstance(self.parts, tuple):
            raise MessageError(f"parts must be a tuple, got a {type(self.parts).__name__}")
        for part in self.parts:
            if not isinstance(part, str | Picture | Video):
                raise MessageError(f"a part must be a str, Picture or Video, got a {type(part).__name__}")
            if self.role != "user" and not isinstance(part, str):
                raise MessageError(f"a message of the {self.role} can contain only text; pictures come from the user")
        if self.role == "assistant":
            answer = _CONTROL.sub(r"< \1", self.text)
            object.__setattr__(self, "parts", (answer,) if answer else ())
        # The template joins adjacent texts, so a token that is split over two of them would be complete again.
        joined = "".join(part if isinstance(part, str) else " " for part in self.parts)
        if token := _CONTROL.search(joined):
            raise MessageError(f"text contains the control token {token[0]}, which would forge a turn or a picture")
        try:
            joined.encode()
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

    Raises:
        MessageError: the last message is not from the user or has no text.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages or self.messages[-1].role != "user":
            raise MessageError("the last message must have the role user; otherwise there is nothing to answer")
        if not self.prompt.strip():
            raise MessageError("the prompt is empty; describe what to do")

    @property
    def prompt(self) -> str:
        """Text of the last message."""
        return self.messages[-1].text

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
        """Pictures of the last message."""
        return self.messages[-1].pictures

    @property
    def last_videos(self) -> tuple[Video, ...]:
        """Videos of the last message."""
        return self.messages[-1].videos

    def template(self) -> list[dict[str, Any]]:
        """The argument of `processor.apply_chat_template`, with placeholders for pictures and videos.

        Past answers have an empty `reasoning_content`. Without it, the published templates search the answer for tags
        and cut it there.
        """
        return [
            {
                "role": turn.role,
                "content": [_slot(part) for part in turn.parts],
                **({"reasoning_content": ""} if turn.role == "assistant" else {}),
            }
            for turn in self.messages
        ]


def parse(
    prompt: str | Sequence[Message | Mapping[str, Any]],
    images: PictureSource | Sequence[PictureSource] | None = None,
    videos: VideoSource | Sequence[VideoSource] | None = None,
    history: Sequence[Message | Mapping[str, Any]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    sampling: Callable[[], FrameSampling] = FrameSampling,
) -> Conversation:
    """Check and load the input of a request.

    Pictures and videos are placed before the text of the last user message, pictures first.

    Args:
        prompt: text, or a list of messages: `Message` objects or dicts in the form of OpenAI.
        images: one source for `load_picture`, or a list of them.
        videos: one source for `load_video`, or a list of them. A list that contains only pictures, arrays or bytes is
            one video.
        history: earlier messages.
        limits: limits of the request.
        sampling: called for each video file. Returns the frame sampling, which options of a part override.

    Returns:
        The conversation.

    Raises:
        InputError: the input cannot be used; the subclasses `MessageError`, `LimitError` and `UnreadableMediaError`
            tell why.
    """
    loader = _Loader(limits, sampling)
    turns = [loader.message(turn) for turn in _listed(history or (), "history must be")]
    if isinstance(prompt, str):
        turns.append(Message("user", (prompt,)))
    else:
        turns += [loader.message(turn) for turn in _listed(prompt, "prompt must be a str or")]
    conversation = Conversation(tuple(turns))
    media: list[Part] = [loader.picture(source) for source in _image_sources(images)]
    media += [loader.video(source) for source in _video_sources(videos)]
    if not media:
        return conversation
    *earlier, last = conversation.messages
    return Conversation((*earlier, Message("user", (*media, *last.parts))))


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

    def message(self, message: Message | Mapping[str, Any]) -> Message:
        if isinstance(message, Message):
            for part in message.parts:
                if isinstance(part, Picture):
                    self.picture(part)
                elif isinstance(part, Video):
                    self.video(part)
            return message
        if not isinstance(message, Mapping):
            raise MessageError(f"a message must be a Message or a dict, got a {type(message).__name__}")
        fields = message_fields(message)
        role, content, name = fields.get("role"), fields.get("content"), fields.get("name")
        if content is None and role == "assistant":
            content = ""  # an answer that was a tool call only
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list | tuple):
            raise MessageError(f"content must be a str or a list of parts, got a {type(content).__name__}")
        parts: tuple[Part, ...] = tuple(self.part(part) for part in content)
        if "refusal" in fields:
            if any(parts):
                raise MessageError("refusal and content are both given: send one of them")
            parts = (fields["refusal"],)
        texts = [part for part in parts if isinstance(part, str)]
        if role == "assistant":
            separated = any(message.get(key) not in (None, []) for key in _REASONING)
            if not separated and len(texts) == len(parts):
                parts = (without_reasoning("".join(texts)),)
        elif name and any(text.strip() for text in texts):
            parts = (f"{name}: ", *parts)
        if "images" in fields:
            parts = (*self._ollama_images(fields["images"]), *parts)
        return Message("system" if role == "developer" else role, parts)  # type: ignore[arg-type]

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
            raise MessageError(f"{given[0]} of a part of type {kind!r} must be a str, got a {type(source).__name__}")
        return source

    def _base64(self, text: object, name: str, most: int) -> bytes:
        if not isinstance(text, str | bytes):
            raise MessageError(f"{name} must be a str, got a {type(text).__name__}")
        return decode_base64(text if isinstance(text, str) else text.decode("latin-1"), name, most)


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
        raise MessageError(f"{must_be} a list of messages, got a {type(messages).__name__}")
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
