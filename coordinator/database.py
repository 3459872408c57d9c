"""SQLite files in WAL mode."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final, Literal

import sqlalchemy as sa

BUSY_TIMEOUT_MS: Final = 5000
BROKEN: Final = (sa.exc.DatabaseError, sqlite3.DatabaseError)
"""What SQLAlchemy raises for a file that is no database, or of another shape; SQLite's own error comes from its pragmas."""


def open_database(path: Path, tables: sa.MetaData, *, synchronous: Literal["FULL", "NORMAL"]) -> sa.Engine:
    """Open or make a database that has these tables.

    Args:
        path: its file; two more lie beside it.
        tables: made if they are not there.
        synchronous: FULL for what has to survive a power cut once it is committed.

    Raises:
        DatabaseError: one of `BROKEN`.
    """
    engine = sa.create_engine(f"sqlite:///{path}")

    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    sa.event.listen(engine, "connect", set_pragmas)
    try:
        tables.create_all(engine)
    except BROKEN:
        engine.dispose()
        raise
    return engine
