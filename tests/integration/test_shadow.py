"""A shadow decides on the same requests, both decisions are stored, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.commands import command
from tests.conftest import ROOT, media, task
from tests.scripted_endpoint import DONE, USAGE, chunk, scripted_endpoint
from tests.serving import served, until, user
from tests.stored import answer, asked
from vlroute import ComplexityClassifier, Policy, Router, Target
from vlroute.engine.remote.endpoint import Endpoint
from vlroute.errors import ArtifactError, SettingsError, UnknownAnswerError
from vlroute.serving.settings import ServerSettings
from vlroute.shadow import Choice, Shadow, ShadowedDecision
from vlroute.store import Store, StoreError, export_feedback
from vlroute.types import AnswerDelta, Decided, Finished

POCKET = ROOT / "models" / "pocket" / "router"
TASKS = [task(kind, level, seed) for kind in ("math", "ocr") for level in ("easy", "hard") for seed in (1, 2)]
CAPTION = "three numbers"


@pytest.fixture(scope="module")
def opposite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that expects of Instruct what the pocket artifact expects of Thinking."""
    folder = tmp_path_factory.mktemp("shadow") / "opposite"
    pocket = ComplexityClassifier.load(POCKET)
    heads = pocket.heads
    swapped = replace(
        heads,
        weights=heads.weights[:, [1, 0, 2, 3]].copy(),
        embedded=heads.embedded[:, ::-1].copy(),
        bias=heads.bias[[1, 0, 2, 3]].copy(),
        calibration=heads.calibration[::-1].copy(),
    )
    assert pocket.calibration is not None
    calibration = replace(pocket.calibration, p=pocket.calibration.p[:, ::-1].copy())
    ComplexityClassifier(pocket.encoder, swapped, pocket.latency, pocket.card, calibration).save(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "answers.db", keep_text=True) as one:
        yield one


def shadow_of(router: Router) -> Shadow:
    assert router.shadow is not None
    return router.shadow


def flushed(router: Router) -> Shadow:
    shadow = shadow_of(router)
    shadow.flush(30)
    return shadow


@pytest.mark.parametrize("policy", [None, Policy(price=0.5), "balanced", Target(thinking_share=0.3)])
def test_the_same_artifact_decides_the_same(store: Store, policy: Any) -> None:
    captioned = []

    def captioner(seen: Any) -> str:
        captioned.append(seen)
        return CAPTION

    router = Router.from_pretrained(store=store, shadow=POCKET, policy=policy, captioner=captioner, max_new_tokens=4)
    answers = [router.ask(one.prompt, **media(one)) for one in TASKS]
    answers.append(router.ask(TASKS[0].prompt, caption=CAPTION, price=100.0))
    shadow = flushed(router)
    found = {one.decision.answer: one.decision for one in store.shadowed()}
    assert len(found) == len(answers) == sum(shadow.stats().decisions.values())
    for one in answers:
        used, mine, decision = found[one.id].used, found[one.id].shadow, one.decision
        assert (used.mode, used.p_thinking, used.threshold) == (decision.mode, decision.p_thinking, decision.threshold)
        assert (mine.mode, mine.artifact, mine.p_thinking) == (used.mode, used.artifact, used.p_thinking)
        assert mine.seconds_thinking == pytest.approx(used.seconds_thinking, rel=0.01)
        # a target is resolved at the latencies of the next decision
        assert mine.threshold == pytest.approx(used.threshold, rel=0.01 if policy is None else 0.3)
    assert len(captioned) <= len(TASKS)  # none for the shadow
    assert not shadow.stats().errors
    router.close()


def test_an_opposite_artifact_changes_no_answer_and_is_reported(
    store: Store, opposite: Path, tmp_path: Path, router: Router
) -> None:
    watched = Router.from_pretrained(store=store, shadow=opposite)
    options = {"temperature": 0}
    answers = [watched.ask(one.prompt, **media(one), **options) for one in TASKS]
    for one, given in zip(TASKS, answers, strict=True):
        alone = router.ask(one.prompt, **media(one), mode=given.decision.mode, **options)
        assert (given.text, given.thinking) == (alone.text, alone.thinking)
        watched.feedback(given.id, correct=given.text == one.answer)
    flushed(watched)
    stored = {one.decision.answer: one for one in store.shadowed()}
    changed = {"instruct": 0, "thinking": 0}
    classifier = ComplexityClassifier.load(opposite)
    for one, given in zip(TASKS, answers, strict=True):
        decision = stored[given.id].decision
        expected = classifier.predict(one.prompt, given.decision.caption)
        assert (decision.shadow.p_instruct, decision.shadow.p_thinking) == (expected.p_instruct, expected.p_thinking)
        assert decision.used.mode == given.decision.mode
        if decision.shadow.mode != decision.used.mode:
            changed[decision.shadow.mode] += 1
    assert sum(changed.values())
    done = command("eval", "--shadow", str(tmp_path / "answers.db"), "--out", "r.md", "--json", "r.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert found["requests"] == len(TASKS)
    for mode, name in (("thinking", "instruct → thinking"), ("instruct", "thinking → instruct")):
        assert found["changes"][name]["requests"] == changed[mode]
    right = [given.text == one.answer for one, given in zip(TASKS, answers, strict=True)]
    assert found["rated"]["all requests"]["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert "How to read" in (tmp_path / "r.md").read_text("utf-8")
    watched.close()


def test_every_way_to_ask_is_shadowed_but_forced_modes_are_not(store: Store) -> None:
    with Router.from_pretrained(store=store, shadow=POCKET, max_new_tokens=4) as router:
        asked_ids = [router.ask("Add the numbers.", caption=CAPTION).id]
        for event in router.stream("Add the numbers.", caption=CAPTION):
            if isinstance(event, Finished):
                asked_ids.append(event.answer.id)

        async def both() -> list[str]:
            first = await router.aask("Add the numbers.", caption=CAPTION)
            events = [event async for event in router.astream("Add the numbers.", caption=CAPTION)]
            assert isinstance(events[0], Decided)
            return [first.id, events[0].id]

        asked_ids += asyncio.run(both())
        asked_ids += [one.id for one in router.ask_many([{"prompt": "Add.", "caption": CAPTION}] * 3)]
        chat = router.chat()
        asked_ids += [chat.send("Add.", caption=CAPTION).id, chat.send("Again.").id]
        forced = router.ask("Add.", mode="instruct")
        router.decide("Add the numbers.", caption=CAPTION)
        cancel = threading.Event()
        cancel.set()
        cancelled = router.ask("Add the numbers.", caption=CAPTION, cancel=cancel)
        shadow = flushed(router)
        found = {one.decision.answer for one in store.shadowed()}
        assert found == {*asked_ids}
        assert not {forced.id, cancelled.id} & found
        assert sum(shadow.stats().decisions.values()) == len(asked_ids)


def test_a_slow_shadow_delays_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router.from_pretrained(store=store, shadow=POCKET, max_new_tokens=4)
    router.ask("Add.", caption=CAPTION)  # loads the models
    shadow, release = flushed(router), threading.Event()
    predict = shadow.classifier.predict

    def slow(*arguments: Any) -> Any:
        release.wait(30)
        return predict(*arguments)

    monkeypatch.setattr(shadow.classifier, "predict", slow)
    ids = [router.ask("Add.", caption=CAPTION).id for _ in range(3)]
    assert any(isinstance(event, AnswerDelta | Finished) for event in router.stream("Add.", caption=CAPTION))
    assert len(list(store.shadowed())) == 1  # all answers are there, and the shadow still decides
    release.set()
    shadow.flush(30)
    assert {*ids} < {one.decision.answer for one in store.shadowed()}
    router.close()


def test_noting_a_decision_takes_less_than_half_a_millisecond(router: Router, store: Store) -> None:
    shadow = Shadow(ComplexityClassifier.load(POCKET), store)
    decision = router.decide("Add the numbers.", caption=CAPTION)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        shadow.watch(router.selector, decision, None, {"instruct": 5, "thinking": 9})
        times.append(time.perf_counter() - began)
    assert sorted(times)[100] < 0.0005


def test_an_error_of_the_shadow_is_logged_once_and_counted(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router.from_pretrained(store=store, shadow=POCKET, max_new_tokens=4)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("broken artifact")

    monkeypatch.setattr(shadow_of(router).classifier, "predict", broken)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert router.ask("Add.", caption=CAPTION).finish_reason != "cancelled"
            flushed(router)
    assert shadow_of(router).stats().errors == {"decision": 3}
    assert caplog.text.count("the shadow cannot decide: broken artifact") == 1
    assert not list(store.shadowed())
    router.close()


def test_decisions_that_cannot_be_stored_cost_no_answer(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router.from_pretrained(store=store, shadow=POCKET, max_new_tokens=4)

    def full(_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(store, "record_shadowed", full)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            router.ask("Add.", caption=CAPTION)
            flushed(router)
    assert shadow_of(router).stats().errors == {"store": 2}
    assert caplog.text.count("the disk is full") == 1
    monkeypatch.undo()
    router.ask("Add.", caption=CAPTION)
    flushed(router)
    assert len(list(store.shadowed())) == 1
    router.close()


@pytest.mark.parametrize("keep_text", [True, False])
def test_labels_are_answers_of_the_other_mode(tmp_path: Path, keep_text: bool) -> None:
    store = Store(tmp_path / "answers.db", keep_text=keep_text)
    router = Router.from_pretrained(store=store, shadow=POCKET, label_share=1.0, temperature=0)
    given = []
    for one in TASKS:
        given.append(router.ask(one.prompt, **media(one)))
        flushed(router)
    found = {one.decision.answer: one for one in store.shadowed()}
    assert store.count() == (len(TASKS), 0)  # labels are not among the answers
    same = 0
    for one, first in zip(TASKS, given, strict=True):
        label, decision = found[first.id].label, found[first.id].decision
        assert label is not None
        assert (decision.probability, decision.drawn, label.probability) == (1.0, True, 1.0)
        assert label.mode != first.decision.mode
        alone = router.ask(one.prompt, **media(one), mode=label.mode)
        assert label.text == (alone.text if keep_text else None)
        assert label.same == (alone.text == first.text)
        assert label.tokens == alone.usage.completion_tokens
        assert label.seconds > 0
        same += label.same
    assert same > 0
    label = found[given[0].id].label
    assert label is not None
    router.feedback(label.id, correct=False)
    graded = {one.decision.answer: one.label for one in store.shadowed()}[given[0].id]
    assert graded is not None
    assert graded.correct == 0
    assert not export_feedback(store).records
    router.feedback(given[0].id, correct=True)
    (record,) = export_feedback(store).records  # both modes are rated now
    assert record.prompt == TASKS[0].prompt
    assert getattr(record, label.mode).correct == 0
    assert getattr(record, given[0].decision.mode).correct == 1
    assert getattr(record, label.mode).tokens == label.tokens
    with pytest.raises(UnknownAnswerError):
        router.feedback("0" * 32, correct=True)
    assert shadow_of(router).stats().labels == {"stored": len(TASKS)}
    router.close()
    store.close()


def test_the_share_of_labels_is_that_of_the_setting(store: Store) -> None:
    shadow = Shadow(ComplexityClassifier.load(POCKET), store, 0.25, most_running=-1)  # always busy
    given, selector = answer(), Router.from_pretrained().selector
    watched = shadow.watch(selector, given.decision, None, None)
    assert watched is not None
    for number in range(400):
        id = store.record(given, asked()) if number == 0 else f"unknown {number}"
        shadow.store(watched, "Which color?", replace(given, id=id), lambda mode: pytest.fail("busy"))
    shadow.flush(30)
    drawn = shadow.stats().labels["busy"]
    assert 65 < drawn < 135  # four standard deviations
    assert len(list(store.shadowed())) == 1  # the other answers are not stored


def test_the_caller_does_not_wait_for_a_label_and_close_ends_it(store: Store) -> None:
    endless = {"max_new_tokens": 8000, "eos_token_id": -1, "close_loops": False}
    router = Router.from_pretrained(
        store=store, shadow=POCKET, label_share=1.0, policy=Policy(price=1e6), generation={"thinking": endless}
    )
    assert router.ask("Add.", caption=CAPTION).decision.mode == "instruct"
    assert router.ask("Add.", caption=CAPTION).decision.mode == "instruct"  # one label at a time
    assert shadow_of(router).stats().labels == {"busy": 1}
    began = time.monotonic()
    router.close()
    assert time.monotonic() - began < 5
    assert shadow_of(router).stats().labels == {"busy": 1, "cancelled": 1}
    assert [one.label for one in store.shadowed()] == [None, None]


def test_an_old_store_and_pruning(store: Store, tmp_path: Path) -> None:
    id = store.record(answer(), asked())
    both = Choice("a", "instruct", 0.1, 0.2, 0.3, 0.4, 0.5), Choice("b", "thinking", 0.1, 0.2, 0.3, 0.4, 0.5)
    store.record_shadowed([ShadowedDecision(id, time.time(), *both)])
    store.close()
    with sa.create_engine(f"sqlite:///{tmp_path / 'answers.db'}").begin() as connection:
        for table in ("labels", "shadows"):
            connection.execute(sa.text(f"DROP TABLE {table}"))
    with Store(tmp_path / "answers.db", create=False) as old:
        old.feedback(id, correct=True)
        assert not list(old.shadowed())
        old.record_shadowed([ShadowedDecision(id, time.time(), *both)])
        (found,) = old.shadowed()
        assert (found.decision.used, found.decision.shadow) == both
        assert found.correct == 1
        old.prune(timedelta(0))
        assert not list(old.shadowed())


def test_several_processes_write_to_one_store(store: Store, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from tests.stored import answer, asked\n"
        "from vlroute.shadow import Choice, ShadowedDecision\n"
        "from vlroute.store import Store\n"
        "store, one = Store(sys.argv[1]), Choice('a', 'instruct', .1, .2, .3, .4, .5)\n"
        "for _ in range(25):\n"
        "    id = store.record(answer(), asked())\n"
        "    store.record_shadowed([ShadowedDecision(id, time.time(), one, one)])\n"
    )
    where = str(tmp_path / "answers.db")
    running = [subprocess.Popen([sys.executable, "-c", code, where], cwd=ROOT) for _ in range(3)]
    assert [one.wait(120) for one in running] == [0, 0, 0]
    assert len(list(store.shadowed())) == 75


def test_endpoints_and_a_first_artifact(store: Store) -> None:
    """Without an artifact in force, the shadow is the first one."""
    with scripted_endpoint() as script:
        script.play([chunk("three"), chunk(end="stop"), USAGE, DONE])
        end = Endpoint(script.url, "m", retries=0)
        with Router.from_endpoints(end, end, store=store, shadow=POCKET, label_share=1.0) as router:
            given = router.ask("Add the numbers.", caption=CAPTION)
            flushed(router)
            (found,) = store.shadowed()
    assert found.decision.used.artifact == ""
    assert found.decision.used.mode == given.decision.mode == "instruct"
    assert found.decision.shadow.artifact
    assert found.label is not None
    assert (found.label.mode, found.label.same) == ("thinking", True)


def test_metrics_of_a_server(tmp_path: Path, opposite: Path) -> None:
    settings = ServerSettings(max_num_seqs=4, max_tokens=64)
    with served(settings, store=tmp_path / "answers.db", shadow=opposite) as server, server.http() as http:
        body = {"model": "auto", "messages": [user(TASKS[0])], "max_tokens": 8}
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        with http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            assert "[DONE]" in response.read().decode()
        http.post("/v1/chat/completions", json={**body, "model": "instruct"})
        until(lambda: sum(shadow_of(server.router).stats().decisions.values()) == 2)
        text = http.get("/metrics").text
    counts = [line for line in text.splitlines() if line.startswith("vlroute_shadow_decisions_total{")]
    assert len(counts) == 4
    assert sum(float(line.split()[-1]) for line in counts) == 2
    assert 'mode="instruct",shadow_mode="thinking"' in text


def test_the_artifact_in_force_can_be_replaced(store: Store, opposite: Path) -> None:
    with Router.from_pretrained(store=store, shadow=opposite, policy="balanced", max_new_tokens=4) as router:
        router.ask("Add the numbers.", caption=CAPTION)
        router.use(opposite)
        router.ask("Add the numbers.", caption=CAPTION)
        flushed(router)
        before, after = (one.decision for one in store.shadowed())
    assert before.used.artifact != before.shadow.artifact == after.shadow.artifact == after.used.artifact
    assert after.used.mode == after.shadow.mode
    # a target has another price with another calibration set
    assert before.shadow.threshold != pytest.approx(before.used.threshold, rel=0.01)
    assert after.shadow.threshold == pytest.approx(after.used.threshold, rel=0.3)


def test_what_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="store="):
        Router.from_pretrained(shadow=POCKET)
    with pytest.raises(SettingsError, match="label_share needs store="):
        Router.from_pretrained(label_share=0.1)
    for share in (-0.1, 1.1, "all", True):
        with pytest.raises(SettingsError, match="label_share"):
            Router.from_pretrained(store=store, shadow=POCKET, label_share=share)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError):
        Router.from_pretrained(store=store, shadow=tmp_path / "none")
    pocket = ComplexityClassifier.load(POCKET)
    bare = ComplexityClassifier(pocket.encoder, pocket.heads, pocket.latency, pocket.card)
    bare.save(tmp_path / "bare")
    with pytest.raises(ArtifactError, match="calibration set"):
        Router.from_pretrained(store=store, shadow=tmp_path / "bare", policy="fast")
    for arguments in (
        ["eval"], ["eval", "records.jsonl"], ["eval", "records.jsonl", "--shadow", "a.db"],
        ["eval", "--shadow", str(tmp_path / "answers.db"), "--price", "1"],
        ["eval", "--shadow", str(tmp_path / "answers.db")], ["eval", "--shadow", "missing.db"],
    ):  # fmt: skip
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert "error" in done.stderr
