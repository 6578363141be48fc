"""Options of `ask`, `chat` and `route`, invalid inputs, missing stores, and output of other packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.commands import command
from tests.conftest import task
from vlroute.cli.app import app
from vlroute.store import Store, export_feedback

#: Output of other packages: warnings, deprecations, log lines of torch, progress bars.
NOISE = re.compile(r"Warning|deprecat|^[EWI]\d{4} |Loading weights|it/s", re.MULTILINE | re.IGNORECASE)
SOME = task("ocr", "easy")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a picture."""
    SOME.frames[0].save(tmp_path / "x.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiet(stderr: str) -> bool:
    """Apart from what vlroute itself says."""
    return not NOISE.search(re.sub(r"^(WARNING|INFO) ", "", stderr, flags=re.MULTILINE))


def run(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, [*arguments], input=typed)


def video(folder: Path) -> str:
    """A video file of eight frames."""
    av = pytest.importorskip("av")
    frames = task("video", "easy").frames
    with av.open(str(folder / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = frames[0].width // 2 * 2, frames[0].height // 2 * 2
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame.convert("RGB"))))
        container.mux(stream.encode())
    return "x.mp4"


def test_every_option_of_ask_reaches_the_answer(folder: Path) -> None:
    options = ("--json", "--mode", "thinking", "--device", "cpu")
    plain = json.loads(run("ask", SOME.prompt, "-i", "x.png", *options).stdout)
    told = json.loads(run("ask", SOME.prompt, "-i", "x.png", "--system", "Read it.", *options).stdout)
    assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    short = json.loads(run("ask", SOME.prompt, "-i", "x.png", "--max-new-tokens", "2", *options).stdout)
    assert (short["usage"]["completion_tokens"], short["finish_reason"]) == (2, "length")
    cut = json.loads(run("ask", "Add the numbers.", "-i", "x.png", "--thinking-budget", "0", *options).stdout)
    assert not cut["thinking"].strip()
    seeded = [run("ask", SOME.prompt, "-i", "x.png", "--seed", "7", *options).stdout for _ in range(2)]
    one, two = map(json.loads, seeded)
    assert (one["text"], one["thinking"]) == (two["text"], two["thinking"])
    seen = json.loads(run("ask", "How often did the lamp light?", "--video", video(folder), *options).stdout)
    assert seen["usage"]["vision_tokens"] > 0
    decided = json.loads(run("ask", SOME.prompt, "-i", "x.png", "--mode", "auto", "--json").stdout)
    assert not decided["decision"]["forced"]


def test_route_takes_videos_and_a_system_prompt(folder: Path) -> None:
    plain = json.loads(run("route", "How often did the lamp light?", "--json").stdout)
    seen = json.loads(
        run(
            "route", "How often did the lamp light?", "--video", video(folder), "--system", "Be brief.", "--json"
        ).stdout
    )
    assert "no caption" in seen["reason"]
    assert "no caption" not in plain["reason"]


def test_chat_takes_them_too(folder: Path) -> None:
    done = run(
        "chat", "--video", video(folder), "--mode", "auto", "--max-new-tokens", "2", "--thinking-budget", "1", "--seed",
        "3", "--device", "cpu", "--store", "answers.db", "--json",
        typed="How often did the lamp light?\n/video x.mp4\n/video\n/mode auto\nWhy?\n",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["usage"]["vision_tokens"] == second["usage"]["vision_tokens"] > 0
    assert first["usage"]["completion_tokens"] <= 2
    assert Store("answers.db", create=False).count() == (2, 0)


def test_what_ask_stores_can_be_judged_and_exported() -> None:
    ask = ("ask", SOME.prompt, "-i", "x.png", "--store", "answers.db", "--mode")
    asked = [command(*ask, mode) for mode in ("instruct", "thinking")]
    assert [done.returncode for done in asked] == [0, 0]
    ids = [id for done in asked for id in re.findall(r"\b[0-9a-f]{32}\b", done.stderr)]
    assert len(ids) == 2
    for id in ids:
        assert run("feedback", id, "--correct", "--store", "answers.db").exit_code == 0
    written = run("export", "records.jsonl", "--store", "answers.db")
    assert written.exit_code == 0
    assert "wrote 1 records" in written.stdout
    assert len(export_feedback(Store("answers.db")).records) == 1


def test_a_password_in_the_stores_address_is_not_printed() -> None:
    from vlroute.cli.options import Screen
    from vlroute.types import Answer, Decision, Finished, Timing, Usage

    decision = Decision("instruct", "prompt", 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, "")
    answer = Answer("x", "", decision, "stop", Usage(1, 0, 1, 0), Timing(0, 0, 0, 0, 0, 0), "0" * 32)
    screen = Screen("postgresql://me:secret@host/name")
    with screen.notes.capture() as shown:
        screen.show(Finished(answer))
    assert "0" * 32 in shown.get()
    assert "secret" not in shown.get()


@pytest.mark.parametrize("arguments", ["ask x", "route x", "chat", "eval x.jsonl --router x"])
def test_a_price_and_a_policy_contradict_each_other(arguments: str) -> None:
    done = run(*arguments.split(), "--price", "0.1", "--policy", "fast")
    assert "price" in str(done.exception)
    assert "policy" in str(done.exception)


@pytest.mark.parametrize("arguments", ["feedback {id} --correct", "export out.jsonl"])
@pytest.mark.parametrize("where", ["typo.db", "no/such/folder/typo.db", "x.png", "other.db", "empty.db", "."])
def test_a_store_that_is_not_there_is_not_made(folder: Path, arguments: str, where: str) -> None:
    import sqlite3

    with sqlite3.connect(folder / "other.db") as other:
        other.execute("CREATE TABLE notes (x)")
    other.close()
    (folder / "empty.db").touch()
    before = {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")}
    done = command(*arguments.format(id="0" * 32).split(), "--store", where)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert {path: path.is_dir() or path.read_bytes() for path in folder.rglob("*")} == before


WRONG = {
    "ask x --mode fast": "thinking",
    "ask x --max-new-tokens 0": "max-new-tokens",
    "ask x --thinking-budget -1": "thinking-budget",
    "ask x --seed y": "seed",
    "ask x --video none.mp4": "none.mp4",
    "ask x --video x.png": "x.png",
    "ask x --price nan": "price",
    "ask x --store mysql://x": "mysql",
    "ask x --model nowhere.json": "nowhere.json",
    "route x --video none.mp4": "none.mp4",
    "chat --video none.mp4": "none.mp4",
    "chat --price -1": "price",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_inputs_end_in_one_line(arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("vlroute.engine.local.engine.LocalEngine.load", load)
    done = command(*arguments.split(), typed="x\n")
    assert done.returncode in (1, 2)
    assert WRONG[arguments] in " ".join(done.stderr.split())


def test_other_packages_are_silent_about_wrong_inputs() -> None:
    code = (
        "import sys; from vlroute.cli.app import run\n"
        "for line in sys.argv[1:]:\n"
        "    try: run(line.split())\n"
        "    except SystemExit: pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *WRONG], input="x\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("rror") >= len(WRONG)
    assert quiet(done.stderr), done.stderr


def test_other_packages_are_silent_in_plain_use() -> None:
    """With one row and several, in chats and alone, and with Python's default warning filters."""
    code = (
        "from vlroute import Router\n"
        "for rows in (1, 4):\n"
        "    with Router.from_pretrained(max_num_seqs=rows) as router:\n"
        "        chat = router.chat()\n"
        "        for mode in ('thinking', 'instruct', 'instruct'):\n"
        "            chat.send('Read the text.', 'x.png', mode=mode)\n"
        "            router.ask('Read the text.', 'x.png', mode=mode)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "Loading weights" not in line]  # a progress bar
    assert [line for line in lines if line.strip() and "embedded pocket pair" not in line] == []


def test_other_packages_are_silent_in_a_chat() -> None:
    chat = [sys.executable, "-m", "vlroute", "chat", "-i", "x.png", "--store", "answers.db"]
    done = subprocess.run(chat, input="Read.\nAnd?\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert quiet(done.stderr), done.stderr


def test_a_seed_may_be_negative() -> None:
    for arguments in (("ask", "Hi.", "--mode", "thinking"), ("chat", "--mode", "thinking")):
        for seed in ("-5", str(-(2**63)), str(2**64 - 1)):
            done = run(*arguments, "--max-new-tokens", "2", "--seed", seed, typed="Hi.\n")
            assert done.exit_code == 0, done.output
        done = run(*arguments, "--seed", str(2**64), typed="Hi.\n")
        assert done.exit_code != 0
        assert "seed" in f"{done.exception} {done.output}"
