"""Key files: what they contain, what is refused, and how changes take effect."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from tests.commands import command
from vlroute.errors import InputError
from vlroute.serving import keys
from vlroute.serving.errors import APIError
from vlroute.serving.keys import APIKeys, KeyLimits, read_key_file, session_key_name, session_namespace

ANN, BOB = "the key of ann, long enough", "the key of bob, long enough"
DIGEST = hashlib.sha256(BOB.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.touch(mode=0o600)
    return path


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 0.0)


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
    assert accepted.named("bob") == bob
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
    assert not accepted.find(ANN)
    bob = accepted.find(BOB)
    assert bob is not None
    assert bob.limits.requests_per_minute == 1
    file.write_text("")
    assert not accepted.find(BOB)
    with pytest.raises(APIError):  # no keys are left, but requests still need one
        accepted.of(None)


@pytest.mark.parametrize("broken", ["[ann", '[ann]\nkey = "short"', None])
def test_a_broken_file_leaves_the_previous_keys_in_force(
    file: Path, broken: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f'[ann]\nkey = "{ANN}"')
    accepted = APIKeys((), file)
    file.unlink()
    if broken is not None:
        file.write_text(broken)
    with caplog.at_level(logging.ERROR, "vlroute"):
        for _ in range(3):
            assert accepted.find(ANN)
    (record,) = caplog.records  # not at every request
    assert "stay in force" in record.message
    file.write_text(f'[bob]\nkey = "{BOB}"')
    assert accepted.find(BOB)
    assert not accepted.find(ANN)


def test_the_file_is_looked_at_once_in_a_while(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "RELOAD_SECONDS", 3600.0)
    file.write_text(f'[ann]\nkey = "{ANN}"')
    accepted = APIKeys((), file)
    file.write_text("")
    assert accepted.find(ANN)


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
    assert session_key_name(session_namespace("abc", "ann")) == "ann"
    assert session_key_name(session_namespace("abc bob", "ann")) == "ann"
    assert session_key_name(DIGEST) is None
    assert session_key_name("") is None
