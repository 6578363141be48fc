"""Checks the tools that a request offers to the model."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlroute.checks import refused, shown, type_of
from vlroute.errors import MessageError
from vlroute.inputs.control_tokens import CONTROL
from vlroute.types import MODES, Mode

#: Names that chat templates and APIs take.
NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
#: Maximum number of tools of a request, and of calls of one answer.
MAX_TOOLS, MAX_CALLS = 256, 128
#: Maximum depth of a tool and of the arguments of a call: chat templates are rendered by recursive functions.
MAX_DEPTH = 64
#: Strings and brackets of JSON; a string that is not closed extends to the end.
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_FIELDS = ("name", "description", "parameters", "strict")
#: The letter of each mode in the ids of calls.
_LETTERS = {mode[0]: mode for mode in MODES}
_CALL_ID = re.compile(r"call_([a-z])[0-9a-f]{24}")


def new_call_id(mode: Mode) -> str:
    """A random id for a call of `mode`.

    Clients send the ids of calls back with the results, so that `mode_of_call` finds the mode of the previous step
    without any state in this process.
    """
    return f"call_{mode[0]}{secrets.token_hex(12)}"


def mode_of_call(id: str) -> Mode | None:
    """The mode that made the call with this id; None if the id is not from `new_call_id`."""
    found = _CALL_ID.fullmatch(id)
    return found and _LETTERS.get(found[1])


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        definitions: Each tool in OpenAI's form, as the chat template renders it.
        parallel: Whether an answer may contain several calls.
        required: Whether the answer consists of calls.
        allowed: Names of the tools that may be called; None: all.
        strict: Names of the tools whose arguments always follow their schema.
    """

    definitions: tuple[Mapping[str, Any], ...]
    parallel: bool = True
    required: bool = False
    allowed: tuple[str, ...] | None = None
    strict: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tools that may be called."""
        return self.allowed or tuple(tool["function"]["name"] for tool in self.definitions)

    @property
    def constrained(self) -> bool:
        """Whether a grammar has to constrain the answer."""
        return self.required or self.allowed is not None or bool(self.strict)

    @property
    def text(self) -> str:
        """All definitions as JSON."""
        return json.dumps(self.definitions, ensure_ascii=False)

    def schema(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of the parameters of a tool; empty for an unknown tool."""
        found = (tool["function"].get("parameters") for tool in self.definitions if tool["function"]["name"] == name)
        return next(found, None) or {}


def checked_tools(
    tools: Sequence[Mapping[str, Any]] | None,
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel_tool_calls: bool | None = None,
) -> Tools | None:
    """Check the tools of a request.

    Args:
        tools: Tools in OpenAI's form, `{"type": "function", "function": {"name": …, "description": …, "parameters":
            …}}`, or the inner object alone.
        tool_choice: "auto" or None: the model chooses between calls and text. "none": no tools are offered.
            "required": the answer consists of calls. The name of a tool, or OpenAI's `{"type": "function", "function":
            {"name": …}}`: the answer is one call of this tool. OpenAI's `{"type": "allowed_tools", "allowed_tools":
            {"mode": "auto" or "required", "tools": […]}}`: only these tools may be called.
        parallel_tool_calls: Whether an answer may contain several calls; None: yes.

    Returns:
        The tools; None if there are none, or with the choice "none".

    Raises:
        MessageError: A tool or the choice is invalid or not supported.
        SettingsError: `parallel_tool_calls` is of another type.
    """
    if not isinstance(parallel_tool_calls, bool | None):
        raise refused("parallel_tool_calls", parallel_tool_calls, "True or False")
    if not isinstance(tools, list | tuple | None):
        raise MessageError(f"tools must be a list of tools, got {type_of(tools)}")
    if len(tools or ()) > MAX_TOOLS:
        raise MessageError(f"more than {MAX_TOOLS} tools in one request; send fewer")
    definitions = tuple(_definition(tool) for tool in tools or ())
    names = [tool["function"]["name"] for tool in definitions]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise MessageError(f"two tools have the name {twice[0]!r}; names must differ")
    mode, allowed = _choice(tool_choice, names)
    if not definitions or mode == "none":
        return None
    strict = frozenset(name for name, tool in zip(names, tools or (), strict=True) if _is_strict(tool))
    parallel = parallel_tool_calls is not False and mode != "one"
    return Tools(definitions, parallel, mode in ("required", "one"), allowed, strict & {*(allowed or names)})


def _choice(value: Any, names: Sequence[str]) -> tuple[str, tuple[str, ...] | None]:
    """Mode ("auto", "none", "required" or "one") and names of the tools that may be called."""
    if value is None or value in ("auto", "none", "required"):
        if value == "required" and not names:
            raise MessageError("tool_choice='required' needs tools; send at least one")
        return value or "auto", None
    if isinstance(value, str):
        return "one", (_offered(value, names),)
    if isinstance(value, Mapping):
        match value.get("type"):
            case "function":
                inner = value.get("function", value)
                if isinstance(inner, Mapping):
                    return "one", (_offered(inner.get("name"), names),)
            case "allowed_tools":
                inner = value.get("allowed_tools", value)
                if isinstance(inner, Mapping) and inner.get("mode") in ("auto", "required"):
                    listed = inner.get("tools")
                    if isinstance(listed, list | tuple) and listed:
                        chosen = [_choice(one, names) for one in listed]
                        if all(mode == "one" for mode, _ in chosen):
                            unique = dict.fromkeys(name for _, one in chosen for name in one or ())
                            return inner["mode"], tuple(unique)
    raise MessageError(
        f"tool_choice={shown(value)} is not supported; expected 'auto', 'none', 'required', the name of a tool, or "
        "OpenAI's objects of type 'function' or 'allowed_tools'"
    )


def _offered(name: Any, names: Sequence[str]) -> str:
    if not isinstance(name, str) or name not in names:
        among = f"the tools are {', '.join(names)}"[:200] if names else "there are no tools"
        raise MessageError(f"tool_choice names the tool {shown(name)}, which is not offered; {among}")
    return name


def _describes_object(schema: Mapping[str, Any]) -> bool:
    """Whether the type of a schema, if it has one, is or includes "object", and its properties are an object."""
    kind = schema.get("type")
    fits = kind is None or "object" in ([kind] if isinstance(kind, str) else kind if isinstance(kind, list) else ())
    return fits and isinstance(schema.get("properties", {}), Mapping | None)


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return bool((tool.get("function") or tool).get("strict"))


def _definition(tool: Any) -> Mapping[str, Any]:
    """One tool in OpenAI's form, with its keys in the given order. MessageError if it is invalid."""
    if not isinstance(tool, Mapping):
        raise MessageError(f"a tool must be a dict, got {type_of(tool)}")
    kind, function = tool.get("type") or "function", tool.get("function")
    if kind != "function":
        raise MessageError(f"a tool has the type {shown(kind)}; only functions are supported")
    if function is None:  # the form of OpenAI's Responses API and of Ollama
        function = {name: value for name, value in tool.items() if name != "type"}
        tool = {"type": "function", "function": function}
    if not isinstance(function, Mapping):
        raise MessageError(f"the function of a tool must be a dict, got {type_of(function)}")
    if unknown := [*(set(tool) - {"type", "function"}), *(set(function) - set(_FIELDS))]:
        raise MessageError(
            f"a tool has the unknown field {str(min(unknown, key=str))[:40]!r}; known: {', '.join(_FIELDS)}"
        )
    name, description, parameters = (function.get(field) for field in _FIELDS[:3])
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise MessageError(f"the name of a tool must be 1 to 128 letters, digits, '_', '-' or '.', got {shown(name)}")
    if not isinstance(description, str | None):
        raise MessageError(f"the description of {name!r} must be a str, got {type_of(description)}")
    if not isinstance(parameters, Mapping | None) or not _describes_object(parameters or {}):
        raise MessageError(
            f"the parameters of {name!r} must be a JSON schema of type 'object', got {shown(parameters)}"
        )
    if not isinstance(strict := function.get("strict"), bool | None):
        raise MessageError(f"strict of {name!r} must be true or false, got {shown(strict)}")
    kept = {field: value for field, value in function.items() if value is not None and field != "strict"}
    definition = {"type": "function", "function": kept}
    try:
        text = json.dumps(definition, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise MessageError(f"the tool {name!r} is not JSON: {error}") from None
    if depth_of(text) > MAX_DEPTH:
        raise MessageError(f"the tool {name!r} is nested more than {MAX_DEPTH} levels deep")
    if token := CONTROL.search(text):
        raise MessageError(f"the tool {name!r} contains the control token {token[0]}, which would forge a turn")
    copied: Mapping[str, Any] = json.loads(text)  # the caller may change its own
    return copied


def read_object(text: str) -> dict[str, Any] | None:
    """Read the arguments of a call.

    Args:
        text: A JSON object.

    Returns:
        The object; None if the text is none, if it is nested too deep, or if it contains NaN, infinity or half of a
        surrogate pair, which are no JSON.
    """
    if depth_of(text) > MAX_DEPTH:
        return None
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def depth_of(text: str) -> int:
    """The depth of a JSON text: the largest number of brackets that are open at the same time."""
    depth = deepest = 0
    for mark in _MARKS.finditer(text):
        if mark[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark[0] in "]}":
            depth -= 1
    return deepest
