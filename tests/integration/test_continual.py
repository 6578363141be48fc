"""Continual learning: from ratings in a store to an artifact in use, and back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import sqlalchemy as sa

from tests.commands import command
from tests.rated_store import PRICE, add_answers, first_artifact
from tests.serving import KEY, served, until
from vlroute import Policy, Router
from vlroute.cli.doctor import examine
from vlroute.decision.classifier import ComplexityClassifier
from vlroute.errors import ArtifactError, InputError, OutputError, SettingsError
from vlroute.learned import HISTORY, Action, LearningEvent, LearningHistory
from vlroute.learning import ContinualLearner, roll_back
from vlroute.learning.learning_step import HELD_OUT_FILE, Job, run_step
from vlroute.serving import service
from vlroute.serving.metrics import Metrics
from vlroute.serving.settings import ServerSettings
from vlroute.serving.ui.learning import steps_html
from vlroute.serving.ui.texts import TEXTS
from vlroute.store import Store
from vlroute.types import ModelIdentity

NEW = "Reconcile the ledger of the cup with the invoice."


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a first artifact and a store on which one candidate was swapped in."""
    folder = tmp_path_factory.mktemp("continual")
    first = first_artifact(folder / "first")
    with Store(folder / "answers.db") as store:
        add_answers(store, first, 240)
    ended = command("learn", "--store", str(folder / "answers.db"), "--router", str(folder / "first"), "--once")
    assert ended.returncode == 0, ended.stderr
    assert "learner: swapped, 240 ratings" in ended.stdout.replace("\n", " ")
    return folder


@pytest.fixture(autouse=True)
def servers_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FOLLOW_SECONDS", 0.05)


@pytest.fixture
def copied(learned: Path, tmp_path: Path) -> Path:
    """The same store and artifacts, to change."""
    for name in ("answers.db", "answers.db-wal"):
        if (learned / name).exists():
            (tmp_path / name).write_bytes((learned / name).read_bytes())
    shutil.copytree(learned / "answers.db.routers", tmp_path / "answers.db.routers")
    return tmp_path


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact that does not belong to the learning of `learned`."""
    folder = tmp_path_factory.mktemp("other") / "router"
    with Router.from_pretrained() as pocket:
        pocket.save_pretrained(folder)
    return folder


def test_the_learned_artifact_thinks_about_the_new_kind(learned: Path) -> None:
    with Store(learned / "answers.db", create=False) as store, ContinualLearner(None, store) as learner:
        swapped, started = learner.history
    assert (started.action, swapped.action) == ("started", "swapped")
    before, after = (ComplexityClassifier.load(one.artifact).predict(NEW) for one in (started, swapped))
    assert before.coverage < 0.6 < after.coverage
    assert after.gain > 0.5
    found = swapped.details["comparison"]
    assert found["difference"] > 0
    assert found["low"] > -0.005
    assert swapped.details["cannot_learn"] == []
    assert swapped.details["drift"]["coverage"] < swapped.details["drift"]["coverage_in_training"]
    report = (Path(swapped.artifact) / "report.md").read_text("utf-8")
    assert "from Instruct to Thinking" in report
    assert ComplexityClassifier.load(swapped.artifact).fingerprint == swapped.fingerprint


def test_a_router_uses_what_was_learned_and_rolled_back(copied: Path, learned: Path) -> None:
    where = copied / "answers.db"
    with (
        Store(where) as store,
        Router.from_pretrained(router=learned / "first", store=store, policy=Policy(price=PRICE)) as router,
    ):
        before = router.decide(NEW).gain
        with ContinualLearner(router, store) as learner:
            assert router.decide(NEW).gain > before + 0.3
            assert learner.rollback().action == "rolled back"
            assert router.decide(NEW).gain == pytest.approx(before)
            with pytest.raises(InputError, match="no earlier one"):
                learner.rollback()
            assert learner.step().action == "waited"  # the ratings that are known already change nothing


def test_roll_back_by_command_while_a_learner_runs(copied: Path) -> None:
    where = str(copied / "answers.db")
    with ContinualLearner(None, where):
        ended = command("learn", "--store", where, "--rollback")
        assert ended.returncode == 0, ended.stderr
        assert "rolled back" in ended.stdout
        with pytest.raises(OutputError, match="only one learner can work on a store"):
            ContinualLearner(None, where)
    lines = command("learn", "--store", where, "--history").stdout.splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["started", "swapped", "rolled back"]


def test_one_client_cannot_dominate(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    with Store(tmp_path / "answers.db") as store:
        add_answers(store, first, 30, key="mallory")
        add_answers(store, first, 5, key="alice", seed=1)
        with ContinualLearner(tmp_path / "first", store, most_per_key=10) as learner:
            event = learner.step()
    assert (event.action, event.details["ratings"], event.details["over_limit"]) == ("waited", 15, 20)


def test_learning_goes_on_when_the_limit_for_a_key_is_reached(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    actions = []
    with Store(tmp_path / "answers.db") as store:
        for round in range(3):
            add_answers(store, first, 15 if round == 1 else 40, key="application", seed=round)
            with ContinualLearner(tmp_path / "first", store, most_per_key=30) as learner:
                event = learner.step()
            actions.append(event.action)
            assert event.details["ratings"] == 30
    assert actions[0] in ("kept", "swapped")
    assert actions[1] == "waited"  # only 15 are new
    assert actions[2] in ("kept", "swapped")


def test_learners_on_two_stores_share_a_folder(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    learners = []
    for name in ("one", "two"):
        with Store(tmp_path / f"{name}.db") as store:
            add_answers(store, first, 240)
        with ContinualLearner(tmp_path / "first", tmp_path / f"{name}.db", folder=tmp_path / "both") as learner:
            assert learner.step().action == "swapped"
            learners.append(learner.in_use)
    assert learners[0] != learners[1]
    for used in learners:
        ComplexityClassifier.load(used)


@pytest.mark.parametrize("better", [None, False, True])
def test_a_rollback_during_a_step_is_not_undone(
    copied: Path, better: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(copied / "answers.db") as store, ContinualLearner(None, store) as learner:
        before = learner.history[-1].artifact
        assert str(learner.in_use) != before

        def roll_back_meanwhile(learner: ContinualLearner, job: Job) -> dict[str, object]:
            roll_back(store)
            shutil.copytree(before, job.out)
            return {"better": better, "details": {}}

        monkeypatch.setattr(ContinualLearner, "_run", roll_back_meanwhile)
        event = learner.step()
        assert event.action == ("waited" if better is None else "kept")
        assert ("error" in event.details) == bool(better)
        assert str(learner.in_use) == event.artifact == before


def test_without_exploration_it_says_what_cannot_be_learned(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    with Store(tmp_path / "answers.db") as store:
        add_answers(store, first, 60, explore=0.0)
    ended = command("learn", "--store", str(tmp_path / "answers.db"), "--router", str(tmp_path / "first"), "--once")
    assert "learner: kept" in ended.stdout
    assert "No answer of Thinking is rated where the router chooses Instruct" in ended.stderr


def test_nothing_to_begin_with(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store, pytest.raises(InputError, match="begins with a router artifact"):
        ContinualLearner(None, store)
    with Store(tmp_path / "answers.db") as store, pytest.raises(InputError, match="nothing was learned"):
        roll_back(store)
    for options in ({}, {"folder": tmp_path / "artifacts"}):
        with pytest.raises(ArtifactError):
            ContinualLearner(tmp_path / "nosuch", tmp_path / "answers.db", **options)
    assert [one.name for one in tmp_path.iterdir()] == ["answers.db"]


def test_another_artifact_is_refused_unless_learning_restarts(copied: Path, other: Path, learned: Path) -> None:
    where = copied / "answers.db"
    with pytest.raises(ArtifactError):
        ContinualLearner("nosuch", where)
    with pytest.raises(InputError, match=r"pass restart=True or --restart"):
        ContinualLearner(other, where)
    with Store(where) as store, Router.from_pretrained(router=other, store=store) as router:
        used = router.selector.classifier
        with pytest.raises(InputError, match=r"pass restart=True or --restart"):
            ContinualLearner(router, store)
        assert router.selector.classifier is used
    in_use = copied / "answers.db.routers" / Path(LearningHistory(Store(where)).events(1)[0].artifact).name
    for known in (learned / "first", in_use, None):
        with ContinualLearner(known, where) as learner:
            assert learner.in_use == in_use
    with ContinualLearner(other, where, restart=True) as learner:
        started, swapped, _ = learner.history
        assert started.action == "started"
        assert started.fingerprint == ComplexityClassifier.load(other).fingerprint
        event = learner.step()
        assert event.action in ("kept", "swapped")  # all ratings are new to this artifact
        if event.action == "swapped":
            learner.rollback()
        assert learner.rollback().artifact == swapped.artifact  # the restart is undone, too
    with pytest.raises(InputError, match="pass restart=True"):
        ContinualLearner(other, where)


def test_restart_by_command(copied: Path, other: Path) -> None:
    learn = ("learn", "--store", str(copied / "answers.db"), "--once", "--router", str(other))
    ended = command(*learn)
    assert ended.returncode == 2
    assert "--restart" in ended.stderr
    assert command(*learn, "--restart").returncode == 0
    assert command(*learn).returncode == 0
    ended = command(*learn[:4], "--restart")
    assert ended.returncode == 2
    assert "--restart needs the router artifact" in ended.stderr


def test_a_moved_store_goes_on(copied: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for one in (copied / "answers.db", copied / "answers.db.routers"):
        one.rename(moved / one.name.replace("answers", "renamed"))
    with ContinualLearner(None, moved / "renamed.db") as learner:
        assert {Path(one.artifact).parent for one in learner.history} == {moved / "renamed.db.routers"}
        assert learner.step().action == "waited"
        assert learner.rollback().action == "rolled back"
    with Store(moved / "renamed.db") as store, pytest.raises(InputError, match="nosuch is not a folder"):
        roll_back(store, "nosuch")
    elsewhere = (moved / "renamed.db.routers").rename(tmp_path / "elsewhere")
    for folder in (None, moved / "new"):
        with pytest.raises(ArtifactError, match=r"pass their folder as folder= or --folder"):
            ContinualLearner(None, moved / "renamed.db", folder=folder)
    assert [one.name for one in moved.iterdir()] == ["renamed.db"]  # nothing is in the way of what is moved back
    with Store(moved / "renamed.db") as store:
        changed = LearningHistory(store).events(1)[0]
        LearningHistory(store).add(replace(changed, action="swapped", artifact="another"))
        with pytest.raises(ArtifactError, match=r"pass their folder as folder= or --folder"):
            roll_back(store)
        assert "is not there" in found_by_doctor(moved / "renamed.db")
        roll_back(store, elsewhere)
    with ContinualLearner(None, moved / "renamed.db", folder=elsewhere) as learner:
        assert learner.in_use.parent == elsewhere
        learner.step()
    with Store(moved / "renamed.db") as store:  # as a server reads it
        assert Path(LearningHistory(store).events(1)[0].artifact).parent == elsewhere
    elsewhere.rename(moved / "renamed.db.routers")
    assert found_by_doctor(moved / "renamed.db").startswith("in use: ")


def found_by_doctor(store: Path) -> str:
    return next(one.found for one in examine(None, None, str(store)) if one.what == "learned router")


def test_a_store_of_an_earlier_version_goes_on_after_a_move(copied: Path) -> None:
    gone = "/former/place/answers.db.routers"
    with Store(copied / "answers.db") as store:
        with store.transaction("written") as connection:  # earlier versions wrote whole paths
            connection.execute(sa.update(HISTORY).values(artifact=sa.literal(f"{gone}/") + HISTORY.c.artifact))
        with ContinualLearner(None, store) as learner:
            assert learner.in_use.parent == copied / "answers.db.routers"
            assert learner.step().action == "waited"
            learner.rollback()
            assert learner.history[0].artifact == learner.history[-1].artifact


def test_a_closed_learner_refuses_to_work(copied: Path) -> None:
    with Store(copied / "answers.db") as store:
        learner = ContinualLearner(None, store)
        learner.close()
        learner.close()
        before = learner.history
        for work in (learner.step, learner.start, learner.run, learner.rollback):
            with pytest.raises(InputError, match="this learner is closed"):
                work()
        assert learner.history == before


def test_closing_ends_a_step_without_an_event(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    with Store(tmp_path / "answers.db") as store:
        add_answers(store, first, 40)
        learner = ContinualLearner(tmp_path / "first", store)
        with ThreadPoolExecutor(1) as threads:
            step = threads.submit(learner.step)
            until(lambda: learner._process is not None, 60)  # noqa: SLF001
            learner.close()
            with ContinualLearner(None, store):  # the lock is free
                assert isinstance(step.exception(60), InputError)
        assert [one.action for one in learner.history] == ["started"]


def test_an_artifact_of_the_caller_is_not_replaced_silently(copied: Path, learned: Path, other: Path) -> None:
    with (
        Store(copied / "answers.db") as store,
        Router.from_pretrained(router=learned / "first", store=store) as router,
        ContinualLearner(router, store) as learner,
    ):
        router.use(other)
        used, before = router.selector.classifier, learner.history
        with pytest.raises(InputError, match=r"Router\.use was called with another artifact"):
            learner.step()
        assert router.selector.classifier is used
        assert learner.history == before
        router.use(learner.in_use)
        assert learner.step().action == "waited"
        router.use(other)
        assert learner.rollback().action == "rolled back"  # an order of the caller, too
        assert router.selector.classifier is not None
        assert router.selector.classifier.fingerprint == learner.history[0].fingerprint
        assert learner.step().action == "waited"


@pytest.mark.parametrize("better", [None, False, True, OSError("no memory")])
def test_an_artifact_of_the_caller_during_a_step_leaves_the_store_as_it_is(
    copied: Path, learned: Path, other: Path, better: bool | OSError | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Store(copied / "answers.db") as store,
        Router.from_pretrained(router=learned / "first", store=store) as router,
        ContinualLearner(router, store) as learner,
    ):

        def use_meanwhile(learner: ContinualLearner, job: Job) -> dict[str, object]:
            router.use(other)
            if isinstance(better, OSError):
                raise better
            shutil.copytree(job.used, job.out)
            return {"better": better, "details": {}}

        before = learner.history
        monkeypatch.setattr(ContinualLearner, "_run", use_meanwhile)
        with pytest.raises(InputError, match=r"Router\.use was called with another artifact"):
            learner.step()
        assert learner.history == before
        assert router.selector.classifier is not None
        assert router.selector.classifier.fingerprint == ComplexityClassifier.load(other).fingerprint


def test_a_stored_step_is_returned_and_logged_if_the_caller_replaces_the_artifact_then(
    copied: Path, learned: Path, other: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vlroute.learning")
    with (
        Store(copied / "answers.db") as store,
        Router.from_pretrained(router=learned / "first", store=store) as router,
        ContinualLearner(router, store) as learner,
    ):

        def better(learner: ContinualLearner, job: Job) -> dict[str, object]:
            shutil.copytree(job.base, job.out)
            return {"better": True, "details": {}}

        def add_then_use(history: LearningHistory, event: LearningEvent, **after: Any) -> LearningEvent | None:
            added = add(history, event, **after)
            router.use(other)
            return added

        add = LearningHistory.add
        monkeypatch.setattr(ContinualLearner, "_run", better)
        monkeypatch.setattr(LearningHistory, "add", add_then_use)
        event = learner.step()
        assert event.action == "swapped"
        assert event == learner.history[0]
        assert f"learner: swapped; in use: {event.artifact}" in caplog.text
        assert router.selector.classifier is not None
        assert router.selector.classifier.fingerprint == ComplexityClassifier.load(other).fingerprint
        with pytest.raises(InputError, match=r"Router\.use was called with another artifact"):
            learner.step()
        monkeypatch.undo()
        router.use(learner.in_use)
        assert learner.step().action in ("kept", "waited")
        event = roll_back(store)  # by another process
        assert learner.step().action == "waited"
        assert router.selector.classifier.fingerprint == event.fingerprint


def test_ratings_of_another_model_do_not_count(tmp_path: Path) -> None:
    first, small, large = first_artifact(tmp_path / "first"), ModelIdentity("small"), ModelIdentity("large", "5a" * 32)
    with Store(tmp_path / "answers.db") as store:
        add_answers(store, first, 6)  # by an earlier version
        add_answers(store, first, 60, seed=1, model=small)
        with ContinualLearner(tmp_path / "first", store) as learner:
            assert learner.step().details["ratings"] == 66
            add_answers(store, first, 12, seed=2, model=large)
            event = learner.step()
            assert (event.action, event.details["ratings"]) == ("waited", 18)
            assert "60 ratings do not count, because another model" in "".join(event.details["cannot_learn"])
        ends = [("http://127.0.0.1:9/v1", f"small-{mode}") for mode in ("instruct", "thinking")]
        with (
            Router.from_endpoints(*ends, router=tmp_path / "first", store=store) as router,
            ContinualLearner(router, store) as learner,
        ):
            assert learner.step().details["ratings"] == 66  # the learner of a program knows its model


def test_an_artifact_for_another_model_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = first_artifact(tmp_path / "first")
    card = json.loads((tmp_path / "first" / "router.json").read_text("utf-8"))
    card["model"] = ModelIdentity("user/small").as_card()
    (tmp_path / "first" / "router.json").write_text(json.dumps(card), "utf-8")
    with Store(tmp_path / "answers.db") as store:
        add_answers(store, first, 6, model=ModelIdentity("user/large"))
        with ContinualLearner(tmp_path / "first", store) as learner:
            learner.step()
            add_answers(store, first, 6, seed=1, model=ModelIdentity("pocket", "5a" * 32))
            learner.step()
    assert "was trained for user/small, but user/large answers" in caplog.text
    assert "was trained for user/small, but pocket (fingerprint 5a5a5a5a5a5a…) answers" in caplog.text


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 5}', '{"a": [NaN, 0.5]}', None])
def test_damaged_held_out_predictions_do_not_stop_learning(damage: str | None, copied: Path) -> None:
    with Store(copied / "answers.db") as store:
        swapped, started = LearningHistory(store).events()
        file = Path(swapped.artifact) / HELD_OUT_FILE
        if damage is None:
            file.unlink()
        else:
            file.write_text(damage, "utf-8")
        found = run_step(Job(store.url, started.artifact, swapped.artifact, str(copied / "new"), 50, 0))
    assert found.better is not None
    (warning,) = found.details["warnings"]
    assert f"{file} cannot be read" in warning


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("--rollback --router x", "--router"),
        ("--rollback --every 5s --most-per-key 3", "--every and --most-per-key"),
        ("--history --restart", "--restart"),
        ("--once --every 5s", "--every"),
    ],
)
def test_options_without_effect_are_refused(options: str, names: str, tmp_path: Path) -> None:
    Store(tmp_path / "answers.db").close()
    ended = command("learn", "--store", str(tmp_path / "answers.db"), *options.split())
    assert ended.returncode == 2
    assert f"{options.split()[0]} does not use {names}" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"store": None}, "store must be"),
        ({"router": 5}, "router must be"),
        ({"folder": 5}, "folder must be"),
        ({"most_per_key": True}, "most_per_key must be a whole number"),
        ({"most_per_key": 0}, "most_per_key must be a whole number"),
        ({"restart": 1}, "restart must be"),
    ],
)
def test_invalid_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    Store(tmp_path / "answers.db").close()
    with pytest.raises(SettingsError, match=message):
        ContinualLearner(**{"router": None, "store": tmp_path / "answers.db", **arguments})


def test_a_folder_that_cannot_be_written(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = command("learn", "--store", str(copied / "answers.db"), "--once", "--folder", str(tmp_path / "file"))
    assert ended.returncode == 1
    assert "choose another place" in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_killed_learner_leaves_a_usable_artifact_and_loses_nothing(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    where = tmp_path / "answers.db"
    with Store(where) as store:
        add_answers(store, first, 240)
    arguments = [sys.executable, "-m", "vlroute", "learn", "--store", str(where), "--every", "1h"]
    killed = subprocess.Popen(
        [*arguments, "--router", str(tmp_path / "first")], start_new_session=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    folder = Path(f"{where}.routers")
    deadline = time.monotonic() + 120
    while not list(folder.glob("learned-*")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)  # with its training process, while the candidate is being written
    killed.communicate()
    (base,) = folder.glob("base-*")
    left = folder / f"learned{base.name.removeprefix('base')}-0000000000000000"  # by an earlier learner
    left.mkdir()
    with ContinualLearner(None, where) as learner:
        assert not left.exists()
        ComplexityClassifier.load(learner.in_use)
        if learner.history[0].action != "swapped":  # killed before it could swap
            assert learner.step().action == "swapped"
        assert learner.history[0].details["ratings"] == 240


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_sigterm_leaves_neither_locks_nor_unfinished_artifacts(tmp_path: Path) -> None:
    first = first_artifact(tmp_path / "first")
    where, folder = tmp_path / "answers.db", tmp_path / "answers.db.routers"
    with Store(where) as store:
        add_answers(store, first, 240)
    ended = subprocess.Popen(
        [sys.executable, "-m", "vlroute", "learn", "--store", str(where), "--router", str(tmp_path / "first")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(folder.glob("learned-*")) and ended.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "answers.db.learner.lock").exists()
    ended.terminate()  # while the candidate is being written
    ended.communicate(timeout=60)
    assert ended.returncode == 143
    assert {one.name for one in tmp_path.iterdir()} == {"first", "answers.db", "answers.db.routers"}
    with Store(where) as store:
        used = {Path(one.artifact).name for one in LearningHistory(store).events(None, "started", "swapped")}
    assert {one.name for one in folder.iterdir()} == used


def test_metrics_and_page_show_the_steps_and_the_drift(learned: Path) -> None:
    metrics = Metrics()
    with Store(learned / "answers.db") as store:
        history = LearningHistory(store)
        metrics.watch_learner(history)
        text = metrics.text()[0].decode()
        assert 'vlroute_learner_steps_total{action="swapped"} 1.0' in text
        assert 'vlroute_learner_steps_total{action="rolled_back"} 0.0' in text
        assert "vlroute_learner_ratings 240.0" in text
        for quantity in ("coverage", "coverage_in_training", "calibration", "latency"):
            assert f'vlroute_learner_drift{{quantity="{quantity}"}}' in text
        events = history.events()
        for texts in TEXTS.values():
            shown = steps_html(events, events[0], texts)
            assert texts.learning_actions["swapped"] in shown
            assert events[0].fingerprint in shown
            assert all(name in shown for name in texts.drift_figures.values())
            low, high = events[0].details["drift"]["calibration_interval"]
            assert f"(95 %: {100 * low:+.1f} … {100 * high:+.1f})" in shown
            assert texts.cannot_learn not in shown
            blind = replace(events[0], details={**events[0].details, "cannot_learn": ["No <answer> is rated"]})
            shown = steps_html(events, blind, texts)
            assert texts.cannot_learn in shown
            assert "No &lt;answer&gt; is rated." in shown
            assert texts.nothing_learned in steps_html([], None, texts)
            assert set(texts.learning_actions) == set(get_args(Action))


def test_a_server_warns_of_an_artifact_that_is_not_used(
    copied: Path, other: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router.from_pretrained(router=other, store=copied / "answers.db")
    with served(ServerSettings(port=0, learned=True), router=router):
        until(lambda: "run vlroute learn --restart with it" in caplog.text, 60)


def test_a_server_finds_the_artifacts_in_another_folder(copied: Path, learned: Path, tmp_path: Path) -> None:
    elsewhere = (copied / "answers.db.routers").rename(tmp_path / "elsewhere")
    router = Router.from_pretrained(router=learned / "first", store=copied / "answers.db")
    first = router.selector.classifier
    with served(ServerSettings(port=0, learned=True, learned_folder=elsewhere), router=router):
        until(lambda: router.selector.classifier is not first, 60)


def test_a_server_follows_the_learner(copied: Path, learned: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(copied / "answers.db")
    router = Router.from_pretrained(router=learned / "first", store=store, policy=Policy(price=PRICE))
    settings = ServerSettings(port=0, api_keys=(KEY,), learned=True)
    with served(settings, router=router) as server, server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"messages": [{"role": "user", "content": NEW}]}

        def gain() -> float:
            return float(http.post("/v1/route", json=body).json()["decision"]["gain"])

        before = first_gain(learned)
        until(lambda: gain() > before + 0.3, 60)
        roll_back(store)
        until(lambda: gain() == pytest.approx(before, abs=1e-3), 60)
        page = http.get("/metrics").text
        assert 'vlroute_learner_steps_total{action="rolled_back"} 1.0' in page
    assert "is not used" not in caplog.text


def first_gain(learned: Path) -> float:
    return ComplexityClassifier.load(learned / "first").predict(NEW).gain


def test_ratings_over_http_have_the_name_of_their_key(tmp_path: Path, learned: Path) -> None:
    router = Router.from_pretrained(router=learned / "first", store=tmp_path / "answers.db", explore=1.0)
    settings = ServerSettings(port=0, api_keys=(KEY,))
    with served(settings, router=router) as server, server.http(headers={"Authorization": f"Bearer {KEY}"}) as http:
        body = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        found = http.post("/v1/chat/completions", json=body).json()["vlroute"]
        assert found["decision"]["explored"] is True
        assert http.post("/v1/feedback", json={"id": found["id"], "correct": True}).status_code == 200
        assert router.store is not None
        (rated,) = router.store.records()
        assert rated.model == router.identity
        assert rated.model is not None
        assert rated.model.fingerprint
    assert rated.key.startswith("key-")
    assert (rated.propensity, rated.decision["explored"]) == (1.0, True)
