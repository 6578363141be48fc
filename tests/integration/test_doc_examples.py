"""Runs the examples of the documentation that ask the pocket pair, and compares the answers with those that they state.

A page states what an example prints in one of two ways:

* A comment after `print(…)`, or after a shell command, is what it prints. The outputs of a loop are joined by ", ".
* The next block of text or JSON in the same section has some lines of the output, or a part of the JSON.

"…" stands for any text, and decimal numbers, such as seconds, may differ. The Python blocks of a page run in one
namespace, in a folder with the pictures of the tutorial. A block is left out only if its code names something that is
not here (`ABSENT`).
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_docs import FENCE, PAGES, ROOT, blocks
from tests.serving import served
from vlroute.cli.app import run
from vlroute.files import shipped
from vlroute.pipeline import Pipeline
from vlroute.steps import Steps
from vlroute.types import Answer

pytestmark = pytest.mark.float32
ABSENT = ("Qwen/", "127.0.0.1:8001")  # checkpoints to be downloaded, and servers of other programs
#: What stands for a server of the pocket pair.
SERVERS = ("http://127.0.0.1:8000", "https://vlroute.example.org/vlroute")
SHELL_ASKS = re.compile(r"vlroute (ask|chat) |/chat/completions|_tools\.py")
#: A line of a shell block that needs no shell.
PROGRAM = re.compile(r"(vlroute|python \S+\.py) [^|<>;&]*$")
SHELL_COMMENT = re.compile(r"(?m) +# (.+)$")
DECIMAL = re.compile(r"[+-]?\d+\.\d+")
#: Commands as programs of this environment; `jq -r .name` is all that the examples need of jq.
SHELL = """set -eu -o pipefail
vlroute() { "$PYTHON" -m vlroute "$@"; }
python() { "$PYTHON" "$@"; }
jq() { "$PYTHON" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[2][1:]])' "$@"; }
"""


@dataclass(frozen=True)
class Example:
    """A code block, and the block of text or JSON after it."""

    language: str
    code: str
    shown: str
    is_json: bool

    @property
    def runs_here(self) -> bool:
        code = ast.unparse(ast.parse(self.code)) if self.language == "python" else SHELL_COMMENT.sub("", self.code)
        return not any(name in code for name in ABSENT)

    @property
    def asks_in_shell(self) -> bool:
        return self.language in ("sh", "bash", "") and SHELL_ASKS.search(self.code) is not None


def examples(page: Path) -> Iterator[Example]:
    """The Python blocks of a page, and the shell blocks that ask."""
    text = page.read_text("utf-8")
    found = [*FENCE.finditer(text)]
    for block, after in zip_longest(found, found[1:]):
        shown = after and after[2] in ("text", "json") and "\n#" not in text[block.end() : after.start()]
        example = Example(
            block[2], textwrap.dedent(block[4]), textwrap.dedent(after[4]) if shown else "",
            bool(shown) and after[2] == "json",
        )  # fmt: skip
        if (block[2] == "python" and "title=" not in block[3]) or example.asks_in_shell:
            yield example


def matches(stated: str, printed: str) -> bool:
    parts = [re.escape(part) for part in DECIMAL.sub("0.0", stated).split("…")]
    return re.fullmatch(".*".join(parts), DECIMAL.sub("0.0", printed), re.DOTALL) is not None


def contains(whole: Any, part: Any) -> bool:
    """Whether JSON has all that `part` has."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and contains(whole[key], part[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(contains, whole, part))
    return matches(part, whole) if isinstance(part, str) and isinstance(whole, str) else bool(whole == part)


@dataclass(frozen=True)
class Output:
    """What an example printed.

    Attributes:
        pairs: What the page states for a print or a command, and what was printed.
        out: Everything printed.
        err: What a shell block wrote to stderr.
    """

    pairs: list[tuple[str, str]]
    out: str
    err: str = ""


def run_python(code: str, names: dict[str, Any]) -> Output:
    tree = ast.parse(code)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    printed: dict[int, list[str]] = {}  # by the line on which the call of print ends

    def record(*values: object, at: int, sep: str = " ", end: str = "\n") -> None:
        printed[at].append(sep.join(map(str, values)))

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            assert node.end_lineno
            node.keywords.append(ast.keyword("at", ast.Constant(node.end_lineno)))
            printed[node.end_lineno] = []
    names["print"] = record
    exec(compile(ast.fix_missing_locations(tree), "example", "exec", dont_inherit=True), names)
    pairs = [(comments[line], ", ".join(texts)) for line, texts in printed.items() if line in comments]
    return Output(pairs, "\n".join(text for texts in printed.values() for text in texts))


def run_program(program: str, *arguments: str) -> None:
    if program == "vlroute":
        with pytest.raises(SystemExit) as ended:
            run(arguments)
        assert not ended.value.code
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*arguments])
            runpy.run_path(arguments[0], run_name="__main__")


def run_shell(code: str) -> Output:
    lines = code.splitlines()
    out, err = io.StringIO(), io.StringIO()
    if all(PROGRAM.match(line) for line in lines):  # here, because starting Python takes seconds
        for line in lines:
            with redirect_stdout(out), redirect_stderr(err):
                run_program(*shlex.split(line, comments=True))
    else:
        command, environment = ["bash", "-c", SHELL + code], {**os.environ, "PYTHON": sys.executable}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        out.write(done.stdout)
        err.write(done.stderr)
    comments, printed = SHELL_COMMENT.findall(code), out.getvalue().splitlines()
    assert len(comments) in (0, len(printed)), f"{len(comments)} outputs stated:\n{out.getvalue()}"
    return Output(list(zip(comments, printed, strict=False)), out.getvalue(), err.getvalue())


def check(example: Example, output: Output, answers: list[str]) -> None:
    """Compare the output of an example that asks with its page, which has to state each of the answers."""
    stated = "\n".join(one for one, _ in output.pairs)  # not what "…" stands for
    assert stated or example.shown, "the page states no answer"
    if example.is_json:
        assert contains(json.loads(output.out), json.loads(example.shown)), output.out
    elif example.shown:
        printed = f"{output.err}\n{output.out}".splitlines()
        for line in example.shown.splitlines():
            assert any(matches(line, one) for one in printed), f"not in the output: {line!r}"
    stated += "\n" + example.shown
    for answer in answers:
        assert answer, "an empty answer"
        assert answer in stated, f"the page does not state the answer {answer!r}"
        stated = stated.replace(answer, "", 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(store=tmp_path_factory.mktemp("store") / "answers.db") as server:
        yield server.url


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages assume it: pictures and questions of the tutorial, a router, and a clone's folders."""
    folder = tmp_path_factory.mktemp("drawn")
    (script,) = [code for _, title, code in blocks(ROOT / "docs/tutorial.md", "python") if title == "draw.py"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(script, "draw.py", "exec"), {})
    shutil.copytree(shipped("pocket/router"), folder / "my-router")
    for name in ("examples", "models"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The answers given so far in this process, by a router or by the server."""
    given: list[str] = []
    answer = vars(Pipeline)["_answer"]  # `answer` returns after it has passed on the last event, maybe too late

    def recorded(self: Pipeline, *args: Any, **options: Any) -> Steps[tuple[Answer, Any]]:
        result: tuple[Answer, Any] = yield from answer(self, *args, **options)
        if not result[0].tool_calls:  # an answer, not a step towards it
            given.append(result[0].text)
        return result

    monkeypatch.setattr(Pipeline, "_answer", recorded)
    return given


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(one.runs_here for one in examples(page))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_examples_give_the_answers_that_their_page_states(
    page: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    answers: list[str],
) -> None:  # fmt: skip
    folder = tmp_path / "work"
    shutil.copytree(drawn, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("KEY", "any key, because the server of these tests has none")
    names: dict[str, Any] = {"__name__": "example"}
    for example in filter(lambda one: one.runs_here, examples(page)):
        code = example.code
        for address in SERVERS:
            if address in code:
                code = code.replace(address, request.getfixturevalue("server"))
        if file := re.match(r"# (\w+\.py)\n", code):
            Path(file[1]).write_text(code, "utf-8")
        answers.clear()
        output = run_python(code, names) if example.language == "python" else run_shell(code)
        for stated, printed in output.pairs:
            assert matches(stated, printed), f"{page.name} states {stated!r}, but the example prints {printed!r}"
        if answers or example.asks_in_shell or ".generate(" in code:
            check(example, output, [] if "examples/" in code else answers)  # these programs print a summary only
    sys.modules.pop("captions", None)


def test_answers_that_are_not_stated_are_refused() -> None:
    example, output = Example("python", "", "", False), run_python("print(3)  # 3\nprint(2)", {})
    check(example, output, ["3"])
    for answers in (["3", "2"], ["3", "3"], [""]):
        with pytest.raises(AssertionError):
            check(example, output, answers)
    with pytest.raises(AssertionError):
        check(example, run_python("print(3)", {}), [])
