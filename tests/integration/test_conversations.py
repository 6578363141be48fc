"""Stored conversations: what is shared, deleted, expired and kept, by several threads and databases."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.integration.test_store import postgres, where  # noqa: F401 - fixtures
from tests.stored import answer, asked
from vlroute.conversations import MEDIA, MESSAGES, OWNERS, RESPONSES, ROW_BYTES, TABLES, Conversations
from vlroute.errors import StoreError
from vlroute.store import Store
from vlroute.types import new_id

PICTURE, OTHER = b"PICTURE" * 1000, b"ANOTHER" * 1000
DAY = timedelta(days=1)


@pytest.fixture
def store(where: str) -> Iterator[Store]:  # noqa: F811
    with Store(where) as one:
        yield one


def user(text: str, *pictures: bytes, **options: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image", "image": picture, **options} for picture in pictures]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "tap", "arguments": '{"button":  "é"}'}}
    return {"role": "assistant", "content": text, "reasoning_content": "so \0 \ud800", "tool_calls": [call]}


def added(
    conversations: Conversations, messages: list[dict[str, Any]], owner: str = "me", inputs: int = 0, body: str = "{}"
) -> str:
    id = new_id()
    conversations.add(owner, id, messages, inputs, body)
    return id


def rows(store: Store) -> dict[str, int]:
    with store.transaction("read") as connection:
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for name, table in TABLES.tables.items()
            if table is not OWNERS
        }


def empty(store: Store) -> bool:
    with store.transaction("read") as connection:
        owners = connection.scalar(sa.select(sa.func.count()).select_from(OWNERS))
    return not owners and not any(rows(store).values())


def real_size(store: Store) -> int:
    columns = (RESPONSES.c.body, MESSAGES.c.content, MEDIA.c.data)
    with store.transaction("read") as connection:
        contents = sum(connection.scalar(sa.select(sa.func.sum(sa.func.length(one)))) or 0 for one in columns)
    return contents + ROW_BYTES * sum(rows(store).values())


def test_a_conversation_comes_back_as_it_was(store: Store) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        user("What?", PICTURE, OTHER, detail="low"),
        said("一"),
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "image", "image": PICTURE}]},
        said(""),
    ]
    body = '{"id": "x", "text": "\\u0000\\ud800"}'
    one = added(Conversations(store, DAY), messages, inputs=2, body=body)
    again = Conversations(store, DAY)
    assert again.messages("me", one) == (messages, 2)
    assert again.body("me", one) == body
    assert rows(store) == {
        "conversation_messages": 5, "conversation_media": 2, "conversation_media_uses": 3, "responses": 1,
    }  # fmt: skip


def test_a_data_uri_is_stored_as_bytes(store: Store) -> None:
    conversations = Conversations(store, DAY)
    uri = user("a")
    uri["content"].insert(0, {"type": "image", "image": "data:image/png;base64,UElDVFVSRQ=="})
    assert conversations.messages("me", added(conversations, [uri, said("b")])) == (
        [user("a", b"PICTURE"), said("b")], 0,
    )  # fmt: skip


def test_what_is_shared_is_stored_once_and_deleted_last(store: Store) -> None:
    conversations = Conversations(store, DAY)
    chain = [user("1", PICTURE), said("a"), user("2", PICTURE), said("b"), user("3"), said("c")]
    first, second, third = (added(conversations, chain[:length]) for length in (2, 4, 6))
    branch = added(conversations, [*chain[:2], user("other", OTHER), said("d")])
    assert rows(store) == {
        "conversation_messages": 8, "conversation_media": 2, "conversation_media_uses": 3, "responses": 4,
    }  # fmt: skip
    assert conversations.delete("me", second)
    assert conversations.messages("me", second) is None
    assert conversations.messages("me", third) == (chain, 0)
    assert conversations.delete("me", third)
    assert rows(store)["conversation_messages"] == 4
    assert conversations.messages("me", first) == (chain[:2], 0)
    assert conversations.delete("me", branch)
    assert rows(store)["conversation_media"] == 1
    assert conversations.delete("me", first)
    assert not conversations.delete("me", first)
    assert empty(store)


def test_the_size_of_an_owner_is_what_is_stored_for_it(store: Store) -> None:
    conversations = Conversations(store, DAY)
    assert conversations.size("me") == 0
    chain = [user("1", PICTURE), said("a"), user("2", PICTURE, OTHER), said("b")]
    first = added(conversations, chain[:2], body='{"a": 1}')
    size = conversations.size("me")
    assert len(PICTURE) < size == real_size(store) < len(PICTURE) + 1000 + 5 * ROW_BYTES
    second, third = added(conversations, chain, body="{}"), added(conversations, chain, body="{}")
    assert size + len(OTHER) < conversations.size("me") == real_size(store) < size + len(OTHER) + 1000 + 8 * ROW_BYTES
    theirs = added(conversations, chain, "other")
    assert conversations.size("me") + conversations.size("other") == real_size(store)
    for owner, id in (("me", first), ("other", theirs), ("me", third)):
        conversations.delete(owner, id)
        assert conversations.size("me") + conversations.size("other") == real_size(store) > 0
    conversations.delete("me", second)
    assert empty(store)


def test_the_size_of_an_owner_is_not_below_that_of_the_file(tmp_path: Path) -> None:
    """Ids and indexes of short messages take ten times as much as their texts."""

    def bytes_of_file() -> int:
        with closing(sqlite3.connect(tmp_path / "store.db")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return (tmp_path / "store.db").stat().st_size

    with Store(tmp_path / "store.db") as store:
        conversations, before = Conversations(store, DAY), bytes_of_file()
        for turn in range(5):
            chain = [user(str(turn)), *[said(""), user("a", b"1", b"2")] * 300]
            added(conversations, chain, "0" * 64)
        grown, counted = bytes_of_file() - before, conversations.size("0" * 64)
    assert 0.7 * counted < grown <= counted


def test_a_damaged_conversation_is_an_error_of_the_store(tmp_path: Path) -> None:
    message, picture = {"role": "user", "content": []}, b"a picture"
    damage = [
        ("conversation_messages", "content", one)
        for one in ("garbage", "[]", '{"role": 5}', json.dumps(message), b"\xff", 5)
    ]
    damage += [("conversation_media", "data", one) for one in (b"other", "text", 5)]
    damage += [("responses", "inputs", one) for one in (-5, 2, "one", 0.5)]
    for at, (table, column, value) in enumerate(damage):
        with Store(tmp_path / f"{at}.db") as store:
            conversations = Conversations(store, DAY)
            id = added(conversations, [user("1", picture), said("a")])
            with closing(sqlite3.connect(tmp_path / f"{at}.db")) as database, database:
                database.execute(f"UPDATE {table} SET {column} = ?", (value,))
            with pytest.raises(StoreError, match="could not be read"):
                conversations.messages("me", id)


def test_data_of_earlier_versions_is_counted(store: Store) -> None:
    conversations = Conversations(store, DAY)
    chain = [user("1", PICTURE), said("a"), user("2", PICTURE, OTHER), said("b")]
    mine = [added(conversations, messages, body='{"a": 1}') for messages in (chain[:2], chain, chain)]
    added(conversations, chain, "other")
    sizes = [conversations.size(owner) for owner in ("me", "other")]
    with store.transaction("written") as connection:
        connection.execute(sa.delete(OWNERS))  # a version without this table
    for _ in range(2):
        later = Conversations(store, DAY)
        assert [later.size(owner) for owner in ("me", "other")] == sizes
    for id in mine:
        later.delete("me", id)
    assert (later.size("me"), later.size("other")) == (0, sizes[1])


def test_a_long_conversation_is_deleted_with_a_few_statements(store: Store) -> None:
    """Each of its messages was a statement, and other writes waited for seconds."""
    conversations = Conversations(store, DAY)
    chain = [message for turn in range(1000) for message in (user(str(turn)), said("a"))]
    kept = added(conversations, chain[:2])
    id = added(conversations, chain)
    statements = list[str]()
    with store.transaction("read") as connection:
        engine = connection.engine
    sa.event.listen(engine, "before_cursor_execute", lambda *values: statements.append(values[2]))
    assert conversations.delete("me", id)
    assert len(statements) < 15
    assert conversations.messages("me", kept) == (chain[:2], 0)
    assert rows(store)["conversation_messages"] == 2


def test_owners_share_nothing(store: Store) -> None:
    conversations = Conversations(store, DAY)
    mine, theirs = (added(conversations, [user("1", PICTURE), said("a")], owner) for owner in ("me", "other"))
    assert rows(store)["conversation_media"] == 2
    for id, owner in ((mine, "other"), (theirs, "me"), (mine, ""), (new_id(), "me")):
        assert conversations.body(owner, id) is None
        assert conversations.messages(owner, id) is None
        assert not conversations.delete(owner, id)
    assert conversations.delete("me", mine)
    assert conversations.messages("other", theirs) == ([user("1", PICTURE), said("a")], 0)


def test_expired_responses_are_gone_at_once_and_removed_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlroute.conversations.BATCH", 10)
    brief, long = Conversations(store, DAY / 2), Conversations(store, DAY)
    old = [added(brief, [user(f"{i}", PICTURE), said("a")]) for i in range(25)]
    with store.transaction("written") as connection:
        connection.execute(sa.update(RESPONSES).values(created=time.time() - 0.6 * DAY.total_seconds()))
    new = added(brief, [user("0", PICTURE), said("a"), user("more"), said("b")])
    assert brief.body("me", old[0]) is None
    assert brief.messages("me", old[0]) is None
    assert not brief.delete("me", old[0])
    assert long.body("me", old[0]) == "{}"
    assert brief.remove_expired() == 25
    assert long.body("me", old[0]) is None
    assert len(long.messages("me", new)[0]) == 4  # type: ignore[index] - it shares messages with an expired one
    assert rows(store)["conversation_messages"] == 4
    assert rows(store)["conversation_media"] == 1
    assert long.remove_expired() == 0


def test_many_threads_continue_and_delete(store: Store) -> None:
    conversations = Conversations(store, DAY)
    begin = [user("1", PICTURE), said("a")]
    first = added(conversations, begin)

    def work(number: int) -> None:
        for turn in range(5):
            messages = [*begin, user(f"{turn}", PICTURE), said("b")]  # the same in all threads
            id = added(conversations, messages, inputs=2)
            assert conversations.messages("me", id) == (messages, 2)
            if number % 2:
                assert conversations.delete("me", id)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert rows(store) == {
        "conversation_messages": 2 + 10, "conversation_media": 1, "conversation_media_uses": 1 + 5, "responses": 21,
    }  # fmt: skip
    assert conversations.messages("me", first) == (begin, 0)


def test_a_response_is_stored_as_a_whole_or_not_at_all(store: Store) -> None:
    conversations = Conversations(store, DAY)
    id = added(conversations, [user("1"), said("a")])
    with pytest.raises(Exception, match="could not be written"):
        conversations.add("me", id, [user("2", PICTURE), said("b")], 0, "{}")
    assert rows(store)["conversation_messages"] == 2
    assert rows(store)["conversation_media"] == 0


def test_a_store_of_an_earlier_version_gains_the_tables(store: Store) -> None:
    store.feedback(store.record(answer(), asked()), correct=True)
    with store.transaction("read") as connection:
        assert not sa.inspect(connection).has_table("responses")
    conversations = Conversations(store, DAY)
    assert conversations.body("me", added(conversations, [user("1"), said("a")])) == "{}"
    assert store.count() == (1, 1)


def test_a_full_disk_says_so_and_loses_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights")
    try:
        with Store(tmp_path / "store.db") as store:
            conversations, ids = Conversations(store, DAY), list[str]()

            def fill() -> None:
                for number in range(250):
                    ids.append(added(conversations, [user(f"{number}", PICTURE + bytes([number])), said("a")]))

            with pytest.raises(StoreError, match=r"store\.db could not be written: .*free some space"):
                fill()
            assert len(ids) > 3
            for id in ids:
                assert len(conversations.messages("me", id)[0]) == 2  # type: ignore[index]
            assert rows(store)["responses"] == len(ids)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_deleted_pictures_are_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with Store(file) as store:
        conversations = Conversations(store, DAY)
        id = added(conversations, [user("SECRET QUESTION", PICTURE), said("a")])
        conversations.delete("me", id)
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = b"".join(one.read_bytes() for one in tmp_path.glob("store.db*"))
    assert b"SECRET QUESTION" not in content
    assert b"PICTURE" not in content
