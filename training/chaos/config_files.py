"""Damaged files and environment variables with settings: those of `vlroute serve`, and those of a checkpoint."""

from __future__ import annotations

import functools
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import typer
from transformers.utils.logging import disable_progress_bar

from training.chaos.mutants import Kind
from training.page import POCKET_HYBRID
from vlroute.cli.app import app
from vlroute.cli.config import PREFIX, read_settings
from vlroute.cli.options import policy_of
from vlroute.engine.local.checkpoint import load_models
from vlroute.serving.keys import APIKeys
from vlroute.serving.settings import ServerSettings

KEY = "a-key-that-is-long-enough"
KEYS: dict[str, Any] = {
    "ann": {"key": KEY, "requests_per_minute": 60, "concurrent_requests": 8, "tokens_per_day": 1000, "weight": 2.5},
    "bob": {"key": "sha256:" + "0123456789abcdef" * 4, "weight": 1},
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "host": "127.0.0.1", "port": 8000, "api_keys": [KEY], "max_num_seqs": 8, "max_waiting": 4, "deadline": 30.0,
    "allowed_hosts": ["files.example.com:8000"], "fetch_networks": ["10.0.0.0/8"], "trusted_hosts": ["*.example.com"],
    "cors_origins": ["https://example.com"], "root_path": "/vlroute", "forwarded_allow_ips": ["127.0.0.1"],
    "retention_days": 3.5, "log_format": "json", "policy": "knee", "stages": "prompt, answer", "model": "pocket",
    "store": "answers.db", "label_share": 0.5, "compile": "off", "page": False, "max_media_pixels": 2**29,
}  # fmt: skip
#: Files of a checkpoint that vlroute checks before it loads the weights.
CHECKPOINT = (
    "config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def _toml(value: Any) -> str:
    """A value as inline TOML. What TOML cannot express becomes text that is not TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def _document(value: Any) -> str:
    if not isinstance(value, dict):
        return _toml(value)
    return "".join(f"{json.dumps(key)} = {_toml(one)}\n" for key, one in value.items())


def _as_toml(file: Path) -> Path:
    """Write a damaged JSON file as TOML. Returns the new file; or `file` itself if it cannot be read as JSON."""
    if file.suffix != ".json":
        return file
    try:
        text = _document(json.loads(file.read_bytes()))
    except (ValueError, RecursionError):
        return file
    written = file.with_suffix(".toml")
    written.write_text(text, "utf-8", "surrogatepass")
    return written


def _both(values: dict[str, Any], folder: Path) -> list[Path]:
    """The same values as JSON, whose structure is damaged, and as TOML, whose bytes are."""
    (folder / "a.json").write_text(json.dumps(values))
    (folder / "b.toml").write_text(_document(values))
    return [folder / "a.json", folder / "b.toml"]


def _use_key_file(file: Path) -> object:
    return APIKeys((), _as_toml(file)).find(KEY)


@functools.cache
def _context() -> typer.Context:
    command: Any = typer.main.get_command(app)
    context: typer.Context = command.commands["serve"].make_context("serve", [])
    return context


def _use_settings(file: Path | None) -> object:
    settings = read_settings("serve", _context(), file)
    policy_of(settings.values["policy"], settings.values["stages"])
    settings.toml()
    return settings.of(ServerSettings)


def _use_config(file: Path) -> object:
    with mock.patch.dict(os.environ):
        _forget_variables()
        return _use_settings(_as_toml(file))


def _variables(folder: Path) -> list[Path]:
    texts = {f"{PREFIX}{name.upper()}": _text(value) for name, value in SETTINGS.items()}
    (folder / "environment.json").write_text(json.dumps(texts))
    return [folder / "environment.json"]


def _use_variables(file: Path) -> object:
    """Read settings from environment variables, whose texts have neither NUL nor half of a surrogate pair."""
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        found = {f"{PREFIX}HOST": file.read_bytes().decode("utf-8", "surrogateescape")}
    items = found.items() if isinstance(found, dict) else [(f"{PREFIX}HOST", found)]
    with mock.patch.dict(os.environ):
        _forget_variables()
        for name, value in items:
            name = _sendable(name).replace("=", "") or f"{PREFIX}HOST"
            os.environ[name] = _sendable(_text(value))
        return _use_settings(None)


def _forget_variables() -> None:
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        del os.environ[name]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _sendable(text: str) -> str:
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _checkpoint(folder: Path) -> list[Path]:
    shutil.copytree(POCKET_HYBRID, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("router", "README.md"))
    return [folder / name for name in CHECKPOINT]


def _use_checkpoint(folder: Path) -> object:
    disable_progress_bar()
    return load_models(folder, folder, device="cpu")


KINDS = (
    Kind("key file", partial(_both, KEYS), _use_key_file, separate=True),
    Kind("settings file", partial(_both, SETTINGS), _use_config, separate=True),
    Kind("environment variables", _variables, _use_variables),
    Kind("checkpoint settings", _checkpoint, _use_checkpoint),
)
