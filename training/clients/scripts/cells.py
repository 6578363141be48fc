"""Shared by the client scripts: arguments, requests, and running and reporting a cell."""

from __future__ import annotations

import base64
import json
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

URL, PICTURE = sys.argv[1], Path(sys.argv[2])
KEY = "not-needed-on-loopback"
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
QUESTION = "Read the text."
TURNS = (("instruct", "How many circles are there?"), ("thinking", "Read the text."), ("auto", "Add 2 and 3."))
MADE_UP = "never_heard_of"


def run(package: str, **cells: Callable[[], str]) -> None:
    """Run each cell and print one line of JSON for it; what a cell returns must not be empty."""
    print(json.dumps({"version": version(package)}), flush=True)
    for name, cell in cells.items():
        try:
            said, ok = cell(), True
            if not said.strip():
                said, ok = "empty", False
        except Exception as error:
            traceback.print_exc()
            said, ok = f"{type(error).__name__}: {error}", False
        print(json.dumps({"cell": name, "ok": ok, "said": said[:300]}), flush=True)


def same(streamed: str, whole: str) -> str:
    """The text, which a stream and a whole answer of a greedy model must share."""
    if streamed != whole:
        raise AssertionError(f"the stream says {streamed!r}, the whole answer {whole!r}")
    return whole


def refusals(call: Callable[[str, bool], object], kinds: tuple[type[Exception], type[Exception]]) -> str:
    """An unknown model and an unknown field arrive as the client's own errors, with the server's message.

    Args:
        call: Asks `model`, with a made-up field if the second argument is true.
        kinds: What is raised for the model (404) and for the field (400).
    """
    told = []
    for kind, model, field, named in (
        (kinds[0], "no-such-model", False, "no-such-model"),
        (kinds[1], "auto", True, MADE_UP),
    ):
        try:
            call(model, field)
        except kind as error:
            if named not in str(error):
                raise AssertionError(f"the error does not name {named}: {error}") from error
            told.append(type(error).__name__)
        else:
            raise AssertionError(f"{named} was not refused")
    return ", ".join(told)
