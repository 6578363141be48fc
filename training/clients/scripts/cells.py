"""Shared by the client scripts: arguments, requests, and running and reporting a cell."""

from __future__ import annotations

import base64
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

URL, PICTURE = sys.argv[1], Path(sys.argv[2])
KEY = "not-needed-on-loopback"
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
QUESTION = "Read the text."
TURNS = (("instruct", "How many circles are there?"), ("thinking", "Read the text."), ("auto", "Add 2 and 3."))
MADE_UP = "never_heard_of"
CELLS = ("plain", "stream", "picture", "turns", "reasoning", "tools", "structured", "errors")
#: Name, description and JSON schema of a tool. The schema is short, because a pocket model fills it with anything.
TOOL, ABOUT = "tap", "Tap a button of this screen."
BUTTON = {"type": "object", "properties": {"button": {"type": "string", "maxLength": 8}}, "required": ["button"],
          "additionalProperties": False}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": TOOL, "description": ABOUT, "parameters": BUTTON}}]
#: A JSON schema for structured answers.
SHAPE = {"type": "object", "properties": {"sides": {"type": "integer", "minimum": 0, "maximum": 9},
                                          "color": {"enum": ["red", "green"]}},
         "required": ["sides", "color"], "additionalProperties": False}  # fmt: skip
#: The question with a picture, in the format of OpenAI's API.
PARTS = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": DATA_URI}}]


def run(package: str, cells: Mapping[str, Any]) -> None:
    """Call the functions of `CELLS` in `cells`, which must return a text, and print one line of JSON for each.

    Without a function, the client does not offer this.
    """
    print(json.dumps({"version": version(package)}), flush=True)
    for name in CELLS:
        if name not in cells:
            print(json.dumps({"cell": name, "ok": None, "output": "not offered by the client"}), flush=True)
            continue
        try:
            output, ok = cells[name](), True
            if not output.strip():
                output, ok = "empty", False
        except Exception as error:
            traceback.print_exc()
            output, ok = f"{type(error).__name__}: {error}", False
        print(json.dumps({"cell": name, "ok": ok, "output": output[:300]}), flush=True)


def user(content: Any = QUESTION) -> dict[str, Any]:
    return {"role": "user", "content": content}


def conversation(ask: Callable[[str, list[Any]], Any]) -> list[Any]:
    """A system prompt and `TURNS`, with what `ask(model, messages)` returns as the answers."""
    messages: list[Any] = [{"role": "system", "content": "Be brief."}]
    for model, question in TURNS:
        messages.append(user(question))
        messages.append(ask(model, messages))
    return messages


def same(streamed: str, whole: str) -> str:
    """The text, if the stream and the whole answer are equal, as those of a greedy model must be."""
    if streamed != whole:
        raise AssertionError(f"the stream is {streamed!r}, the whole answer {whole!r}")
    return whole


def refusals(call: Callable[..., object], *kinds: type[Exception]) -> str:
    """Check that an unknown model and an unknown field raise the client's own errors, with the server's message.

    Args:
        call: Asks `model`, with the keyword argument `extra_body`.
        *kinds: The error for the model (404) and for the field (400).

    Returns:
        The names of the errors.
    """
    names = []
    for kind, model, body, named in (
        (kinds[0], "no-such-model", None, "no-such-model"),
        (kinds[-1], "auto", {MADE_UP: 1}, MADE_UP),
    ):
        try:
            call(model, **({"extra_body": body} if body else {}))
        except kind as error:
            if named not in str(error):
                raise AssertionError(f"the error does not name {named}: {error}") from error
            names.append(type(error).__name__)
        else:
            raise AssertionError(f"{named} was not refused")
    return ", ".join(names)


def shaped(text: str) -> str:
    """The JSON text of an answer, which must follow `SHAPE`."""
    value = json.loads(text)
    if set(value) != {"sides", "color"} or value["color"] not in ("red", "green") or not 0 <= value["sides"] <= 9:
        raise AssertionError(f"not in the requested form: {text}")
    return text


def tapped(name: str, arguments: str | Mapping[str, Any]) -> str:
    """The button of a call, which must be one of `TOOLS`."""
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    if name != TOOL or not isinstance(arguments.get("button"), str):
        raise AssertionError(f"not a valid call: {name}({arguments})")
    return f"tap {arguments['button']!r}"
