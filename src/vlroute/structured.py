"""Formats that constrain an answer: any JSON object, a JSON schema, a choice, or a regular expression.

`read_format` checks each form that Python and HTTP accept, and makes a `ResponseFormat` of it. Needs llguidance, of the
extra `structured`; imports neither torch nor pydantic.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from vlroute.checks import refused, shown
from vlroute.errors import MissingExtraError, SettingsError
from vlroute.grammar_check import TOO_COMPLEX, grammar_error

Kind = Literal["text", "json_object", "json_schema", "choice", "regex"]
#: Form of the JSON text: compact, or with a space after separators, or over several lines that are indented. A model
#: cannot go on with white space. No keyword is ignored.
_JSON_OPTIONS: Any = {
    "item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": True, "whitespace_pattern": r"\n {0,16}",
    "lenient": False, "coerce_one_of": False,
}  # fmt: skip
#: Keywords whose value contains schemas: by name, in a list, or as the value itself.
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")
#: Keywords beside `properties` with which an object may need further properties.
_COMBINED = (
    "anyOf", "oneOf", "allOf", "$ref", "if", "not", "patternProperties", "minProperties", "dependentRequired",
    "dependentSchemas", "unevaluatedProperties", "propertyNames",
)  # fmt: skip
#: Keywords that restrict values. Others that are similar to one of these are refused as misspelled.
_KEYWORDS = (
    *_NAMED, *_LISTED, *_SINGLE, "type", "enum", "const", "required", "minProperties", "maxProperties", "minItems",
    "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf", "$ref", "not", "if", "then", "else", "contains", "uniqueItems", "propertyNames",
    "minContains", "maxContains", "dependentRequired", "dependentSchemas", "unevaluatedProperties", "unevaluatedItems",
)  # fmt: skip
#: Keywords without effect on values, some of which are similar to others.
_NOTES = (
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable", "$id",
    "id", "$schema", "$comment", "$anchor", "$vocabulary", "discriminator", "contentEncoding", "contentMediaType",
    "contentSchema", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "dependencies",
)  # fmt: skip
#: Keywords of old drafts that llguidance would ignore.
_IGNORED = ("extends", "disallow", "divisibleBy")
#: Maximum length of a schema, a regular expression, or all strings of a choice. Compiling that takes a second or two.
MAX_CHARACTERS = 100_000
#: Maximum depth of a schema, through objects within it and `$ref`. For a depth of a thousand, llguidance ends the
#: process by a stack overflow.
MAX_DEPTH = 150
#: Maximum absolute value of a number that a schema requires. For larger ones, llguidance writes another number, or ends
#: the process by a stack overflow.
MAX_NUMBER = 2**53
#: Minimum of `multipleOf`.
MIN_MULTIPLE = 1e-15
#: Maximum common multiple of all `multipleOf`, as a whole number without zeros at its end. llguidance computes a state
#: for each remainder, which takes 0.2 s for this number and half a minute for one that is a hundred times as large.
MAX_MULTIPLE = 100_000
_EMPTY: Mapping[str, Any] = {}
_FORMS = (
    "{'type': 'json_object'}, {'type': 'json_schema', 'json_schema': {'schema': …}}, {'type': 'text'}, "
    "{'json': a schema}, {'choice': a list of strings}, {'regex': a string} or, in Python, a pydantic model"
)


@dataclass(frozen=True, slots=True, repr=False)
class ResponseFormat:
    """A checked format.

    Attributes:
        kind: What constrains the answer; "text": nothing.
        content: The JSON schema as JSON text, the regular expression, or the strings of a choice.
        name: Name of a JSON schema, which endpoints require.
        strict: What the caller says about `strict`, for endpoints. The schema is always followed here.
        model: The pydantic model that the schema comes from, if it does.
    """

    kind: Kind
    content: str | tuple[str, ...] = ""
    name: str = field(default="answer", compare=False)
    strict: bool | None = field(default=None, compare=False)
    model: Any = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"{self.kind} {shown(self.content)}" if self.content else self.kind

    def __str__(self) -> str:  # identifies the format in the settings of a collection
        return f"{self.kind} {self.content}"

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes, which do not need the model."""
        return ResponseFormat, (self.kind, self.content, self.name, self.strict)

    @property
    def is_json(self) -> bool:
        """Whether the answer is JSON."""
        return self.kind in ("json_object", "json_schema")

    @property
    def grammar(self) -> str:
        """The grammar for llguidance's matcher."""
        from llguidance import LLMatcher

        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(str(self.content))
        if self.kind == "choice":
            return LLMatcher.grammar_from_lark(f"start: {self.rule}")
        schema = '{"type": "object"}' if self.kind == "json_object" else str(self.content)
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)

    @property
    def rule(self) -> str:
        """The right side of a rule in llguidance's variant of Lark, for larger grammars."""
        if self.kind == "regex":
            return as_terminal(str(self.content))
        if self.kind == "choice":
            return " | ".join(json.dumps(one, ensure_ascii=False) for one in self.content)
        schema = {"type": "object"} if self.kind == "json_object" else json.loads(str(self.content))
        return json_rule(schema)

    @property
    def as_openai(self) -> dict[str, Any]:
        """The field `response_format` of OpenAI's API, for JSON."""
        if self.kind == "json_object":
            return {"type": "json_object"}
        name = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:64]  # the names that OpenAI accepts
        schema = {"name": name, "schema": json.loads(str(self.content))}
        strict = {} if self.strict is None else {"strict": self.strict}
        return {"type": "json_schema", "json_schema": schema | strict}

    def parse(self, text: str) -> Any:
        """Parse a complete answer.

        Args:
            text: The answer.

        Returns:
            The instance of the model or the JSON value; None for other formats.

        Raises:
            ValueError: The text is not JSON, or the validators of the model refuse it.
        """
        if not self.is_json:
            return None
        return json.loads(text) if self.model is None else self.model.model_validate_json(text)


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """JSON of a schema, as the right side of a rule in llguidance's variant of Lark."""
    schema = schema if isinstance(schema, Mapping) else {"anyOf": [{}] if schema else []}
    return f"%json {json.dumps({'x-guidance': _JSON_OPTIONS, **schema}, ensure_ascii=False)}"


def as_terminal(pattern: str) -> str:
    """A regular expression as a terminal of Lark: between slashes, on one line."""
    escaped = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)
    return "/" + escaped.replace("\n", r"\n") + "/"


#: Constrains nothing, and replaces the format of a router for one request.
TEXT = ResponseFormat("text")


def read_format(name: str, value: Any) -> ResponseFormat:
    """Check a format in one of the forms for Python.

    Args:
        name: Name of the argument for errors.
        value: A pydantic model; a dict in the form of OpenAI's `response_format` or of vLLM's `structured_outputs`; or
            a format that was checked before.

    Returns:
        The format.

    Raises:
        SettingsError: The form is unknown, or the schema, choice or regular expression is invalid or not supported.
        MissingExtraError: llguidance is missing.
    """
    if isinstance(value, ResponseFormat):
        return value
    if isinstance(value, type) and callable(getattr(value, "model_json_schema", None)):
        return _of_model(name, value)
    if not isinstance(value, Mapping) or not value:
        raise refused(name, value, _FORMS)
    if "type" in value:
        return _of_openai(name, value)
    if len(value) != 1 or next(iter(value)) not in ("json", "choice", "regex"):
        raise refused(name, value, _FORMS)
    ((kind, content),) = value.items()
    if kind == "json":
        return json_schema(f"{name}.json", content)
    return choice(f"{name}.choice", content) if kind == "choice" else regex(f"{name}.regex", content)


def json_schema(
    name: str, schema: Any, title: str = "answer", strict: bool | None = None, closed: bool = False
) -> ResponseFormat:
    """The format of a JSON schema.

    Args:
        name: Name of the argument for errors.
        schema: The schema, or its JSON text.
        title: See `ResponseFormat.name`.
        strict: See `ResponseFormat`.
        closed: Whether objects have no other properties than those that are named, unless the schema says otherwise.

    Returns:
        The format.

    Raises:
        SettingsError: The schema is invalid, or uses a keyword that is not supported.
    """
    return _schema(name, schema, title, strict, closed=closed)


def choice(name: str, strings: Any) -> ResponseFormat:
    """The format of an answer that is one of some strings.

    Args:
        name: Name of the argument for errors.
        strings: The strings.

    Returns:
        The format.

    Raises:
        SettingsError: There is no string, or one is empty or begins or ends with white space.
    """
    accepts = "a list of at least one string without white space at its ends"
    if isinstance(strings, str | bytes | Mapping) or not isinstance(strings, Sequence) or not strings:
        raise refused(name, strings, accepts)
    if not all(isinstance(one, str) and one and one == one.strip() and _is_unicode(one) for one in strings):
        raise refused(name, strings, accepts)
    return _checked(name, ResponseFormat("choice", tuple(dict.fromkeys(strings))))


def regex(name: str, pattern: Any) -> ResponseFormat:
    """The format of an answer that matches a regular expression as a whole.

    Args:
        name: Name of the argument for errors.
        pattern: The expression, in the syntax of Rust's regex crate.

    Returns:
        The format.

    Raises:
        SettingsError: The expression is invalid or not supported.
    """
    if not isinstance(pattern, str) or not pattern or not _is_unicode(pattern):
        raise refused(name, pattern, "a regular expression that is not empty")
    return _checked(name, ResponseFormat("regex", pattern))


def _of_model(name: str, model: Any) -> ResponseFormat:
    try:
        schema = model.model_json_schema()
    except Exception as error:  # pydantic raises many types of errors
        raise SettingsError(f"{name}: {model.__name__} has no JSON schema: {error}") from error
    return _schema(name, schema, model.__name__, model=model)


def _of_openai(name: str, value: Mapping[str, Any]) -> ResponseFormat:
    """The format of OpenAI's `response_format`. Some servers take a schema with "json_object", too."""
    kind, rest = value["type"], {key: one for key, one in value.items() if key != "type" and one is not None}
    if kind == "text" and not rest:
        return TEXT
    if kind == "json_object" and set(rest) <= {"schema"}:
        return json_schema(f"{name}.schema", rest["schema"]) if rest else _checked(name, ResponseFormat("json_object"))
    if kind == "json_schema" and set(rest) == {"json_schema"} and isinstance(rest["json_schema"], Mapping):
        given = rest["json_schema"]
        if unknown := set(given) - {"name", "description", "schema", "strict"}:
            raise SettingsError(f"{name}.json_schema has unknown fields: {', '.join(sorted(map(str, unknown)))}")
        title, strict = given.get("name"), given.get("strict")
        if not isinstance(title, str | None):
            raise refused(f"{name}.json_schema.name", title, "a string")
        if not isinstance(strict, bool | None):
            raise refused(f"{name}.json_schema.strict", strict, "true or false")
        return json_schema(f"{name}.json_schema.schema", given.get("schema"), title or "answer", strict)
    raise refused(name, value, _FORMS)


def _schema(
    name: str, schema: Any, title: str, strict: bool | None = None, model: Any = None, closed: bool = False
) -> ResponseFormat:
    if isinstance(schema, str):
        _check_length(name, len(schema))
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, Mapping):
        raise refused(name, schema, "a JSON schema: an object")
    try:
        _check_length(name, len(json.dumps(schema, ensure_ascii=False)))
        root = _Root(schema)
        _check_depth(name, root)
        # pydantic ignores properties that the model does not have, so they need not be generated
        prepared = _prepared(name, schema, root, closed=closed or model is not None)
        content = json.dumps(prepared, ensure_ascii=False, allow_nan=False)
        _check_numbers(name, prepared)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{name} is not JSON: {error}") from error
    if not _is_unicode(content):
        raise SettingsError(f"{name} contains half of a surrogate pair")
    return _checked(name, ResponseFormat("json_schema", content, title, strict, model))


def _prepared(name: str, schema: Any, root: _Root, closed: bool) -> Any:
    """A schema in which `oneOf` is `anyOf` if its alternatives exclude each other. SettingsError for unknown keywords.

    Args:
        name: Name of the argument for errors.
        schema: A schema within `root`.
        root: The whole schema.
        closed: Whether objects have no other properties than those that are named.
    """
    if not isinstance(schema, Mapping):
        return schema
    for key in schema:
        _check_keyword(name, key)
    new, combines = dict(schema), any(key in schema for key in _COMBINED)
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            new[key] = {label: _prepared(name, one, root, closed) for label, one in value.items()}
        elif key in (*_LISTED, *_SINGLE) and isinstance(value, list | tuple):
            # what is combined with properties, or with other alternatives that all have to fit, stays open
            apart = closed and not (key == "allOf" or (key in ("anyOf", "oneOf") and "properties" in schema))
            new[key] = [_prepared(name, one, root, apart) for one in value]
        elif key in _SINGLE:
            new[key] = _prepared(name, value, root, closed)
    named = new.get("properties")
    missing = isinstance(named, Mapping) and not set(new.get("required") or ()) <= set(named)
    if closed and named is not None and not (combines or missing):
        new.setdefault("additionalProperties", False)
    if "anyOf" not in new and isinstance(new.get("oneOf"), list) and root.exclude_each_other(new["oneOf"]):
        new["anyOf"] = new.pop("oneOf")
    return new


def _check_keyword(name: str, key: Any) -> None:
    if key in _IGNORED:
        raise SettingsError(f"{name}: the JSON schema uses {key}, which is not supported")
    if not isinstance(key, str):
        raise SettingsError(f"{name}: the JSON schema has a keyword that is not a string: {shown(key)}")
    if key not in _KEYWORDS and key not in _NOTES and (like := difflib.get_close_matches(key, _KEYWORDS, 1, 0.85)):
        raise SettingsError(f"{name}: the JSON schema uses the unknown keyword {key} (did you mean {like[0]}?)")


def _check_depth(name: str, root: _Root) -> None:
    """Raise SettingsError if a schema is nested too deeply; references that form a cycle are followed once.

    All values are searched, also those of `default`: a reference may name any of them.
    """
    deepest: dict[int, int] = {}  # at which each object was visited, by its id

    def visit(value: Any, depth: int, within: frozenset[int]) -> None:
        if isinstance(value, list | tuple):
            for one in value:
                visit(one, depth, within)
        if not isinstance(value, Mapping) or id(value) in within or deepest.get(id(value), -1) >= depth:
            return
        if depth > MAX_DEPTH:
            raise SettingsError(f"{name} is nested too deeply: at most {MAX_DEPTH} levels, counting those behind $ref")
        deepest[id(value)] = depth
        for key, one in value.items():
            if key == "$ref":
                one = root.resolved({"$ref": one}, most=1)
            visit(one, depth + 1, within | {id(value)})

    visit(root.schema, 0, frozenset())


def _check_numbers(name: str, schema: Any) -> None:
    """SettingsError for numbers that llguidance cannot follow. Limits that exclude no smaller number are no problem."""
    common = Fraction(1)
    for key, value in _keywords(schema):
        required = [*_numbers(value)] if key in ("const", "enum") else []
        if _is_number(value):
            if key == "multipleOf":
                if value <= 0:
                    raise SettingsError(f"{name}: multipleOf must be above 0, got {shown(value)}")
                if not MIN_MULTIPLE <= value <= MAX_NUMBER:
                    raise SettingsError(
                        f"{name}: multipleOf {shown(value)} is not supported: it must be from {MIN_MULTIPLE} to 2**53"
                    )
                multiple = Fraction(str(value))
                common = Fraction(
                    math.lcm(common.numerator, multiple.numerator), math.gcd(common.denominator, multiple.denominator)
                )
                if max(map(_significant, (multiple, common))) > MAX_MULTIPLE:
                    raise SettingsError(
                        f"{name}: multipleOf {shown(value)} is not supported: its digits, and those of the common "
                        f"multiple of all multipleOf, must be at most {MAX_MULTIPLE}, ignoring trailing zeros"
                    )
            elif key in ("minimum", "exclusiveMinimum"):
                required = [max(value, 0)]
            elif key in ("maximum", "exclusiveMaximum"):
                required = [min(value, 0)]
        if large := [one for one in required if abs(one) > MAX_NUMBER]:
            raise SettingsError(f"{name}: {key} needs numbers up to 2**53 in size, got {shown(large[0])}")


def _significant(number: Fraction) -> int:
    """The digits of a decimal number as a whole number, without trailing zeros."""
    while number.denominator > 1:
        number *= 10
    digits = number.numerator
    while digits % 10 == 0:
        digits //= 10
    return digits


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """All keywords in a schema with their values. A member with the name of a keyword counts as one."""
    if isinstance(schema, Mapping):
        yield from schema.items()
    for value in schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list | tuple) else ():
        yield from _keywords(value)


def _numbers(value: Any) -> Iterator[int | float]:
    """The numbers in `value`."""
    if _is_number(value):
        yield value
    for one in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _numbers(one)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_disjoint(sets: Iterable[frozenset[str]]) -> bool:
    seen: set[str] = set()
    for one in sets:
        if not seen.isdisjoint(one):
            return False
        seen |= one
    return True


class _Root:
    """A whole schema. References, and the values of alternatives, are looked up once: many may name the same one.

    Args:
        schema: The schema.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self._named: dict[str, Mapping[str, Any]] = {}
        # by the id of a schema, and of a list of values, which is kept so that no other object gets its id
        self._tags: dict[int, dict[str, frozenset[str]]] = {}
        self._values: dict[int, tuple[Sequence[Any], frozenset[str]]] = {}

    def resolved(self, schema: Any, most: int = 10) -> Mapping[str, Any]:
        """`schema`, or what its `$ref` names, over `most` references; empty if that is no object."""
        for _ in range(most):
            if not isinstance(schema, Mapping) or not isinstance(reference := schema.get("$ref"), str):
                break
            if reference not in self._named:
                self._named[reference] = self._find(reference)
            schema = self._named[reference]
        return schema if isinstance(schema, Mapping) else _EMPTY

    def _find(self, reference: str) -> Mapping[str, Any]:
        found: Any = self.schema
        for part in reference.removeprefix("#").split("/")[1:]:
            if not isinstance(found, Mapping):
                break
            found = found.get(part.replace("~1", "/").replace("~0", "~"))
        return found if isinstance(found, Mapping) else _EMPTY

    def exclude_each_other(self, alternatives: Sequence[Any]) -> bool:
        """Whether a required property has other values in each alternative, so that no object fits two of them."""
        tags = [self._tags_of(self.resolved(one)) for one in alternatives]
        shared = set(tags[0]).intersection(*tags[1:]) if tags else ()
        return any(_are_disjoint(one[key] for one in tags) for key in shared)

    def _tags_of(self, schema: Mapping[str, Any]) -> dict[str, frozenset[str]]:
        """The possible values, as JSON, of each required property that has a fixed set of them."""
        if id(schema) not in self._tags:
            self._tags[id(schema)] = dict(self._read_tags(schema))
        return self._tags[id(schema)]

    def _read_tags(self, schema: Mapping[str, Any]) -> Iterator[tuple[str, frozenset[str]]]:
        properties, required = schema.get("properties"), schema.get("required")
        if schema.get("type") != "object" or not isinstance(properties, Mapping):
            return
        named = {one for one in required if isinstance(one, str)} if isinstance(required, list | tuple) else set()
        for key in named & set(properties):
            one = self.resolved(properties[key])
            values = [one["const"]] if "const" in one else one.get("enum")
            if isinstance(values, list | tuple):
                yield key, self._encoded(values)

    def _encoded(self, values: Sequence[Any]) -> frozenset[str]:
        if id(values) not in self._values:
            self._values[id(values)] = values, frozenset(json.dumps(one, sort_keys=True) for one in values)
        return self._values[id(values)][1]


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _checked(name: str, found: ResponseFormat) -> ResponseFormat:
    """`found` if llguidance can follow it. SettingsError if not, MissingExtraError if llguidance is missing."""
    check_installed()
    length = len(found.content) if isinstance(found.content, str) else sum(map(len, found.content))
    _check_length(name, length)
    if problem := _problem(found):
        raise SettingsError(f"{name}: {problem}")
    return found


def _check_length(name: str, length: int) -> None:
    if length > MAX_CHARACTERS:
        raise SettingsError(f"{name} has {length} characters; at most {MAX_CHARACTERS} are accepted")


def check_installed() -> None:
    """Raise a MissingExtraError if llguidance is missing."""
    try:
        import llguidance  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error, "structured") from error


def _problem(found: ResponseFormat) -> str:
    """Why an answer cannot have this format; empty if it can."""
    try:
        error = grammar_error(found.grammar)
    except ValueError as invalid:
        error = str(invalid)
    return _explained(found, error) if error else ""


def _explained(found: ResponseFormat, message: str) -> str:
    """A message of llguidance in one line."""
    if message == TOO_COMPLEX:
        return f"{'the JSON schema' if found.is_json else 'the format'} is {message}"
    if message.startswith("NoExtension"):
        message = "no text matches it"
    if found.kind == "regex" or "regex parse error" in message:
        reason = message.rpartition("error: ")[2] if "error: " in message else message.partition("(in regex): ")[2]
        reason = (reason or message).partition("\n")[0]
        if found.kind == "regex":
            return f"the regular expression {shown(found.content)} is not supported: {reason}"
        return f"the JSON schema has a pattern that is not supported: {reason}"
    if message.startswith("Unimplemented keys: "):
        keys = ", ".join(json.loads(message.partition(": ")[2]))
        return f"the JSON schema uses {keys}, which is not supported"
    if message.startswith("oneOf"):
        return (
            "the JSON schema uses oneOf with alternatives that do not exclude each other, which is not supported; use "
            "anyOf"
        )
    what = "the JSON schema" if found.is_json else "the format"
    return f"{what} is invalid or not supported: {' '.join(message.split())[:300]}"
