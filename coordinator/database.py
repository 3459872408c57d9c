"""SQLite files in WAL mode."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa

BUSY_TIMEOUT_MS: Final = 5000
BROKEN: Final = (sa.exc.DatabaseError, sqlite3.DatabaseError)
"""What SQLAlchemy raises for a file that is no database, or of another shape; SQLite's own error comes from its pragmas."""


def _keep_private(path: Path) -> None:
    """Let nobody else read a database; what SQLite makes beside it later gets its mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
            with suppress(FileNotFoundError):
                path.with_name(name).chmod(0o600)
    except OSError as error:
        raise sqlite3.OperationalError(f"{path}: {error.strerror}") from error


def open_database(path: Path, tables: sa.MetaData, *, synchronous: Literal["FULL", "NORMAL"], max_pages: int = 0) -> sa.Engine:
    """Open or make a database that has these tables.

    Args:
        path: its file; two more lie beside it.
        tables: made if they are not there.
        synchronous: FULL for what has to survive a power cut once it is committed.
        max_pages: the most pages of 4 KiB that the file may have; 0 is without a bound.

    Raises:
        DatabaseError: one of `BROKEN`.
    """
    _keep_private(path)
    engine = sa.create_engine(f"sqlite:///{path}")

    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")
        if max_pages:
            connection.execute(f"PRAGMA max_page_count={max_pages}")

    sa.event.listen(engine, "connect", set_pragmas)
    try:
        tables.create_all(engine)
    except BROKEN:
        engine.dispose()
        raise
    return engine
