"""From an answer to a label: stored, judged by its id, exported as a record for training."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.commands import command
from tests.conftest import media, task
from vlroute import Router
from vlroute.errors import UnknownAnswerError
from vlroute.records import read_records
from vlroute.store import Store, export_feedback
from vlroute.types import MODES


def test_feedback_on_both_modes_becomes_a_record(tmp_path: Path) -> None:
    where = tmp_path / "answers.db"
    router = Router.from_pretrained(store=where)
    some, other = task("math", "hard", 1), task("ocr", "easy", 2)
    answers = {mode: router.ask(some.prompt, **media(some), mode=mode, caption="three numbers") for mode in MODES}
    alone = router.ask(other.prompt, **media(other))
    *_, streamed = router.stream(other.prompt, **media(other))
    ids = [answer.id for answer in (*answers.values(), alone, streamed.answer)]
    assert len(set(ids)) == 4
    for mode, answer in answers.items():
        router.feedback(answer.id, correct=mode == "thinking")
    done = command("feedback", alone.id, "--correct", "--store", str(where))
    assert done.returncode == 0, done.stderr
    found = export_feedback(Store(where))
    (record,) = found.records
    assert found.one_sided == 1
    assert (record.prompt, record.caption) == (some.prompt, "three numbers")
    assert (record.instruct.correct, record.thinking.correct) == (False, True)
    assert record.thinking.tokens == answers["thinking"].usage.completion_tokens
    written = command("export", str(tmp_path / "records.jsonl"), "--store", str(where))
    assert "wrote 1 records" in written.stdout
    assert "1 requests" in written.stdout
    assert list(read_records(tmp_path / "records.jsonl")) == [record]


def test_unknown_answers_and_routers_without_a_store(tmp_path: Path) -> None:
    with pytest.raises(UnknownAnswerError):
        Router.from_pretrained(store=tmp_path / "answers.db").feedback("0" * 32, correct=True)
    with pytest.raises(ValueError, match="store="):
        Router.from_pretrained().feedback("0" * 32, correct=True)


def test_a_store_that_fails_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(tmp_path / "answers.db")
    router = Router.from_pretrained(store=store)
    store.close()
    (tmp_path / "answers.db").unlink()
    (tmp_path / "answers.db").mkdir()
    some = task("ocr", "easy")
    with caplog.at_level(logging.ERROR):
        assert router.ask(some.prompt, **media(some)).text == some.answer
    assert "is not stored" in caplog.text
