"""The database under a store: how it is opened, and what its errors mean to a person."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError as UrlError
from sqlalchemy.exc import IntegrityError, NoSuchModuleError, SQLAlchemyError

from klimb.errors import KlimbError, MissingExtraError, StoreError
from klimb.feedback.store.schema import TABLES, VERSION_TABLE, upgrade
from klimb.io.atomic import sync
from klimb.io.show import redact

_PATIENCE = 30.0  # seconds that a write waits for another program's
_MIGRATING = 5_402_118  # the lock that PostgreSQL is asked for while tables are made
_REASONS = (
    ("locked", "another program has locked it for half a minute; close that program, or try again"),
    ("disk is full", "the disk is full; free some space and send the last judgement again"),
    ("readonly", "no permission to write; make the file and its folder writable"),
    ("unable to open", "it cannot be opened; its folder must exist, and you must be allowed to write there"),
    ("not a database", "it is not a SQLite database; choose another --store"),
    ("malformed", "the file is damaged; restore it from a copy"),
    ("connection", "the database server does not answer; check the URL, and that it runs"),
)


class Database:
    """A SQLite file or a PostgreSQL database of this version's form.

    Attributes:
        where: The file, or the URL without its password.
        engine: SQLAlchemy's.

    Args:
        where: A file, or a URL that begins with `postgresql://`.
        must_exist: Whether a missing file is an error, rather than made.

    Raises:
        StoreError: It cannot be opened, is of a newer klimb, or belongs to another program.
        MissingExtraError: The package that speaks to PostgreSQL is not installed.
    """

    def __init__(self, where: str | Path, *, must_exist: bool = False) -> None:
        url = _url(where)
        # SQLite has one writer at a time and lets those who wait try again at random; a lock is fair.
        self._turn = threading.Lock() if url.drivername == "sqlite" else contextlib.nullcontext()
        self.where = (
            str(where) if url.drivername == "sqlite" else redact(url.render_as_string(hide_password=True))
        )
        if must_exist and url.drivername == "sqlite" and not Path(str(url.database)).is_file():
            raise StoreError(f"{self.where}: no such store of feedback")
        try:
            self.engine = _make_engine(url)
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise MissingExtraError(
                f"{self.where}: this needs the extra postgresql: pip install 'klimb[postgresql]'"
            ) from error
        try:
            with self.writing() as connection:
                self._prepare(connection)
            if url.drivername == "sqlite":
                self._sync_log(Path(str(url.database)).resolve())  # SQLite's log lies beside the real file
        except BaseException:
            self.engine.dispose()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Within, what is read is of one moment.

        Raises:
            StoreError: The database fails.
        """
        with self._explained(), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Within, all is written or nothing; on disk when it is left.

        Raises:
            StoreError: The database fails; nothing was written.
            IntegrityError: What is written goes against a rule of the schema; for who writes to explain.
        """
        with self._turn, self._explained(), self.engine.execution_options(writes=True).begin() as connection:
            yield connection

    def _prepare(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":  # two servers that start at once take turns
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATING})
        names = set(inspect(connection).get_table_names())
        if VERSION_TABLE not in names and names & TABLES:
            raise StoreError(
                f"{self.where}: has tables with the names of klimb's that klimb did not make; choose another --store"
            )
        upgrade(connection, self.where)

    def _sync_log(self, file: Path) -> None:
        """Bring to the disk what a server left in SQLite's log that was killed before it had.

        It counts as written from now on, and is acknowledged when it is sent again.
        """
        log = file.with_name(f"{file.name}-wal")
        try:
            if log.is_file():
                sync(log)
        except OSError as error:
            raise StoreError(f"{self.where}: cannot be written to the disk: {error}") from error

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (KlimbError, IntegrityError):
            raise
        except (SQLAlchemyError, sqlite3.Error) as error:
            said = str(getattr(error, "orig", None) or error).strip()
            reason = next((words for sign, words in _REASONS if sign in said.lower()), said)
            raise StoreError(f"{self.where}: {reason} ({redact(said.splitlines()[0])})") from error


def _url(where: str | Path) -> URL:
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(Path(where).expanduser()))
    try:
        url = make_url(where)
    except (UrlError, ValueError) as error:  # ValueError: a port that is no number
        raise StoreError(
            "the store's URL cannot be read; expected postgresql://user@host/database"
        ) from error
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise StoreError(
            f"{redact(url.render_as_string(hide_password=True))}: expected a file, or a URL that begins with postgresql://"
        )
    return url.set(drivername="postgresql+psycopg")


def _make_engine(url: URL) -> Engine:
    if url.drivername != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=20)
    engine = create_engine(url, connect_args={"timeout": _PATIENCE, "check_same_thread": False})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for a writer, and a commit is on the disk before it is acknowledged."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Take the lock for writing at once: a transaction that reads first and then writes could not wait for it."""
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
