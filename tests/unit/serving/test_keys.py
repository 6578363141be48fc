"""Key files: what they contain, what is refused, and how changes take effect."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from tests.commands import command
from tests.serving import until
from vlroute.errors import InputError
from vlroute.serving import keys
from vlroute.serving.errors import APIError
from vlroute.serving.keys import APIKeys, KeyLimits, read_key_file, session_key_name, session_namespace
from vlroute.serving.settings import ServerSettings

ANN, BOB = "the key of ann, long enough", "the key of bob, long enough"
DIGEST = hashlib.sha256(BOB.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.touch(mode=0o600)
    return path


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.01)


def test_keys_in_clear_and_as_digests(file: Path) -> None:
    file.write_text(
        f"""
        [ann]
        key = "{ANN}"
        requests_per_minute = 60
        [bob]
        key = "sha256:{DIGEST.upper()}"
        concurrent_requests = 2
        tokens_per_day = 1_000
    """,
        encoding="utf-8-sig",
    )  # as editors on Windows save it
    accepted = APIKeys((), file)
    ann, bob = accepted.find(ANN), accepted.find(BOB)
    assert ann is not None
    assert bob is not None
    assert (ann.name, ann.limits) == ("ann", KeyLimits(requests_per_minute=60))
    assert (bob.name, bob.limits) == ("bob", KeyLimits(concurrent_requests=2, tokens_per_day=1000))
    assert bob.namespace == DIGEST
    assert accepted.logged_in(bob.login) == bob
    assert accepted.find(f"sha256:{DIGEST}") is None  # a digest is no key
    assert not accepted.find("")


def test_keys_of_the_settings_beside_those_of_a_file(file: Path) -> None:
    file.write_text(f'[bob]\nkey = "{BOB}"\n')
    accepted = APIKeys((ANN,), file)
    ann = accepted.of(f"Bearer {ANN}")
    assert ann is not None
    assert ann.limits == KeyLimits()
    assert ANN not in ann.name
    assert accepted.find(BOB)
    with pytest.raises(APIError, match="no valid API key"):
        accepted.of("Bearer no")
    assert APIKeys(()).of(None) is None


@pytest.mark.parametrize(("text", "says"), [
    ("[ann", "not valid TOML"), (f'ann = "{ANN}"', "must be a table"), ("[ann]", "key is missing"),
    ("[ann]\nkey = 1", "key is missing"), ('[ann]\nkey = "short"', "16 characters"),
    ('[ann]\nkey = "sha256:12"', "64 hexadecimal digits"), (f'["a b"]\nkey = "{ANN}"', "letters"),
    (f'["a\\nb"]\nkey = "{ANN}"', "letters"),
    (f'[ann]\nkey = "{ANN}"\nrequests_per_min = 1', "did you mean requests_per_minute?"),
    (f'[ann]\nkey = "{ANN}"\nrequests_per_minute = 0', "above 0"),
    (f'[ann]\nkey = "{ANN}"\ntokens_per_day = true', "above 0"),
    (f'[ann]\nkey = "{ANN}"\nconcurrent_requests = "2"', "above 0"),
    (f'[ann]\nkey = "{ANN}"\n[bob]\nkey = "{ANN}"', "another name"),
    (f'[ann]\nkey = " {ANN}"', "clients cannot send"), (f'[ann]\nkey = "{ANN}é"', "clients cannot send"),
    (f'[ann]\nkey = "{ANN}\\n"', "clients cannot send"),
])  # fmt: skip
def test_wrong_files_are_refused_without_showing_keys(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError, match=says.replace("?", r"\?")) as error:
        APIKeys((), file)
    assert ANN not in str(error.value)
    assert "keys.toml" in str(error.value)


def test_a_new_key(file: Path) -> None:
    made = command("key", "team.a-1")
    secret = made.stderr.splitlines()[0]
    file.write_text(f'[ann]\nkey = "{ANN}"{made.stdout}')  # as with >> if the file ends without a line break
    assert secret not in made.stdout
    found = APIKeys((), file).find(secret)
    assert found is not None
    assert (found.name, found.limits) == ("team.a-1", KeyLimits())
    assert command("key", "a b").returncode == 2


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not found"):
        APIKeys((), tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        APIKeys((), tmp_path)


def test_tokens_a_day_need_a_store(file: Path) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"\ntokens_per_day = 5')
    with pytest.raises(InputError, match="--store"):
        APIKeys((), file, counts_tokens=False)


def test_changes_take_effect(file: Path) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"')
    accepted = APIKeys((), file)
    replaced = file.with_suffix(".new")  # as editors and Kubernetes replace files
    replaced.write_text(f'[bob]\nkey = "{BOB}"\nrequests_per_minute = 1')
    replaced.replace(file)
    until(lambda: not accepted.find(ANN))
    bob = accepted.find(BOB)
    assert bob is not None
    assert bob.limits.requests_per_minute == 1
    file.write_text("")
    until(lambda: not accepted.find(BOB))
    with pytest.raises(APIError):  # no keys are left, but requests still need one
        accepted.of(None)


@pytest.mark.parametrize("broken", ["[ann", '[ann]\nkey = "short"', "[ann]\nweight = " + "9" * 5000, None])
def test_a_broken_file_leaves_the_previous_keys_in_force(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"')
    accepted = APIKeys((), file)
    file.unlink()
    if broken is not None:
        file.write_text(broken)
    with caplog.at_level(logging.ERROR, "vlroute"):
        until(lambda: any("stay in force" in one.message for one in caplog.records))
        time.sleep(0.1)
        assert accepted.find(ANN)
    assert len(caplog.records) <= 2  # not at every look: one for the missing file, one for the broken one
    file.write_text(f'[bob]\nkey = "{BOB}"')
    until(lambda: accepted.find(BOB))
    assert not accepted.find(ANN)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_in_the_place_of_the_file_blocks_nothing(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"')
    accepted = APIKeys((), file)
    file.unlink()
    os.mkfifo(file)
    with caplog.at_level(logging.ERROR, "vlroute"):
        until(lambda: any("is a pipe" in one.message for one in caplog.records))
    assert accepted.find(ANN)
    file.unlink()
    file.write_text(f'[bob]\nkey = "{BOB}"')
    until(lambda: accepted.find(BOB))


def test_a_slow_file_system_does_not_delay_requests(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"')
    accepted, reading, answered = APIKeys((), file), threading.Event(), threading.Event()

    def hanging(_: Path) -> str:
        reading.set()
        assert answered.wait(60)
        return f'[bob]\nkey = "{BOB}"'

    monkeypatch.setattr(keys, "_content", hanging)
    file.write_text("changed")
    assert reading.wait(60)
    assert accepted.find(ANN)  # it would wait for ever
    answered.set()
    until(lambda: accepted.find(BOB))


def test_a_pipe_of_the_shell_is_refused() -> None:
    """`--key-file <(command)` passes such a pipe."""
    read, write = os.pipe()
    try:
        settings = ServerSettings(key_file=Path(f"/dev/fd/{read}"))
        with pytest.raises(InputError, match="pass a regular file"):
            APIKeys((), settings.key_file)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize(("text", "says"), [("#" * (keys.MAX_FILE + 1), "too large"), ("a=" + "[" * 10**5, "nested")])
def test_files_that_are_no_key_files_are_refused(file: Path, text: str, says: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError, match=says):
        APIKeys((), file)


def test_a_link_is_followed_at_each_look(file: Path) -> None:
    """Kubernetes replaces a link, and deletes the files to which it led."""
    first, second = (file.with_name(name) for name in ("first.toml", "second.toml"))
    first.write_text(f'[ann]\nkey = "{ANN}"')
    second.write_text(f'[bob]\nkey = "{BOB}"')
    file.unlink()
    file.symlink_to(first)
    accepted = APIKeys((), ServerSettings(key_file=file).key_file)
    replaced = file.with_suffix(".new")
    replaced.symlink_to(second)
    replaced.replace(file)
    first.unlink()
    until(lambda: accepted.find(BOB))
    assert not accepted.find(ANN)


def test_the_thread_that_looks_at_the_file_ends_with_its_keys(file: Path) -> None:
    before = {*threading.enumerate()}
    accepted = APIKeys((), file)
    (thread,) = {*threading.enumerate()} - before
    del accepted
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_others_can_read_is_a_warning(
    file: Path, mode: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"')
    os.chmod(file, mode)
    with caplog.at_level(logging.WARNING, "vlroute"):
        read_key_file(file)
    assert bool(caplog.records) == warns


def test_a_visitor_cannot_choose_the_key_of_the_session() -> None:
    assert session_key_name(session_namespace("abc", "ann:12")) == "ann"
    assert session_key_name(session_namespace("abc bob:12", "ann:12")) == "ann"
    assert session_key_name(DIGEST) is None
    assert session_key_name("") is None
