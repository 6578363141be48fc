"""Settings of the commands that serve: flags, environment, file and defaults, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.commands import command
from vlroute.cli.app import app
from vlroute.cli.config import settings_of

KEY = "a-key-for-tests-long-enough"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vlroute.toml"


def shown(*arguments: str, **env: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and sources that `vlroute config` prints."""
    done = command("config", *arguments, **env)
    assert done.returncode == 0, done.stderr
    lines = [line.rpartition("  # ") for line in done.stdout.splitlines()]
    sources = {line.removeprefix("# ").split()[0]: source for line, _, source in lines}
    return tomllib.loads(done.stdout), sources


def test_flags_then_environment_then_file_then_defaults(file: Path) -> None:
    lines = "port = 1\ndeadline = 2\nmax_tokens = 3\nmax_prompt = 4\ntrusted_hosts = ['a.example']\n"
    file.write_text(lines, encoding="utf-8-sig")  # as editors on Windows save it
    values, sources = shown(
        "--config", str(file), "--port", "10", "--trusted-host", "b.example", "--trusted-host", "*.c.example",
        VLROUTE_PORT="20", VLROUTE_DEADLINE="21", VLROUTE_CORS_ORIGINS="https://a.example, https://b.example",
        VLROUTE_MAX_PROMPT="",
    )  # fmt: skip
    assert (values["port"], sources["port"]) == (10, "--port")
    assert (values["deadline"], sources["deadline"]) == (21, "VLROUTE_DEADLINE")
    assert (values["max_tokens"], sources["max_tokens"]) == (3, str(file))
    assert (values["max_prompt"], sources["max_prompt"]) == (4, str(file))  # an empty variable is not set
    assert (values["max_waiting"], sources["max_waiting"]) == (64, "default")
    assert (values["trusted_hosts"], sources["trusted_hosts"]) == (["b.example", "*.c.example"], "--trusted-host")
    assert values["cors_origins"] == ["https://a.example", "https://b.example"]
    assert "model" not in values
    assert sources["model"] == "default"


def test_a_flag_can_undo_the_file(file: Path) -> None:
    file.write_text("page = false\n")
    assert shown(VLROUTE_CONFIG=str(file))[0]["page"] is False
    assert shown("--config", str(file), "--page")[0]["page"] is True


@pytest.mark.parametrize(("text", "says"), [
    ("max_num_seq = 1", "unknown setting max_num_seq (did you mean max_num_seqs?)"),
    ("max-tokens = 1", "did you mean max_tokens?"),
    ("[serve]\nport = 1", "unknown setting serve"),
    ("port = '8000'", "port: input should be a valid integer, not '8000'"),
    ("port = true", "port: "),
    ("deadline = nan", "deadline: "),
    ("deadline = 0", "deadline must be above 0"),
    ("store = ''", "store: "),
    ("policy = 'fastest'", "policy: "),
    ("page = 1979-05-27", "page: "),
    ("port = 65536", "port must be 0 to 65535"),
    ("trusted_hosts = ['a b']", "trusted_hosts: "),
    ("port = ", "not valid TOML"),
])  # fmt: skip
def test_a_wrong_file_is_refused(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    done = command("config", "--config", str(file))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_and_a_folder_are_refused(file: Path) -> None:
    for program in ("config", "serve", "ui", "cluster"):
        done = command(program, "--config", str(file))
        assert (done.returncode, str(file) in done.stderr) == (2, True)
    done = command("config", "--config", str(file.parent))
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)


def test_a_wrong_variable_is_refused_by_its_name() -> None:
    done = command("serve", VLROUTE_MAX_TOKENS="many")
    assert done.returncode == 2
    assert "VLROUTE_MAX_TOKENS: " in done.stderr
    # set by Kubernetes for a service named vlroute
    assert "enableServiceLinks" in command("config", VLROUTE_PORT="tcp://10.0.0.1:8000").stderr


def test_an_unknown_variable_is_a_warning() -> None:
    done = command("config", VLROUTE_MAX_TOKEN="1", VLROUTE_TEST_DEVICE="cpu", VLROUTE_ALL_PARTS="1")
    assert done.returncode == 0
    said = " ".join(done.stderr.split())
    assert "VLROUTE_MAX_TOKEN is not a setting (did you mean VLROUTE_MAX_TOKENS?)" in said
    assert "VLROUTE_TEST_DEVICE" not in said
    assert "VLROUTE_ALL_PARTS" not in said


@pytest.mark.parametrize(("store", "printed"), [
    ("postgresql://me:hush@db/answers", "postgresql://me:***@db/answers"),
    ("postgresql://me:hu@hush/@db/answers?sslmode=require", "postgresql://me:***@db/answers?sslmode=require"),
    ("postgresql://db/answers?user=me&password=hush", "postgresql://db/answers?user=me&password=***"),
    ("answers.db", "answers.db"),
])  # fmt: skip
def test_keys_and_passwords_are_not_printed(store: str, printed: str) -> None:
    values, _ = shown("--store", store, VLROUTE_API_KEYS=f"{KEY},{KEY}-2")
    assert values["store"] == printed
    assert values["api_keys"] == ["***", "***"]
    assert command("config", VLROUTE_API_KEYS=f"{KEY} short").returncode == 2
    assert KEY not in command("config", VLROUTE_API_KEYS=f"{KEY} short").stderr


@pytest.mark.parametrize("name", ["serve", "ui", "cluster", "config"])
def test_the_help_shows_the_real_defaults(name: str) -> None:
    group: Any = typer.main.get_command(app)
    known = settings_of("serve" if name == "config" else name)  # type: ignore[arg-type]
    options = {one.name: one for one in group.commands[name].params if one.name not in ("config", "help")}
    assert options.keys() <= known.keys()
    for option in options.values():
        default = known[option.name][1]
        assert option.default in (default, None if isinstance(default, tuple) else default), option.name
