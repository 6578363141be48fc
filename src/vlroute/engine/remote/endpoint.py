"""An OpenAI-compatible server that answers in one mode or in both: its address, and the requests to it."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from PIL import Image

from vlroute.checks import Number, Whole
from vlroute.engine.families import ENDPOINT_FAMILIES
from vlroute.engine.settings import check_logprobs, checked, response_format
from vlroute.errors import InputError, SettingsError
from vlroute.files import read_at_most
from vlroute.inputs.media import Picture, Video
from vlroute.inputs.messages import Conversation, Message
from vlroute.inputs.tools import Tools
from vlroute.types import MODES, Mode

Headers = Mapping[str, str] | Callable[[Conversation], Mapping[str, str]]
Reasoning = Literal["auto", "parsed", "raw"]
VideoForm = Literal["frames", "video_url"]
ChoiceForm = Literal["structured_outputs", "guided"]
#: Settings under transformers' names that OpenAI has under the same name, and under another one.
_SAME = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed")
_RENAMED = {"max_new_tokens": "max_tokens"}
#: Settings that OpenAI does not have, but vLLM, SGLang, llama-server and `vlroute serve` do.
_EXTRA = ("top_k", "min_p", "repetition_penalty")
#: Characters that HTTP can send; RFC 9110, sections 5.1 and 5.5.
_KEY = re.compile(r"[!-~]+")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"(?:[!-~](?:[ -~\t]*[!-~])?)?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address and settings of a server.

    Args:
        base_url: `http(s)://host:port/v1`.
        model: The name under which the server knows the model.
        api_key: Sent as a bearer token.
        headers: Sent with each request. A callable gets the conversation, so that a proxy can keep it on one replica:
            `lambda conversation: {"x-session-id": conversation.key}`.
        connect_seconds: Longest time until the connection is made.
        read_seconds: Longest time until the first token, including retries.
        idle_seconds: Longest time between two tokens; `read_seconds` is used if it is shorter.
        retries: How often a request is retried before its first token, with growing pauses.
        budget_field: The name under which the server takes a thinking budget in tokens, with dots if it is nested:
            `thinking_budget` (vlroute serve), `thinking_token_budget` (vLLM), `thinking_budget_tokens` (llama.cpp),
            `custom_params.thinking_budget` (SGLang). Without one, budgets are not sent.
        family: The family of the model, if one model answers in both modes: a key of
            `vlroute.engine.families.ENDPOINT_FAMILIES` such as "qwen3_5". It determines how a request chooses the mode.
        extra_body: Further fields of each request, or of each mode: `{"instruct": {…}, "thinking": {…}}`.
        videos: How videos are sent: "frames", as pictures with their times; "video_url", as the frames of one video
            (vLLM); None, not at all.
        reasoning: "parsed" if the server has a reasoning parser, "raw" if it sends reasoning as text that ends with
            `</think>`, "auto" to detect this from its streams.
        choices: How a `response_format` that is a choice or a regular expression is sent: "structured_outputs" (vLLM
            and `vlroute serve`), "guided" (earlier versions of vLLM: `guided_choice`, `guided_regex`); None, not at
            all. JSON formats are sent as OpenAI's `response_format`.

    Raises:
        ValueError: A value is out of range, or of the wrong type.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    headers: Headers = field(default_factory=dict, repr=False)
    connect_seconds: float = 5.0
    read_seconds: float = 120.0
    idle_seconds: float = 20.0
    retries: int = 2
    budget_field: str | None = None
    reasoning: Reasoning = "auto"
    family: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    videos: VideoForm | None = None
    choices: ChoiceForm | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.base_url, str) or not _is_address(self.base_url):
            raise ValueError(f"base_url must be http(s)://host:port/v1, not {self.base_url!r}")
        if not isinstance(self.model, str) or not self.model:
            raise ValueError("model must be the name the server knows the model by; its /v1/models lists them")
        for name in ("connect_seconds", "read_seconds", "idle_seconds"):
            object.__setattr__(self, name, Number(0, above=True).read(name, getattr(self, name)))
        object.__setattr__(self, "retries", Whole().read("retries", self.retries))
        if self.reasoning not in get_args(Reasoning):
            raise ValueError(f"reasoning must be one of {', '.join(get_args(Reasoning))}, not {self.reasoning!r}")
        if self.family is not None and self.family not in ENDPOINT_FAMILIES:
            raise ValueError(f"family must be one of {', '.join(ENDPOINT_FAMILIES)}, not {self.family!r}")
        if not isinstance(self.extra_body, Mapping) or not all(isinstance(name, str) for name in self.extra_body):
            raise ValueError("extra_body must be a mapping of fields, or of the modes to such mappings")
        if not all(isinstance(one, Mapping) for one in self._modes_of_extra_body.values()):
            raise ValueError("extra_body must contain a mapping of fields for each mode")
        if self.videos not in (None, *get_args(VideoForm)):
            raise ValueError(f"videos must be one of {', '.join(get_args(VideoForm))} or None, not {self.videos!r}")
        if self.choices not in (None, *get_args(ChoiceForm)):
            raise ValueError(f"choices must be one of {', '.join(get_args(ChoiceForm))} or None, not {self.choices!r}")
        if not isinstance(self.budget_field, str | None) or self.budget_field == "":
            raise ValueError(f"budget_field must be the name of a field or None, not {self.budget_field!r}")
        if not callable(self.headers):
            _check_headers(self.headers)
        if not isinstance(self.api_key, str | None):
            raise ValueError(f"api_key must be a string or None, not {type(self.api_key).__name__}")
        if self.api_key and not _KEY.fullmatch(self.api_key):
            raise ValueError("api_key must consist of printable ASCII characters without spaces and line breaks")

    @classmethod
    def of(cls, value: Endpoint | tuple[str, str]) -> Endpoint:
        """Convert a tuple.

        Args:
            value: An Endpoint, or (base URL, name of the model).

        Returns:
            The endpoint.

        Raises:
            ValueError: `value` is neither.
        """
        if isinstance(value, Endpoint):
            return value
        if isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, str) for one in value):
            return cls(*value)
        raise ValueError(f"an endpoint is an Endpoint or a tuple (base_url, model), not {type(value).__name__}")

    @property
    def _modes_of_extra_body(self) -> Mapping[str, Any]:
        """The parts of `extra_body` for each mode; empty if it holds for both."""
        return self.extra_body if self.extra_body and set(self.extra_body) <= set(MODES) else {}

    @property
    def has_both_modes(self) -> bool:
        """Whether requests can choose the mode."""
        switched = self.family is not None and ENDPOINT_FAMILIES[self.family].switch is not None
        return switched or set(self._modes_of_extra_body) == set(MODES)

    def mode_fields(self, mode: Mode) -> dict[str, Any]:
        """Fields of a request that do not depend on its content: what chooses the mode, and `extra_body`."""
        fields: dict[str, Any] = {}
        if self.family is not None and (family := ENDPOINT_FAMILIES[self.family]).switch is not None:
            fields = family.fields(mode)
        own = self._modes_of_extra_body.get(mode, {}) if self._modes_of_extra_body else self.extra_body
        return _merged(fields, own)

    @property
    def address(self) -> str:
        """`base_url` without user names, passwords or a query."""
        scheme, _, rest = self.base_url.partition("://")
        return f"{scheme}://{re.split('[?#]', rest.rpartition('@')[2])[0]}"

    @property
    def name(self) -> str:
        """Model and address, for logs and files on this machine."""
        return f"{self.model} at {self.address}"

    def check(self, mode: Mode, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Check generation settings.

        Args:
            mode: The mode of the request.
            settings: Generation settings.

        Returns:
            The checked settings, without those that have no effect in this mode.

        Raises:
            SettingsError: Endpoints in general, or this one, do not take a setting.
        """
        settings = checked(settings, endpoints=True)
        if mode == "instruct":
            settings.pop("thinking_budget", None)
        if settings.get("thinking_budget") is not None and self.budget_field is None:
            raise SettingsError(
                f"{self.name} takes no thinking_budget: set budget_field of the endpoint if its server has one "
                "(docs/how-to/endpoints.md), or leave the budget out"
            )
        check_logprobs(settings)
        form = response_format(settings)
        if form is not None and not form.is_json and self.choices is None:
            raise SettingsError(
                f"{self.name} takes no response_format of the kind {form.kind}: set choices= of the endpoint if its "
                "server has a field for it (docs/how-to/endpoints.md), or use a JSON schema"
            )
        return settings

    def body(self, conversation: Conversation, settings: Mapping[str, Any], mode: Mode) -> dict[str, Any]:
        """Create the arguments of `chat.completions.create`.

        A conversation results in the same bytes up to its last message, so that the prefix cache of the server hits.

        Args:
            conversation: The messages.
            settings: Generation settings.
            mode: The mode that answers.

        Returns:
            The arguments.

        Raises:
            SettingsError: Endpoints do not take a setting.
            InputError: The conversation contains a video, and the endpoint takes none.
        """
        settings = self.check(mode, settings)
        messages = [_message(one, self.videos) for one in conversation.messages]
        body: dict[str, Any] = {"model": self.model, "messages": messages}
        if conversation.tools is not None:
            body |= _tools(conversation.tools)
        body |= {name: settings[name] for name in _SAME if settings.get(name) is not None}
        body |= {new: settings[name] for name, new in _RENAMED.items() if settings.get(name) is not None}
        if settings.get("do_sample") is False:
            body["temperature"] = 0.0
        if settings.get("logprobs"):  # llama.cpp sends none if no alternatives are asked for
            body |= {"logprobs": True, "top_logprobs": max(1, settings.get("top_logprobs", 0))}
        extra = {name: settings[name] for name in _EXTRA if settings.get(name) is not None}
        if "repetition_penalty" in extra:
            extra["repeat_penalty"] = extra["repetition_penalty"]  # llama.cpp's name
        if self.budget_field and (budget := settings.get("thinking_budget")) is not None:
            for name in reversed(self.budget_field.split(".")):
                budget = {name: budget}
            extra |= budget
        if (form := response_format(settings)) is not None:
            if form.is_json:
                body["response_format"] = form.as_openai
            else:
                content = list(form.content) if form.kind == "choice" else form.content
                guided = self.choices == "guided"
                extra |= {f"guided_{form.kind}": content} if guided else {"structured_outputs": {form.kind: content}}
        extra = _merged(extra, self.mode_fields(mode))
        return body | ({"extra_body": extra} if extra else {})

    def headers_for(self, conversation: Conversation) -> dict[str, str]:
        """Headers of one request. Raises ValueError if a callable returns invalid ones."""
        if not callable(self.headers):
            return dict(self.headers)
        headers = self.headers(conversation)
        _check_headers(headers)
        return dict(headers)


def _check_headers(headers: Any) -> None:
    if not isinstance(headers, Mapping) or not all(isinstance(text, str) for pair in headers.items() for text in pair):
        raise ValueError("headers must be a mapping of strings to strings, or a callable that returns one")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"headers: {name!r} is not a valid name of a header")
        if not _HEADER_VALUE.fullmatch(value):  # it may be a secret, so it is not shown
            raise ValueError(f"headers: the value of {name} must be printable ASCII without spaces around it")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number
        return False


def _merged(fields: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Both, with nested mappings joined; the second one wins."""
    merged = dict(fields)
    for name, value in others.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _tools(tools: Tools) -> dict[str, Any]:
    """The fields of the tools. A server gets only those that may be called, because few know `allowed_tools`."""
    sent = []
    for tool in tools.definitions:
        name = tool["function"]["name"]
        if name in tools.names:
            strict = {"strict": True} if name in tools.strict else {}
            sent.append({**tool, "function": {**tool["function"], **strict}})
    fields: dict[str, Any] = {"tools": sent}
    if not tools.parallel:
        fields["parallel_tool_calls"] = False
    if tools.required:
        one = {"type": "function", "function": {"name": tools.names[0]}}
        fields["tool_choice"] = one if not tools.parallel and len(sent) == 1 else "required"
    return fields


def _message(message: Message, videos: VideoForm | None) -> dict[str, Any]:
    """A message in OpenAI's form."""
    sent: dict[str, Any] = {"role": message.role, "content": message.text}
    if not all(isinstance(part, str) for part in message.parts):
        sent["content"] = [one for part in message.parts for one in _parts(part, videos)]
    # without this field, published chat templates drop the text before a </think> as reasoning
    if message.role == "assistant" and (message.thinking or "think>" in message.text):
        sent["reasoning_content"] = message.thinking
    if message.tool_calls:
        sent["tool_calls"] = [call.as_dict() for call in message.tool_calls]
    if message.tool_call_id:
        sent["tool_call_id"] = message.tool_call_id
    return sent


def _parts(part: str | Picture | Video, videos: VideoForm | None) -> Iterator[dict[str, Any]]:
    if isinstance(part, str):
        yield {"type": "text", "text": part}
    elif isinstance(part, Picture):
        yield {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_picture(part)}"}}
    elif videos == "frames":
        for seconds, frame in zip(part.times, _frames(part), strict=True):
            yield {"type": "text", "text": f"<{seconds:.1f} seconds>"}
            yield {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{frame}"}}
    elif videos == "video_url":
        # vLLM reads the type video/jpeg as frames of any format, separated by commas
        yield {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(_frames(part))}"}}
    else:
        raise InputError(
            "this endpoint takes no videos: set videos='frames' or videos='video_url' of the endpoint "
            "(docs/how-to/endpoints.md), or send some frames as pictures"
        )


@lru_cache(maxsize=16)  # a picture is sent again with every turn
def _picture(picture: Picture) -> str:
    """The decoded pixels as PNG in base64, scaled to the pixel budget of the picture."""
    return _png(picture.image, picture.budget.target_size(picture.size))


@lru_cache(maxsize=4)
def _frames(video: Video) -> tuple[str, ...]:
    """The frames as PNG in base64, scaled to the pixel budget of the video."""
    size = video.budget.target_size(video.size, len(video.frames))
    return tuple(_png(frame, size) for frame in video.frames)


def _png(image: Image.Image, size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


#: Why one endpoint cannot answer in both modes.
ONE_MODE = (
    "one endpoint for both modes needs a family with a switch, or extra_body with fields for each mode; otherwise name "
    "an endpoint for each mode"
)
MAX_FILE_BYTES = 2**20
_KEY_VARIABLE = "api_key_env"
_FIELDS = {field.name for field in fields(Endpoint)} - {"api_key"} | {_KEY_VARIABLE}


def read_endpoints(file: Path) -> tuple[Endpoint, Endpoint]:
    """Read a file of endpoints: `{"instruct": {"base_url": …, "model": …, …}, "thinking": {…}}`.

    A file with one endpoint, `{"base_url": …, "model": …, "family": …}`, names a server that answers in both modes. The
    fields are those of `Endpoint`, except for the key: `api_key_env` is the name of an environment variable that
    contains it.

    Args:
        file: A JSON file.

    Returns:
        The endpoints of Instruct and Thinking; twice the same for one server.

    Raises:
        InputError: The file cannot be read, or a field is unknown or invalid.
    """
    try:
        found = json.loads(read_at_most(file, MAX_FILE_BYTES))
    except OSError as error:
        why = error.strerror or error
        remedy = "pass an existing JSON file of endpoints (docs/how-to/endpoints.md)"
        raise InputError(f"{file}: {why}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})") from error
    if isinstance(found, dict) and "base_url" in found:
        both = _endpoint(found, str(file))
        if not both.has_both_modes:
            raise InputError(f"{file}: {ONE_MODE}")
        return both, both
    if not isinstance(found, dict) or set(found) != set(MODES):
        raise InputError(
            f"{file}: expected an object with 'instruct' and 'thinking', each with base_url and model; or one endpoint "
            "with a family"
        )
    instruct, thinking = (_endpoint(found[mode], f"{file}, {mode}") for mode in MODES)
    return instruct, thinking


def _endpoint(values: Any, place: str) -> Endpoint:
    if not isinstance(values, dict) or not {"base_url", "model"} <= set(values):
        raise InputError(f"{place}: expected an object with base_url and model")
    if unknown := sorted(set(values) - _FIELDS):
        hint = (
            f"; put the key in an environment variable and its name in {_KEY_VARIABLE}" if "api_key" in unknown else ""
        )
        raise InputError(f"{place}: unknown {', '.join(unknown)}; expected {', '.join(sorted(_FIELDS))}{hint}")
    values, key = dict(values), None
    if (name := values.pop(_KEY_VARIABLE, None)) is not None:
        key = os.environ.get(str(name))
        if not key:
            raise InputError(f"{place}: the environment variable {name} is not set; it must contain the API key")
    try:
        return Endpoint(**values, api_key=key)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{place}: {error}") from error
