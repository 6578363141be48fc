"""Routers on the hub: the hub's real client against a hub on loopback."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.commands import command
from tests.conftest import ROOT
from tests.hub import OTHER, READ, WRITE, Blob, Hub, Refused, connect, running_hub
from tests.synthetic_records import draw_records
from vlroute import ComplexityClassifier, HubError, HubUnavailableError, Router, write_records
from vlroute.decision.artifact import CARD_FILE
from vlroute.decision.captions import VisionProbe, probe_of
from vlroute.errors import ArtifactError, OutputError, SettingsError, VLRouteError
from vlroute.files import shipped
from vlroute.sharing import push_router, router_folder

POCKET = ROOT / "models" / "pocket" / "router"
QUESTIONS = [
    ("How many circles are there?", "three circles"), ("Add the numbers.", "12, 7, 19, 40"), ("3", "one sign"),
    ("Follow the arrows from A for 7 steps.", "eight nodes, arrows"), ("zorblax 数学?", None), ("What is it?", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def pocket() -> ComplexityClassifier:
    return ComplexityClassifier.load(POCKET)


@pytest.fixture(scope="module")
def probe() -> VisionProbe:
    found = probe_of(POCKET)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def other(pocket: ComplexityClassifier) -> ComplexityClassifier:
    """A classifier with other weights."""
    return ComplexityClassifier(
        pocket.encoder, replace(pocket.heads, bias=pocket.heads.bias + 1), pocket.latency, pocket.card
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as running:
        connect(monkeypatch, running.url, tmp_path / "cache")
        yield running


def decisions(router: Router) -> list[dict[str, object]]:
    return [router.decide(prompt, caption=caption).as_dict() for prompt, caption in QUESTIONS]


def forget(tmp_path: Path) -> None:
    (tmp_path / "cache").rename(tmp_path / f"cache-{time.monotonic_ns()}")


def test_a_pushed_router_decides_as_before(hub: Hub, tmp_path: Path) -> None:
    ours = Router.from_pretrained()
    commit = ours.push_to_hub("user/name", private=True, license="apache-2.0", commit_message="First")
    repo = hub.repos["user/name"]
    assert (repo.private, repo.messages[commit.oid], repo.refs["main"]) == (True, "First", commit.oid)
    files = repo.files()
    assert {name for name, one in files.items() if one.lfs} == {name for name in files if name.endswith(".safetensors")}
    theirs = Router.from_pretrained(router="user/name", revision=commit.oid)
    assert decisions(theirs) == decisions(ours)
    assert theirs.selector.classifier is not None
    assert ours.selector.classifier is not None
    assert theirs.selector.classifier.fingerprint == ours.selector.classifier.fingerprint
    assert theirs.selector.probe is not None
    assert theirs.selector.probe.texts == (ours.selector.probe or theirs.selector.probe).texts
    hub.requests.clear()
    assert decisions(Router.from_pretrained(router=f"user/name@{commit.oid}")) == decisions(ours)
    assert hub.requests == []  # a commit that is in the cache cannot change
    (tmp_path / "saved").mkdir()
    theirs.save_pretrained(tmp_path / "saved")
    assert decisions(Router.from_pretrained(router=str(tmp_path / "saved"))) == decisions(ours)


def test_the_model_card_describes_the_artifact(hub: Hub, pocket: ComplexityClassifier, probe: VisionProbe) -> None:
    push_router("user/name", pocket, probe, license="mit")
    text = hub.repos["user/name"].files()["README.md"].data.decode()
    _, metadata, body = text.split("---\n", 2)
    read = yaml.safe_load(metadata)
    assert (read["library_name"], read["license"]) == ("vlroute", "mit")
    data = pocket.card["provenance"]["data"][0]
    assert f"| {data['file']} | {data['sha256']} |" in body
    assert 'router="user/name"' in body
    routed = next(row for row in pocket.card["metrics"]["rows"] if row["name"] == "routed")
    low, high = routed["interval"]
    assert f"| {routed['accuracy']:.1%} | {low:.1%} – {high:.1%} |" in body
    for heading in ("Use", "Intended use", "Limits", "Training data", "Results", "Contents", "License"):
        assert f"\n## {heading}\n" in body


def test_a_second_push_replaces_the_first_and_keeps_other_files(
    hub: Hub, pocket: ComplexityClassifier, probe: VisionProbe, other: ComplexityClassifier
) -> None:
    first, _ = push_router("user/name", pocket, probe)
    repo = hub.repos["user/name"]
    repo.put("notes.txt", b"mine")
    repo.refs["v1"] = first.oid
    hub.requests.clear()
    second, _ = push_router("user/name", other)
    assert sum("/commit/" in request for request in hub.requests) == 1  # no reader sees half of it
    files = repo.files()
    assert "notes.txt" in files
    assert not [name for name in files if name.startswith("probe/")]
    assert sum(name.startswith("weights") for name in files) == 1
    loaded = {
        revision: ComplexityClassifier.load(router_folder("user/name", revision)).fingerprint
        for revision in (None, "main", "v1", first.oid, second.oid)
    }
    assert [loaded["v1"], loaded[first.oid]] == [pocket.fingerprint] * 2
    assert [loaded[None], loaded["main"], loaded[second.oid]] == [other.fingerprint] * 3
    assert probe_of(router_folder("user/name")) is None
    assert probe_of(router_folder("user/name@v1")) is not None


def test_branches_and_pull_requests(hub: Hub, pocket: ComplexityClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    start, _ = push_router("user/name", pocket)
    branch, _ = push_router("user/name", pocket, revision="trial", license="mit")
    repo = hub.repos["user/name"]
    assert (repo.refs["main"], repo.refs["trial"]) == (start.oid, branch.oid)
    monkeypatch.setenv("HF_TOKEN", OTHER)  # who may not write here
    offered, _ = push_router("user/name", pocket, create_pr=True, license="bsd-3-clause")
    assert offered.pr_url == f"{hub.url}/user/name/discussions/1"
    assert (repo.refs["main"], repo.refs["refs/pr/1"]) == (start.oid, offered.oid)
    with pytest.raises(SettingsError, match="leave out revision or create_pr"):
        push_router("user/name", pocket, create_pr=True, revision="trial")


def test_a_push_without_changes_says_so(
    hub: Hub, pocket: ComplexityClassifier, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    first, is_new = push_router("user/name", pocket)
    assert is_new
    again, is_new = push_router("user/name", pocket, create_pr=True)
    assert (again.oid, again.pr_url, is_new) == (first.oid, None, False)
    assert "nothing was uploaded, and no pull request was opened: the branch main of user/name" in caplog.text
    pocket.save(tmp_path / "router")
    done = command("push", str(tmp_path / "router"), "user/name", "--yes")
    assert done.stdout.startswith(f"unchanged: {hub.url}/user/name/commit/{first.oid}\n")
    assert "nothing was uploaded: the branch main" in " ".join(done.stderr.split())


def test_the_model_card_of_something_else_is_not_replaced(hub: Hub, pocket: ComplexityClassifier) -> None:
    push_router("user/name", pocket)
    repo = hub.repos["user/name"]
    repo.commit("main", {"README.md": Blob(b"# A model", False), "model.safetensors": Blob(b"", True)})
    before = repo.refs["main"]
    with pytest.raises(HubError, match="contains something other than a router"):
        push_router("user/name", pocket)
    assert repo.refs["main"] == before
    assert push_router("user/name", pocket, create_pr=True)[0].pr_url
    repo.commit("main", {"README.md": Blob(b"---\nlicense: mit\n---\n", False)})  # as the web page creates it
    push_router("user/name", pocket)
    assert CARD_FILE in repo.files()


def test_the_push_says_first_which_words_it_reveals(
    hub: Hub, pocket: ComplexityClassifier, probe: VisionProbe, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[int] = []
    hub.before = lambda method, path: told.append(len(caplog.records)) if path == "/api/repos/create" else None
    with caplog.at_level(logging.WARNING, "vlroute"):
        push_router("user/name", pocket, probe)
    assert told == [1]
    said = caplog.messages[0]
    assert f"{pocket.encoder.prompt.width} words and pairs of words of prompts" in said
    assert "32 captions of the vision probe, in plain text" in said
    examples = re.search(r"rarest words: (.+?)\. ", said)
    assert examples is not None
    rare = examples[1].split(", ")
    assert len(rare) == 10
    known = dict(zip(pocket.encoder.prompt.terms, pocket.encoder.prompt.idf, strict=True))
    assert min(known[word] for word in rare if word in known) > max(known["the"], known["how"])


def test_a_private_vocabulary_hides_the_words_and_keeps_the_decisions(
    hub: Hub, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    ours = Router.from_pretrained()
    with caplog.at_level(logging.WARNING, "vlroute"):
        ours.push_to_hub("user/name", private_vocabulary=True)
    assert "can test whether a guessed word" in caplog.text
    assert "the vision probe is not uploaded" in caplog.text
    assert ours.selector.classifier is not None
    assert ours.selector.probe is not None
    files = hub.repos["user/name"].files()
    uploaded = b"\n".join(one.data for one in files.values()).decode("utf-8", "replace")
    words = ours.selector.classifier.encoder.prompt.terms
    assert not [term for term in words if len(term) > 8 and " " in term and f'"{term}"' in uploaded]
    assert not [text for text in ours.selector.probe.texts if f'"{text}"' in uploaded]
    theirs = Router.from_pretrained(router="user/name")
    assert theirs.selector.probe is None
    for mine, (prompt, caption) in zip(decisions(ours), QUESTIONS, strict=True):
        found = theirs.decide(prompt, caption=caption)
        assert (found.mode, found.gain) == (mine["mode"], pytest.approx(mine["gain"], abs=1e-6))
        assert found.p_thinking == pytest.approx(mine["p_thinking"], abs=1e-6)
    theirs.save_pretrained(tmp_path / "again")
    assert decisions(Router.from_pretrained(router=str(tmp_path / "again"))) == decisions(theirs)


def test_without_a_network_the_cache_answers(
    hub: Hub, pocket: ComplexityClassifier, probe: VisionProbe, other: ComplexityClassifier,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    first, _ = push_router("user/name", pocket, probe)
    push_router("user/bare", other)
    folders = [router_folder("user/name"), router_folder("user/bare")]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert [router_folder("user/name"), router_folder("user/bare")] == folders
    assert router_folder("user/name", first.oid) == folders[0]
    assert probe_of(folders[0]) is not None
    assert probe_of(folders[1]) is None
    for missing in ("user/none", "user/name@v2"):
        with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE"):
            router_folder(missing)
    with pytest.raises(HubUnavailableError, match="cannot upload"):
        push_router("user/name", pocket)
    (folders[0] / "probe" / CARD_FILE).unlink()  # as if the download had been interrupted
    with pytest.raises(HubUnavailableError, match="not in the local cache"):
        router_folder("user/name")
    assert hub.requests == []


def test_a_hub_that_is_down(
    hub: Hub, pocket: ComplexityClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push_router("user/name", pocket)
    folder = router_folder("user/name")
    connect(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")  # the port "discard", on which nothing listens
    assert router_folder("user/name") == folder
    with pytest.raises(HubUnavailableError, match="cannot upload the router to user/name"):
        push_router("user/name", pocket)


def test_all_files_are_of_one_commit(
    hub: Hub, pocket: ComplexityClassifier, probe: VisionProbe, other: ComplexityClassifier
) -> None:
    first, _ = push_router("user/name", pocket, probe)
    repo = hub.repos["user/name"]

    def move(method: str, path: str) -> None:
        if "/weights-" in path and repo.refs["main"] == first.oid:
            push_router("user/name", other)

    hub.before = move
    folder = router_folder("user/name")
    assert ComplexityClassifier.load(router_folder("user/name")).fingerprint == other.fingerprint
    assert (folder.name, ComplexityClassifier.load(folder).fingerprint) == (first.oid, pocket.fingerprint)


def test_only_files_of_the_artifact_are_downloaded(hub: Hub, pocket: ComplexityClassifier) -> None:
    push_router("user/name", pocket)
    for name in ("modeling.py", "pytorch_model.bin", "weights.safetensors", "probe/setup.py"):
        hub.repos["user/name"].put(name, b"raise SystemExit")
    folder = router_folder("user/name")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {
        CARD_FILE,
        next(name for name in found if re.fullmatch(r"weights-[0-9a-f]{16}\.safetensors", name)),
    }


@pytest.mark.parametrize("token", [None, READ, OTHER, "hf_wrong"])
def test_who_may_not_write(
    hub: Hub, pocket: ComplexityClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None
) -> None:
    connect(monkeypatch, hub.url, tmp_path / "cache", token)
    with pytest.raises(HubError, match=r"cannot upload the router to user/new: the hub refuses it .*log in") as raised:
        push_router("user/new", pocket)
    assert not isinstance(raised.value, HubUnavailableError)
    assert hub.repos == {}
    push_router("user/new", pocket, token=WRITE)  # an argument comes before the environment
    assert "user/new" in hub.repos


def test_what_cannot_be_loaded(
    hub: Hub, pocket: ComplexityClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    push_router("user/private", pocket, private=True)
    push_router("user/gated", pocket)
    push_router("user/name", pocket)
    hub.repos["user/gated"].gated = True
    for token, name, why in (
        (None, "user/private", "no such repository, or it is private"),
        (OTHER, "user/private", "no such repository, or it is private"),
        (OTHER, "user/none", r"there is no folder 'user/none' here, and the hub has no such repository"),
        (OTHER, "user/gated", "restricted. Ask for access"),
        (READ, "user/name@v7", "no such branch, tag or commit"),
        (READ, "user/name@" + "0" * 40, "no such branch, tag or commit"),
    ):
        connect(monkeypatch, hub.url, tmp_path / "cache", token)
        with pytest.raises(HubError, match=f"cannot load the router {name}.*{why}") as raised:
            Router.from_pretrained(router=name)
        assert not isinstance(raised.value, HubUnavailableError)


def test_repositories_without_a_usable_router(hub: Hub, pocket: ComplexityClassifier, tmp_path: Path) -> None:
    push_router("user/name", pocket)
    repo = hub.repos["user/name"]
    good = repo.refs["main"]
    weights = next(name for name in repo.files() if name.endswith(".safetensors"))
    card = json.loads(repo.files()[CARD_FILE].data)
    data = repo.files()[weights].data
    for name, content, why in (
        (CARD_FILE, None, "contains no router.json, so it is no router"),
        (CARD_FILE, json.dumps(card | {"schema": 99}).encode(), "schema 99; this version of vlroute reads 3 to 5"),
        (CARD_FILE, b"<html>", "not valid JSON"),
        (CARD_FILE, json.dumps(card | {"weights_sha256": "../../etc"}).encode(), "no valid weights_sha256"),
        (weights, None, "does not contain the weights"),
        (weights, data[:-1] + b"x", "is damaged"),
    ):
        repo.refs["main"] = good
        repo.put(name, content)
        with pytest.raises(ArtifactError, match=why) as raised:
            Router.from_pretrained(router="user/name")
        assert "user/name" in str(raised.value)


def test_a_failing_hub(hub: Hub, pocket: ComplexityClassifier) -> None:
    def fail(method: str, path: str) -> None:
        if "/commit/" in path:
            raise Refused(503, message="maintenance")

    hub.before = fail
    with pytest.raises(HubUnavailableError, match=r"answers 503 \(maintenance\); try again later"):
        push_router("user/name", pocket)
    hub.before = lambda method, path: None
    with pytest.raises(HubError, match="'Apache 2' is no license"):
        push_router("user/name", pocket, license="Apache 2")


def test_folders_and_names(
    hub: Hub, pocket: ComplexityClassifier, other: ComplexityClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_router("user/name", pocket)
    monkeypatch.chdir(tmp_path)
    other.save("user/name")
    hub.requests.clear()
    assert ComplexityClassifier.load(router_folder("user/name")).fingerprint == other.fingerprint  # the folder first
    with pytest.raises(SettingsError, match=r"revision applies to a router on the hub.*'user/name' is a folder"):
        Router.from_pretrained(router="user/name", revision="main")
    with pytest.raises(SettingsError, match="given twice"):
        Router.from_pretrained(router="user/absent@v1", revision="v2")
    with pytest.raises(SettingsError, match="pass router='user/name' as well"):
        Router.from_pretrained("Qwen/Qwen3-VL-8B", revision="main")
    with pytest.raises(SettingsError, match="revision must be"):
        Router.from_pretrained(router="user/absent", revision=1)  # type: ignore[arg-type]
    for folder in (Path("user/absent"), "absent", "./user/absent", "/user/absent", "user/absent/deep"):
        with pytest.raises(ArtifactError, match="there is no router"):
            Router.from_pretrained(router=folder)
    for name in ("qwen3-vl-2b", "pocket"):
        assert router_folder(name) == shipped(f"{name}/router")
    assert router_folder(shipped("pocket")) == shipped("pocket/router")
    for repo in ("", "a/b/c", "user/na me", 7):
        with pytest.raises(SettingsError, match="repo must be"):
            push_router(repo, pocket)  # type: ignore[arg-type]
    assert hub.requests == []


def test_folders_that_cannot_be_written(pocket: ComplexityClassifier, tmp_path: Path) -> None:
    bare = Router("a", "b")
    with pytest.raises(ArtifactError, match="no artifact to share"):
        bare.save_pretrained(tmp_path / "out")
    with pytest.raises(ArtifactError, match="no artifact to share"):
        bare.push_to_hub("user/name")
    router = Router.from_pretrained()
    router.save_pretrained(tmp_path / "out")
    with pytest.raises(OutputError, match="choose an empty folder"):  # its probe would belong to another artifact
        router.save_pretrained(tmp_path / "out", private_vocabulary=True)
    router.save_pretrained(tmp_path / "out")  # its own README.md is replaced
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("notes")
    with pytest.raises(OutputError, match=r"something other than a router, and its README\.md would be replaced"):
        router.save_pretrained(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]
    assert (tmp_path / "mine" / "README.md").read_text() == "notes"
    for wrong in ({"folder": ""}, {"private_vocabulary": "yes"}, {"license": 7}):
        with pytest.raises(SettingsError):
            router.save_pretrained(**{"folder": tmp_path / "new", **wrong})
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "router"):
        with pytest.raises(OutputError, match="choose another place"):
            router.save_pretrained(folder)


def test_a_running_router_takes_another_one_from_the_hub(
    hub: Hub, pocket: ComplexityClassifier, other: ComplexityClassifier
) -> None:
    push_router("user/name", other)
    router = Router.from_pretrained()
    router.use("user/name@main")
    assert router.selector.classifier is not None
    assert router.selector.classifier.fingerprint == other.fingerprint
    with pytest.raises(VLRouteError):
        router.use("user/none")
    assert router.selector.classifier.fingerprint == other.fingerprint


def test_commands(hub: Hub, tmp_path: Path) -> None:
    asked = command("push", str(POCKET), "user/name", cwd=tmp_path)
    assert (asked.returncode, hub.repos) == (2, {})
    assert "pass --yes" in asked.stderr
    done = command("push", str(POCKET), "user/name", "--yes", "--private", "-m", "From the shell", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "can read words of the training requests" in " ".join(done.stderr.split())
    repo = hub.repos["user/name"]
    sha = repo.refs["main"]
    assert (repo.private, repo.messages[sha]) == (True, "From the shell")
    assert done.stdout.splitlines() == [f"uploaded: {hub.url}/user/name/commit/{sha}", f"--router user/name@{sha}"]
    again = command("push", str(POCKET), "name", "--yes", cwd=tmp_path)  # of the owner of the token
    assert again.stdout.splitlines()[-1] == f"--router user/name@{repo.refs['main']}"
    assert 'router="user/name"' in repo.files()["README.md"].data.decode()
    absent = command("doctor", "--router", "user/name", "--json")
    assert "user/name: not on this machine" in absent.stdout  # it downloads nothing
    question = ("route", "Add the numbers.", "--caption", "three numbers", "--json")
    theirs, ours = command(*question, "--router", f"user/name@{sha}"), command(*question)
    assert theirs.returncode == 0, theirs.stderr
    assert json.loads(theirs.stdout) == json.loads(ours.stdout)
    known = command("doctor", "--router", f"user/name@{sha}", "--json")
    assert "1383 words and pairs of words of prompts" in known.stdout
    wrong = command(*question, "--router", "user/none")
    assert (wrong.returncode, "error: cannot load the router user/none" in wrong.stderr) == (2, True)
    down = command(*question, "--router", "user/name@v2", HF_TOKEN="hf_wrong")
    assert (down.returncode, "Invalid credentials" in down.stderr) == (2, True)


def test_a_training_starts_from_a_router_of_the_hub(hub: Hub, tmp_path: Path, pocket: ComplexityClassifier) -> None:
    commit, _ = push_router("user/name", pocket)
    write_records(tmp_path / "records.jsonl", draw_records(60)[1])
    few = ("--out", "new", "--folds", "2", "--seeds", "1", "--together", "record", "--encoder", "none")
    done = command("train", "records.jsonl", "--from", f"user/name@{commit.oid}", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    start = ComplexityClassifier.load(tmp_path / "new").start
    assert start is not None
    assert (start.name, start.classifier.fingerprint) == (f"user/name@{commit.oid}", pocket.fingerprint)
    done = command("train", "records.jsonl", "--from", "user/none", *few, cwd=tmp_path)
    assert (done.returncode, "the hub has no such repository" in done.stderr) == (2, True)


def test_a_router_of_the_hub_is_evaluated(hub: Hub, tmp_path: Path, pocket: ComplexityClassifier) -> None:
    push_router("user/name", pocket)
    write_records(tmp_path / "records.jsonl", draw_records(60)[1])
    found = []
    for router in (str(POCKET), "user/name"):
        done = command("eval", "records.jsonl", "--router", router, "--json", "found.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / "found.json").read_text("utf-8")))
    assert found[1] == found[0] | {"router": "user/name"}
    done = command("eval", "records.jsonl", "--router", "user/none", cwd=tmp_path)
    assert (done.returncode, "the hub has no such repository" in done.stderr) == (2, True)


def test_endpoints_and_shadows(
    hub: Hub, pocket: ComplexityClassifier, other: ComplexityClassifier, tmp_path: Path
) -> None:
    first, _ = push_router("user/name", pocket)
    push_router("user/name", other)
    servers = ("http://127.0.0.1:9/v1", "a"), ("http://127.0.0.1:9/v1", "b")
    with Router.from_endpoints(
        *servers, router="user/name", revision=first.oid, store=tmp_path / "answers.db", shadow="user/name"
    ) as router:
        assert router.selector.classifier is not None
        assert router.shadow is not None
        assert router.selector.classifier.fingerprint == pocket.fingerprint
        assert router.shadow.classifier.fingerprint == other.fingerprint


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_command_asks_before_it_uploads(hub: Hub, tmp_path: Path) -> None:
    env = os.environ | {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": WRITE, "HF_HUB_DISABLE_XET": "1",
        "TERM": "dumb", "NO_COLOR": "1",
    }  # fmt: skip
    for typed, code, repos in ((b"n\n", 1, set()), (b"y\n", 0, {"user/name"})):
        ours, theirs = pty.openpty()
        arguments = [sys.executable, "-m", "vlroute", "push", str(POCKET), "user/name", "--private-vocabulary"]
        process = subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        shown, answered = b"", False
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 4096)
                except OSError:  # the process has closed its end
                    break
            if b"[y/N]" in shown and not answered:
                assert hub.repos == {}
                os.write(ours, typed)
                answered = True
        os.close(ours)
        assert process.wait(60) == code, shown.decode()
        assert b"can test whether a guessed word" in shown
        assert set(hub.repos) == repos
