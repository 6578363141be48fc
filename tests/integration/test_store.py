"""The store: what was acknowledged is there, whatever is killed, full or asked at the same time."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from PIL import Image

from tests.conftest import lacking
from tests.serving import until
from tests.stored import answer, asked
from vlroute.errors import InputError, OutputError
from vlroute.inputs.messages import parse
from vlroute.learned import LearningEvent, LearningHistory
from vlroute.records import read_records, write_records
from vlroute.store import ANSWERS, FEEDBACK, Store, StoreError, UnknownAnswerError, export_feedback, new_id
from vlroute.types import MODES, Mode, ModelIdentity

RED = Image.new("RGB", (8, 8), "red")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A real server on a socket of its own, if there is a binary."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        lacking("no PostgreSQL server under /usr/lib/postgresql")
    tools = found[-1].parent
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="vlroute-pg-"))
    if user:
        shutil.chown(folder, user)

    def run(*command: str) -> None:
        subprocess.run(command, check=True, user=user, capture_output=True, cwd="/")

    try:
        run(str(tools / "initdb"), "-D", f"{folder}/data", "-U", "vlroute", "-A", "trust", "-E", "UTF8")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        run(str(tools / "pg_ctl"), "-D", f"{folder}/data", "-o", options, "-l", f"{folder}/log", "-w", "start")
        yield f"postgresql://vlroute@/postgres?host={folder}"
        run(str(tools / "pg_ctl"), "-D", f"{folder}/data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield str(tmp_path / "new" / "store.db")
        return
    url = request.getfixturevalue("postgres")
    yield url
    drop_tables(url)


def drop_tables(url: str) -> None:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()


def test_feedback_comes_back_with_what_was_measured(where: str) -> None:
    with Store(where) as store:
        id = store.record(answer(), asked())
        silent = store.record(answer("thinking"), asked("Another?"))
        store.feedback(id, correct=True, comment="obviously")
    with Store(where) as store:
        (judged,) = store.records()
        assert store.count() == (2, 1)
    assert len(id) == 32
    assert id != silent
    assert (judged.id, judged.prompt, judged.caption, judged.mode) == (id, "Which colour?", "a red square", "instruct")
    outcome = judged.outcome
    assert (outcome.correct, outcome.tokens) == (1.0, 5)
    assert outcome.seconds == pytest.approx(0.6)
    assert outcome.prefill_seconds == pytest.approx(0.3)


def test_the_last_feedback_counts(where: str) -> None:
    with Store(where) as store:
        id = store.record(answer(), asked())
        other = store.record(answer(), asked())
        store.feedback(other, correct=True, comment="kept")
        for correct, key in ((True, "a"), (False, "b"), (0.25, "b")):
            store.feedback(id, correct=correct, comment="?" * 20_000, key=key)
        found = {one.id: (one.outcome.correct, one.key) for one in store.records()}
        assert found == {id: (0.25, "b"), other: (1.0, "")}
        with store.transaction("read") as connection:  # or one key could fill the disk
            assert connection.scalar(sa.select(sa.func.count()).select_from(FEEDBACK)) == 2


def test_tokens_of_a_key_and_day_are_added_by_several_connections(where: str) -> None:
    with Store(where) as one, Store(where) as two:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: (one, two)[n % 2].add_tokens("ann", "2026-01-01", n), range(100)))
        assert two.add_tokens("ann", "2026-01-01", 2**40) == 4950 + 2**40  # more than 32 bits
        assert one.add_tokens("ann", "2026-01-02", 1) == 1
        assert one.tokens_of("ann", "2026-01-01") == 4950 + 2**40
        assert one.tokens_of("bob", "2026-01-01") == 0
        one.prune(timedelta(0))
        assert one.tokens_of("ann", "2026-01-01") > 0  # limits do not depend on stored answers


def test_feedback_that_cannot_be(where: str) -> None:
    with Store(where) as store:
        id = store.record(answer(), asked(), id="ab" * 16)
        assert id == "ab" * 16
        for unknown in (new_id(), "", "x" * 99, "' OR 1=1 --"):
            with pytest.raises(UnknownAnswerError, match="no answer with the id"):
                store.feedback(unknown, correct=True)
        with pytest.raises(LookupError):
            store.feedback(new_id(), correct=True)
        with pytest.raises(InputError, match="'correct' must be"):
            store.feedback(id, correct=1.5)
        with pytest.raises(StoreError, match="could not be written"):
            store.record(answer(), asked(), id=id)
        assert list(store.records()) == []


def test_export_needs_both_modes_of_the_same_request(where: str, tmp_path: Path) -> None:
    with Store(where) as store:
        ids = [
            store.record(answer("instruct"), asked()),
            store.record(answer("thinking", caption=None, forced=True), asked()),
            store.record(answer("thinking", caption=None, forced=True), asked()),
            store.record(answer("thinking"), asked(color="blue")),  # same words, another picture
            store.record(answer("instruct"), asked("Which animal?")),
            store.record(answer("thinking"), asked("Which animal?")),
        ]
        for id, correct in zip(ids[:5], (False, True, False, True, True), strict=True):
            store.feedback(id, correct=correct)
        found = export_feedback(store)
    assert found.one_sided == 2
    (record,) = found.records
    assert (record.prompt, record.caption, record.set) == ("Which colour?", "a red square", "feedback")
    assert record.instruct.correct == 0.0
    assert record.thinking.correct == 0.5
    assert record.thinking.tokens == 5
    write_records(tmp_path / "r.jsonl", found.records)
    assert list(read_records(tmp_path / "r.jsonl")) == [record]


def test_a_rescued_answer_is_rated_as_that_of_thinking(where: str) -> None:
    with Store(where) as store:
        instruct = answer("instruct")
        rescued = replace(instruct, decision=replace(instruct.decision, rescued=True))
        for one, correct in ((instruct, True), (rescued, False)):
            store.feedback(store.record(one, asked()), correct=correct)
        (record,) = export_feedback(store).records
    assert (record.instruct.correct, record.thinking.correct) == (1.0, 0.0)


def test_a_conversation_is_part_of_the_request(where: str) -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with Store(where) as store:
        store.feedback(store.record(answer("instruct"), asked()), correct=True)
        within = parse("Which colour?", RED, history=earlier)
        store.feedback(store.record(answer("thinking"), within), correct=True)
        assert export_feedback(store).one_sided == 2


def test_pictures_and_unasked_text_are_not_stored(tmp_path: Path) -> None:
    for keep in (False, True):
        path = tmp_path / f"{keep}.db"
        with Store(path, keep_text=keep) as store:
            store.record(replace(answer(), text="SECRET ANSWER"), asked())
        content = b"".join(file.read_bytes() for file in tmp_path.glob(f"{keep}.db*"))
        assert (b"SECRET ANSWER" in content) is keep
        assert RED.tobytes() not in content
        assert path.stat().st_mode & 0o077 == 0


def test_prune(where: str) -> None:
    with Store(where) as store:
        id = store.record(answer(), asked())
        store.feedback(id, correct=True)
        assert store.prune(timedelta(days=1)) == 0
        assert store.prune(timedelta(0)) == 1
        assert store.count() == (0, 0)
        with pytest.raises(UnknownAnswerError):
            store.feedback(id, correct=True)
        with pytest.raises(InputError, match="negative"):
            store.prune(timedelta(days=-1))


def test_odd_words_survive(where: str) -> None:
    with Store(where) as store:
        id = store.record(answer(caption="中文 \N{GRINNING FACE} \0"), asked("引号 ' \" \0 %s"))
        store.feedback(id, correct=True, comment="\0")
        (judged,) = store.records()
    assert judged.prompt == "引号 ' \" \N{REPLACEMENT CHARACTER} %s"
    assert judged.caption == "中文 \N{GRINNING FACE} \N{REPLACEMENT CHARACTER}"


def test_many_threads(where: str) -> None:
    with Store(where) as store, ThreadPoolExecutor(8) as threads:

        def work(_: int) -> int:
            for _ in range(10):
                store.feedback(store.record(answer(), asked()), correct=True)
            return len(list(store.records()))

        assert max(threads.map(work, range(8))) == 80
        assert store.count() == (80, 80)


def test_waiting_answers_are_written_together(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db") as store, ThreadPoolExecutor(8) as threads:
        commits = list[int]()
        sa.event.listen(store._engine, "commit", lambda _: commits.append(1))
        with store.transaction("written"):  # the answers wait for it
            ids = [threads.submit(store.record, answer(), asked()) for _ in range(8)]
            until(lambda: len(store._waiting) == 8)
        assert len({one.result(10) for one in ids}) == 8
        assert store.count()[0] == 8
        assert sum(commits) < 5  # the one before included, and one that began before all waited
        assert not store._waiting


def test_an_answer_that_cannot_be_written_fails_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db") as store, ThreadPoolExecutor(8) as threads:
        known = store.record(answer(), asked())
        with store.transaction("written"):
            ids = [known, None, known, None, None, known]
            results = [threads.submit(store.record, answer(), asked(), id=id) for id in ids]
            until(lambda: len(store._waiting) == len(ids))
        failed = [isinstance(one.exception(10), StoreError) for one in results]
        assert failed == [id is not None for id in ids]
        assert store.count()[0] == 4
        assert store.failures()["written"] == 3
        assert not store._waiting


WRITER = """
import sys
from tests.stored import answer, asked
from vlroute.store import Store
store = Store(sys.argv[1])
while True:
    id = store.record(answer(), asked())
    store.feedback(id, correct=True)
    print(id, flush=True)
"""


def test_acknowledged_feedback_survives_a_kill(where: str) -> None:
    """Two writers at once, both killed in the middle of their work."""
    root = Path(__file__).resolve().parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, where], stdout=subprocess.PIPE, text=True, cwd=root)
        for _ in range(2)
    ]
    acknowledged = []
    for writer in writers:
        assert writer.stdout is not None
        acknowledged += [writer.stdout.readline().strip() for _ in range(25)]
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        acknowledged += writer.communicate()[0].split()
    with Store(where) as store:
        assert {one.id for one in store.records()} >= set(acknowledged)
        assert len(acknowledged) >= 50
        store.feedback(acknowledged[0], correct=False)


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights")
    try:
        store, stored = Store(tmp_path / "store.db"), 0
        said = ""
        while not said and stored < 1000:
            try:
                store.feedback(store.record(answer(), asked(f"{stored} {'x' * 4000}")), correct=True)
                stored += 1
            except StoreError as error:
                said = str(error)
        assert "store.db could not be written: " in said
        assert "free some space" in said
        assert stored > 5
        assert len(list(store.records())) == stored
        store.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all " * 100)
    with pytest.raises(StoreError, match=r"text\.db could not be opened: .*not a database.*name another file"):
        Store(tmp_path / "text.db")
    Store(tmp_path / "newer.db").close()
    with sqlite3.connect(tmp_path / "newer.db") as connection:
        connection.execute("UPDATE vlroute_schema SET version = 2")
    with pytest.raises(StoreError, match=r"schema \[2\].*reads 1"):
        Store(tmp_path / "newer.db")
    with pytest.raises(StoreError, match="could not be opened"):
        Store(tmp_path / "text.db" / "store.db")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("sqlite://", "pass a file"),
        ("sqlite:///:memory:", "pass a file"),
        ("mysql://root:SECRET@host/name", "mysql"),
        ("nosuch://root:SECRET@host/name", "nosuch"),
        ("postgresql://root:SECRET@/none?host=/nonexistent", "could not be opened"),
    ],
)
def test_urls_that_cannot_be_used(url: str, why: str) -> None:
    with pytest.raises(StoreError, match=why) as caught:
        Store(url)
    assert "SECRET" not in str(caught.value)


def test_opened_at_the_same_time(where: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        for opened in threads.map(Store, [where] * 8):
            opened.close()


def test_one_learner_at_a_time(where: str) -> None:
    with Store(where) as store, Store(where) as other:
        with store.lock("learner"):
            with (
                pytest.raises(OutputError, match=r"only one learner can work on a store, and .*; "),
                other.lock("learner"),
            ):
                pass
            with other.lock("something else"):
                pass
        with other.lock("learner"):
            pass


def test_answers_name_their_model(where: str) -> None:
    small, large = ModelIdentity("Small", "5a" * 32), ModelIdentity("large")
    with Store(where) as store:
        for model, right in ((small, 0.25), (large, 0.75), (None, 1.0)):
            for mode in MODES:
                store.feedback(store.record(answer(mode), asked(), model=model), correct=right)
        store.feedback(store.record(answer("thinking"), asked("Another?"), model=large), correct=True)
        store.feedback(store.record(answer("instruct"), asked("Another?"), model=small), correct=True)
        assert {one.model for one in store.records()} == {small, large, None}
        assert all("model" not in one.decision for one in store.records())
        assert [one.model for one in store.recent(0.0, 9, ModelIdentity("LARGE"))] == [large, large, None, None, large]
        assert [one.model for one in store.recent(0.0, 2)] == [large, small]
        found = export_feedback(store)
    assert found.one_sided == 1  # the other question: its modes are those of two models
    by_model = {(one.model, one.fingerprint): one for one in found.records}
    assert {key: one.thinking.correct for key, one in by_model.items()} == {
        ("Small", "5a" * 32): 0.25, ("large", ""): 0.75, ("", ""): 1.0,
    }  # fmt: skip
    assert len({one.id for one in found.records}) == 3


def test_answers_of_an_earlier_version_are_exported_with_the_only_known_model(where: str) -> None:
    small, large = (ModelIdentity(f"Qwen/Qwen3-VL-{size}") for size in ("2B", "8B"))  # no fingerprints: endpoints
    with Store(where) as store:

        def rate(mode: Mode, model: ModelIdentity | None, correct: float) -> None:
            store.feedback(store.record(answer(mode), asked(), model=model), correct=correct)

        rate("thinking", small, 1.0)
        rate("instruct", None, 0.0)  # its text is the last one of the record
        found = export_feedback(store)
        (record,) = found.records
        assert found.one_sided == 0
        assert (record.model, record.instruct.correct, record.thinking.correct) == ("Qwen/Qwen3-VL-2B", 0.0, 1.0)
        rate("instruct", small, 0.5)
        for mode in MODES:
            rate(mode, large, 0.75)
        ids = {one.model: one.id for one in export_feedback(store).records}
        assert len(set(ids.values())) == 2
        assert ids[small.name] == record.id  # also after another model has answered
        rate("thinking", None, 0.25)
        found = export_feedback(store)
        correct = {one.model: (one.instruct.correct, one.thinking.correct) for one in found.records}
        assert correct == {small.name: (0.5, 1.0), large.name: (0.75, 0.75), "": (0.0, 0.25)}
        assert {one.model: one.id for one in found.records if one.model} == ids
        assert len({one.id for one in found.records}) == 3


def test_a_damaged_model_is_an_error_of_the_store(tmp_path: Path) -> None:
    with Store(tmp_path / "answers.db") as store:
        store.feedback(store.record(answer(), asked(), model=ModelIdentity("large")), correct=True)
        with store.transaction("written") as connection:
            connection.execute(sa.update(ANSWERS).values(decision={"model": 5}))
        with pytest.raises(StoreError, match="could not be read"):
            list(store.records())


def test_the_history_of_learning(where: str) -> None:
    with Store(where) as store:
        history = LearningHistory(store)
        assert history.latest() is None
        history.add(LearningEvent("started", "/a", "f", {"ratings": 0}))
        last = history.add(LearningEvent("swapped", "/b", "e", {"ratings": 20, "drift": {"latency": 1.5}}))
        assert history.latest() == last
        assert [one.artifact for one in history.events()] == ["/b", "/a"]
        assert history.events(1, "started")[0].details == {"ratings": 0}
        assert history.counts() == {"started": 1, "swapped": 1}
