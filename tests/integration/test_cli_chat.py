"""`vlroute chat`, piped and at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.commands import command
from tests.conftest import task
from vlroute import Router
from vlroute.cli import chat as cli_chat
from vlroute.cli.app import app
from vlroute.cli.chat import Talk
from vlroute.cli.options import Screen
from vlroute.errors import InputError
from vlroute.types import AnswerDelta, ThinkingDelta

SOME, OTHER = task("ocr", "easy"), task("count", "easy")


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    SOME.frames[0].save(tmp_path / "one.png")
    OTHER.frames[0].save(tmp_path / "two files.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def piped(*lines: str, arguments: tuple[str, ...] = ()) -> Result:
    return CliRunner().invoke(app, ["chat", *arguments], input="".join(f"{line}\n" for line in lines))


def test_one_question_a_line() -> None:
    done = piped(
        "\ufeff/help", SOME.prompt, "/mode thinking", "", "/image 'two files.png'", OTHER.prompt, "/save kept",
        "/quit", "not asked",
        arguments=("--image", "one.png", "--mode", "instruct", "--json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["text"], first["decision"]["mode"]) == (SOME.answer, "instruct")
    assert second["decision"]["mode"] == "thinking"
    assert second["usage"]["vision_tokens"] > first["usage"]["vision_tokens"]  # both pictures are in the conversation
    on = piped("Read the text.", arguments=("--resume", "kept", "--save", "kept", "--json"))
    assert json.loads(on.stdout)["usage"]["vision_tokens"] == second["usage"]["vision_tokens"]
    assert len(json.loads(Path("kept/chat.json").read_text("utf-8"))["turns"]) == 3


def test_a_turn_that_fails_does_not_end_the_conversation() -> None:
    wrong = ("x <|im_end|>", "/image none.png", "/image broken.png", "/mode fast", "/nothing", '/image "x')
    done = piped(*wrong, "/help", SOME.prompt, arguments=("--image", "one.png"))
    assert done.exit_code == 1
    assert [line.startswith("error: ") for line in done.stderr.splitlines() if "error" in line] == [True] * len(wrong)
    assert "none.png" in done.stderr
    assert "broken.png" in done.stderr
    assert "/save FOLDER" in done.stderr
    assert done.stdout == f"{SOME.answer}\n"


def test_what_cannot_begin_ends_in_one_line() -> None:
    for arguments, says in (
        (["--resume", "kept", "--system", "y"], "--system"),
        (["--resume", "missing"], "missing"),
        (["--image", "broken.png"], "broken.png"),
    ):
        done = command("chat", *arguments, typed="x\n")
        assert done.returncode == 2
        assert says in done.stderr.splitlines()[-1]


def test_pictures_that_wait_can_be_taken_back(router: Router) -> None:
    talk = Talk(router.chat())
    talk.command("/image one.png 'two files.png'")
    assert len(talk.images) == 2
    talk.command("/image")
    assert not talk.images
    with pytest.raises(InputError):
        talk.command("/image one.png broken.png")
    assert not talk.images


def test_a_full_memory_costs_one_turn(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("out of memory\non the GPU")

    monkeypatch.setattr(Talk, "ask", full)
    monkeypatch.setattr(cli_chat, "read_lines", lambda typed: iter(["a question"]))
    assert not cli_chat.converse(Talk(router.chat()), typed=True)


@pytest.mark.parametrize("typed", [True, False])
def test_ctrl_c_ends_a_pipe_but_not_a_terminal(typed: bool, router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stopped(talk: Talk, prompt: str) -> None:
        asked.append(prompt)
        raise KeyboardInterrupt

    monkeypatch.setattr(Talk, "ask", stopped)
    monkeypatch.setattr(cli_chat, "read_lines", lambda typed: iter(["one", "two"]))
    try:
        assert cli_chat.converse(Talk(router.chat()), typed)
        assert asked == ["one", "two"]
    except KeyboardInterrupt:
        assert (typed, asked) == (False, ["one"])


def test_an_answer_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    for event in (ThinkingDelta("hm\x1b[2J"), AnswerDelta("\x1b]0;title\x07a\tb\n[red]c[/]\x9b1m")):
        screen.show(event)
    shown = capsys.readouterr()
    assert shown.out == "�]0;title�a\tb\n[red]c[/]�1m"
    assert shown.err == "hm�[2J\n"  # a new line before the answer


class Terminal:
    """What a process wrote to its terminal, each part of it read once."""

    def __init__(self, fd: int) -> None:
        self.fd, self.uncached_tokens = fd, ""

    def read_until(self, text: str, seconds: float = 60.0) -> str:
        until = time.monotonic() + seconds
        while text not in self.uncached_tokens:
            assert time.monotonic() < until, self.uncached_tokens
            if select.select([self.fd], [], [], 0.2)[0]:
                self.uncached_tokens += os.read(self.fd, 65536).decode(errors="replace")
        before, self.uncached_tokens = self.uncached_tokens.split(text, 1)
        return before

    def answer_prompt(self, text: str = "") -> None:
        """Type `text` once the prompt is shown, a moment later: what comes before it listens is lost."""
        self.read_until("> ")
        time.sleep(0.5)
        os.write(self.fd, text.encode())


def test_ctrl_c_stops_an_answer_and_ctrl_d_ends() -> None:
    # a thought that has no end, as no token ends it
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in a shell's background
        "import vlroute.router as r, sys; from vlroute.cli.app import run; make = r.Router.from_pretrained\n"
        "long = {'thinking': {'eos_token_id': -1, 'max_new_tokens': 30000}}\n"
        "r.Router.from_pretrained = lambda *a, **k: make(*a, **k, generation=long, seed=0)\n"
        "sys.argv = ['vlroute', 'chat', '--image', 'one.png', '--mode', 'thinking', '--save', 'kept']; run()"
    )
    here, there = pty.openpty()
    terminal = Terminal(here)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=there, stdout=there, stderr=there, start_new_session=True
    )
    try:
        terminal.answer_prompt(f"{SOME.prompt}\n")
        terminal.read_until("requested")
        time.sleep(1.0)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        terminal.read_until("stopped")
        assert time.monotonic() - began < 5
        terminal.answer_prompt()
        for _ in range(10):  # at the prompt: nothing but a new line
            os.killpg(process.pid, signal.SIGINT)
            try:  # input() misses a signal that comes just before it listens
                terminal.read_until("> ", 5)
                break
            except AssertionError:
                assert process.poll() is None
        else:
            pytest.fail("no prompt after Ctrl-C")
        terminal.uncached_tokens = "> "
        terminal.answer_prompt("/mode instruct\n")
        terminal.answer_prompt(f"{SOME.prompt}\n")
        shown = terminal.read_until("stop, ")
        assert SOME.answer in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
        terminal.answer_prompt("\x04")
        assert process.wait(20) == 0
    finally:
        process.kill()
        os.close(here)
        os.close(there)
    (turn,) = json.loads(Path("kept/chat.json").read_text("utf-8"))["turns"]  # what was stopped left no trace
    assert turn["answer"]["text"] == SOME.answer
    assert len(turn["parts"]) == 2  # the picture waited for the next question
