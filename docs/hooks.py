"""MkDocs hooks: the address of the repository, links to files outside docs/, and tables generated from the code.

A page asks for a table with a comment such as `<!-- generated: commands -->`; `GENERATED` lists the names.
"""

from __future__ import annotations

import html
import json
import os
import posixpath
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
CHINESE = ".zh.md"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


@cache
def repository() -> str:
    """Address of the repository; empty if none is set in pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    address: str = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    return address.rstrip("/")


def on_config(config: MkDocsConfig) -> None:
    """Link to the repository if its address is set."""
    if repository():
        config.repo_url = repository()
        config.repo_name = "/".join(repository().split("/")[-2:])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace generated tables and links to files outside docs/."""
    markdown = re.sub(r"<!-- generated: ([a-z-]+) -->", lambda found: _generate(found[1], page), markdown)
    return LINK.sub(lambda found: _link(*found.groups(), page.file.src_uri), markdown)


def _generate(name: str, page: Page) -> str:
    if name not in GENERATED:
        raise PluginError(f"{page.file.src_uri}: nothing generates {name!r}; known: {', '.join(GENERATED)}")
    return GENERATED[name]()


def _link(text: str, target: str, source: str) -> str:
    """A link of the page `source`, changed if MkDocs cannot follow it.

    A file outside docs/ becomes an address in the repository, or only its text if there is no address. A page without a
    Chinese version becomes the English page.
    """
    path, hash, anchor = target.partition("#")
    file = posixpath.normpath(posixpath.join("docs", posixpath.dirname(source), path))
    if not (ROOT / file).exists():
        raise PluginError(f"docs/{source} links to {file}, which does not exist")
    if not file.startswith("docs/"):
        return f"[{text}]({repository()}/blob/main/{file}{hash}{anchor})" if repository() else text
    if source.endswith(CHINESE) and not (ROOT / file.removesuffix(".md")).with_suffix(CHINESE).exists():
        page = posixpath.relpath(file.removesuffix(".md"), posixpath.join("docs/zh", posixpath.dirname(source)))
        return f'<a href="{page}.html{hash}{anchor}">{text}</a>'  # MkDocs knows no pages of the other language
    return f"[{text}]({target})"


def _commands() -> str:
    """Every command with its options, as Typer documents it."""
    command = [sys.executable, "-m", "typer", "vlroute.cli.app", "utils", "docs", "--name", "vlroute"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"}, check=False
    )
    if done.returncode:
        raise PluginError(f"{' '.join(command)} failed:\n{done.stderr}")
    text = html.unescape(done.stdout)
    text = text[text.index("## ") :]  # without the list of commands, which the page has
    text = re.sub(r"(?m)^((?:[A-Z_]+=.*? )?vlroute .*)$", r"```sh\n\1\n```", text)
    text = re.sub(r"(?m)^\*\*(Usage|Arguments|Options)\*\*:$", r"**\1**", text)
    return re.sub(r"(?m)^## ", "### ", text)


def _generation_settings() -> str:
    from vlroute.engine.settings import SETTINGS

    rows = [
        f"| `{name}` | {setting.accepts} | {setting.meaning} | {'yes' if setting.endpoints else 'no'} |"
        for name, setting in SETTINGS.items()
    ]
    return "\n".join(["| setting | values | meaning | endpoints |", "|---|---|---|---|", *rows])


def _server_settings() -> str:
    """Each setting of `vlroute serve` under its names in a file, the environment and the command line."""
    import inspect

    from typer.main import get_command

    from vlroute.cli.app import app
    from vlroute.cli.config import settings_of
    from vlroute.serving import ServerSettings

    text = inspect.getdoc(ServerSettings) or ""
    attributes = re.findall(r"(?m)^    (\w+): (.+(?:\n     .*)*)", text)
    meanings = {name: " ".join(lines.split()) for name, lines in attributes}
    command: Any = get_command(app)
    options = {option.name: option for option in command.commands["serve"].params}
    rows = []
    for name, (_, default) in settings_of("serve").items():
        option = options.get(name)
        flags = f"`{'`, `'.join((*option.opts, *option.secondary_opts))}`" if option else "–"
        value = json.dumps(default, default=str)
        rows.append(
            f"| `{name}` | `VLROUTE_{name.upper()}` | {flags} | {'–' if default is None else f'`{value}`'} | "
            f"{meanings.get(name) or (option and option.help)} |"
        )
    return "\n".join(["| in the file | environment | option | default | meaning |", "|---|---|---|---|---|", *rows])


def _families() -> str:
    from vlroute.engine.families import FAMILIES

    rows = []
    for name, one in FAMILIES.items():
        shape = f"one checkpoint, `{one.switch}`" if one.hybrid else "a checkpoint for each mode"
        rows.append(f"| `{name}` | {one.title} | `{one.example}` | {shape} |")
    return "\n".join(["| `model_type` | family | for example | modes |", "|---|---|---|---|", *rows])


def _endpoint_families() -> str:
    from vlroute.engine.families import ENDPOINT_FAMILIES

    defaults = {"instruct": "Instruct", "thinking": "Thinking", "adaptive": "the model decides", "size": "depends"}
    places = {"end": "end of the prompt", "system": "system turn", "user": "user turns", "": "–"}
    rows = []
    for name, one in ENDPOINT_FAMILIES.items():
        values = " / ".join(f"`{json.dumps(one.values[mode])}`" for mode in ("instruct", "thinking"))
        switch = f"`{one.switch}`: {values}" if one.switch else "–"
        note = "; ".join(text for text in (one.why_one_mode, one.note) if text)
        source = "unverified" if one.source == "unverified" else f"[source]({one.source})"
        default = "Thinking" if one.why_one_mode else defaults[one.default]
        rows.append(f"| `{name}` | {one.title} | {switch} | {default} | {places[one.place]} | {note} | {source} |")
    head = "| `family` | models | argument: Instruct / Thinking | without it | where it acts | note | |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


@cache
def _openapi() -> dict[str, Any]:
    from vlroute import Router
    from vlroute.serving import ServerSettings, create_app

    return create_app(Router.from_pretrained(), ServerSettings()).openapi()


def _operations() -> str:
    rows = [
        f"| {method.upper()} | `{path}` | {operation['description']} | {', '.join(operation['responses'])} |"
        for path, methods in _openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    return "\n".join(["| method | path | meaning | statuses |", "|---|---|---|---|", *rows])


def _fields(schema: str, kind: Callable[[dict[str, Any]], bool]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in _openapi()["components"]["schemas"][schema]["properties"].items():
        if kind(field):
            yield name, field


def _is_ignored(field: dict[str, Any]) -> bool:
    return not {"anyOf", "type", "enum", "$ref"} & field.keys()


def _request_fields(schema: str) -> str:
    rows = [
        f"| `{name}` | {_type(field)} | {field.get('description', '')} |"
        for name, field in _fields(schema, lambda field: "enum" not in field and not _is_ignored(field))
    ]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])


def _fixed_fields(schema: str) -> str:
    rows = [
        f"| `{name}` | {', '.join(f'`{json.dumps(value)}`' for value in field['enum'] if value is not None)} |"
        for name, field in _fields(schema, lambda field: "enum" in field)
    ]
    return "\n".join(["| field | accepted values, besides null |", "|---|---|", *rows])


def _ignored_fields(schema: str) -> str:
    return ", ".join(f"`{name}`" for name, _ in _fields(schema, _is_ignored))


def _type(field: dict[str, Any]) -> str:
    """The JSON type of a field with its bounds."""
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        members = _openapi()["components"]["schemas"][name]["properties"]
        obeyed = [f"`{member}`" for member, one in members.items() if "enum" not in one or one.get("type")]
        return f"object with {', '.join(obeyed)}"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "maxLength": "length at most"}
    said = [f"{words} {field[name]:g}" for name, words in bounds.items() if name in field and abs(field[name]) < 2**53]
    return ", ".join([field["type"], *said])


GENERATED: dict[str, Callable[[], str]] = {
    "commands": _commands,
    "fixed-fields": partial(_fixed_fields, "ChatRequest"),
    "generation-settings": _generation_settings,
    "families": _families,
    "endpoint-families": _endpoint_families,
    "ignored-fields": partial(_ignored_fields, "ChatRequest"),
    "messages-fields": partial(_request_fields, "MessagesRequest"),
    "messages-fixed-fields": partial(_fixed_fields, "MessagesRequest"),
    "messages-ignored-fields": partial(_ignored_fields, "MessagesRequest"),
    "operations": _operations,
    "request-fields": partial(_request_fields, "ChatRequest"),
    "response-fields": partial(_request_fields, "ResponseRequest"),
    "response-fixed-fields": partial(_fixed_fields, "ResponseRequest"),
    "response-ignored-fields": partial(_ignored_fields, "ResponseRequest"),
    "server-settings": _server_settings,
}
