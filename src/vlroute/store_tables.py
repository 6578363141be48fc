"""The store's tables, and how a file or URL becomes a database with them."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from vlroute.errors import StoreError

SCHEMA = 1
BUSY_SECONDS = 30
LOCK = 0x766C726F757465  # PostgreSQL's advisory locks share one space of numbers: ours spells vlroute
TABLES = sa.MetaData()
SCHEMAS = sa.Table("vlroute_schema", TABLES, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
ANSWERS = sa.Table(
    "answers",
    TABLES,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("created", sa.Double, nullable=False, index=True),  # seconds since 1970, UTC
    sa.Column("request", sa.String(64), nullable=False, index=True),  # digest of all words, pictures and videos
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


def read_url(where: str | Path) -> sa.URL:
    """A file's path, or an SQLAlchemy URL, as a URL. StoreError if it cannot be read."""
    if isinstance(where, Path) or "://" not in where:
        return sa.URL.create("sqlite", database=str(Path(where).expanduser()))
    try:
        url = sa.make_url(where)
    except SQLAlchemyError as error:
        raise StoreError("the store's URL cannot be read; expected e.g. postgresql://user@host/name") from error
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def open_engine(url: sa.URL, create: bool = True) -> sa.Engine:
    """Connections to the database. With `create`, a missing file is created; otherwise only an existing store is
    opened.

    StoreError for databases other than SQLite and PostgreSQL, for one in memory, for a missing driver, and, without
    `create`, for a file that is not a store. May raise OSError and sqlite3.Error.
    """
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"{backend} is no store that vlroute knows; use a file for SQLite, or a postgresql:// URL")
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise StoreError("a store needs a file: one in memory would not outlive the process")
        path = Path(str(url.database))
        if path.is_dir():
            raise StoreError(f"{path} is a folder; pass the file of a store")
        if not create and not holds_store(path):
            what = "is not a store of vlroute" if path.exists() else "does not exist"
            raise StoreError(f"{path} {what}; pass the file that was used as --store or store= for the answers")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # prompts are nobody else's business; an existing file keeps its mode
    try:
        options = {"timeout": BUSY_SECONDS} if backend == "sqlite" else {}
        engine = sa.create_engine(url, connect_args=options, pool_pre_ping=backend != "sqlite")
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(f"{backend} needs a driver: pip install 'psycopg[binary]'") from error
    if backend == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    return engine


def holds_store(file: Path) -> bool:
    """Whether `file` is an SQLite file with a store's tables. Neither changes nor creates it. May raise
    sqlite3.Error."""
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
                raise StoreError(f"{file} is another program's database, not a store of vlroute; name another file")
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:  # SQLite does not wait where others switch the mode at the same time
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
