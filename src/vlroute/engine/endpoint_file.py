"""Two endpoints in a JSON file, so that every command can be pointed at them: `--pair endpoints.json`."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from vlroute.engine.endpoint import Endpoint
from vlroute.errors import InputError
from vlroute.files import read_at_most
from vlroute.modes import MODES

MOST_BYTES = 2**20
_KEY = "api_key_env"
_FIELDS = {field.name for field in fields(Endpoint)} - {"api_key"} | {_KEY}


def read_endpoints(file: Path) -> tuple[Endpoint, Endpoint]:
    """(instruct, thinking) of `{"instruct": {"base_url": …, "model": …, …}, "thinking": {…}}`.

    Fields are those of `Endpoint`; a key is not written there but named: `api_key_env` is the environment variable that
    holds it. InputError for anything else.
    """
    try:
        found = json.loads(read_at_most(file, MOST_BYTES))
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{file}: {why}; pass an existing JSON file of endpoints (docs/endpoints.md)") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})") from error
    if not isinstance(found, dict) or set(found) != set(MODES):
        raise InputError(f"{file}: expected an object with 'instruct' and 'thinking', each with base_url and model")
    instruct, thinking = (_endpoint(found[mode], f"{file}, {mode}") for mode in MODES)
    return instruct, thinking


def _endpoint(values: Any, place: str) -> Endpoint:
    if not isinstance(values, dict) or not {"base_url", "model"} <= set(values):
        raise InputError(f"{place}: expected an object with base_url and model")
    if unknown := sorted(set(values) - _FIELDS):
        hint = f"; name the variable that holds the key as {_KEY}" if "api_key" in unknown else ""
        raise InputError(f"{place}: unknown {', '.join(unknown)}; expected {', '.join(sorted(_FIELDS))}{hint}")
    values, key = dict(values), None
    if (name := values.pop(_KEY, None)) is not None:
        key = os.environ.get(str(name))
        if not key:
            raise InputError(f"{place}: the environment variable {name} holds no key; set it")
    try:
        return Endpoint(**values, api_key=key)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{place}: {error}") from error
