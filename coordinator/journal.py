"""The coordinator's memory: migrations, the steps attempted for each, and what happened.

SQLite in WAL mode with synchronous=FULL: what was written survives a power cut. A step's intent is committed before it is taken
and its result after it. Secrets of a migration (key, tokens) are never written here. Calls are short and synchronous (0.6 ms a
commit).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Final

import sqlalchemy as sa
import structlog

from common.clock import Clock
from common.errors import WrongState
from common.storage import StorageFailed, find_database_failure
from coordinator.database import BROKEN, open_database
from coordinator.halves import Location, Move, MoveState

SCHEMA_VERSION: Final = 3
_WITHOUT_STARTER: Final = 2  # is written anew when it is opened
# Steps that lead further than a coordinator that was told nothing could know of.
_BEGINNINGS: Final = frozenset({"begin", "prepare", "perform"})
_log = structlog.get_logger()
_metadata = sa.MetaData()
_schema = sa.Table("schema", _metadata, sa.Column("version", sa.Integer, nullable=False))
_moves = sa.Table(
    "migrations",
    _metadata,
    sa.Column("migration_id", sa.String, primary_key=True),
    sa.Column("vm_name", sa.String, nullable=False),
    sa.Column("vm_uuid", sa.String, nullable=False),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("destination", sa.String, nullable=False),
    sa.Column("options", sa.LargeBinary, nullable=False),
    sa.Column("traceparent", sa.String, nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("created_at_s", sa.Float, nullable=False, index=True),
    sa.Column("request_id", sa.String, nullable=False, index=True),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("location", sa.Integer, nullable=False),
    sa.Column("step", sa.String, nullable=False),
    sa.Column("source_phase", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("error", sa.String, nullable=False),
    sa.Column("error_reason", sa.String, nullable=False),
    sa.Column("progress", sa.LargeBinary, nullable=False),
    sa.Column("downtime", sa.LargeBinary, nullable=False),
    sa.Column("phases", sa.String, nullable=False),
    sa.Column("warnings", sa.String, nullable=False),
    sa.Column("cancel_wanted", sa.Boolean, nullable=False),
    sa.Column("is_tidy", sa.Boolean, nullable=False),
    sa.Column("forecast", sa.LargeBinary, nullable=False),
    sa.Column("started_by", sa.String, nullable=False, server_default=""),
)
_steps = sa.Table(
    "steps",
    _metadata,
    sa.Column("step_id", sa.Integer, primary_key=True),
    sa.Column("migration_id", sa.String, sa.ForeignKey("migrations.migration_id"), nullable=False, index=True),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("intended_at_s", sa.Float, nullable=False),
    sa.Column("ended_at_s", sa.Float),
    sa.Column("result", sa.String, nullable=False),
)


class Journal:
    """The journal in one database file, which belongs to one coordinator at a time."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Open or make it.

        Raises:
            WrongState: another coordinator has it, it is of another version of Ferry, or it cannot be used.
        """
        self._clock = clock
        self._path = path
        self._stack = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self._stack.enter_context(_lock(path))
            try:
                self._engine = open_database(path, _metadata, synchronous="FULL")
                self._stack.callback(self._engine.dispose)
                self._check_version(path)
            except BROKEN as error:
                failure = find_database_failure(error, path)
                reason = "JOURNAL_BROKEN" if failure is None else failure.reason
                raise WrongState(f"journal {path} cannot be used: {_plain(error)}", reason=reason, path=path) from error
            undo.pop_all()

    def _check_version(self, path: Path) -> None:
        with self._engine.begin() as connection:
            version = connection.execute(sa.select(_schema.c.version)).scalar()
            if version == _WITHOUT_STARTER:
                connection.execute(sa.text("ALTER TABLE migrations ADD COLUMN started_by VARCHAR NOT NULL DEFAULT ''"))
                connection.execute(sa.update(_schema).values(version=SCHEMA_VERSION))
                version = SCHEMA_VERSION
            if version is None:
                connection.execute(sa.insert(_schema).values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise WrongState(
                    f"journal {path} is of version {version}, this coordinator knows {SCHEMA_VERSION}", reason="JOURNAL_VERSION"
                )

    def close(self) -> None:
        """Close the database and let others have it."""
        self._stack.close()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """Begin a transaction, committed at the end of the block.

        Raises:
            StorageFailed: the file system refuses; nothing was changed.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except BROKEN as error:
            failure = find_database_failure(error, self._path)
            if failure is None:
                raise
            raise failure from error

    def save(self, move: Move) -> None:
        """Write a migration as it is now.

        Raises:
            StorageFailed: the file system refuses; it is on record as it was.
        """
        row = _row(move)
        with self._writing() as connection:
            updated = connection.execute(sa.update(_moves).where(_moves.c.migration_id == move.migration_id).values(**row))
            if updated.rowcount == 0:
                connection.execute(sa.insert(_moves).values(**row))

    def find(self, id_or_beginning: str) -> list[Move]:
        """Return the migrations whose id begins so; an exact match alone if there is one."""
        pattern = id_or_beginning.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        query = sa.select(_moves).where(_moves.c.migration_id.like(f"{pattern}%", escape="\\")).limit(10)
        found = self._read(query)
        exact = [move for move in found if move.migration_id == id_or_beginning]
        return exact or found

    def find_request(self, request_id: str) -> Move | None:
        """Find the migration that a request started; None for an empty id."""
        if not request_id:
            return None
        return next(iter(self._read(sa.select(_moves).where(_moves.c.request_id == request_id).limit(1))), None)

    def newest(self, vm: str, count: int) -> list[Move]:
        """Return migrations, the newest first; of one VM unless `vm` is empty."""
        query = sa.select(_moves).order_by(_moves.c.created_at_s.desc()).limit(count)
        if vm:
            query = query.where(sa.or_(_moves.c.vm_name == vm, _moves.c.vm_uuid == vm))
        return self._read(query)

    def unfinished(self) -> list[Move]:
        """Return the migrations that have something left to do."""
        return self._read(sa.select(_moves).where(sa.not_(_moves.c.is_tidy)).order_by(_moves.c.created_at_s))

    @contextmanager
    def step(self, move: Move, name: str) -> Iterator[None]:
        """Commit the intent of a step before the block and its result after it.

        Where the file system refuses, only what begins something is not done: to end it nothing has to be remembered.

        Raises:
            StorageFailed: the intent of a beginning cannot be written; the block was not entered.
        """
        key = None
        try:
            key = self._intend(move, name)
        except StorageFailed as failure:
            if name in _BEGINNINGS:
                raise
            _log.warning("step not on record", migration=move.migration_id, step=name, error=failure.text)
        result = "done"
        try:
            yield
        except BaseException as error:
            result = f"{type(error).__name__}: {error}"[:500]
            raise
        finally:
            self._note_result(move, name, key, result)

    def _intend(self, move: Move, name: str) -> int | None:
        with self._writing() as connection:
            inserted = connection.execute(
                sa.insert(_steps).values(
                    migration_id=move.migration_id,
                    epoch=move.epoch,
                    name=name,
                    intended_at_s=self._clock.wall_s(),
                    result="",
                )
            )
            key = inserted.inserted_primary_key
            return key[0] if key else None

    def _note_result(self, move: Move, name: str, key: int | None, result: str) -> None:
        if key is None:
            return
        try:
            with self._writing() as connection:
                ended = sa.update(_steps).where(_steps.c.step_id == key)
                connection.execute(ended.values(ended_at_s=self._clock.wall_s(), result=result))
        except StorageFailed as failure:
            _log.warning("result not on record", migration=move.migration_id, step=name, error=failure.text)

    def _read(self, query: sa.Select[tuple[object, ...]]) -> list[Move]:
        with self._engine.connect() as connection:
            return [_move(dict(row)) for row in connection.execute(query).mappings()]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other coordinators off the journal: two that take up the same migrations would make agents refuse one of them."""
    try:
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise WrongState(f"journal {path} cannot be used: {error.strerror}", reason="JOURNAL_BROKEN", path=path) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise WrongState(f"journal {path} is in use by another coordinator", reason="JOURNAL_IN_USE", path=path) from error
    finally:
        os.close(descriptor)


def _plain(error: Exception) -> str:
    return str(error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig else error)


def _row(move: Move) -> dict[str, object]:
    row = {field.name: getattr(move, field.name) for field in fields(move)}
    row.update(
        state=move.state.value,
        location=move.location.value,
        phases=json.dumps(move.phases),
        warnings=json.dumps(move.warnings),
    )
    return row


def _move(row: dict[str, object]) -> Move:
    row.update(
        state=MoveState(row["state"]),
        location=Location(row["location"]),
        phases=tuple((str(name), float(span_s)) for name, span_s in json.loads(str(row["phases"]))),
        warnings=tuple(json.loads(str(row["warnings"]))),
    )
    return Move(**row)  # type: ignore[arg-type]  # the columns are the fields
