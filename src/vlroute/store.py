"""Answers and the feedback on them, in SQLite or PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import NoSuchModuleError, OperationalError, SQLAlchemyError

from vlroute.errors import InputError, OutputError, StoreError, UnknownAnswerError, VLRouteError
from vlroute.file_lock import locked
from vlroute.files import make_folder
from vlroute.inputs.messages import Conversation
from vlroute.records import Outcome, Record
from vlroute.shadow import Choice, Label, ShadowedDecision
from vlroute.turns import Turns
from vlroute.types import MODES, Answer, Mode, ModelIdentity, ToolUse, judged_mode, new_id

SCHEMA = 1
BUSY_SECONDS = 30
#: Errors of SQLite for which waiting does not help, although they have the type of an error of a lock.
DISK_ERRORS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
LOCK = 0x766C726F757465  # number of an advisory lock in PostgreSQL; the bytes spell "vlroute"
#: Key of the model in the column `decision` of an answer.
MODEL = "model"
TABLES = sa.MetaData()
SCHEMAS = sa.Table("vlroute_schema", TABLES, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
ANSWERS = sa.Table(
    "answers",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Double, nullable=False, index=True),  # seconds since 1970, UTC
    sa.Column("request", sa.String(64), nullable=False, index=True),  # digest of all text, pictures and videos
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("caption", sa.Text),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("forced", sa.Boolean, nullable=False),
    sa.Column("decision", sa.JSON, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("prefill_seconds", sa.Double, nullable=False),
    sa.Column("finish_reason", sa.String(16), nullable=False),
    sa.Column("text", sa.Text),
)
FEEDBACK = sa.Table(
    "feedback",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("answer", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("correct", sa.Double, nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("comment", sa.Text),
    sa.Column("created", sa.Double, nullable=False),
)
SHADOWS = sa.Table(
    "shadows",
    TABLES,
    sa.Column("answer", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("created", sa.Double, nullable=False, index=True),
    sa.Column("used", sa.JSON, nullable=False),  # a Choice
    sa.Column("shadow", sa.JSON, nullable=False),  # a Choice
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("drawn", sa.Boolean, nullable=False),
)
LABELS = sa.Table(
    "labels",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("answer", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), nullable=False, unique=True),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("text", sa.Text),
    sa.Column("same", sa.Boolean, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("prefill_seconds", sa.Double, nullable=False),
    sa.Column("finish_reason", sa.String(16), nullable=False),
    sa.Column("correct", sa.Double),
)

#: Which API key rated an answer or a label last. Ratings without a key have no row.
RATERS = sa.Table(
    "raters",
    TABLES,
    sa.Column("rated", sa.String(32), primary_key=True),  # id of the answer or label
    sa.Column("answer", sa.String(32), sa.ForeignKey("answers.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("key", sa.String(64), nullable=False),
)

#: Tokens of each API key of a server and day, for limits per key.
TOKENS = sa.Table(
    "tokens",
    TABLES,
    sa.Column("key", sa.String(64), primary_key=True),  # its name
    sa.Column("day", sa.String(10), primary_key=True),  # of UTC, such as 2026-11-29
    sa.Column("tokens", sa.BigInteger, nullable=False),
)


def read_url(where: str | Path) -> sa.URL:
    """Convert a path of a file or an SQLAlchemy URL to a URL; StoreError if it is malformed."""
    if isinstance(where, Path) or "://" not in where:
        return sa.URL.create("sqlite", database=str(Path(where).expanduser()))
    try:
        url = sa.make_url(where)
    except SQLAlchemyError as error:
        raise StoreError("the URL of the store is malformed; expected e.g. postgresql://user@host/name") from error
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def open_engine(url: sa.URL, create: bool = True) -> sa.Engine:
    """Connect to the database.

    Args:
        url: the database.
        create: whether a missing file is created. If not, the file must be a store.

    Returns:
        The engine of SQLAlchemy.

    Raises:
        StoreError: the database is neither SQLite nor PostgreSQL, is in memory, needs a driver that is not installed,
            or, without `create`, is not a store.
        OSError: the file cannot be created.
        sqlite3.Error: the file cannot be read.
    """
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"{backend} databases are not supported; pass a file for SQLite or a postgresql:// URL")
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise StoreError("an SQLite database in memory is lost when the process ends; pass a file")
        path = Path(str(url.database))
        if path.is_dir():
            raise StoreError(f"{path} is a folder; pass the file of a store")
        if not create and not holds_store(path):
            what = "is not a store of vlroute" if path.exists() else "does not exist"
            raise StoreError(f"{path} {what}; pass the file that was used as --store or store= for the answers")
        make_folder(path.parent, private=True)
        path.touch(mode=0o600)  # readable by its owner only; an existing file keeps its mode
    try:
        options = {"timeout": BUSY_SECONDS} if backend == "sqlite" else {}
        engine = sa.create_engine(url, connect_args=options, pool_pre_ping=backend != "sqlite")
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"{backend} needs a driver: pip install 'psycopg[binary]'") from error
    if backend == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def holds_store(file: Path) -> bool:
    """Whether `file` is an SQLite file with the tables of a store.

    Args:
        file: it is neither changed nor created.

    Returns:
        False if the file does not exist or has other tables.

    Raises:
        sqlite3.Error: the file cannot be read.
    """
    if not file.exists():
        return False
    with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (SCHEMAS.name,))
        return found.fetchone() is not None


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master").fetchall()}
            if tables and SCHEMAS.name not in tables:  # before anything is changed
                file = connection.execute("PRAGMA database_list").fetchone()[2]
                raise StoreError(f"{file} is a database of another program, not a store of vlroute; name another file")
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # SQLite does not wait if other processes change the journal mode too; a full disk is an error at once
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in DISK_ERRORS or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # deleted texts and pictures are overwritten


@dataclass(frozen=True, slots=True)
class RatedAnswer:
    """One answer with feedback. The feedback concerns only the mode that answered.

    Attributes:
        id: ID of the answer.
        request: digest of the conversation with its media; equal conversations have equal digests.
        prompt: text of the request.
        caption: caption on which the decision was based.
        mode: the mode that answered.
        forced: whether the mode was forced.
        outcome: correctness, tokens and seconds.
        created: seconds since 1970, UTC.
        tools: the part of tools in the request, see `Decision`.
        decision: the fields of the decision by name, as `Decision.as_dict` returns them.
        key: name of the API key that rated it; empty without one.
        label_of: for a label of shadow mode, the id of the user's answer. `decision` is that of this answer.
        model: the model that answered; None if an earlier version of vlroute stored the answer.
    """

    id: str
    request: str
    prompt: str
    caption: str | None
    mode: Mode
    forced: bool
    outcome: Outcome
    created: float
    tools: ToolUse = ""
    decision: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    label_of: str | None = None
    model: ModelIdentity | None = None

    @property
    def propensity(self) -> float:
        """Probability with which the router chose the mode that answered the user, see `Decision`."""
        return float(self.decision.get("propensity", 1.0))


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """One answer, with or without feedback.

    Attributes:
        id: ID of the answer.
        request: digest of the conversation, see `RatedAnswer`.
        prompt: text of the request.
        caption: caption on which the decision was based.
        mode: the mode that answered.
        seconds: time of the answer.
        created: seconds since 1970, UTC.
        decision: the fields of the decision by name.
        model: see `RatedAnswer`.
    """

    id: str
    request: str
    prompt: str
    caption: str | None
    mode: Mode
    seconds: float
    created: float
    decision: Mapping[str, Any]
    model: ModelIdentity | None = None


@dataclass(frozen=True, slots=True)
class ShadowedAnswer:
    """One answer on whose request a shadow also decided.

    Attributes:
        decision: Both decisions.
        request: Digest of the conversation, see `RatedAnswer`.
        prompt: Text of the request.
        mode: The mode that answered.
        text: Its answer, if the store keeps texts.
        seconds: Time of its answer.
        correct: Feedback on it, if any.
        label: The answer of the other mode, if there is one.
        model: See `RatedAnswer`.
    """

    decision: ShadowedDecision
    request: str
    prompt: str
    mode: Mode
    text: str | None
    seconds: float
    correct: float | None
    label: Label | None
    model: ModelIdentity | None = None


class Store:
    """Stored answers and feedback. Thread-safe; several processes can use the same store.

    Data is durable when a call returns: it survives a killed process and, with SQLite (write-ahead log, synchronized),
    a power failure.
    """

    def __init__(self, where: str | Path, *, keep_text: bool = False, create: bool = True) -> None:
        """Open a store.

        Args:
            where: a file for SQLite, or an SQLAlchemy URL such as postgresql://user@host/name.
            keep_text: whether the text of answers is stored too.
            create: whether missing tables and a missing file are created. The file is readable by its owner only.

        Raises:
            StoreError: the store cannot be opened, has another schema version, or, without `create`, does not exist.
        """
        self.keep_text = keep_text
        self._failures: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._waiting: dict[int, dict[str, Any]] = {}  # rows that wait to be written, by `id(row)`
        url = read_url(where)
        self._name = url.render_as_string(hide_password=True)
        with self._errors("opened"):
            self._engine = open_engine(url, create)
            # SQLite has one writer at a time, and others look only ten times a second whether the file is free
            self._writes = Turns() if self._engine.dialect.name == "sqlite" else None
            self._prepare(create)

    def record(
        self,
        answer: Answer,
        conversation: Conversation,
        *,
        id: str | None = None,
        model: ModelIdentity | None = None,
    ) -> str:
        """Store an answer.

        Args:
            answer: the answer.
            conversation: the conversation that it answers.
            id: ID of the answer; by default a new one.
            model: the model that answered. Learning does not mix the ratings of several models.

        Returns:
            The ID, 32 hex characters.

        Raises:
            StoreError: the answer could not be stored.
        """
        id = id or new_id()
        timing, decision = answer.timing, answer.decision
        prefill = timing.vision + timing.prefill
        row = {
            "id": id,
            "created": time.time(),
            "request": request_digest(conversation),
            "prompt": _storable(conversation.prompt),
            "caption": _storable(decision.caption),
            "mode": judged_mode(decision),
            "forced": decision.forced,
            # in the same column, because a store of an earlier version has no other one
            "decision": decision.as_dict() | ({} if model is None else {MODEL: model.as_card()}),
            "tokens": answer.usage.completion_tokens,
            "seconds": prefill + timing.decode,
            "prefill_seconds": prefill,
            "finish_reason": answer.finish_reason,
            "text": _storable(str(answer) if answer.tool_calls else answer.text) if self.keep_text else None,
        }
        self._add(row)
        return id

    def feedback(self, answer_id: str, *, correct: bool | float, comment: str | None = None, key: str = "") -> None:
        """Store feedback on an answer. It replaces earlier feedback on the same answer.

        Args:
            answer_id: ID of the answer, or of a label of shadow mode.
            correct: whether it is correct, or to which share, 0 to 1.
            comment: free text.
            key: name of the API key that gives the feedback. Only some ratings with the same key count, see
                `vlroute.learning.ContinualLearner`; those without a key are not limited.

        Raises:
            UnknownAnswerError: no answer with this ID is stored.
            InputError: `correct` is out of range.
            StoreError: the feedback could not be stored.
        """
        right = float(Outcome(correct).correct)
        known = sa.select(
            ANSWERS.c.id,
            sa.literal(right, sa.Double),
            ANSWERS.c.mode,
            sa.literal(_storable(comment), sa.Text),
            sa.literal(time.time(), sa.Double),
        ).where(ANSWERS.c.id == _storable(str(answer_id)))
        # one statement, so that the answer cannot be pruned in between; the lock lets one of two ratings see the other
        known = known.with_for_update()
        insert = sa.insert(FEEDBACK).from_select(["answer", "correct", "mode", "comment", "created"], known)
        with self.transaction("written") as connection:
            stored = connection.execute(insert.returning(FEEDBACK.c.answer, FEEDBACK.c.id)).first()
            if stored is not None:
                earlier = sa.and_(FEEDBACK.c.answer == stored[0], FEEDBACK.c.id < stored[1])
                connection.execute(sa.delete(FEEDBACK).where(earlier))
            else:
                graded = sa.update(LABELS).where(LABELS.c.id == _storable(str(answer_id))).values(correct=right)
                stored = connection.execute(graded.returning(LABELS.c.answer)).first()
            if stored is not None:
                connection.execute(sa.delete(RATERS).where(RATERS.c.rated == _storable(str(answer_id))))
                if key:
                    rater = {"rated": str(answer_id), "answer": stored[0], "key": _storable(key[:64])}
                    connection.execute(_insert_for_answer(RATERS, rater))
        if stored is None:
            raise UnknownAnswerError(
                f"no answer with the id {str(answer_id)[:64]!r} is stored; expected an Answer.id from a router with "
                "this store, not yet pruned"
            )

    def records(self) -> Iterator[RatedAnswer]:
        """Read all answers with feedback, labels of shadow mode included; equal requests are adjacent.

        Yields:
            The answers, streamed from the database.

        Raises:
            StoreError: the store cannot be read.
        """
        last = sa.select(sa.func.max(FEEDBACK.c.id)).group_by(FEEDBACK.c.answer)
        request = [ANSWERS.c[name] for name in ("request", "prompt", "caption", "created", "decision")]

        def of(table: sa.Table) -> list[sa.ColumnElement[Any]]:
            return [table.c[name] for name in ("id", "mode", "tokens", "seconds", "prefill_seconds")]

        rated = (
            sa.select(
                *request,
                *of(ANSWERS),
                ANSWERS.c.forced,
                FEEDBACK.c.correct,
                sa.cast(sa.null(), sa.String(32)).label("label_of"),
            )
            .join(FEEDBACK, FEEDBACK.c.answer == ANSWERS.c.id)
            .where(FEEDBACK.c.id.in_(last))
        )
        graded = (
            sa.select(*request, *of(LABELS), sa.true().label("forced"), LABELS.c.correct, LABELS.c.answer)
            .join(LABELS, LABELS.c.answer == ANSWERS.c.id)
            .where(LABELS.c.correct.is_not(None))
        )
        both = sa.union_all(rated, graded).subquery()
        query = (
            sa.select(both, RATERS.c.key)
            .outerjoin(RATERS, RATERS.c.rated == both.c.id)
            .order_by(both.c.request, both.c.created, both.c.id)
        )
        with self._errors("read"), self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=256).execute(query):
                outcome = Outcome(row.correct, row.tokens, row.seconds, row.prefill_seconds)
                decision, model = _decision(row.decision)
                yield RatedAnswer(
                    row.id, row.request, row.prompt, row.caption, row.mode, row.forced, outcome, row.created,
                    decision.get("tools", ""),  # earlier versions lack it
                    decision, row.key or "", row.label_of, model,
                )  # fmt: skip

    def recent(self, since: float, most: int, model: ModelIdentity | None = None) -> list[StoredAnswer]:
        """Read the latest answers whose mode was not forced.

        Args:
            since: earliest time, in seconds since 1970, UTC.
            most: maximum number of answers.
            model: leaves out answers of other models. None: reads all answers.

        Returns:
            The answers, the oldest first.

        Raises:
            StoreError: the store cannot be read.
        """
        columns = [ANSWERS.c[one.name] for one in fields(StoredAnswer) if one.name != "model"]
        # answers of other models are left out here, because only some answers name their model
        limit = most if model is None else None
        query = (
            sa.select(*columns)
            .where(ANSWERS.c.created >= since, ~ANSWERS.c.forced)
            .order_by(ANSWERS.c.created.desc(), ANSWERS.c.id)
            .limit(limit)
        )
        found: list[StoredAnswer] = []
        with self._errors("read"), self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=256).execute(query):
                decision, given = _decision(row.decision)
                if counts_for(model, given):
                    found.append(
                        StoredAnswer(
                            row.id, row.request, row.prompt, row.caption, row.mode, row.seconds, row.created, decision,
                            given,
                        )
                    )  # fmt: skip
                if len(found) >= most:
                    break
        return found[::-1]

    def labels(self) -> Iterator[Label]:
        """Read the answers of the other mode, see `Label`, without their texts.

        Yields:
            The labels, streamed from the database.

        Raises:
            StoreError: the store cannot be read.
        """
        query = sa.select(*(LABELS.c[one.name] for one in fields(Label) if one.name != "text"))
        with self._errors("read"), self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=256).execute(query):
                yield Label(
                    text=None, **{one.name: getattr(row, one.name) for one in fields(Label) if one.name != "text"}
                )

    def record_shadowed(self, decisions: Sequence[ShadowedDecision]) -> None:
        """Store the decisions of a shadow. Decisions on answers that are not stored, or were pruned, are left out.

        Args:
            decisions: the decisions.

        Raises:
            StoreError: they could not be stored. None of them is stored then.
        """
        with self.transaction("written") as connection:
            for one in decisions:
                row = {"answer": one.answer, "created": one.created, "used": asdict(one.used)}
                row |= {"shadow": asdict(one.shadow), "probability": one.probability, "drawn": one.drawn}
                connection.execute(_insert_for_answer(SHADOWS, row))

    def record_label(self, label: Label) -> None:
        """Store the answer of the other mode if the user's answer is stored. Its text is stored only with `keep_text`.

        Args:
            label: the label.

        Raises:
            StoreError: it could not be stored.
        """
        row = {**asdict(label), "text": _storable(label.text) if self.keep_text else None}
        with self.transaction("written") as connection:
            connection.execute(_insert_for_answer(LABELS, row))

    def shadowed(self) -> Iterator[ShadowedAnswer]:
        """Read all answers on whose requests a shadow also decided, the oldest first.

        Yields:
            The answers, streamed from the database.

        Raises:
            StoreError: the store cannot be read.
        """
        last = sa.select(sa.func.max(FEEDBACK.c.id).label("id")).group_by(FEEDBACK.c.answer).subquery()
        rated = sa.select(FEEDBACK.c.answer, FEEDBACK.c.correct).join(last, last.c.id == FEEDBACK.c.id).subquery()
        answer = [ANSWERS.c[name] for name in ("request", "prompt", "mode", "text", "seconds", "decision")]
        # these tables share names
        label = [LABELS.c[one.name].label(f"label_{one.name}") for one in fields(Label)]
        query = (
            sa.select(SHADOWS, *answer, rated.c.correct, *label)
            .join(ANSWERS, ANSWERS.c.id == SHADOWS.c.answer)
            .outerjoin(rated, rated.c.answer == SHADOWS.c.answer)
            .outerjoin(LABELS, LABELS.c.answer == SHADOWS.c.answer)
            .order_by(SHADOWS.c.created, SHADOWS.c.answer)
        )
        with self._errors("read"), self._engine.connect() as connection:
            for row in connection.execution_options(yield_per=256).execute(query):
                both = Choice(**row.used), Choice(**row.shadow)
                decision = ShadowedDecision(row.answer, row.created, *both, row.probability, row.drawn)
                found = {one.name: getattr(row, f"label_{one.name}") for one in fields(Label)}
                labeled = None if row.label_id is None else Label(**found)
                yield ShadowedAnswer(
                    decision, row.request, row.prompt, row.mode, row.text, row.seconds, row.correct, labeled,
                    _decision(row.decision)[1],
                )  # fmt: skip

    def count(self) -> tuple[int, int]:
        """Number of stored answers, and how many of them have feedback."""
        rated = sa.select(sa.func.count(sa.distinct(FEEDBACK.c.answer)))
        with self._errors("read"), self._engine.connect() as connection:
            stored = connection.execute(sa.select(sa.func.count()).select_from(ANSWERS)).scalar_one()
            return stored, connection.execute(rated).scalar_one()

    def add_tokens(self, key: str, day: str, tokens: int) -> int:
        """Add to the number of tokens that an API key has used on a day.

        Args:
            key: name of the key.
            day: the day in UTC, such as 2026-11-29.
            tokens: the number to add.

        Returns:
            The new number.

        Raises:
            StoreError: the store cannot be changed.
        """
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        added = insert(TOKENS).values(key=key, day=day, tokens=tokens)
        # one statement, so that several processes can add at the same time
        added = added.on_conflict_do_update(
            index_elements=[TOKENS.c.key, TOKENS.c.day], set_={"tokens": TOKENS.c.tokens + added.excluded.tokens}
        )
        with self.transaction("written") as connection:
            return int(connection.execute(added.returning(TOKENS.c.tokens)).scalar_one())

    def tokens_of(self, key: str, day: str) -> int:
        """Number of tokens that an API key has used on a day.

        Args:
            key: name of the key.
            day: the day in UTC, such as 2026-11-29.

        Returns:
            The number, 0 if none are counted.

        Raises:
            StoreError: the store cannot be read.
        """
        query = sa.select(TOKENS.c.tokens).where(TOKENS.c.key == key, TOKENS.c.day == day)
        with self._errors("read"), self._engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    def remove_tokens(self, before: str) -> int:
        """Delete the numbers of tokens of past days.

        Args:
            before: the first day that is kept, such as 2026-11-29.

        Returns:
            How many numbers were deleted.

        Raises:
            StoreError: the store cannot be changed.
        """
        with self.transaction("written") as connection:
            return connection.execute(sa.delete(TOKENS).where(TOKENS.c.day < before)).rowcount

    def prune(self, older_than: timedelta) -> int:
        """Delete old answers and their feedback. If the feedback is still needed, call `export_feedback` first.

        Args:
            older_than: minimum age of the deleted answers.

        Returns:
            How many answers were deleted.

        Raises:
            InputError: the age is negative.
            StoreError: the store cannot be changed; then nothing is deleted.
        """
        if older_than < timedelta(0):
            raise InputError(f"older_than must not be negative, got {older_than}")
        old = ANSWERS.c.created < time.time() - older_than.total_seconds()
        with self.transaction("written") as connection:
            return int(connection.execute(sa.delete(ANSWERS).where(old)).rowcount)

    def create(self, tables: sa.MetaData) -> None:
        """Create tables of another module in the database of this store, unless they exist.

        Args:
            tables: the tables.

        Raises:
            StoreError: they could not be created.
        """
        with self.transaction("opened") as connection:
            _lock(connection)
            tables.create_all(connection)

    @contextmanager
    def transaction(self, verb: Literal["opened", "read", "written"]) -> Iterator[sa.Connection]:
        """Open a transaction, for tables of another module.

        Args:
            verb: what is done, for error messages.

        Yields:
            The connection. The transaction is committed at the end, or rolled back after an error.

        Raises:
            StoreError: the transaction failed. Nothing was changed.
        """
        with self._errors(verb), ExitStack() as held:
            if verb != "read" and self._writes is not None:
                held.enter_context(self._writes.turn(BUSY_SECONDS))
            yield held.enter_context(self._engine.begin())

    @property
    def url(self) -> str:
        """The URL of the database, which another process can open. It contains the password, if there is one."""
        return self._engine.url.render_as_string(hide_password=False)

    @property
    def file(self) -> Path | None:
        """The file of the database; None if it is no SQLite file."""
        database = self._engine.url.database
        return Path(database) if self._engine.dialect.name == "sqlite" and database else None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Let only one process do something with this store.

        The system releases the lock when the process ends, even if it is killed. Windows has no such locks for files.

        Args:
            name: what is done, such as "learner".

        Yields:
            While the lock is held.

        Raises:
            OutputError: another process holds the lock.
            StoreError: the store cannot be read.
        """
        refused = f"only one {name} can work on a store"
        with ExitStack() as held:
            if self.file is not None:
                busy = f"{refused}, and {{holder}} does; end it, or wait until it ends"
                held.enter_context(locked(f"{self.file}.{name}", wait=0, busy=busy))
            else:
                with self._errors("read"):
                    connection = held.enter_context(self._engine.connect())
                    held.callback(connection.invalidate)  # the lock belongs to the connection
                    number = LOCK + zlib.crc32(name.encode())
                    free = connection.scalar(sa.select(sa.func.pg_try_advisory_lock(number)))
                    connection.commit()
                if not free:
                    raise OutputError(f"{refused}, and another process works on {self._name}; wait until it ends")
            yield

    def failures(self) -> dict[str, int]:
        """Number of calls that failed with a StoreError since this object was created, by what they did.

        Returns:
            The numbers of "read" and "written".
        """
        with self._lock:
            return {verb: self._failures[verb] for verb in ("read", "written")}

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _add(self, row: dict[str, Any]) -> None:
        """Insert an answer. With SQLite, one commit writes all waiting answers, because each one waits for the disk."""
        if self._writes is None:
            with self.transaction("written") as connection:
                connection.execute(sa.insert(ANSWERS), row)
            return
        with self._lock:
            self._waiting[id(row)] = row
        try:
            with self._errors("written"), self._writes.turn(BUSY_SECONDS):
                with self._lock:
                    group = {**self._waiting} if id(row) in self._waiting else {}
                try:
                    self._commit(group)
                except Exception as error:
                    if len(group) < 2 or isinstance(error, OperationalError):  # such as a full disk
                        raise
                    self._commit({id(row): row})  # another answer may be the reason, such as one with a known ID
        finally:
            with self._lock:
                self._waiting.pop(id(row), None)

    def _commit(self, group: dict[int, dict[str, Any]]) -> None:
        """Insert the rows of `group` in one transaction, and remove them from `_waiting`."""
        if group:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(ANSWERS), [*group.values()])
            with self._lock:
                for one in group:
                    self._waiting.pop(one, None)

    def _prepare(self, create: bool) -> None:
        """Create missing tables and check the schema version."""
        with self._engine.begin() as connection:
            _lock(connection)
            if not sa.inspect(connection).has_table(SCHEMAS.name):
                if not create:
                    raise StoreError(f"{self._name} is not a store of vlroute")
                TABLES.create_all(connection, [SCHEMAS])
                connection.execute(sa.insert(SCHEMAS), {"version": SCHEMA})
            TABLES.create_all(connection)  # a store of an earlier version lacks newer tables
            versions = connection.execute(sa.select(SCHEMAS.c.version)).scalars().all()
        if versions != [SCHEMA]:
            raise StoreError(
                f"{self._name} has schema {versions}, this version of vlroute reads {SCHEMA}; use the version "
                "of vlroute that created it, or another file"
            )

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except VLRouteError:
            raise
        except (
            SQLAlchemyError,
            sqlite3.Error,
            OSError,
            TypeError,
            ValueError,
        ) as error:  # TypeError and ValueError: a damaged value, as of JSON
            with self._lock:
                self._failures[verb] += 1
            why = str(getattr(error, "orig", None) or error).strip().splitlines()
            raise StoreError(
                f"{self._name} could not be {verb}: {why[0] if why else type(error).__name__}{_advice(why)}"
            ) from error


@dataclass(frozen=True, slots=True)
class FeedbackExport:
    """Feedback as records.

    Attributes:
        records: requests that have feedback on both modes.
        one_sided: number of requests that have feedback on one mode only and were left out.
    """

    records: tuple[Record, ...]
    one_sided: int


def export_feedback(store: Store) -> FeedbackExport:
    """Convert feedback to records for training: the requests that have feedback on both modes.

    Several answers of one mode to the same request are averaged. Answers of several models to the same request make
    several records, which name their models. Answers of an unknown model, which earlier versions stored, belong to the
    only known model of the request, or make a record of their own if there are several. These requests are not a
    representative sample: a user asked them twice on purpose, to compare the modes or to try the other one. The seconds
    of the mode that answered second are too short, because the vision features were cached.

    The id of a record is the digest of its request, followed by the model if it is known.

    Args:
        store: the store to read.

    Returns:
        The records and the number of requests that were left out.

    Raises:
        StoreError: the store cannot be read.
    """
    records, one_sided = [], 0
    for request, group in groupby(store.records(), lambda one: one.request):
        answers = list(group)
        models = {one.model.key: one.model for one in answers if one.model}
        unknown = next(iter(models)) if len(models) == 1 else ""  # such answers count for any model, see `counts_for`
        by_model: dict[str, list[RatedAnswer]] = {}
        for one in answers:
            by_model.setdefault(one.model.key if one.model else unknown, []).append(one)
        complete = 0
        for key, rated in by_model.items():
            by_mode = {mode: [one.outcome for one in rated if one.mode == mode] for mode in MODES}
            if not all(by_mode.values()):
                continue
            # an answer whose mode was forced has no caption
            caption = next((one.caption for one in reversed(rated) if one.caption), None)
            instruct, thinking = (_mean(by_mode[mode]) for mode in MODES)
            last, model = rated[-1], models.get(key)
            fingerprint = (model.fingerprint or "") if model else ""
            records.append(
                Record(
                    # the id does not depend on the other models, which later answers may add
                    f"{request} {fingerprint[:12] or key}" if model else request,
                    last.prompt, caption, instruct, thinking, set="feedback", tools=last.tools,
                    model=model.name if model else "", fingerprint=fingerprint,
                )
            )  # fmt: skip
            complete += 1
        one_sided += not complete
    return FeedbackExport(tuple(records), one_sided)


def counts_for(model: ModelIdentity | None, given: ModelIdentity | None) -> bool:
    """Whether an answer counts for a model.

    Args:
        model: the model; None: all answers count.
        given: the model that gave the answer; None if an earlier version of vlroute stored it. Such answers count.

    Returns:
        Whether one of them is unknown or both have the same `ModelIdentity.key`.
    """
    return model is None or given is None or given.key == model.key


def _decision(stored: Any) -> tuple[dict[str, Any], ModelIdentity | None]:
    """A decision in the database, and the model that answered. Earlier versions stored no model."""
    decision = stored if isinstance(stored, dict) else {}
    return decision, ModelIdentity.from_card(decision.pop(MODEL, None))


def request_digest(conversation: Conversation) -> str:
    """SHA-256 of all turns and tools: texts, tool calls and the digests of media; 64 hex characters."""
    turns: list[Any] = [
        [
            turn.role,
            *(["text", part] if isinstance(part, str) else ["media", part.digest] for part in turn.parts),
            *(["call", call.name, call.text] for call in turn.tool_calls),
        ]
        for turn in conversation.messages
    ]
    if (tools := conversation.tools) is not None:
        turns.append(tools.definitions)
        if tools.required or tools.allowed:
            turns.append(["tool choice", tools.required, tools.allowed])
    if conversation.prefix:
        turns.append(["prefix", conversation.prefix])
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()


def _lock(connection: sa.Connection) -> None:
    """Begin a transaction that waits for others that create tables: only one process at a time does so."""
    sqlite = connection.dialect.name == "sqlite"
    connection.exec_driver_sql("BEGIN IMMEDIATE" if sqlite else f"SELECT pg_advisory_xact_lock({LOCK})")


def _insert_for_answer(table: sa.Table, row: Mapping[str, Any]) -> sa.Insert:
    """Insert a row if its answer is stored: in one statement, so that the answer cannot be pruned in between."""
    values = [sa.literal(value, table.c[name].type) for name, value in row.items()]
    return sa.insert(table).from_select([*row], sa.select(*values).where(ANSWERS.c.id == row["answer"]))


def _mean(outcomes: list[Outcome]) -> Outcome:
    tokens = [one.tokens for one in outcomes if one.tokens is not None]
    seconds = [one.seconds for one in outcomes if one.seconds is not None]
    prefill = [one.prefill_seconds for one in outcomes if one.prefill_seconds is not None]
    return Outcome(
        fmean(float(one.correct) for one in outcomes),
        round(fmean(tokens)) if tokens else None,
        fmean(seconds) if seconds else None,
        fmean(prefill) if prefill else None,
    )


def _storable(text: str | None) -> str | None:
    """Replace NULs, which PostgreSQL cannot store, and halves of surrogate pairs, which no database can store."""
    return None if text is None else re.sub("[\0\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def _advice(why: list[str]) -> str:
    said = " ".join(why).lower()
    if "full" in said or "no space" in said or "disk i/o" in said:
        return "; free some space on its disk, or delete old answers with Store.prune"
    if "locked" in said:
        return f"; another process has locked it for {BUSY_SECONDS} s"
    if "not a database" in said or "malformed" in said:
        return "; it is damaged or not a store: move it away, or name another file"
    return ""
