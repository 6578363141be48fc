"""Stored conversations of a server: responses, their messages and media, for each owner and a number of days.

A message is stored once for all responses that continue it: its row refers to the message before it, and a response
refers to its last message. A picture or video is stored once for each owner. Deleting a response deletes the messages
and media that no other response needs, so responses that continue it keep working. The bytes of each owner are counted.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from vlroute.inputs.encoded import decode_base64
from vlroute.store import Store

LOCK = 0x766C726F757466  # number of an advisory lock in PostgreSQL
#: Number of expired responses that are removed in one transaction, during which nothing else can be written (SQLite).
BATCH = 10
#: What a message, a picture, its use in a message, or a response takes besides its content: ids and indexes (measured).
ROW_BYTES = 400
MEDIA_TYPES = ("image", "video")
TABLES = sa.MetaData()
MESSAGES = sa.Table(
    "conversation_messages",
    TABLES,
    sa.Column("id", sa.String(64), primary_key=True),  # digest of owner, parent and content
    sa.Column("parent", sa.String(64), sa.ForeignKey("conversation_messages.id"), index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("content", sa.Text, nullable=False),  # JSON, with ids of media
)
MEDIA = sa.Table(
    "conversation_media",
    TABLES,
    sa.Column("id", sa.String(64), primary_key=True),  # digest of owner and data
    sa.Column("data", sa.LargeBinary, nullable=False),  # the file as it was sent
)
USES = sa.Table(
    "conversation_media_uses",
    TABLES,
    sa.Column(
        "message", sa.String(64), sa.ForeignKey("conversation_messages.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("media", sa.String(64), sa.ForeignKey("conversation_media.id"), primary_key=True, index=True),
)
RESPONSES = sa.Table(
    "responses",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("created", sa.Double, nullable=False, index=True),  # seconds since 1970, UTC
    sa.Column("message", sa.String(64), sa.ForeignKey("conversation_messages.id"), nullable=False, index=True),
    sa.Column("inputs", sa.Integer, nullable=False),  # position of the first message that came with the request
    sa.Column("body", sa.Text, nullable=False),  # the JSON that the client got
)
#: What each owner has stored. Earlier versions had the table `conversation_owners`, without `ROW_BYTES`.
OWNERS = sa.Table(
    "conversation_sizes",
    TABLES,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),  # bytes of its media, characters of its JSON, and `ROW_BYTES`
)
_CHILD = MESSAGES.alias()


class Conversations:
    """Responses and the conversations that they end, in the database of a store. Thread-safe.

    Several processes can use the same database. An owner sees only its own responses; those of others and expired ones
    are treated as if they did not exist.
    """

    def __init__(self, store: Store, keep: timedelta) -> None:
        """Open the conversations of a store. A store of an earlier version gains the tables.

        Args:
            store: the store.
            keep: how long responses are kept.

        Raises:
            StoreError: the tables cannot be created.
        """
        self._store, self.keep = store, keep
        store.create(TABLES)
        with store.transaction("written") as connection:
            _count_earlier(connection)

    def add(self, owner: str, id: str, messages: Sequence[Mapping[str, Any]], inputs: int, body: str) -> None:
        """Store a response.

        Args:
            owner: identifies who may use it.
            id: its id, up to 32 characters.
            messages: the whole conversation in the form of OpenAI's chat API, the answer last. Pictures and videos are
                parts in the form of transformers, with bytes or a data URI.
            inputs: number of messages before those of this request.
            body: what the client gets for the response.

        Raises:
            StoreError: it could not be stored. Nothing was stored then.
        """
        rows: list[dict[str, Any]] = []
        media: dict[str, bytes] = {}
        uses: list[dict[str, str]] = []
        parent: str | None = None
        for position, message in enumerate(messages):
            packed, used = _packed(owner, message)
            content = json.dumps(packed)
            digest = _digest(owner, parent, content)
            rows.append({"id": digest, "parent": parent, "position": position, "content": content})
            uses += [{"message": digest, "media": key} for key in used]
            media |= used
            parent = digest
        response = {"id": id, "owner": owner, "created": time.time(), "message": parent, "inputs": inputs, "body": body}
        with self._store.transaction("written") as connection:
            _lock(connection, exclusive=False)
            new = _insert_missing(connection, MEDIA, [{"id": key, "data": media[key]} for key in sorted(media)])
            size = ROW_BYTES + len(body) + sum(ROW_BYTES + len(media[key]) for key in new)
            new = _insert_missing(connection, MESSAGES, rows)
            size += sum(ROW_BYTES + len(row["content"]) for row in rows if row["id"] in new)
            # a message that was there has its uses already
            if uses := [use for use in uses if use["message"] in new]:
                size += ROW_BYTES * len(uses)
                connection.execute(sa.insert(USES), uses)
            connection.execute(sa.insert(RESPONSES), response)
            _count(connection, owner, size)

    def size(self, owner: str) -> int:
        """What an owner has stored. Expired responses count until they are deleted.

        Args:
            owner: who asks.

        Returns:
            The number of bytes of media, of characters of JSON, and `ROW_BYTES` for each row in the database.

        Raises:
            StoreError: the store cannot be read.
        """
        with self._store.transaction("read") as connection:
            return int(connection.scalar(sa.select(OWNERS.c.size).where(OWNERS.c.owner == owner)) or 0)

    def body(self, owner: str, id: str) -> str | None:
        """What the client got for a response.

        Args:
            owner: who asks.
            id: id of the response.

        Returns:
            The argument of `add`; None if the owner has no such response.

        Raises:
            StoreError: the store cannot be read.
        """
        with self._store.transaction("read") as connection:
            found = connection.execute(sa.select(RESPONSES.c.body).where(self._owned(owner, id))).scalar_one_or_none()
        return None if found is None else str(found)

    def messages(
        self, owner: str, id: str, reserve: Callable[[int], Any] = lambda size: None
    ) -> tuple[list[dict[str, Any]], int] | None:
        """The conversation that a response ends.

        Args:
            owner: who asks.
            id: id of the response.
            reserve: called with the size, see `size`, before anything is read; its errors are passed on.

        Returns:
            The messages, with media as bytes, and the number of messages before those of the request; None if the owner
            has no such response.

        Raises:
            StoreError: the store cannot be read.
        """
        last = sa.select(MESSAGES).join(RESPONSES, RESPONSES.c.message == MESSAGES.c.id).where(self._owned(owner, id))
        chain = last.cte(recursive=True)
        chain = chain.union_all(sa.select(MESSAGES).join(chain, MESSAGES.c.id == chain.c.parent))
        inputs = sa.select(RESPONSES.c.inputs).where(self._owned(owner, id)).scalar_subquery()
        query = sa.select(chain, inputs.label("inputs")).order_by(chain.c.position)
        used = sa.select(USES.c.media).where(USES.c.message.in_(sa.select(chain.c.id)))
        sizes = (
            sa.select(sa.func.sum(sa.func.length(chain.c.content))),
            sa.select(sa.func.sum(sa.func.length(MEDIA.c.data))).where(MEDIA.c.id.in_(used)),
        )
        with self._store.transaction("read") as connection:
            reserve(sum(int(connection.scalar(size) or 0) for size in sizes))
            rows = connection.execute(query).all()
            data = {row.id: bytes(row.data) for row in connection.execute(sa.select(MEDIA).where(MEDIA.c.id.in_(used)))}
            for row in rows:
                if _digest(owner, row.parent, str(row.content)) != row.id:
                    raise ValueError(f"the message {row.id} of a stored response is damaged")
            if damaged := [key for key, value in data.items() if _media_digest(owner, value) != key]:
                raise ValueError(f"the picture or video {damaged[0]} of a stored response is damaged")
            if rows and rows[0].inputs not in range(len(rows)):
                raise ValueError(f"the stored response {id} is damaged")
        try:
            messages = [_unpacked(json.loads(row.content), data) for row in rows]
        except KeyError:  # the response was deleted between the two queries
            return None
        return (messages, rows[0].inputs) if rows else None

    def delete(self, owner: str, id: str) -> bool:
        """Delete a response, and the messages and media that no other response needs.

        Args:
            owner: who asks.
            id: id of the response.

        Returns:
            Whether the owner had such a response.

        Raises:
            StoreError: the store cannot be changed. Nothing was deleted then.
        """
        return self._remove(self._owned(owner, id)) > 0

    def remove_expired(self) -> int:
        """Delete the responses that are older than `keep`.

        Returns:
            How many responses were deleted.

        Raises:
            StoreError: the store cannot be changed.
        """
        total = 0
        while True:
            some = sa.select(RESPONSES.c.id).where(RESPONSES.c.created <= self._oldest()).limit(BATCH)
            total += (removed := self._remove(RESPONSES.c.id.in_(some)))
            if removed < BATCH:
                return total

    def _remove(self, which: sa.ColumnElement[bool]) -> int:
        with self._store.transaction("written") as connection:
            _lock(connection, exclusive=True)
            size = (ROW_BYTES + sa.func.length(RESPONSES.c.body)).label("size")
            deleted = connection.execute(
                sa.delete(RESPONSES).where(which).returning(RESPONSES.c.owner, RESPONSES.c.message, size)
            ).all()
            for owner, message, body in deleted:
                _count(connection, owner, -body - _delete_unused(connection, message))
            connection.execute(sa.delete(OWNERS).where(OWNERS.c.size <= 0))
        return len(deleted)

    def _owned(self, owner: str, id: str) -> sa.ColumnElement[bool]:
        return sa.and_(RESPONSES.c.id == id, RESPONSES.c.owner == owner, RESPONSES.c.created > self._oldest())

    def _oldest(self) -> float:
        return time.time() - self.keep.total_seconds()


def _digest(owner: str, parent: str | None, content: str) -> str:
    """The id of a message."""
    return hashlib.sha256(json.dumps([owner, parent, content]).encode()).hexdigest()


def _media_digest(owner: str, data: bytes) -> str:
    """The id of a picture or video."""
    return hashlib.sha256(owner.encode() + b"\0" + data).hexdigest()


def _packed(owner: str, message: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """`message` with ids in place of its media, and the media by their ids."""
    content, media = message.get("content"), dict[str, bytes]()
    if not isinstance(content, list):
        return dict(message), media
    parts = []
    for part in content:
        kind = part["type"]
        if kind in MEDIA_TYPES:
            source = part[kind]
            data = decode_base64(source, "data URI", sys.maxsize) if isinstance(source, str) else bytes(source)
            key = _media_digest(owner, data)
            media[key], part = data, {**part, kind: key}
        parts.append(part)
    return {**message, "content": parts}, media


def _unpacked(message: dict[str, Any], media: Mapping[str, bytes]) -> dict[str, Any]:
    """The inverse of `_packed`. KeyError if a picture or video is missing."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        {**part, part["type"]: media[part[part["type"]]]} if part["type"] in MEDIA_TYPES else part for part in content
    ]
    return {**message, "content": parts}


def _delete_unused(connection: sa.Connection, last: str) -> int:
    """Delete a message and those before it, up to the first one that another response needs; then their media.

    Returns:
        The size of what was deleted, see `Conversations.size`.
    """
    unanswered = ~sa.exists().where(RESPONSES.c.message == MESSAGES.c.id)
    chain = sa.select(MESSAGES.c.id, MESSAGES.c.parent).where(
        MESSAGES.c.id == last, unanswered, ~sa.exists().where(_CHILD.c.parent == MESSAGES.c.id)
    ).cte(recursive=True)  # fmt: skip
    chain = chain.union_all(
        sa.select(MESSAGES.c.id, MESSAGES.c.parent)
        .join(chain, MESSAGES.c.id == chain.c.parent)
        .where(unanswered, ~sa.exists().where(_CHILD.c.parent == MESSAGES.c.id, _CHILD.c.id != chain.c.id))
    )
    unneeded_ids = sa.select(chain.c.id)
    uses = connection.scalars(sa.select(USES.c.media).where(USES.c.message.in_(unneeded_ids))).all()
    media = sorted({*uses})
    content, data = (ROW_BYTES + sa.func.length(column) for column in (MESSAGES.c.content, MEDIA.c.data))
    size: int = ROW_BYTES * len(uses)
    size += sum(connection.scalars(sa.delete(MESSAGES).where(MESSAGES.c.id.in_(unneeded_ids)).returning(content)))
    if media:
        unused = ~sa.exists().where(USES.c.media == MEDIA.c.id)
        size += sum(connection.scalars(sa.delete(MEDIA).where(MEDIA.c.id.in_(media), unused).returning(data)))
    return size


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    """An insertion in the dialect of the database, whose conflicts can be handled."""
    return (sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert)(table)


def _insert_missing(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Insert rows that are not there yet, and return their ids."""
    if not rows:
        return set()
    missing = _insert(connection, table).on_conflict_do_nothing().returning(table.c.id)
    return set(connection.scalars(missing, rows))


def _count(connection: sa.Connection, owner: str, size: int) -> None:
    """Add to the size of an owner."""
    added = _insert(connection, OWNERS).values(owner=owner, size=size)
    total = OWNERS.c.size + added.excluded.size
    connection.execute(added.on_conflict_do_update(index_elements=[OWNERS.c.owner], set_={"size": total}))


def _count_earlier(connection: sa.Connection) -> None:
    """Count what a version without the table of sizes stored."""
    _lock(connection, exclusive=True)
    stored, counted = (connection.scalar(sa.select(sa.exists().select_from(table))) for table in (RESPONSES, OWNERS))
    if counted or not stored:
        return
    last = sa.select(RESPONSES.c.owner, MESSAGES.c.id, MESSAGES.c.parent)
    owned = last.join(MESSAGES, RESPONSES.c.message == MESSAGES.c.id).cte(recursive=True)
    before = sa.select(owned.c.owner, MESSAGES.c.id, MESSAGES.c.parent)
    owned = owned.union(before.join(MESSAGES, MESSAGES.c.id == owned.c.parent))
    media = sa.select(owned.c.owner, USES.c.media).distinct().join(USES, USES.c.message == owned.c.id).subquery()
    sizes = Counter[str]()
    for query in (
        sa.select(RESPONSES.c.owner, _sizes(RESPONSES.c.body)).group_by(RESPONSES.c.owner),
        sa.select(owned.c.owner, _sizes(MESSAGES.c.content))
        .join(MESSAGES, MESSAGES.c.id == owned.c.id).group_by(owned.c.owner),
        sa.select(owned.c.owner, ROW_BYTES * sa.func.count())
        .join(USES, USES.c.message == owned.c.id).group_by(owned.c.owner),
        sa.select(media.c.owner, _sizes(MEDIA.c.data))
        .join(MEDIA, MEDIA.c.id == media.c.media).group_by(media.c.owner),
    ):  # fmt: skip
        for owner, size in connection.execute(query):
            sizes[owner] += int(size)
    for owner, size in sizes.items():
        _count(connection, owner, size)


def _sizes(column: sa.Column[Any]) -> sa.ColumnElement[int]:
    """The size of the rows with this column, see `Conversations.size`."""
    return sa.func.sum(ROW_BYTES + sa.func.length(column))


def _lock(connection: sa.Connection, *, exclusive: bool) -> None:
    """Begin a transaction. Those that delete run alone, so that no message is deleted that another one refers to."""
    if connection.dialect.name == "sqlite":  # it has one writer at a time
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        shared = "" if exclusive else "_shared"
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock{shared}({LOCK})")
