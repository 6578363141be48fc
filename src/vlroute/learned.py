"""The history of continual learning, in the database of a store: what was learned, and which artifact is in use.

`vlroute learn` writes it. Servers and programs with the same store read which artifact they should use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import sqlalchemy as sa

from vlroute.store import Store

TABLES = sa.MetaData()
HISTORY = sa.Table(
    "learning_history",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("created", sa.Double, nullable=False),  # seconds since 1970, UTC
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("artifact", sa.Text),  # folder of the artifact that is in use after it
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("details", sa.Text, nullable=False),  # JSON
)
#: "started": the learner began with an artifact. "waited": there were too few new ratings. "kept": a candidate was not
#: better. "swapped": a candidate was put in use. "rolled back": an earlier artifact was put in use again. "failed": an
#: error occurred, and nothing changed.
Action = Literal["started", "waited", "kept", "swapped", "rolled back", "failed"]

#: Actions of steps that measure the drift.
MEASURING: tuple[Action, ...] = ("waited", "kept", "swapped")


@dataclass(frozen=True, slots=True)
class LearningEvent:
    """One step of continual learning.

    Attributes:
        action: What was done.
        artifact: Folder of the artifact that is in use after it.
        fingerprint: Its fingerprint.
        details: The comparison, the numbers of ratings, the drift and what cannot be learned, as plain values.
        created: Seconds since 1970, UTC.
        id: Number of the event; later events have higher numbers.
    """

    action: Action
    artifact: str
    fingerprint: str
    details: Mapping[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    id: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All fields by name, for JSON and the log."""
        return {
            "id": self.id, "created": self.created, "action": self.action, "artifact": self.artifact,
            "fingerprint": self.fingerprint, **self.details,
        }  # fmt: skip


class LearningHistory:
    """The events of continual learning on the answers of a store. Thread-safe.

    Args:
        store: The store. It gains a table.

    Raises:
        StoreError: The table cannot be created.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        store.create(TABLES)

    @overload
    def add(self, event: LearningEvent) -> LearningEvent: ...

    @overload
    def add(self, event: LearningEvent, *, after: str) -> LearningEvent | None: ...

    def add(self, event: LearningEvent, *, after: str | None = None) -> LearningEvent | None:
        """Add an event. From then on, its artifact is in use.

        Args:
            event: The event.
            after: The artifact that has to be in use before; None: any.

        Returns:
            The event with its number; None if another artifact is in use, and nothing was added.

        Raises:
            StoreError: It could not be stored. Nothing was changed then.
        """
        row = {
            "created": event.created, "action": event.action, "artifact": event.artifact,
            "fingerprint": event.fingerprint, "details": json.dumps(event.details),
        }  # fmt: skip
        columns = [sa.literal(value, HISTORY.c[name].type) for name, value in row.items()]
        latest = sa.select(HISTORY.c.artifact).order_by(HISTORY.c.id.desc()).limit(1).scalar_subquery()
        values = sa.select(*columns) if after is None else sa.select(*columns).where(latest == after)
        insert = sa.insert(HISTORY).from_select([*row], values).returning(HISTORY.c.id)
        with self._store.transaction("written") as connection:
            id = connection.execute(insert).scalar_one_or_none()
        if id is None:
            return None
        return LearningEvent(event.action, event.artifact, event.fingerprint, event.details, event.created, int(id))

    def latest(self) -> LearningEvent | None:
        """Read the latest event, whose artifact is in use.

        Returns:
            The event; None if nothing was learned yet.

        Raises:
            StoreError: The store cannot be read.
        """
        return next(iter(self.events(1)), None)

    def events(self, most: int | None = None, *actions: Action) -> list[LearningEvent]:
        """Read the events.

        Args:
            most: Maximum number of events; None: all.
            *actions: The wanted actions; none: all.

        Returns:
            The latest events, the latest one first.

        Raises:
            StoreError: The store cannot be read.
        """
        query = sa.select(HISTORY).order_by(HISTORY.c.id.desc()).limit(most)
        if actions:
            query = query.where(HISTORY.c.action.in_(actions))
        with self._store.transaction("read") as connection:
            rows = connection.execute(query).all()
        return [
            LearningEvent(row.action, row.artifact, row.fingerprint, json.loads(row.details), row.created, row.id)
            for row in rows
        ]

    def counts(self) -> dict[str, int]:
        """Count the events.

        Returns:
            Their number by action.

        Raises:
            StoreError: The store cannot be read.
        """
        query = sa.select(HISTORY.c.action, sa.func.count()).group_by(HISTORY.c.action)
        with self._store.transaction("read") as connection:
            return {row[0]: row[1] for row in connection.execute(query)}
