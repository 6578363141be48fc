"""The documentation: links resolve, code and commands use what exists, and the tutorial runs on the pocket pair."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from training.bench.servers import free_port

from vlroute.cli.app import app, run
from vlroute.engine.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for path in (*ROOT.glob("README*.md"), *(ROOT / "examples").rglob("README.md"), *(ROOT / "docs").rglob("*.md"))
    if path.parent != ROOT / "docs/benchmarks"  # written by scripts
)
PUBLIC = {"vlroute", "vlroute.learning", "vlroute.serving"}
FENCE = re.compile(r"(?ms)^( *)```(\w*)([^\n]*)\n(.*?)^\1```$")
HEADING = re.compile(r"(?m)^#+ +(.+?)(?: +\{#([\w-]+)\})?$")
LINK = re.compile(r"\[[^\]]*\]\(((?!https?:|mailto:)[^)\s]+)\)")
name = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str, str]]:
    """Language, title and code of the fenced blocks."""
    for indent, language, rest, code in FENCE.findall(page.read_text("utf-8")):
        if language in languages:
            title = re.search(r'title="([^"]+)"', rest)
            yield language, title[1] if title else "", re.sub(f"(?m)^{indent}", "", code)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def slug(heading: str) -> str:
    """The anchor of a heading, as on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    found = set()
    for text, given in HEADING.findall(prose(page)):
        found.add(given or slug(re.sub(r"\]\([^)]*\)", "", text)))
    return found


@name
def test_links_resolve(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), link


def test_pages_named_elsewhere_exist() -> None:
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "training").rglob("*.py"), *(ROOT / "models").rglob("*.md")]
    for source in [*sources, *ROOT.glob("*.md")]:
        if source.name != "CHANGELOG.md":
            for found in re.findall(r"docs/[\w/.-]+\.md", source.read_text("utf-8")):
                assert (ROOT / found).exists(), f"{source.relative_to(ROOT)}: {found}"


@name
def test_python_imports_public_names_only(page: Path) -> None:
    for _, _, code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Import):
                assert not [one.name for one in node.names if one.name.startswith("vlroute") and one.name not in PUBLIC]
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vlroute"):
                assert node.module in PUBLIC
                assert {one.name for one in node.names} <= {*importlib.import_module(node.module).__all__}


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each `vlroute …` in the shell blocks and in inline code."""
    lines = [line for _, _, code in blocks(page, "sh", "bash", "") for line in code.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(vlroute [^`]+)`", prose(page))
    for line in lines:
        if found := re.search(r"(?:^|[ |])(vlroute [a-z]+.*)", line.split(" #")[0]):
            yield shlex.split(re.split(r"[|<>;&]", found[1])[0].replace("'s", "s"))[1:]


@name
def test_commands_and_options_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for command, *arguments in commands(page):
        assert command in group.commands, command
        known = {option for one in group.commands[command].params for option in (*one.opts, *one.secondary_opts)}
        used = {argument.split("=")[0] for argument in arguments if re.match(r"--?[a-z]", argument)}
        assert used <= known | {"--help"}, f"vlroute {command}"


def test_one_setting_holds_the_address_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # as build front ends do
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    unset: dict[str, Any] = {}
    module.RepositoryHook(str(ROOT), {"repository": ""}).update(unset)
    assert "](docs/tutorial.md)" in unset["readme"]["text"]
    assert "urls" not in unset
    known: dict[str, Any] = {}
    module.RepositoryHook(str(ROOT), {"repository": "https://example.org/team/vlroute/"}).update(known)
    assert "](https://example.org/team/vlroute/blob/main/docs/tutorial.md)" in known["readme"]["text"]
    assert known["urls"]["Repository"] == "https://example.org/team/vlroute"


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_the_reference_has_every_public_name(package: str) -> None:
    text = "".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").rglob("*.md"))
    documented = set(re.findall(rf"(?m)^::: {re.escape(package)}\.(\w+)$", text))
    assert documented == {one for one in importlib.import_module(package).__all__ if not one.startswith("__")}


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process where that is possible, because loading torch takes longer than most commands."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    servers: list[subprocess.Popen[bytes]] = []
    ran = set()
    try:
        for language, title, code in blocks(ROOT / "docs/tutorial.md", "python", "sh"):
            code = code.replace("8000", str(port))
            if title:
                few = code.replace('"questions.jsonl", 120', '"questions.jsonl", 60').replace(
                    "60, seed=2", "20, seed=2"
                )
                (tmp_path / title).write_text(few, "utf-8")
            elif language == "python":
                exec(compile(code, "tutorial.md", "exec"), {})
            else:
                ran |= set(_shell(code, port, servers))
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
    assert ran >= {"ask", "collect", "train", "eval", "curves", "serve", "curl"}
    for file in ("records.jsonl", "my-router/router.json", "eval.md", "curves/curves.html", "answers.db"):
        assert (tmp_path / file).exists(), file


def _shell(code: str, port: int, servers: list[subprocess.Popen[bytes]]) -> Iterator[str]:
    """Run a block of the tutorial, and yield what was run."""
    if any(part in code for part in ("pip install", "Qwen/", "…")):  # needs a network, 9 GB, or an id
        return
    if code.startswith("curl"):
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert '"vlroute"' in done.stdout, done.stdout
        yield "curl"
        return
    for line in code.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "python":
            subprocess.run([sys.executable, *arguments], check=True, timeout=60)
        elif arguments[0] == "serve":
            servers.append(subprocess.Popen([sys.executable, "-m", "vlroute", *arguments], env={**os.environ}))
            _wait(f"http://127.0.0.1:{port}/ready")
        else:
            assert program == "vlroute"
            if arguments[0] == "train":
                arguments += ["--folds", "2", "--seeds", "1"]  # fewer fits, which take seconds
            with pytest.raises(SystemExit) as ended:
                run(arguments)
            assert not ended.value.code
        yield arguments[0]


def _wait(address: str) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{address} did not become ready")


def test_the_configuration_page_lists_every_setting() -> None:
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    uri = "reference/configuration.md"
    page: Any = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    text = hooks.on_page_markdown((ROOT / "docs" / uri).read_text("utf-8"), page, None, None)
    for name, setting in SETTINGS.items():
        assert f"| `{name}` | {setting.accepts} | {setting.meaning} |" in text
