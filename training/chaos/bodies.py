"""Damaged JSON bodies for a running server: each must get an answer, or a public error in the form of its API."""

from __future__ import annotations

import atexit
import functools
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from training.bench.servers import data_uri
from training.chaos.mutants import Kind, noise
from training.chaos.servers import Server, serving
from vlroute.errors import VLRouteError

#: A reply that takes longer counts as a hang: the server limits its answers to some tokens.
PATIENCE_SECONDS = 60.0
#: What no message for a client may contain: types, addresses and paths of Python.
INTERNAL = ("Traceback", "<class '", " object at 0x", "NoneType", "site-packages", "/src/", "pydantic.dev", "<function")
#: The last event of a stream of each API.
LAST_EVENTS = (
    "data: [DONE]", "event: message_stop", "event: response.completed", "event: response.incomplete", "event: error",
    "event: response.failed",
)  # fmt: skip
_TOOL = {
    "type": "function",
    "function": {
        "name": "look", "description": "Look.",
        "parameters": {"type": "object", "properties": {"a": {"type": "string"}}},
    },
}  # fmt: skip

#: Uses all keywords that restrict an answer.
_SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["integer", "list"],
    "$defs": {"short": {"type": "string", "minLength": 1, "maxLength": 9}},
    "properties": {
        "integer": {"type": "integer", "minimum": -5, "maximum": 99, "multipleOf": 3},
        "number": {"type": "number", "exclusiveMinimum": -0.5, "exclusiveMaximum": 1e6, "multipleOf": 0.01},
        "list": {"type": "array", "items": {"$ref": "#/$defs/short"}, "minItems": 1, "maxItems": 3},
        "pair": {"type": "array", "prefixItems": [{"const": 1}, {"enum": [-1, "a", None]}], "items": False},
        "text": {"type": ["string", "null"], "pattern": "^[a-z]{1,9}( é+)?$"},
        "time": {"type": "string", "format": "date-time"},
        "any": {"anyOf": [{"type": "boolean"}, {"allOf": [{"type": "integer"}, {"minimum": 1}]}]},
        "others": {"type": "object", "patternProperties": {"^[ab]$": {"type": "null"}}, "maxProperties": 1},
    },
}  # fmt: skip


class RefusedError(VLRouteError):
    """The server answered with a public error."""


def _chat_bodies() -> dict[str, Any]:
    picture = {"type": "image_url", "image_url": {"url": data_uri(noise()), "detail": "low"}}
    question = {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": "b"}'}}
    return {
        "plain": {"model": "instruct", "messages": [{"role": "user", "content": "Say red."}], "max_tokens": 1},
        "picture": {
            "model": "auto", "messages": [{"role": "system", "content": "Be brief."}, question], "max_tokens": 1,
            "temperature": 0, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 1, "logprobs": True, "top_logprobs": 2,
            "logit_bias": {"5": 1}, "user": "me", "metadata": {"a": "b"},
            "vlroute": {"price": 0.1, "caption": "a square"},
        },
        "stream": {
            "model": "thinking", "messages": [question], "max_completion_tokens": 2, "stream": True,
            "stream_options": {"include_usage": True}, "reasoning_effort": "low", "presence_penalty": 0.5,
        },
        "tools": {
            "model": "instruct", "max_tokens": 1, "tools": [_TOOL], "tool_choice": "auto", "parallel_tool_calls": False,
            "messages": [
                {"role": "user", "content": "Look."}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "call_1", "content": "red"}, {"role": "user", "content": "So?"},
            ],
        },
        "format": {
            "model": "instruct", "max_tokens": 1, "messages": [{"role": "user", "content": "A color."}],
            "response_format": {"type": "json_schema", "json_schema": {
                "name": "color", "strict": True,
                "schema": {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"],
                           "additionalProperties": False},
            }},
        },
        "schema": {
            "model": "instruct", "max_tokens": 8, "messages": [{"role": "user", "content": "A list."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "list", "schema": _SCHEMA}},
        },
        "regex": {
            "model": "instruct", "max_tokens": 8, "messages": [{"role": "user", "content": "A word."}],
            "structured_outputs": {"regex": "([a-z]{2,9}|\\d+)( [^x]*){1,3}"},
        },
        "schema of a tool": {
            "model": "instruct", "max_tokens": 8, "messages": [{"role": "user", "content": "Look."}],
            "tools": [{"type": "function", "function": {"name": "look", "strict": True, "parameters": _SCHEMA}}],
            "tool_choice": "required",
        },
    }  # fmt: skip


def _response_bodies() -> dict[str, Any]:
    picture = {"type": "input_image", "image_url": data_uri(noise())}
    message = {"role": "user", "type": "message", "content": [picture, {"type": "input_text", "text": "What is it?"}]}
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}, "strict": False}
    return {
        "plain": {"model": "instruct", "input": "Say red.", "max_output_tokens": 16, "store": True},
        "picture": {
            "model": "auto", "input": [message], "instructions": "Be brief.", "max_output_tokens": 16, "stream": True,
            "temperature": 0.5, "top_p": 0.5, "metadata": {"a": "b"}, "reasoning": {"effort": "low"}, "store": False,
            "truncation": "disabled", "include": ["reasoning.encrypted_content"], "text": {"format": {"type": "text"}},
        },
        "tools": {
            "model": "instruct", "max_output_tokens": 16, "tools": [tool], "tool_choice": "auto",
            "previous_response_id": None, "input": [
                {"role": "user", "content": "Look."},
                {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "call_1", "output": "red"},
            ],
        },
    }  # fmt: skip


def _message_bodies() -> dict[str, Any]:
    source = {"type": "base64", "media_type": "image/png", "data": data_uri(noise()).partition(",")[2]}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    return {
        "plain": {"model": "instruct", "max_tokens": 1, "messages": [{"role": "user", "content": "Say red."}]},
        "picture": {
            "model": "auto", "max_tokens": 1, "messages": [{"role": "user", "content": content}], "stream": True,
            "system": [{"type": "text", "text": "Be brief."}], "temperature": 0.5, "top_k": 5, "top_p": 0.5,
            "stop_sequences": ["x"], "metadata": {"user_id": "me"}, "thinking": {"type": "disabled"},
        },
        "tools": {
            "model": "instruct", "max_tokens": 1, "tool_choice": {"type": "auto"},
            "tools": [{"name": "look", "description": "Look.", "input_schema": {"type": "object", "properties": {}}}],
            "messages": [
                {"role": "user", "content": "Look."},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "red", "is_error": False}
                ]},
            ],
        },
    }  # fmt: skip


def _other_bodies() -> dict[str, tuple[str, Any]]:
    """Further endpoints, with a body for each."""
    message = _message_bodies()
    for one in message.values():
        one.pop("max_tokens")
        one.pop("stream", None)
    chat = _chat_bodies()
    return {
        "count tokens": ("/v1/messages/count_tokens", message["tools"]),
        "route": ("/v1/route", chat["picture"]),
        "feedback": ("/v1/feedback", {"id": "an unknown id", "correct": True, "comment": "so"}),
        "predict": ("/api/predict", {"data": [data_uri(noise()), "What is it?", "instruct"]}),
    }


def _bodies(path: str) -> dict[str, tuple[str, Any]]:
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "/v1/chat/completions": _chat_bodies, "/v1/responses": _response_bodies, "/v1/messages": _message_bodies,
    }  # fmt: skip
    return {name: (path, body) for name, body in made[path]().items()}


def _write(bodies: Callable[[], Mapping[str, tuple[str, Any]]], folder: Path) -> list[Path]:
    files = []
    for name, (path, body) in bodies().items():
        files.append(folder / f"{path.strip('/').replace('/', '-')} {name}")
        files[-1].write_text(json.dumps(body))
    return files


def _send(file: Path) -> object:
    """Send one body. RefusedError for a public error, AssertionError for a reply that no client must get."""
    path = "/" + file.name.partition(" ")[0].replace("-", "/")
    server, client = _server()
    try:
        reply = client.post(path, content=file.read_bytes(), headers={"Content-Type": "application/json"})
    except httpx.HTTPError as error:
        raise AssertionError(f"no reply: {type(error).__name__}") from error
    if "Traceback" in (log := server.new_log()):
        raise AssertionError(f"a traceback in the log: {log.strip().splitlines()[-1]}")
    if reply.headers.get("content-type", "").startswith("text/event-stream"):
        return _check_stream(reply.text)
    found = reply.json()
    if reply.status_code == 200:
        return found
    if not 400 <= reply.status_code < 500:
        raise AssertionError(f"status {reply.status_code}: {found}")
    check_error(found, is_anthropic=path.startswith("/v1/messages"))
    raise RefusedError(str(reply.status_code))


def check_error(found: Any, is_anthropic: bool) -> None:
    """Check the form and the message of an error.

    Args:
        found: The object of the reply.
        is_anthropic: Whether it has to be in the form of Anthropic's API.

    Raises:
        AssertionError: The form is another one, or the message shows internals.
    """
    error = found.get("error")
    if is_anthropic:
        good = found.get("type") == "error" and isinstance(error, dict) and isinstance(found.get("request_id"), str)
    else:
        good = isinstance(error, dict) and isinstance(error.get("code"), str) and "param" in error
    if not good or not all(isinstance(error.get(name), str) and error[name] for name in ("message", "type")):
        raise AssertionError(f"an error in another form: {found}")
    if shown := [one for one in INTERNAL if one in error["message"]]:
        raise AssertionError(f"{shown[0]!r} in the message {error['message']!r}")


def _check_stream(text: str) -> object:
    if "internal_error" in text or "api_error" in text:
        raise AssertionError(f"an internal error in the stream: {text[-300:]}")
    if not any(line.startswith(LAST_EVENTS) for line in text.splitlines()):
        raise AssertionError(f"the stream has no end: {text[-300:]}")
    return text


@functools.cache
def _server() -> tuple[Server, httpx.Client]:
    """A server for all bodies, until this process ends."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vlroute-bodies-")))
        server = stack.enter_context(serving(folder, ["--store", str(folder / "answers.db"), "--max-tokens", "24"]))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS))
        atexit.register(stack.pop_all().close)
    return server, client


KINDS = (
    *(Kind(f"body of {path}", partial(_write, partial(_bodies, path)), _send, separate=True)
      for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages")),
    Kind("bodies of other endpoints", partial(_write, _other_bodies), _send, separate=True),
)  # fmt: skip
