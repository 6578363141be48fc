"""The history of continual learning, in the database of a store: what was learned, and which artifact is in use.

`vlroute learn` writes it. Servers and programs with the same store read which artifact they should use.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, overload

import sqlalchemy as sa

from vlroute.errors import ArtifactError, InputError
from vlroute.store import Store

TABLES = sa.MetaData()
HISTORY = sa.Table(
    "learning_history",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("created", sa.Double, nullable=False),  # seconds since 1970, UTC
    sa.Column("action", sa.String(16), nullable=False),
    # The artifact that is in use after it: its name if it is in the folder beside the file of the store, so that both
    # can be moved, otherwise its path. Earlier versions wrote paths only.
    sa.Column("artifact", sa.Text),
    sa.Column("fingerprint", sa.String(16), nullable=False),
    sa.Column("details", sa.Text, nullable=False),  # JSON
)
#: "started": the learner began with an artifact, for the first time or again. "waited": there were too few new ratings.
#: "kept": a candidate was not better. "swapped": a candidate was put in use. "rolled back": an earlier artifact was put
#: in use again. "failed": an error occurred, and nothing changed.
Action = Literal["started", "waited", "kept", "swapped", "rolled back", "failed"]

#: Actions of steps that measure the drift.
MEASURING: tuple[Action, ...] = ("waited", "kept", "swapped")

#: Ending of the folder for artifacts beside the file of a store.
FOLDER_ENDING = ".routers"
#: Names of artifacts: `base-B` is a copy of the one with which learning began, `learned-B-N` were learned from it. B
#: and N are hexadecimal numbers. B keeps apart the learners on several stores that share a folder, and on one store
#: what was learned before and after a restart.
BASE, LEARNED = "base", "learned"


def folder_beside(store: Store) -> Path | None:
    """The folder for artifacts beside the file of a store, `answers.db.routers` for `answers.db`.

    Args:
        store: The store.

    Returns:
        The absolute path; None if the store is no file.
    """
    file = store.file
    return None if file is None else file.with_name(file.name + FOLDER_ENDING).absolute()


def base_name(artifact: str | Path) -> str:
    """Name of the artifact with which learning began, from which another one was learned.

    Args:
        artifact: Name or folder of an artifact, of either kind.

    Returns:
        The name, for an artifact with which learning began its own.
    """
    return "-".join([BASE, *Path(artifact).name.split("-")[1:2]])


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

    def check_artifact(self) -> None:
        """Raise an ArtifactError if the folder of the artifact is missing."""
        if not Path(self.artifact).is_dir():
            raise ArtifactError(
                f"the artifact {self.artifact} ({self.fingerprint}) is not there. If the artifacts were moved, pass "
                "their folder as folder= or --folder; if they are lost, learning can begin again with another router: "
                "restart=True or --restart"
            )


class LearningHistory:
    """The events of continual learning on the answers of a store. Thread-safe.

    An artifact is searched by its name: in `folder`, then in the folder beside the file of the store, then where the
    learner wrote it. So the history stays valid when the store and its artifacts are moved.

    Args:
        store: The store. It gains a table.
        folder: Folder of the artifacts; None: as above.

    Raises:
        InputError: The folder does not exist.
        StoreError: The table cannot be created.
    """

    def __init__(self, store: Store, folder: Path | None = None) -> None:
        self._store = store
        self._beside = folder_beside(store)
        self._folder = None if folder is None else folder.absolute()
        if self._folder is not None and not self._folder.is_dir():
            raise InputError(f"{folder} is not a folder; pass the folder with the artifacts of vlroute learn")
        store.create(TABLES)

    def _placed(self, artifact: str) -> str:
        """Where an artifact of the database is now."""
        name = Path(artifact).name
        folders = [one for one in (self._folder, self._beside) if one is not None]
        places = [str(one / name) for one in folders]
        if artifact != name:
            places.append(artifact)
        # the path that the learner wrote means more to a reader than one that nobody has chosen
        missing = places[0] if self._folder is not None else places[-1]
        return next((one for one in places if Path(one).is_dir()), missing) if places else artifact

    @overload
    def add(self, event: LearningEvent) -> LearningEvent: ...

    @overload
    def add(self, event: LearningEvent, *, after: LearningEvent) -> LearningEvent | None: ...

    def add(self, event: LearningEvent, *, after: LearningEvent | None = None) -> LearningEvent | None:
        """Add an event. From then on, its artifact is in use.

        Args:
            event: The event.
            after: The event that has to be the latest one before; None: any.

        Returns:
            The event with its number; None if another process has added one, and nothing was added.

        Raises:
            StoreError: It could not be stored. Nothing was changed then.
        """
        place = Path(event.artifact)
        row = {
            "created": event.created, "action": event.action,
            "artifact": place.name if place.parent == self._beside else event.artifact,
            "fingerprint": event.fingerprint, "details": json.dumps(event.details),
        }  # fmt: skip
        columns = [sa.literal(value, HISTORY.c[name].type) for name, value in row.items()]
        latest = sa.select(sa.func.max(HISTORY.c.id)).scalar_subquery()
        values = sa.select(*columns) if after is None else sa.select(*columns).where(latest == after.id)
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
            rows = [(row, json.loads(row.details)) for row in connection.execute(query)]
        return [
            LearningEvent(row.action, self._placed(row.artifact), row.fingerprint, details, row.created, row.id)
            for row, details in rows
        ]

    def fingerprints(self) -> set[str]:
        """Read which artifacts belong to the present learning.

        Returns:
            Fingerprints of the artifact with which it began, and of those that were put in use since then; those that
            were learned from another one, before or after a restart, are left out. Empty if nothing was learned yet.

        Raises:
            StoreError: The store cannot be read.
        """
        latest, events = self.latest(), self.events(None, "started", "swapped")
        base = "" if latest is None else base_name(latest.artifact)
        return {one.fingerprint for one in events if base_name(one.artifact) == base}

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
