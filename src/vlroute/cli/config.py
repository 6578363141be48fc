"""Settings of `serve`, `ui` and `cluster`: flags, environment variables, a TOML file and defaults, in this order."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

import typer

from vlroute.engine.local.loading import CompileChoice
from vlroute.errors import InputError, MissingExtraError, SettingsError
from vlroute.serving.settings import NOT_IN_CLUSTER, ClusterSettings, ServerSettings, split_values
from vlroute.types import Preset

try:
    from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, create_model
    from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict
except ModuleNotFoundError as error:
    raise MissingExtraError(error, "serve") from error

log = logging.getLogger("vlroute")
Command = Literal["serve", "ui", "cluster"]
PREFIX = "VLROUTE_"
#: Environment variables that are no settings: the file of settings, and switches of the tests.
_NO_SETTINGS = re.compile(r"VLROUTE_(CONFIG|TRUST_ENCODER|ALL_PARTS|TEST_\w+)")
_SECRET = "***"


def _split(value: Any) -> Any:
    """The values in a string of an environment variable, or in a list of a file."""
    if isinstance(value, str):
        return split_values(value)
    return tuple(value) if isinstance(value, list) else value


_Name = Annotated[str, Field(min_length=1)]
_Several = Annotated[tuple[_Name, ...], NoDecode, BeforeValidator(_split)]
#: Settings of a command besides those of the server: type and default.
_MODEL: dict[str, tuple[Any, Any]] = {
    "model": (_Name | None, None), "router": (_Name | None, None), "policy": (Preset | None, None),
    "stages": (_Name | None, None), "store": (_Name | None, None), "device": (_Name | None, None),
    "memory": (float | None, None), "compile": (CompileChoice | None, None), "shadow": (_Name | None, None),
    "label_share": (float, 0.0), "explore": (float, 0.0),
}  # fmt: skip


def settings_of(command: Command) -> dict[str, tuple[Any, Any]]:
    """Type and default of each setting of a command, by name."""
    if command == "cluster":
        cluster = dict(_of(ClusterSettings, without=("server", "generation")))
        server = dict(_of(ServerSettings, without=("limits", *NOT_IN_CLUSTER)))
        return {**server, **cluster, "address": (_Name | None, None)}
    server = dict(_of(ServerSettings, without=("limits",)))
    if command == "ui":
        return {**_MODEL, **server, "port": (int, 7860)}
    return {**_MODEL, **server, "page": (bool, True)}


def _of(settings: type, without: Iterable[str]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    types = get_type_hints(settings)
    for one in fields(settings):
        if one.name not in without:
            assert one.default is not MISSING
            kind = {tuple[str, ...]: _Several, str | None: _Name | None}.get(types[one.name], types[one.name])
            yield one.name, (kind, one.default)


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", allow_inf_nan=False, env_prefix=PREFIX, env_ignore_empty=True)


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings that are in force.

    Attributes:
        values: The value of each setting.
        sources: Where each value comes from: the flag, the environment variable, the file or "default".
    """

    values: Mapping[str, Any]
    sources: Mapping[str, str]

    def of(self, settings: type, **more: Any) -> Any:
        """An object of a dataclass with those of its fields that are settings, and with `more`."""
        names = [one.name for one in fields(settings) if one.name in self.values]
        return settings(**{**{name: self.values[name] for name in names}, **more})

    def redacted(self) -> dict[str, Any]:
        """The values without keys and passwords."""
        return {name: _redacted(name, value) for name, value in self.values.items()}

    def toml(self) -> str:
        """The redacted values as a TOML file, with the source of each."""
        lines = []
        for name, value in self.redacted().items():
            text = f"# {name} is not set" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}"
            lines.append(f"{text}  # {self.sources[name]}")
        return "\n".join(lines)


def _redacted(name: str, value: Any) -> Any:
    if name == "api_keys":
        return [_SECRET] * len(value)
    if name == "store" and value and "://" in value:
        scheme, _, rest = value.partition("://")
        login, at, place = rest.rpartition("@")
        user, colon, _ = login.partition(":")
        place = re.sub(r"(?i)(\b\w*(?:password|passwd|pwd|secret|token)\w*=)[^&]*", rf"\1{_SECRET}", place)
        return f"{scheme}://{user}{colon and colon + _SECRET}{at}{place}"
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value


def read_settings(command: Command, context: typer.Context, file: Path | None) -> EffectiveSettings:
    """The settings of a command.

    Args:
        command: The command.
        context: Its context; options that were given on the command line take precedence.
        file: A TOML file with settings, which all others take precedence over.

    Returns:
        The settings.

    Raises:
        SettingsError: The file contains an unknown name, or a value has a wrong type.
        InputError: The file does not exist or is not TOML.
    """
    known = settings_of(command)
    model = create_model("Settings", __base__=_Settings, **cast(Any, known))
    _warn_of_unknown_variables(known)
    values: dict[str, Any] = {}
    sources = dict.fromkeys(known, "default")
    if file is not None:
        values |= _read_file(file, known)
        sources |= dict.fromkeys(values, str(file))
    variables = EnvSettingsSource(model)()
    values |= variables
    sources |= {name: f"{PREFIX}{name.upper()}" for name in variables}
    for option in context.command.params:
        source = context.get_parameter_source(name := str(option.name))
        if name in known and source is not None and source.name == "COMMANDLINE":
            value = context.params[name]
            values[name] = str(value) if isinstance(value, Path) else value
            sources[name] = max(option.opts, key=len)
    try:
        checked = model(**values)
    except ValidationError as error:
        raise _wrong(error, sources) from None
    return EffectiveSettings({name: getattr(checked, name) for name in known}, sources)


def _read_file(file: Path, known: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The settings in a TOML file, whose types must be exact."""
    try:
        found = tomllib.loads(file.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"--config: file not found: {file}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"--config: {file} cannot be read: {error.strerror}") from None
    for name, value in found.items():
        if name not in known:
            raise SettingsError(f"{file}: unknown setting {name}{_meant(name, known)}; known: {', '.join(known)}")
        try:
            TypeAdapter(known[name][0]).validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            raise _wrong(error, {name: str(file)}, name) from None
    return found


def _wrong(error: ValidationError, sources: Mapping[str, str], name: str | None = None) -> SettingsError:
    """What is wrong with the first wrong value, and where it comes from."""
    first = error.errors()[0]
    name, message, value = name or str(first["loc"][0]), str(first["msg"]), str(first["input"])
    where = sources[name]
    if not where.startswith(("--", PREFIX)):
        where += f": {name}"
    if name not in ("api_keys", "store"):  # which may contain secrets
        message += f", not {value[:200]!r}"
    if value.startswith("tcp://"):
        message += (
            "; Kubernetes sets this variable for a service named vlroute: add enableServiceLinks: false to the pod"
        )
    return SettingsError(f"{where}: {message[:1].lower()}{message[1:]}")


def _warn_of_unknown_variables(known: Iterable[str]) -> None:
    names = {f"{PREFIX}{name.upper()}" for name in known}
    for variable in os.environ:
        upper = variable.upper()
        if upper.startswith(PREFIX) and upper not in names and _NO_SETTINGS.fullmatch(upper) is None:
            log.warning("the environment variable %s is not a setting%s", variable, _meant(upper, names))


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
